"""The time of `clip-hba report` for a run on the synthetic data, beside importing torch alone: medians of several.

    python benchmarks/report.py [--epochs 14] [--repeats 3] [--run RUN]

Each report is made by a fresh process into a new directory. Processor seconds are those of the command and of the
process that draws for it; other programs disturb them less than the clock. The parts are told by the command's own
functions, in a process of its own.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

PARTS = {  # module and function
    "clip_hba_behavior.report.run_page": (
        "_read_checkpoints", "Checkpoints", "_dimensions", "_of_the_best", "_over_epochs", "alignment_of",
    ),
    "clip_hba_behavior.report.site": ("render_site",),
}  # fmt: skip


def timed(command: list[str]) -> tuple[float, float]:
    """Return how long a command took: seconds of the clock, and of processors."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def told(module: Any, name: str) -> Iterator[None]:
    """Print the processor seconds of each call of a function, those of this process alone."""
    function: Callable[..., Any] = getattr(module, name)

    def call(*words: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return function(*words, **options)
        finally:
            print(f"  {name.lstrip('_'):<28} {time.process_time() - began:6.2f}")

    setattr(module, name, call)
    try:
        yield
    finally:
        setattr(module, name, function)


def print_parts(run: Path, out: Path) -> None:
    """Make a report in this process, and print the processor seconds of its parts."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with ExitStack() as stack:
        for module, names in PARTS.items():
            for name in names:
                stack.enter_context(told(import_module(module), name))
        print(f"  {'imports':<28} {time.process_time() - began:6.2f}")
        from clip_hba_behavior.report.commands import report

        report([run], out, None, None, None, "auto")
    print(f"  {'all of this process':<28} {time.process_time() - began:6.2f}")
    drawing = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = drawing.ru_utime + drawing.ru_stime - before.ru_utime - before.ru_stime
    print(f"  {'the process that draws':<28} {took:6.2f}")


def main() -> None:
    """Train a run, make its report some times, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", type=Path, help="a run that is there, instead of a new one")
    options = parser.parse_args()
    clip_hba = [sys.executable, "-m", "clip_hba_behavior"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = options.run or folder / "run"
        if options.run is None:
            config = folder / "run.yaml"
            config.write_text(f"epochs: {options.epochs}\n", encoding="utf-8")
            subprocess.run([*clip_hba, "--quiet", "train", str(config), "--run-dir", str(run)], check=True)
        torch, report = [], []
        for number in range(options.repeats):
            torch.append(timed([sys.executable, "-c", "import torch"]))
            report.append(timed([*clip_hba, "report", str(run), "--out", str(folder / f"report{number}")]))
        for what, times in (("import torch", torch), ("report", report)):
            seconds, processors = (statistics.median(each) for each in zip(*times, strict=True))
            print(f"{what:<14} {seconds:6.2f} s, {processors:6.2f} processor seconds")
        ratio = statistics.median(each[0] / its[0] for each, its in zip(report, torch, strict=True))
        print(f"report / import torch: {ratio:.1f}")
        print("processor seconds of the parts:")
        sys.stdout.flush()
        print_parts(run, folder / "parts")


if __name__ == "__main__":
    main()
