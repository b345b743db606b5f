"""Print a digest for each exact function: equal on all machines, or the package does not hold what it promises.

    python scripts/exact_anywhere.py [--engine float64|int8|auto] [--device cpu] [--threads 1] [--expect FILE]

One line for each function. With `--expect` they are compared with the lines of a file, from another machine or
another setting, such as `ATEN_CPU_CAPABILITY=default`; exit code 1 if one differs. To emulate a processor:
`OMP_NUM_THREADS=1 qemu-x86_64 -cpu Haswell python scripts/exact_anywhere.py`.
"""

import argparse
import itertools
import sys
from pathlib import Path

import torch

from clip_hba_behavior import exact


def main() -> int:
    """Print the digests and compare them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("float64", "int8", "auto"), default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--expect", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    exact.use_engine(arguments.engine)
    lines = [f"{digest}  {name}" for name, digest in exact.digests(arguments.device).items()]
    print("\n".join(lines))
    if arguments.expect is None:
        return 0
    expected = arguments.expect.read_text(encoding="utf-8").splitlines()
    different = [
        f"  found:    {found or 'nothing'}\n  expected: {other or 'nothing'}"
        for found, other in itertools.zip_longest(lines, expected)
        if found != other
    ]
    if different:
        print(f"the digests differ from {arguments.expect}\n" + "\n".join(different), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
