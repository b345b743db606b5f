"""What a `DataLoader` draws from torch's global generator, and the order that comes of it.

An epoch of the earlier pipeline draws four 64-bit integers: the training loader's base seed, the seed
of its sampler, then the base seeds of the test loader and of the RSA loader. Those three base seeds go
unused without worker processes, but each moves the generator on, and with it every later order.
"""

import torch


def draw_loader_seed() -> int:
    """Draw one loader's base seed, as every `DataLoader` iterator does when it is made."""
    return int(torch.empty((), dtype=torch.int64).random_().item())


def draw_epoch_order(num_train: int) -> torch.Tensor:
    """Draw an epoch's order as `DataLoader(shuffle=True, num_workers=0)` does.

    Args:
        num_train: size of the train subset.

    Returns:
        `[num_train] int64`, positions inside the train subset.
    """
    draw_loader_seed()
    sampler = torch.Generator()
    sampler.manual_seed(draw_loader_seed())
    return torch.randperm(num_train, generator=sampler)
