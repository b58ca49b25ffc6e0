"""Item factories of skills: a user's function, a reasoning-gym task, or the rows of a file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rld.data.file_items import read_items
from rld.data.formats.hub import HubRows
from rld.data.items import Item, ItemFactory, ItemSource
from rld.data.row_kinds import QUESTION_ANSWER, labelled
from rld.data.stored import Selection
from rld.errors import DataError
from rld.recipe import registry
from rld.recipe.skills import GeneratedSkill, ReasoningGymSkill, Skill


def item_source(skill: Skill, folder: Path, *, skips_bad_rows: bool = False) -> ItemSource:
    """Return the source of a skill's items; paths are relative to `folder`.

    Args:
        skill: The skill.
        folder: The recipe's folder.
        skips_bad_rows: Whether rows of files that cannot be used are left out with a warning.

    Raises:
        DataError: rows that cannot be read.
        LibraryError: a generator that does not exist.
    """
    reader = QUESTION_ANSWER if isinstance(skill, (GeneratedSkill, ReasoningGymSkill)) else skill.reader

    def read(source: str | HubRows) -> list[Sequence[Item]]:
        path = registry.find_path(source, folder) or folder / source if isinstance(source, str) else source
        return read_items(path, reader, skips_bad_rows=skips_bad_rows)

    held_out = None if skill.held_out_source is None else read(skill.held_out_source)
    match skill:
        case GeneratedSkill():
            function = registry.load("generators", skill.generator, folder)
            return ItemSource(_Generator(function, skill), len(skill.levels), held_out=held_out)
        case ReasoningGymSkill():
            return ItemSource(_ReasoningGym(skill), len(skill.levels), held_out=held_out)
    levels = read(skill.source)
    make_gold = _items_with_labels(skill.labels, levels, held_out, skill.origin) if skill.labels else None
    return ItemSource(_Choice(levels), len(levels), levels, held_out, make_gold)


def _items_with_labels(
    labels: Mapping[str, str], levels: Sequence[Sequence[Item]], held_out: Sequence[Sequence[Item]] | None, origin: str
) -> ItemFactory | None:
    """Return what makes items that have a label; None where all items have one.

    Raises:
        DataError: a held-out row or all rows of a level have no label, or a label is on no row.
    """
    unlabelled = next((item.place for items in held_out or () for item in items if item.answer is None), None)
    if unlabelled is not None:
        raise DataError(f"{unlabelled}: no label, and a held-out row is scored by its label")
    answers = {item.answer for items in (*levels, *(held_out or ())) for item in items if item.answer is not None}
    unused = labelled.unused(labels, answers)
    if unused:
        raise DataError(f"{origin}: no row has the label {unused[0]!r}; mend it in `labels`, or leave it out")
    with_labels = [Selection.where(items, lambda item: item.answer is not None) for items in levels]
    if sum(map(len, with_labels)) == sum(map(len, levels)):
        return None
    return _Choice(with_labels)


class _Generator:
    """Makes items with a function that the user supplies."""

    def __init__(self, function: Callable[..., tuple[str, str]], skill: GeneratedSkill) -> None:
        self.function, self.name, self.levels = function, skill.generator, skill.levels

    def __call__(self, level: int, rng: random.Random) -> Item:
        returned = self.function(rng, **self.levels[level])
        match returned:
            case (str(question), str(answer)):
                return Item(question, answer)
        raise TypeError(f"{self.name} returned {returned!r:.80}; it should return (question, answer), both text")


class _ReasoningGym:
    """Makes items with a reasoning-gym task."""

    def __init__(self, skill: ReasoningGymSkill) -> None:
        self.task, self.levels = skill.reasoning_gym, skill.levels
        self.name = f"reasoning-gym's {skill.reasoning_gym}"
        self.built: dict[int, Any] = {}

    def __call__(self, level: int, rng: random.Random) -> Item:
        # Item i of a data set comes from Random(seed + i), so data sets with adjacent seeds share most items. Therefore
        # every item is the first of its own data set with a random seed. Some tasks accept at most 32 bits.
        seed = rng.getrandbits(32)
        if level not in self.built:
            self.built[level] = self._reseedable(level)
        dataset = self.built[level]
        if dataset is None:
            dataset = self._build(level, seed)
        dataset.seed = seed
        gym_item = dataset[0]
        entry = {
            "task": self.task,
            "config": self.levels[level],
            "question": gym_item["question"],
            "answer": gym_item["answer"],
            "metadata": gym_item["metadata"],
        }
        return Item(gym_item["question"], gym_item["answer"], json.dumps(entry, default=str))

    def _build(self, level: int, seed: int) -> Any:
        import reasoning_gym  # deferred: the import takes a second, and few recipes need it

        return reasoning_gym.create_dataset(self.task, **{**self.levels[level], "seed": seed, "size": 1})

    def _reseedable(self, level: int) -> Any:
        """Return a data set whose seed can be changed, or None if the task uses its seed during construction.

        Construction takes milliseconds for tasks that read word lists; an item takes a few hundredths of a millisecond.
        """
        dataset = self._build(level, 0)
        for seed in range(1, 5):
            dataset.seed = seed
            if dataset[0]["question"] != self._build(level, seed)[0]["question"]:
                return None
        return dataset


class _Choice:
    """Draws an item of a level at random from the items of a file."""

    def __init__(self, levels: Sequence[Sequence[Item]]) -> None:
        self.levels = levels

    def __call__(self, level: int, rng: random.Random) -> Item:
        if not self.levels[level]:
            raise DataError("none of its rows has a label")
        return rng.choice(self.levels[level])
