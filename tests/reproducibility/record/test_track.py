"""Any loop, resumed: from every step, with another number of workers, and with one piece of state left out."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clip_hba_behavior.reproducibility import BadInputError, StoppedError, diff, fork, track, verify
from clip_hba_behavior.reproducibility.record.judge import Verdict
from clip_hba_behavior.reproducibility.record.signals import stopping_on_signals
from clip_hba_behavior.reproducibility.record.tracked import TrackedFiles
from tracked_loop import NUM_STEPS, main


class LeftError(Exception):
    pass


def run_to_the_end(directory: Path, **options: Any) -> Path:
    """Run in streams that are seeded as a new process's are not: NumPy's and Python's are part of the state."""
    random.seed(1)
    np.random.seed(1)
    main(directory=directory, **options)
    return directory


def leave_at(directory: Path, epoch: int, step: int, **options: Any) -> None:
    """Run until a step is done, then leave by an exception."""

    def after_step(run: Any) -> None:
        if (run.epoch + 1, run.step_in_epoch) == (epoch, step):
            raise LeftError

    with pytest.raises(LeftError):
        run_to_the_end(directory, after_step=after_step, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_to_the_end(tmp_path_factory.mktemp("tracked") / "run")


def states(directory: Path) -> list[str]:
    files = TrackedFiles(directory)
    return [state.digest() for epoch in files.epochs() if (state := files.state(epoch)) is not None]


def assert_same_run(found: Path, expected: Path) -> None:
    assert states(found) == states(expected)
    assert (found / "steps.jsonl").read_bytes() == (expected / "steps.jsonl").read_bytes()
    assert diff(found, expected).equal()


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
@pytest.mark.parametrize("epoch", [1, 2])
def test_resumed_from_every_step_the_run_is_the_uninterrupted_one(
    epoch: int, step: int, uninterrupted: Path, tmp_path: Path
) -> None:
    leave_at(tmp_path / "run", epoch, step)
    main(directory=tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("before", [1, 2, 3])
def test_extended_epoch_by_epoch_the_run_is_the_uninterrupted_one(
    before: int, uninterrupted: Path, tmp_path: Path
) -> None:
    run_to_the_end(tmp_path / "run", epochs=before)
    main(directory=tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.system
@pytest.mark.parametrize(("before", "after", "context"), [(0, 2, "fork"), (2, 0, "fork"), (2, 1, "spawn")])
def test_the_number_of_a_loaders_workers_may_change_at_a_resume(
    before: int, after: int, context: str, uninterrupted: Path, tmp_path: Path
) -> None:
    leave_at(tmp_path / "run", 2, 3, workers=before, context=context if before else None)
    main(directory=tmp_path / "run", workers=after, context=context if after else None)
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize(
    ("defect", "leaf"),
    [
        ("no scheduler", "parts/optimizer/param_groups[0]/lr"),
        ("no buffers", "metrics/test"),
        ("extra draw", "rng_state/torch_rng_state"),
    ],
)
def test_a_piece_of_state_that_is_left_out_is_found(defect: str, leaf: str, tmp_path: Path) -> None:
    """The negative twins: one part less, or one draw more after the resume."""
    before = None if defect == "extra draw" else defect
    complete = run_to_the_end(tmp_path / "complete", defect=before)
    leave_at(tmp_path / "run", 2, 3, defect=before)
    main(directory=tmp_path / "run", defect=defect)
    difference = diff(complete, tmp_path / "run")
    assert difference.epoch == 2
    assert leaf in {each.name for each in difference.differences}
    assert f"first difference: epoch 2, {difference_text(difference)}" in str(difference)


def difference_text(difference: Any) -> str:
    first = difference.differences[0]
    return "at its end" if first.step == "end" else f"step {first.step}: {first.name}"


# --- verify, diff, fork -------------------------------------------------------------------------------


def test_verify_repeats_a_run_by_its_own_loop(uninterrupted: Path) -> None:
    before = {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()}
    streams = torch.get_rng_state()
    found = verify(uninterrupted, main)
    assert found.verdict() == Verdict.REPRODUCIBLE
    assert [each.epoch for each in found.epochs] == [1, 2, 3]
    assert found.level == "L0"
    assert torch.equal(torch.get_rng_state(), streams)
    assert {path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file()} == before


def test_verify_works_for_a_loop_that_calls_track_by_its_name(
    uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def loop() -> None:
        main(track)

    assert verify(uninterrupted, loop, epochs=[2]).verdict() == Verdict.REPRODUCIBLE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("defect", ["no scheduler", "extra draw"])
def test_verify_names_step_and_leaf_where_a_loop_is_another(defect: str, tmp_path: Path) -> None:
    run = run_to_the_end(tmp_path / "run", defect=None if defect == "extra draw" else defect)

    def other(track: Callable[..., Any]) -> None:
        main(track, defect=defect)

    found = verify(run, other, epochs=[2])
    if defect == "no scheduler":  # the loop makes its scheduler again at every start, so epoch 2 has another rate
        assert found.verdict() == Verdict.DIFFERENT
        assert "parts/optimizer/param_groups[0]/lr" in {each.name for each in found.epochs[0].differences}
    else:
        assert "step 1: loss" in str(found)
        assert found.verdict() == Verdict.DIFFERENT


def test_an_altered_ledger_line_is_found(uninterrupted: Path, tmp_path: Path) -> None:
    run = run_to_the_end(tmp_path / "run")
    ledger = run / "steps.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if line.startswith('{"epoch": 2, "step": 3'))
    lines[number] = lines[number].replace('"loss": ', '"loss": 1')
    ledger.write_text("".join(lines))
    found = verify(run, main)
    assert [str(each.verdict) for each in found.epochs] == ["reproducible", "not reproducible", "reproducible"]
    assert "epoch 2: not reproducible, step 3: loss" in str(found)
    assert str(diff(uninterrupted, run)).count("first difference: epoch 2, step 3: loss") == 1


def test_a_fork_that_changes_nothing_is_its_parent(uninterrupted: Path, tmp_path: Path) -> None:
    run = run_to_the_end(tmp_path / "run")
    fork(run, 1, tmp_path / "fork")
    main(directory=tmp_path / "fork")
    assert states(tmp_path / "fork") == states(uninterrupted)[1:]
    assert verify(tmp_path / "fork", main).verdict() == Verdict.REPRODUCIBLE


def test_a_fork_may_have_settings_of_its_own(tmp_path: Path) -> None:
    run = run_to_the_end(tmp_path / "run")
    fork(run, 1, tmp_path / "fork")
    main(directory=tmp_path / "fork", settings={"lr": 0.5})
    with pytest.raises(BadInputError, match=r"lr\n    in the run: 0\.5\n    now:        0\.01"):
        main(directory=tmp_path / "fork")
    with pytest.raises(BadInputError, match="has no state after epoch 7"):
        fork(run, 7, tmp_path / "other")
    with pytest.raises(BadInputError, match="is not empty"):
        fork(run, 1, tmp_path / "fork")


# --- what a run refuses -------------------------------------------------------------------------------


def test_changed_settings_data_and_versions_are_refused_with_what_allows_them(tmp_path: Path) -> None:
    run = run_to_the_end(tmp_path / "run", epochs=1)
    with pytest.raises(BadInputError, match=r"lr\n    in the run: 0\.01\n    now:        0\.1") as refused:
        main(directory=run, settings={"lr": 0.1})
    assert "track(..., allow=['lr'])" in str(refused.value)
    with pytest.raises(BadInputError, match="the digest of the data"):
        main(directory=run, data="other")
    record = (run / "run.json").read_text()
    (run / "run.json").write_text(record.replace(f'"torch": "{torch.__version__}"', '"torch": "1.0"'))
    with pytest.raises(BadInputError, match=r"torch\n    in the run: 1\.0"):
        main(directory=run)
    with pytest.raises(BadInputError, match="nothing of that name is compared"):
        main(directory=run, allow=["nonsense"])
    main(directory=run, allow=["torch"], epochs=2)
    found = verify(run, main)
    assert found.level == "L2"
    assert found.verdict() == Verdict.REPRODUCIBLE
    assert "torch was 1.0" in str(found)


def test_what_is_changed_after_end_epoch_is_refused_in_the_run_itself(tmp_path: Path) -> None:
    model, optimizer, scheduler = small_parts()
    run = track(tmp_path / "run", model=model, optimizer=optimizer, scheduler=scheduler)

    def loop() -> None:
        for _ in run.epochs(3):
            for rows in run.batches(8, 4):
                run.step(train(model, optimizer), rows)
            run.end_epoch()
            scheduler.step()

    with pytest.raises(BadInputError, match=r"changed after run\.end_epoch of epoch 1(.|\n)*param_groups\[0\]/lr"):
        loop()


def test_what_is_changed_after_step_is_refused_in_the_run_itself(tmp_path: Path) -> None:
    model, optimizer, scheduler = small_parts()
    run = track(tmp_path / "run", model=model, optimizer=optimizer, scheduler=scheduler)

    def loop() -> None:
        for _ in run.epochs(3):
            for rows in run.batches(8, 4):
                run.step(train(model, optimizer), rows)
                scheduler.step()
            run.end_epoch()

    with pytest.raises(BadInputError, match=r"changed after run\.step of step 1(.|\n)*move it before run\.step"):
        loop()


def test_parts_changed_before_the_first_batch_of_a_resume_are_refused(tmp_path: Path) -> None:
    leave_at(tmp_path / "run", 2, 3)
    model, optimizer, scheduler = small_parts(main_parts=True)
    run = track(tmp_path / "run", settings={"lr": 1e-2}, data=recorded_data(tmp_path / "run"), model=model,
                optimizer=optimizer, scheduler=scheduler)  # fmt: skip

    def loop() -> None:
        for _ in run.epochs(3):
            scheduler.step()
            for _ in run.batches(50, 8):
                pass

    with pytest.raises(BadInputError, match=r"between run\.epochs and the first batch of epoch 2"):
        loop()


def test_a_resume_within_an_epoch_needs_its_batches(tmp_path: Path) -> None:
    leave_at(tmp_path / "run", 2, 3)
    model, optimizer, scheduler = small_parts(main_parts=True)
    run = track(tmp_path / "run", settings={"lr": 1e-2}, data=recorded_data(tmp_path / "run"), model=model,
                optimizer=optimizer, scheduler=scheduler)  # fmt: skip

    def loop() -> None:
        for _ in run.epochs(3):
            run.step(1.0)

    with pytest.raises(BadInputError, match=r"has not taken its batches from run\.batches"):
        loop()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda run: run.step(1.0), "where no epoch is under way"),
        (lambda run: run.end_epoch(), "where no epoch is under way"),
        (lambda run: list(run.batches(4, 2)), "where no epoch is under way"),
        (lambda run: [None for _ in run.epochs(2)], "was not closed"),
        (lambda run: [list(run.batches(4, 2)) + list(run.batches(4, 2)) for _ in run.epochs(1)], "iterated twice"),
        (
            lambda run: [(next(iter(run.batches(4, 2))), run.end_epoch()) for _ in run.epochs(1)],
            "another number of",
        ),
        (lambda run: [run.end_epoch({"x": [1]}) for _ in run.epochs(1)], "metric x is a list"),
        (
            lambda run: [[run.step(1.0), run.step(1.0)] for _ in run.epochs(1) for _ in run.batches(4, 2)],
            "more often",
        ),
        (lambda run: run.batches(0, 2), "two numbers from 1 on"),
        (lambda run: list(run.epochs("3")), "expected the number of the last epoch"),
    ],
)
def test_a_wrong_use_is_named(use: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    model, optimizer, _ = small_parts()
    with pytest.raises(BadInputError, match=message):
        use(track(tmp_path / "run", model=model, optimizer=optimizer))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    model, optimizer, _ = small_parts()
    run = track(tmp_path / "run", model=model, optimizer=optimizer)

    def loop() -> None:
        for _ in run.epochs(1):
            run.step(torch.tensor(float("nan")))

    with pytest.raises(StoppedError, match="the loss is nan in epoch 1, step 1"):
        loop()


def test_wrong_arguments_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    model, _, _ = small_parts()
    for given, message in (
        ({"model": 3}, "model cannot be part of a run"),
        ({"model": model, "again": model}, "model and again are one object"),
        ({"rng_state": model}, "rng_state is the name of the random streams"),
        ({"model": model, "settings": {"x": object()}}, "settings/x is a builtins.object"),
        ({"model": model, "checkpoint_every_steps": 0}, "checkpoint_every_steps is 0"),
        ({"model": model, "keep_checkpoints": "none"}, "keep_checkpoints is 'none'"),
        ({"model": model, "data": 3}, "data is a int"),
    ):
        with pytest.raises(BadInputError, match=message):
            track(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    with pytest.raises(BadInputError, match="is not empty, and holds no tracked run"):
        track(tmp_path / "used", model=model)


# --- what a run does ----------------------------------------------------------------------------------


def test_a_finished_run_restores_its_last_state_and_yields_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    run = run_to_the_end(tmp_path / "run")
    model, optimizer, scheduler = small_parts(main_parts=True)
    torch.manual_seed(9)
    again = track(run, settings={"lr": 1e-2}, data=recorded_data(run), model=model, optimizer=optimizer,
                  scheduler=scheduler)  # fmt: skip
    assert list(again.epochs(3)) == []
    state = TrackedFiles(run).state(3)
    assert state is not None
    assert again.snapshot().digest() == state.digest()
    assert again.metrics["test"] == state.metrics["test"]


def test_a_damaged_newest_state_is_quarantined_and_the_one_before_it_taken(
    uninterrupted: Path, tmp_path: Path
) -> None:
    run = run_to_the_end(tmp_path / "run")
    newest = run / "checkpoints/epoch3.pth"
    content = bytearray(newest.read_bytes())
    content[1000:1400] = bytes(400)
    newest.write_bytes(content)
    main(directory=run)
    assert states(run) == states(uninterrupted)
    assert (run / "quarantine/epoch3.pth.1").read_bytes() == content
    assert "Quarantined checkpoints/epoch3.pth" in (run / "log.txt").read_text()


def test_a_recorded_line_is_released_only_by_an_equal_one(tmp_path: Path) -> None:
    run = run_to_the_end(tmp_path / "run")
    (run / "checkpoints/epoch3.pth").unlink()
    ledger = run / "steps.jsonl"
    content = ledger.read_text()
    last_step = content.rindex('{"epoch": 3, "step": 7')
    ledger.write_text(content[:last_step] + content[last_step:].replace('"loss": ', '"loss": 1', 1))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"did not repeat(.|\n)*accept_mismatch=3") as refused:
            main(directory=run)
        assert "Error" in type(refused.value).__name__
    main(directory=run, accept_mismatch=3)
    assert any("steps.jsonl" in each.name for each in (run / "quarantine").iterdir())
    assert verify(run, main).verdict() == Verdict.REPRODUCIBLE


def test_checkpoints_are_kept_as_asked(tmp_path: Path) -> None:
    run = run_to_the_end(tmp_path / "run", epochs=6, keep_checkpoints="every 4")
    assert sorted(TrackedFiles(run).files) == [0, 4, 6]
    run = run_to_the_end(tmp_path / "last", epochs=6, keep_checkpoints="last 2")
    assert sorted(TrackedFiles(run).files) == [0, 5, 6]


def test_the_mean_loss_goes_on_where_a_resumed_epoch_stood(uninterrupted: Path, tmp_path: Path) -> None:
    leave_at(tmp_path / "run", 2, 4)
    found: list[float] = []
    main(directory=tmp_path / "run", epochs=2, after_step=lambda run: found.append(run.mean_loss))
    expected: list[float] = []
    run_to_the_end(tmp_path / "other", epochs=2, after_step=lambda run: expected.append(run.mean_loss))
    assert found == expected[NUM_STEPS + 4 :]


def small_parts(main_parts: bool = False) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """A small model's parts; or those that `tracked_loop.main` makes."""
    torch.manual_seed(0)
    model: nn.Module = nn.Linear(4, 2)
    if main_parts:
        model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.ReLU(), nn.Linear(12, 3))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    loss = model(torch.ones(3, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def recorded_data(run: Path) -> str:
    return str(TrackedFiles(run).record["digests"]["data"])


def test_a_run_that_is_opened_again_in_one_process_lets_go_of_the_earlier_one(tmp_path: Path) -> None:
    """As in a notebook, which keeps the exception and with it the loop that it ended."""
    with pytest.raises(LeftError) as kept:
        main(directory=tmp_path / "run", after_step=leave)
    main(directory=tmp_path / "run")
    assert kept.tb is not None  # until here the exception kept the loop that it ended
    assert sorted(TrackedFiles(tmp_path / "run").files) == [0, 1, 2, 3]


def leave(run: Any) -> None:
    raise LeftError


@pytest.mark.parametrize("order", ["inner first", "outer first"])
def test_handlers_are_put_back_when_the_last_run_ends(order: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    outer, inner = stopping_on_signals(), stopping_on_signals()
    request = outer.__enter__()
    assert inner.__enter__() is request
    first, second = (inner, outer) if order == "inner first" else (outer, inner)
    first.__exit__(None, None, None)
    assert signal.getsignal(signal.SIGTERM) is not before
    second.__exit__(None, None, None)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own answer to SIGINT: a test's worker process may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_of_an_abandoned_run_is_given_to_who_took_it_before(interruptible: None) -> None:
    with stopping_on_signals(second="is not ours") as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_was_killed_before_its_first_state_begins_again(tmp_path: Path) -> None:
    run = run_to_the_end(tmp_path / "run", epochs=1)
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    (run / "steps.jsonl").unlink()
    run_to_the_end(run, epochs=1, settings={"lr": 0.5})
    assert TrackedFiles(run).record["settings"] == {"lr": 0.5}


def test_nothing_is_set_outside_the_main_thread(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: main(directory=tmp_path / "run", epochs=1, after_step=lambda run: found.append(handler()))
    )

    def handler() -> Any:
        return signal.getsignal(signal.SIGTERM)

    thread.start()
    thread.join()
    assert set(found) == {before}


def test_verify_finds_a_part_that_was_forgotten_though_the_run_was_never_interrupted(tmp_path: Path) -> None:
    run = run_to_the_end(tmp_path / "run", defect="no scheduler")

    def loop(track: Callable[..., Any]) -> None:
        main(track, defect="no scheduler")

    verdicts = [str(each.verdict) for each in verify(run, loop).epochs]
    assert verdicts == ["reproducible", "not reproducible", "not reproducible"]


@pytest.mark.parametrize("place", ["before the batches", "after end_epoch"])
def test_a_loop_that_stops_early_is_verified_to_its_last_epoch(place: str, tmp_path: Path) -> None:
    def loop(track: Callable[..., Any] = track) -> None:
        model, optimizer, _ = small_parts()
        run = track(tmp_path / "run", model=model, optimizer=optimizer)
        for epoch in run.epochs(5):
            if place == "before the batches" and epoch == 3:
                break
            for rows in run.batches(8, 4):
                run.step(train(model, optimizer), rows)
            run.end_epoch()
            if place == "after end_epoch" and epoch == 2:
                break

    loop()
    found = verify(tmp_path / "run", loop)
    assert [str(each.verdict) for each in found.epochs] == ["reproducible", "reproducible"]


def test_what_is_changed_after_the_last_end_epoch_is_refused_too(tmp_path: Path) -> None:
    model, optimizer, scheduler = small_parts()
    run = track(tmp_path / "run", model=model, optimizer=optimizer, scheduler=scheduler)

    def loop() -> None:
        for _ in run.epochs(1):
            run.step(train(model, optimizer))
            run.end_epoch()
            scheduler.step()

    with pytest.raises(
        BadInputError, match=r"after run\.end_epoch of epoch 1(.|\n)*begin again in a new directory"
    ):
        loop()


def test_other_batches_within_an_epoch_are_refused_after_a_resume(tmp_path: Path) -> None:
    def loop(batch_size: int, leave_after: int) -> None:
        model, optimizer, _ = small_parts()
        run = track(tmp_path / "run", checkpoint_every_steps=1, model=model, optimizer=optimizer)
        for _ in run.epochs(1):
            for number, rows in enumerate(run.batches(12, batch_size), start=1):
                run.step(train(model, optimizer), rows)
                if number == leave_after:
                    raise LeftError
            run.end_epoch()

    with pytest.raises(LeftError):
        loop(4, 1)
    with pytest.raises(BadInputError, match=r"found:    \[12, 6, 1, 0\]\n  expected: \[12, 4, 1, 0\]"):
        loop(6, 9)
    loop(4, 9)


def test_epochs_that_cannot_be_tested_and_lines_that_are_gone_are_named(tmp_path: Path) -> None:
    run = run_to_the_end(tmp_path / "run")
    (run / "checkpoints/epoch1.pth").unlink()
    (run / "steps.jsonl").unlink()
    found = verify(run, main)
    assert [str(each.verdict) for each in found.epochs] == ["could not be tested", "reproducible"]
    assert "epoch 2: could not be tested: there is no state after epoch 1" in str(found)
    assert "steps.jsonl lacks the end of epoch 3" in str(found)
    main(directory=run, epochs=4)
    assert "steps.jsonl lacks the end of epoch 3" in (run / "log.txt").read_text()


def test_the_mean_loss_of_an_epoch_that_is_closed_is_its_own(tmp_path: Path) -> None:
    model, optimizer, _ = small_parts()
    run = track(tmp_path / "run", model=model, optimizer=optimizer)
    for _ in run.epochs(1):
        run.step(train(model, optimizer))
        run.end_epoch()
        assert run.mean_loss == run.metrics["train_loss"]
