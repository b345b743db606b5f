"""Pages that presuppose a run, a sweep or the names of a loop: given those, their examples are run."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import yaml

from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from run_tools import write_config
from test_docs_commands import DOCS, REPOSITORY, Block, Reader, blocks, reader  # noqa: F401
from test_docs_examples import is_listed

SMALL_SWEEP = {
    "epochs": [2],
    "kinds": ["label_shuffle"],
    "lengths": [1],
    "seeds": [0],
    "null_seeds": 1,
    "reseeds": 1,
}
LOOP = """
import random
import numpy as np
import torch
from clip_hba_behavior import exact
from clip_hba_behavior.reproducibility import track
random.seed(0), np.random.seed(0), torch.manual_seed(0)
"""
GIVEN = {
    "ANY_LOOP": f"""{LOOP}
x, y = torch.randn(130, 4), torch.randn(130)
settings, test_loss = {{"lr": 0.1}}, 1.0
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

class Patience:
    best, waited = float("inf"), 0
    def is_exhausted(self): return self.waited > 1
    def update(self, loss): self.waited, self.best = self.waited + (loss >= self.best), min(loss, self.best)
    def state_dict(self): return {{"best": self.best, "waited": self.waited}}
    def load_state_dict(self, state): self.best, self.waited = state["best"], state["waited"]

def evaluate():
    scheduler.step()
    return 1.0

def train_step(rows):
    loss = ((model(x[rows]).squeeze(1) - y[rows]) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss

patience = Patience()
run = track("runs/patience", model=model, patience=patience)
""",
    "EXACT": f"""{LOOP}
import os
x, gain, shift = torch.randn(8, 512), torch.ones(512), torch.zeros(512)
weight, bias, y = torch.nn.Parameter(torch.randn(66, 512)), torch.nn.Parameter(torch.zeros(66)), torch.randn(8, 66)
parameters, batches = [weight, bias], [(x, y)]
os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29531")
store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
""",
    "STATISTICS": """
import numpy as np
from clip_hba_behavior.data.things import read_human_rdm
from pathlib import Path
predictions, human_rdm = np.load("rdm_one/features.npy"), read_human_rdm(Path("data/RDM48_triplet.mat"))
""",
}


def keys_of(reader: Reader) -> dict[str, Any]:  # noqa: F811
    keys = {
        key: str(Path(path).relative_to(reader.directory))
        for key, path in data_keys(reader.directory / "data").items()
    }
    return {**keys, "epochs": 3, "batch_size": 16, "num_threads": 1, "rank": 4, "lr": 1e-3, "device": "cpu"}


def train(reader: Reader, name: str, **changes: Any) -> None:  # noqa: F811
    write_config(reader.directory / f"{name}.yaml", keys_of(reader), run_dir=f"runs/{name}", **changes)
    reader.run_line(reader.directory, name, ["clip-hba", "train", f"{name}.yaml"])


def run_sweep(reader: Reader, file: str, baseline: str, directory: str) -> None:  # noqa: F811
    keys = {**SMALL_SWEEP, "baseline": f"runs/{baseline}", "directory": f"runs/{directory}"}
    (reader.directory / file).write_text(yaml.safe_dump(keys))
    reader.run_line(reader.directory, file, ["clip-hba", "sweep", "run", file])


def for_reports(reader: Reader) -> None:  # noqa: F811
    train(reader, "things")
    for seed in (1, 2, 3):
        train(reader, f"seed{seed}", random_seed=seed)
        if seed < 3:
            shutil.copy(
                reader.directory / f"runs/seed{seed}/training_res.csv", reader.directory / f"old{seed}.csv"
            )
            run_sweep(reader, f"sweep{seed}.yaml", f"seed{seed}", f"sweep{seed}")
    run_sweep(reader, "sweep.yaml", "things", "things_sweep")


def for_statistics(reader: Reader) -> None:  # noqa: F811
    train(reader, "things")
    rdm = scipy.io.loadmat(reader.directory / "data/RDM48_triplet.mat")["RDM48_triplet"]
    noise = np.random.default_rng(1).normal(scale=0.05 * rdm.std(), size=rdm.shape)
    noise = np.triu(noise, 1) + np.triu(noise, 1).T
    halves = {"RDM48_triplet_split1": rdm + noise, "RDM48_triplet_split2": rdm - noise}
    scipy.io.savemat(reader.directory / "data/RDM48_triplet_splithalf.mat", halves)
    for epoch, name in ((3, "rdm_one"), (1, "rdm_two")):
        words = ["clip-hba", "rdm", "runs/things", "--epoch", str(epoch), "--out", name]
        reader.run_line(reader.directory, name, words)
    reader.run_line(reader.directory, "sweep", ["clip-hba", "sweep", "run", "sweep.yaml"])


def for_sweeps(reader: Reader) -> None:  # noqa: F811
    train(reader, "things")


PAGES: dict[str, tuple[Callable[[Reader], None] | None, dict[str, Any]]] = {
    "own_data": (None, {"epochs": 2}),
    "REPORTS": (for_reports, {}),
    "STATISTICS": (for_statistics, SMALL_SWEEP),
    "SWEEPS": (for_sweeps, SMALL_SWEEP),
}
"""Pages with commands: what makes that which they presuppose, and keys that are smaller here than on the page."""


def write_file(reader: Reader, block: Block, changes: dict[str, Any]) -> None:  # noqa: F811
    """Write a page's YAML as it stands, but for the data, the backbone and what is made smaller."""
    keys = yaml.safe_load("\n".join(block.lines))
    own = data_keys(reader.directory / "data") if "csv_file" in keys else {}
    keys = {key: value for key, value in keys.items() if key != "backbone"} | changes | own
    (reader.directory / block.lines[0].removeprefix("# ")).write_text(yaml.safe_dump(keys))


@pytest.mark.system
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", PAGES)
def test_given_runs_and_sweeps_every_example_of_the_page_does_what_it_says(name: str, reader: Reader) -> None:  # noqa: F811
    prepare, changes = PAGES[name]
    write_standin_dataset(reader.directory / "data", num_images=40)
    found = blocks((DOCS / f"{name}.md").read_text(encoding="utf-8"))
    for block in found:
        if block.language == "yaml":
            write_file(reader, block, changes)
    if prepare:
        prepare(reader)
    for block in [each for each in found if each.language != "yaml"]:
        given = GIVEN.get(name, "").splitlines() if block.language == "python" else []
        reader.do(Block(block.language, [*given, *(line for line in block.lines if not is_listed(name, line))]))


@pytest.mark.parametrize("name", ["ANY_LOOP", "EXACT"])
def test_given_the_names_of_a_loop_its_snippets_run(name: str, reader: Reader) -> None:  # noqa: F811
    for block in blocks((DOCS / f"{name}.md").read_text(encoding="utf-8")):
        if block.language == "python":
            reader.do(Block("python", [*GIVEN[name].splitlines(), *block.lines]))
    if name == "ANY_LOOP":
        assert (reader.directory / "runs/digits/checkpoints/epoch20.pth").is_file()
        assert not (reader.directory / "runs/patience/checkpoints/epoch4.pth").exists()  # patience was exhausted


def test_the_scripts_of_the_pages_are_there() -> None:
    for name in ("EXACT", "PORTABLE"):
        page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
        scripts = re.findall(r"^python (\S+)", page, flags=re.MULTILINE)
        assert scripts
        assert [each for each in scripts if not (REPOSITORY / each).is_file()] == []
