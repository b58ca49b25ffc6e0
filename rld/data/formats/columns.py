"""What files with a row of column names have in common."""

from __future__ import annotations

from collections.abc import Sequence


def require_different(names: Sequence[str]) -> None:
    """Refuse columns of which two have one name, since the values of one would be lost.

    Raises:
        ValueError: there are such columns.
    """
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"two of its columns are called {repeated[0]!r}")
