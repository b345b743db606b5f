from collections.abc import Iterator

import pytest

from slurm import cluster


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the cluster is a system test."""
    for item in items:
        if "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.Cluster]:
    """A real one-node SLURM with the partitions `low`, `low_without_grace` and `high`; stopped at the end."""
    directory = tmp_path_factory.mktemp("slurm")
    try:
        running = cluster.start(directory)
    except cluster.ClusterError as error:
        pytest.skip(f"no SLURM here: {error}")
    try:
        yield running
    finally:
        running.stop()
    left = cluster.processes_of(directory)
    assert not left, f"the cluster left processes behind: {left}"
