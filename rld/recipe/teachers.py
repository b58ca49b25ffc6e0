"""The options of a teacher, which is a loaded model or on a server, and of a cache of log-probabilities."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from rld.errors import LibraryError
from rld.recipe import registry
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames, is_hub_id
from rld.recipe.tokenizer_files import same_tokenizer
from rld.types import Align
from rld.utils.model_files import adapter_folder_problem
from rld.utils.options import FrozenOptions, OptionError, union_by_key
from rld.utils.suggestions import hint
from rld.utils.templates import rollout_fields, template_problem

STUDENT = "student"
"""How a teacher with a prompt names the student as its model."""

_NUM_PROBES = 32
"""Prompts of a skill that measure a teacher which no gate measures."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


class _Teacher(FrozenOptions):
    skills: list[str] | None = None
    """The skills that it teaches. None: all; how much on each is the controller's to decide."""
    probe_prompts: int | None = Field(None, ge=0, le=100_000)
    """Training prompts of each of its skills that it answers before the stage, to measure its success rate. 0: trust
    it. None: 32 where the controller goes by that and no gate asks it while the stage trains, else 0;
    0 where its prompt shows something of a rollout."""
    prompt: str | None = None
    """What it reads in place of the student's prompt, or of the user's last message in it: a text in which `{question}`
    and `{answer}`, the gold answer, are replaced, and of the rollout `{feedback}` of rewards on the completion,
    `{attempt}`, the completion itself, and `{correct_attempt}`, another one of the prompt that the verifier accepts. It
    teaches where none of them is empty. None: it reads the student's prompt."""

    @field_validator("prompt")
    @classmethod
    def _is_a_template(cls, template: str | None) -> str | None:
        problem = None if template is None else template_problem(template)
        if problem is not None:
            raise ValueError(problem)
        return template

    @model_validator(mode="after")
    def _is_probed_where_it_can_be(self) -> Self:
        if self.probe_prompts and self.reads_attempts:
            field = rollout_fields(self.prompt)[0]
            message = f"leave it out: the prompt shows {{{field}}}, which there is not before a rollout"
            raise OptionError(message, "probe_prompts")
        return self

    @property
    def reads_attempts(self) -> bool:
        """Whether its prompt shows something of a rollout."""
        return bool(rollout_fields(self.prompt))

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the teacher's name, and the skills that it teaches."""
        name = loc[-1]
        if isinstance(name, str) and not _NAME.fullmatch(name):
            yield names.problem(loc, ": a name has only letters, digits, '_' and '-'")
        yield from names.skill_list((*loc, "skills"), raw.get("skills"), names.trained_skills)

    def num_probes(self, *, are_read: bool) -> int:
        """Return the training prompts of each skill that it answers before a stage.

        Args:
            are_read: Whether the stage goes by these answers.
        """
        if self.reads_attempts:
            return 0
        return self.probe_prompts if self.probe_prompts is not None else _NUM_PROBES if are_read else 0

    @property
    def place(self) -> str:
        """The location of the teacher, as `rld check` prints it."""
        raise NotImplementedError


class SelfTeacherSpec(_Teacher):
    """The student itself, which by another prompt knows more than as a student: it teaches what it then says."""

    model: Literal["student"]
    """The student, where there is a `prompt` and no model of that name."""
    prompt: str
    average: float | None = Field(None, gt=0, le=1)
    """Share of the teacher's weights that each update keeps: an exponential moving average of the student's, which is
    TRL's `ema` teacher with `teacher_update_rate` 1 - `average`. 1: the weights with which the stage began. None: the
    student's present weights."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check also that no model has the student's name."""
        yield from super().check(names, loc, raw)
        if STUDENT in [*names.models, *names.stage_names]:
            reason = "with a prompt it means the student itself, and a model or stage of the recipe has that name"
            yield names.problem((*loc, "model"), f": {reason}; rename the model or stage")

    @property
    def place(self) -> str:
        if self.average is None:
            return "the student itself"
        return "the student as it began" if self.average == 1 else f"the student's running average ({self.average:g})"


class ServedTeacher(_Teacher):
    """A teacher on a server, with the student's tokenizer. It returns its most likely tokens, but no hidden states."""

    url: str = Field(pattern=r"^https?://[^/]")
    """The address that `rld serve-teacher` prints, or that of an OpenAI-compatible endpoint with vLLM's
    `prompt_logprobs`, which ends in `/v1`. Such an endpoint scores at temperature 1."""
    top_k: int = Field(64, ge=1, le=255)
    """Number of tokens that it returns per position, the most likely ones; all others count as one outcome."""
    optional: bool = False
    """Whether training continues without it if it stops answering. Otherwise the run stops; `--resume` continues it."""
    timeout_seconds: float = Field(60.0, gt=0)
    """Seconds for which failed requests are repeated before the server counts as down."""
    token_variable: str = "RLD_TEACHER_TOKEN"
    """Name of the environment variable that holds the bearer token, if the server requires one."""
    fingerprint: str | None = None
    """The fingerprint that `rld serve-teacher` prints; other weights are rejected. None: that at the start."""
    served_model: str | None = None
    """The name of the model at an OpenAI-compatible endpoint. None: the only one that it serves."""

    @property
    def is_openai(self) -> bool:
        """Whether the server is an OpenAI-compatible endpoint."""
        return self.url.rstrip("/").endswith("/v1")

    @model_validator(mode="after")
    def _only_endpoints_have_names(self) -> ServedTeacher:
        if self.served_model is not None and not self.is_openai:
            message = "rld serve-teacher serves one model: leave it out, or let the url of another server end in /v1"
            raise OptionError(message, "served_model")
        return self

    @property
    def place(self) -> str:
        return f"at {self.url}"


class TeacherSpec(_Teacher):
    """A teacher that is loaded in the training process."""

    model: str
    """A name in `models`, an earlier stage, a hub id or a folder."""
    from_pretrained: dict[str, Any] = {}
    """Arguments of transformers' `from_pretrained`, such as dtype, device_map or quantization_config (a mapping)."""
    adapter: str | None = None
    """Folder or hub id of a PEFT adapter for the model. Teachers with the same model and options share its weights."""
    offload: bool = False
    """Whether to keep the weights in CPU memory while the teacher is not in use: slower, but takes less GPU memory."""
    align: Align | None = None
    """How to align a teacher that has another tokenizer. `likelihood`: match the likelihood of spans of text that both
    tokenizers can express. `vocabulary`: match the probabilities of tokens in both vocabularies, and the sorted
    probabilities of the others. None: the teacher has the student's tokenizer."""
    chat_template: str | None = None
    """A chat template in Jinja, for a teacher without one. None: that of its tokenizer."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check also its model, adapter and tokenizer."""
        yield from names.reference((*loc, "model"), raw.get("model"))
        yield from _check_adapter(names, (*loc, "adapter"), raw.get("adapter"))
        yield from super().check(names, loc, raw)
        yield from _check_tokenizer(names, loc, raw)
        match raw:
            case {"offload": True, "from_pretrained": {"device_map": _} | {"quantization_config": _}}:
                reason = "a model with device_map or quantization_config stays where it was loaded"
                yield names.problem((*loc, "offload"), f" cannot be true: {reason}")

    @property
    def place(self) -> str:
        return self.model + (f" with adapter {self.adapter}" if self.adapter is not None else "")

    @property
    def base(self) -> str:
        """A key that is equal for teachers that share one copy of a model's weights."""
        return json.dumps([self.model, self.from_pretrained, self.chat_template], sort_keys=True, default=str)


def _or_student(by_place: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    """Return a discriminator that knows the student, which a teacher with a prompt may name as its model."""

    def kind(value: Any) -> str | None:
        match value:
            case {"model": "student", "prompt": _}:
                return SelfTeacherSpec.__name__
        return by_place(value)

    return kind


AnyTeacher = Annotated[
    Annotated[TeacherSpec, Tag("TeacherSpec")]
    | Annotated[ServedTeacher, Tag("ServedTeacher")]
    | Annotated[SelfTeacherSpec, Tag("SelfTeacherSpec")],
    Discriminator(
        _or_student(union_by_key(url=ServedTeacher, model=TeacherSpec)),
        custom_error_type="unknown_kind",
        custom_error_message="should be a mapping with one of the keys 'model' and 'url'",
    ),
]


class CacheSpec(FrozenOptions):
    """A cache on disk of the teachers' log-probabilities of gold answers, which are then computed only once."""

    folder: str
    """Folder of the cache, relative to the recipe. It holds one folder per teacher, named after the teacher."""
    top_k: int = Field(64, ge=1, le=255)
    """Number of most likely tokens to store per position; all others are one outcome. Served teachers use their own."""


def _check_adapter(names: RecipeNames, loc: Loc, name: Any) -> Iterator[RecipeProblem]:
    """Check that a name refers to a PEFT adapter."""
    if not isinstance(name, str):
        return
    path = registry.find_path(name, names.folder)
    if path is None and (name.startswith((".", "/", "~")) or not is_hub_id(name)):
        beside = [path.parent.name for path in names.folder.glob("*/adapter_config.json")]
        near = hint(name.removeprefix("./"), beside) or "; give the folder or hub id (owner/name) of a PEFT adapter"
        yield names.problem(loc, f": there is no adapter {name!r}{near}")
    elif path is not None and (problem := adapter_folder_problem(path)) is not None:
        yield names.problem(loc, f": {name} is no PEFT adapter: {problem}")


def _check_tokenizer(names: RecipeNames, loc: Loc, raw: Mapping[Any, Any]) -> Iterator[RecipeProblem]:
    """Check that teacher and student have the same tokenizer, if the files of both are on this machine."""
    student = names.stage.get("student")
    files = names.tokenizer_file(student), names.tokenizer_file(raw.get("model"))
    if raw.get("align") is not None or files[0] is None or files[1] is None:
        return
    try:
        is_same = same_tokenizer(files[0], files[1])
    except LibraryError as error:
        yield names.problem(loc, f": {error}")
        return
    if not is_same:
        fix = "set align: likelihood or align: vocabulary here, or choose a teacher of the student's family"
        yield names.problem(loc, f": its tokenizer is not that of the student, {student}; {fix}")
