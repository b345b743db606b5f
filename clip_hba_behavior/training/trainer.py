"""Training as a pure function of the training state: one step, one epoch, one evaluation."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from clip_hba_behavior import exact
from clip_hba_behavior.config import Config
from clip_hba_behavior.model.clip_hba import CLIPHBA
from clip_hba_behavior.reproducibility.record.protocol import StepDone
from clip_hba_behavior.reproducibility.state.digest import leaf_digest, leaves, tensor_bytes
from clip_hba_behavior.reproducibility.state.errors import StoppedError
from clip_hba_behavior.reproducibility.state.numerics import apply_numerics
from clip_hba_behavior.reproducibility.state.process import usable_cores
from clip_hba_behavior.reproducibility.state.rng import RngState, capture_rng_state, restore_rng_state
from clip_hba_behavior.reproducibility.state.snapshot import restore_optimizer, restore_parameters, snapshot
from clip_hba_behavior.training.batch_order import draw_evaluation_seeds, draw_loader_seed, epoch_order
from clip_hba_behavior.training.early_stopping import EarlyStopping
from clip_hba_behavior.training.evaluation import Evaluation, behavioral_rsa, evaluate, predict
from clip_hba_behavior.training.features import send
from clip_hba_behavior.training.inputs import Inputs
from clip_hba_behavior.training.learning_rate import learning_rate
from clip_hba_behavior.training.pending import STEPS_LATE, PendingStep, pending_step
from clip_hba_behavior.training.perturbations import IMAGE_KINDS, perturbation_of
from clip_hba_behavior.training.processes import ALONE, Processes
from clip_hba_behavior.training.seed_protocol import Split, draw_initial_parameters
from clip_hba_behavior.training.state import TrainingState


def num_threads_here(config: Config, num_processes: int = 1) -> int:
    """Return how many threads to compute with.

    Args:
        config: its `num_threads`; in portable arithmetic no more than this machine has cores.
        num_processes: of this run on this machine, which share its cores.
    """
    num_threads = int(config.num_threads or 1)
    if not config.is_portable():
        return num_threads
    return min(num_threads, max(1, usable_cores() // num_processes))


class NonFiniteLossError(StoppedError):
    """The loss is no longer a number; the run stops with its last complete state."""


@dataclass(frozen=True)
class _Batch:
    """What one step trains with.

    Attributes:
        rows: of the table.
        features: frozen ones, of this process's part of the rows.
        targets: of all rows.
        pixels_digest: of all rows' pixels where these are not their images'.
    """

    rows: torch.Tensor
    features: torch.Tensor
    targets: torch.Tensor
    pixels_digest: str | None


class Trainer:
    """The live form of a training state: model, optimizer, generators, counters and cursor.

    `snapshot` and `restore` turn it into a `TrainingState` and back. The generators are the process's
    global ones, so there is one trainer a process at a time. It computes each batch alone until it is told to
    `share` them.
    """

    def __init__(self, config: Config, model: CLIPHBA, inputs: Inputs, split: Split) -> None:
        """Bring the parts together; call `begin` or `restore` before training."""
        self.config = config
        self.model = model
        self.inputs = inputs
        self.split = split
        self.processes = ALONE
        self.steps_late = STEPS_LATE[inputs.device.type]
        self.perturbation = perturbation_of(config, inputs.targets, split.train)
        self.parameters = model.dora_parameters()
        self.early_stopping = EarlyStopping(config.early_stopping_patience, math.inf)
        self.epoch = 0
        self.step_in_epoch = 0
        self.loss_sum = 0.0
        self.num_samples = 0
        self.epoch_start_rng_state: RngState | None = None
        self.metrics: dict[str, Any] = {}

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer. What only predicts has none: torch imports its compiler for the first one."""
        settings: dict[str, Any] = {"lr": self.config.lr, "weight_decay": self.config.weight_decay}
        if self.config.is_portable():
            return exact.AdamW(self.parameters.values(), **settings)
        # The fused form computes the same bits on every x86 CPU; the others' square roots differ.
        return torch.optim.AdamW(self.parameters.values(), fused=True, **settings)

    def begin(self, parameters: Mapping[str, torch.Tensor] | None = None, epoch: int = 0) -> None:
        """Evaluate the initial model: its test loss is early stopping's first best.

        Args:
            parameters: what the model begins with; None to draw them from the seed.
            epoch: the number of completed epochs that the parameters come from.
        """
        if parameters is None:
            kind = self.config.arithmetic_kind()
            draw_initial_parameters(self.model, self.inputs.backbone.upper().config, kind)
        else:
            restore_parameters(self.parameters, parameters)
        self.epoch = epoch
        draw_loader_seed()  # the test loader's
        found = self.finite_evaluation()
        self.metrics = {"epoch": epoch, "test_loss": found.test_loss, **self.behavioral_rsa(found)}
        self.early_stopping.best_test_loss = found.test_loss

    def apply_numerics(self) -> None:
        """Set what this process computes with, as the configuration says."""
        num_threads = num_threads_here(self.config, self.processes.num_local)
        apply_numerics(num_threads, self.config.deterministic, self.config.precision == "tf32")

    def share(self, processes: Processes) -> None:
        """Compute from now on one part of each batch; trainers in the same state do the others, with equal calls.

        Every process then has the state that one alone would have, in portable arithmetic.
        """
        self.processes = processes
        self.steps_late = 0  # they wait for each other in every step
        processes.share_on(self.inputs.device)
        self.model.operations.share(processes)
        self.apply_numerics()

    def snapshot(self) -> TrainingState:
        """Copy everything that changes in training."""
        return TrainingState(
            parameters=snapshot(self.parameters),
            optimizer_state=snapshot(self.optimizer.state_dict()),
            rng_state=snapshot(self._capture_rng_state()),
            early_stopping_state=self.early_stopping.state(),
            epoch=self.epoch,
            step_in_epoch=self.step_in_epoch,
            loss_sum=self.loss_sum,
            num_samples=self.num_samples,
            epoch_start_rng_state=snapshot(self.epoch_start_rng_state),
            metrics=dict(self.metrics),
        )

    def restore(self, state: TrainingState) -> None:
        """Become the trainer that `state` was taken of.

        Raises:
            BadInputError: the state does not fit this model.
        """
        restore_parameters(self.parameters, state.parameters)
        restore_optimizer(self.optimizer, state.optimizer_state)
        self.early_stopping.best_test_loss = state.early_stopping_state["best_test_loss"]
        self.early_stopping.epochs_no_improve = int(state.early_stopping_state["epochs_no_improve"])
        self.epoch = state.epoch
        self.step_in_epoch = state.step_in_epoch
        self.loss_sum = state.loss_sum
        self.num_samples = state.num_samples
        self.epoch_start_rng_state = state.epoch_start_rng_state
        self.metrics = dict(state.metrics)
        restore_rng_state(state.rng_state)  # last: nothing may draw between this and the next step

    def num_steps(self) -> int:
        """Return the number of steps an epoch."""
        return math.ceil(len(self.split.train) / self.config.batch_size)

    def steps(self, needs_state: Callable[[int], bool] = lambda step: True) -> Iterator[StepDone]:
        """Train what is left of the epoch under way, or the next one.

        At a yield whose event has the state, the trainer is where that step led, and a snapshot of it can be
        continued. At others it is some steps on: so a device need not wait for its losses to be read.

        Args:
            needs_state: asked after each step whether the state is needed there; the step's event then has it.

        Raises:
            NonFiniteLossError: the loss is infinite or not a number.
        """
        rng_state = self._capture_rng_state()
        if self.step_in_epoch == 0:
            self.epoch_start_rng_state = rng_state
            if self._counters_begin_here():
                self.early_stopping = EarlyStopping(self.config.early_stopping_patience, math.inf)
        else:
            restore_rng_state(self._epoch_start())
        order = epoch_order(
            self.config.batch_order, self.config.random_seed, self.epoch + 1, len(self.split.train)
        )
        if self.step_in_epoch > 0:
            restore_rng_state(rng_state)
        order = self.perturbation.order(self.epoch + 1, order)
        for group in self.optimizer.param_groups:
            # a fork's config may differ from the parent whose optimizer state it restored
            group["lr"] = self._learning_rate()
            group["weight_decay"] = self.config.weight_decay

        pending: deque[PendingStep] = deque()
        for batch in self._batches(order):
            pending.append(self._step(batch))
            num_left = 0 if needs_state(self.step_in_epoch) else self.steps_late
            while len(pending) > num_left:
                yield self._read(pending.popleft(), has_state=not pending)
        while pending:
            yield self._read(pending.popleft(), has_state=not pending)

    def finish_epoch(self) -> dict[str, Any]:
        """Evaluate after an epoch's last step, and close the epoch.

        Returns:
            The epoch's CSV row.

        Raises:
            NonFiniteLossError: the test loss is infinite or not a number; the epoch stays open.
            UnequalProcessesError: the processes that share the batches have come to different states.
        """
        train_loss = self.loss_sum / self.num_samples
        found = self.finite_evaluation()
        draw_evaluation_seeds(self.config.batch_order, self.epoch + 1)
        self.early_stopping.update(found.test_loss)
        self.epoch += 1
        self.step_in_epoch, self.loss_sum, self.num_samples = 0, 0.0, 0
        self.epoch_start_rng_state = None
        kind = self.perturbation.kind_in(self.epoch)
        self.metrics = {
            "epoch": self.epoch,
            "train_loss": train_loss,
            "test_loss": found.test_loss,
            **self.behavioral_rsa(found),
            "used_random_targets": kind == "random_target",
            "used_shuffled_targets": kind == "label_shuffle",
            "perturb_type": kind,
        }
        if self.processes.size > 1:
            self.processes.check_equal(self.snapshot().digest(), f"their states after epoch {self.epoch}")
        return dict(self.metrics)

    def should_stop(self) -> bool:
        """Whether early stopping ends the run here, as far as its counters go."""
        return not self._counters_begin_here() and self.early_stopping.should_stop()

    def needs_backbone(self) -> bool:
        """Whether an epoch to come computes features from pixels, and does not only read the cache."""
        return bool(self.config.augmentation) or self.perturbation.changes_images_after(self.epoch)

    def predict(self, rows: torch.Tensor) -> torch.Tensor:
        """Predict `[len(rows), 66] float32`, in fixed batches, drawing nothing."""
        return predict(self.config, self.model, self.inputs, rows, self.processes)

    def evaluate(self) -> Evaluation:
        """Evaluate the model on the test and the held-out images, drawing nothing."""
        return evaluate(self.config, self.model, self.inputs, self.split.test, self.processes)

    def finite_evaluation(self) -> Evaluation:
        """Evaluate the model.

        Raises:
            NonFiniteLossError: the test loss is infinite or not a number: the last steps broke the parameters.
        """
        found = self.evaluate()
        if not math.isfinite(found.test_loss):
            raise NonFiniteLossError(
                f"the test loss is {found.test_loss} after {self.step_in_epoch} steps of epoch {self.epoch + 1}\n"
                "  the last complete state is kept; lower lr, or check the targets with `clip-hba data check`"
            )
        return found

    def behavioral_rsa(self, found: Evaluation) -> dict[str, float]:
        """Compare the held-out images' predicted RDM with the human one (Spearman's rho and its p)."""
        return behavioral_rsa(self.config, found.held_out, self.inputs.human_rdm)

    def leaf_digests(self) -> dict[str, str]:
        """Return the digest of every parameter, optimizer tensor and random stream, shortened."""
        state = {
            "parameters": self.parameters,
            "optimizer_state": self.optimizer.state_dict()["state"],
            "rng_state": self._capture_rng_state(),
        }
        return {name: leaf_digest(leaf)[:16] for name, leaf in leaves(state)}

    def undrawn_streams(self) -> dict[str, Any]:
        """Return the streams that portable training does not draw from, and a state does not hold: a GPU's."""
        if not self.config.is_portable():
            return {}
        state = capture_rng_state(self.inputs.device)
        return {key: snapshot(value) for key, value in state.items() if key == "cuda_rng_state_all"}

    def _capture_rng_state(self) -> RngState:
        """Take every stream that training draws from: portable training draws nothing on a GPU."""
        return capture_rng_state(*([] if self.config.is_portable() else [self.inputs.device]))

    def _epoch_start(self) -> RngState:
        if self.epoch_start_rng_state is None:
            raise RuntimeError("a state within an epoch must hold the random states of the epoch's start")
        return self.epoch_start_rng_state

    def _learning_rate(self) -> float:
        config = self.config
        return learning_rate(
            self.epoch + 1,
            config.lr_schedule,
            config.lr,
            config.lr_min,
            config.lr_warmup_epochs,
            config.lr_schedule_epochs or config.epochs,
            config.arithmetic_kind(),
        )

    def _counters_begin_here(self) -> bool:
        """Whether the next epoch is a fork's first, and early stopping is to count from there."""
        config = self.config
        return config.fork_early_stopping == "fresh" and self.epoch + 1 == config.training_run

    def _batches(self, order: torch.Tensor) -> Iterator[_Batch]:
        """Yield what is left of the epoch's batches, as its perturbation leaves them."""
        epoch, done = self.epoch + 1, self.step_in_epoch
        batches = list(self.split.train[order].split(self.config.batch_size))[done:]
        for number, (rows, (features, pixels_digest)) in enumerate(
            zip(batches, self._features_of(batches, done), strict=True), start=done
        ):
            own = self.inputs.targets[send(rows, self.inputs.device)]
            yield _Batch(rows, features, self.perturbation.targets(epoch, number, own), pixels_digest)

    def _features_of(self, batches: list[torch.Tensor], first: int) -> Iterator[tuple[torch.Tensor, str | None]]:
        """Yield the features of this process's part of each batch.

        With them, the digest of the whole batch's pixels where these are not its images'.
        """
        epoch = self.epoch + 1
        parts = [batch[self.processes.part(len(batch))] for batch in batches]
        if self.perturbation.kind_in(epoch) in IMAGE_KINDS:
            yield from self._perturbed_features(batches, first)
        elif self.config.augmentation:
            for features in self.inputs.augmented_features(parts, self.config, epoch):
                yield features, None
        else:
            for features in self.inputs.features.batches(parts):
                yield features, None

    def _perturbed_features(self, batches: list[torch.Tensor], first: int) -> Iterator[tuple[torch.Tensor, str]]:
        epoch = self.epoch + 1
        size = self.inputs.preprocessing.image_size
        uniform: dict[int, tuple[torch.Tensor, str]] = {}  # by length: they are the same in every batch
        for number, rows in enumerate(batches, start=first):
            if len(rows) in uniform:
                yield uniform[len(rows)]
                continue
            pixels = self.perturbation.pixels(epoch, number, (len(rows), 3, size, size))
            found = (
                self.inputs.features_of(pixels[self.processes.part(len(rows))], self.config.chunk_size),
                hashlib.sha256(tensor_bytes(pixels)).hexdigest(),
            )
            if self.perturbation.kind_in(epoch) == "uniform_images":
                uniform[len(rows)] = found
            yield found

    def _step(self, batch: _Batch) -> PendingStep:
        if not self.model.training:  # a walk through all modules
            self.model.train()
        self.model.draw_masks_of(self.config.random_seed, self.epoch + 1, self.step_in_epoch)
        predictions = self.model(batch.features, self.inputs.prompt_features)
        targets = batch.targets[self.processes.part(len(batch.rows))]
        loss = self.model.operations.mse_loss(predictions, targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step_in_epoch += 1
        return pending_step(self.step_in_epoch, batch.rows, batch.targets, batch.pixels_digest, loss)

    def _read(self, step: PendingStep, has_state: bool) -> StepDone:
        """Wait for a step's loss, and count it in.

        Raises:
            NonFiniteLossError: it is infinite or not a number. Steps behind it may have been done; nothing of them
                is told.
        """
        loss = step.value()
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss} in epoch {self.epoch + 1}, step {step.number}\n"
                f"  images: {', '.join(self.inputs.image_paths[row].name for row in step.rows.tolist())}\n"
                "  the last complete state is kept; lower lr, or check the targets with `clip-hba data check`"
            )
        self.loss_sum += loss * len(step.rows)
        self.num_samples += len(step.rows)
        digest = self._batch_digest(step.rows, step.targets, step.pixels_digest)
        return StepDone(self.epoch + 1, step.number, self.num_steps(), digest, loss, has_state)

    def _batch_digest(self, rows: torch.Tensor, targets: torch.Tensor, pixels_digest: str | None = None) -> str:
        total = hashlib.sha256(tensor_bytes(rows))
        images = [self.inputs.image_digests[row] for row in rows.tolist()]
        for each in images if pixels_digest is None else [pixels_digest]:
            total.update(each.encode())
        total.update(tensor_bytes(targets))
        return total.hexdigest()[:16]
