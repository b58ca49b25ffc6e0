"""What a record of a file means. To add a kind, write a module with `NAMES` and `items` and add it to `ROW_KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rld.data.items import Item
from rld.data.row_kinds import code_task, conversation, labelled, plain_text, question_answer
from rld.data.row_kinds.fields import Fields
from rld.types import Predicts

_LONGEST = 1_000_000
"""Characters of a question or an answer: more than any context holds, and what a tokenizer reads in a second."""


class RowKind(NamedTuple):
    """A kind of rows.

    Attributes:
        names: The names of the values that it reads, which a skill's `columns` may lead to other columns.
        items: Yields the items of a record; raises ValueError if the record is not of this kind.
        options: The options of a skill that `items` takes as keyword arguments.
        verifier: The reward that tells correct answers, where the recipe names no rewards.
        answer: The name of the value that is the gold answer.
        predicts: What a model predicts of a held-out row of the kind.
    """

    names: tuple[str, ...]
    items: Callable[..., Iterator[Item]]
    options: tuple[str, ...] = ()
    verifier: str = "answers:exact_match"
    answer: str = "answer"
    predicts: Predicts = "text"


ROW_KINDS: dict[str, RowKind] = {
    "question_answer": RowKind(question_answer.NAMES, question_answer.items),
    "conversation": RowKind(conversation.NAMES, conversation.items, ("turns",)),
    "plain_text": RowKind(plain_text.NAMES, plain_text.items, ("document_separator",), predicts="likelihood"),
    "code_task": RowKind(code_task.NAMES, code_task.items, verifier=code_task.VERIFIER, answer="solution"),
    "labelled": RowKind(labelled.NAMES, labelled.items, ("labels",), predicts="label"),
}
"""The kinds of rows by their name in a recipe."""


def default_rewards(kinds: Iterable[Any]) -> list[str]:
    """Return the rewards of a recipe that names none: the verifiers of its kinds of rows, of which some may not exist.

    Rows of a generator have the kind None.
    """
    names = {"question_answer" if kind is None else kind for kind in kinds if kind is None or isinstance(kind, str)}
    return sorted({ROW_KINDS[name].verifier for name in names if name in ROW_KINDS})


class RowReader(NamedTuple):
    """Makes items of records.

    Attributes:
        kind: The kind of the rows.
        columns: Where the values that the kind reads stand, if not in columns of their names; see `Fields`.
        options: The options of the kind.
    """

    kind: str = "question_answer"
    columns: Mapping[str, str] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})

    def items(self, record: Any) -> list[tuple[Item, int]]:
        """Return the items of a record with their level.

        Raises:
            ValueError: the record is one, is not of this kind, or has a very long text or a null character; the message
                says why.
        """
        if isinstance(record, ValueError):
            raise record
        kind = ROW_KINDS[self.kind]
        if not isinstance(record, dict):
            raise ValueError(f"a row is a mapping with {' and '.join(kind.names[:2])}")
        fields = Fields(record, self.columns)
        items = list(kind.items(fields, **self.options))
        texts = [text for item in items for text in (item.question, item.answer or "")]
        longest = max(map(len, texts), default=0)
        if any("\0" in text for text in texts):
            raise ValueError("a text with a null character")
        if longest > _LONGEST and kind.predicts != "likelihood":
            raise ValueError(f"a text of {longest:,} characters; a row may have {_LONGEST:,}")
        return [(item, fields.level) for item in items]


QUESTION_ANSWER = RowReader()
"""Makes items of rows with the columns `question` and `answer`."""
