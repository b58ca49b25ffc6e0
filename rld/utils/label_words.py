"""The words by which models say the labels of a skill."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple


def begins_another(words: Sequence[str]) -> tuple[str, str] | None:
    """Return words of a label and those of another one that begin with them; None if there are none.

    The end of a completion is then part of what says each label: the probability of ` Tech` would otherwise contain
    that of ` Technology`. Elsewhere the end is left out, because it tells nothing of the label whether a model stops.
    """
    return next(
        ((word, longer) for word in words for longer in words if word != longer and longer.startswith(word)), None
    )


class LabelWords(NamedTuple):
    """The words of a skill's labels, which are the completions of its prompts in the order of `completions`."""

    words: Sequence[str]
    """Of each label its own words, which the student learns to say."""
    synonyms: Sequence[Sequence[str]] = ()
    """Of each label further words, which only teachers are asked for; empty where no label has any."""

    @property
    def completions(self) -> list[tuple[int, str]]:
        """The number of the label that each completion says, and in which words: own words first, then synonyms."""
        return [*enumerate(self.words), *((label, text) for label, texts in enumerate(self.synonyms) for text in texts)]

    def problem(self) -> str | None:
        """Return what is wrong with the synonyms, as a clause; None if nothing.

        Words are the same up to white space and the form of accents. The words of two labels may not begin with one
        another, because the end of an answer is no part of a synonym.
        """
        if self.synonyms and len(self.synonyms) != len(self.words):
            return f"there should be a list for each of the {len(self.words)} labels, not {len(self.synonyms)}"
        before: list[tuple[int, str]] = []
        for label, text in self.completions:
            plain = " ".join(unicodedata.normalize("NFC", text).split())
            if not plain:
                return f"a synonym of {self.words[label]!r} has no words"
            for other, earlier in before:
                if plain == earlier:
                    return f"the words {text!r} are there twice"
                is_part = plain.startswith(earlier) or earlier.startswith(plain)
                if is_part and label != other and len(before) >= len(self.words):
                    return f"the words {text!r} and {earlier!r} are of two labels, and one begins with the other"
            before.append((label, plain))
        return None
