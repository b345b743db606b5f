"""Train CLIP-HBA: `python cvpr_train_behavior.py`. Edit the keys below, or use `clip-hba train`.

As it stands it trains some epochs on the synthetic data set, within a minute. For THINGS, take the comment signs
away, set the paths, and train 500 epochs: early stopping ends the run before.
"""

import sys
from pathlib import Path

from clip_hba_behavior.cli import exit_code_of

config = {
    # "csv_file": "../Data/spose_embedding66d_rescaled_1806train.csv",
    # "img_dir": "../Data/Things1854",
    # "inference_csv_file": "../Data/spose_embedding66d_rescaled_48val_reordered.csv",
    # "RDM48_triplet_dir": "../Data/RDM48_triplet.mat",
    # "prompts_file": "../Data/prompts66.txt",
    # "backbone": "ViT-L/14",
    "epochs": 8,
    "batch_size": 64,
    "train_portion": 0.8,
    "lr": 3e-4,
    "early_stopping_patience": 20,
    "random_seed": 1,
    "vision_layers": 2,
    "transformer_layers": 1,
    "rank": 32,
    "training_run": 1,  # N continues from the baseline's state after epoch N - 1
    "baseline_dora_directory": None,
    "run_dir": Path(__file__).parents[2] / "runs" / "seed1",
}


def main() -> None:
    """Train with the configuration above."""
    from clip_hba_behavior import run_behavioral_training

    print(f"The run is in {run_behavioral_training(config)}")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
