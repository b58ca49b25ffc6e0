"""Checks of rows against a tokenizer, a chat template and a context, without a model's weights.

A row that a model reads in part, or whose gold answer it cannot write, is trained and scored like the others, and its
score of 0 looks like a wrong answer. `check_rows` finds such rows before anything is generated.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from rld.models.chat_template import RefusedConversation
from rld.models.prompting import PromptEncoder
from rld.models.text_forms import excerpt, normal
from rld.types import Row
from rld.utils.control_characters import has_surrogate

FindingKind: TypeAlias = Literal[
    "no question",
    "no answer",
    "no text",
    "refused by the template",
    "dropped by the template",
    "unknown characters",
    "prompt too long",
    "answer too long",
    "answer cannot be written",
    "answer inside thinking",
    "block too long",
    "no prompt of a teacher",
]

Verdicts: TypeAlias = Callable[[Sequence[Row], Sequence[str]], Sequence[bool]]
"""Returns for each answer to a row whether it is correct."""

_BATCH = 512
"""Rows that are encoded together."""

_MOST_NUMBERS = 5
"""Row numbers that a description lists."""


@dataclass(frozen=True)
class Finding:
    """Rows with one kind of problem.

    Attributes:
        kind: The problem.
        rows: The indices of the rows, in ascending order.
        num_checked: The number of rows that were checked.
        example: The problem of the first row, as a clause without a subject.
    """

    kind: FindingKind
    rows: tuple[int, ...]
    num_checked: int
    example: str

    @property
    def hits_all(self) -> bool:
        """Whether all rows have the problem."""
        return len(self.rows) == self.num_checked

    def described(self, places: Sequence[str] | None = None) -> str:
        """Return the finding as one line.

        Args:
            places: The place of each row that was checked, such as `data.jsonl:17`. None: `row` and its index.
        """
        names = [f"row {i}" if places is None else places[i] for i in self.rows[:_MOST_NUMBERS]]
        others = ", ..." if len(self.rows) > _MOST_NUMBERS else ""
        place = f" ({', '.join(names)}{others})" if len(self.rows) > 1 else ""
        return f"{len(self.rows)} of {self.num_checked} rows{place}: {names[0]} {self.example}"


def check_rows(
    encoder: PromptEncoder,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    context_length: int | None = None,
    learns_answers: bool = False,
    verify: Verdicts | None = None,
) -> list[Finding]:
    """Return what keeps a model from reading the rows' prompts or writing their gold answers.

    Args:
        encoder: Encodes prompts and answers for the model.
        rows: Rows with a `prompt` and an `answer`.
        max_new_tokens: Greatest length of an answer.
        context_length: Positions that the model knows. None: any number.
        learns_answers: Whether the gold answers are learnt, token for token. Otherwise the model answers by itself, and
            a gold answer that it cannot write is a problem only where `verify` rejects what it can write of it.
        verify: Tells which answers are correct. None: those that equal the gold answer.
    """
    problems = _Problems(len(rows))
    for start in range(0, len(rows), _BATCH):
        batch = range(start, min(start + _BATCH, len(rows)))
        _check_prompts(encoder, rows, batch, problems)
        if usable := problems.without(batch):
            _check_answers(
                encoder,
                rows,
                usable,
                problems,
                max_new_tokens=max_new_tokens,
                context_length=context_length,
                learns_answers=learns_answers,
                verify=verify or _equal,
            )
    return problems.findings()


def check_prompts(
    encoder: PromptEncoder, rows: Sequence[Row], *, max_new_tokens: int, context_length: int | None = None
) -> list[Finding]:
    """Return what keeps a model, such as a teacher, from reading the rows' prompts and answering them."""
    problems = _Problems(len(rows))
    for start in range(0, len(rows), _BATCH):
        batch = range(start, min(start + _BATCH, len(rows)))
        _check_prompts(encoder, rows, batch, problems)
        usable = problems.without(batch)
        pairs = encoder.encode_rows([rows[i]["prompt"] for i in usable], [""] * len(usable))
        for i, (prompt_ids, _) in zip(usable, pairs, strict=True):
            problems.add(i, "prompt too long", _overlong(len(prompt_ids), max_new_tokens, context_length))
    return problems.findings()


class _Problems:
    """The first problem of each row."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._by_row: dict[int, tuple[FindingKind, str]] = {}

    def add(self, i: int, kind: FindingKind, example: str | None) -> None:
        """Note a problem of row i; None is no problem."""
        if example is not None:
            self._by_row.setdefault(i, (kind, example))

    def without(self, batch: Sequence[int]) -> list[int]:
        """Return the rows of a batch that have no problem so far."""
        return [i for i in batch if i not in self._by_row]

    def findings(self) -> list[Finding]:
        """Return a finding for each kind of problem, the most frequent first."""
        rows: dict[FindingKind, list[int]] = {}
        for i, (kind, _) in sorted(self._by_row.items()):
            rows.setdefault(kind, []).append(i)
        findings = [Finding(kind, tuple(hit), self._num_rows, self._by_row[hit[0]][1]) for kind, hit in rows.items()]
        return sorted(findings, key=lambda finding: -len(finding.rows))


# -- prompts ----------------------------------------------------------------------------------------------------------


def _check_prompts(encoder: PromptEncoder, rows: Sequence[Row], batch: Sequence[int], problems: _Problems) -> None:
    for i in batch:
        prompt = rows[i]["prompt"]
        texts = list(_texts(prompt))
        if not _question(rows[i]).strip():
            problems.add(i, "no question", "has an empty question")
        elif any(has_surrogate(text) for text in [*(text for _, text in texts), str(rows[i].get("answer") or "")]):
            problems.add(i, "no text", "has half of a surrogate pair, which is no character")
        elif not isinstance(prompt, str):
            problems.add(i, *_dropped(encoder, prompt, texts))
    _check_characters(encoder, rows, problems.without(batch), problems)


def _dropped(encoder: PromptEncoder, prompt: Any, texts: Sequence[tuple[str, str]]) -> tuple[FindingKind, str | None]:
    """Return what the chat template does not show of a conversation; None if it shows everything."""
    try:
        rendered = encoder.render(prompt)
    except RefusedConversation as error:
        return "refused by the template", f"is refused: {error}"
    for role, text in texts:
        if role in ("system", "user") and text.strip() not in rendered:
            fix = "; leave out `system`, or write it into `template`" if role == "system" else ""
            part = "system message" if role == "system" else "question"
            name = encoder.tokenizer.name_or_path or type(encoder.tokenizer).__name__
            return "dropped by the template", f"loses its {part}: the chat template of {name!r} does not show it{fix}"
    for tool in _tool_names(prompt):
        if tool not in rendered:
            return "dropped by the template", f"loses its tools: the chat template does not show {tool!r}"
    return "dropped by the template", None


def _tool_names(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for tool in itertools.chain.from_iterable(message.get("tools") or () for message in messages):
        yield str(tool.get("function", tool).get("name", ""))


def _check_characters(encoder: PromptEncoder, rows: Sequence[Row], batch: Sequence[int], problems: _Problems) -> None:
    """Find prompts with characters that are gone once the tokenizer has encoded and decoded them."""
    texts = [(i, text) for i in batch for _, text in _texts(rows[i]["prompt"]) if text]
    if not texts:
        return
    ids = encoder.encode_rows([""] * len(texts), [text for _, text in texts])
    decoded = encoder.decode([answer_ids for _, answer_ids in ids])
    for (i, text), read in zip(texts, decoded, strict=True):
        missing = sorted(_letters(text) - _letters(read))
        if missing:
            unknown_letters = [c for c in dict.fromkeys(text) if _letters(c) & {*missing}] or missing
            characters = "".join(unknown_letters[:20])
            problems.add(
                i,
                "unknown characters",
                f"has {characters!r}, which the tokenizer lacks, in {excerpt(_question(rows[i]))}",
            )


def _letters(text: str) -> set[str]:
    """Return the characters of a text, without case, accents, compatible forms and white space."""
    return {c for c in unicodedata.normalize("NFKD", text).casefold() if not (c.isspace() or unicodedata.combining(c))}


def _overlong(num_prompt_tokens: int, num_new_tokens: int, context_length: int | None) -> str | None:
    if context_length is None or num_prompt_tokens + num_new_tokens <= context_length:
        return None
    return (
        f"has {num_prompt_tokens} tokens in its prompt, and with {num_new_tokens} for the answer they do not fit into "
        f"a context of {context_length}"
    )


def _texts(prompt: Any) -> Iterator[tuple[str, str]]:
    """Yield the role and the text of each part of a prompt."""
    if isinstance(prompt, str):
        yield "user", prompt
        return
    for message in prompt:
        content = message.get("content") or ""
        parts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
        yield from zip(itertools.repeat(str(message.get("role"))), parts)


def _question(row: Row) -> str:
    """Return the text of the last message of a prompt."""
    return next(reversed([text for _, text in _texts(row["prompt"])]), "")


# -- answers ----------------------------------------------------------------------------------------------------------


class _Doubt(NamedTuple):
    """What may be a problem of a gold answer.

    Attributes:
        row: The index of the row.
        texts: What a model can write of the answer: all that the tokenizer keeps of it; or where it is too long, its
            beginning, and its end, which alone may be correct, as the number behind a worked solution is.
        kind: The problem.
        example: As in `Finding`.
    """

    row: int
    texts: tuple[str, ...]
    kind: FindingKind
    example: str


def _check_answers(
    encoder: PromptEncoder,
    rows: Sequence[Row],
    batch: Sequence[int],
    problems: _Problems,
    *,
    max_new_tokens: int,
    context_length: int | None,
    learns_answers: bool,
    verify: Verdicts,
) -> None:
    answers = [str(rows[i].get("answer") or "") for i in batch]
    pairs = encoder.encode_rows([rows[i]["prompt"] for i in batch], answers)
    texts = encoder.decode([answer_ids[:max_new_tokens] for _, answer_ids in pairs])
    ends = encoder.decode([answer_ids[-max_new_tokens:] for _, answer_ids in pairs])
    doubtful: list[_Doubt] = []
    for i, answer, (prompt_ids, answer_ids), text, end in zip(batch, answers, pairs, texts, ends, strict=True):
        size = len(answer_ids) + 1
        num_new = size if learns_answers else max_new_tokens
        problems.add(i, "prompt too long", _overlong(len(prompt_ids), num_new, context_length))
        if not answer.strip():
            doubtful.append(_Doubt(i, ("",), "no answer", "has an empty answer"))
        elif learns_answers and encoder.answer(rows[i]["prompt"], answer) == "":
            example = (
                f"has the answer {excerpt(answer)}, which is no answer behind the thinking part that the prompt opens"
            )
            doubtful.append(_Doubt(i, (text,), "answer inside thinking", example))
        elif size > max_new_tokens:
            example = (
                f"has the answer {excerpt(answer)}, of {size} tokens with its end, and {max_new_tokens} are allowed"
            )
            doubtful.append(_Doubt(i, (text, end), "answer too long", f"{example} (max_new_tokens)"))
        elif normal(text) != normal(answer):
            example = f"has the answer {excerpt(answer)}, and the tokenizer reads and writes it as {excerpt(text)}"
            doubtful.append(_Doubt(i, (text,), "answer cannot be written", example))
    for i, kind, example in _certain(rows, doubtful, learns_answers, verify):
        problems.add(i, kind, example)


def _certain(
    rows: Sequence[Row], doubtful: Sequence[_Doubt], learns_answers: bool, verify: Verdicts
) -> Iterator[tuple[int, FindingKind, str]]:
    """Yield the problems that matter: all where answers are learnt, else those that cost the model its success.

    An empty gold answer matters where an empty answer is correct, every other one where no part of it that the model
    can write is correct.
    """
    pairs = [] if learns_answers else [(doubt, text) for doubt in doubtful for text in doubt.texts]
    verdicts = verify([rows[doubt.row] for doubt, _ in pairs], [text for _, text in pairs]) if pairs else ()
    correct = {doubt.row for (doubt, _), is_correct in zip(pairs, verdicts, strict=True) if is_correct}
    for doubt in doubtful:
        if learns_answers or (doubt.row in correct) == (doubt.kind == "no answer"):
            yield doubt.row, doubt.kind, doubt.example


def _equal(rows: Sequence[Row], texts: Sequence[str]) -> list[bool]:
    """Tell which texts equal the gold answer."""
    return [text.strip() == str(row.get("answer") or "").strip() for row, text in zip(rows, texts, strict=True)]
