"""The files of rows that a path names, and their columns."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from rld.data.formats import FORMATS, TEXT_FORMATS, read_rows

_NUM_ROWS = 1000
"""Rows that are looked at: those of JSON Lines need not have the same keys."""


_COMPRESSED = {
    ".gz": b"\x1f\x8b",
    ".bz2": b"BZh",
    ".xz": b"\xfd7zXZ",
    ".zst": b"\x28\xb5\x2f\xfd",
    ".zip": b"PK\x03\x04",
}
"""How compressed files are called, and how they begin."""

_MAX_FILES = 200_000
"""Files of a folder that is read as texts: to list those of a whole disk takes minutes."""

_PARQUET = b"PAR1"
"""How files begin that are no text."""

_HEAD = 4096
"""Bytes of a file that tell whether it is compressed or text in UTF-16."""


def row_files(path: Path) -> list[Path]:
    """Return a file of rows, or those in a folder by name; other files in the folder are left out.

    A folder without any has the files of text in it and in the folders below, hidden ones left out.

    Raises:
        ValueError: it is no file of a format that is read, or a folder of none or of several formats, or with
            compressed files.
    """
    if not path.is_dir():
        if path.suffix not in FORMATS | TEXT_FORMATS:
            fix = "; unpack it" if path.suffix in _COMPRESSED else ""
            raise ValueError(
                f"rows come from {', '.join(FORMATS)} files, and from text such as .txt, not {path.name}{fix}"
            )
        return [path]
    compressed = sorted(file.name for file in path.iterdir() if file.suffix in _COMPRESSED)
    if compressed:
        raise ValueError(f"the folder {path.name} has compressed files; unpack {compressed[0]}, or move it elsewhere")
    files = sorted(file for file in path.iterdir() if file.suffix in FORMATS and file.is_file() and file.name[0] != ".")
    suffixes = sorted({file.suffix for file in files})
    if not files:
        files = [file for file in _files_below(path) if file.suffix in TEXT_FORMATS]
        if files:
            return files
        raise ValueError(f"there are no {', '.join(FORMATS)} files in the folder {path.name}, and no texts")
    if len(suffixes) > 1:
        raise ValueError(f"the folder {path.name} has files of several formats: {', '.join(suffixes)}")
    return files


def other_files(path: Path) -> list[Path]:
    """Return the files in a folder and below that `row_files` leaves out, by name and relative to it, but hidden ones.

    Raises:
        ValueError: as `row_files`.
    """
    row_paths = {*row_files(path)}
    return [file.relative_to(path) for file in _files_below(path) if file not in row_paths]


def _files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and in the folders below it, by name, hidden files and folders left out.

    Raises:
        ValueError: there are more than `_MAX_FILES`.
    """
    files: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
        if len(files) > _MAX_FILES:
            raise ValueError(
                f"there are more than {_MAX_FILES:,} files in the folder {folder.name or folder} and below it; name a "
                "folder that holds the rows alone, or put them into fewer files, such as one .jsonl"
            )
    return sorted(file for file in files if file.is_file())


def require_plain(file: Path) -> None:
    """Refuse a file that is compressed, whatever it is called, and text in UTF-16.

    Raises:
        OSError: it cannot be read.
        ValueError: it is such a file.
    """
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    if head.startswith(tuple(_COMPRESSED.values())):
        raise ValueError("it is compressed; unpack it")
    is_wide = head.startswith((b"\xff\xfe", b"\xfe\xff")) or head.count(0) > len(head) // 4
    if is_wide and not head.startswith(_PARQUET):
        raise ValueError("it is not text in UTF-8, but perhaps in UTF-16; save it as UTF-8")


def encoding_problem(file: Path) -> str:
    """Return what is wrong with a file that could not be decoded, with the first byte that is not in UTF-8."""
    start = 0
    with file.open("rb") as stream:
        if stream.read(len(_PARQUET)) == _PARQUET:
            return "has texts that are not in UTF-8; write them in UTF-8"
        stream.seek(0)
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                place = f"at byte {start + error.start} (0x{line[error.start]:02x}, on line {number})"
                return f"is not text in UTF-8, {place}; save it as UTF-8"
            start += len(line)
    return "is not text in UTF-8; save it as UTF-8"


def first_columns(path: Path) -> list[str]:
    """Return the columns that the first rows of a file or folder have, in order; none where it cannot be read."""
    columns: dict[str, None] = {}
    try:
        file = row_files(path)[0]
        for _, record in itertools.islice(read_rows(file), _NUM_ROWS):
            columns |= dict.fromkeys(record) if isinstance(record, dict) else {}
    except (OSError, ValueError):  # reading the rows says what is wrong with it
        return []
    return list(columns)
