"""Check the rows of a recipe for each model that reads them, before the first stage.

Tokenizers and configurations are loaded, but no weights. All rows of a file are checked, of a large file 20,000, and of
generators a sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rld.data.row_kinds import ROW_KINDS
from rld.data.skill_rows import PlacedRow, SkillRows
from rld.errors import DataError
from rld.models.generation import encoder_of
from rld.models.prompting import PromptEncoder
from rld.models.row_checks import Finding, FindingKind, check_prompts, check_rows
from rld.models.self_check import context_length
from rld.models.template_checks import notices, require_options_read
from rld.models.text_checks import check_texts
from rld.pipeline.model_loading import ModelLoader
from rld.recipe.schema import Recipe
from rld.recipe.stages.base import Stage, TrainingStage
from rld.recipe.stages.distill import Distill
from rld.recipe.stages.sft import Sft
from rld.rollout.verifier import Verify, ask, is_success
from rld.teachers.own_rows import missing, own_row
from rld.types import Row, is_document
from rld.utils.messages import tell
from rld.utils.templates import ROLLOUT_FIELDS

_FIXES: Mapping[FindingKind, str] = {
    "no answer": "name the column of the answers in `columns`, or a verifier that decides by other columns in `entry`",
    "unknown characters": "use a tokenizer that has them (tokenizer.characters of a new model)",
    "prompt too long": "shorten the prompts or max_new_tokens, or choose a model with a longer context",
    "answer too long": "raise max_new_tokens",
    "block too long": "lower the skill's block",
    "no prompt of a teacher": "name the teacher's `skills`, or change its `prompt`",
}


@dataclass(frozen=True)
class _Reader:
    """A model that reads rows.

    Attributes:
        name: Its name in messages.
        encoder: Encodes prompts and answers for it.
        context_length: Positions that it knows. None: any number.
        skills: The skills that it reads.
        is_student: Whether it is scored on the rows too; a teacher only reads and answers them.
        learns_answers: Whether it learns gold answers.
        needs_labels: Whether it learns those of all rows; fine-tuning leaves labelled rows without a label out.
        stage: Its stage in messages.
        prompt: The template of its own prompts. None: it reads the student's.
    """

    name: str
    encoder: PromptEncoder
    context_length: int | None
    skills: tuple[str, ...]
    is_student: bool = True
    learns_answers: bool = False
    needs_labels: bool = False
    stage: str = ""
    prompt: str | None = None


class RowChecks:
    """Checks the rows of a recipe.

    Args:
        recipe: The recipe; its `bad_rows` says whether rows with a problem are refused or left out.
        models: Loads tokenizers and configurations.
        judge: Tells which answers are correct.
    """

    def __init__(self, recipe: Recipe, models: ModelLoader, judge: Verify) -> None:
        self._recipe, self._models, self._judge = recipe, models, judge

    def accepts(self, row: Row) -> bool:
        """Tell whether a row has no problem for any model that reads its skill."""
        readers = [reader for reader in self._readers if row["skill"] in reader.skills]
        return not any(self._findings(reader, [row]) for reader in readers)

    def require(self, sources: Mapping[str, SkillRows]) -> None:
        """Check rows of all skills for all models, and warn of those that are left out.

        Of several models that have the same problem with a skill, the one with the most rows is told.

        Raises:
            DataError: rows have a problem, and the recipe does not leave them out, or all rows of a skill have it.
        """
        examples = {skill: source.examples() for skill, source in sources.items()}
        held_out = {skill: source.placed_held_out() for skill, source in sources.items()}
        self._look_at_texts(examples)
        for skill, source in sources.items():
            num_checked = len(examples[skill])
            if source.num_rows is not None and num_checked < source.num_rows:
                tell(f"skill '{skill}': {num_checked:,} of {source.num_rows:,} rows are checked, evenly spread")
        problems: dict[tuple[str, str], tuple[str, Finding]] = {}
        for reader in self._readers:
            answering = replace(reader, learns_answers=False)
            for skill in sources if reader.is_student else reader.skills:  # a student is scored on all skills
                is_trained = skill in reader.skills
                pairs = [*(examples[skill] if is_trained else held_out[skill]), *self._each_label(examples[skill][:1])]
                places = [place for place, _ in pairs]
                for finding in self._findings(reader if is_trained else answering, [row for _, row in pairs]):
                    line = f"{reader.name}, skill '{skill}': {finding.described(places)}"
                    line += self._fix(finding, reader if is_trained else answering, skill)
                    worst = problems.get((skill, finding.kind))
                    if worst is None or len(worst[1].rows) < len(finding.rows):
                        problems[skill, finding.kind] = line, finding
        self._tell(dict(problems.values()), "such rows are left out (bad_rows: skip)")

    def _each_label(self, examples: Sequence[PlacedRow]) -> Iterator[PlacedRow]:
        """Yield a labelled row with each of its skill's labels; none for other rows."""
        for _, row in examples:
            names = [*self._recipe.labels.get(row["skill"], {})]
            for label, text in self._recipe.label_words[row["skill"]].completions if names else ():
                yield PlacedRow(f"label {names[label]!r}", {**row, "answer": text})

    def _with_some_label(self, row: Row) -> Row:
        """Return a labelled row without a label with the longest one, and any other row as it is."""
        words = self._recipe.labels.get(row["skill"], {}).values()
        return {**row, "answer": max(words, key=len)} if words and not row["answer"] else row

    def _look_at_texts(self, examples: Mapping[str, Sequence[PlacedRow]]) -> None:
        """Refuse arguments that no chat template reads, and warn of what a user may not expect of the texts."""
        rows = [row for of_skill in examples.values() for _, row in of_skill[:8] if not is_document(row)]
        students = {id(reader.encoder.tokenizer): reader for reader in reversed(self._readers) if reader.is_student}
        for reader in students.values():
            if self._recipe.prompt_style == "chat":
                with self._recipe.mistakes_at(self._recipe.place("prompts", "chat_template_kwargs")):
                    require_options_read(reader.encoder)
            for text in notices(reader.encoder, rows):
                warnings.warn(f"{reader.name}: {text}", stacklevel=2)

    def require_readable(self, name: str, model: Any, tokenizer: Any, held_out: Sequence[Row]) -> None:
        """Check held-out rows for a model that is scored on them; where the recipe skips bad rows, warn of them.

        Raises:
            DataError: rows have a problem.
        """
        prompts = self._recipe.prompts
        encoder = encoder_of(model, tokenizer, prompts.chat_template_kwargs, prompts.strip_thinking)
        reader = _Reader(name, encoder, context_length(model.config), ())
        findings = self._findings(reader, held_out)
        lines = {f"{name}: {f.described(_places(held_out))}{self._fix(f, reader)}": f for f in findings}
        self._tell(lines, "such rows count as wrong")

    def require_learnt(self, stage: Sft, rows: Sequence[Row]) -> None:
        """Check rows whose gold answers a stage learns.

        Raises:
            DataError: rows have a problem.
        """
        reader = next(self._stage_readers(stage))
        lines = {}
        for finding in self._findings(reader, rows):
            fix = self._fix(finding, reader, rows[finding.rows[0]]["skill"])
            lines[f"{reader.name}: {finding.described(_places(rows))}{fix}"] = finding
        self._tell(lines, "")

    def _fix(self, finding: Finding, reader: _Reader, skill: str = "") -> str:
        """Return what mends a finding of a reader in rows of a skill, or ""."""
        if finding.kind == "no answer" and reader.learns_answers:
            kind = ROW_KINDS.get(str(getattr(self._recipe.skills[skill], "kind", "")))
            answer = kind.answer if kind else "answer"
            return (
                f"; {reader.stage} learns gold answers: give each row its `{answer}`, or name its column in `columns`"
            )
        fix = _FIXES.get(finding.kind)
        return f"; {fix}" if fix else ""

    def _tell(self, problems: Mapping[str, Finding], consequence: str) -> None:
        """Raise findings as an error, or warn of them where the recipe skips bad rows and some rows are good."""
        lines = list(problems)
        is_refused = self._recipe.bad_rows == "refuse" or any(finding.hits_all for finding in problems.values())
        if lines and is_refused:
            raise DataError("\n".join([*lines, _advice(list(problems.values()))]))
        for line in lines:
            warnings.warn(f"{line}; {consequence}", stacklevel=3)

    def _findings(self, reader: _Reader, rows: Sequence[Row]) -> list[Finding]:
        texts = [i for i, row in enumerate(rows) if is_document(row)]
        others = [i for i, row in enumerate(rows) if not is_document(row)]
        blocks = [self._recipe.blocks[rows[i]["skill"]] for i in texts]
        findings = check_texts(reader.encoder, [rows[i] for i in texts], blocks, reader.context_length)
        pairs = [(texts, finding) for finding in findings]
        pairs += [(others, finding) for finding in self._answer_findings(reader, [rows[i] for i in others])]
        return [replace(finding, rows=tuple(numbers[i] for i in finding.rows)) for numbers, finding in pairs]

    def _answer_findings(self, reader: _Reader, rows: Sequence[Row]) -> list[Finding]:
        limits: dict[str, Any] = {
            "max_new_tokens": self._recipe.max_new_tokens,
            "context_length": reader.context_length,
        }
        if not reader.is_student:
            return _findings_of_prompts(reader, rows, **limits)

        rows = rows if reader.needs_labels else [self._with_some_label(row) for row in rows]

        def verify(rows: Sequence[Row], texts: Sequence[str]) -> list[bool]:
            rewards = ask(self._judge, rows, texts, reader.encoder.encode_answers(texts))
            return [reward is not None and is_success(reward) for reward in rewards]

        return check_rows(reader.encoder, rows, **limits, learns_answers=reader.learns_answers, verify=verify)

    # -- models ------------------------------------------------------------------------------------------------------

    @cached_property
    def _readers(self) -> list[_Reader]:
        """The models of all stages; of those that read the same rows alike, the first one alone."""
        readers: dict[Any, _Reader] = {}
        for stage in self._recipe.stages:
            for reader in self._stage_readers(stage):
                key = id(reader.encoder.tokenizer), reader.context_length, reader.skills, reader.learns_answers
                readers.setdefault(
                    (*key, reader.needs_labels, reader.encoder.chat_template, reader.is_student, reader.prompt), reader
                )
        return list(readers.values())

    def _stage_readers(self, stage: Stage) -> Iterator[_Reader]:
        skills = tuple(stage.skills_in_use(self._recipe.skills))
        student, context_length = self._models.encoder(stage.origin)
        name = f"stage '{stage.name}', {'student' if isinstance(stage, TrainingStage) else 'model'} {stage.origin}"
        learner = f"stage '{stage.name}' ({stage.kind})"
        learns_answers = stage.learns_gold_answers
        yield _Reader(
            name,
            student,
            context_length,
            skills,
            learns_answers=learns_answers,
            needs_labels=learns_answers and isinstance(stage, Distill),
            stage=learner,
        )
        for reader in stage.readers():
            encoder, context_length = self._models.encoder(reader.model, reader.chat_template)
            encoder = encoder if reader.has_own_tokenizer else student
            taught = tuple(skill for skill in skills if reader.skills is None or skill in reader.skills)
            name = f"stage '{stage.name}', teacher {reader.name}"
            limit = context_length if reader.has_known_context else None
            yield _Reader(name, encoder, limit, taught, is_student=False, prompt=reader.prompt)


def _findings_of_prompts(reader: _Reader, rows: Sequence[Row], **limits: Any) -> list[Finding]:
    """Return what keeps a model that learns nothing from reading rows, by its own prompts where it has some."""
    template = reader.prompt
    if template is None:
        return check_prompts(reader.encoder, rows, **limits)
    problems = {i: missing(row, template) for i, row in enumerate(rows)}
    lacking = {i: problem for i, problem in problems.items() if problem is not None}
    others = [i for i in problems if i not in lacking]
    before = dict.fromkeys(ROLLOUT_FIELDS, "")  # there is no rollout yet
    findings = [
        replace(finding, rows=tuple(others[i] for i in finding.rows), num_checked=len(rows))
        for finding in check_prompts(reader.encoder, [own_row(rows[i], template, before) for i in others], **limits)
    ]
    if lacking:
        first = next(iter(lacking.values()))
        findings.append(Finding("no prompt of a teacher", tuple(lacking), len(rows), first))
    return findings


def _places(rows: Sequence[Row]) -> list[str]:
    return [f"row {i} of skill '{row['skill']}'" for i, row in enumerate(rows)]


def _advice(findings: Sequence[Finding]) -> str:
    if any(finding.hits_all for finding in findings):
        return "no row of these skills can be used as it is"
    return "mend these rows, or leave out all such rows by bad_rows: skip in the recipe"
