"""What a `DataLoader` draws, and the order of an epoch that comes of it.

Every iterator that a loader makes draws a base seed, which goes unused without worker processes but
moves the generator on, and with it every later order. Which draws there are is one of three rules:

- `earlier`: all from torch's global generator, four 64-bit integers an epoch: the train loader's base
  seed, the seed of its sampler, the test loader's and the RSA loader's base seeds. The order is the first
  permutation (`torch.randperm`) of a generator with the sampler's seed.
- `later`: the train loader has a generator of its own, seeded with the run's seed once. Each epoch draws
  from it a base seed, the order, and one more permutation, of which the sampler keeps nothing. The
  global generator gives the base seeds of the test and the RSA loader.
- `later_persistent`: the same, but the workers live on, and so does each loader's first iterator: it
  alone draws a base seed, the train and RSA loaders' in epoch 1, the test loader's before it.

Nothing else draws from the train loader's own generator, so under the later rules an order is a pure
function of seed and epoch, and there is no state to keep.
"""

import torch

from clip_hba_behavior.config import BatchOrder


def epoch_order(rule: BatchOrder, seed: int, epoch: int, num_train: int) -> torch.Tensor:
    """Return an epoch's order; under `earlier`, draw it from the global generator.

    Args:
        rule: whose draws to follow.
        seed: the run's; it and `epoch` count under the later rules only.
        epoch: counted from 1.
        num_train: size of the train subset.

    Returns:
        `[num_train] int64`, positions inside the train subset.
    """
    if rule == "earlier":
        return draw_epoch_order(num_train)
    generator = torch.Generator().manual_seed(seed)
    draw_loader_seed(generator)
    for _ in range(epoch - 1):
        torch.randperm(num_train, generator=generator)
        torch.randperm(num_train, generator=generator)  # RandomSampler's last: it keeps `[:0]` of it
        if rule == "later":
            draw_loader_seed(generator)
    return torch.randperm(num_train, generator=generator)


def draw_epoch_order(num_train: int) -> torch.Tensor:
    """Draw an epoch's order from the global generator, as `DataLoader(shuffle=True)` does.

    Returns:
        `[num_train] int64`, positions inside the train subset.
    """
    draw_loader_seed()
    sampler = torch.Generator()
    sampler.manual_seed(draw_loader_seed())
    return torch.randperm(num_train, generator=sampler)


def draw_evaluation_seeds(rule: BatchOrder, epoch: int) -> None:
    """Draw what the test and RSA loaders draw from the global generator at an epoch's end.

    Before epoch 1 the initial model is evaluated; that draws one loader seed under every rule.
    """
    if rule != "later_persistent":
        draw_loader_seed()  # the test loader's iterator draws; without it the next order shifts
    if rule != "later_persistent" or epoch == 1:
        draw_loader_seed()  # and the RSA loader's


def draw_loader_seed(generator: torch.Generator | None = None) -> int:
    """Draw one loader's base seed, as every `DataLoader` iterator does when it is made.

    It is `torch.empty((), dtype=torch.int64).random_()`.
    """
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())
