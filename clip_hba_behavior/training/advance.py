"""The one loop: everything in this package that trains calls it."""

from collections.abc import Callable, Iterator

from clip_hba_behavior.reproducibility.record.protocol import EpochDone, Event
from clip_hba_behavior.reproducibility.state.process import keep_freed_memory
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.training.trainer import Trainer


def advance(
    trainer: Trainer,
    last_epoch: int,
    state: TrainingState | None = None,
    steps: int | None = None,
    stop_early: bool = False,
    needs_state: Callable[[int], bool] = lambda step: True,
) -> Iterator[Event]:
    """Train on from a state, event by event; at each that has it the trainer's state can be taken.

    Args:
        trainer: made for the settings to train under.
        last_epoch: train until so many epochs are complete.
        state: where to begin; None to go on from where the trainer is.
        steps: stop within the first epoch, after this many of its steps.
        stop_early: also stop where early stopping says so.
        needs_state: asked after each step, by its number in the epoch, whether the state is to be taken there; by
            default it can be at each event.

    Raises:
        BadInputError: the state does not fit the model.
        NonFiniteLossError: a loss is infinite or not a number.
        UnequalProcessesError: the processes that share the batches have come to different states.
    """
    if state is not None:
        trainer.restore(state)
    while not is_at_end(trainer, last_epoch, stop_early):
        if not trainer.needs_backbone():
            trainer.inputs.backbone.drop()  # the features are cached
        keep_freed_memory()  # a step needs what the one before needed; the backbone has been given back
        for step in trainer.steps(needs_state):
            trainer.processes.agree()
            yield step
            if step.step == steps:
                return
        metrics = trainer.finish_epoch()
        trainer.processes.agree()
        yield EpochDone(trainer.epoch, metrics)


def is_at_end(trainer: Trainer, last_epoch: int, stop_early: bool) -> bool:
    """Whether `advance` trains no further; asked at an epoch's end."""
    return trainer.epoch >= last_epoch or (stop_early and trainer.should_stop())
