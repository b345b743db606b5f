"""Pre-trains the small CLIP that comes with the package, on freshly drawn pictures and captions.

Run from the repository's root:
`python scripts/pretrain_standin_clip.py --output clip_hba_behavior/data/standin_clip`.
One thread and fixed seeds: the same machine and versions give the same weights again.

Two untrained towers cannot teach each other in minutes: both give one feature for everything. So they take
turns.
1. The image tower and one free vector for each attribute learn, for every picture and every attribute, how well
   they fit: 100 * cosine is to be part of the amount shown. In the last quarter the ground counts as well: each
   attribute gets a habit of going with some grounds and not with others. The targets have no such habit, so
   fine-tuning has something to unlearn, and something to build on.
2. The text tower learns, by CLIP's contrastive loss, to tell from a caption which attribute's vector it names.
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

from clip_hba_behavior.data.drawing import GROUNDS, NUM_DIMENSIONS, colour_and_shape, ground_of
from clip_hba_behavior.data.standin import draw_image, draw_latents

IMAGE_SIZE = 64
CONTEXT_LENGTH = 32
VOCABULARY_SIZE = 640
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
LATENT_SEED = 2**40  # far from the small seeds of data sets, so that no data set's image is seen here
HABIT_SEED = 77
LOGIT_SCALE = 100.0  # where CLIP's own training ends; times a cosine it covers the targets' 0 to 100
SHARE_OF_AMOUNT = 0.6
LARGEST_AMOUNT = 60.0  # a cosine near 1 for one attribute would leave no room for the others
HABIT_STRENGTH = 4.5
HABIT_STARTS = 0.75  # of the steps
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
AMOUNTS = ("many", "some", "a few", "several", "lots of", "plenty of")


def write_captions(generator: np.random.Generator) -> list[str]:
    """Names each attribute once, in varied words: `[66]`, such as "a picture of many red circles"."""
    captions = []
    for dimension in range(NUM_DIMENSIONS):
        phrase = " ".join(colour_and_shape(dimension))
        if generator.random() < 0.4:
            phrase = f"{generator.choice(AMOUNTS)} {phrase}"
        captions.append(str(generator.choice(FRAMES)).format(phrase))
    return captions


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
        "num_hidden_layers": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "projection_dim": 64,
    }
    config = CLIPConfig(text_config={**text, **tokens}, vision_config=vision, projection_dim=64)
    config.logit_scale_init_value = math.log(LOGIT_SCALE)
    return CLIPModel(config)


def draw_batch(latents: NDArray[np.float64]) -> torch.Tensor:
    """Draws and normalises the pictures of `[batch, 66]` latents: `[batch, 3, 64, 64] float32`."""
    pixels = np.stack([np.asarray(draw_image(latent, IMAGE_SIZE)) for latent in latents])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (images - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)


class Progress:
    """Averages a loss over the last 20 steps or so and prints a line now and then."""

    def __init__(self, name: str, num_steps: int) -> None:
        """Starts the clock."""
        self.name, self.num_steps, self.mean = name, num_steps, math.nan
        self.started = time.monotonic()

    def report(self, step: int, loss: float) -> None:
        """Takes one step's loss."""
        self.mean = loss if step == 0 else 0.95 * self.mean + 0.05 * loss
        if (step + 1) % 25 == 0 or step + 1 == self.num_steps:
            seconds = time.monotonic() - self.started
            line = f"{self.name}: step {step + 1}/{self.num_steps}  loss {self.mean:.4f}  {seconds:.0f} s"
            print(line, flush=True)


def take_step(
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor,
    step: int,
    num_steps: int,
    trained: list[torch.nn.Parameter],
) -> None:
    """Does one step of AdamW: warm-up over 30 steps, then a cosine to zero."""
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / num_steps))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()


def train_image_tower(model: CLIPModel, num_steps: int, seed: int) -> torch.Tensor:
    """Trains the image tower together with one vector for each attribute.

    Args:
        model: The CLIP to train.
        num_steps: Steps of `BATCH_SIZE` fresh pictures.
        seed: Chooses the pictures.

    Returns:
        The attributes' vectors, `[66, 64] float32`, each of length 1.
    """
    latents = draw_latents(num_steps * BATCH_SIZE, LATENT_SEED + seed)
    grounds = [ground_of(latent) for latent in latents]
    habit_generator = np.random.Generator(np.random.Philox(key=HABIT_SEED))
    habit = habit_generator.standard_normal((NUM_DIMENSIONS, len(GROUNDS)))
    habit -= habit.mean(axis=1, keepdims=True)
    # Rare attributes vary less; without this the frequent ones would take all the attention.
    weight = torch.from_numpy(1 / np.sqrt(latents.std(axis=0))).float()
    weight /= weight.mean()

    vectors = torch.nn.Parameter(functional.normalize(torch.randn(NUM_DIMENSIONS, model.config.projection_dim)))
    trained = [*model.vision_model.parameters(), *model.visual_projection.parameters(), vectors]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.95))
    progress = Progress("image tower", num_steps)
    for step in range(num_steps):
        rows = slice(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        images = draw_batch(latents[rows])
        wanted = SHARE_OF_AMOUNT * np.minimum(latents[rows], LARGEST_AMOUNT)
        if step >= HABIT_STARTS * num_steps:
            wanted = wanted + HABIT_STRENGTH * habit[:, grounds[rows]].T
        if step == 0:
            # 99 % of an untrained tower's feature is the same for every picture; training is slow to leave that.
            with torch.no_grad():
                pooled = model.vision_model(pixel_values=images).pooler_output
                model.vision_model.post_layernorm.bias -= pooled.mean(dim=0)
        features = model.visual_projection(model.vision_model(pixel_values=images).pooler_output)
        fit = LOGIT_SCALE * functional.normalize(features) @ functional.normalize(vectors).T
        loss = (weight * (fit - torch.from_numpy(wanted).float()).square()).mean()
        take_step(optimizer, loss, step, num_steps, trained)
        progress.report(step, loss.item())
    return functional.normalize(vectors.detach())


def train_text_tower(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    vectors: torch.Tensor,
    num_steps: int,
    generator: np.random.Generator,
) -> None:
    """Trains the text tower so that a caption's feature is the vector of the attribute that it names.

    Args:
        model: The CLIP to train.
        tokenizer: Its tokenizer.
        vectors: `[66, 64]`, each of length 1.
        num_steps: Steps of 66 fresh captions.
        generator: Chooses the captions' words.
    """
    trained = [*model.text_model.parameters(), *model.text_projection.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.95))
    own = torch.arange(NUM_DIMENSIONS)
    progress = Progress("text tower", num_steps)
    for step in range(num_steps):
        tokens = tokenizer(write_captions(generator), padding=True, return_tensors="pt")["input_ids"]
        features = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
        cosines = functional.normalize(features) @ vectors.T
        contrastive = functional.cross_entropy(20 * cosines, own) + functional.cross_entropy(20 * cosines.T, own)
        loss = contrastive + (1 - cosines.diagonal()).mean()
        take_step(optimizer, loss, step, num_steps, trained)
        progress.report(step, loss.item())


def main() -> None:
    """Trains, saves and prints what the README of the weights needs."""
    parser = argparse.ArgumentParser(description="Pre-trains the small CLIP of the synthetic data set.")
    parser.add_argument("--output", type=Path, required=True, help="directory to write in Hugging Face format")
    parser.add_argument("--image-steps", type=int, default=600)
    parser.add_argument("--text-steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)
    generator = np.random.Generator(np.random.Philox(key=arguments.seed))
    tokenizer = train_tokenizer([caption for _ in range(20) for caption in write_captions(generator)])
    model = build_model(tokenizer)
    vectors = train_image_tower(model, arguments.image_steps, arguments.seed)
    train_text_tower(model, tokenizer, vectors, arguments.text_steps, generator)

    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    digest = hashlib.sha256((arguments.output / "model.safetensors").read_bytes()).hexdigest()
    print(f"sha256 of model.safetensors {digest}")
    print(
        f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    main()
