"""Workers that die in the midst of sending a result, and such as start where TMPDIR's path is long."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from clip_hba_behavior.run.workers import check_workers, workers


def begin() -> None:
    pass


def die_while_sending() -> None:
    """Announce a result of 1,000 bytes to the pool, send none of them, and die."""
    frame = sys._getframe()
    while "result_queue" not in frame.f_locals:
        assert frame.f_back is not None
        frame = frame.f_back
    os.write(frame.f_locals["result_queue"]._writer.fileno(), (1000).to_bytes(4, "big"))
    os.kill(os.getpid(), signal.SIGKILL)


def ask_until_it_is_told() -> None:
    with workers(2, __name__, begin) as pool:
        pool.submit(time.sleep, 0)
        future = pool.submit(die_while_sending)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert not wait([future], 0.1).done  # the pool itself does not notice
            check_workers(pool)


@pytest.mark.timeout(120)
def test_the_pool_ends_and_is_told_broken() -> None:
    with pytest.raises(BrokenProcessPool, match="a worker has ended"):
        ask_until_it_is_told()


WORK_WHERE_TMPDIR_IS_LONG = """
import os, tempfile
from clip_hba_behavior.data import readers
from clip_hba_behavior.run import workers

def nothing():
    pass

class Images:
    def __getitems__(self, indices):
        return indices

if __name__ == "__main__":
    {change}
    with workers.workers(1, "os", nothing) as pool:
        assert pool.submit(os.getppid).result(60) != os.getpid()
    assert list(readers.read_in_order(Images(), [[1, 2], [3]], 1, "native")) == [[1, 2], [3]]
    assert tempfile.gettempdir() == os.environ["TMPDIR"]  # for everything else
"""


@pytest.mark.parametrize("change", ["pass", "workers.keep_socket_paths_short = int"])
def test_sockets_find_a_place_where_the_path_of_tmpdir_is_too_long_for_one(change: str, tmp_path: Path) -> None:
    long = tmp_path / ("a" * 100)
    long.mkdir()
    script = tmp_path / "script.py"
    script.write_text(WORK_WHERE_TMPDIR_IS_LONG.format(change=change))
    environment = os.environ | {"TMPDIR": str(long), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=100
    )
    if change == "pass":
        assert done.returncode == 0, done.stderr
    else:
        assert "AF_UNIX path too long" in done.stderr
