"""Where questions come from: a function, a reasoning-gym task, or a file.

Each kind makes the items of one skill, called with a level and a source of randomness; the same random state gives
the same item.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rld import library
from rld.errors import DataError
from rld.recipe import FileSkill, GeneratedSkill, ReasoningGymSkill

_MOST_LISTED = 10


class Item(NamedTuple):
    """A question and its answer, before it becomes a row."""

    question: str
    answer: str | None
    """None: there is no one gold answer; the verifier needs `entry`."""
    entry: str = ""


Make = Callable[[int, random.Random], Item]
"""Makes an item of a level."""


def maker(skill: GeneratedSkill | ReasoningGymSkill | FileSkill, folder: Path) -> tuple[Make, int]:
    """Return what makes a skill's items, and how many levels it has. Paths are relative to `folder`.

    Raises:
        DataError: rows that cannot be read.
        LibraryError: a generator that does not exist.
    """
    match skill:
        case GeneratedSkill():
            return _Generator(library.load("generators", skill.generator, folder), skill), len(skill.levels)
        case ReasoningGymSkill():
            return _ReasoningGym(skill), len(skill.levels)
    levels = _read(library.local(skill.rows, folder) or folder / skill.rows)
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


def _read(path: Path) -> list[list[Item]]:
    """Read a JSON Lines or CSV file into items by level. Texts stay as they are: an answer 007 is not a 7.

    Raises:
        DataError: lists the rows that cannot be used, with their line numbers.
    """
    if path.suffix not in (".jsonl", ".csv"):
        raise DataError(f"{path}: rows come from .jsonl or .csv files")
    levels: dict[int, list[Item]] = {}
    problems = []
    try:
        for line, record in (_json_lines if path.suffix == ".jsonl" else _csv_lines)(path):
            try:
                item, level = _item(record)
                levels.setdefault(level, []).append(item)
            except ValueError as error:
                problems.append(f"{path}:{line}: {error}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: {error}") from error
    if problems:
        more = len(problems) - _MOST_LISTED
        raise DataError("\n".join(problems[:_MOST_LISTED] + ([f"and {more} rows more"] if more > 0 else [])))
    missing = [level for level in range(max(levels, default=0) + 1) if level not in levels]
    if missing:
        raise DataError(f"{path}: no rows of level {missing[0]}" if levels else f"{path}: no rows")
    return [levels[level] for level in range(len(levels))]


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _csv_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        yield from ((reader.line_num, record) for record in reader)


def _item(record: Any) -> tuple[Item, int]:
    if isinstance(record, str):
        try:
            record = json.loads(record)
        except json.JSONDecodeError as error:
            raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("a row is a mapping with question and answer")
    question, answer = (_text(record, key) for key in ("question", "answer"))
    level = record.get("level", 0)
    if isinstance(level, str) and level.strip().isdecimal():
        level = int(level)
    if not isinstance(level, int) or isinstance(level, bool) or level < 0:
        raise ValueError(f"level should be a whole number from 0, not {level!r}")
    return Item(question, answer), level


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no {key}" if key not in record else f"{key} should be text, not {value!r:.80}")
    return value
