import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import fresh_process

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported

from clip_hba_behavior.data.standin import data_keys, write_standin_dataset

torch.set_num_threads(1)  # tests side by side have a core each; more threads would wait for one another
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup every process of a test would ignore it

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _caches_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or fills the user's own cache; all share one."""
    fresh_process.start_server()
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _numerics_of_this_process() -> Iterator[None]:
    """A test that trains in this process leaves its numerics to no other."""
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def standin_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic data set in THINGS format: 60 annotated images, 48 held out."""
    directory = tmp_path_factory.mktemp("standin")
    write_standin_dataset(directory, num_images=60)
    return directory


@pytest.fixture
def small_config(standin_data: Path) -> dict[str, object]:
    """Keys of a run on the synthetic data set that takes a second."""
    return {
        **data_keys(standin_data),
        "epochs": 4,
        "batch_size": 16,
        "num_threads": 1,
        "rank": 4,
        "lr": 1e-3,
        "device": "cpu",
    }


@pytest.fixture
def clip_hba(tmp_path: Path) -> Callable[..., fresh_process.Outcome]:
    """Run `clip-hba` with some arguments in a fresh process."""
    numbers = itertools.count()

    def run(*arguments: object) -> fresh_process.Outcome:
        output = tmp_path / f"output{next(numbers)}.txt"
        return fresh_process.call(fresh_process.clip_hba, [str(each) for each in arguments], output=output)

    return run


@pytest.fixture(scope="session")
def reference() -> Path:
    """What the earlier pipeline recorded; not part of the project."""
    directory = SHARED / "reference"
    if not directory.is_dir():
        pytest.skip("the recorded reference run is not at hand")
    return directory


@pytest.fixture(scope="session")
def things() -> Path:
    """The real targets, RDM and prompts of THINGS; not part of the project."""
    directory = SHARED / "things"
    if not directory.is_dir():
        pytest.skip("the THINGS tables are not at hand")
    return directory
