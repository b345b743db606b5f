"""Predictions of image files beside plain transformers, in turn in one process: medians of several, and ratios.

    python benchmarks/predict.py [--size small] [--images 1000] [--threads 1] [--repeats 3]

Both read the same files, `[images, 66]`: this project by `load_model(...).predict(paths)`, in native and in
portable arithmetic; transformers from the same model's merged export, by its image processor and `CLIPModel`, 32
images at a time, the prompts encoded once. Weights are random. How far the predictions are apart is printed too.
With one thread the processor's time is measured, which other programs disturb less than the clock's.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from PIL import Image

from clip_hba_behavior import load_model
from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from clip_hba_behavior.use.formats import write_merged, write_preprocessing
from sizes import SIZES
from step_time import write_backbone

AT_ONCE = 32


def transformers_predictor(directory: Path, prompts: Sequence[str]) -> Callable[[Sequence[Path]], Any]:
    """Return what predicts image files by transformers alone."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(directory).eval()
    processor = CLIPImageProcessor.from_pretrained(directory)
    tokens = CLIPTokenizer.from_pretrained(directory)(list(prompts), padding=True, return_tensors="pt")

    @torch.no_grad()
    def predict(paths: Sequence[Path]) -> Any:
        embeddings = model.get_text_features(**tokens).pooler_output
        scaled = model.logit_scale.exp() * torch.nn.functional.normalize(embeddings, dim=-1)
        found = []
        for start in range(0, len(paths), AT_ONCE):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + AT_ONCE]]
            features = model.get_image_features(**processor(images, return_tensors="pt")).pooler_output
            found.append(torch.nn.functional.normalize(features, dim=-1) @ scaled.T)
        return torch.cat(found).numpy()

    return predict


def main() -> None:
    """Time all three, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_backbone(folder / "backbone", options.size)
        write_standin_dataset(folder / "data", num_images=options.images)
        paths = sorted((folder / "data" / "images").iterdir())[: options.images]
        keys = data_keys(folder / "data") | {"backbone": str(folder / "backbone")}
        native, portable = (
            load_model(config=keys | {"arithmetic": kind}, device="cpu") for kind in ("native", "portable")
        )
        merged = folder / "merged"
        merged.mkdir()
        write_merged(native, merged)
        write_preprocessing(native, merged)
        ways: dict[str, Callable[[Sequence[Path]], Any]] = {
            "transformers": transformers_predictor(merged, native.prompts),
            "native": native.predict,
            "portable": portable.predict,
        }
        found = {way: predict(paths[:AT_ONCE]) for way, predict in ways.items()}  # warms up, too
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, predict in ways.items():
                began = clock()
                predict(paths)
                seconds[way].append(clock() - began)
    print(f"{options.size}, {options.images} images, threads {options.threads}, median of {options.repeats}")
    theirs = statistics.median(seconds["transformers"])
    for way, times in seconds.items():
        apart = np.abs(found[way] - found["transformers"]).max()
        middle = statistics.median(times)
        print(f"{way:<12} {middle:8.2f} s, {middle / theirs:.2f} of transformers' time, {apart:.1e} apart")


if __name__ == "__main__":
    main()
