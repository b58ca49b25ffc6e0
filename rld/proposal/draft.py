"""A recipe as text: what was found out about rows, models and machine, with the reason of each value beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rld.data.formats.hub import HubRows
from rld.proposal.columns import Kind
from rld.proposal.lengths import BLOCK, Measured
from rld.proposal.lines import entry, quoted
from rld.proposal.models import Model, shortest_context
from rld.proposal.plan import Plan
from rld.proposal.stages import Teaching, stage_lines
from rld.proposal.survey import Source
from rld.recipe.hardware import Cards
from rld.utils.control_characters import visible

_MOST_NEW_TOKENS = 1024


@dataclass(frozen=True)
class Draft:
    """What is known when a recipe is written.

    Attributes:
        name: Of the recipe and of its skill.
        source: The rows to train on.
        held_out: Rows of their own for scores. None: they are taken from the others.
        kind: The kind of the rows.
        measured: The rows, as the kind reads them.
        student: The student.
        teachers: The teachers by name.
        other_tokenizers: Those of them that have another tokenizer than the student.
        minutes: The time that the run may take.
        cards: What the machine can do.
        has_gpu: Whether it has a GPU.
        samples: Whether there is time for the student to try answers that a reward judges.
    """

    name: str
    source: Source
    held_out: Source | None
    kind: Kind
    measured: Measured
    student: Model
    teachers: Mapping[str, Model]
    other_tokenizers: Sequence[str]
    minutes: float
    cards: Cards
    has_gpu: bool
    samples: bool = True

    @property
    def models(self) -> list[Model]:
        return [self.student, *self.teachers.values()]

    @property
    def is_chat(self) -> bool:
        """Whether prompts are chats."""
        may_be = self.kind.name in ("question_answer", "conversation")
        return may_be and all(model.has_chat for model in self.models)

    @property
    def max_new_tokens(self) -> int:
        """Room for the longest answer, in eights, but for half of the context at most."""
        most = min(_MOST_NEW_TOKENS, (shortest_context(self.models) or 2 * _MOST_NEW_TOKENS) // 2)
        return min(-(-self.measured.longest_answer // 8) * 8, most)

    @property
    def can_sample(self) -> bool:
        """Whether a reward can judge what the student tries, and there are teachers beside it."""
        return bool(self.teachers) and self.kind.name == "question_answer" and self.measured.verifier is not None

    @property
    def teaching(self) -> Teaching:
        """How the student learns."""
        names = list(self.teachers), list(self.other_tokenizers)
        return Teaching(self.kind.name, *names, self.measured.verifier, self.samples and self.can_sample)

    def text(self, plan: Plan, folder: Path) -> str:
        """Return the recipe, for a file in a folder."""
        models = {"student": self.student, **self.teachers}
        lines = [
            f"# Written by rld init for {self.minutes:g} minutes on {visible(self.cards.name)}; every value is yours.",
            *entry(0, "name", self.name, "the run's folder is runs/NAME"),
            *entry(0, "seed", 0),
            "",
            "models:",
            *(line for name, model in models.items() for line in entry(2, name, _relative_place(model.place, folder))),
            "",
            *self._prompts(),
            "skills:",
            f"  {quoted(self.name)}:",
            *self._skill(plan, folder),
            *self._answers(),
            "",
            "stages:",
        ]
        stages = ["\n".join(stage_lines(self.teaching, stage, plan)) for stage in self.teaching.stages]
        return "\n".join(lines) + "\n" + "\n\n".join(stages) + "\n"

    def _prompts(self) -> list[str]:
        if self.kind.name == "labelled":
            word = self.kind.columns.get("answer", "answer").replace("_", " ").strip().capitalize()
            why = "the label follows, which begins with a space; write what a reader would be asked"
            return [*entry(0, "prompts", {"template": f"{{question}}\n{word}:"}, why), ""]
        if self.kind.name == "plain_text":
            return []
        if self.is_chat:
            return [*entry(0, "prompts", {"style": "chat"}, "all models have a chat template"), ""]
        why = "not all models have a chat template; the answer follows in a line of its own"
        return [*entry(0, "prompts", {"template": "{question}\n"}, why), ""]

    def _skill(self, plan: Plan, folder: Path) -> list[str]:
        kind, why = self.kind, self.kind.why
        lines = entry(4, "kind", kind.name, why["kind"])
        if isinstance(self.source, HubRows):
            lines += entry(4, "dataset", self.source.dataset, "the split train; see docs/data.md for others")
        else:
            lines += entry(4, "file", _relative_place(str(self.source), folder))
        if kind.columns:
            lines += entry(4, "columns", dict(kind.columns), why["columns"])
        if kind.labels:
            lines += entry(4, "labels", dict(kind.labels), why["labels"])
        if kind.name == "conversation":
            lines += entry(4, "turns", "all", "last: only the last answer is learnt")
        if kind.name == "plain_text":
            lines += entry(4, "block", self.block, "documents are cut into blocks of so many tokens")
        if self.held_out is not None:
            return lines + entry(4, "held_out", {"file": _relative_place(str(self.held_out), folder)}) + self._scores()
        what = "the end of the text" if plan.held_out < 1 else "never trained on; as many as there is time to score"
        return lines + entry(4, "held_out", plan.held_out, what) + self._scores()

    @property
    def block(self) -> int:
        """Tokens of a block of documents."""
        return min(BLOCK, shortest_context(self.models) or BLOCK)

    def _scores(self) -> list[str]:
        if self.kind.name not in ("question_answer", "conversation") or self.measured.verifier is not None:
            return []
        return entry(
            4, "scores", ["token_f1"], "answers are free, so words are counted; others: rld list, docs/scores.md"
        )

    def _answers(self) -> list[str]:
        """Return the keys on answers and rows that cannot be used."""
        measured, lines = self.measured, list[str]()
        if self.kind.name != "plain_text":
            why = f"the longest answer has {measured.longest_answer:,} tokens of the student, its end included"
            lines += entry(0, "max_new_tokens", self.max_new_tokens, why)
        context = shortest_context(self.models) or measured.longest_prompt + self.max_new_tokens
        is_long = measured.longest_answer > self.max_new_tokens
        is_long |= measured.longest_prompt + self.max_new_tokens > context
        if measured.num_rejected:
            plural = "s" if measured.num_rejected > 1 else ""
            why = f"{measured.num_rejected:,} row{plural} cannot be used; the first: {measured.first_rejected}"
            lines += entry(0, "bad_rows", "skip", why)
        elif is_long and self.kind.name != "plain_text":
            lines += entry(0, "bad_rows", "skip", "some rows may be longer than a model's context allows")
        if self.kind.name == "question_answer" and measured.verifier is not None:
            whole = measured.verifier == "answers:exact_match"
            why = "answers are short, and compared as a whole" if whole else "answers end with a number"
            options = {"options": {"case": False}} if whole else {}
            lines += ["", "rewards:", *entry(2, "- use", measured.verifier, why)]
            lines += [line for key, value in options.items() for line in entry(4, key, value, "capitals do not matter")]
        return lines


def _relative_place(place: str, folder: Path) -> str:
    """Return a place as a recipe in a folder names it: relative where it is in that folder or below."""
    if not os.path.isabs(place) or not Path(place).is_relative_to(folder):
        return place
    return f"./{Path(place).relative_to(folder)}"
