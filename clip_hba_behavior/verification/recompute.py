"""A state trained again from the nearest one before it, and written as the run would have written it."""

import statistics
from collections.abc import Mapping
from typing import Any

from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import BadInputError, NotReproducibleError
from clip_hba_behavior.reproducibility.state.numerics import numerics_left_as_they_were
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.checkpoint import publish_state
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.run.environment import changed_data, provenance
from clip_hba_behavior.run.kept import Kept
from clip_hba_behavior.run.log import duration, epoch_seconds
from clip_hba_behavior.run.replayer import Replayer
from clip_hba_behavior.training.inputs import Inputs
from clip_hba_behavior.verification.files import RunFiles
from clip_hba_behavior.verification.replays import ReplayHistory, recorded_config
from clip_hba_behavior.verification.state_request import MissingState


@numerics_left_as_they_were()
def recompute(
    missing: MissingState, given: Mapping[str, Any], session: Session, kept: Kept[Inputs] | None = None
) -> str:
    """Train up to a state, compare the end of each epoch with the ledger, and write the state's checkpoint.

    The file has the bytes that the run's own has or had: what it says of its origin is of the run's next file, or
    of the run as it is now where that file cannot be read.

    Args:
        missing: the state.
        given: keys of a configuration: where data and backbone are now.
        session: told of the progress.
        kept: the inputs of an earlier run of this process.

    Returns:
        The state's digest.

    Raises:
        BadInputError: data or backbone cannot be used, or the state to begin with is damaged.
        NotReproducibleError: another state was reached than the ledger records; nothing is written.
    """
    run, epoch, step = missing.run, missing.epoch, missing.step
    found = list_checkpoints(run.checkpoints)
    files = RunFiles(run.path, states=found)
    first = max(each for each in found if each < epoch)
    num_epochs = epoch - first
    seconds = [each for _, each in epoch_seconds(run.log_file)]
    takes = f", about {duration(num_epochs * statistics.median(seconds))}" if seconds else ""
    session.logger.info(
        "Making %s of %s again from %s: %d epoch%s to train%s",
        missing.name(), run.path, found[first].name, num_epochs, "s" if num_epochs > 1 else "", takes,
    )  # fmt: skip
    replayer = Replayer(recorded_config(files, given), session, kept=kept)
    origin = files.origin(epoch)
    if "digests" not in origin:  # a file that cannot be read
        origin = provenance(run.read_config(), run.read_environment())
        session.logger.warning("The file that tells its origin cannot be read: %s tells it", run.environment_file)
    if changed := changed_data(origin, replayer.environment()):
        raise BadInputError(
            f"{missing.name()} of {run.path} cannot be made again: data or weights are not what the run was made "
            "with\n  " + "\n  ".join(changed)
        )
    replays = ReplayHistory(files, replayer)
    try:
        state = replays.state(epoch) if step is None else replays.state_within(epoch, step)
    except NotReproducibleError as error:
        where = command_line("verify", "checkpoints", run.path, "--epochs", epoch)
        raise NotReproducibleError(
            f"{missing.name()} of {run.path} cannot be made again: {error}\n"
            f"  nothing was written; find out why: {where}"
        ) from None
    missing.file.parent.mkdir(exist_ok=True)
    beside = replayer.trainer(replays.settings(epoch)).undrawn_streams()
    publish_state(missing.file, state, origin, beside)
    session.logger.info("Made again, with the digest in %s: %s", files.ledger.lines.path.name, missing.file)
    return state.digest()
