"""Items from a function or a reasoning-gym task."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rld.data.file_items import read_items
from rld.data.items import Item, ItemFactory
from rld.recipe import registry
from rld.recipe.skills import FileSkill, GeneratedSkill, ReasoningGymSkill


def item_factory(skill: GeneratedSkill | ReasoningGymSkill | FileSkill, folder: Path) -> tuple[ItemFactory, int]:
    """Return what makes a skill's items, and how many levels it has. Paths are relative to `folder`.

    Raises:
        DataError: rows that cannot be read.
        LibraryError: a generator that does not exist.
    """
    match skill:
        case GeneratedSkill():
            return _Generator(registry.load("generators", skill.generator, folder), skill), len(skill.levels)
        case ReasoningGymSkill():
            return _ReasoningGym(skill), len(skill.levels)
    levels = read_items(registry.find_path(skill.file, folder) or folder / skill.file)
    return _Choice(levels), len(levels)


class _Generator:
    """Items from the user's function."""

    def __init__(self, function: Callable[..., tuple[str, str]], skill: GeneratedSkill) -> None:
        self.function, self.name, self.levels = function, skill.generator, skill.levels

    def __call__(self, level: int, rng: random.Random) -> Item:
        made = self.function(rng, **self.levels[level])
        match made:
            case (str(question), str(answer)):
                return Item(question, answer)
        raise TypeError(f"{self.name} returned {made!r:.80}; it should return (question, answer), both text")


class _ReasoningGym:
    """Items from a reasoning-gym task."""

    def __init__(self, skill: ReasoningGymSkill) -> None:
        self.task, self.levels = skill.reasoning_gym, skill.levels
        self.built: dict[int, Any] = {}

    def __call__(self, level: int, rng: random.Random) -> Item:
        # Item i of a data set comes from Random(seed + i): data sets whose seeds lie close share most items. So every
        # item is the first of a data set of its own, with a random seed; some tasks take no more than 32 bits.
        seed = rng.getrandbits(32)
        if level not in self.built:
            self.built[level] = self._reseedable(level)
        dataset = self.built[level]
        if dataset is None:
            dataset = self._build(level, seed)
        dataset.seed = seed
        made = dataset[0]
        entry = {
            "task": self.task,
            "config": self.levels[level],
            "question": made["question"],
            "answer": made["answer"],
            "metadata": made["metadata"],
        }
        return Item(made["question"], made["answer"], json.dumps(entry, default=str))

    def _build(self, level: int, seed: int) -> Any:
        import reasoning_gym  # takes a second, and few recipes need it

        return reasoning_gym.create_dataset(self.task, **{**self.levels[level], "seed": seed, "size": 1})

    def _reseedable(self, level: int) -> Any:
        """Return a data set whose seed can be changed, or None for a task that looks at its seed while it is built.

        Building takes milliseconds for tasks that read word lists; an item takes a few hundredths of one.
        """
        dataset = self._build(level, 0)
        for seed in range(1, 5):
            dataset.seed = seed
            if dataset[0]["question"] != self._build(level, seed)[0]["question"]:
                return None
        return dataset


class _Choice:
    """Items picked from those of a file, by level."""

    def __init__(self, levels: list[list[Item]]) -> None:
        self.levels = levels

    def __call__(self, level: int, rng: random.Random) -> Item:
        return rng.choice(self.levels[level])
