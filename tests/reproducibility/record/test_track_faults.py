"""What a run of any loop does with lost files, wrong values, other settings, and signals at awkward moments."""

import errno
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clip_hba_behavior.reproducibility import BadInputError, Interrupted, diff, digest, fork, track, verify
from clip_hba_behavior.reproducibility.record.signals import stopping_on_signals
from clip_hba_behavior.reproducibility.record.track import num_rows
from clip_hba_behavior.reproducibility.record.tracked import TrackedFiles
from clip_hba_behavior.reproducibility.state import archive
from clip_hba_behavior.reproducibility.state.errors import UnreadableError

NUM_EPOCHS, NUM_ROWS, BATCH_SIZE = 3, 12, 4


class LeftError(Exception):
    pass


class OtherAdam(torch.optim.Adam):
    """Takes Adam's state without a word."""


class Values:
    """A part that is a list of numbers."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"]


def main(
    track: Callable[..., Any] = track,
    directory: Path = Path("run"),
    epochs: int = NUM_EPOCHS,
    kind: type[torch.optim.Optimizer] = torch.optim.Adam,
    after_step: Callable[[Any], None] = lambda run: None,
    evaluate: Callable[[Any], None] = lambda run: None,
    batches: Callable[[Any], Any] = lambda run: run.batches(NUM_ROWS, BATCH_SIZE),
    **options: Any,
) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    inputs = torch.randn(NUM_ROWS, 3)
    optimizer = kind(model.parameters(), 0.1)  # type: ignore[call-arg]
    options = {"settings": {"lr": 0.1}, "data": digest(inputs), "checkpoint_every_steps": 1} | options
    run = track(directory, model=model, optimizer=optimizer, **options)
    for _ in run.epochs(epochs):
        for rows in batches(run):
            loss = model(inputs[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss, rows)
            after_step(run)
        evaluate(run)
        run.end_epoch()
    return run


def leave_at(epoch: int, step: int) -> Callable[[Any], None]:
    def after_step(run: Any) -> None:
        if (run.epoch + 1, run.step_in_epoch) == (epoch, step):
            raise LeftError

    return after_step


def interrupted_run(directory: Path, epoch: int = 2, step: int = 2, **options: Any) -> Path:
    with pytest.raises(LeftError):
        main(directory=directory, after_step=leave_at(epoch, step), **options)
    return directory


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != "log.txt"}


def assert_refused(directory: Path, message: str, **options: Any) -> None:
    """Refused, and every file as it was."""
    before = contents(directory)
    with pytest.raises(BadInputError, match=message):
        main(directory=directory, **options)
    assert {path: content for path, content in contents(directory).items() if path in before} == before


# --- lost and unreadable files ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_passing_fault_of_the_machine_moves_no_state(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, complete = interrupted_run(tmp_path / "run"), tmp_path / "complete"
    main(directory=complete)

    def fail(path: Path, max_bytes: int) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(archive, "open_regular", fail)
        with pytest.raises(UnreadableError if isinstance(error, OSError) else MemoryError):
            main(directory=run)
    assert not (run / "quarantine").exists()
    main(directory=run)
    assert (run / "steps.jsonl").read_bytes() == (complete / "steps.jsonl").read_bytes()


def test_a_run_whose_states_are_gone_does_not_begin_again(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "run")
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    assert_refused(run, r"no state to go on from, though steps\.jsonl is there(.|\n)*put the states back")
    (tmp_path / "elsewhere").rename(run / "checkpoints")
    main(directory=run)


def test_a_fork_that_was_cut_short_does_not_begin_from_nothing(tmp_path: Path) -> None:
    main(directory=tmp_path / "run")
    fork(tmp_path / "run", 1, tmp_path / "fork")
    record = (tmp_path / "fork/run.json").read_bytes()
    (tmp_path / "fork/run.json").unlink()  # the last that a fork writes
    assert_refused(tmp_path / "fork", r"has states, but no run\.json: a fork that was cut short")
    (tmp_path / "fork/run.json").write_bytes(record)
    (tmp_path / "fork/checkpoints/epoch1.pth").unlink()
    assert_refused(tmp_path / "fork", "though it is a fork")


def test_a_state_whose_storage_is_not_there_is_not_moved(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "run")
    newest = run / "checkpoints/epoch2_step2.pth"
    newest.rename(tmp_path / "stored.pth")
    newest.symlink_to(tmp_path / "stored.pth")
    (tmp_path / "stored.pth").rename(tmp_path / "away.pth")
    with pytest.raises(UnreadableError, match=r"epoch2_step2\.pth cannot be found just now"):
        main(directory=run)
    assert newest.is_symlink()
    assert not (run / "quarantine").exists()
    (tmp_path / "away.pth").rename(tmp_path / "stored.pth")
    main(directory=run)


@pytest.mark.parametrize("name", ["settings", "digests", "versions", "numerics", "parts", "parent", "drift"])
def test_a_malformed_record_is_named(name: str, tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {name: 3}))
    assert_refused(run, rf"run\.json is no record of a run: {name} is missing or of another kind")


# --- what is changed ----------------------------------------------------------------------------------


def test_what_is_allowed_once_is_the_runs_own_from_then_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(directory=run, epochs=1)
    main(directory=run, epochs=2, settings={"lr": 0.2}, allow=["lr"])
    interrupted_run(run, 3, 2, settings={"lr": 0.2})
    main(directory=run, settings={"lr": 0.2}, allow=["lr"])
    assert TrackedFiles(run).record["drift"] == ["lr was 0.1, is 0.2, from the state after epoch 1 on"]
    assert not (run / "quarantine").exists()

    def loop(track: Callable[..., Any]) -> None:
        main(track, settings={"lr": 0.2})

    found = verify(run, loop)
    assert [str(each.verdict) for each in found.epochs] == ["could not be tested", *["reproducible"] * 2]
    assert "epoch 1: could not be tested: it was trained otherwise: lr was 0.1, is 0.2" in str(found)
    assert_refused(run, r"lr\n    in the run: 0\.2\n    now:        0\.1")


def test_another_kind_of_part_is_refused(tmp_path: Path) -> None:
    run = interrupted_run(tmp_path / "run")
    assert_refused(run, r"parts\.optimizer\n.*torch\.optim\.adam\.Adam\n.*OtherAdam\n", kind=OtherAdam)
    main(directory=run, kind=OtherAdam, allow=["parts.optimizer"])


def test_a_setting_that_is_no_number_is_itself(tmp_path: Path) -> None:
    interrupted_run(tmp_path / "run", settings={"limit": math.nan})
    main(directory=tmp_path / "run", settings={"limit": math.nan})


def test_another_number_of_threads_is_named_and_no_bits_are_claimed(tmp_path: Path) -> None:
    main(directory=tmp_path / "run")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        found = verify(tmp_path / "run", main)
    finally:
        torch.set_num_threads(before)
    assert found.level == "L2"
    assert f"num_threads was {before}, is {before + 1}" in found.reasons


def test_settings_of_precision_are_read_whichever_name_set_them(tmp_path: Path) -> None:
    from fresh_process import call

    outcome = call(describe_with_new_names, output=tmp_path / "output.txt")
    assert outcome.code == 0, outcome.output
    assert "True True bf16 none" in outcome.output


def describe_with_new_names() -> None:
    from clip_hba_behavior.reproducibility.state.numerics import (
        apply_numerics,
        describe_numerics,
        numerics_left_as_they_were,
    )

    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.mkldnn.conv.fp32_precision = "ieee"
    with numerics_left_as_they_were():
        apply_numerics(1, deterministic=True, tf32=False)
        assert not describe_numerics()["tf32"]
    found = describe_numerics()
    names = ("tf32", "cudnn_tf32", "cpu_matmul_precision", "cpu_conv_precision")
    print(*(found[name] for name in names))


# --- what is compared ---------------------------------------------------------------------------------


def test_a_difference_in_the_epoch_under_way_is_found(tmp_path: Path) -> None:
    first, second = interrupted_run(tmp_path / "a"), interrupted_run(tmp_path / "b")
    assert diff(first, second).equal()
    assert diff(first, second).epochs == 3  # 0, 1, and the steps of 2
    ledger = second / "steps.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join([*lines[:-1], lines[-1].replace('"loss": ', '"loss": 1')]))
    found = diff(first, second)
    assert (found.epoch, found.differences[0].step, found.differences[0].name) == (2, 2, "loss")


def test_a_damaged_state_is_not_called_equal(tmp_path: Path) -> None:
    main(directory=tmp_path / "a")
    main(directory=tmp_path / "b")
    path = tmp_path / "b/checkpoints/epoch2.pth"
    content = bytearray(path.read_bytes())
    content[1000:1100] = bytes(100)
    path.write_bytes(content)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert not found.equal()
    assert found.epoch is None
    assert "equal in all of 4 epochs that both have, but for what is damaged\nproblem: B: " in str(found)


@pytest.mark.system
def test_a_long_list_in_a_part_does_not_outgrow_the_ledgers_lines(tmp_path: Path) -> None:
    values = [0.5] * 40_000

    def loop(track: Callable[..., Any] = track) -> None:
        main(track, tmp_path / "run", values=Values(list(values)))

    loop()
    assert max(map(len, (tmp_path / "run/steps.jsonl").read_text().splitlines())) < 2000
    assert str(verify(tmp_path / "run", loop).verdict()) == "reproducible"


_calls: list[int] = []  # state of a module, which is no part and outlives the loop


def test_state_of_a_module_does_not_pass_as_reproducible(tmp_path: Path) -> None:
    def loop(track: Callable[..., Any] = track) -> None:
        def batches(run: Any) -> Any:
            _calls.append(1)
            torch.manual_seed(len(_calls))
            return run.batches(NUM_ROWS, BATCH_SIZE)

        main(track, tmp_path / "run", batches=batches)

    _calls.clear()
    loop()
    found = verify(tmp_path / "run", loop)
    assert [str(each.verdict) for each in found.epochs][1:] == ["not reproducible"] * 2


def test_a_loop_may_end_as_a_script_does(tmp_path: Path) -> None:
    def loop(track: Callable[..., Any] = track, code: Any = 0) -> None:
        main(track, tmp_path / "run")
        sys.exit(code)

    with pytest.raises(SystemExit):
        loop()
    assert str(verify(tmp_path / "run", loop).verdict()) == "reproducible"

    def failing(track: Callable[..., Any]) -> None:
        loop(track, "no data")

    with pytest.raises(BadInputError, match=r"main left by sys\.exit\('no data'\)"):
        verify(tmp_path / "run", failing)


def test_a_lost_closing_line_is_noted_and_is_no_difference(tmp_path: Path) -> None:
    main(directory=tmp_path / "run")
    ledger = tmp_path / "run/steps.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-1]))
    found = verify(tmp_path / "run", main)
    assert [str(each.verdict) for each in found.epochs] == ["reproducible"] * 3
    assert "steps.jsonl lacks the end of epoch 3: its state alone is compared" in str(found)


# --- runs by the rules of an earlier version ------------------------------------------------------------


@pytest.mark.system
def test_an_earlier_versions_run_goes_on_by_its_own_rules(tmp_path: Path) -> None:
    def loop(directory: Path, track: Callable[..., Any] = track, epochs: int = NUM_EPOCHS) -> None:
        torch.manual_seed(0)
        model = nn.ParameterList([torch.ones(2) for _ in range(400)])
        optimizer = torch.optim.Adam(model, 0.1)
        run = track(directory, model=model, optimizer=optimizer)
        for _ in run.epochs(epochs):
            for number, _ in enumerate(run.batches(10, 4)):
                loss = sum((each * (number + 1)).square().sum() for each in model)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.step(loss, (torch.zeros(10 - 4 * number), torch.zeros(1)))
            run.end_epoch({"train_loss": -1.0} if run._rules == 1 else {})

    old, new = tmp_path / "old", tmp_path / "new"
    for directory in (old, new):
        loop(directory, epochs=0)
    record = json.loads((old / "run.json").read_text())
    del record["rules"]
    (old / "run.json").write_text(json.dumps(record))
    for directory in (old, new):
        loop(directory, epochs=2)
        loop(directory)
    ends = [[each for _, each in TrackedFiles(path).ledger.ends()] for path in (old, new)]
    assert [len(each["state"]) > 1000 for each in ends[0]] == [True] * 3
    assert [len(each["state"]) < 10 for each in ends[1]] == [True] * 3
    assert [each["metrics"]["train_loss"] for each in ends[0]] == [-1.0] * 3
    for directory in (old, new):
        found = verify(directory, lambda track, path=directory: loop(path, track))
        assert str(found.verdict()) == "reproducible"


def test_of_a_run_that_thinned_its_states_those_that_are_gone_are_noted(tmp_path: Path) -> None:
    main(directory=tmp_path / "run", epochs=4, keep_checkpoints="last 2")
    main(directory=tmp_path / "run", epochs=5, keep_checkpoints="all")
    found = verify(tmp_path / "run", main_of_five)
    assert str(found.verdict()) == "reproducible"
    assert "was not tested: there is no state after epoch" in str(found)


def main_of_five(track: Callable[..., Any]) -> None:
    main(track, epochs=5)


# --- wrong values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda run: run.step(torch.zeros(3)), r"given a Tensor of shape \(3,\) as the loss"),
        (lambda run: run.step("much"), "given a str as the loss"),
        (lambda run: run.step(None), "given a NoneType as the loss"),
        (lambda run: run.step(1.0, np.array(["a"])), "rows hold an array of <U1; expected numbers"),
        (lambda run: run.step(1.0, {"x": np.array(["a"])}), "rows hold an array of <U1; expected numbers"),
        (lambda run: run.step(10**400), "given a int as the loss"),
        (lambda run: run.end_epoch([1]), "was given a list; expected metrics by name"),
        (lambda run: run.batches(8, 4.0), r"batches\(8, 4\.0\): expected whole numbers"),
        (lambda run: run.end_epoch({1: 2.0}), "a metric cannot be called 1"),
        (lambda run: run.end_epoch({"train_loss": 2.0}), "a metric cannot be called 'train_loss'"),
        (lambda run: run.end_epoch({"x": np.zeros(2)}), r"metric x has shape \(2,\)"),
    ],
)
def test_a_wrong_value_is_named(use: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    run = track(tmp_path / "run", model=nn.Linear(1, 1))

    def loop() -> None:
        for _ in run.epochs(1):
            use(run)

    with pytest.raises(BadInputError, match=message):
        loop()


def test_numpys_integers_are_numbers_of_rows(tmp_path: Path) -> None:
    main(directory=tmp_path / "a", batches=lambda run: run.batches(np.int64(NUM_ROWS), np.int32(BATCH_SIZE)))
    main(directory=tmp_path / "b")
    assert diff(tmp_path / "a", tmp_path / "b").equal()


@pytest.mark.parametrize(
    ("given", "message"),
    [({"settings": ["a"]}, "settings is a list"), ({"keep_checkpoints": None}, "keep_checkpoints is None")],
)
def test_wrong_arguments_are_named(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=message):
        track(tmp_path / "run", model=nn.Linear(1, 1), **given)


@pytest.mark.parametrize("value", ["2", 0, True, 1.5])
def test_only_an_epoch_can_be_accepted(value: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=f"accept_mismatch is {value!r}; expected the number of an epoch"):
        track(tmp_path / "run", accept_mismatch=value, model=nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([3, 1, 2], 3), (torch.zeros(5, 2), 5), (torch.tensor(4), 1), (np.zeros((2, 3)), 2), (np.float64(1), 1),
        ((torch.zeros(6, 2), torch.zeros(6)), 6), ([torch.zeros(6, 2), torch.zeros(6)], 6), ("text", 1), (None, 1),
        ({"x": torch.zeros(7, 2), "y": torch.zeros(7)}, 7), ([("a", "b")], 2), (["a", "b"], 2), ([], 0), ({}, 1),
    ],
)  # fmt: skip
def test_a_batch_weighs_by_its_rows(rows: Any, expected: int) -> None:
    assert num_rows(rows) == expected


def test_rows_of_any_shape_are_recorded(tmp_path: Path) -> None:
    run = track(tmp_path / "run", model=nn.Linear(1, 1))
    for _ in run.epochs(1):
        run.step(1.0, torch.tensor(3))
        run.step(3.0, {"x": np.zeros((3, 2), dtype=">f8"), "y": [np.zeros(3)]})
        assert run.mean_loss == (1 + 3 * 3) / 4
        run.end_epoch()


def test_a_generator_belongs_to_a_run_that_has_begun(tmp_path: Path) -> None:
    run = track(tmp_path / "run", model=nn.Linear(1, 1))
    with pytest.raises(BadInputError, match=r"run\.generator was called before run\.epochs"):
        run.generator("noise")
    for _ in run.epochs(2):
        run.end_epoch()
    then = run.generator("noise").initial_seed()
    again = track(tmp_path / "run", model=nn.Linear(1, 1))
    assert list(again.epochs(2)) == []
    assert again.generator("noise").initial_seed() == then


# --- signals ------------------------------------------------------------------------------------------


def signal_at(epoch: int, step: int) -> Callable[[Any], None]:
    def after_step(run: Any) -> None:
        if (run.epoch + 1, run.step_in_epoch) == (epoch, step):
            os.kill(os.getpid(), signal.SIGTERM)

    return after_step


def own_batches(run: Any) -> list[list[int]]:
    return [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("epoch", [2, NUM_EPOCHS])
def test_a_signal_in_the_last_step_of_an_epoch_is_resumed_to_the_same_bits(epoch: int, tmp_path: Path) -> None:
    """Nothing is left to hand out then, and the streams are the saved ones all the same."""

    def evaluate(run: Any) -> None:
        torch.rand(1)

    main(directory=tmp_path / "complete", evaluate=evaluate)
    with pytest.raises(Interrupted):
        main(directory=tmp_path / "run", evaluate=evaluate, after_step=signal_at(epoch, 2))
    assert (tmp_path / f"run/checkpoints/epoch{epoch}_step3.pth").exists()
    main(directory=tmp_path / "run", evaluate=evaluate)
    assert diff(tmp_path / "complete", tmp_path / "run").equal()
    assert str(verify(tmp_path / "run", lambda track: main(track, evaluate=evaluate)).verdict()) == "reproducible"


def test_a_loop_with_batches_of_its_own_begins_its_epoch_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main(directory=tmp_path / "complete", batches=own_batches)
    with pytest.raises(Interrupted):
        main(directory=tmp_path / "run", batches=own_batches, after_step=signal_at(2, 1))
    assert "after epoch 2, step 2; the epoch begins again at the next start" in capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["epoch0.pth", "epoch1.pth"]
    assert "No state within an epoch is saved" in (tmp_path / "run/log.txt").read_text()
    main(directory=tmp_path / "run", batches=own_batches)
    assert diff(tmp_path / "complete", tmp_path / "run").equal()


def test_a_signal_in_the_last_evaluation_is_answered(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def evaluate(run: Any) -> None:
        if run.epoch + 1 == NUM_EPOCHS:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as left:
        main(directory=tmp_path / "run", evaluate=evaluate)
    assert left.value.code == 75
    assert "stopped by SIGTERM after epoch 3, the last one; the state is saved" in capfd.readouterr().err
    assert main(directory=tmp_path / "run").epoch == NUM_EPOCHS


def test_a_forked_child_can_be_terminated(tmp_path: Path) -> None:
    with stopping_on_signals():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        for number in (signal.SIGINT, signal.SIGUSR1):  # as a terminal or a scheduler sends to all processes
            os.kill(child.pid or 0, number)
        child.join(0.5)
        assert child.is_alive()
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM


def test_handlers_that_another_thread_left_hand_on_what_comes() -> None:
    taken: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: taken.append(number))
    try:
        context = stopping_on_signals()
        request = context.__enter__()
        thread = threading.Thread(target=context.__exit__, args=(None, None, None))
        thread.start()
        thread.join()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (taken, request.name) == ([signal.SIGUSR1], None)
        with stopping_on_signals() as again:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert again.name == "SIGUSR1"
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGUSR1, before)


def test_a_state_of_a_later_format_is_refused_and_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as later:
        later.setattr("clip_hba_behavior.reproducibility.record.tracked.FORMAT_VERSION", 2)
        main(directory=run, epochs=1)
    states = {path: path.read_bytes() for path in run.rglob("*.pth")}
    assert states
    with pytest.raises(BadInputError, match="that this version does not know\n  found:    2\n  expected: 1"):
        main(directory=run, epochs=2)
    assert {path: path.read_bytes() for path in run.rglob("*.pth")} == states
