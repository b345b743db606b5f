import math

from clip_hba_behavior.training.early_stopping import EarlyStopping


def test_it_stops_after_patience_epochs_without_a_better_loss() -> None:
    stopping = EarlyStopping(patience=3, best_test_loss=10.0)
    stops = []
    for loss in (9.0, 9.5, 9.0, 8.0, 8.0, 8.1, math.nextafter(8.0, math.inf)):
        stopping.update(loss)
        stops.append(stopping.should_stop())
    assert stops == [False] * 6 + [True]
    assert stopping.state() == {"best_test_loss": 8.0, "epochs_no_improve": 3}


def test_the_initial_loss_is_the_first_best() -> None:
    stopping = EarlyStopping(patience=1, best_test_loss=1.0)
    stopping.update(1.0)
    assert stopping.should_stop()
