"""Reads data sets of the hub by `datasets.load_dataset`, which takes them from its cache where there is no network."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rld.errors import DataError
from rld.utils.hub import use_caches_if_unreachable

_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubRows(NamedTuple):
    """Rows of a data set of the hub.

    Attributes:
        dataset: Its id, owner/name.
        name: Its configuration. None: its default one.
        split: The split, or a part of it such as `train[:1000]`.
        revision: A branch, tag or commit. None: the newest one that there is.
    """

    dataset: str
    name: str | None
    split: str
    revision: str | None

    def __str__(self) -> str:
        return self.dataset


def read(rows: HubRows) -> Iterator[tuple[int, Any]]:
    """Yield each row's number, counted from 1, and its values by column.

    Raises:
        DataError: the data set, configuration, split or revision does not exist, or is not on this machine and the hub
            cannot be reached.
    """
    import datasets  # takes a second, and few recipes need it

    commit(rows)
    try:
        loaded = datasets.load_dataset(rows.dataset, rows.name, split=rows.split, revision=rows.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _error(rows, error) from error
    yield from enumerate(loaded, start=1)


@functools.cache
def commit(rows: HubRows) -> str:
    """Return the commit of a data set's revision.

    Raises:
        DataError: as `read`; or the cache has another revision, or it is unknown which one.
    """
    import datasets

    use_caches_if_unreachable()
    try:
        commit_hash: str = datasets.load_dataset_builder(rows.dataset, rows.name, revision=rows.revision).hash
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _error(rows, error) from error
    if rows.revision is not None and datasets.config.HF_HUB_OFFLINE:  # datasets then takes whatever its cache has
        is_commit = _COMMIT.fullmatch(rows.revision) is not None
        if commit_hash != (rows.revision if is_commit else _cached_commit(rows.dataset, rows.revision)):
            raise DataError(
                f"data set {rows}: the cache of this machine has commit {commit_hash}, and nothing says that it is "
                f"revision {rows.revision}; load that once with a network, or name this commit"
            )
    return commit_hash


def _cached_commit(dataset: str, revision: str) -> str | None:
    """Return the commit of a branch or tag as the cache of the hub has it; None if it does not know it."""
    from huggingface_hub.constants import HF_HUB_CACHE

    file = Path(HF_HUB_CACHE) / f"datasets--{dataset.replace('/', '--')}" / "refs" / revision
    return file.read_text().strip() if file.is_file() else None


def _error(rows: HubRows, error: Exception) -> DataError:
    fix = "; it is not in the cache of this machine either" if isinstance(error, ConnectionError) else ""
    return DataError(f"data set {rows}: {error}{fix}")
