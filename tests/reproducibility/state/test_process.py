import platform
import subprocess
import sys

import pytest

from clip_hba_behavior.reproducibility.state import process

REPEATS = """
import resource
from clip_hba_behavior.reproducibility.state.process import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        b"x" * 40_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = page_faults()
assert keep_freed_memory()
page_faults()
print(given_back, page_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be asked")
def test_freed_memory_is_kept_for_the_next_block() -> None:
    """In a process of its own: the C library's options stay."""
    done = subprocess.run([sys.executable, "-c", REPEATS], capture_output=True, text=True, check=True, timeout=120)
    given_back, kept = map(int, done.stdout.split())
    assert kept * 10 < given_back


def test_a_system_that_cannot_keep_it_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: object())
    assert not process.keep_freed_memory.__wrapped__()
