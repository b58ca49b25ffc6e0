"""Whether two models have the same tokenizer, told from their files without loading either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rld.errors import LibraryError


def same_tokenizer(ours: Path, theirs: Path) -> bool:
    """Return whether the same ids mean the same text in two `tokenizer.json`.

    Vocabularies that differ only in what one has behind the other's, such as padding, are the same.

    Raises:
        LibraryError: one of them is no tokenizer, such as a placeholder that git-lfs left.
    """
    if ours.stat().st_size == theirs.stat().st_size and ours.read_bytes() == theirs.read_bytes():
        return True
    small, large = sorted((_vocabulary(ours), _vocabulary(theirs)), key=len)
    return small.items() <= large.items()


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        given: Any = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    except (ValueError, LookupError, TypeError) as error:
        raise LibraryError(f"{path} is no tokenizer; download it again") from error
    if isinstance(given, list):  # Unigram: tokens with their scores
        return {token: i for i, (token, _) in enumerate(given)}
    vocabulary: dict[str, int] = given
    return vocabulary
