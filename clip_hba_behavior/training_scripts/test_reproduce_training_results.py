"""Verify a run against its results: `python test_reproduce_training_results.py`. Edit the lines below.

The same as `clip-hba verify results CSV --checkpoints RUN_OR_DIR --config FILE`.
"""

import sys
from pathlib import Path

from clip_hba_behavior.cli import main

run = Path(__file__).parents[2] / "runs" / "seed1"
results_file = run / "training_res.csv"
checkpoints = run  # or a directory of old checkpoints
config_file: Path | None = None  # YAML: where data are now; for old checkpoints the whole run's keys
epochs = "all"  # or such as "3,10,20"


def arguments() -> list[str]:
    """Return the command line that the lines above stand for."""
    config = ["--config", str(config_file)] if config_file is not None else []
    checkpoint_options = ["--checkpoints", str(checkpoints), "--epochs", epochs]
    return ["verify", "results", str(results_file), *checkpoint_options, *config]


if __name__ == "__main__":
    sys.exit(main(arguments()))
