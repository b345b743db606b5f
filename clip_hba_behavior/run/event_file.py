"""TensorBoard's event files: a picture of what a run recorded, which this package never reads back.

A file holds every point from the first on. It begins as a `SummaryWriter` does that is given `purge_step=0`: a
TensorBoard that has read an older file forgets its points, so each is seen once. (A later `purge_step` would not
do: it is compared with epochs and with steps, and one number cannot be the end of both.) Nothing records when a
step was done, so every wall time is 0, and the same records give the same bytes.
"""

import io
import os
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.run.scalars import Scalars

_PACKAGE = "tensorboard"
FOLDER = "tensorboard"  # of a run, unless --out says otherwise
_NAME = re.compile(r"events\.out\.tfevents\.\d{10}\.clip-hba")
_CUT_SHORT = re.compile(r"\.events\.out\.tfevents\.\d{10}\.clip-hba\.\w{8}\.tmp")


def refuse_no_tensorboard(asked: str) -> None:
    """Return if TensorBoard is installed; it is not imported.

    Raises:
        BadInputError: it is not; `asked` is what needs it.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:  # a directory of this name is no package
        raise BadInputError(
            f"{asked} needs the package tensorboard, which is not installed\n"
            "  install it: pip install 'clip-hba-behavior[tensorboard]'"
        )


def refuse_foreign(directory: Path) -> None:
    """Return if event files can be written into a directory: it is not there, or holds such files alone.

    Raises:
        BadInputError: something else is there, whose points would be drawn as this run's.
    """
    if directory.is_dir():
        others = sorted(each.name for each in directory.iterdir() if not _is_own(each))
        found = f"it holds {others[0]}" if others else None
    else:
        found = "it is no directory" if directory.exists() or directory.is_symlink() else None
    if found is not None:
        raise BadInputError(
            f"{directory} cannot take a run's event files: {found}, which is not of this package\n"
            "  move it away; or see --out of `clip-hba publish`"
        )


def _is_own(path: Path) -> bool:
    return bool(_NAME.fullmatch(path.name) or _CUT_SHORT.fullmatch(path.name)) and path.is_file()


def write_events(directory: Path, settings: Mapping[str, Any], points: Iterable[Scalars]) -> Path:
    """Write an event file with all points so far, and empty older ones.

    Args:
        directory: made if it is not there.
        settings: what the run was made with, for the dashboard of hyperparameters; plain values.
        points: in their order.

    Returns:
        The file; the older one where it is the same.

    Raises:
        BadInputError: as `refuse_foreign`.
        OSError: it cannot be written; older files are as they were.
    """
    content = _beginning(settings) + b"".join(map(record_of, points))
    refuse_foreign(directory)
    directory.mkdir(parents=True, exist_ok=True)
    there = sorted(directory.iterdir())
    files = [each for each in there if _NAME.fullmatch(each.name)]
    if files and files[-1].read_bytes() == content:
        path = files.pop()
    else:
        # TensorBoard goes on to a file only if its name comes after that of the one which it has read
        number = int(files[-1].name.split(".")[3]) + 1 if files else 1
        path = directory / f"events.out.tfevents.{number:010}.clip-hba"
        publish(path, content)
    for each in there:
        if each in files:
            os.truncate(each, 0)  # not removed: TensorBoard would wait for it, and not go on
        elif each != path:
            each.unlink(missing_ok=True)
    return path


def record_of(point: Scalars) -> bytes:
    """Return the part of an event file that holds some scalars, as TensorBoard does: in single precision."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary()
    for name, value in point.values.items():
        summary.value.add(tag=name, simple_value=value)
    return _event(step=point.step, summary=summary)


def _beginning(settings: Mapping[str, Any]) -> bytes:
    return _begins() + _event(summary=_table(settings))


def _begins() -> bytes:
    from tensorboard.compat.proto.event_pb2 import SessionLog

    return _event(file_version="brain.Event:2") + _event(session_log=SessionLog(status=SessionLog.START))


def _table(settings: Mapping[str, Any]) -> Any:
    """Return the summary from which the dashboard of hyperparameters is made."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    told = {key: value for key, value in settings.items() if isinstance(value, bool | int | float | str)}
    summary = hparams_pb(told, start_time_secs=0.0)
    data = summary.value[0].metadata.plugin_data
    # written within by hparams_pb in the order of a hash table, another one each time
    data.content = HParamsPluginData.FromString(data.content).SerializeToString(deterministic=True)
    return summary


def _event(**fields: Any) -> bytes:
    """Return a record; step and wall time are 0 unless given."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(Event(**fields).SerializeToString(deterministic=True))
    return record.getvalue()
