import io
import sys

import pytest

from clip_hba_behavior.run.output import lasting_output


def printed(encoding: str, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with lasting_output():
        print(text, end="")
    assert sys.stdout is stream
    assert stream.errors == "strict"
    return buffer.getvalue().decode(encoding)


def test_a_console_that_lacks_a_sign_shows_its_number_and_a_tables_line_as_hyphens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert printed("cp1252", "✓ ── é", monkeypatch) == "\\u2713 -- é"
    assert printed("utf-8", "✓ ── é", monkeypatch) == "✓ ── é"


def test_within_another_such_context_nothing_is_put_back_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    with lasting_output():
        with lasting_output():
            print("✓")
        print("✓")
