"""Epochs of a run trained again, each under the settings that its own checkpoint records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import DATA_KEYS, Config, make_config
from clip_hba_behavior.reproducibility.record.protocol import Replay, replay
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.kept import Kept
from clip_hba_behavior.training.advance import advance
from clip_hba_behavior.training.inputs import Inputs
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.training.trainer import Trainer


class Replayer:
    """Trains epochs again. The trainer is built again only where an epoch's settings are others."""

    def __init__(
        self,
        config: Config,
        session: Session,
        built: tuple[Trainer, dict[str, Any]] | None = None,
        kept: Kept[Inputs] | None = None,
    ) -> None:
        """Name what is replayed.

        Args:
            config: the run's, resolved: where its data are, and what no epoch's settings say.
            session: told of the progress.
            built: the trainer of that configuration and its environment, if there is one already.
            kept: the inputs of an earlier run of this process, if it may have the same.

        Raises:
            BadInputError: the data are not where they were.
        """
        missing = [key for key in DATA_KEYS if getattr(config, key) and not Path(getattr(config, key)).exists()]
        if missing:
            raise BadInputError(
                "the run's data are not where they were\n  "
                + "\n  ".join(f"{key}: {getattr(config, key)}" for key in missing)
                + "\n  say where they are now: --config FILE with these keys"
            )
        self.config = config
        self.session = session.interruptible()
        self._built = (config, *built) if built is not None else None
        self._kept = kept
        self._environment: dict[str, Any] | None = None

    def trainer(self, settings: Mapping[str, Any] | None = None) -> Trainer:
        """Return the trainer for an epoch's settings; None for those of the configuration."""
        return self._build(settings or {})[1]

    def environment(self) -> dict[str, Any]:
        """Describe the environment in which the epochs are trained again, under the configuration's settings."""
        if self._environment is None:
            self._environment = self._build({})[2]
        return self._environment

    def replay(
        self,
        state: TrainingState,
        settings: Mapping[str, Any],
        steps: int | None = None,
        with_state: bool = False,
    ) -> Replay:
        """Train the epoch that follows a state, or is under way.

        Args:
            state: at an epoch's boundary, or within the epoch, of which then the rest is trained.
            settings: the keys under which the epoch was trained.
            steps: stop after so many steps; None for the whole epoch.
            with_state: put the digests of all tensors into every step's record.

        Raises:
            BadInputError: the state does not fit the model.
            InterruptedRunError: a signal came.
            NonFiniteLossError: a loss is infinite or not a number.
        """
        trainer = self.trainer(settings)
        events = advance(trainer, state.epoch + 1, state, steps)
        return replay(events, trainer, self.session.report, with_state)

    def _build(self, settings: Mapping[str, Any]) -> tuple[Config, Trainer, dict[str, Any]]:
        known = {key: value for key, value in settings.items() if key in Config.model_fields}
        config = make_config(self.config.model_dump() | known)
        if self._built is None or self._built[0] != config:
            self._built = None  # one trainer in memory
            self._built = (config, *build_trainer(config, self.session, self._kept))
        return self._built
