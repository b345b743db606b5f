"""States of a run that no file holds, made again: on request, and for whoever needs one."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_hba_behavior.config import WHERE_KEYS, Config, make_config
from clip_hba_behavior.reproducibility.record.signals import stopping_on_signals
from clip_hba_behavior.reproducibility.state.system import locked_directory
from clip_hba_behavior.run.checkpoint_files import position_in_name
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.log import session
from clip_hba_behavior.verification.state_request import MissingState, missing_state

if TYPE_CHECKING:
    from clip_hba_behavior.run.kept import Kept
    from clip_hba_behavior.training.inputs import Inputs

_SECONDS_BETWEEN_TRIES = 0.1
_WHERE = (*WHERE_KEYS, "cache_dir")


def make_again(
    missing: MissingState, given: dict[str, Any] | None = None, kept: "Kept[Inputs] | None" = None
) -> str:
    """Train up to a state, compare with the ledger, and write its checkpoint.

    Without importing torch before the keys of `given` are checked; else as `recompute`.
    """
    make_config(given or {})
    from clip_hba_behavior.verification.recompute import recompute

    with session() as here:
        return recompute(missing, given or {}, here, kept)


def put_back(file: Path | None, config: Config | None = None, kept: "Kept[Inputs] | None" = None) -> None:
    """Make a checkpoint again that `keep_checkpoints` removed; any other is left to whoever reads it.

    Args:
        file: the checkpoint, in its run; None for none.
        config: of whoever needs it: where data and backbone are now. Without it they are where they were.
        kept: the inputs of an earlier run of this process.

    Raises:
        BadInputError: as `make_again`.
        NotReproducibleError: another state was reached than the ledger records; nothing is written.
    """
    if file is None or file.exists():
        return
    run, (epoch, _) = RunDirectory(file.parent.parent), position_in_name(file.name)
    if epoch not in run.removed_epochs():
        return
    keys = (
        {}
        if config is None
        else {key: getattr(config, key) for key in config.model_fields_set.intersection(_WHERE)}
    )
    given = {key: value for key, value in keys.items() if value is not None}
    with stopping_on_signals() as stop:

        def wait() -> None:
            stop.check()
            time.sleep(_SECONDS_BETWEEN_TRIES)

        with locked_directory(run.path, wait) as is_alone:  # else each worker of a sweep would make the state
            if is_alone:
                for left in file.parent.glob(f".{file.name}.*.tmp"):  # by a process that was killed
                    left.unlink(missing_ok=True)
            if not file.exists():
                make_again(missing_state(run.path, epoch), given, kept)
