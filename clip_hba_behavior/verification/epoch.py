"""Verify one epoch: train it again from the recorded state before it, compare with the one after it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH
from clip_hba_behavior.reproducibility.state.compare import Comparison, compare
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.rng import MISSING, RESTORED, RngState
from clip_hba_behavior.reproducibility.state.snapshot import restore_parameters
from clip_hba_behavior.run.checkpoint import Checkpoint
from clip_hba_behavior.run.log import Report
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.training.trainer import NonFiniteLossError, Trainer
from clip_hba_behavior.verification.causes import (
    REPLAYED,
    FirstDifference,
    cause_in_optimizer,
    cause_of_state,
    cause_of_steps,
    first_difference,
    group,
)
from clip_hba_behavior.verification.derived import DerivedRun, draws_apart
from clip_hba_behavior.verification.history import Entry, History, Recorded
from clip_hba_behavior.verification.outcome import EpochOutcome, Metric
from clip_hba_behavior.verification.replay import Replay, epoch_batches, replay_epoch, same_streams
from clip_hba_behavior.verification.results_table import METRICS, ResultsTable
from clip_hba_behavior.verification.verdict import ELSEWHERE, NOT_WHOLE, Claim, Word, claim


@dataclass
class EpochVerifier:
    """Verifies epochs of one run, one after the other, with one trainer.

    Attributes:
        history: what the run left behind.
        trainer: of the run's configuration and data, as they are now.
        environment: `describe_environment` now.
        results: the results CSV to compare with; None for none.
        derived: what the seed decides; None for a run whose files hold all that is needed.
        fresh_optimizer: the optimizer's state before its first step.
        num_steps: replay only the first steps of an epoch; None for all.
        report: told of the progress.
        suspects: images of which each one alone would explain all batches that differed so far.
    """

    history: History
    trainer: Trainer
    environment: Mapping[str, Any]
    results: ResultsTable | None
    derived: DerivedRun | None
    fresh_optimizer: dict[str, Any]
    num_steps: int | None
    report: Report
    suspects: set[int] | None = field(default=None)

    def verify(self, epoch: int) -> EpochOutcome:
        """Replay one epoch and compare it with everything that was recorded of it."""
        before, after = self.history.read(epoch - 1), self.history.read(epoch)
        start, why = self._start(before, after)
        if start is None:
            also = () if after.problem is None else (after.problem,)
            return EpochOutcome(epoch, Word.UNTESTED, differences=(why, *also))
        if after.checkpoint is None:
            return EpochOutcome(epoch, Word.UNTESTED, differences=(str(after.problem),))
        found = claim(after.checkpoint.provenance, self.environment)
        try:
            replay = replay_epoch(self.trainer, start, self.num_steps, self.report)
        except NonFiniteLossError as error:
            return EpochOutcome(epoch, Word.DIFFERENT, found, differences=(str(error).partition("\n")[0],))
        whole = before.checkpoint is not None and before.checkpoint.state is not None
        if whole and after.checkpoint.state is not None:
            return self._compare_whole(epoch, found, start, after, after.checkpoint.state, replay)
        return self._compare_partial(epoch, found, start, before, after.checkpoint, replay)

    # --- the state to start from ------------------------------------------------------------------

    def _start(self, before: Recorded, after: Recorded) -> tuple[TrainingState | None, str]:
        """Return the state to begin with, or None and the reason why there is none."""
        checkpoint = before.sound()
        if checkpoint is not None and checkpoint.state is not None:
            return checkpoint.state, ""
        if before.checkpoint is not None and before.checkpoint.state is not None:
            return None, f"no state to begin with: {before.problem}"
        derived = self.derived
        if checkpoint is None:
            whole = after.checkpoint is not None and after.checkpoint.state is not None
            if before.epoch > 0 or whole or derived is None:
                return None, f"no state to begin with: {before.problem}"
            return self._state_of(0, derived.initial_parameters, derived.rng_states[0]), ""
        rng_state = checkpoint.rng_state
        if rng_state is None and derived is not None:
            rng_state = derived.rng_states[before.epoch]
        if rng_state is None:
            return None, f"{checkpoint.path.name} holds no random states, and they cannot be derived"
        return self._state_of(before.epoch, checkpoint.parameters, rng_state), ""

    def _state_of(self, epoch: int, parameters: Mapping[str, Any], rng_state: RngState) -> TrainingState:
        return TrainingState(
            parameters=dict(parameters),
            optimizer_state=self.fresh_optimizer,
            rng_state=rng_state,
            early_stopping_state={"best_test_loss": math.inf, "epochs_no_improve": 0},
            epoch=epoch,
        )

    # --- the whole state: bits ----------------------------------------------------------------------

    def _compare_whole(
        self,
        epoch: int,
        found: Claim,
        start: TrainingState,
        after: Recorded,
        recorded: TrainingState,
        replay: Replay,
    ) -> EpochOutcome:
        ledger = {step: entry for (each, step), entry in self.history.ledger.items() if each == epoch}
        first = first_difference(ledger, replay.entries)
        comparison = compare(recorded.as_dict(), replay.state.as_dict()) if replay.state is not None else None
        metrics = self._metrics(epoch, recorded.metrics, replay)
        differences = [after.problem] if after.problem is not None else []
        differences += [] if first is None else [first.line(REPLAYED)]
        differences += [] if comparison is None else group(comparison.differences, REPLAYED)
        differences += self._beside_the_ledger(start, recorded if replay.state is not None else None)
        differences += [_metric_line(each) for each in metrics if not each.same()]
        if replay.state is None and not ledger.keys() & replay.entries.keys():
            reason = "the ledger has no steps of this epoch to compare with"
            return EpochOutcome(epoch, Word.UNTESTED, found, differences=(reason,))

        word = Word.REPRODUCIBLE
        cause = None
        if differences:
            near = (
                not found.bitwise()
                and after.problem is None
                and _same_order(ledger, replay.entries)
                and (replay.state is None or same_streams(recorded.rng_state, replay.state.rng_state))
                and all(each.within(ELSEWHERE) for each in metrics)
            )
            word = Word.CONSISTENT if near else Word.DIFFERENT
            cause = self._cause_in_settings(epoch, after) or self._exchanged(epoch, start, recorded, replay)
            cause = cause or self._cause(epoch, start, recorded, first, ledger, replay, comparison)
            if near:
                cause = f"another environment: {'; '.join(found.reasons)}"
        checkpoint = after.checkpoint
        return EpochOutcome(
            epoch=epoch,
            word=word,
            claim=found,
            order=_order_line(ledger, replay.entries),
            order_digest=self._order_digest(epoch, start),
            num_steps=sum(step != END_OF_EPOCH for step in replay.entries),
            start_digest=start.digest(),
            recorded_digest=None if checkpoint is None else checkpoint.state_digest,
            replayed_digest=None if replay.state is None else replay.state.digest(),
            num_differing_tensors=None if comparison is None else comparison.num_differing_tensors,
            max_parameter_difference=None if comparison is None else _largest(comparison),
            metrics=metrics,
            differences=tuple(differences),
            cause=cause,
            notes=(RESTORED,),
        )

    def _order_digest(self, epoch: int, start: TrainingState) -> str:
        num_images = self.trainer.inputs.num_images()
        return digest(torch.cat(epoch_batches(self.trainer.config, num_images, start.rng_state, epoch)))

    def _beside_the_ledger(self, start: TrainingState, recorded: TrainingState | None) -> list[str]:
        """Name what in the two recorded states is not what the ledger says they were."""
        lines = []
        for state in (start, recorded):
            other = None if state is None else self.history.leaves_beside_the_ledger(state)
            if state is not None and other:
                more = f" and {len(other) - 1} more" if len(other) > 1 else ""
                lines.append(f"the file of epoch {state.epoch} and the ledger disagree: {other[0]}{more}")
        return lines

    def _cause_in_settings(self, epoch: int, after: Recorded) -> str | None:
        """Name a setting that was another than the run's, as the epoch's own file says."""
        origin = after.checkpoint.provenance.get("config", {}) if after.checkpoint is not None else {}
        config = self.history.config or self.trainer.config
        for key, value in config.trajectory().items():
            if origin.get(key, value) != value:
                return f"{key} was {origin[key]!r} in epoch {epoch}, its file says; the run's is {value!r}"
        return None

    def _exchanged(self, epoch: int, start: TrainingState, recorded: TrainingState, replay: Replay) -> str | None:
        """Say whether a file holds another epoch's state, as far as the ledger tells."""
        for number, state in ((epoch, recorded), (epoch - 1, start)):
            other = self.history.epoch_with_parameters(state)
            if other not in (None, number):
                return f"files were exchanged: epoch {number}'s holds the parameters of epoch {other}"
        other = None if replay.state is None else self.history.epoch_with_parameters(replay.state)
        if other not in (None, epoch):
            return f"files were exchanged: the replay reached the parameters recorded for epoch {other}"
        other = self.history.epoch_with_batch(replay.entries[1]["batch"])
        if other not in (None, epoch):
            why = f"the state that epoch {epoch} started from leads to the batches of epoch {other}"
            return f"files or their random states were exchanged: {why}"
        return None

    def _cause(
        self,
        epoch: int,
        start: TrainingState,
        recorded: TrainingState,
        first: FirstDifference | None,
        ledger: Mapping[int | str, Entry],
        replay: Replay,
        comparison: Comparison | None,
    ) -> str | None:
        if self.history.leaves_beside_the_ledger(start):
            return f"the state that the epoch started from: see epoch {start.epoch}"
        states_agree = comparison is not None and comparison.equal()
        if first is not None and states_agree and first.thing != "batch":
            return "the ledger was changed: the checkpoint and the replay agree"
        if first is not None and (first.step != END_OF_EPOCH or comparison is None):
            same_order = replay.state is not None and same_streams(recorded.rng_state, replay.state.rng_state)
            suspects, same_rows = self._suspects(epoch, start, ledger, replay, same_order)
            setting = None if comparison is None else cause_in_optimizer(comparison.differences)
            return cause_of_steps(first, same_rows, suspects) if setting is None else setting
        if comparison is not None and not comparison.equal():
            steps_agree = first is None and any(isinstance(step, int) for step in ledger)
            why = cause_of_state(comparison.differences, len(recorded.parameters), steps_agree)
            if END_OF_EPOCH in ledger and first is None:
                why += "; the ledger and the replay agree, so it was changed after it was written"
            return why
        return "the results file was changed, or is another run's: the checkpoint and the replay agree"

    def _suspects(
        self,
        epoch: int,
        start: TrainingState,
        ledger: Mapping[int | str, Entry],
        replay: Replay,
        same_order: bool,
    ) -> tuple[list[str], bool]:
        """Name the images that stand in every batch that differs and in none that agrees.

        Returns:
            The images, and whether the batches held the same rows: `same_order`, or some of them agree.
        """
        inputs = self.trainer.inputs
        batches = epoch_batches(self.trainer.config, inputs.num_images(), start.rng_state, epoch)
        agreeing, differing = set[int](), set[int]()
        for step, rows in enumerate(batches, 1):
            if step in ledger and step in replay.entries:
                same = ledger[step].get("batch") == replay.entries[step]["batch"]
                (agreeing if same else differing).update(rows.tolist())
        if not agreeing:  # every batch differs: no image can be told from the others
            return [], same_order
        if differing:
            found = differing - agreeing
            self.suspects = found if self.suspects is None else self.suspects & found
        return [inputs.image_paths[row].name for row in sorted(self.suspects or ())], True

    # --- part of a state: how near ------------------------------------------------------------------

    def _compare_partial(
        self,
        epoch: int,
        found: Claim,
        start: TrainingState,
        before: Recorded,
        after: Checkpoint,
        replay: Replay,
    ) -> EpochOutcome:
        holds = "parameters and random states" if after.rng_state is not None else "parameters only"
        order, order_fits = self._order_of_partial(epoch, before, after, replay)
        held = before.checkpoint if before.checkpoint is not None else after
        notes = (MISSING if held.rng_state is None else RESTORED,)
        if replay.state is None:
            reason = "the file holds no record of single steps to compare with; leave --steps out"
            return EpochOutcome(epoch, Word.UNTESTED, found, holds, order, differences=(reason,), notes=notes)
        comparison = compare(after.parameters, replay.state.parameters)
        largest = _largest(comparison, prefix="")
        metrics = self._metrics(epoch, self._evaluate(after) if self.results is None else {}, replay)
        near = order_fits and all(each.within(NOT_WHOLE) for each in metrics)
        differences = [_metric_line(each) for each in metrics if not each.within(NOT_WHOLE)]
        if not order_fits:
            differences.append(order)
        cause: str | None = None
        if not order_fits:
            cause = "the batches were other ones: check random_seed, and that all files are of one run"
        elif before.checkpoint is None:
            cause = "epoch 1 began from the seed, with everything: what is left is rounding" if largest else None
        else:
            lacks = "optimizer_state and early_stopping_state"
            lacks += "" if before.checkpoint is not None and before.checkpoint.rng_state else " and rng_state"
            cause = (
                f"the file of epoch {epoch - 1} lacks {lacks}: AdamW's moments began anew, so a replay "
                "moves results by about 1-5 %"
            )
        return EpochOutcome(
            epoch=epoch,
            word=Word.CONSISTENT if near else Word.DIFFERENT,
            claim=found,
            holds=holds,
            order=order,
            order_digest=self._order_digest(epoch, start),
            num_steps=sum(step != END_OF_EPOCH for step in replay.entries),
            num_differing_tensors=comparison.num_differing_tensors,
            max_parameter_difference=largest,
            metrics=metrics,
            differences=tuple(differences),
            cause=cause,
            notes=notes,
        )

    def _order_of_partial(
        self, epoch: int, before: Recorded, after: Checkpoint, replay: Replay
    ) -> tuple[str, bool]:
        """Say what can be said of the batch order, and whether it speaks against the record."""
        seed = self.trainer.config.random_seed
        recorded_before = before.checkpoint is not None and before.checkpoint.rng_state is not None
        if after.rng_state is None:
            if recorded_before:
                return "from the recorded random state; none was recorded after the epoch to compare with", True
            return f"reconstructed from seed {seed}; the file records none to compare with", True
        fits = replay.state is not None and same_streams(after.rng_state, replay.state.rng_state)
        derived = self.derived
        from_seed = derived is not None and same_streams(after.rng_state, derived.rng_states[epoch])
        if fits:
            text = "equal: the replay reached the recorded random state after the epoch"
            if from_seed or derived is None:
                return text + (f", which is also the one derived from seed {seed}" if from_seed else ""), True
            apart = draws_apart(after.rng_state, derived.rng_states[epoch])
            if apart is None:
                return f"of another seed than {seed}: the recorded random state is none of its states", False
            return f"{text}; seed {seed} gives it {abs(apart)} draws {'earlier' if apart > 0 else 'later'}", True
        if from_seed:
            text = f"equal to the one derived from seed {seed}; the random state before the epoch is another"
            return text, True
        return f"not equal: neither the replay nor seed {seed} gives the recorded random state", False

    def _evaluate(self, recorded: Checkpoint) -> dict[str, Any]:
        """Evaluate the recorded parameters: an old file holds no results to compare with."""
        restore_parameters(self.trainer.parameters, recorded.parameters)
        return {"test_loss": self.trainer.test_loss(), **self.trainer.behavioral_rsa()}

    # --- results ------------------------------------------------------------------------------------

    def _metrics(self, epoch: int, recorded: Mapping[str, Any], replay: Replay) -> tuple[Metric, ...]:
        """Pair the recorded results, of the CSV if it has the epoch, with the replayed ones."""
        if replay.state is None:
            return ()
        source = "checkpoint"
        if self.results is not None and epoch in self.results.rows:
            recorded, source = self.results.rows[epoch], self.results.path.name
        replayed = replay.state.metrics
        return tuple(
            Metric(name, source, float(recorded[name]), float(replayed[name]))
            for name in METRICS
            if name in recorded
        )


def _metric_line(metric: Metric) -> str:
    return f"{metric.name}: {metric.recorded!r} in {metric.source}, {metric.replayed!r} replayed " + (
        "" if metric.name.endswith("p_value") else f" ({metric.relative_difference():.2%})"
    )


def _largest(comparison: Comparison, prefix: str = "parameters/") -> float:
    found = [each.largest or 0.0 for each in comparison.differences if each.name.startswith(prefix)]
    return max(found, default=0.0)


def _same_order(recorded: Mapping[int | str, Entry], replayed: Mapping[int | str, Entry]) -> bool:
    return all(
        recorded[step].get("batch") == replayed[step].get("batch") for step in recorded.keys() & replayed.keys()
    )


def _order_line(recorded: Mapping[int | str, Entry], replayed: Mapping[int | str, Entry]) -> str:
    steps = [step for step in recorded.keys() & replayed.keys() if step != END_OF_EPOCH]
    if not steps:
        return "the ledger has no steps to compare with"
    same = sum(recorded[step].get("batch") == replayed[step].get("batch") for step in steps)
    return f"{same} of {len(steps)} batches equal"
