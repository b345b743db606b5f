"""Verify checkpoints that exist: `python test_existing_checkpoints.py`. Edit the lines below.

The same as `clip-hba verify checkpoints RUN_OR_DIR --config FILE`.
"""

import sys
from pathlib import Path

from clip_hba_behavior.cli import main

checkpoints = Path(__file__).parents[2] / "runs" / "seed1"  # a run, or a directory of old checkpoints
config_file: Path | None = None  # YAML: where data are now; for old checkpoints the whole run's keys
epochs = "all"  # or such as "3,10,20"


def arguments() -> list[str]:
    """Return the command line that the lines above stand for."""
    config = ["--config", str(config_file)] if config_file is not None else []
    return ["verify", "checkpoints", str(checkpoints), "--epochs", epochs, *config]


if __name__ == "__main__":
    sys.exit(main(arguments()))
