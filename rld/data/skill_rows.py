"""The rows of each skill: held-out rows, which are never trained on, and training rows per level."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from pathlib import Path

from rld.data.generators import item_factory
from rld.data.items import Item, ItemFactory
from rld.errors import DataError
from rld.recipe.schema import Recipe
from rld.recipe.skills import Prompts
from rld.types import Row
from rld.utils.suggestions import describe_exception

_MOST_TRIES = 200
"""Consecutive draws of held-out questions after which a level is considered exhausted."""


def skill_rows(recipe: Recipe, folder: Path) -> dict[str, SkillRows]:
    """Return the row source of each skill of a recipe; `folder` is the recipe's folder.

    Raises:
        DataError: rows that cannot be read.
        LibraryError: a generator that does not exist.
    """
    held_out_questions: set[str] = set()
    sources = {
        name: SkillRows(
            name,
            *item_factory(skill, folder),
            skill.held_out,
            recipe.skill_prompts(name),
            recipe.seed,
            held_out_questions,
        )
        for name, skill in recipe.skills.items()
    }
    for source in sources.values():  # skills may share questions, so all hold rows out before any draws training rows
        source.held_out()
    return sources


class SkillRows:
    """The rows of one skill.

    Args:
        skill: The skill's name.
        make: Makes an item of a level.
        num_levels: Number of levels that `make` accepts.
        num_held_out: Number of held-out rows, spread evenly over the levels.
        prompts: The template and the style that turn a question into a prompt.
        seed: The recipe's seed.
        taken: Held-out questions of all skills of a recipe, which no new row may repeat; this skill adds its held-out
            questions to the set.
    """

    def __init__(
        self,
        skill: str,
        make: ItemFactory,
        num_levels: int,
        num_held_out: int,
        prompts: Prompts,
        seed: int,
        taken: set[str],
    ) -> None:
        self.skill, self.num_levels = skill, num_levels
        self._make, self._prompts, self._seed = make, prompts, seed
        self._num_held_out = num_held_out
        self._taken = taken

    def held_out(self) -> list[Row]:
        """Return the held-out rows, which are never trained on; no two have the same question.

        Raises:
            DataError: a level has too few different questions to hold some out and train on others.
        """
        return list(self._held_out)

    @functools.cached_property
    def _held_out(self) -> list[Row]:
        rows = []
        for i in range(self._num_held_out):
            level = i % self.num_levels
            item = self._new(level, self._rng(self._seed, level, f"held out {i}"))
            self._taken.add(item.question)
            rows.append(self._row(item, level))
        for level in range(self.num_levels):
            self._new(level, self._rng(self._seed, level, "left to train on"))
        return rows

    def draw(self, level: int, rng: random.Random) -> Row:
        """Draw a training row of a level; the same random state gives the same row.

        Raises:
            DataError: all of the level's questions seem to be held out.
        """
        self.held_out()  # fills the set of questions to exclude
        return self._row(self._new(level, rng), level)

    def rows(self, count: int, seed: int, gold: bool = True) -> list[Row]:
        """Return training rows, with gold answers if `gold`, spread evenly over the levels; rows may repeat.

        Raises:
            DataError: the skill has no gold answers.
        """
        rows = list(self._drawn(count, seed, "rows"))
        if gold and any(not row["answer"] for row in rows):
            raise DataError(f"skill {self.skill!r} has questions without a gold answer; leave it to reinforcement")
        return rows

    def probe(self, count: int) -> list[Row]:
        """Return training rows for probing teachers; they are the same in every run with the recipe's seed."""
        return list(self._drawn(count, self._seed, "probe"))

    def _drawn(self, count: int, seed: int, purpose: str) -> Iterator[Row]:
        rngs = [self._rng(seed, level, purpose) for level in range(self.num_levels)]
        for i in range(count):
            level = i % self.num_levels
            yield self.draw(level, rngs[level])

    def _rng(self, seed: int, level: int, purpose: str) -> random.Random:
        return random.Random(f"{seed}:{self.skill}:{level}:{purpose}")

    def _new(self, level: int, rng: random.Random) -> Item:
        """Make an item whose question is not held out."""
        for _ in range(_MOST_TRIES):
            try:
                item = self._make(level, rng)
            except Exception as error:
                raise DataError(f"skill {self.skill!r}, level {level}: {describe_exception(error)}") from error
            if item.question not in self._taken:
                return item
        raise DataError(
            f"skill {self.skill!r}, level {level}: too few different questions; {_MOST_TRIES} in a row were already "
            f"held out. Lower held_out (now {self._num_held_out}), or make the level larger or leave it out"
        )

    def _row(self, item: Item, level: int) -> Row:
        text = self._prompts.template.replace("{question}", item.question)
        prompt: str | list[dict[str, str]] = text
        if self._prompts.style == "chat":
            system = [] if self._prompts.system is None else [{"role": "system", "content": self._prompts.system}]
            prompt = [*system, {"role": "user", "content": text}]
        return {
            "prompt": prompt,
            "answer": item.answer or "",
            "skill": self.skill,
            "level": level,
            "entry": item.entry,
        }
