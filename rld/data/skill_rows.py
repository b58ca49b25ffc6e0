"""The rows of a skill: held-out rows, which are never trained on, and training rows per level."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rld.data.held_out_advice import held_out_advice
from rld.data.item_rows import row_of
from rld.data.items import Item, ItemSource, question_key
from rld.data.pieces import Cut, Pieces
from rld.data.stored import Selection
from rld.errors import DataError
from rld.recipe.prompts import Prompts
from rld.types import Row
from rld.utils.os_errors import is_system_failure
from rld.utils.user_calls import CALL_SECONDS, description, user_code

_MOST_TRIES = 200
"""Consecutive draws of held-out questions after which a level is considered exhausted."""

_NUM_EXAMPLES = 64
"""Rows of a generator that are looked at before a run, beside held-out rows."""

_NUM_DRAWN_TWICE = 16
"""Of these, those that are drawn twice."""

_MOST_EXAMPLES = 20_000
"""Rows of a file that are given as examples; of a larger file they are evenly spread."""


class PlacedRow(NamedTuple):
    """A row, and its place in messages, such as `data.jsonl:17`."""

    place: str
    row: Row


class SkillRows:
    """The rows of one skill.

    Args:
        skill: The skill's name.
        source: The source of its items.
        num_held_out: Number of held-out rows, spread evenly over the levels, or their share of the rows that may be
            held out, above 0 and below 1; 0 if the source has held-out rows of its own.
        prompts: The template and the style that turn a question into a prompt.
        seed: The recipe's seed.
        held_out_questions: Those of all skills of a recipe, as `question_key`s, which no new row may repeat; this
            skill adds its own to the set.
        accepts: Whether a row may be used.
        cut: Returns the pieces of a document, which are then the rows to train on.
    """

    def __init__(
        self,
        skill: str,
        source: ItemSource,
        num_held_out: float,
        prompts: Prompts,
        *,
        seed: int,
        held_out_questions: set[str],
        accepts: Callable[[Row], bool] = lambda row: True,
        cut: Cut = lambda text: [text],
    ) -> None:
        self.skill, self.num_levels = skill, source.num_levels
        self._source, self._prompts, self._seed = source, prompts, seed
        is_share = 0 < num_held_out < 1
        self._num_held_out = max(round(num_held_out * self._num_gold), 1) if is_share else int(num_held_out)
        if is_share and source.held_out is not None:  # the end of a single document
            self._num_held_out = 0
        self._held_out_questions, self._accepts, self._cut = held_out_questions, accepts, cut
        self._repeats: list[str] = []  # places of held-out rows of its file that are left out
        self._held_out_pairs: set[tuple[str, str]] = set()  # place and question of rows of the others that are held out
        self._pieces: dict[int, Pieces] = {}

    def held_out(self) -> list[Row]:
        """Return the held-out rows, which are never trained on; no two have the same question.

        Raises:
            DataError: a level has too few different questions to hold some out and train on others.
        """
        return [row for _, row in self._held_out]

    @functools.cached_property
    def _held_out(self) -> list[PlacedRow]:
        rows = []
        for level, items in enumerate(self._source.held_out or ()):
            for item in items:
                if question_key(item.question) in self._held_out_questions:
                    self._repeats.append(item.place)
                elif self._accepts(self.row(item, level)):
                    self._held_out_questions.add(question_key(item.question))
                    rows.append(self._place(item, level))
        for i in range(self._num_held_out):
            level = i % self.num_levels
            item = self._new(level, self._rng(self._seed, level, f"held out {i}"), gold=True)
            self._held_out_questions.add(question_key(item.question))
            self._held_out_pairs.add((item.place, question_key(item.question)))
            rows.append(self._place(item, level, f"held-out {i}"))
        for level in range(self.num_levels):
            self._new(level, self._rng(self._seed, level, "left to train on"))
        return rows

    def placed_held_out(self) -> list[PlacedRow]:
        """Return the held-out rows with names; of a file of them also those that are not accepted."""
        if self._source.held_out is None:
            return list(self._held_out)
        return [self._place(item, level) for level, items in enumerate(self._source.held_out) for item in items]

    def repeated(self) -> list[str]:
        """Return the places of rows of its files that are left out, because a held-out row has their question."""
        self.held_out()  # fills the set of questions to exclude
        pairs = ((item.place, question_key(item.question)) for items in self._source.levels or () for item in items)
        repeats = [pair for pair in pairs if pair[1] in self._held_out_questions and pair not in self._held_out_pairs]
        return [place for place, _ in repeats] + self._repeats

    @property
    def num_rows(self) -> int | None:
        """The number of rows of the skill's file; None for a generator."""
        return None if self._source.levels is None else sum(map(len, self._source.levels))

    @property
    def _num_gold(self) -> int:
        """The number of rows of the skill's file that may be held out: of labelled rows, those that have a label."""
        if self._source.make_gold is None:
            return self.num_rows or 0
        return sum(item.answer is not None for items in self._source.levels or () for item in items)

    def examples(self) -> list[PlacedRow]:
        """Return rows, accepted or not, that may be drawn: those of its files, or held-out rows and some others.

        Raises:
            DataError: its generator fails, or makes other rows of the same random numbers.
        """
        if self._source.levels is not None:
            pairs = ((item, level) for level, items in enumerate(self._source.levels) for item in items)
            step = -(-sum(map(len, self._source.levels)) // _MOST_EXAMPLES)
            examples = [self._place(*pair) for pair in itertools.islice(pairs, 0, None, step)]
            return examples if self._source.held_out is None else [*examples, *self.placed_held_out()]
        return [*self.placed_held_out(), *self._generated_examples]

    @functools.cached_property
    def _generated_examples(self) -> list[PlacedRow]:
        levels = [i % self.num_levels for i in range(_NUM_EXAMPLES)]
        first_items = self._make_examples(levels)
        second_items = self._make_examples(levels[:_NUM_DRAWN_TWICE])
        for level, first, second in zip(levels, first_items, second_items, strict=False):
            if first != second:
                raise DataError(
                    f"skill {self.skill!r}, level {level}: {self._maker} returned {first[:2]!r:.80}, and for the same "
                    f"random numbers {second[:2]!r:.80}; it should take all random numbers from its rng and keep "
                    "nothing between calls, so that other processes and a resumed run have the same rows"
                )
        return [self._place(item, levels[i], f"example {i}") for i, item in enumerate(first_items)]

    def _make_examples(self, levels: Sequence[int]) -> list[Item]:
        rngs = [self._rng(self._seed, level, "examples") for level in range(self.num_levels)]
        return [self._make(level, rngs[level]) for level in levels]

    def draw(self, level: int, rng: random.Random, number: int = 0) -> Row:
        """Draw a training row of a level; the same random state gives the same row.

        Args:
            level: The level.
            rng: Chooses the row, but not a document's piece.
            number: Rows of the level that were drawn before; pieces of documents are drawn in passes over all of them.

        Raises:
            DataError: all of the level's questions seem to be held out.
        """
        if self.is_text:
            return self._piece(level, number)
        self.held_out()  # fills the set of questions to exclude
        return self.row(self._new(level, rng), level)

    @functools.cached_property
    def is_text(self) -> bool:
        """Whether its rows are documents."""
        levels = self._source.levels
        return levels is not None and levels[0][0].is_document

    @property
    def num_pieces(self) -> int:
        """The number of rows in which each piece of a document is drawn, as `rows` spreads them evenly over levels."""
        return self.num_levels * max(len(self.pieces(level)) for level in range(self.num_levels))

    def pieces(self, level: int) -> Pieces:
        """Return the pieces of a level's documents that are trained on."""
        if level not in self._pieces:
            self.held_out()  # fills the set of documents to exclude
            documents = (self.row(item, level) for item in self._usable_items(level, gold=False))
            self._pieces[level] = Pieces(documents, self._cut)
        return self._pieces[level]

    def rows(self, count: int, seed: int, gold: bool = True) -> list[Row]:
        """Return training rows, with gold answers if `gold`, spread evenly over the levels; rows may repeat.

        Raises:
            DataError: the skill has no gold answers.
        """
        rows = list(self._draw_rows(count, seed, "rows", gold=gold))
        if gold and not rows:
            raise DataError(f"skill {self.skill!r} has no row with a label that is not held out")
        if gold and any(not row["answer"] for row in rows):
            raise DataError(f"skill {self.skill!r} has questions without a gold answer; leave it to reinforcement")
        return rows

    def probe(self, count: int) -> list[Row]:
        """Return training rows for probing teachers, the same ones in every run with the recipe's seed.

        Of labelled rows they are those that have a label, each once: fewer than `count` where there are few."""
        rows = list(self._draw_rows(count, self._seed, "probe", gold=True))
        return rows if self._source.make_gold is None else [*{str(row["prompt"]): row for row in rows}.values()]

    def training_items(self) -> list[Sequence[Item]]:
        """Return the items of its files that may be trained on, by level; an empty list of a generator."""
        self.held_out()  # fills the set of questions to exclude
        return [self._usable_items(level, gold=False) for level in range(len(self._source.levels or ()))]

    def _piece(self, level: int, number: int) -> Row:
        return self.pieces(level).row(number, f"{self._seed}:{self.skill}:{level}")

    def _draw_rows(self, count: int, seed: int, purpose: str, *, gold: bool) -> Iterator[Row]:
        if self.is_text:
            yield from (self._piece(i % self.num_levels, i // self.num_levels) for i in range(count))
            return
        self.held_out()  # fills the set of questions to exclude
        rngs = {level: self._rng(seed, level, purpose) for level in range(self.num_levels)}
        if gold and self._source.make_gold is not None:
            rngs = {level: rng for level, rng in rngs.items() if self._usable_items(level, gold=True)}
        levels = list(rngs)
        for i in range(count if levels else 0):
            level = levels[i % len(levels)]
            yield self.row(self._new(level, rngs[level], gold), level)

    def _rng(self, seed: int, level: int, purpose: str) -> random.Random:
        return random.Random(f"{seed}:{self.skill}:{level}:{purpose}")

    def _new(self, level: int, rng: random.Random, gold: bool = False) -> Item:
        """Make an item whose question is not held out; with `gold`, of labelled rows one that has a label."""
        num_refused = 0
        for _ in range(_MOST_TRIES):
            item = self._make(level, rng, gold)
            if question_key(item.question) in self._held_out_questions:
                continue
            if self._accepts(self.row(item, level)):
                return item
            num_refused += 1
        rest = self._usable_items(level, gold)
        if rest:
            return rng.choice(rest)
        place = f"skill {self.skill!r}, level {level}"
        if num_refused:
            raise DataError(
                f"{place}: too few rows that can be used: of {_MOST_TRIES} in a row, bad_rows: skip leaves out "
                f"{num_refused}, and the others were already held out; bad_rows: refuse says what is wrong with them"
            )
        if self._source.levels is not None:
            advice = held_out_advice(
                self.skill,
                self._source,
                level,
                self._num_held_out,
                keys_of_others=self._held_out_questions - {key for _, key in self._held_out_pairs},
                is_text=self.is_text,
            )
            raise DataError(advice)
        raise DataError(
            f"{place}: too few different questions; {_MOST_TRIES} in a row were already held out. Lower held_out (now "
            f"{self._num_held_out}), or make the level larger or leave it out"
        )

    def _usable_items(self, level: int, gold: bool) -> Sequence[Item]:
        """Return the items of a level of a file that may be used and are not held out; empty for a generator."""
        needs_answer = gold and self._source.make_gold is not None

        def is_usable(item: Item) -> bool:
            if needs_answer and item.answer is None:
                return False
            return question_key(item.question) not in self._held_out_questions and self._accepts(self.row(item, level))

        return Selection.where(() if self._source.levels is None else self._source.levels[level], is_usable)

    def _make(self, level: int, rng: random.Random, gold: bool = False) -> Item:
        make = (self._source.make_gold if gold else None) or self._source.make
        try:
            with user_code(CALL_SECONDS):
                return make(level, rng)
        except DataError as error:
            raise DataError(f"skill {self.skill!r}, level {level}: {error}") from error
        except Exception as error:
            if is_system_failure(error):
                raise
            raise DataError(f"skill {self.skill!r}, level {level}: {self._maker} {description(error)}") from error

    @property
    def _maker(self) -> str:
        """The name of what makes its items."""
        name: str = getattr(self._source.make, "name", "its generator")
        return name

    def _place(self, item: Item, level: int, name: str = "") -> PlacedRow:
        return PlacedRow(item.place or name, self.row(item, level))

    def row(self, item: Item, level: int) -> Row:
        """Return the row of an item of a level."""
        return row_of(item, self._prompts, self.skill, level=level)
