"""Defects that the torture tool must find when they are put in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.record_file import RecordFile
from clip_hba_behavior.training.trainer import Trainer


def drop_the_optimizer() -> None:
    real = Trainer.restore

    def restore(self: Trainer, state: Any) -> None:
        real(self, state)
        self.optimizer.state.clear()

    Trainer.restore = restore


def never_cut_the_ledger_back() -> None:
    real = RecordFile.__init__

    def init(self: RecordFile, path: Path, after: Any, schema: Any) -> None:
        real(self, path, (10**9, 0), schema)

    RecordFile.__init__ = init


def write_checkpoints_in_place() -> None:
    import clip_hba_behavior.run.checkpoint as module

    def publish(path: Path, content: bytes) -> None:
        if path.exists():
            raise FileExistsError(path)
        path.write_bytes(content)

    module.publish = publish


DEFECTS: dict[str, Callable[[], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (drop_the_optimizer, never_cut_the_ledger_back, write_checkpoints_in_place)
}
