"""The options of a skill: the source of its rows, and what they are scored by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from rld.data.formats import FORMATS, TEXT_FORMATS, csv
from rld.data.formats.files import first_columns, row_files
from rld.data.formats.hub import HubRows
from rld.data.row_kinds import ROW_KINDS, RowReader
from rld.data.row_kinds.conversation import Turns
from rld.data.row_kinds.fields import columns_named_in
from rld.data.row_kinds.labelled import Labels, Synonyms, synonym_problem
from rld.evaluation.scores import DEFAULT_SCORES, find_score, require_scores
from rld.recipe import registry, reserved_options, third_party_options
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.held_out import HeldOutFile, HeldOutRows, HeldOutSplit, Samples
from rld.recipe.names import RecipeNames, is_hub_id, items
from rld.recipe.option_checks import check_call, check_options, find_signature
from rld.recipe.prompts import Prompts
from rld.types import Predicts
from rld.utils import puzzles
from rld.utils.options import FrozenOptions, OptionError, union_by_key
from rld.utils.suggestions import hint


class _Skill(FrozenOptions):
    held_out: HeldOutRows | HeldOutFile = 100
    """Number of rows used for scores and excluded from training, or of rows of files their share below 1, or a mapping
    with the `file` of such rows. 0: the skill is trained on, but not scored."""
    prompts: Prompts | None = None
    """How its questions are turned into prompts. All skills must have one `style`. None: the recipe's `prompts`."""
    scores: list[str] = []
    """What a model's predictions for the held-out rows are scored by. The first one, which is between 0 and 1, is the
    score of the skill in log, charts and verdict; the others stand beside it. Empty: `solved`, the share of answers
    that the judge calls correct; of labels `accuracy`, `macro_f1` and `calibration_error`; of texts that are only read
    `byte_probability`, `nats_per_byte` and `perplexity`."""
    samples: Samples | None = None
    """Answers that are sampled for each held-out row, beside the greedy one, for the scores `pass_at_K`."""

    @model_validator(mode="after")
    def _scores_fit_the_rows(self) -> _Skill:
        require_scores(self.scores, self.predicts, self.samples.count if self.samples is not None else 0)
        return self

    @model_validator(mode="after")
    def _shares_are_of_files(self) -> _Skill:
        if isinstance(self.held_out, float) and self.num_levels is not None:
            raise OptionError("a share is of the rows of a file, and a generator has no end; give a number", "held_out")
        return self

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the file of held-out rows."""
        held_out = raw.get("held_out")
        if isinstance(held_out, dict) and "dataset" not in raw:
            yield from _check_file(names, (*loc, "held_out", "file"), held_out.get("file"))

    @property
    def origin(self) -> str:
        """The source of the rows, as `rld check` prints it."""
        raise NotImplementedError

    @property
    def held_out_source(self) -> str | HubRows | None:
        """The path or the data set of held-out rows; None where they are taken from the others."""
        return self.held_out.file if isinstance(self.held_out, HeldOutFile) else None

    @property
    def num_levels(self) -> int | None:
        """The number of levels; None if it is known only after the rows are read."""
        return None

    @property
    def predicts(self) -> Predicts:
        """What a model predicts of its held-out rows."""
        return "text"

    @property
    def scores_in_use(self) -> Sequence[str]:
        """Its scores, the main one first."""
        return self.scores or DEFAULT_SCORES[self.predicts]

    @property
    def scores_of_gold_answers(self) -> list[str]:
        """Those of its scores that need a gold answer of each row."""
        return [name for name in self.scores_in_use if (score := find_score(name)) is not None and score.needs_gold]


class GeneratedSkill(_Skill):
    """Rows from a function `(rng, **level) -> (question, answer)`, which draws all random numbers from `rng`."""

    generator: str
    """The function, as ./file.py:name (relative to the recipe) or package.module:name."""
    levels: list[dict[str, Any]] = Field([{}], min_length=1)
    """Keyword arguments of the function for each level, the easiest level first."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the function and its arguments on each level."""
        yield from super().check(names, loc, raw)
        use = raw.get("generator")
        if isinstance(use, str):
            signature = yield from find_signature("generators", names, (*loc, "generator"), use)
            for i, level in items(raw.get("levels", [{}])):
                yield from check_call(names, (*loc, "levels", i), level, use, signature)

    @property
    def origin(self) -> str:
        return self.generator

    @property
    def num_levels(self) -> int:
        return len(self.levels)


class ReasoningGymSkill(_Skill):
    """Rows from a reasoning-gym task, scored by its own verifier with exact credit."""

    reasoning_gym: str
    """The task's name in reasoning-gym, such as chain_sum."""
    levels: list[dict[str, Any]] = Field([{}], min_length=1)
    """Configuration of the task for each level, the easiest level first."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the task and its configuration on each level."""
        yield from super().check(names, loc, raw)
        task, where = raw.get("reasoning_gym"), (*loc, "reasoning_gym")
        if not isinstance(task, str):
            return
        if not puzzles.is_installed():
            yield names.problem(where, f": reasoning_gym {puzzles.NEEDS}")
            return
        tasks = third_party_options.gym_tasks()
        if tasks is not None and task not in tasks:
            yield names.problem(where, f": reasoning-gym has no task {task!r}{hint(task, tasks)}")
        fields = third_party_options.gym_fields(task)
        for i, level in items(raw.get("levels")):
            yield from check_options(names, (*loc, "levels", i), level, fields, reserved_options.GYM)

    @property
    def origin(self) -> str:
        return f"reasoning-gym {self.reasoning_gym}"

    @property
    def num_levels(self) -> int:
        return len(self.levels)


def _options_of(kind: str) -> list[str]:
    """Return the options of a kind of rows."""
    row_kind = ROW_KINDS[kind]
    others = {"likelihood": ["block"], "label": ["synonyms"]}
    return [*row_kind.options, *others.get(row_kind.predicts, [])]


class _RowsSkill(_Skill):
    kind: str = "question_answer"
    """What a row is. `question_answer`: `question` and `answer`; `prompt` with `completion`, with `answer` or, where
    other columns tell the rewards what is correct, with neither; or `messages` of one turn. `conversation`: `messages`
    of several turns, or a `prompt` of messages, with `tools` where there are some. `code_task`: `prompt` and `tests`,
    with `solution`, `setup` and `entry_point` where there are some. `labelled`: `question` and `answer`, which is one
    of the `labels`, or empty where the label is not known. `plain_text`: documents, in a column `text` or each in a
    file of its own, of which every token is learnt."""
    columns: dict[str, str] = {}
    """Where the values stand that are in no column of their name, as in `{question: title, answer: label}`. A text with
    columns in braces is a template: `question: "{title}\\n{text}"`. Held-out rows have the same columns."""
    turns: Turns = "last"
    """The answers of a conversation that are learnt and scored: the `last` one, or `all`, each as a row of its own with
    the messages in front of it as its prompt."""
    labels: Labels = {}
    """Of labelled rows, the words that say each label, as in `{1: " World", 2: " Sports"}`, with the space that stands
    between prompt and answer. A list of words is short for labels that the file calls by these words themselves."""
    synonyms: Synonyms = {}
    """Further words of labels, by the name in `labels`, as in `{1: [" Politics"]}`, which only teachers are asked for
    while labels are learnt: a teacher's score of a label is then the mean log-probability of all its words."""
    document_separator: str | None = Field(None, min_length=1)
    """What stands between two documents of `kind: plain_text` in one text. None: a text is one document."""
    block: int = Field(256, ge=8, le=1_000_000)
    """The most tokens of a row of `kind: plain_text`, with the one in front of it and the end. Longer documents are
    cut, before white space where possible."""

    @field_validator("kind")
    @classmethod
    def _kind_exists(cls, kind: str) -> str:
        if kind not in ROW_KINDS:
            raise ValueError(f"there is no such kind of rows{hint(kind, ROW_KINDS)}")
        return kind

    @model_validator(mode="after")
    def _options_are_of_the_kind(self) -> _RowsSkill:
        for name in ("turns", "labels", "synonyms", "document_separator", "block"):
            is_set = getattr(self, name) != type(self).model_fields[name].default
            kinds = [kind for kind in ROW_KINDS if name in _options_of(kind)]
            if is_set and self.kind not in kinds:
                fix = f"set kind: {' or '.join(kinds)}, or leave it out"
                raise OptionError(f"rows of kind {self.kind} have no such option; {fix}", name)
        if self.kind == "labelled" and not self.labels:
            message = 'labelled rows have the words that say each label, as in {1: " World", 2: " Sports"}'
            raise OptionError(message, "labels")
        if (problem := synonym_problem(self.labels, self.synonyms)) is not None:
            raise OptionError(problem, "synonyms")
        return self

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check that the columns are those of the kind of rows, and that prompts of conversations are chats."""
        yield from super().check(names, loc, raw)
        place = () if raw.get("prompts") is None else loc
        prompts = (raw if place else names.document.tree).get("prompts")
        style = prompts.get("style") if isinstance(prompts, dict) else None
        if raw.get("kind") == "conversation" and style != "chat":
            where = (*place, "prompts", "style") if prompts is not None else (*loc, "kind")
            yield names.problem(where, ": rows of kind conversation need prompts: {style: chat}")
        kind = raw.get("kind", "question_answer")
        values = ROW_KINDS[kind].names if isinstance(kind, str) and kind in ROW_KINDS else None
        for name, _ in items(raw.get("columns")):
            if values is not None and name not in values:
                place = *loc, "columns", name
                yield names.problem(place, f": rows of kind {kind} have no {name!r}{hint(str(name), values)}")

    @property
    def predicts(self) -> Predicts:
        return ROW_KINDS[self.kind].predicts

    @property
    def reader(self) -> RowReader:
        """What makes items of its rows."""
        options = {name: getattr(self, name) for name in ROW_KINDS[self.kind].options}
        return RowReader(self.kind, self.columns, options)

    @property
    def source(self) -> str | HubRows:
        """The path or the data set of the rows."""
        raise NotImplementedError


class FileSkill(_RowsSkill):
    """Rows from a file: JSON Lines, CSV, TSV, a JSON array or Parquet, with the columns that their `kind` reads.

    Rewards get all other columns as JSON text in `entry`.
    """

    file: str
    """Path of the file, or of a folder of files of one format, relative to the recipe."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check that the file exists, has a supported format and the columns that are named."""
        yield from super().check(names, loc, raw)
        yield from _check_file(names, (*loc, "file"), raw.get("file"))
        path = registry.find_path(str(raw.get("file")), names.folder)
        if path is not None and path.suffix in TEXT_FORMATS and raw.get("kind") != "plain_text":
            yield names.problem((*loc, "file"), f": {raw['file']} is a text; kind: plain_text reads it")
        present = first_columns(path) if path is not None and raw.get("columns") else []
        for name, source in items(raw.get("columns")):
            for column in columns_named_in(source) if isinstance(source, str) and present else ():
                if column not in present:
                    place, file = (*loc, "columns", name), raw["file"]
                    fix = f"; {csv.NAMES_FIRST}" if file.endswith(csv.SUFFIXES) else ""
                    yield names.problem(place, f": {file} has no column {column!r}{hint(column, present)}{fix}")

    @property
    def origin(self) -> str:
        return self.file

    @property
    def source(self) -> str:
        return self.file


class DatasetSkill(_RowsSkill):
    """Rows of a data set of the hub, as `datasets.load_dataset` reads it; without a network from its cache.

    Rewards get all other columns as JSON text in `entry`.
    """

    dataset: str
    """Its id on the hub, owner/name."""
    name: str | None = None
    """Its configuration. None: its default one."""
    split: str = "train"
    """The split to train on, or a part of it such as `train[:1000]`."""
    revision: str | None = None
    """A branch, a tag or a commit. None: the newest one. A run notes the commit that it has read."""
    held_out: HeldOutRows | HeldOutSplit = 100  # type: ignore[assignment]
    """Number of rows used for scores and excluded from training, their share below 1, or a mapping with the `split` of
    such rows. 0: the skill is trained on, but not scored."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check that the data set's id is one of the hub."""
        yield from super().check(names, loc, raw)
        dataset = raw.get("dataset")
        if isinstance(dataset, str) and not is_hub_id(dataset):
            fix = "; files have the key `file`" if registry.find_path(dataset, names.folder) is not None else ""
            yield names.problem((*loc, "dataset"), f": {dataset!r} is no id of the hub (owner/name){fix}")

    @property
    def origin(self) -> str:
        return f"{self.dataset}, {self.split}"

    @property
    def source(self) -> HubRows:
        return HubRows(self.dataset, self.name, self.split, self.revision)

    @property
    def held_out_source(self) -> HubRows | None:
        return self.source._replace(split=self.held_out.split) if isinstance(self.held_out, HeldOutSplit) else None


Skill: TypeAlias = GeneratedSkill | ReasoningGymSkill | FileSkill | DatasetSkill


def _check_file(names: RecipeNames, loc: Loc, name: Any) -> Iterator[RecipeProblem]:
    """Check that a file or folder of rows exists and has a supported format."""
    if not isinstance(name, str):
        return
    path = registry.find_path(name, names.folder)
    if path is None:
        beside = [path.name for path in names.folder.iterdir() if path.suffix in FORMATS | TEXT_FORMATS]
        yield names.problem(loc, f": there is no file {name}{hint(name, beside)}")
        return
    try:
        row_files(path)
    except ValueError as error:
        yield names.problem(loc, f": {error}")


AnySkill = Annotated[
    Annotated[GeneratedSkill, Tag("GeneratedSkill")]
    | Annotated[ReasoningGymSkill, Tag("ReasoningGymSkill")]
    | Annotated[FileSkill, Tag("FileSkill")]
    | Annotated[DatasetSkill, Tag("DatasetSkill")],
    Discriminator(
        union_by_key(generator=GeneratedSkill, reasoning_gym=ReasoningGymSkill, file=FileSkill, dataset=DatasetSkill),
        custom_error_type="unknown_kind",
        custom_error_message=(
            "should be a mapping with one of the keys 'generator', 'reasoning_gym', 'file' and 'dataset'"
        ),
    ),
]
