"""What commands on a trained model refuse before torch is imported."""

import os
from pathlib import Path

from clip_hba_behavior.reproducibility.state.archive import open_archive
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.directory import RunDirectory

TABLE_SUFFIXES = (".csv", ".parquet", ".npy")
FORMATS = ("peft", "merged")
CHANCE = 1 / 3
# How well people's choices in repeated triplets of THINGS agree: no model can be expected to do better.
CEILINGS = {"brain-score": (0.6767, "of THINGS' triplets, by Brain-Score's benchmark Hebart2023")}


def named_checkpoint(run: Path, epoch: int | None) -> Path:
    """Return the checkpoint that is meant.

    Args:
        run: the run's directory.
        epoch: number of completed epochs; None for the best one, as `best.json` names it.

    Raises:
        BadInputError: there is no such run, or no such checkpoint in it.
    """
    directory = RunDirectory.at(run)
    directory.refuse_if_no_run()
    return directory.checkpoint_of(directory.read_best()[0] if epoch is None else epoch, "--epoch")


def refuse_no_model(source: Path) -> None:
    """Return if a run, or a checkpoint, is there.

    Raises:
        BadInputError: it is not, or is a torn file.
    """
    if source.is_dir():
        RunDirectory.at(source).refuse_if_no_run()
        return
    if not source.exists() and source.suffix != ".pth":
        raise BadInputError(
            f"there is no run {source}, and no checkpoint\n"
            f"  list the runs that there are: {command_line('runs', source.parent)}"
        )
    with open_archive(source, "checkpoint"):
        pass


def refuse_bad_table(path: Path) -> None:
    """Return if predictions can be written to a file.

    Raises:
        BadInputError: its ending names no format, or it is there already.
    """
    if path.suffix not in TABLE_SUFFIXES:
        raise BadInputError(
            f"--out {path}: its ending names no format\n  found:    {path.suffix or 'none'}\n"
            f"  expected: {', '.join(TABLE_SUFFIXES)}"
        )
    refuse_taken(path, *([names_file(path)] if path.suffix == ".npy" else []))


def names_file(path: Path) -> Path:
    """Return the path of the file with the names of a `.npy`'s rows."""
    return path.with_name(f"{path.stem}_file_names.txt")


def export_request(run: Path, epoch: int | None, format: str, out: Path, certificate: Path | None) -> Path:
    """Return the checkpoint to export.

    Raises:
        BadInputError: as `named_checkpoint`; or the format is none, `out` is taken, or the certificate not there.
    """
    if format not in FORMATS:
        raise BadInputError(f"--format {format}: expected {' or '.join(FORMATS)}")
    refuse_taken(out)
    if certificate is not None:
        refuse_no_file(certificate, "--certificate")
    return named_checkpoint(run, epoch)


def refuse_no_file(path: Path, option: str) -> None:
    """Return if a file that an option names is there.

    Raises:
        BadInputError: it is not.
    """
    if not path.is_file():
        raise BadInputError(
            f"{option} {path}: there is no such file\n  give the path of a file, or leave {option} out"
        )


def refuse_taken(*paths: Path) -> None:
    """Return if something can be written to each path.

    Raises:
        BadInputError: one is there already, even as a broken link; or nothing can be made where it would be.
    """
    for path in paths:
        if os.path.lexists(path):
            raise BadInputError(f"{path} is there already, and is not replaced\n  give another --out, or move it")
        above = next(each for each in path.absolute().parents if os.path.lexists(each))
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            reason = "cannot be written in" if above.is_dir() else "is no directory"
            raise BadInputError(f"--out {path} cannot be: {above} {reason}\n  give another --out")


def refuse_bad_triplets(triplets: Path, images: Path, odd: str) -> None:
    """Return if triplets and images are there, and `odd` names a column.

    Raises:
        BadInputError: says what is not.
    """
    if odd not in ("first", "last"):
        raise BadInputError(f"--odd {odd}: expected first or last")
    if not triplets.is_file():
        raise BadInputError(f"there is no file of triplets {triplets}\n  give a text file, three indices a line")
    if not images.exists():
        raise BadInputError(
            f"there is nothing at --images {images}\n"
            "  give a directory of images, or a text file with one path a line"
        )


def triplet_ceiling(name: str | None) -> tuple[float, str] | None:
    """Return a noise ceiling of odd-one-out choices, and where it comes from.

    Args:
        name: one of `CEILINGS`, or a number.

    Raises:
        BadInputError: it is neither, or the number is not above chance.
    """
    if name is None or name in CEILINGS:
        return None if name is None else CEILINGS[name]
    try:
        value = float(name)
    except ValueError:
        value = 0.0
    if not CHANCE < value <= 1:
        raise BadInputError(
            f"--ceiling {name}: expected {' or '.join(CEILINGS)}, or a number above 1/3 and at most 1"
        )
    return value, "as given"
