"""A run trained again, epoch by epoch, as a history: each epoch from the recorded state before it."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import Config, as_recorded, make_config
from clip_hba_behavior.reproducibility.record.epoch import Epoch
from clip_hba_behavior.reproducibility.record.ledger import Record, Step
from clip_hba_behavior.reproducibility.state.errors import BadInputError, NotReproducibleError
from clip_hba_behavior.reproducibility.state.numerics import SDPA_BACKENDS, check_sdpa_backend, resolve_device
from clip_hba_behavior.reproducibility.state.rng import RngState
from clip_hba_behavior.reproducibility.state.snapshot import snapshot
from clip_hba_behavior.run.replayer import Replayer
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.run.results import METRICS
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.verification.files import RunFiles, settings_of
from clip_hba_behavior.verification.seed import DerivedRun


class NoStartError(BadInputError):
    """There is no state from which an epoch could be trained again."""


class ReplayHistory:
    """Epochs of a run trained again. What was replayed once is kept but for its states.

    Attributes:
        replayer: what trains.
        seed: what the seed implies; None where every file holds a complete state, or it cannot be derived.
        elsewhere: trains an epoch again in place of this process; see `verification/parallel.py`.
    """

    def __init__(
        self, files: RunFiles, replayer: Replayer, steps: int | None = None, with_state: bool = False
    ) -> None:
        """Name what is replayed; nothing is trained yet.

        Args:
            files: the run.
            replayer: of its configuration.
            steps: replay only so many steps of each epoch.
            with_state: put the digests of all tensors into every step's record.
        """
        self.replayer = replayer
        self.seed: DerivedRun | None = None
        self.elsewhere: Callable[[int], Epoch] | None = None
        self._files, self._num_steps, self._with_state = files, steps, with_state
        self._steps: dict[int, dict[Step, Record]] = {}
        self._reached: TrainingState | None = None  # the last one that was trained again and that no file holds

    def derive(self, last_epoch: int) -> list[str]:
        """Derive what the seed implies up to an epoch; return why it cannot be, if so."""
        trainer = self.replayer.trainer()
        inputs = trainer.inputs
        try:
            clip = inputs.backbone.upper().config
            self.seed = DerivedRun(trainer.config, inputs.num_images(), trainer.model, clip, last_epoch)
            return []
        except BadInputError as error:
            return [str(error)]

    def epochs(self) -> Sequence[int]:
        """Return the epochs that were replayed so far."""
        return sorted(self._steps)

    def steps(self, number: int) -> Mapping[Step, Record]:
        """Return what the ledger would record of an epoch that was replayed."""
        return self._steps[number]

    def epoch(self, number: int) -> Epoch:
        """Train an epoch again.

        Raises:
            NoStartError: there is nothing to begin with; says why.
            NonFiniteLossError: a loss is infinite or not a number.
        """
        if self.elsewhere is not None:
            epoch = self.elsewhere(number)
            self._steps[number] = dict(epoch.steps)
            return epoch
        start = self._start(number)
        settings = self.settings(number)
        again = self.replayer.replay(start, settings, self._num_steps, self._with_state)
        self._steps[number] = again.steps
        if self._num_steps is not None:
            return Epoch(number, settings, start, None, again.steps)
        end = again.state()
        self._reached = end if self._files.is_left_out(number) and isinstance(end, TrainingState) else None
        row = {name: float(value) for name, value in end.as_dict()["metrics"].items() if name in METRICS}
        return Epoch(number, settings, start, end, again.steps, row)

    def settings(self, number: int) -> dict[str, Any]:
        """Return the settings of an epoch, but for the device where it is not here."""
        config, settings = self.replayer.config, settings_of(self._files.origin(number))
        known = {key: value for key, value in settings.items() if key in Config.model_fields}
        here = on_this_machine(make_config(config.model_dump() | known))
        return {key: getattr(here, key) for key in known}

    def state(self, number: int) -> TrainingState:
        """Train again up to the end of an epoch, from the nearest state before it that a file holds.

        Raises:
            NoStartError: there is nothing to begin with; says why.
            NotReproducibleError: another state was reached than the ledger records.
        """
        first = max((each for each in self._files.epochs() if each < number), default=None)
        if first is None:
            raise NoStartError(f"no file holds a state before epoch {number}")
        state = self._reached
        if state is None or not first < state.epoch <= number:
            state = self._start(first + 1)
        else:
            self._refuse_other(state)
        while state.epoch < number:
            again = self.replayer.replay(state, self.settings(state.epoch + 1)).state()
            assert isinstance(again, TrainingState)
            self._reached = state = again
            self._refuse_other(state)
        return state

    def state_within(self, number: int, step: int) -> TrainingState:
        """Train an epoch again, and return the state after some of its steps.

        Raises:
            NoStartError: there is nothing to begin with; says why.
            NotReproducibleError: the epoch ended with another state than the ledger records.
        """
        settings = self.settings(number)
        within = self.replayer.replay(self._start(number), settings, step).state()
        assert isinstance(within, TrainingState)
        end = self.replayer.replay(within, settings).state()
        assert isinstance(end, TrainingState)
        self._refuse_other(end)
        return within

    def _refuse_other(self, state: TrainingState) -> None:
        """Return if a state is the one that the ledger records of its epoch."""
        recorded, reached = (self._files.ledger.end(state.epoch) or {}).get("state_digest"), state.digest()
        if recorded != reached:
            raise NotReproducibleError(
                f"the replay did not reach the state after epoch {state.epoch} that the ledger records\n"
                f"  in {self._files.ledger.lines.path.name}: {recorded}\n  replayed:       {reached}"
            )

    def _start(self, number: int) -> TrainingState:
        if self._files.is_left_out(number - 1):
            try:
                return self.state(number - 1)
            except NotReproducibleError as error:
                raise NoStartError(f"no state to begin with: {error}") from None
        before, after = self._files.file(number - 1), self._files.file(number)
        if before.problem is None and before.state is not None:
            return before.state
        why = f"no state to begin with: {before.problem}"
        if before.state is not None:
            raise NoStartError(why)
        checkpoint = before.checkpoint if before.problem is None else None
        if checkpoint is None:
            if before.epoch > 0 or after.state is not None or self.seed is None:
                raise NoStartError(why)
            return self._state_of(0, self.seed.initial_parameters, self.seed.rng_states[0])
        rng_state = checkpoint.rng_state
        if rng_state is None and self.seed is not None:
            rng_state = self.seed.rng_states[before.epoch]
        if rng_state is None:
            raise NoStartError(f"{checkpoint.path.name} holds no random states, and they cannot be derived")
        return self._state_of(before.epoch, checkpoint.parameters, rng_state)

    def _state_of(self, epoch: int, parameters: Mapping[str, Any], rng_state: RngState) -> TrainingState:
        """Complete what a partial file holds with what a run begins with."""
        optimizer = self.replayer.trainer().optimizer
        return TrainingState(
            parameters=dict(parameters),
            optimizer_state=snapshot(optimizer.state_dict() | {"state": {}}),
            rng_state=rng_state,
            early_stopping_state={"best_test_loss": math.inf, "epochs_no_improve": 0},
            epoch=epoch,
        )


def recorded_config(files: RunFiles, given: Mapping[str, Any]) -> Config:
    """Make the configuration to replay with: the recorded one; for files that record none, the given one.

    Args:
        files: the run.
        given: keys of the user's: where data and backbone are now.

    Raises:
        BadInputError: a key that shapes the trajectory is given with another value than the run had, or nothing
            says what the run was made with.
    """
    if files.config is not None:
        return _replaying(files.config.model_dump(), given)
    origins = files.origins()
    if origins:
        origin = origins[max(origins)]
        recorded = settings_of(origin)
        if origin.get("parent") is not None:  # a fork may do in its first epoch what others do not
            baseline = str(Path(origin["parent"]["checkpoint"]).parent)
            recorded |= {"training_run": origin["training_run"], "baseline_dora_directory": baseline}
        return _replaying(recorded, given)
    if not given:
        raise BadInputError(
            f"the checkpoints in {files.path} do not say what they were made with\n"
            "  expected: --config FILE with data, backbone, random_seed and every key that shaped the run"
        )
    return _replaying(as_recorded(given), {})


def _replaying(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    other, known = make_config(given), make_config(recorded)
    wrong = [
        f"{key}\n    in the run: {getattr(known, key)!r}\n    given:      {getattr(other, key)!r}"
        for key in sorted(other.model_fields_set & known.trajectory().keys() & recorded.keys())
        if key not in known.without_effect()
        if getattr(other, key) != getattr(known, key) and getattr(other, key) is not None
    ]
    if wrong:
        raise BadInputError(
            "the configuration given is not the run's\n  "
            + "\n  ".join(wrong)
            + "\n  leave these keys out: what the run recorded is used"
        )
    free = {key: getattr(other, key) for key in other.model_fields_set & known.free_keys()}
    return resolve_config(on_this_machine(make_config(dict(recorded) | free)))


def on_this_machine(config: Config) -> Config:
    """Put what is here in where a configuration's device is not."""
    values: dict[str, Any] = {}
    try:
        device = resolve_device(config.device)
    except BadInputError:
        device = resolve_device("auto")
        values["device"] = str(device)
    if config.sdpa_backend in SDPA_BACKENDS:
        try:
            check_sdpa_backend(config.sdpa_backend, device)
        except BadInputError:
            values["sdpa_backend"] = "math"
    return make_config(config.model_dump() | values)
