"""Where the time of a training step goes, by operation: torch's profiler, its operations put into groups."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

# Self times of the operations whose names are these, so that none counts twice.
GROUPS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "GELU": ("sigmoid", "silu_backward", "_QuickGELU", "_QuickGELUBackward"),
    "layer norm": ("native_layer_norm", "native_layer_norm_backward"),
    "softmax": ("_softmax", "_safe_softmax", "_softmax_backward_data"),
    "DoRA's norms": ("linalg_vector_norm", "norm", "NormBackward1", "LinalgVectorNormBackward0"),
    "optimizer": ("_fused_adamw_", "_foreach_add_"),
    "sums and products by element": (
        "add",
        "add_",
        "mul",
        "mul_",
        "div",
        "sum",
        "neg",
        "pow",
        "mse_loss",
        "mse_loss_backward",
    ),
    "memory: copies, zeros, gathers": ("copy_", "fill_", "zero_", "zeros", "index", "cat", "_index_put_impl_"),
}
OTHERS = "everything else"


def step_profile(step: Callable[[], object], num_steps: int, device: torch.device) -> dict[str, float]:
    """Return the seconds of each group in one step, the largest first.

    Args:
        step: does a step.
        num_steps: how many to do.
        device: where: of a GPU its own time counts.
    """
    is_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(num_steps):
            step()
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    found = dict.fromkeys([*GROUPS, OTHERS], 0.0)
    for each in profiler.key_averages():
        microseconds = each.self_device_time_total if is_gpu else each.self_cpu_time_total
        group = group_of.get(each.key.rpartition("::")[2].rpartition(": ")[2], OTHERS)
        found[group] += microseconds / 1e6 / num_steps
    return dict(sorted(found.items(), key=lambda item: -item[1]))
