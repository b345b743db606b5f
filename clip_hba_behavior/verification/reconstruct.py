"""Old checkpoints completed: derive an old run from its seed, or repeat it, and check it against its files."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from clip_hba_behavior.config import BatchOrder, Config, as_recorded, make_config
from clip_hba_behavior.data.things import read_annotations
from clip_hba_behavior.model.architecture import ClipConfig
from clip_hba_behavior.model.clip_hba import CLIPHBA
from clip_hba_behavior.reproducibility.record.protocol import EpochDone
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError, NotReproducibleError
from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.reproducibility.state.numerics import numerics_left_as_they_were
from clip_hba_behavior.reproducibility.state.rng import MISSING, RngState
from clip_hba_behavior.reproducibility.state.snapshot import restore_parameters
from clip_hba_behavior.reproducibility.state.tree import to_bytes
from clip_hba_behavior.run.assembly import build_trainer, with_standin
from clip_hba_behavior.run.checkpoint import Checkpoint, read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.life import start
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.training.advance import advance
from clip_hba_behavior.training.inputs import LazyBackbone, operations_of
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.verification.files import RunFiles
from clip_hba_behavior.verification.seed import DerivedRun, draws_apart, same_streams

# A repetition fits while it stays nearer to the old file than this share of what the epoch moved. Rounding
# stays far below it; another order or seed moves the parameters as far as the epoch itself.
_SHARE_OF_MOVEMENT = 0.1


@dataclass(frozen=True)
class EpochFit:
    """How an old checkpoint fits the reconstruction.

    Attributes:
        epoch: number of completed epochs.
        random_state: `equal`, `not recorded`, or how it differs.
        order_digest: of the epoch's annotation rows in their order; None before training.
        largest_difference: of a parameter, between the old file and the repetition; None where not repeated.
        movement: by how much the epoch moved a parameter at most, in the old files.
    """

    epoch: int
    random_state: str
    order_digest: str | None
    largest_difference: float | None = None
    movement: float | None = None

    def fits(self) -> bool:
        """Whether nothing speaks against the reconstruction."""
        near = self.largest_difference is None or self.largest_difference <= _SHARE_OF_MOVEMENT * (
            self.movement or 0
        )
        return near and self.random_state in ("equal", "not recorded")


@dataclass(frozen=True)
class Reconstruction:
    """What was re-created of an old run.

    Attributes:
        directory: the old checkpoints.
        seed: from which it was derived.
        order: whose rule the batch order follows.
        detected: what the rule was chosen by.
        repeated: whether the run was trained again.
        epochs: how each old file fits.
        written: where the reconstruction is; None where nothing was written.
    """

    directory: str
    seed: int
    order: str
    detected: str
    repeated: bool
    epochs: tuple[EpochFit, ...]
    written: str | None

    def misfit(self) -> EpochFit | None:
        """Return the first epoch that does not fit."""
        return next((each for each in self.epochs if not each.fits()), None)

    def confirmed(self) -> bool:
        """Whether the old files held something that confirms it: random states, or parameters repeated."""
        return self.misfit() is None and any(
            each.random_state == "equal" or each.largest_difference is not None for each in self.epochs
        )


@dataclass(frozen=True)
class _OldRun:
    """The old files, and what is needed to derive their run."""

    directory: Path
    files: dict[int, Checkpoint]
    config: Config
    num_images: int
    model: CLIPHBA
    clip: ClipConfig

    def derive(self, order: BatchOrder) -> DerivedRun:
        config = make_config(self.config.model_dump() | {"batch_order": order})
        return DerivedRun(config, self.num_images, self.model, self.clip, max(self.files))


@numerics_left_as_they_were()
def reconstruct(
    directory: Path,
    given: Mapping[str, Any],
    run_dir: Path | None,
    train: bool,
    order: BatchOrder | None,
    epochs: Sequence[int] | None,
    session: Session,
) -> Reconstruction:
    """Re-create an old run from its seed, and check it against its checkpoints.

    Args:
        directory: the old checkpoints.
        given: the configuration: data, backbone, seed, and every key that shaped the run.
        run_dir: where the reconstruction goes; None to write nothing. Without `train` it gets the old
            parameters with the derived random states, and `batch_order.json`; with it a complete run.
        train: repeat the run from the seed, and so recover optimizer and early-stopping state.
        order: the rule of the batch order; None to find it out.
        epochs: which to write without `train`; None for all.
        session: told what goes on.

    Raises:
        BadInputError: the files do not fit the configuration's sizes, or something cannot be used.
    """
    old = _open(directory, given)
    if not all(checkpoint.rng_state for checkpoint in old.files.values()):
        session.logger.warning("%s", MISSING)
    chosen = sorted(old.files) if epochs is None else [epoch for epoch in epochs if epoch in old.files]
    if epochs is not None and len(chosen) < len(epochs):
        missing = sorted(set(epochs) - set(chosen))
        raise BadInputError(f"{directory} has no checkpoint of epoch {', '.join(map(str, missing))}")
    if run_dir is not None and run_dir.exists() and any(run_dir.iterdir()):
        raise BadInputError(f"the directory {run_dir} is not empty\n  give another --run-dir")
    candidates: tuple[BatchOrder, ...] = (order,) if order is not None else get_args(BatchOrder)
    rules, detected = _by_random_states(old, candidates)
    if order is not None and rules:
        detected = "named by --order"
    if train and epochs is not None:
        raise BadInputError("--train repeats the whole run: leave --epochs out")
    if train and run_dir is None:
        raise BadInputError("--train writes a complete run: give --run-dir, a new directory")
    if not rules or not train or run_dir is None:
        rule = rules[0] if rules else candidates[0]
        derived = old.derive(rule)
        fits = tuple(_fit(old, derived, epoch) for epoch in chosen)
        result = _result(old, rule, detected, fits, repeated=False, written=None)
        if run_dir is None or result.misfit() is not None:
            return result
        _write_partial(old, derived, chosen, run_dir)
        result = dataclasses.replace(result, written=str(run_dir))
        _write_report(result, run_dir)
        return result
    return _repeat(old, rules, detected, run_dir, session)


def _open(directory: Path, given: Mapping[str, Any]) -> _OldRun:
    """Read the old files and the sizes of model and data; the parameters must fit the model."""
    history = RunFiles(directory)
    fresh = {"training_run": 1, "baseline_dora_directory": None}
    given = make_config(as_recorded(given)).model_dump() | fresh
    config = with_standin(resolve_config(make_config({**given, "device": "cpu"})))
    files = {epoch: read_checkpoint(path) for epoch, path in history.files.items()}
    clip = LazyBackbone(config, torch.device("cpu")).get()
    no_prompts = torch.zeros(1, dtype=torch.int64)  # nothing is predicted with this model
    layers, operations = (config.vision_layers, config.transformer_layers), operations_of(config)
    model = CLIPHBA(clip, *layers, config.rank, 0.0, no_prompts, operations)
    for epoch in (min(files), max(files)):
        restore_parameters(model.dora_parameters(), files[epoch].parameters)
    num_images = len(read_annotations(Path(str(config.csv_file))).image_names)
    return _OldRun(history.path, files, make_config(given), num_images, model, clip.config)


def _by_random_states(old: _OldRun, candidates: tuple[BatchOrder, ...]) -> tuple[tuple[BatchOrder, ...], str]:
    """Keep the rules whose random states are the recorded ones, in every file that has one."""
    recorded = {epoch: each.rng_state for epoch, each in old.files.items() if each.rng_state is not None}
    if not recorded:
        return candidates, "assumed: the files hold no random states"
    fitting = []
    for rule in candidates:
        derived = old.derive(rule)
        if all(same_streams(state, derived.rng_states[epoch]) for epoch, state in recorded.items()):
            fitting.append(rule)
    if not fitting:
        return (), "no rule of the order gives the recorded random states"
    return tuple(fitting), f"detected by the random states of {len(recorded)} files"


def _fit(
    old: _OldRun,
    derived: DerivedRun,
    epoch: int,
    repeated: Mapping[str, torch.Tensor] | None = None,
) -> EpochFit:
    recorded = old.files[epoch]
    state = derived.rng_states[epoch]
    random_state = "not recorded"
    if recorded.rng_state is not None:
        random_state = "equal" if same_streams(recorded.rng_state, state) else _how_far(recorded.rng_state, state)
    order_digest = None
    if epoch in derived.orders:
        order_digest = digest(derived.split.train[derived.orders[epoch]])
    if epoch == 0 and repeated is None:
        repeated = derived.initial_parameters
    if repeated is None:
        return EpochFit(epoch, random_state, order_digest)
    largest = _largest_difference(repeated, recorded.parameters)
    earlier = [each for each in old.files if each < epoch]
    before = old.files[max(earlier)].parameters if earlier else derived.initial_parameters
    # another processor's initial draws may differ by a rounding
    movement = _largest_difference(before, recorded.parameters) if epoch > 0 else 1e-5
    return EpochFit(epoch, random_state, order_digest, largest, movement)


def _how_far(recorded: RngState, derived: RngState) -> str:
    """Say by how many draws two random states are apart."""
    number = draws_apart(recorded, derived)
    if number is None:
        return "another, and not by some draws: it is of another seed, split or model size"
    draws = f"{abs(number)} draw{'s' if abs(number) > 1 else ''}"
    return f"recorded {draws} {'after' if number > 0 else 'before'} the derived one"


def _largest_difference(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in second)


# --- without training --------------------------------------------------------------------------------


def _write_partial(old: _OldRun, derived: DerivedRun, epochs: Sequence[int], run_dir: Path) -> None:
    """Write the old parameters with the derived random states; the files say that they are partial."""
    checkpoints = run_dir / "dora_params"
    checkpoints.mkdir(parents=True)
    for epoch in epochs:
        content: dict[str, Any] = dict(old.files[epoch].parameters)
        content |= {"rng_state": derived.rng_states[epoch], "epoch": epoch, "partial": True, "format_version": 1}
        publish(checkpoint_path(checkpoints, epoch), to_bytes(content))
    orders = {
        "train_idx": derived.split.train.tolist(),
        "test_idx": derived.split.test.tolist(),
        "perms": {str(epoch): derived.orders[epoch].tolist() for epoch in epochs if epoch in derived.orders},
    }
    publish(run_dir / "batch_order.json", (json.dumps(orders) + "\n").encode())


# --- with training -----------------------------------------------------------------------------------


def _repeat(
    old: _OldRun,
    rules: tuple[BatchOrder, ...],
    detected: str,
    run_dir: Path,
    session: Session,
) -> Reconstruction:
    """Repeat the run from its seed into a run directory, as long as it fits the old files.

    Before anything is written the first epochs are trained in memory, under each rule that may be the run's.
    """
    last = max(old.files)
    keys = old.config.model_dump() | {"epochs": last, "run_dir": str(run_dir)}
    # the old run went on to its last file, so its counters did not stop it before
    keys["early_stopping_patience"] = max(last, old.config.early_stopping_patience)
    trials: dict[BatchOrder, tuple[EpochFit, ...]] = {}
    for rule in rules:
        session.logger.info("Trying the batch order %s on the first epochs", rule)
        trials[rule] = _try(old, make_config(keys | {"batch_order": rule}), rule, session)
        if all(fit.fits() for fit in trials[rule]):
            break
    else:
        nearest = min(trials, key=lambda each: trials[each][-1].largest_difference or 0.0)
        return _result(old, nearest, detected, trials[nearest], repeated=True, written=None)
    if len(rules) > 1:
        detected = (
            f"detected by training: {', '.join(each for each in trials if each != rule) or 'no other'} tried"
        )
    derived = old.derive(rule)
    fits: list[EpochFit] = []

    def check(state: TrainingState) -> None:
        if state.epoch in old.files:
            fit = _fit(old, derived, state.epoch, state.parameters)
            fits.append(fit)
            if not fit.fits():
                raise NotReproducibleError(_misfit_line(fit))

    try:
        start(make_config(keys | {"batch_order": rule}), check)
    except NotReproducibleError as error:
        if fits and not fits[-1].fits():
            session.logger.warning("%s", error)
        else:
            raise
    result = _result(old, rule, detected, tuple(fits), repeated=True, written=str(run_dir))
    _write_report(result, run_dir)
    return result


def _try(old: _OldRun, config: Config, rule: BatchOrder, session: Session) -> tuple[EpochFit, ...]:
    """Train in memory up to the first old file, or the second where the first cannot tell the rules apart."""
    trainer, _ = build_trainer(resolve_config(config), session)
    trainer.begin()
    derived = old.derive(rule)
    trained = [epoch for epoch in sorted(old.files) if epoch > 0]
    last = trained[0] if rule == "earlier" else trained[min(1, len(trained) - 1)]
    fits = []
    report = session.interruptible().report
    for event in advance(trainer, last):
        if not isinstance(event, EpochDone):
            report(f"epoch {event.epoch}: steps", event.step, event.num_steps)
        elif event.epoch in old.files:
            fits.append(_fit(old, derived, event.epoch, trainer.snapshot().parameters))
            if not fits[-1].fits():
                break
    return tuple(fits)


# --- the report --------------------------------------------------------------------------------------


def _result(
    old: _OldRun, rule: str, detected: str, fits: tuple[EpochFit, ...], repeated: bool, written: str | None
) -> Reconstruction:
    return Reconstruction(str(old.directory), old.config.random_seed, rule, detected, repeated, fits, written)


def as_dict(result: Reconstruction) -> dict[str, Any]:
    """Return a reconstruction as plain JSON values."""
    return dataclasses.asdict(result) | {"fits": result.misfit() is None, "confirmed": result.confirmed()}


def _write_report(result: Reconstruction, run_dir: Path) -> None:
    publish(run_dir / "reconstruction.json", (json.dumps(as_dict(result), indent=1) + "\n").encode())


def _misfit_line(fit: EpochFit) -> str:
    parts = []
    if fit.random_state not in ("equal", "not recorded"):
        parts.append(f"the random state: {fit.random_state}")
    if fit.largest_difference is not None:
        parts.append(
            f"a parameter by {fit.largest_difference:.3g}, where the epoch moved one by {fit.movement or 0:.3g}"
        )
    return f"the first difference shows at epoch {fit.epoch}: {'; '.join(parts)}"


def describe(result: Reconstruction) -> str:
    """Return a reconstruction for a person: a line an epoch, and one closing line."""
    lines = [f"{result.directory}: seed {result.seed}, batch order {result.order} ({result.detected})"]
    for fit in result.epochs:
        line = f"  epoch {fit.epoch}: random state {fit.random_state}"
        if fit.order_digest is not None:
            line += f"; order {fit.order_digest[:12]}"
        if fit.largest_difference is not None:
            line += f"; largest parameter difference {fit.largest_difference:.3g}"
            line += f" (the epoch moved {fit.movement:.3g})" if fit.movement else ""
        lines.append(line)
    misfit = result.misfit()
    if misfit is not None:
        lines.append(f"does not fit: {_misfit_line(misfit)}")
        if result.written is None:
            also = ", batch_size, train_portion and lr" if result.repeated else ""
            lines.append(f"nothing was written; check seed, data, backbone, rank and layers{also}")
        else:
            lines.append(f"{result.written} holds the epochs before it, which fit; it was not trained further")
    elif not result.confirmed():
        lines.append("derived, but nothing in the files can confirm it: repeat the run with --train")
    elif result.repeated:
        largest = max(each.largest_difference or 0.0 for each in result.epochs)
        lines.append(
            f"complete: {len(result.epochs)} epochs repeated from the seed, within {largest:.3g} of the old files"
        )
    else:
        lines.append(
            f"the random states of {len(result.epochs)} epochs are those of the seed, bit for bit; train_portion, "
            "batch_size and lr leave no trace in them: --train checks these too"
        )
    if result.written is not None:
        lines.append(f"written to {result.written}")
    return "\n".join(lines)
