"""Small puzzles on strings of the letters a to j, for models with one token per character.

Each is a function `(rng, *, length) -> (question, answer)` with questions such as `rev:bca=`.
"""

from __future__ import annotations

import random

LETTERS = "abcdefghij"


def _letters(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(LETTERS, k=length))


def reverse(rng: random.Random, *, length: int) -> tuple[str, str]:
    """Read the letters backwards: `rev:bca=` is `acb`."""
    word = _letters(rng, length)
    return f"rev:{word}=", word[::-1]


def sort(rng: random.Random, *, length: int) -> tuple[str, str]:
    """Put the letters in order: `srt:bca=` is `abc`."""
    word = _letters(rng, length)
    return f"srt:{word}=", "".join(sorted(word))


def shift(rng: random.Random, *, length: int) -> tuple[str, str]:
    """Replace each letter by the next, and j by a: `nxt:bcj=` is `cda`."""
    word = _letters(rng, length)
    following = dict(zip(LETTERS, LETTERS[1:] + LETTERS[0], strict=True))
    return f"nxt:{word}=", "".join(following[letter] for letter in word)


def rotate(rng: random.Random, *, length: int) -> tuple[str, str]:
    """Move the first letter to the end: `rot:bca=` is `cab`."""
    word = _letters(rng, length)
    return f"rot:{word}=", word[1:] + word[0]
