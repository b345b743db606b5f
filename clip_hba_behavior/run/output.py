"""Standard output and error whose reader may leave, or lack a sign: that ends no run."""

import codecs
import errno
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, TypeVar, cast

T = TypeVar("T")

_ESCAPED = "clip_hba_behavior.escaped"


class _Lasting:
    """A stream that drops what nobody reads any more, instead of raising."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._attempt(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        self._attempt(self._stream.flush, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, work: Callable[[], T], otherwise: T) -> T:
        try:
            return work()
        except OSError as error:
            with suppress(OSError, ValueError, AttributeError):  # a stream without a descriptor
                descriptor = self._stream.fileno()
                if _reader_is_gone(error, descriptor):
                    _discard(descriptor)
                    return otherwise
            raise


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let whoever reads standard output or error go away without ending the work."""
    before = sys.stdout, sys.stderr
    escaping = [each for each in before if _escape_what_has_no_code(each)]
    sys.stdout, sys.stderr = (_lasting(each) for each in before)
    try:
        yield
    finally:
        lasting = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = before
        for stream in lasting:
            if isinstance(stream, _Lasting):
                stream.flush()  # not at the interpreter's end, which would change the exit code
        for stream in escaping:
            if isinstance(stream, io.TextIOWrapper) and not stream.closed:
                stream.reconfigure(errors="strict")


def _escape_what_has_no_code(stream: TextIO | None) -> bool:
    r"""Let a stream whose encoding has no ✓, such as Windows' cp1252, write \u2713; return whether it is one."""
    if not isinstance(stream, io.TextIOWrapper) or stream.errors != "strict":
        return False
    if codecs.lookup(stream.encoding).name.startswith("utf"):
        return False
    codecs.register_error(_ESCAPED, _escape)
    stream.reconfigure(errors=_ESCAPED)
    return True


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] in "─━":  # a table's lines
        return "-", error.start + 1
    return codecs.backslashreplace_errors(error)


def _lasting(stream: TextIO | None) -> TextIO:
    if stream is None or isinstance(stream, _Lasting):  # closed at the start; or within another such context
        return cast(TextIO, stream)
    return cast(TextIO, _Lasting(stream))


def _reader_is_gone(error: OSError, descriptor: int) -> bool:
    """Whether a pipe has no reader, or a terminal hung up; not a disk that is full or broken."""
    if error.errno == errno.EPIPE:
        return True
    if error.errno == errno.EINVAL and stat.S_ISFIFO(os.fstat(descriptor).st_mode):  # Windows' word for it
        return True
    return error.errno == errno.EIO and stat.S_ISCHR(os.fstat(descriptor).st_mode)


def _discard(descriptor: int) -> None:
    """Let what is written to a descriptor from now on go nowhere: also what Python still holds for it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
