"""Hugging Face's Trainer: `train(resume_from_checkpoint=True)`, in full determinism."""

from typing import Any

from task import SEED, Images, Record, loss_of, make_model, make_optimizer, read_settings
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments


class Network(nn.Module):
    """The model as Trainer takes it: it returns the loss."""

    def __init__(self) -> None:
        """Make the network."""
        super().__init__()
        self.network = make_model()

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss."""
        return {"loss": loss_of(self.network, {"pixels": pixels, "labels": labels})}


class RecordedTrainer(Trainer):
    """A Trainer that keeps the loss of the last step, which a callback is not told."""

    last_loss: Tensor

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        """Keep the loss."""
        self.last_loss = super().training_step(*arguments, **named)
        return self.last_loss


class Steps(TrainerCallback):
    """Records each step."""

    def __init__(self, record: Record) -> None:
        """Keep the record; the trainer is given later."""
        self._record = record
        self.trainer: RecordedTrainer

    def on_step_end(self, arguments: Any, state: Any, control: Any, **named: Any) -> None:
        """Record it."""
        self._record.step(state.global_step, self.trainer.last_loss)


def main() -> None:
    """Train, or go on with `--resume`."""
    settings = read_settings()
    record = Record(settings)
    every = settings.checkpoint_every
    arguments = TrainingArguments(
        output_dir=str(settings.directory),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.lr,
        max_grad_norm=0.0,
        save_strategy="steps" if every else "epoch",
        save_steps=every or 500,
        seed=SEED,
        data_seed=SEED,
        full_determinism=True,
        ignore_data_skip=False,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        report_to=[],
    )
    network = Network()
    steps = Steps(record)
    trainer = RecordedTrainer(
        network,
        arguments,
        train_dataset=Images(settings),
        optimizers=make_optimizer(network, settings),
        callbacks=[steps],
    )
    steps.trainer = trainer
    trainer.train(resume_from_checkpoint=True if settings.resume else None)
    record.end(network.network, trainer.optimizer)


if __name__ == "__main__":
    main()
