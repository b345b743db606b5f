"""A report replaces an older one, and nothing that is anybody else's."""

import subprocess
import sys
from pathlib import Path

import pytest

from clip_hba_behavior.report.output import MANIFEST, refuse_foreign, write_report
from clip_hba_behavior.reproducibility.record.lease import hold
from clip_hba_behavior.reproducibility.state.errors import BadInputError

FIRST = {"index.html": b"one", "figures/a.svg": b"a", "figures/b.svg": b"b"}


def content_of(directory: Path) -> dict[str, bytes]:
    files = [each for each in directory.rglob("*") if each.is_file() and each.name != MANIFEST]
    return {each.relative_to(directory).as_posix(): each.read_bytes() for each in files}


def test_a_report_takes_the_place_of_an_older_one_and_leaves_none_of_its_files(tmp_path: Path) -> None:
    write_report(tmp_path / "report", FIRST)
    assert content_of(tmp_path / "report") == FIRST
    second = {"index.html": b"two", "figures/a.svg": b"a"}
    write_report(tmp_path / "report", second)
    assert content_of(tmp_path / "report") == second


def test_a_directory_with_anything_else_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInputError, match=r"holds what no report wrote: notes\.txt"):
        write_report(tmp_path, FIRST)
    assert content_of(tmp_path) == {"notes.txt": b"mine"}
    (tmp_path / "notes.txt").unlink()
    write_report(tmp_path, FIRST)
    (tmp_path / "figures" / "mine.svg").write_text("mine")
    with pytest.raises(BadInputError, match=r"holds what no report wrote: figures/mine\.svg"):
        write_report(tmp_path, FIRST)


def test_a_file_that_was_edited_since_is_not_replaced(tmp_path: Path) -> None:
    write_report(tmp_path, FIRST)
    (tmp_path / "figures/a.svg").write_text("edited")
    with pytest.raises(BadInputError, match=r"a\.svg was changed since the report was written"):
        write_report(tmp_path, FIRST)
    assert (tmp_path / "figures/a.svg").read_text() == "edited"


def test_a_report_that_was_cut_short_can_be_made_again(tmp_path: Path) -> None:
    write_report(tmp_path, FIRST)
    (tmp_path / "figures/b.svg").unlink()
    write_report(tmp_path, FIRST)
    assert content_of(tmp_path) == FIRST


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "{}",
        '{"kind": "another", "files": {}}',
        '{"kind": "clip_hba_behavior report", "files": {"../a": ""}}',
        '{"kind": "clip_hba_behavior report", "files": {"": ""}}',
    ],
)
def test_a_manifest_of_something_else_gives_no_leave(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(BadInputError, match="is not a report's"):
        refuse_foreign(tmp_path)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInputError, match="is a file"):
        refuse_foreign(tmp_path / "file")


def test_what_a_killed_report_left_is_removed_by_the_next_and_the_like_of_others_stays(tmp_path: Path) -> None:
    write_report(tmp_path, FIRST)
    for name in ("figures/.a.svg.abcd1234.tmp", f".{MANIFEST}.abcd1234.tmp"):
        (tmp_path / name).write_bytes(b"half")
    write_report(tmp_path, FIRST)
    assert content_of(tmp_path) == FIRST
    (tmp_path / "figures/.mine.svg.abcd1234.tmp").write_bytes(b"mine")
    with pytest.raises(BadInputError, match=r"holds what no report wrote: figures/\.mine\.svg\.abcd1234\.tmp"):
        write_report(tmp_path, FIRST)


def test_a_link_to_a_directory_is_not_written_through(tmp_path: Path) -> None:
    write_report(tmp_path / "report", FIRST)
    (tmp_path / "report/figures").rename(tmp_path / "mine")
    (tmp_path / "report/figures").symlink_to(tmp_path / "mine")
    (tmp_path / "mine/a.svg").write_text("edited")
    with pytest.raises(BadInputError, match="holds what no report wrote: figures"):
        write_report(tmp_path / "report", FIRST)
    assert (tmp_path / "mine/a.svg").read_text() == "edited"


def test_a_place_in_which_nothing_can_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(BadInputError, match="file is a file"):
        refuse_foreign(tmp_path / "file/report")
    with pytest.raises(BadInputError, match="link is a link to nothing"):
        refuse_foreign(tmp_path / "link")


def test_a_second_report_into_the_same_directory_is_refused_while_one_is_written(tmp_path: Path) -> None:
    write_report(tmp_path / "report", FIRST)
    with hold(tmp_path / "report"):
        program = (
            "import sys\nfrom pathlib import Path\n"
            "from clip_hba_behavior.report.output import write_report\n"
            "from clip_hba_behavior.reproducibility.state.errors import BadInputError\n"
            "try:\n    write_report(Path(sys.argv[1]), {'index.html': b'two'})\n"
            "except BadInputError as error:\n    print(error)\n    sys.exit(2)\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "report")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert f"{tmp_path / 'report'} is in use" in done.stdout
        assert (tmp_path / "report/index.html").read_bytes() == b"one"
    write_report(tmp_path / "report", {"index.html": b"two"})  # the lock that was left is nobody's
    assert content_of(tmp_path / "report") == {"index.html": b"two"}
