"""Kill each framework's run, resume it, compare every bit with an unbroken run; time steps and saves.

    make peers

Prints the tables, and with `--write` puts them in `README.md` beside this file.
"""

import argparse
import multiprocessing
import os
import platform
import re
import runpy
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
RESULTS = "## Results\n"
SHOWN_VERSIONS = ("torch", "lightning", "accelerate", "transformers", "torchdata")


@dataclass(frozen=True)
class Framework:
    """A row of the tables: a script beside this file, and its own options."""

    name: str
    script: str
    options: tuple[str, ...] = ()


FRAMEWORKS = (
    Framework("`track`", "with_track.py"),
    Framework("plain loop, PyTorch's tutorial", "with_nothing.py"),
    Framework("torchdata, random states by hand", "with_torchdata.py"),
    Framework("Accelerate, `skip_first_batches`", "with_accelerate.py"),
    Framework("Accelerate, stateful loader", "with_accelerate.py", ("--stateful",)),
    Framework("Lightning", "with_lightning.py"),
    Framework("Lightning, random states by hand", "with_lightning.py", ("--streams",)),
    Framework("Hugging Face Trainer", "with_trainer.py"),
    Framework("`track` beside Accelerate", "beside_accelerate.py"),
    Framework("`track` beside Lightning", "beside_lightning.py"),
    Framework("`track` beside Trainer", "beside_trainer.py"),
)
PLAIN = FRAMEWORKS[1]


@dataclass(frozen=True)
class Kill:
    """Where a run is killed: one to three steps after its last checkpoint, as the framework counts them."""

    name: str
    step: int
    options: tuple[str, ...] = ()


KILLS = (  # of 4 epochs of 16 steps
    Kill("end of epoch 2", 35),
    Kill("within epoch 3", 43, ("--checkpoint-every", "10")),
    Kill("the same, 2 workers", 43, ("--checkpoint-every", "10", "--workers", "2")),
    Kill("the same, 2 workers and noise", 43, ("--checkpoint-every", "10", "--workers", "2", "--augment")),
)
CHANGES = {
    "one label": ("--changed-data",),
    "learning rate": ("--lr", "1e-3"),
    "batch size": ("--batch-size", "25"),
}


# The server imports the frameworks, which takes seconds, once; each process is a fork of it, and has run nothing.
PROCESSES = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit code, negative for a signal, and what it printed on both streams."""

    code: int
    output: str


def run(framework: Framework, directory: Path, *options: str) -> Outcome:
    """Run a framework's script in a process of its own, with a directory and options as its command line."""
    directory.mkdir(parents=True, exist_ok=True)
    printed = directory / "printed.txt"
    command = [str(HERE / framework.script), str(directory), *framework.options, *options]
    process = PROCESSES.Process(target=run_script, args=(command, str(printed)))
    process.start()
    process.join()
    return Outcome(process.exitcode or 0, printed.read_text())


def run_script(command: list[str], printed: str) -> None:
    """Run a script as this process, its output in a file."""
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # of the loaders' workers, as in a script that is started alone
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def start_server(frameworks: Sequence[Framework]) -> None:
    """Start the server with what these scripts import, this package among it."""
    path = (str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(each for each in path if each)
    PROCESSES.set_forkserver_preload(sorted({Path(each.script).stem for each in frameworks}))


def run_to_end(framework: Framework, directory: Path, *options: str) -> str:
    """Run a script to its end; return what it printed.

    Raises:
        RuntimeError: it ended in another way.
    """
    done = run(framework, directory, *options)
    if done.code:
        raise RuntimeError(f"{framework.script} ended with exit code {done.code}\n{done.output}")
    return done.output


def run_killed(framework: Framework, directory: Path, kill: Kill) -> None:
    """Run a script until it is killed.

    Raises:
        RuntimeError: it ended in another way.
    """
    done = run(framework, directory, *kill.options, "--kill-at", str(kill.step))
    if done.code != -signal.SIGKILL:
        raise RuntimeError(f"{framework.script} was not killed: exit code {done.code}\n{done.output}")


def read_steps(path: Path) -> dict[int, tuple[str, float]]:
    """Return each step's exact loss, and the process's CPU seconds until then."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {int(number): (loss, float(seconds)) for number, loss, seconds in lines}


def compare(framework: Framework, kill: Kill, folder: Path) -> str:
    """Train without a break; train again, be killed and resume; return `equal`, or what differs first."""
    unbroken, killed = folder / "unbroken", folder / "killed"
    run_to_end(framework, unbroken, *kill.options)
    run_killed(framework, killed, kill)
    expected, before = read_steps(unbroken / "steps.txt"), read_steps(killed / "steps.txt")
    if any(before[step][0] != expected[step][0] for step in before):
        return "differs before the kill"
    again = run(framework, killed, *kill.options, "--resume")
    if again.code:
        return f"the resume fails: {(again.output.splitlines() or ['?'])[-1]}"
    resumed = read_steps(killed / "resumed.txt")
    for step in range(min(resumed), max(expected) + 1):
        if step not in resumed:
            return f"step {step} is missing"
        if resumed[step][0] != expected.get(step, ("", 0.0))[0]:
            return f"step {step} differs"
    if max(resumed) > max(expected):
        return f"{max(resumed)} steps, not {max(expected)}"
    same = (unbroken / "final.bin").read_bytes() == (killed / "final.bin").read_bytes()
    return "equal" if same else "the final state differs"


def notice(framework: Framework, folder: Path) -> list[str]:
    """Resume killed runs with something changed; return for each change `refused`, `warned` or `no`."""
    kill = KILLS[1]
    run_killed(framework, folder / "killed", kill)
    shutil.copytree(folder / "killed", folder / "0")
    usual = _without_numbers(run_to_end(framework, folder / "0", *kill.options, "--resume"))
    found = []
    for number, change in enumerate(CHANGES.values(), start=1):
        directory = folder / str(number)
        shutil.copytree(folder / "killed", directory)
        done = run(framework, directory, *kill.options, *change, "--resume")
        new = _without_numbers(done.output) - usual
        found.append("refused" if done.code else "warned" if new else "no")
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # only some frameworks were asked for
        return "not installed"


def _without_numbers(text: str) -> set[str]:
    return {re.sub(r"[\d.]+", "", line) for line in text.splitlines()}


def seconds_of(framework: Framework, directory: Path) -> tuple[float, float]:
    """Return the median CPU seconds of a step, and what a save adds to one, over one run."""
    run_to_end(framework, directory, "--checkpoint-every", "8", "--epochs", "8")
    steps = read_steps(directory / "steps.txt")
    took = {step: steps[step][1] - steps[step - 1][1] for step in steps if step - 1 in steps}
    # a save within an epoch falls into the time before or after its step is recorded, as the framework has it
    usual = statistics.median(seconds for step, seconds in took.items() if step % 8 > 1)
    at = statistics.median(seconds for step, seconds in took.items() if step % 16 == 8)
    after = statistics.median(seconds for step, seconds in took.items() if step % 16 == 9)
    return usual, max(at, after) - usual


def time_frameworks(frameworks: Sequence[Framework], rounds: int, folder: Path) -> dict[str, tuple[float, ...]]:
    """Run all in turn, several times; return medians: ms of a step and of a save, and both as ratios to plain."""
    measured: dict[str, list[tuple[float, ...]]] = {each.name: [] for each in frameworks}
    for number in range(rounds):
        step, save = seconds_of(PLAIN, folder / f"{number}-plain")
        for index, each in enumerate(frameworks):
            own = (step, save) if each == PLAIN else seconds_of(each, folder / f"{number}-{index}")
            measured[each.name].append((own[0] * 1e3, own[0] / step, own[1] * 1e3, own[1] / save))
    return {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True))
        for name, rows in measured.items()
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> int:
    """Run all, print the tables; return 1 if `track` differs anywhere."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", help="scripts, such as with_track.py; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="alternations of the timing; 0: none")
    parser.add_argument("--jobs", type=int, default=1, help="comparisons at the same time; the timing is alone")
    parser.add_argument("--write", action="store_true", help=f"put the tables in {README.name}")
    arguments = parser.parse_args()
    chosen = [each for each in FRAMEWORKS if not arguments.only or each.script in arguments.only]
    if not chosen:
        parser.error(f"--only {' '.join(arguments.only)}: expected some of {[each.script for each in FRAMEWORKS]}")
    start_server([*chosen, PLAIN])
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = Path(temporary)
        results = [
            [pool.submit(compare, each, kill, folder / f"{index}-{number}") for number, kill in enumerate(KILLS)]
            for index, each in enumerate(chosen)
        ]
        notices = [pool.submit(notice, each, folder / f"{index}-notice") for index, each in enumerate(chosen)]
        outcomes = []
        for each, row in zip(chosen, results, strict=True):  # printed as they come
            outcomes.append([future.result() for future in row])
            print(each.name, *outcomes[-1], sep=" | ", flush=True)
        rows = [[each.name, *row] for each, row in zip(chosen, outcomes, strict=True)]
        text = "Resumed after SIGKILL, beside the run that was never killed:\n\n"
        text += table(["", *(kill.name for kill in KILLS)], rows)
        print(text, flush=True)
        noticed = [[each.name, *future.result()] for each, future in zip(chosen, notices, strict=True)]
        print(noticed, flush=True)
        text += "\nWas it noticed at the resume that this had changed?\n\n" + table(["", *CHANGES], noticed)
        if arguments.rounds:
            times = time_frameworks(chosen, arguments.rounds, folder)
            text += "\nThe CPU time of a step, and what a save adds:\n\n" + table(
                ["", "step, ms", "to plain", "save, ms", "to plain"],
                [[name, *(f"{value:.2f}" for value in values)] for name, values in times.items()],
            )
    shown = ", ".join(f"{name} {_version(name)}" for name in SHOWN_VERSIONS)
    text = (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPU cores ({platform.machine()}), one thread, "
        f"Python {platform.python_version()}, {shown}.\n\n{text}"
    )
    print(text)
    if arguments.write:
        content = README.read_text(encoding="utf-8")
        README.write_text(content.partition(RESULTS)[0] + RESULTS + "\n" + text, encoding="utf-8")
    ours = [row for each, row in zip(chosen, outcomes, strict=True) if "`track`" in each.name]
    return int(any(outcome != "equal" for row in ours for outcome in row))


if __name__ == "__main__":
    sys.exit(main())
