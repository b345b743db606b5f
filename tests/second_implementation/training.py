"""A run, from its configuration's files to its states."""

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from second_implementation import draws
from second_implementation.augmentation import augment
from second_implementation.inputs import read_human_rdm, read_json, read_pixels, read_table, tokenize
from second_implementation.model import Mask, Model
from second_implementation.numerics import F32, F64, Array, adamw_step, mse_loss
from second_implementation.statistics import (
    correlation_distances,
    learning_rate,
    mean_of_steps,
    rank_correlation,
)

Config = dict[str, Any]


class Run:
    """A training run; `epochs` yields its state after each, the state before training first."""

    def __init__(self, config: Config, backbone: Path) -> None:
        self.config = config
        clip = read_json(backbone / "config.json")
        self.clip, self.model = clip, Model(load_file(backbone / "model.safetensors"), clip, config)
        names, targets = read_table(config["csv_file"])
        held_out, _ = read_table(config["inference_csv_file"])
        size = clip["vision_config"]["image_size"]
        self.paths, self.size = [Path(config["img_dir"]) / name for name in names + held_out], size
        self.images = self.model.images.features(np.stack([read_pixels(path, size) for path in self.paths]))
        self.num_images, self.targets = len(names), targets.astype(F32)
        prompts = Path(config["prompts_file"]).read_text(encoding="utf-8").splitlines()
        ids, self.ends = tokenize(prompts, read_json(backbone / "tokenizer.json"))
        self.prompts = self.model.prompts.features(ids)
        self.human_rdm = read_human_rdm(config["RDM48_triplet_dir"])

    def features(self, rows: Array) -> tuple[Array, Array]:
        return self.images[0][rows], self.images[1][rows]

    def training_features(self, rows: Array, epoch: int) -> tuple[Array, Array]:
        """Of augmented images, if the configuration has all kinds of augmentation."""
        if not self.config["augmentation"]:
            return self.features(rows)
        seed = self.config["random_seed"]
        pixels = [
            read_pixels(self.paths[row], self.size, lambda image, row=row: augment(image, seed, epoch, row))
            for row in rows.tolist()
        ]
        return self.model.images.features(np.stack(pixels))

    def predict(self, rows: Array) -> Array:
        return self.model.predict(self.features(rows), self.prompts, self.ends, self.parameters)[0]

    def test_loss(self) -> float:
        predictions = self.predict(self.test).astype(F64)
        return float(mse_loss(predictions, self.targets[self.test].astype(F64))[0])

    def behavioral_rsa(self) -> Config:
        distances = correlation_distances(self.predict(np.arange(self.num_images, len(self.images[0]))))
        rho, p = rank_correlation(distances, self.human_rdm)
        return {"behavioral_rsa_rho": rho, "behavioral_rsa_p_value": p}

    def epochs(self) -> Iterator[Config]:
        config = self.config
        self.losses: list[float] = []  # of all steps
        draws.seed_all(config["random_seed"])
        order = draws.permutation(self.num_images)
        num_train = int(config["train_portion"] * self.num_images)
        self.train, self.test = order[:num_train], order[num_train:]
        draws.skip_construction(self.clip)
        self.parameters = self.model.images.initial(draws.factor) | self.model.prompts.initial(draws.factor)
        self.moments: dict[str, Config] = {}
        draws.loader_seed()
        self.best, self.without_better = self.test_loss(), 0
        yield self.state(0, {"epoch": 0, "test_loss": self.best, **self.behavioral_rsa()}, config["lr"])
        for epoch in range(1, config["epochs"] + 1):
            lr = learning_rate(epoch, config)
            train_loss = self.train_epoch(epoch, lr)
            test_loss = self.test_loss()
            draws.loader_seed()  # the test loader's
            draws.loader_seed()  # the RSA loader's
            better = test_loss < self.best
            self.best, self.without_better = (test_loss, 0) if better else (self.best, self.without_better + 1)
            losses = {"epoch": epoch, "train_loss": train_loss, "test_loss": test_loss}
            unperturbed = {"used_random_targets": False, "used_shuffled_targets": False, "perturb_type": "none"}
            yield self.state(epoch, {**losses, **self.behavioral_rsa(), **unperturbed}, lr)

    def train_epoch(self, epoch: int, lr: float) -> float:
        draws.loader_seed()
        order = self.train[draws.permutation(len(self.train), draws.loader_seed())]
        size = self.config["batch_size"]
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        losses = []
        for step, rows in enumerate(batches):
            mask = Mask(self.config["random_seed"], epoch, step)
            predictions, back = self.model.predict(
                self.training_features(rows, epoch), self.prompts, self.ends, self.parameters, mask
            )
            loss, gradient = mse_loss(predictions, self.targets[rows])
            gradients = back(gradient)
            for name, value in self.parameters.items():
                state = self.moments.setdefault(name, fresh_moments(value))
                decay = self.config["weight_decay"]
                self.parameters[name] = adamw_step(state, value, gradients[name], lr, decay)
            losses.append(float(loss))
        self.losses += losses
        return mean_of_steps(losses, [len(rows) for rows in batches])

    def state(self, epoch: int, metrics: Config, lr: float) -> Config:
        """The fields of a `TrainingState` at an epoch's boundary."""
        group = {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": self.config["weight_decay"]}
        group["params"] = list(range(len(self.parameters)))
        moments = {number: dict(each) for number, each in enumerate(self.moments.values())}
        return {
            "parameters": dict(self.parameters),
            "optimizer_state": {"state": moments, "param_groups": [group]},
            "rng_state": draws.states(),
            "early_stopping_state": {"best_test_loss": self.best, "epochs_no_improve": self.without_better},
            "epoch": epoch,
            "step_in_epoch": 0,
            "loss_sum": 0.0,
            "num_samples": 0,
            "epoch_start_rng_state": None,
            "metrics": metrics,
        }


def fresh_moments(value: Array) -> Config:
    zeros = np.zeros_like(value)
    return {"beta1_power": 1.0, "beta2_power": 1.0, "exp_avg": zeros, "exp_avg_sq": zeros}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The names and leaves of a state."""
    prefix = f"{name}/" if name else ""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{prefix}{key}")
    elif isinstance(value, list | tuple) and not all(type(item) is int for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, f"{prefix}{index}")
    else:
        yield name, tuple(value) if isinstance(value, dict | list) else value


def encode(leaf: Any) -> bytes:
    if isinstance(leaf, np.ndarray):
        return f"tensor torch.{leaf.dtype} {leaf.shape}\n".encode() + leaf.astype(leaf.dtype, order="C").tobytes()
    if isinstance(leaf, str):
        return b"str\n" + leaf.encode()
    if isinstance(leaf, float):
        return b"float\n" + struct.pack("<d", leaf)
    return f"{type(leaf).__name__}\n{leaf!r}".encode()  # bool, int, None, tuples of integers


def digest(state: Config) -> str:
    total = hashlib.sha256()
    for name, leaf in sorted(leaves(state), key=lambda item: item[0]):
        encoded = encode(leaf)
        total.update(f"{len(name)} {name} {len(encoded)}\n".encode() + encoded)
    return total.hexdigest()
