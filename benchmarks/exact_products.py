"""Time the exact products beside torch's own float32 products, in turn; medians.

    python benchmarks/exact_products.py [--threads 1] [--repeats 7]

The first sizes are those of the MLP of ViT-B/32 for a batch of 64. The weights are frozen: rounded once. With one
thread the processor's time is measured, which other programs disturb less than the clock's.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from clip_hba_behavior import exact

SIZES = ((64 * 50, 768, 3072), (64 * 50, 3072, 768), (64, 768, 512), (32, 64, 64))


def medians(functions: dict[str, Callable[[], torch.Tensor]], repeats: int) -> dict[str, float]:
    """Call the functions in turn; return the median seconds of each."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            began = clock()
            function()
            seconds[name].append(clock() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    """Print a line for each size and function."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--int8", action="store_true", help="also where int8 products are not exact or take seconds"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    for rows, inner, outer in SIZES:
        inputs = torch.randn(rows, inner, generator=generator)
        weight, bias = torch.randn(outer, inner, generator=generator), torch.randn(outer, generator=generator)
        frozen = exact.FrozenWeight(weight)
        wide, wide_weight = inputs.double(), weight.double()

        def with_engine(engine: exact.Choice, inputs: torch.Tensor, frozen: exact.FrozenWeight) -> torch.Tensor:
            with exact.use_engine(engine):
                return exact.linear(inputs, frozen)

        functions: dict[str, Callable[[], torch.Tensor]] = {
            "float32": lambda a=inputs, b=weight, c=bias: functional.linear(a, b, c),  # type: ignore[misc]
            "float64": lambda a=wide, b=wide_weight: functional.linear(a, b),  # type: ignore[misc]
            "exact, float64": lambda a=inputs, b=frozen: with_engine("float64", a, b),  # type: ignore[misc]
        }
        if arguments.int8:
            functions["exact, int8"] = lambda a=inputs, b=frozen: with_engine("int8", a, b)  # type: ignore[misc]
        taken = medians(functions, arguments.repeats)
        for name, seconds in taken.items():
            ratio = seconds / taken["float32"]
            print(f"{rows:5} x {inner:4} x {outer:4}  {name:16} {seconds * 1000:9.2f} ms  {ratio:6.2f} of float32")
    activation = torch.randn(64 * 50, 3072, generator=generator)
    pointwise: dict[str, Callable[[], torch.Tensor]] = {
        "float32": lambda: activation * torch.sigmoid(1.702 * activation),
        "exact": lambda: exact.quick_gelu(activation),
    }
    for name, seconds in medians(pointwise, arguments.repeats).items():
        print(f"quick_gelu  {name:8} {seconds * 1e9 / activation.numel():6.2f} ns an element")


if __name__ == "__main__":
    main()
