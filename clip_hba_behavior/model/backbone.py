"""The pretrained CLIP: found by its name, loaded completely, in float32."""

from pathlib import Path

from clip_hba_behavior.model.backbone_names import resolve_backbone as resolve_backbone
from clip_hba_behavior.model.clip import Clip
from clip_hba_behavior.model.hugging_face import load_hugging_face
from clip_hba_behavior.model.openai_format import load_openai_file


def load_backbone(name: str, trust_backbone_file: bool = False) -> Clip:
    """Load a ViT CLIP in float32 on the CPU.

    Args:
        name: a directory in Hugging Face format, a name on the Hugging Face hub, one of OpenAI's
            names (`ViT-L/14`), or one of OpenAI's `.pt` files.
        trust_backbone_file: see `load_openai_file`.

    Raises:
        BadInputError: it is not there, is no CLIP, or lacks weights.
    """
    name = resolve_backbone(name)
    path = Path(name).expanduser()
    if path.is_file():
        return load_openai_file(path, trust_backbone_file)
    return load_hugging_face(str(path) if path.is_dir() else name)
