"""Stop when the test loss has not improved for a while."""

from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Counts epochs without a better test loss; the initial test loss is the first best."""

    patience: int
    best_test_loss: float
    epochs_no_improve: int = 0

    def update(self, test_loss: float) -> None:
        """Take one epoch's test loss into account."""
        if test_loss < self.best_test_loss:
            self.best_test_loss = test_loss
            self.epochs_no_improve = 0
        else:
            self.epochs_no_improve += 1

    def should_stop(self) -> bool:
        """Whether `patience` epochs in a row brought nothing."""
        return self.epochs_no_improve >= self.patience

    def state(self) -> dict[str, float | int]:
        """Return the counters as they go into the training state."""
        return {"best_test_loss": self.best_test_loss, "epochs_no_improve": self.epochs_no_improve}
