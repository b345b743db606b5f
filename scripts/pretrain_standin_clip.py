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

from clip_hba_behavior.data.drawing import NUM_DIMENSIONS, colour_and_shape
from clip_hba_behavior.data.standin import draw_image, draw_latents

IMAGE_SIZE = 64
CONTEXT_LENGTH = 32
NUM_CAPTIONS = 96
BATCH_SIZE = 64
HALF_TRUE = 4.0
PRETRAINING_SCALE = 15.0
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
AMOUNTS = ("many", "some", "a few", "several", "lots of", "plenty of")


def write_caption(dimensions: NDArray[np.int64], generator: np.random.Generator) -> str:
    """Names the given attributes in varied words.

    Args:
        dimensions: `[named]`, each 0 to 65.
        generator: Chooses the words.

    Returns:
        Such as "a picture of many red circles and some lime crosses".
    """
    phrases = []
    for dimension in dimensions:
        phrase = " ".join(colour_and_shape(int(dimension)))
        if generator.random() < 0.4:
            phrase = f"{generator.choice(AMOUNTS)} {phrase}"
        phrases.append(phrase)
    return str(generator.choice(FRAMES)).format(" and ".join(phrases))


def write_captions(generator: np.random.Generator) -> tuple[list[str], NDArray[np.float64]]:
    """Writes a step's captions: one for each attribute, and some that name two.

    Args:
        generator: Chooses pairs and words.

    Returns:
        `NUM_CAPTIONS` captions, and what each names: `[NUM_CAPTIONS, 66]`, rows that add up to 1.
    """
    named = [np.array([dimension]) for dimension in range(NUM_DIMENSIONS)]
    named += [
        generator.choice(NUM_DIMENSIONS, size=2, replace=False) for _ in range(NUM_CAPTIONS - NUM_DIMENSIONS)
    ]
    weights = np.zeros((NUM_CAPTIONS, NUM_DIMENSIONS))
    for row, dimensions in zip(weights, named, strict=True):
        row[dimensions] = 1 / len(dimensions)
    return [write_caption(dimensions, generator) for dimensions in named], weights


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


@torch.no_grad()
def centre_features(model: CLIPModel, images: torch.Tensor, tokens: torch.Tensor) -> None:
    """Shifts both towers' last bias so that the mean feature is zero.

    An untrained tower gives nearly the same feature for everything (99 % of its square is the mean), which training
    takes hundreds of steps to leave.
    """
    vision, text = model.vision_model, model.text_model
    vision.post_layernorm.bias -= vision(pixel_values=images).pooler_output.mean(dim=0)
    text.final_layer_norm.bias -= text(input_ids=tokens).pooler_output.mean(dim=0)


def contrastive_loss(
    model: CLIPModel, images: torch.Tensor, tokens: torch.Tensor, shown: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Computes the contrastive loss of every picture with every caption: which fits which, and how well?

    Args:
        model: The CLIP to train.
        images: `[batch, 3, 64, 64]`.
        tokens: `[captions, longest]`.
        shown: `[batch, captions]`, how much each picture shows of what each caption names, 0 to 100.

    Returns:
        The loss, a scalar, and the correlation of the cosines with `shown` over pictures, averaged over captions.
    """
    image_features = functional.normalize(
        model.visual_projection(model.vision_model(pixel_values=images).pooler_output)
    )
    text_features = functional.normalize(model.text_projection(model.text_model(input_ids=tokens).pooler_output))
    cosines = image_features @ text_features.T
    logits = PRETRAINING_SCALE * cosines
    which_caption = functional.cross_entropy(logits, shown / shown.sum(dim=1, keepdim=True))
    which_image = functional.cross_entropy(logits.T, shown.T / shown.T.sum(dim=1, keepdim=True))
    # The two cross entropies leave the cosines' mean free; this pins it, at log-odds of log(shown / HALF_TRUE).
    is_true = functional.binary_cross_entropy_with_logits(logits, shown / (shown + HALF_TRUE))
    centred = functional.normalize(cosines.detach() - cosines.detach().mean(dim=0), dim=0)
    amounts = functional.normalize(shown - shown.mean(dim=0), dim=0)
    return which_caption + which_image + is_true, (centred * amounts).sum(dim=0).mean().item()


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, num_steps: int) -> None:
    """Warms up over 30 steps, then follows a cosine to zero."""
    for group in optimizer.param_groups:
        group["lr"] = peak * min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def train_image_tower(model: CLIPModel, num_steps: int, seed: int) -> None:
    """Teaches the image tower to tell glyphs apart: a linear layer on its features predicts what is shown.

    Two untrained towers cannot teach each other quickly: both give one feature for everything. So one begins alone.
    """
    latents = draw_latents(num_steps * BATCH_SIZE, LATENT_SEED + seed)
    amounts = torch.from_numpy(np.sqrt(latents)).float()
    amounts = (amounts - amounts.mean(dim=0)) / amounts.std(dim=0)
    probe = torch.nn.Linear(model.config.projection_dim, NUM_DIMENSIONS)
    trained = [*model.vision_model.parameters(), *model.visual_projection.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.05, betas=(0.9, 0.95))
    progress = Progress("image tower", num_steps)
    for step in range(num_steps):
        set_learning_rate(optimizer, 2e-3, step, num_steps)
        rows = slice(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        features = model.visual_projection(
            model.vision_model(pixel_values=draw_batch(latents[rows])).pooler_output
        )
        loss = functional.mse_loss(probe(features), amounts[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        progress.report(step, loss.item())


def train_both_towers(
    model: CLIPModel, tokenizer: CLIPTokenizer, num_steps: int, seed: int, generator: np.random.Generator
) -> float:
    """Trains both towers on pictures and captions; returns the loss, averaged over the last steps."""
    latents = draw_latents(num_steps * BATCH_SIZE, LATENT_SEED + seed + 1)
    trained = [parameter for name, parameter in model.named_parameters() if name != "logit_scale"]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95))
    progress = Progress("both towers", num_steps)
    for step in range(num_steps):
        set_learning_rate(optimizer, 1e-3, step, num_steps)
        batch = latents[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
        images = draw_batch(batch)
        captions, weights = write_captions(generator)
        tokens = tokenizer(captions, padding=True, return_tensors="pt")["input_ids"]
        if step == 0:
            centre_features(model, images, tokens)
        loss, correlation = contrastive_loss(model, images, tokens, torch.from_numpy(batch @ weights.T).float())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        progress.report(step, loss.item(), f"correlation {correlation:.3f}")
    return progress.mean


class Progress:
    """Averages a loss over the last 20 steps or so and prints a line now and then."""

    def __init__(self, name: str, num_steps: int) -> None:
        """Starts the clock."""
        self.name, self.num_steps, self.mean = name, num_steps, math.nan
        self.started = time.monotonic()

    def report(self, step: int, loss: float, more: str = "") -> None:
        """Takes one step's loss."""
        self.mean = loss if step == 0 else 0.95 * self.mean + 0.05 * loss
        if (step + 1) % 25 == 0 or step + 1 == self.num_steps:
            seconds = time.monotonic() - self.started
            line = f"{self.name}: step {step + 1}/{self.num_steps}  loss {self.mean:.4f}  {more}  {seconds:.0f} s"
            print(line, flush=True)


def main() -> None:
    """Trains, saves and prints what the README of the weights needs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="directory to write in Hugging Face format")
    parser.add_argument("--image-steps", type=int, default=200)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)
    generator = np.random.Generator(np.random.Philox(key=arguments.seed))
    tokenizer = train_tokenizer([caption for _ in range(20) for caption in write_captions(generator)[0]])
    model = build_model(tokenizer)
    train_image_tower(model, arguments.image_steps, arguments.seed)
    loss = train_both_towers(model, tokenizer, arguments.steps, arguments.seed, generator)

    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    digest = hashlib.sha256((arguments.output / "model.safetensors").read_bytes()).hexdigest()
    print(f"final loss {loss:.4f}\nsha256 of model.safetensors {digest}")
    print(
        f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    main()
