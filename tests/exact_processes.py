"""Train a small network in one process, then in several with uneven shares of the rows; print a digest for each.

python tests/exact_processes.py FOLDER
"""

import os
import sys
from pathlib import Path

import torch
from torch import distributed

from clip_hba_behavior import exact
from clip_hba_behavior.exact.digests import digest, numbers

ROWS = 1100  # more than one slice of `exact.cross`


class AllReduce:
    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        distributed.all_reduce(values, distributed.ReduceOp.SUM)
        return values


def train(inputs: torch.Tensor, targets: torch.Tensor, **reduce: exact.Reduce) -> str:
    shapes = ((24, 16), (24,), (16,), (16,), (8, 24))
    parameters = [(numbers(*shape, seed=seed) * 0.05).requires_grad_() for seed, shape in enumerate(shapes)]
    weight, bias, gain, shift, readout = parameters
    optimizer = exact.AdamW(parameters, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        hidden = exact.linear(exact.layer_norm(inputs, gain, shift, **reduce), weight, bias, **reduce)
        loss = exact.mse_loss(exact.linear(exact.quick_gelu(hidden), readout, **reduce), targets, **reduce)
        loss.backward()
        optimizer.step()
    return digest(loss, *parameters)


def train_in_processes(folder: Path, inputs: torch.Tensor, targets: torch.Tensor, shares: list[int]) -> None:
    children = []
    for rank in range(len(shares)):
        child = os.fork()
        if child == 0:
            store = (folder / f"store{len(shares)}").as_uri()
            distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=len(shares))
            mine = train(inputs.split(shares)[rank], targets.split(shares)[rank], reduce=AllReduce())
            (folder / f"{len(shares)}-{rank}").write_text(mine)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    for rank in range(len(shares)):
        print((folder / f"{len(shares)}-{rank}").read_text())


if __name__ == "__main__":
    torch.set_num_threads(1)
    exact.AdamW(
        [torch.zeros(1, requires_grad=True)]
    )  # torch's first optimizer imports much: once, not in each process
    inputs, targets = numbers(ROWS, 16, seed=50), numbers(ROWS, 8, seed=51)
    train_in_processes(Path(sys.argv[1]), inputs, targets, [1, 1052, 47])
    train_in_processes(Path(sys.argv[1]), inputs, targets, [ROWS - 400, 400])
    print(train(inputs, targets))
