"""The log that a run keeps, with times; the same bytes on every system."""

import io
import logging
from pathlib import Path


class LogFile(logging.FileHandler):
    """Appends to a log, in UTF-8 and with line ends as everywhere but on Windows."""

    def __init__(self, path: Path) -> None:
        """Open the file; made if it is not there."""
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def _open(self) -> io.TextIOWrapper:
        return Path(self.baseFilename).open("a", encoding="utf-8", newline="\n")
