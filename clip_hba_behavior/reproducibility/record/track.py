"""A training loop made resumable: its parts, streams and cursor are one state, and every step is on record.

    run = track("runs/digits", settings=settings, data=digest(x, y), model=model, optimizer=optimizer)
    for epoch in run.epochs(20):
        for rows in run.batches(len(x), 64):
            run.step(train_step(rows), rows)
        run.end_epoch({"test_loss": evaluate()})

Whatever the loop does must lie between `epochs` and `end_epoch`, and within a batch before `step`: then the state
is complete at every step, and a run that is continued from it is the run that was never interrupted.
"""

import hashlib
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from clip_hba_behavior.reproducibility.record.parts import Part, Parts, check_parts, restore_parts, states_of
from clip_hba_behavior.reproducibility.record.protocol import EpochDone, Event, StepDone
from clip_hba_behavior.reproducibility.record.tracked import RULES, TrackedState, ledger_leaves
from clip_hba_behavior.reproducibility.state.compare import compare_leaves
from clip_hba_behavior.reproducibility.state.errors import BadInputError, StoppedError
from clip_hba_behavior.reproducibility.state.rng import (
    RngState,
    capture_rng_state,
    refuse_no_rng_state,
    restore_rng_state,
)
from clip_hba_behavior.reproducibility.state.snapshot import snapshot
from clip_hba_behavior.reproducibility.state.tree import copy_tree, tree_digest, tree_leaves

_NUM_CHECKED_STEPS = 2  # after so many steps of a process it is known that nothing changes behind `step`


class Consumer(Protocol):
    """What a run's events go to: a recorder, or a replay that compares."""

    def epochs(self, run: "Run", last: int) -> Iterator[int]:
        """Restore or save the first state, then yield each epoch to train."""

    def record(self, event: Event) -> None:
        """Take an event."""

    def close(self) -> None:
        """Let go of files and signals; called once or more."""


class Run:
    """A run under way: made by `track`."""

    def __init__(
        self, consumer: Consumer, parts: Parts, devices: Sequence[torch.device], rules: int = RULES
    ) -> None:
        """Bring the parts together; nothing is loaded or saved before `epochs`.

        Raises:
            BadInputError: a part has no `state_dict`, or is given twice.
        """
        check_parts(parts)
        self.epoch = 0
        """Number of completed epochs."""
        self.step_in_epoch = 0
        """Steps done of the epoch under way."""
        self.metrics: dict[str, Any] = {}
        """What the last completed epoch reported."""
        self.devices = tuple(devices)
        self.parts = dict(parts)
        self._consumer, self._rules = consumer, rules
        self._key = ""
        self._loss_sum, self._num_samples = 0.0, 0
        self._epoch_start: RngState | None = None
        self._under_way: int | None = None
        # in memory that a loader's worker processes share, so that `generator` knows the epoch in them too
        self._epoch_of_generators = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._boundary: TrackedState | None = None  # as `end_epoch` left it
        self._is_at_boundary = False
        self._resumed: TrackedState | None = None  # within the epoch under way, until its first batch
        self._after_step: TrackedState | None = None
        self._num_steps_here = 0
        self._num_batches: int | None = None  # of the epoch under way, where `batches` gives them
        self._batches: list[int] | None = None  # what was asked for there
        self._num_handed_out = 0

    # --- what a loop calls ----------------------------------------------------------------------------

    def epochs(self, last: int) -> Iterator[int]:
        """Yield each epoch that is to be trained, counted from 1, up to `last`.

        A new run begins with the parts and streams as they are now. Another one goes on from its newest complete
        state, within an epoch too; a finished one restores its last state and yields nothing.

        Raises:
            BadInputError: the saved state does not fit, or something was changed after `end_epoch`.
        """
        if isinstance(last, bool) or not isinstance(last, int) or last < 0:
            raise BadInputError(f"epochs({last!r}): expected the number of the last epoch")
        try:
            for number in self._consumer.epochs(self, last):
                self._begin(number)
                yield number
                if self._under_way is not None:
                    raise BadInputError(
                        f"epoch {number} was not closed\n  call run.end_epoch(...) at the end of the loop's body"
                    )
            self._refuse_change_after_end()
        finally:
            self._under_way = None
            self._consumer.close()

    def batches(
        self, num_samples: int, batch_size: int, shuffle: bool = True, drop_last: bool = False
    ) -> "Batches":
        """Return the epoch's batches: lists of row numbers, in an order of this run and epoch.

        Iterate over it in each epoch, or give it to a `DataLoader` as its `batch_sampler`. After a resume within
        an epoch it yields what is left of it.

        Args:
            num_samples: rows 0 to num_samples - 1.
            batch_size: rows of a batch; the last one may be shorter.
            shuffle: else the rows stay in their order.
            drop_last: leave out a last batch that is shorter.
        """
        try:
            num_samples, batch_size = operator.index(num_samples), operator.index(batch_size)
        except TypeError as error:
            raise BadInputError(f"batches({num_samples!r}, {batch_size!r}): expected whole numbers") from error
        if num_samples < 1 or batch_size < 1:
            raise BadInputError(f"batches({num_samples}, {batch_size}): expected two numbers from 1 on")
        return Batches(self, num_samples, batch_size, shuffle, drop_last)

    def step(self, loss: Any, rows: Any = None) -> None:
        """Record a training step. The last thing in the loop's body: what comes after it is in no saved state.

        Args:
            loss: of the batch, a number or a tensor of one element.
            rows: what the step trained with: row numbers, or any tree of tensors; its digest goes on record, and
                the number of its rows weighs the loss in `mean_loss`: of a tuple or dict of several tensors that
                of the first.

        Raises:
            BadInputError: the loss is no single number, or `rows` holds something else.
            StoppedError: the loss is infinite or not a number.
            Interrupted: a signal came; the state is saved, and the process ends with exit code 75.
        """
        self._check_step()
        value = _number(loss)
        epoch, step = self.epoch + 1, self.step_in_epoch + 1
        if not math.isfinite(value):
            raise StoppedError(
                f"the loss is {value} in epoch {epoch}, step {step}; the last complete state is kept"
            )
        num_samples = num_rows(rows) if self._rules > 1 else (len(rows) if hasattr(rows, "__len__") else 1)
        self._loss_sum += value * num_samples
        self._num_samples += num_samples
        self.step_in_epoch += 1
        self._num_steps_here += 1
        num_steps = self._num_batches if self._num_batches is not None else step
        self._consumer.record(StepDone(epoch, step, num_steps, _rows_digest(rows), value))
        if self._num_steps_here <= _NUM_CHECKED_STEPS:
            self._after_step = self.snapshot()

    def end_epoch(self, metrics: Mapping[str, Any] | None = None) -> None:
        """Close the epoch: what it reported and the state after it go on record.

        Args:
            metrics: numbers and texts by name; `epoch` and `train_loss`, the mean loss, are added.

        Raises:
            BadInputError: no epoch is under way, steps are missing, or a metric is no number or text.
        """
        if self._under_way is None:
            raise BadInputError("run.end_epoch was called where no epoch is under way")
        if self._num_batches is not None and self.step_in_epoch != self._num_batches:
            raise BadInputError(
                f"epoch {self._under_way} ends after another number of steps than it has batches\n"
                f"  found:    {self.step_in_epoch} calls of run.step\n  expected: {self._num_batches}\n"
                "  call run.step once for each batch; for a shorter epoch ask run.batches for fewer rows"
            )
        self._refuse_unresumed()
        if not isinstance(metrics, Mapping | None):
            raise BadInputError(f"run.end_epoch was given a {type(metrics).__name__}; expected metrics by name")
        row: dict[str, Any] = {"epoch": self._under_way}
        if self._num_samples:
            row["train_loss"] = self.mean_loss
        for name, value in (metrics or {}).items():
            if not isinstance(name, str) or (name in ("epoch", "train_loss") and self._rules > 1):
                raise BadInputError(
                    f"a metric cannot be called {name!r}\n  expected: a text other than epoch and train_loss, "
                    "which the run adds itself"
                )
            is_array = isinstance(value, torch.Tensor | np.ndarray | np.generic)
            if is_array and math.prod(value.shape) != 1:
                raise BadInputError(f"metric {name} has shape {tuple(value.shape)}; expected a single number")
            plain = value.item() if is_array else value
            if not isinstance(plain, bool | int | float | str | None):
                raise BadInputError(f"metric {name} is a {type(value).__name__}; expected a number or a text")
            row[name] = plain
        self.metrics = copy_tree(row, "metrics")
        self.epoch += 1
        self.step_in_epoch, self._loss_sum, self._num_samples = 0, 0.0, 0
        self._epoch_start, self._under_way, self._batches = None, None, None
        self._boundary = self.snapshot()
        self._is_at_boundary = True  # the consumer asks for this very state, and it may be large
        try:
            self._consumer.record(EpochDone(self.epoch, self.metrics))
        finally:
            self._is_at_boundary = False

    @property
    def mean_loss(self) -> float:
        """The mean loss over the samples of the epoch under way, and between two epochs of the last one.

        It goes on where a resumed epoch stood. Before any step it is not a number.
        """
        if self._num_samples:
            return self._loss_sum / self._num_samples
        return float(self.metrics.get("train_loss", math.nan)) if self._under_way is None else math.nan

    def generator(self, purpose: str, index: int = 0) -> torch.Generator:
        """Return a CPU generator for the chance of one sample: a pure function of run, epoch, purpose and index.

        It may be called in a loader's worker processes. (torch seeds a CPU generator with 32 bits, so of very many
        some are the same.)
        """
        if not self._key:
            raise BadInputError("run.generator was called before run.epochs: the run has no key yet")
        epoch = int(self._epoch_of_generators[0])
        return torch.Generator().manual_seed(_seed(self._key, purpose, epoch, index))

    # --- what a consumer calls ------------------------------------------------------------------------

    def begin_new(self) -> None:
        """Become a run of its own at its beginning: its key follows from torch's stream as it is."""
        self._key = tree_digest(torch.get_rng_state())[:32]

    def restore(self, state: TrackedState, source: str) -> None:
        """Become the run that a state was taken of. Raises as `restore_parts` does."""
        refuse_no_rng_state(state.rng_state, source, *self.devices)
        if state.epoch_start_rng_state is not None:
            refuse_no_rng_state(state.epoch_start_rng_state, source, *self.devices)
        restore_parts(self.parts, state.parts, source)
        self._epoch_of_generators[0] = state.epoch
        self._key, self.epoch, self.step_in_epoch = state.key, state.epoch, state.step_in_epoch
        self._loss_sum, self._num_samples = state.loss_sum, state.num_samples
        self._epoch_start, self.metrics = state.epoch_start_rng_state, dict(state.metrics)
        self._batches = None if state.batches is None else list(state.batches)
        self._resumed = state if state.step_in_epoch else None
        self._boundary = None if state.step_in_epoch else state
        restore_rng_state(state.rng_state, *self.devices)  # last: nothing may draw between this and the next step

    def snapshot(self) -> TrackedState:
        """Copy everything that changes in training."""
        if self._is_at_boundary and self._boundary is not None:
            return self._boundary
        return TrackedState(
            parts=states_of(self.parts),
            rng_state=snapshot(capture_rng_state(*self.devices)),
            key=self._key,
            epoch=self.epoch,
            step_in_epoch=self.step_in_epoch,
            loss_sum=self._loss_sum,
            num_samples=self._num_samples,
            batches=None if self._batches is None else list(self._batches),
            epoch_start_rng_state=snapshot(self._epoch_start),
            metrics=dict(self.metrics),
        )

    def leaf_digests(self) -> dict[str, str]:
        """Return a short digest of every tensor and random stream."""
        if self._is_at_boundary and self._boundary is not None:
            return ledger_leaves(self._boundary.parts, self._boundary.rng_state, self._rules)
        return ledger_leaves(states_of(self.parts), capture_rng_state(*self.devices), self._rules)

    # --- what must not happen between two events ------------------------------------------------------

    def _begin(self, number: int) -> None:
        self._under_way, self._num_batches, self._num_handed_out = number, None, 0
        self._after_step = None
        self._epoch_of_generators[0] = number
        if self._resumed is not None:
            if self._epoch_start is None:
                raise BadInputError("the state within an epoch lacks the random states of the epoch's start")
            restore_rng_state(
                self._epoch_start, *self.devices
            )  # until the first batch: what draws before it draws again
            return
        self._refuse_change_after_end()
        self._epoch_start = snapshot(capture_rng_state(*self.devices))

    def _refuse_change_after_end(self) -> None:
        if self._boundary is not None:
            self._refuse_change(
                self._boundary,
                f"after run.end_epoch of epoch {self.epoch}",
                "move it before run.end_epoch, and begin again in a new directory: the saved state lacks it",
            )
        self._boundary = None

    def _refuse_change(self, before: TrackedState, when: str, advice: str, with_streams: bool = True) -> None:
        now = self.snapshot()
        pairs = [(before.parts, now.parts)]
        if with_streams:
            pairs.append(({"rng_state": before.rng_state}, {"rng_state": now.rng_state}))
        for then, found in pairs:
            left, right = dict(tree_leaves(then)), dict(tree_leaves(found))
            differences = compare_leaves(left, right).differences
            if differences:
                first = differences[0]
                raise BadInputError(
                    f"something was changed {when}, where a resumed run would not change it again\n"
                    f"  {first.name.removeprefix('/')}: {first.what}"
                    + (f"\n  and {len(differences) - 1} more" if len(differences) > 1 else "")
                    + f"\n  {advice}"
                )

    def _check_step(self) -> None:
        if self._under_way is None:
            raise BadInputError("run.step was called where no epoch is under way: call it within run.epochs")
        self._refuse_unresumed()
        if self._num_batches is not None and self.step_in_epoch >= self._num_handed_out:
            raise BadInputError(
                f"run.step was called more often than batches were handed out in epoch {self._under_way}\n"
                f"  found:    {self.step_in_epoch + 1} calls\n  expected: {self._num_handed_out}\n"
                "  call it once for each batch; split a batch's rows to accumulate gradients"
            )

    def _refuse_unresumed(self) -> None:
        if self._resumed is not None:
            raise BadInputError(
                f"the run goes on within epoch {self._under_way}, after step {self.step_in_epoch}, "
                "and the loop has not taken its batches from run.batches\n"
                "  iterate over run.batches, or give it to the DataLoader as batch_sampler"
            )

    def take_batches(self, num_batches: int, asked: list[int]) -> int:
        """Begin to hand out the epoch's batches; return how many of them are done."""
        if self._under_way is None:
            raise BadInputError("run.batches was iterated where no epoch is under way: do it within run.epochs")
        if self._num_batches is not None:
            raise BadInputError(
                f"run.batches was iterated twice in epoch {self._under_way}\n"
                "  it is for training; evaluate over a loader of your own"
            )
        if self._resumed is not None and self._batches not in (None, asked):
            raise BadInputError(
                f"epoch {self._under_way} goes on with other batches than it began with "
                "(samples, batch size, shuffled, last dropped)\n"
                f"  found:    {asked}\n  expected: {self._batches}\n  change them at the next epoch"
            )
        self._batches = asked
        self._num_batches, self._num_handed_out = num_batches, self.step_in_epoch
        return self.step_in_epoch

    def go_on(self) -> None:
        """Go on within the epoch, where it is resumed: from here on the streams are the saved ones."""
        if self._resumed is not None:
            resumed, self._resumed = self._resumed, None
            self._refuse_change(
                resumed,
                f"between run.epochs and the first batch of epoch {self._under_way}",
                "do it after the epoch's batches, before run.end_epoch",
                with_streams=False,
            )
            restore_rng_state(resumed.rng_state, *self.devices)

    def hand_out(self) -> None:
        """Hand out the next batch."""
        if self._resumed is not None:
            self.go_on()
        elif self._after_step is not None and self._num_handed_out == self.step_in_epoch:  # nothing was prefetched
            before, self._after_step = self._after_step, None
            self._refuse_change(
                before, f"after run.step of step {before.step_in_epoch}", "move it before run.step"
            )
        self._num_handed_out += 1

    def key_of_order(self) -> str:
        """Return what the order of the epoch under way follows from."""
        return f"{self._key} order {self._under_way}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Give a worker process, which gets a pickled run, its `generator` and nothing else."""
        return _Generators, (self._key, self._epoch_of_generators)


class _Generators:
    """A run in a loader's worker process: its `generator` alone."""

    def __init__(self, key: str, epoch: torch.Tensor) -> None:
        self._key, self._epoch_of_generators = key, epoch

    generator = Run.generator


class Batches(Sequence[list[int]]):
    """An epoch's batches; see `Run.batches`. Its length is that of a complete epoch."""

    def __init__(self, run: Run, num_samples: int, batch_size: int, shuffle: bool, drop_last: bool) -> None:
        """Prepare; an order is made each time that the batches are iterated over."""
        self._run, self._num_samples, self._batch_size = run, num_samples, batch_size
        self._shuffle, self._drop_last = shuffle, drop_last

    def __len__(self) -> int:
        """Return the number of batches of a complete epoch."""
        full, rest = divmod(self._num_samples, self._batch_size)
        return full + (rest > 0 and not self._drop_last)

    def __getitem__(self, index: Any) -> Any:
        """Return a batch of the epoch under way, done or not."""
        return self._all()[index]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield what is left of the epoch under way."""
        asked = [self._num_samples, self._batch_size, int(self._shuffle), int(self._drop_last)]
        done = self._run.take_batches(len(self), asked)
        for rows in self._all()[done:]:
            self._run.hand_out()
            yield rows
        self._run.go_on()  # a signal came in the epoch's last step: there was nothing left to hand out

    def _all(self) -> list[list[int]]:
        order = np.arange(self._num_samples)
        if self._shuffle:
            seed = hashlib.sha256(self._run.key_of_order().encode()).digest()
            words = np.frombuffer(seed, dtype="<u8")
            # sorting raw draws of Philox gives the same order with every version of NumPy, on every processor
            order = np.argsort(np.random.Philox(key=words[:2]).random_raw(self._num_samples), kind="stable")
        rows: list[int] = order.tolist()
        size = self._batch_size
        return [rows[number * size : (number + 1) * size] for number in range(len(self))]


def _seed(key: str, purpose: str, epoch: int, index: int) -> int:
    content = f"{key} {len(purpose)} {purpose} {epoch} {index}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def _number(loss: Any) -> float:
    """Return a loss as a float."""
    try:
        return float(loss.item() if isinstance(loss, torch.Tensor | np.ndarray) else loss)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        shape = f" of shape {tuple(loss.shape)}" if hasattr(loss, "shape") else ""
        raise BadInputError(
            f"run.step was given a {type(loss).__name__}{shape} as the loss; expected a single number"
        ) from error


def num_rows(rows: Any) -> int:
    """Return how many rows a batch has: of a tuple or dict of several tensors, those of the first."""
    if isinstance(rows, torch.Tensor | np.ndarray):
        return len(rows) if rows.ndim else 1
    if isinstance(rows, Mapping):
        return num_rows(next(iter(rows.values()))) if rows else 1
    if isinstance(rows, list | tuple):
        holds_several = bool(rows) and isinstance(rows[0], torch.Tensor | np.ndarray | Mapping | list | tuple)
        return num_rows(rows[0]) if holds_several else len(rows)
    return 1


def _rows_digest(rows: Any) -> str:
    return tree_digest(copy_tree(_with_tensors(rows), "rows"))[:16]


def _with_tensors(rows: Any) -> Any:
    """Return a tree with a tensor for each array."""
    if isinstance(rows, np.ndarray):
        try:
            return torch.from_numpy(np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("=")))
        except TypeError as error:
            raise BadInputError(f"rows hold an array of {rows.dtype}; expected numbers") from error
    if isinstance(rows, Mapping):
        return {key: _with_tensors(item) for key, item in rows.items()}
    if isinstance(rows, list | tuple) and not all(type(each) is int for each in rows):
        copied = [_with_tensors(each) for each in rows]
        return tuple(copied) if isinstance(rows, tuple) else copied
    return rows


__all__ = ["Part", "Run"]
