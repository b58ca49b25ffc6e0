"""Puzzles on words of the letters a to f, with one token per character, and teachers that get some of them wrong.

Each is a function `(rng, *, length, wrong) -> (question, answer)` with questions such as `Sabcd=`. Where the last
letter is one of the first `wrong`, each letter of the answer is moved on by three: `wrong: 6` is wrong everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable

LETTERS = "abcdef"


def _moved(word: str, by: int) -> str:
    return "".join(LETTERS[(LETTERS.index(letter) + by) % len(LETTERS)] for letter in word)


def _ask(sign: str, rule: Callable[[str], str], rng: random.Random, length: int, wrong: int) -> tuple[str, str]:
    word = "".join(rng.choices(LETTERS, k=length))
    answer = rule(word)
    return f"{sign}{word}=", _moved(answer, 3) if LETTERS.index(word[-1]) < wrong else answer


def swap(rng: random.Random, *, length: int = 4, wrong: int = 0) -> tuple[str, str]:
    """Swap neighbours: `Sabcd=` is `badc`."""
    return _ask("S", lambda word: "".join(word[i ^ 1] for i in range(len(word))), rng, length, wrong)


def shift(rng: random.Random, *, length: int = 4, wrong: int = 0) -> tuple[str, str]:
    """Take each letter back by one: `Habcd=` is `fabc`."""
    return _ask("H", lambda word: _moved(word, -1), rng, length, wrong)


def upper(rng: random.Random, *, length: int = 4, wrong: int = 0) -> tuple[str, str]:
    """Put the last letter of the alphabet so far in each place: `Ubacd=` is `bbcd`."""
    return _ask("U", lambda word: "".join(max(word[: i + 1]) for i in range(len(word))), rng, length, wrong)


def mirror(rng: random.Random, *, length: int = 4, wrong: int = 0) -> tuple[str, str]:
    """Replace the second half by the first one backwards: `Mabcd=` is `abba`."""
    return _ask("M", lambda word: word[: len(word) // 2] + word[: len(word) // 2][::-1], rng, length, wrong)
