"""What separates the cells of a table, told by its header: a comma, a semicolon or a tab."""

import csv
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from clip_hba_behavior.reproducibility.state.untrusted import read_rows

# The comma first: it is taken unless the header has more of the expected columns by another.
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def find_delimiter(path: Path, max_bytes: int, columns: Collection[str]) -> str:
    """Return the key of `DELIMITERS` by which a table's header has most of the expected columns.

    A table that can be read with commas is always read with commas.

    Raises:
        OSError: as `read_rows`.
        UnicodeDecodeError: as `read_rows`.
    """

    def num_columns(delimiter: str) -> int:
        with suppress(csv.Error):  # by this delimiter it is no CSV
            return len(set(columns) & set(_header(path, max_bytes, delimiter)))
        return 0

    return max(DELIMITERS, key=num_columns)


def _header(path: Path, max_bytes: int, delimiter: str) -> list[str]:
    """Return the cells of the first row that is not blank; none in an empty file. Raises as `read_rows`."""
    return next((cells for _, cells in read_rows(path, max_bytes, delimiter) if cells), [])
