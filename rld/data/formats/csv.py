"""Reads CSV files whose first line holds the column names."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number of each record's last line and its values by column.

    Raises:
        ValueError: the file is not CSV.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            yield from ((reader.line_num, record) for record in reader)
        except csv.Error as error:
            raise ValueError(str(error)) from error
