"""TensorBoard's own readers, and what a run's records hold of each point."""

import csv
import json
import subprocess
import time
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.data.provider import DataProvider
from tensorboard.data.server_ingester import ExistingServerDataIngester, get_server_binary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.grpc_util import ChannelCredsType

Points = dict[str, list[tuple[int, float]]]  # by name: steps and values, in their order

ALL = {"scalars": 1_000_000}
COLUMNS = {"train_loss": "loss/train", "test_loss": "loss/test", "behavioral_rsa_rho": "rsa/rho"}


def recorded(run: Path) -> Points:
    """Each point of a run's CSV and ledger, in single precision, read without the package."""
    with (run / "training_res.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found: Points = {
        name: [(int(row["epoch"]), float(np.float32(row[column]))) for row in rows]
        for column, name in COLUMNS.items()
    }
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["step"] != "end"]
    num_steps = max(line["step"] for line in steps)
    found["loss/step"] = [
        ((line["epoch"] - 1) * num_steps + line["step"], float(np.float32(line["loss"]))) for line in steps
    ]
    return found


class Watching:
    """The readers of a TensorBoard that is open: one run by the accumulator, all by what its page asks."""

    def __init__(self, directory: Path) -> None:
        self._accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
        self._multiplexer = EventMultiplexer(tensor_size_guidance={"scalars": 0})
        self._multiplexer.AddRun(str(directory), name=".")
        self._provider = MultiplexerDataProvider(self._multiplexer, str(directory))

    def accumulated(self) -> Points:
        self._accumulator.Reload()
        names = self._accumulator.Tags()["scalars"]
        return {name: [(each.step, each.value) for each in self._accumulator.Scalars(name)] for name in names}

    def multiplexed(self) -> Points:
        self._multiplexer.Reload()
        return provided(self._provider).get(".", {})

    def both(self) -> list[Points]:
        return [self.accumulated(), self.multiplexed()]


def provided(provider: DataProvider) -> dict[str, Points]:
    """Of each run what a page of TensorBoard is given."""
    found = provider.read_scalars(
        RequestContext(), experiment_id="", plugin_name="scalars", downsample=ALL["scalars"]
    )
    return {
        run: {name: [(each.step, each.value) for each in points] for name, points in names.items()}
        for run, names in found.items()
    }


def served(logdir: Path, port_file: Path) -> dict[str, Points]:
    """What the data server finds, a program of its own, which TensorBoard uses unless told otherwise."""
    program = get_server_binary().path
    options = [f"--logdir={logdir}", "--reload=once", "--samples-per-plugin=scalars=all"]
    ends = ["--port=0", f"--port-file={port_file}", "--die-after-stdin"]
    with subprocess.Popen([program, *options, *ends], stdin=subprocess.PIPE) as server:
        found: dict[str, Points] = {}
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.1)
            if not port_file.is_file() or not port_file.read_text().endswith("\n"):
                continue
            address = f"localhost:{int(port_file.read_text())}"
            ingester = ExistingServerDataIngester(address, channel_creds_type=ChannelCredsType.LOCAL)
            before, found = found, provided(ingester.data_provider)
            if found and found == before:  # it answers before it has read all
                break
        server.communicate()
    return found


def provided_hyperparameters(directory: Path) -> dict[str, object]:
    """What the dashboard of hyperparameters is given of a run."""
    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    content = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info
    assert found.start_time_secs == 0
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in found.hparams.items()}
    return dict(values)
