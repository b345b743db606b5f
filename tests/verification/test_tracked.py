"""`--loop MODULE:FUNCTION`: what is not there is told with what is."""

import sys
from pathlib import Path

import pytest

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.verification.tracked import find_loop


def test_a_loop_that_is_not_there_is_told_with_the_functions_of_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_loop.py").write_text(
        "from pathlib import Path\nfrom shutil import copy\n\n\ndef main(): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(BadInputError, match=r"my_loop\.py has no function man\n  found:    main$"):
        find_loop(tmp_path, "my_loop:man")
    with pytest.raises(BadInputError, match=r"expected a module, not a file\n  write my_loop:main$"):
        find_loop(tmp_path, "my_loop.py:main")
    assert find_loop(tmp_path, "my_loop:main").__name__ == "main"
