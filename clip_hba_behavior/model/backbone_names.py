"""What a configuration may call a backbone; a name that can be none is told without torch, and without the hub."""

import difflib
import re
from pathlib import Path

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.untrusted import shown

# OpenAI's names for its ViT models, and where Hugging Face keeps the same weights.
HUB_NAMES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
# Meant as one of OpenAI's names, its ResNets' too; nothing on the hub is called so.
_LIKE_OPENAIS = re.compile(r"vit[-_ ].*|vit[a-z]?\d.*|rn\d+(x\d+)?", re.IGNORECASE)


def resolve_backbone(name: str) -> str:
    """Turn OpenAI's name of a model into its downloaded `.pt` file, if there is one, or its hub name.

    Raises:
        BadInputError: no file or directory is there, and the hub cannot have a model of that name.
    """
    if name in HUB_NAMES:
        downloaded = Path.home() / ".cache" / "clip" / (name.replace("/", "-").replace("@", "-") + ".pt")
        return str(downloaded) if downloaded.is_file() else HUB_NAMES[name]
    if _is_there(name):
        return name
    if _LIKE_OPENAIS.fullmatch(name):
        near = difflib.get_close_matches(name.lower(), [each.lower() for each in HUB_NAMES], n=1, cutoff=0.5)
        meant = [each for each in HUB_NAMES if each.lower() in near]
        raise BadInputError(
            f"there is no backbone {shown(name)}" + (f"; did you mean {meant[0]}?" if meant else "") + "\n"
            f"  OpenAI's names of vision transformers are {', '.join(HUB_NAMES)}\n"
            "  give one of these, a directory in Hugging Face format, a name on its hub, or a .pt file"
        )
    if is_a_path(name):
        raise BadInputError(f"there is no backbone {name}: neither a directory nor a .pt file")
    return name


def refuse_no_tokenizer(name: str) -> None:
    """Return if a tokenizer may be called so.

    Raises:
        BadInputError: no directory is there, and the hub cannot have a tokenizer of that name.
    """
    if _is_there(name):
        return
    if _LIKE_OPENAIS.fullmatch(name):
        raise BadInputError(
            f"there is no tokenizer {shown(name)}: OpenAI's names are for backbones\n"
            f"  give a directory, or a name on the hub such as {HUB_NAMES.get(name, HUB_NAMES['ViT-L/14'])}"
        )
    if is_a_path(name):
        raise BadInputError(
            f"tokenizer {name} could not be loaded: there is no such directory\n"
            "  name a directory in Hugging Face format or a model on the hub"
        )


def _is_there(name: str) -> bool:
    return Path(name).expanduser().exists()


def is_a_path(name: str) -> bool:
    """Whether a name is a path's, and not one of the hub."""
    return name.count("/") > 1 or "\\" in name or name.startswith((".", "/", "~"))
