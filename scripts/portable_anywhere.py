"""Train a small run in portable arithmetic and print its digest, which is the same on every machine.

    python scripts/portable_anywhere.py [--small] [--threads 1] [--engine float64|int8|auto] [--chunk 32]
        [--batch 64] [--images 20] [--epochs 2] [--arithmetic portable|native] [--keep DIRECTORY] [--expect DIGEST]
    torchrun --nproc-per-node 3 scripts/portable_anywhere.py
    python scripts/portable_anywhere.py --digest RUN

From image files to the last state: three DoRA layers in one tower and two in the other, so that every kind of
attention takes part, with dropout, augmentation and a schedule. The digest is of the last state's digest, the
results CSV and the ledger. It is compared with the one in `GOLDEN`, or with another machine's, given by
`--expect`; exit code 1 if it differs. `--small` is a case for slow machines, such as emulated ones.

`--keep` leaves the run in a directory, such as to verify it on another machine. `--digest` prints the digest of a
run that was left so, such as one that was interrupted and resumed.

The images are BMP files, so that the bytes of the ledger, which names each batch by its files, are the same too:
compressed ones depend on the library that compresses.
"""

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

from PIL import Image

from clip_hba_behavior import exact
from clip_hba_behavior.cli import exit_code_of
from clip_hba_behavior.config import make_config
from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.run.life import start

_SMALL = (10, 1)
# By numbers of images and epochs. Other ones only with another definition of portable arithmetic, or data set.
GOLDEN = {
    (20, 2): "d6ea404a7b0b9913abf6a7c346f2a4ace86fe32cc416e636e8f75f89f40278c5",
    _SMALL: "40a3b405edf48581df85897542197370cb01965c7beb5cb402e739b2d8b5b3ec",
}


def main() -> None:
    """Train, print the digest and compare it; end with exit code 1 if it differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help=f"{_SMALL[0]} images, {_SMALL[1]} epoch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", choices=("float64", "int8", "auto"), default="auto")
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64, help="of the evaluation")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--arithmetic", choices=("portable", "native"), default="portable")
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--digest", type=Path, default=None, metavar="RUN")
    parser.add_argument("--expect", default=None)
    arguments = parser.parse_args()
    if arguments.small:
        arguments.images, arguments.epochs = _SMALL
    expected = arguments.expect
    if expected is None and arguments.arithmetic == "portable":
        expected = GOLDEN.get((arguments.images, arguments.epochs))
    exact.use_engine(arguments.engine)
    if arguments.digest is not None:
        found = digest_of(arguments.digest)
    elif arguments.keep is not None:
        found = digest_of(trained_run(arguments, arguments.keep))
    else:
        with tempfile.TemporaryDirectory() as directory:
            found = digest_of(trained_run(arguments, Path(directory)))
    print(found)
    if expected not in (None, found):
        print(f"the run's digest differs\n  found:    {found}\n  expected: {expected}", file=sys.stderr)
        sys.exit(1)


def digest_of(run: Path) -> str:
    """Return the SHA-256 of a run's last state's digest, results and ledger."""
    checkpoints = list_checkpoints(run / "dora_params")
    state = read_checkpoint(checkpoints[max(checkpoints)])
    total = hashlib.sha256(str(state.state_digest).encode())
    for name in ("training_res.csv", "steps.jsonl"):
        total.update((run / name).read_bytes())
    return total.hexdigest()


def trained_run(arguments: argparse.Namespace, directory: Path) -> Path:
    """Train below a directory; return the run's directory."""
    data = directory / "data"
    write_standin_dataset(data, num_images=arguments.images)
    for path in (data / "images").glob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
    config = make_config(
        {
            **data_keys(data),
            "image_suffix": ".bmp",
            "arithmetic": arguments.arithmetic,
            "epochs": arguments.epochs,
            "batch_size": 6,
            "rank": 4,
            "lr": 1e-3,
            "lr_schedule": "warmup_cosine",
            "lr_warmup_epochs": 1,
            "vision_layers": 3,
            "transformer_layers": 2,
            "dora_dropout": 0.1,
            "augmentation": ["random_resized_crop", "horizontal_flip", "color_jitter"],
            "num_threads": arguments.threads,
            "chunk_size": arguments.chunk,
            "eval_batch_size": arguments.batch,
            "device": "cpu",
            "cache_dir": str(directory / "cache"),
            "run_dir": str(directory / "run"),
        }
    )
    return start(config)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
