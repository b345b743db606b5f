"""Pre-trains the small CLIP that comes with the package, on freshly drawn pictures and captions.

Run from the repository's root:
`python scripts/pretrain_standin_clip.py --output clip_hba_behavior/data/standin_clip`.
One thread and fixed seeds: the same machine and versions give the same weights again.
"""

import argparse
import hashlib
import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from clip_hba_behavior.data.drawing import colour_and_shape
from clip_hba_behavior.data.standin import draw_image, draw_latents

IMAGE_SIZE = 64
CONTEXT_LENGTH = 32
VOCABULARY_SIZE = 640
LATENT_SEED = 2**40  # far from the small seeds of data sets, so that no data set's image was seen here
LOGIT_SCALE = 100.0  # where CLIP's own training ends; times a cosine it covers the targets' 0 to 100
IMAGE_MEAN = (0.52997664, 0.48070561, 0.41943838)
IMAGE_STD = (0.27608301, 0.26593025, 0.28238822)

FRAMES = (
    "{}",
    "a picture of {}",
    "a pattern of {}",
    "{} on a dark ground",
    "there are {} here",
    "someone drew {}",
    "mostly {}",
    "a board full of {}",
)
LARGE = ("many", "lots of", "plenty of", "a crowd of")
SMALL = ("some", "a few", "several")


def write_caption(latent: NDArray[np.float64], generator: np.random.Generator) -> str:
    """Names some of the strongest attributes of one picture, in varied words.

    Args:
        latent: `[66]`.
        generator: Chooses the attributes and the words.

    Returns:
        Such as "a picture of many red circles, blue rings and some lime crosses".
    """
    strongest = np.argsort(-latent, kind="stable")[:8]
    weights = latent[strongest] / latent[strongest].sum()
    chosen = generator.choice(strongest, size=generator.integers(1, 5), replace=False, p=weights)
    phrases = []
    for dimension in chosen:
        phrase = " ".join(colour_and_shape(int(dimension)))
        if generator.random() < 0.4:
            amount = LARGE if latent[dimension] > 30 else SMALL
            phrase = f"{generator.choice(amount)} {phrase}"
        phrases.append(phrase)
    listing = ", ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else phrases[0]
    return str(generator.choice(FRAMES)).format(listing)


def train_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Makes a byte-level BPE tokenizer of CLIP's kind with its own small vocabulary.

    Args:
        captions: What to learn the merges from.

    Returns:
        A tokenizer for any text: 256 bytes, the same ending a word, merges, start and end token, in CLIP's order.
    """
    splitting = CLIPTokenizer().backend_tokenizer
    trainee = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trainee.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trainee.pre_tokenizer = splitting.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainee.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = [tuple(merge) for merge in json.loads(trainee.to_str())["model"]["merges"]]
    single = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    merged = [left + right for left, right in merges][: VOCABULARY_SIZE - len(single) - 2]
    tokens = [*single, *merged, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges[: len(merged)],
        model_max_length=CONTEXT_LENGTH,
    )


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Builds CLIP's plain structure in miniature, with weights from torch's global generator."""
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
    }
    text = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 1,
        "num_hidden_layers": 4,
        "max_position_embeddings": CONTEXT_LENGTH,
        "projection_dim": 64,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 2,
        "num_hidden_layers": 5,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "projection_dim": 64,
    }
    config = CLIPConfig(text_config={**text, **tokens}, vision_config=vision, projection_dim=64)
    config.logit_scale_init_value = math.log(LOGIT_SCALE)
    return CLIPModel(config)


def draw_batch(
    first: int, batch_size: int, latents: NDArray[np.float64], seed: int, tokenizer: CLIPTokenizer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws pictures `[batch, 3, 64, 64] float32` and captions `[batch, longest] int64`, padded at the end."""
    rows = range(first, first + batch_size)
    pixels = np.stack([np.asarray(draw_image(latents[row], IMAGE_SIZE)) for row in rows])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    images = (images - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)
    captions = [
        write_caption(latents[row], np.random.Generator(np.random.Philox(key=[seed, row]))) for row in rows
    ]
    tokens = tokenizer(captions, padding=True, truncation=True, max_length=CONTEXT_LENGTH, return_tensors="pt")
    return images, tokens["input_ids"]


def contrastive_loss(
    model: CLIPModel, images: torch.Tensor, tokens: torch.Tensor, scale: float
) -> tuple[torch.Tensor, float]:
    """Computes CLIP's symmetric cross entropy and the share of images that find their own caption."""
    image_features = functional.normalize(
        model.visual_projection(model.vision_model(pixel_values=images).pooler_output)
    )
    text_features = functional.normalize(model.text_projection(model.text_model(input_ids=tokens).pooler_output))
    logits = scale * image_features @ text_features.T
    own = torch.arange(len(images))
    loss = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(dim=1) == own).float().mean().item()


def main() -> None:
    """Trains, saves and prints what the README of the weights needs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="directory to write in Hugging Face format")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)
    started = time.monotonic()
    latents = draw_latents(arguments.steps * arguments.batch_size, LATENT_SEED + arguments.seed)
    tokenizer = train_tokenizer(
        [
            write_caption(row, np.random.Generator(np.random.Philox(key=[arguments.seed, index])))
            for index, row in enumerate(latents[:4000])
        ]
    )
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.05)
    model.logit_scale.requires_grad_(False)
    running = math.nan
    for step in range(arguments.steps):
        warm_up = min(1.0, (step + 1) / 50)
        decay = 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * warm_up * decay
        # A scale of 100 from the start does not learn; CLIP's own starts at 14 and grows to 100.
        scale = LOGIT_SCALE * min(1.0, 0.14 + 0.86 * step / (0.5 * arguments.steps))
        images, tokens = draw_batch(
            step * arguments.batch_size, arguments.batch_size, latents, arguments.seed, tokenizer
        )
        loss, accuracy = contrastive_loss(model, images, tokens, scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running = loss.item() if math.isnan(running) else 0.95 * running + 0.05 * loss.item()
        if step % 25 == 0 or step + 1 == arguments.steps:
            print(
                f"step {step + 1}/{arguments.steps}  loss {running:.4f}  own caption found {accuracy:.2f}"
                f"  {time.monotonic() - started:.0f} s",
                flush=True,
            )

    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    digest = hashlib.sha256((arguments.output / "model.safetensors").read_bytes()).hexdigest()
    print(f"final loss {running:.4f}\nsha256 of model.safetensors {digest}")
    print(
        f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    main()
