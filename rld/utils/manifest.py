"""A manifest: the size and hash of every file of a folder, by which a damaged folder is noticed.

It is written last and whole, so a folder that was not written to the end has none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rld.errors import CheckpointError
from rld.utils.files import Record, read_json, write_bytes

MANIFEST = "rld_files.json"
"""The name of the manifest in the folder that it describes."""

_BLOCK = 1 << 26
"""Bytes that a thread hashes at once. `hashlib` runs outside of Python's lock, so several threads share a file."""


def write_manifest(folder: Path) -> None:
    """Write the manifest of a folder whose other files are complete."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    records = {path.relative_to(folder).as_posix(): file_record(path) for path in paths}
    # not by write_json, which may find a short secret in a hash
    write_bytes(folder / MANIFEST, json.dumps(records, indent=1).encode())


def has_manifest(folder: Path) -> bool:
    """Tell whether a folder was written to the end; its files may have been damaged since."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Record]:
    """Return the size and hash of each file of a folder, by its name.

    Raises:
        CheckpointError: the manifest is missing or damaged.
    """
    return read_json(folder / MANIFEST)


def damage(folder: Path, unless: Iterable[str] = ()) -> str | None:
    """Return what is wrong with a folder, as the end of a sentence about it; None if all its files are sound.

    Args:
        unless: Names of files that are not looked at.
    """
    if not has_manifest(folder):
        return "was not written to the end"
    try:
        records = read_manifest(folder)
    except CheckpointError:
        return f"has a damaged {MANIFEST}"
    for name, expected in records.items():
        path = folder / name
        if name in unless:
            continue
        if not path.is_file():
            return f"lacks {name}"
        if not isinstance(expected, dict) or path.stat().st_size != expected.get("size"):
            return f"has a {name} of another size than was written"
        if file_record(path) != expected:
            return f"has a {name} with other bytes than were written"
    return None


def file_record(path: Path) -> Record:
    """Return a file's size in bytes, and the SHA-256 of the SHA-256 of each block of 64 MiB."""
    size = path.stat().st_size
    offsets = range(0, size, _BLOCK)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        digests = list(threads.map(lambda offset: _block_digest(path, offset), offsets))
    return {"size": size, "sha256": hashlib.sha256(b"".join(digests)).hexdigest()}


def _block_digest(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return hashlib.sha256(file.read(_BLOCK)).digest()
