"""OpenAI's files of weights that mean harm."""

import pickle
import zipfile
from typing import Any

import torch

from hostile.checkpoints import archive_of, directory_of_a_gigabyte, holding, saved, tensor
from hostile.files import CANARY, Build, RunsCode, bytes_of


def clip_weights(**changes: Any) -> dict[str, Any]:
    def block(prefix: str) -> dict[str, Any]:
        return {f"{prefix}.resblocks.0.mlp.c_fc.weight": torch.ones(256, 64)}

    return {
        "visual.conv1.weight": torch.ones(64, 3, 8, 8),
        "visual.positional_embedding": torch.ones(5, 64),
        "visual.proj": torch.ones(64, 8),
        "token_embedding.weight": torch.ones(10, 64),
        "positional_embedding": torch.ones(7, 64),
        "text_projection": torch.ones(64, 8),
        "logit_scale": torch.ones(()),
        **block("visual.transformer"),
        **block("transformer"),
    } | {key.replace("__", "."): value for key, value in changes.items()}


def script() -> bytes:
    """A TorchScript archive with code, and pickles that would run some, too."""
    evil = pickle.dumps(RunsCode(), 2)
    code = f"def __setstate__(self, x):\n  return open('{CANARY}', 'w')\n".encode()
    return archive_of(evil, **{"constants.pkl": evil, "code/__torch__.py": code})


def tall_tower() -> bytes:
    one = torch.ones(1)
    blocks = {f"visual__transformer__resblocks__{n}__ln_1__bias": one for n in range(5000)}
    return saved(clip_weights(**blocks))()


HOLDS_NONE = "holds no OpenAI CLIP"
BACKBONES: list[tuple[str, Build]] = [
    ("it carries code", bytes_of("script", script)),
    ("names __builtin__ exec", bytes_of("code", saved(clip_weights(x=RunsCode())))),
    ("claims more", bytes_of("claim_2_40", holding(x=tensor((2**40,), (1,), 2**40)))),
    ("compressed records", bytes_of("zip_bomb", lambda: archive_of(bytes(50_000_000), zipfile.ZIP_DEFLATED))),
    ("is no CLIP weight file, or a torn one", directory_of_a_gigabyte),
    (HOLDS_NONE, bytes_of("tall_tower", tall_tower)),
    ("is empty", bytes_of("empty_weight", saved(clip_weights(positional_embedding=torch.ones(2**40, 0))))),
    ("is empty", bytes_of("no_width", saved(clip_weights(visual__conv1__weight=torch.ones(0, 3, 8, 8))))),
    (HOLDS_NONE, bytes_of("narrow", saved(clip_weights(visual__conv1__weight=torch.ones(1, 3, 8, 8))))),
    (HOLDS_NONE, bytes_of("number_as_weight", saved(clip_weights(visual__proj=5)))),
    (HOLDS_NONE, bytes_of("scalar", saved(clip_weights(token_embedding__weight=torch.ones(()))))),
    (HOLDS_NONE, bytes_of("cube", saved(clip_weights(visual__proj=torch.ones(2, 3, 4))))),
    (HOLDS_NONE, bytes_of("torn_model", saved(clip_weights()))),
]
