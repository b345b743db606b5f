"""Verify a run against its own checkpoints and records: compare what its files hold with a replay, and judge."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from clip_hba_behavior.config import make_config
from clip_hba_behavior.reproducibility.record.epoch import Difference, Epoch, compare_epochs
from clip_hba_behavior.reproducibility.record.judge import Claim, Verdict, judge
from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH, Record, Step
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.numerics import numerics_left_as_they_were
from clip_hba_behavior.reproducibility.state.rng import MISSING, RESTORED
from clip_hba_behavior.reproducibility.state.snapshot import restore_parameters
from clip_hba_behavior.run.environment import changed_data, package_changes_from, two_settings
from clip_hba_behavior.run.kept import Kept
from clip_hba_behavior.run.replayer import Replayer
from clip_hba_behavior.run.results import METRICS, RESULTS_NAME
from clip_hba_behavior.training.inputs import Inputs
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.training.trainer import NonFiniteLossError
from clip_hba_behavior.verification.causes import (
    REPLAYED,
    Cause,
    Images,
    Witness,
    explain,
    first_line,
    group,
    largest_parameter,
    suspect_images,
)
from clip_hba_behavior.verification.claims import claim
from clip_hba_behavior.verification.files import RunFiles, settings_of
from clip_hba_behavior.verification.found import find_checkpoints, refuse_absent
from clip_hba_behavior.verification.outcome import COMPLETE, EpochOutcome, Metric, Verification
from clip_hba_behavior.verification.parallel import Replayed, trained_by
from clip_hba_behavior.verification.replays import NoStartError, ReplayHistory, recorded_config
from clip_hba_behavior.verification.results_table import ResultsTable
from clip_hba_behavior.verification.seed import draws_apart, epoch_batches, same_streams

Say = Callable[[EpochOutcome], None]


@numerics_left_as_they_were()
def verify_checkpoints(
    path: Path,
    given: Mapping[str, Any],
    epochs: Sequence[int] | None,
    steps: int | None,
    session: Session,
    say: Say = lambda outcome: None,
    table: ResultsTable | None = None,
    has_gaps: bool = False,
    processes: int = 1,
    kept: Kept[Inputs] | None = None,
) -> Verification:
    """Replay epochs of a run, each from the recorded state before it, and compare.

    Args:
        path: a run's directory, or a directory of checkpoints of any age.
        given: keys of a configuration: where data and backbone are now; for checkpoints of the earlier
            pipeline everything that shaped the run.
        epochs: which; None for all.
        steps: replay only the first steps of each epoch, and compare them with the ledger.
        session: told of the progress.
        say: told each epoch's outcome as soon as it is known.
        table: a results CSV to compare with; by default the run's own.
        has_gaps: whether states were left out on purpose: then an epoch may start from the state that the
            epoch before it was replayed to, if that has the digest in the ledger. So also where
            `keep_checkpoints` removed states.
        processes: how many train at once; the outcome is that of one.
        kept: the inputs of an earlier run of this process, if it may have the same.

    Raises:
        BadInputError: there is nothing to verify, or data or backbone cannot be used.
        InterruptedRunError: a signal came.
        StoppedError: the system ended one of the processes.
    """
    states = list(find_checkpoints(path).files) if has_gaps else None
    files = RunFiles(path, table, states)
    chosen = list(epochs) if epochs is not None else _all_epochs(files)
    if files.has_gaps:
        chosen = _with_those_before(files, chosen, steps)
    else:
        refuse_absent(files.found, chosen)
    replays = ReplayHistory(files, Replayer(recorded_config(files, given), session, kept=kept), steps)
    environment = replays.replayer.environment()
    verifier = EpochVerifier(files, replays)
    origins, is_partial = _origins(files, chosen)
    what: dict[str, Any] = {"run": str(files.path), "epochs": chosen, "steps": steps}
    if table is not None:
        what["results"] = {"file": str(table.path), "form": table.form}
    about: dict[str, Any] = {
        "what": what,
        "config": replays.replayer.config.trajectory(),
        "recorded": dict(origins[max(origins)]) if origins else {},
        "environment": environment,
        "num_steps": steps,
    }
    changed = _changed(files, origins, environment)
    if changed:
        reason = "data or weights are not what the run was made with"
        outcomes = [EpochOutcome(epoch, Verdict.UNTESTED, differences=(reason,)) for epoch in chosen]
        for outcome in outcomes:
            say(outcome)
        return Verification(epochs=tuple(outcomes), problems=tuple(changed), **about)

    notes = list(files.notes)
    if is_partial:
        notes += replays.derive(max(chosen))
    began = time.monotonic()
    outcomes = []
    with ExitStack() as stack:
        if min(processes, len(chosen)) > 1:
            replayed = Replayed(path, given, states, steps, max(chosen) if is_partial else None)
            replays.elsewhere = stack.enter_context(trained_by(processes, replayed, files, chosen, session))
        for epoch in chosen:
            outcomes.append(verifier.verify(epoch).outcome)
            say(outcomes[-1])
    drift = files.drift()
    drift += [each for origin in origins.values() for each in origin.get("drift", []) if each not in drift]
    return Verification(
        epochs=tuple(outcomes),
        problems=tuple(files.disagreements(origins)),
        drift=tuple(dict.fromkeys(drift)),
        notes=(*notes, *_package_changes(files, origins, environment)),
        seconds=time.monotonic() - began,
        **about,
    )


def _origins(files: RunFiles, chosen: Sequence[int]) -> tuple[dict[int, Mapping[str, Any]], bool]:
    """Return the provenance of the epochs' files, and whether any needed file holds only part of a state."""
    origins, is_partial = {}, False
    for epoch in sorted({*chosen, *(epoch - 1 for epoch in chosen)}):
        file = files.file(epoch)
        is_partial |= file.checkpoint is not None and file.state is None
        if epoch in chosen and "config" in (origin := files.origin(epoch)):
            origins[epoch] = origin
    return origins, is_partial


def _with_those_before(files: RunFiles, chosen: Sequence[int], steps: int | None) -> list[int]:
    """Add the epochs that lead from the last state there is to the start of each chosen one, if whole ones are."""
    first, last = min(files.files), max(files.files)
    if absent := [epoch for epoch in chosen if not first < epoch <= last]:
        raise BadInputError(
            f"--epochs {','.join(map(str, absent))}: there is no state from which it could be trained again\n"
            f"  expected: epochs {first + 1} to {last}"
        )
    found = set(chosen)
    for epoch in chosen:
        while steps is None and files.is_left_out(epoch - 1):
            epoch -= 1
            found.add(epoch)
    return sorted(found)


def _all_epochs(files: RunFiles) -> list[int]:
    """Return every recorded epoch that has a state before it; old files have none of epoch 0."""
    first = min(files.files)
    is_old = files.config is None and first == 1
    found = [epoch for epoch in range(first, max(files.files) + 1) if epoch > first or is_old]
    if files.table is not None:
        found = [epoch for epoch in found if epoch in files.table.rows]
    if not found:
        rows = f"; rows of {', '.join(map(str, files.table.rows))} in the CSV" if files.table is not None else ""
        raise BadInputError(
            f"{files.path} has no epoch that can be replayed\n"
            f"  found:    checkpoints of epochs {', '.join(map(str, files.files))}{rows}"
            "\n  expected: two checkpoints of epochs in a row"
        )
    return found


def _changed(
    files: RunFiles, origins: Mapping[int, Mapping[str, Any]], environment: Mapping[str, Any]
) -> list[str]:
    """Name what of data and weights is not what the checkpoints record."""
    if not origins:
        return []
    recorded = {key: files.environment.get(key) for key in ("images", "pixels", "targets")}
    return changed_data(recorded | {"digests": origins[max(origins)]["digests"]}, environment)


def _package_changes(
    files: RunFiles, origins: Mapping[int, Mapping[str, Any]], environment: Mapping[str, Any]
) -> list[str]:
    """Name other versions and sources of this package, on the run's way and now: they change bits or do not."""
    found = list(files.environment.get("package_changes", []))
    found += [each for origin in origins.values() for each in package_changes_from(origin, environment)]
    return list(dict.fromkeys(found))


class Verified:
    """An epoch verified: its outcome, and what it was drawn from."""

    def __init__(
        self,
        outcome: EpochOutcome,
        differences: Sequence[Difference] = (),
        cause: Cause | None = None,
        replayed: Epoch | None = None,
    ) -> None:
        """Bring them together."""
        self.outcome, self.differences, self.cause, self.replayed = outcome, differences, cause, replayed


class EpochVerifier:
    """Verifies epochs of one run, one after the other."""

    def __init__(
        self,
        files: RunFiles,
        replays: ReplayHistory,
        witnesses: Sequence[Witness] = (),
        images: Images | None = None,
    ) -> None:
        """Name what is compared.

        Args:
            files: the run.
            replays: its replay.
            witnesses: further ledgers that may know where a swapped file belongs.
            images: tells which images may have changed; by default what this run and its replay show.
        """
        self.files, self.replays = files, replays
        self.witnesses = (Witness(files.ledger), *witnesses)
        self._ask_images = images

    def verify(self, epoch: int) -> Verified:
        """Replay one epoch and compare it with everything that is recorded of it."""
        after = self.files.file(epoch)
        if after.checkpoint is None and not self.files.is_left_out(epoch):
            reasons: tuple[str, ...] = (str(after.problem),)
            return Verified(EpochOutcome(epoch, Verdict.UNTESTED, differences=reasons))
        origin, environment = self.files.origin(epoch), self.replays.replayer.environment()
        within = [each for each in origin.get("drift", []) if each.startswith(two_settings(epoch))]
        changed = changed_data(origin, environment) if "digests" in origin else []
        if within or changed:
            return Verified(EpochOutcome(epoch, Verdict.UNTESTED, differences=(*within, *changed)))
        table = self.files.table
        if table is not None and epoch not in table.rows:
            reason = f"{table.path.name} has no row of epoch {epoch}"
            return Verified(EpochOutcome(epoch, Verdict.UNTESTED, differences=(reason,)))
        recorded = self.files.epoch(epoch)
        try:
            replayed = self.replays.epoch(epoch)
        except NoStartError as error:
            reasons = (str(error), *((after.problem,) if after.problem is not None else ()))
            return Verified(EpochOutcome(epoch, Verdict.UNTESTED, differences=reasons))
        except NonFiniteLossError as error:
            reasons = (str(error).partition("\n")[0],)
            return Verified(EpochOutcome(epoch, Verdict.DIFFERENT, differences=reasons))
        is_complete = all(
            isinstance(state, TrainingState) or self.files.is_left_out(number)
            for number, state in ((epoch - 1, recorded.start), (epoch, recorded.end))
        )
        claimed = claim(origin, environment, is_complete, table is None or table.is_own)
        if not is_complete:
            return self._verify_partial(recorded, replayed, claimed)
        return self._verify_complete(recorded, replayed, claimed)

    def _verify_complete(self, recorded: Epoch, replayed: Epoch, claimed: Claim) -> Verified:
        if replayed.end is None and not recorded.steps.keys() & replayed.steps.keys():
            reason = "the ledger has no steps of this epoch to compare with"
            return Verified(EpochOutcome(recorded.number, Verdict.UNTESTED, claimed, differences=(reason,)))
        if replayed.end is None:  # of the record only the steps are compared
            recorded = dataclasses.replace(recorded, end=None, row={})
        differences = compare_epochs(recorded, replayed)
        if differences and claimed.tolerance is not None and recorded.end is not None:
            # a tolerance leaves parameters to their effect, so the results must be those of the file's parameters
            differences = (*differences, *self._evaluated(recorded, _metrics_of(recorded)))
        verdict = judge(differences, claimed)
        cause = None
        if verdict is Verdict.DIFFERENT:
            images = self._ask_images or (lambda: self._images(recorded, replayed))
            cause = explain(differences, recorded, replayed, self.witnesses, images)
        elif verdict is Verdict.CONSISTENT and claimed.is_complete:
            cause = Cause(f"another environment: {'; '.join(claimed.reasons)}")
        return self._verified(recorded, replayed, claimed, verdict, differences, cause, _order(recorded, replayed))

    def _verify_partial(self, recorded: Epoch, replayed: Epoch, claimed: Claim) -> Verified:
        """Compare what a file holds of a state; whether the order fits, the seed may know too."""
        epoch, before, after = (
            recorded.number,
            self.files.file(recorded.number - 1),
            self.files.file(recorded.number),
        )
        assert after.checkpoint is not None
        has_random_states = after.checkpoint.rng_state is not None
        holds = "parameters and random states" if has_random_states else "parameters only"
        order, order_fits = self._order_of_partial(epoch, replayed)
        if replayed.end is None:
            reason = "the file holds no record of single steps to compare with; leave --steps out"
            return Verified(EpochOutcome(epoch, Verdict.UNTESTED, claimed, holds, order, differences=(reason,)))
        apart: list[Difference] = []
        if recorded.row:
            apart = self._evaluated(recorded, replayed.row)
        else:
            recorded = dataclasses.replace(recorded, row=self._evaluate(recorded))
        differences = [each for each in compare_epochs(recorded, replayed) if each.part() != "rng_state"]
        differences += apart
        if not order_fits:
            differences.append(Difference(END_OF_EPOCH, "records", order))
        verdict = judge(differences, claimed)
        text = None
        if not order_fits:
            text = "the batches were other ones: check random_seed, and that all files are of one run"
        elif before.checkpoint is None:
            is_rounded = largest_parameter(differences) > 0
            text = "epoch 1 began from the seed, with everything: what is left is rounding" if is_rounded else None
        elif before.state is None:
            lacks = "optimizer_state and early_stopping_state"
            lacks += "" if before.checkpoint.rng_state else " and rng_state"
            text = (
                f"the file of epoch {epoch - 1} lacks {lacks}: AdamW's moments began at zero again, so a replay "
                "moves results by about 1-5 %"
            )
        cause = Cause(text) if text is not None else None
        return self._verified(recorded, replayed, claimed, verdict, differences, cause, order, holds)

    def _verified(
        self,
        recorded: Epoch,
        replayed: Epoch,
        claimed: Claim,
        verdict: Verdict,
        differences: Sequence[Difference],
        cause: Cause | None,
        order: str,
        holds: str = COMPLETE,
    ) -> Verified:
        number, start = recorded.number, replayed.start
        source = self.files.table.path.name if self.files.table is not None else RESULTS_NAME
        source = source if number in self.files.rows else "checkpoint"
        row = recorded.row or (_metrics_of(recorded) if replayed.end is not None else {})
        metrics = tuple(
            Metric(name, source, row[name], replayed.row[name])
            for name in METRICS
            if {name} <= row.keys() & replayed.row.keys()
        )
        ledger = next((each for each in differences if each.source == "ledger"), None)
        is_near = claimed.tolerance.permits if claimed.tolerance is not None else lambda each: False
        apart = {each.name for each in differences if each.source == "results" and not is_near(each)}
        faults = [each.name for each in differences if each.source == "records"]
        lines = [*faults, *([] if ledger is None else [first_line(ledger, REPLAYED)])]
        lines += group(differences, REPLAYED) if holds == COMPLETE else []
        lines += [each.line() for each in metrics if each.name in apart]
        before = self.files.file(number - 1).checkpoint or self.files.file(number).checkpoint
        has_random_states = holds == COMPLETE or (before is not None and before.rng_state is not None)
        end = recorded.end if replayed.end is not None else None
        num_differing = sum(each.is_tensor for each in differences) if end is not None else None
        if replayed.end is not None and self.files.is_left_out(number):
            num_differing = sum(each.is_tensor_of_ledger() for each in differences)
        outcome = EpochOutcome(
            epoch=number,
            word=verdict,
            claim=claimed,
            holds=holds,
            order=order,
            order_digest=self._order_digest(replayed),
            num_steps=sum(step != END_OF_EPOCH for step in replayed.steps),
            start_digest=start.digest() if holds == COMPLETE and start is not None else None,
            recorded_digest=self.files.state_digest(number),
            replayed_digest=replayed.end.digest() if holds == COMPLETE and replayed.end is not None else None,
            num_differing_tensors=num_differing,
            max_parameter_difference=largest_parameter(differences) if end is not None else None,
            metrics=metrics,
            differences=tuple(lines),
            cause=cause.text if cause is not None else None,
            notes=(RESTORED if has_random_states else MISSING,),
        )
        return Verified(outcome, differences, cause, replayed)

    # --- order and images ---------------------------------------------------------------------------

    def _batches(self, epoch: int) -> Sequence[torch.Tensor] | None:
        """Derive an epoch's batches from the recorded random states before it."""
        before = self.files.file(epoch - 1).checkpoint
        if before is None or before.rng_state is None:
            return None
        replayer = self.replays.replayer
        config = make_config(replayer.config.model_dump() | settings_of(self.files.origin(epoch)))
        return epoch_batches(config, len(replayer.environment()["targets"]), before.rng_state, epoch)

    def _order_digest(self, replayed: Epoch) -> str:
        trainer = self.replays.replayer.trainer(replayed.settings)
        assert isinstance(replayed.start, TrainingState)
        rng_state = replayed.start.rng_state
        batches = epoch_batches(trainer.config, trainer.inputs.num_images(), rng_state, replayed.number)
        return digest(torch.cat(batches))

    def _images(self, recorded: Epoch, replayed: Epoch) -> tuple[bool, Sequence[str]]:
        """Return whether the batches held the same rows, and the images that alone may have changed."""
        ends = recorded.end, replayed.end
        same_draws = all(isinstance(end, TrainingState) for end in ends) and same_streams(
            *(end.rng_state for end in ends if isinstance(end, TrainingState))
        )
        same_rows, rows = suspect_images(self.replays.epochs(), self.files, self.replays, self._batches)
        paths = self.replays.replayer.trainer(replayed.settings).inputs.image_paths
        return same_rows or same_draws, [paths[row].name for row in rows]

    def _order_of_partial(self, epoch: int, replayed: Epoch) -> tuple[str, bool]:
        """Describe what can be said of the batch order, and whether it speaks against the record."""
        seed = self.replays.replayer.config.random_seed
        before, after = self.files.file(epoch - 1).checkpoint, self.files.file(epoch).checkpoint
        recorded = after.rng_state if after is not None else None
        if recorded is None:
            if before is not None and before.rng_state is not None:
                return "from the recorded random state; none was recorded after the epoch to compare with", True
            return f"reconstructed from seed {seed}; the file records none to compare with", True
        end, derived = replayed.end, self.replays.seed
        fits = isinstance(end, TrainingState) and same_streams(recorded, end.rng_state)
        from_seed = derived is not None and same_streams(recorded, derived.rng_states[epoch])
        if fits:
            text = "equal: the replay reached the recorded random state after the epoch"
            if from_seed or derived is None:
                return text + (f", which is also the one derived from seed {seed}" if from_seed else ""), True
            apart = draws_apart(recorded, derived.rng_states[epoch])
            if apart is None:
                return f"of another seed than {seed}: the recorded random state is none of its states", False
            return f"{text}; seed {seed} gives it {abs(apart)} draws {'earlier' if apart > 0 else 'later'}", True
        if from_seed:
            text = f"equal to the one derived from seed {seed}; the random state before the epoch is another"
            return text, True
        return f"not equal: neither the replay nor seed {seed} gives the recorded random state", False

    def _evaluated(self, recorded: Epoch, results: Mapping[str, float]) -> list[Difference]:
        """Evaluate the parameters in an epoch's file, and compare with results that should be near."""
        return [
            Difference(END_OF_EPOCH, "state", f"metrics/{name}", results[name], value, "evaluated again")
            for name, value in self._evaluate(recorded).items()
            if name in results and repr(results[name]) != repr(value)
        ]

    def _evaluate(self, recorded: Epoch) -> dict[str, float]:
        """Evaluate the parameters in an epoch's file."""
        trainer = self.replays.replayer.trainer(self.replays.settings(recorded.number))
        restore_parameters(trainer.parameters, recorded.end.as_dict()["parameters"] if recorded.end else {})
        found = trainer.evaluate()
        return {"test_loss": found.test_loss, **trainer.behavioral_rsa(found)}


def _metrics_of(recorded: Epoch) -> dict[str, float]:
    metrics = recorded.end.as_dict().get("metrics", {}) if recorded.end is not None else {}
    return {name: float(metrics[name]) for name in METRICS if metrics.get(name) is not None}


def _order(recorded: Epoch, replayed: Epoch) -> str:
    ours: Mapping[Step, Record] = recorded.steps
    steps = [step for step in ours.keys() & replayed.steps.keys() if step != END_OF_EPOCH]
    if not steps:
        return "the ledger has no steps to compare with"
    same = sum(ours[step].get("batch") == replayed.steps[step]["batch"] for step in steps)
    return f"{same} of {len(steps)} batches equal"
