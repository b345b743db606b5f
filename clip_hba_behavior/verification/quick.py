"""Does this machine continue a run bit for bit? Asked of the synthetic data set, in seconds; needs no files.

`python -m clip_hba_behavior.verification.quick` is the other half: the new process that continues. It
reads the directory to work in from its standard input.
"""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import Config, make_config
from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state import safe_load
from clip_hba_behavior.reproducibility.state.compare import Comparison, compare
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import StoppedError
from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.reproducibility.state.numerics import numerics_left_as_they_were
from clip_hba_behavior.reproducibility.state.rng import undisturbed_generators
from clip_hba_behavior.reproducibility.state.snapshot import snapshot
from clip_hba_behavior.reproducibility.state.system import IS_WINDOWS
from clip_hba_behavior.reproducibility.state.tree import to_bytes
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.checkpoint import (
    parameters_digest,
    read_checkpoint,
    to_content,
)
from clip_hba_behavior.run.log import LOGGER_NAME
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.training.advance import advance
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.training.trainer import Trainer

NUM_STEPS = 3
STEPS_BEFORE_THE_BREAK = 2
MOST_SHOWN = 3
MOST_SECONDS = 120  # for the new process; it takes a few
_MIDDLE, _CONTINUED, _OUTPUTS = "middle.pth", "continued.pth", "outputs.pth"


@dataclass(frozen=True)
class QuickResult:
    """What was compared, and what was found.

    Attributes:
        groups: for `parameters`, `optimizer`, `random states`, `counters` (the rest of the state) and
            `outputs` (the last step's batch and loss, the predictions): unbroken beside continued.
        control_num_differing: how many parameter tensors differ if the same step is done without the
            optimizer state. If none does, the comparison would not notice a loss.
        digests: SHA-256 of the `initial parameters`, and of the `trained state` and the `outputs`, each
            `unbroken` and `continued`.
        seconds: how long it all took.
    """

    groups: dict[str, Comparison]
    control_num_differing: int
    digests: dict[str, str]
    seconds: float

    @property
    def reproducible(self) -> bool:
        """Whether not one bit differs, and a difference would have been noticed."""
        return all(group.equal() for group in self.groups.values()) and self.control_num_differing > 0

    def lines(self) -> list[str]:
        """Return the result for a person, the verdict last."""
        lines = []
        for name, group in self.groups.items():
            lines += _group_lines(name, group)
        num_parameters = self.groups["parameters"].num_tensors
        found = f"{self.control_num_differing} of {num_parameters} tensors differ"
        verdict = "as they must ✓" if self.control_num_differing else "so nothing is proved ✗"
        lines += [f"{'control':<14} without the optimizer state {found}, {verdict}", "SHA-256"]
        lines += [f"  {name:<25} {value}" for name, value in self.digests.items()]
        return [*lines, f"{self._verdict()} ({self.seconds:.0f} s)"]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))  # tuples become lists
        return {"reproducible": self.reproducible, **values}

    def _verdict(self) -> str:
        differing = [name for name, group in self.groups.items() if not group.equal()]
        if differing:
            return f"not reproducible: {', '.join(differing)} not the same after the break"
        if not self.control_num_differing:
            return "not reproducible: the control found no difference, so the comparison is blind"
        return "reproducible: continued in a new process, not one bit differs on this machine"


def verify_quick(
    say: Callable[[str], None] = print, corrupt: Callable[[TrainingState], TrainingState] | None = None
) -> QuickResult:
    """Train on the synthetic data set without a break and with one, and compare every bit.

    Args:
        say: told what is done, then the result's lines.
        corrupt: for the tests: changes the state before it is saved.

    Returns:
        The result; see `QuickResult.reproducible`.

    Raises:
        StoppedError: the new process failed; holds what it said.
    """
    began = time.monotonic()
    # The process is gone before its directory is, however this ends.
    with (
        _temporary_directory() as directory,
        _new_process() as process,  # its imports take seconds; meanwhile the work here goes on
        numerics_left_as_they_were(),  # the caller may be in the middle of work of its own
        undisturbed_generators(),
    ):
        write_standin_dataset(directory, num_images=60)
        say(f"{NUM_STEPS} training steps on the synthetic data set without a break")
        trainer = _begin(_config(directory))
        initial_digest = parameters_digest(trainer.parameters)
        outputs = _train(trainer, NUM_STEPS)
        state = trainer.snapshot()

        say(f"from the same beginning {STEPS_BEFORE_THE_BREAK} steps and a checkpoint")
        trainer = _begin(_config(directory))
        _train(trainer, STEPS_BEFORE_THE_BREAK)
        middle = trainer.snapshot()
        _publish_state(directory / _MIDDLE, corrupt(middle) if corrupt else middle)

        say(f"in a new process the remaining {NUM_STEPS - STEPS_BEFORE_THE_BREAK}")
        _let_continue(process, directory)
        continued = read_checkpoint(directory / _CONTINUED).whole_state()
        continued_outputs = safe_load.load(directory / _OUTPUTS, "file of outputs")

        say("and here once more without the optimizer state, which must differ")
        crippled = dataclasses.replace(middle, optimizer_state=middle.optimizer_state | {"state": {}})
        _train(trainer, NUM_STEPS, crippled)
        control = compare(state.parameters, trainer.snapshot().parameters)
        del trainer  # and so its mapped features

    left, right = _groups(state, outputs), _groups(continued, continued_outputs)
    result = QuickResult(
        groups={name: compare(left[name], right[name]) for name in left},
        control_num_differing=control.num_differing_tensors,
        digests={
            "initial parameters": initial_digest,
            "trained state, unbroken": state.digest(),
            "trained state, continued": continued.digest(),
            "outputs, unbroken": digest(outputs),
            "outputs, continued": digest(continued_outputs),
        },
        seconds=time.monotonic() - began,
    )
    for line in result.lines():
        say(line)
    return result


def _config(directory: Path) -> Config:
    """Configure six steps an epoch, with dropout, so that the random streams matter in each."""
    return resolve_config(
        make_config(
            {
                **data_keys(directory),
                "cache_dir": directory / "cache",
                "batch_size": 8,
                "dora_dropout": 0.2,
                "lr": 1e-3,
                "num_threads": 1,
            }
        )
    )


def _build(config: Config) -> Trainer:
    return build_trainer(config, Session(logging.getLogger(LOGGER_NAME)))[0]


def _begin(config: Config) -> Trainer:
    """Make a trainer as a fresh run does."""
    trainer = _build(config)
    trainer.begin()
    return trainer


def _train(trainer: Trainer, last_step: int, state: TrainingState | None = None) -> dict[str, Any]:
    """Train epoch 1 up to one of its steps; return what came out of it."""
    *_, step = advance(trainer, 1, state, last_step)
    predictions = trainer.predict(trainer.inputs.inference_rows())
    return {"step": dataclasses.asdict(step), "predictions": snapshot(predictions)}


def _publish_state(path: Path, state: TrainingState) -> None:
    publish(path, to_bytes(to_content(state, {})))


def _groups(state: TrainingState, outputs: dict[str, Any]) -> dict[str, Any]:
    """Sort a state's fields, every one of them, and the outputs for the comparison."""
    rest = state.as_dict()
    return {
        "parameters": rest.pop("parameters"),
        "optimizer": rest.pop("optimizer_state"),
        "random states": {name: rest.pop(name) for name in ("rng_state", "epoch_start_rng_state")},
        "counters": rest,
        "outputs": outputs,
    }


def _group_lines(name: str, group: Comparison) -> list[str]:
    """Say what a group holds and, if it is not the same, where it differs first."""
    num_values = group.num_leaves - group.num_tensors
    counts = ((group.num_tensors, "tensor"), (num_values, "value"))
    holds = " and ".join(f"{num} {what}{'s' * (num > 1)}" for num, what in counts if num)
    if group.equal():
        return [f"{name:<14} {holds}, 0 differing bits ✓"]
    lines = [f"{name:<14} {holds}, {len(group.differences)} not the same ✗"]
    lines += [f"  {each.name}: {each.what}" for each in group.differences[:MOST_SHOWN]]
    if len(group.differences) > MOST_SHOWN:
        lines.append(f"  and {len(group.differences) - MOST_SHOWN} more")
    return lines


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="clip-hba-quick-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=IS_WINDOWS)  # which removes no file that is still mapped


@contextmanager
def _new_process() -> Iterator["subprocess.Popen[str]"]:
    """Start the process that continues. It waits for its standard input, and ends if that ends empty."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clip_hba_behavior.verification.quick"],
        stdin=subprocess.PIPE,
        # `-m` looks there first: the very files that run here, and nothing that happens to be where the user is
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    with process:
        try:
            yield process
        finally:
            process.kill()  # does nothing to one that has ended


def _let_continue(process: "subprocess.Popen[str]", directory: Path) -> None:
    """Tell the process its directory, and wait for its end."""
    try:
        _, said = process.communicate(str(directory), timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        raise StoppedError(f"the new process did not end within {MOST_SECONDS} s") from None
    if process.returncode:
        lines = "".join(f"  {line}\n" for line in said.splitlines()[-20:])
        raise StoppedError(f"the new process failed with exit code {process.returncode}\n{lines}".rstrip())


def _continue(directory: Path) -> None:
    """Load the state in the middle, do the remaining steps, and write down what came out."""
    trainer = _build(_config(directory))
    outputs = _train(trainer, NUM_STEPS, read_checkpoint(directory / _MIDDLE).whole_state())
    _publish_state(directory / _CONTINUED, trainer.snapshot())
    publish(directory / _OUTPUTS, to_bytes(outputs))


if __name__ == "__main__":
    given = sys.stdin.read()
    if given:  # nothing if the process that asked has died
        _continue(Path(given))
