"""Open a zip archive made by `torch.save` or TorchScript, or refuse what is none; its records are not read yet."""

import errno
import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from clip_hba_behavior.reproducibility.state.errors import BadInputError, UnreadableError
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_regular

MAX_FILE_BYTES = 8 * 1024 * MIB  # ViT-L/14@336px has 1.7 GB in float32
_MAX_DIRECTORY_BYTES = 8 * MIB  # 90 bytes for a tensor

# What a damaged or forged archive makes zipfile, the unpickler and torch raise.
LOADING_ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
# What the machine, and not a file's content, makes a read fail with.
_PASSING = {
    getattr(errno, name)
    for name in ("EIO", "ENOMEM", "EMFILE", "ENFILE", "EACCES", "EPERM", "ESTALE", "ETIMEDOUT", "ENXIO", "ENODEV")
}


@contextmanager
def open_archive(
    path: Path, what: str, max_bytes: int = MAX_FILE_BYTES
) -> Iterator[tuple[io.BufferedReader, zipfile.ZipFile]]:
    """Open a zip archive, once its directory is known to be small and to lie where any reader looks for it.

    Raises:
        BadInputError: no such file, or no archive of `torch.save` or TorchScript.
        UnreadableError: it cannot be read just now.
    """
    try:
        file = open_regular(path, max_bytes)
    except FileNotFoundError:
        raise BadInputError(f"there is no {what} {path}") from None
    except OSError as error:
        raise unreadable(path, what, error) or BadInputError(f"{path} is no {what}: {error}") from None
    with file:
        size = file.seek(0, io.SEEK_END)
        try:
            check_directory(file, size)
            archive = zipfile.ZipFile(file)
        except LOADING_ERRORS as error:
            raise unreadable(path, what, error) or BadInputError(
                f"{path} is no {what}, or a torn one ({size} bytes): {reason(error)}"
            ) from error
        with archive:
            yield file, archive


def unreadable(path: Path, what: str, error: Exception) -> UnreadableError | None:
    """Return the refusal of a file that cannot be read just now; None where the error is of its content."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _PASSING):
        return UnreadableError(
            f"{what} {path} cannot be read just now: {reason(error)}\n  it stays where it is; try again"
        )
    return None


def reason(error: Exception) -> str:
    """Return what an error says, in one line."""
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def check_directory(file: BinaryIO, size: int) -> None:
    """Refuse an archive that does not end with its one directory and that directory's end record.

    zipfile holds the whole directory in memory, and torch's reader could find another one than zipfile.
    """
    file.seek(max(0, size - 98))
    tail = file.read(98)
    end = tail[-22:]
    if len(end) < 22 or not end.startswith(b"PK\5\6") or not end.endswith(b"\0\0"):
        raise zipfile.BadZipFile("File is not a zip file")
    stop = size - 22
    num_bytes, start = struct.unpack("<LL", end[12:20])
    if tail[-42:].startswith(b"PK\6\7"):  # the 64-bit form, as torch writes it
        stop = size - 98
        num_bytes, start = struct.unpack("<QQ", tail[-58:-42])
        if len(tail) < 98 or not tail.startswith(b"PK\6\6") or struct.unpack("<Q", tail[-34:-26]) != (stop,):
            raise zipfile.BadZipFile("its directory's end record is not at its end")
    if start + num_bytes != stop or num_bytes > _MAX_DIRECTORY_BYTES:
        raise zipfile.BadZipFile(f"its directory claims {num_bytes} bytes from {start} on")
