"""What the files of tokenizers tell without loading them: whether two are the same, and the number of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rld.errors import LibraryError
from rld.recipe import registry


def lone_tokenizer(name: str, relative_to: Path) -> Path | None:
    """Return the tokenizer file of a folder that holds a tokenizer and no model; None if the name is of another."""
    place = registry.find_path(name, relative_to)
    is_alone = place is not None and not (place / "config.json").is_file()
    return registry.model_file(name, "tokenizer.json", relative_to) if is_alone else None


def num_tokens(path: Path) -> int:
    """Return the number of tokens of a `tokenizer.json`, those that were added to its vocabulary included.

    Raises:
        LibraryError: it is not a tokenizer file.
    """
    vocabulary = _vocabulary(path)
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens") or []
    return len({*vocabulary, *(token["content"] for token in added)})


def same_tokenizer(first: Path, second: Path) -> bool:
    """Return whether the same ids mean the same text in two `tokenizer.json`.

    Vocabularies count as the same when one only adds tokens to the other, such as padding.

    Raises:
        LibraryError: one of them is not a tokenizer file, for example a git-lfs pointer.
    """
    if first.stat().st_size == second.stat().st_size and first.read_bytes() == second.read_bytes():
        return True
    small, large = sorted((_vocabulary(first), _vocabulary(second)), key=len)
    return small.items() <= large.items()


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        vocab: Any = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    except (ValueError, LookupError, TypeError) as error:
        raise LibraryError(f"{path} is no tokenizer; download it again") from error
    if isinstance(vocab, list):  # Unigram: tokens with their scores
        return {token: i for i, (token, _) in enumerate(vocab)}
    vocabulary: dict[str, int] = vocab
    return vocabulary
