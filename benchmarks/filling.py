"""The first fill of the feature cache beside the bare forward of the frozen layers, on images that are at hand.

    python benchmarks/filling.py [--size ViT-B/32] [--images 96] [--image-size 800] [--workers 0 1 2]

Draws a backbone and images, fills a new cache with each number of reading processes, and computes chunks from
pixels in memory, in turn. Prints images per second, the rate's share of the bare one, and whether the caches are
the same bytes.
"""

import argparse
import logging
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from clip_hba_behavior.config import Config, make_config
from clip_hba_behavior.data.images import load_pixels
from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.numerics import resolve_device
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.training.inputs import Inputs, compute_in_chunks
from sizes import SIZES
from step_time import seconds, write_backbone


def fill(config: Config) -> Inputs:
    """Fill a cache, and return the inputs that it belongs to."""
    trainer, _ = build_trainer(config, Session(logging.getLogger("bench")))
    return trainer.inputs


def bare_rate(inputs: Inputs, config: Config) -> float:
    """Return how many images per second the frozen layers take, from pixels in memory, a chunk at a time."""
    pixels = load_pixels(inputs.image_paths[: config.chunk_size], inputs.preprocessing)
    prefix = inputs.backbone.prefix("vision")

    def forward() -> None:
        compute_in_chunks(prefix, pixels, config.chunk_size, inputs.device)

    return len(pixels) / statistics.median(seconds(forward, inputs.device) for _ in range(3))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="ViT-B/32")
    parser.add_argument("--images", type=int, default=96, help="annotated images; 48 more are held out")
    parser.add_argument("--image-size", type=int, default=800, help="width and height in pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="num_workers of each fill")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_standin_dataset(folder / "data", num_images=arguments.images, image_size=arguments.image_size)
        write_backbone(folder / "backbone", arguments.size)
        keys = {**data_keys(folder / "data"), "backbone": folder / "backbone"}
        keys |= {"num_threads": arguments.threads, "device": arguments.device}
        print(f"{arguments.size}, {arguments.threads} threads, {resolve_device(arguments.device)}")
        print(f"{'num_workers':>11}{'filling':>14}{'bare forward':>16}{'share':>8}{'waiting':>10}")
        caches = []
        for num_workers in arguments.workers:
            given = {**keys, "num_workers": num_workers, "cache_dir": folder / f"cache{num_workers}"}
            config = resolve_config(make_config(given))
            inputs = fill(config)
            filling = inputs.image_cache.filling
            assert filling is not None
            rate, bare = filling.num_rows / filling.seconds, bare_rate(inputs, config)
            waiting = inputs.waiting / filling.seconds
            print(
                f"{num_workers:>11}{rate:>12.1f}/s{bare:>14.1f}/s{rate / bare:>8.0%}{waiting:>10.0%}", flush=True
            )
            caches.append((inputs.image_cache.folder / "features.bin").read_bytes())
        same = all(each == caches[0] for each in caches)
        print(f"features: {'the same bytes' if same else 'OTHER BYTES'} with any number of processes")
        if not same:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
