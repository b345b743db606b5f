"""Train the run of portable_anywhere.py under variations, and print a table of which digests are equal.

    python scripts/portable_table.py [--small] [--only WORD] [--python NAME=COMMAND ...]

Every row is a fresh process, or several. The second column compares a run in portable arithmetic with `GOLDEN`,
the third one in native arithmetic with native's first row. `--python` adds a row with another interpreter, such as
`'Haswell=qemu-x86_64 -cpu Haswell .venv/bin/python'` or `'NumPy 2.1=env PYTHONPATH=DIRECTORY python'`; it gets one
thread. `--only` leaves the rows whose names hold a word. Exit code 1 if a portable digest is another one.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SCRIPT = Path(__file__).with_name("portable_anywhere.py")
_LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


@dataclass(frozen=True)
class Variation:
    """How a run is started: with which command, options and environment variables."""

    name: str
    options: Sequence[str] = ()
    variables: dict[str, str] = field(default_factory=dict)
    python: Sequence[str] = (sys.executable,)
    has_native: bool = True


FIRST = Variation("one thread")
_NOT_HERE = "not on this processor"
_VARIABLES = (
    *("ATEN_CPU_CAPABILITY=default", "ATEN_CPU_CAPABILITY=avx2", "ATEN_CPU_CAPABILITY=avx512"),
    *("MKL_CBWR=COMPATIBLE", "MKL_CBWR=SSE4_2", "MKL_ENABLE_INSTRUCTIONS=SSE4_2"),
    *("ONEDNN_MAX_CPU_ISA=SSE41", "ONEDNN_MAX_CPU_ISA=AVX"),
    *("OPENBLAS_CORETYPE=Nehalem", "NPY_DISABLE_CPU_FEATURES=X86_V3"),
)
VARIATIONS = (
    FIRST,
    *(Variation(f"{each} threads", ("--threads", each)) for each in ("2", "3")),
    *(Variation(each, variables=dict([each.split("=")])) for each in _VARIABLES),
    *(Variation(f"engine {each}", ("--engine", each), has_native=False) for each in ("float64", "int8")),
    *(Variation(f"chunks of {each} images", ("--chunk", each)) for each in ("1", "7", "64")),
    *(Variation(f"evaluation of {each} images", ("--batch", each)) for each in ("1", "7")),
    *(Variation(f"{each} processes", python=(*_LAUNCHER, each), has_native=False) for each in "234"),
)
INTERRUPTED = Variation(
    "3 processes, interrupted within an epoch; then 2", python=(*_LAUNCHER, "3"), has_native=False
)


def main() -> int:
    """Print the table; return 0 if all portable digests are equal, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=COMMAND")
    arguments = parser.parse_args()
    given = (each.partition("=") for each in arguments.python)
    others = [Variation(name, python=shlex.split(command)) for name, _, command in given]
    chosen = [each for each in (*VARIATIONS, *others, INTERRUPTED) if arguments.only in each.name]
    case = ["--small"] if arguments.small else []
    native = [*case, "--arithmetic", "native"]
    expected = ""
    if any(each.has_native for each in chosen):
        expected = _run(FIRST, native).stdout.splitlines()[-1]  # after what the run tells
    print("| variation | portable | native |\n|---|---|---|", flush=True)
    all_equal = True
    for variation in chosen:
        found = _resumed(case) if variation is INTERRUPTED else _verdict(_run(variation, case))
        contrast = _verdict(_run(variation, [*native, "--expect", expected])) if variation.has_native else "-"
        print(f"| {variation.name} | {found} | {contrast} |", flush=True)
        all_equal = all_equal and found in ("equal", _NOT_HERE)
    return 0 if all_equal else 1


def _command(variation: Variation, options: Sequence[str]) -> list[str]:
    return [*variation.python, str(_SCRIPT), *variation.options, *options]


def _run(variation: Variation, options: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run to the end, with caches of its own."""
    return subprocess.run(
        _command(variation, options),
        env={**os.environ, "OMP_NUM_THREADS": "1", **variation.variables},
        capture_output=True,
        text=True,
        check=False,
    )


def _verdict(ended: "subprocess.CompletedProcess[str]") -> str:
    if ended.returncode == 0:
        return "equal"
    if "the run's digest differs" in ended.stderr:
        return "different"
    if ended.returncode == -signal.SIGILL:
        return _NOT_HERE
    if ended.returncode < 0:
        return f"ended by {signal.Signals(-ended.returncode).name}"
    return f"failed: {(ended.stderr.strip() or 'no message').splitlines()[-1]}"


def _resumed(case: Sequence[str]) -> str:
    """Interrupt three processes after a step, resume with two, and compare."""
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory, "run")
        started = subprocess.Popen(
            _command(INTERRUPTED, [*case, "--keep", directory]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ledger = run / "steps.jsonl"
        while started.poll() is None and not (ledger.exists() and '"step": 1,' in ledger.read_text()):
            time.sleep(0.01)
        started.terminate()
        started.wait()
        if not any((run / "step_checkpoints").glob("*")):
            return "failed: not interrupted within an epoch"
        resumed = subprocess.run(
            [*_LAUNCHER, "2", "-m", "clip_hba_behavior", "resume", str(run)],
            capture_output=True,
            text=True,
            check=False,
        )
        return _verdict(resumed if resumed.returncode else _run(FIRST, [*case, "--digest", str(run)]))


if __name__ == "__main__":
    sys.exit(main())
