"""The options of a teacher: a model loaded here, or one on a server; and of a cache of log-probabilities."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from rld.errors import LibraryError
from rld.recipe import registry
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames, is_hub_id
from rld.recipe.tokenizer_files import same_tokenizer
from rld.types import Align
from rld.utils.options import FrozenOptions, union_by_key
from rld.utils.suggestions import hint

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


class _Teacher(FrozenOptions):
    skills: list[str] | None = None
    """The skills that it teaches. None: wherever it proves better than the student."""
    probe_prompts: int = Field(32, ge=0)
    """Training prompts per skill that it answers before the stage, which show where it is correct. 0: trust it."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the teacher's name, and the skills that it teaches."""
        name = loc[-1]
        if isinstance(name, str) and not _NAME.fullmatch(name):
            yield names.problem(loc, ": a name has only letters, digits, '_' and '-'")
        yield from names.skill_list((*loc, "skills"), raw.get("skills"), names.trained_skills)

    @property
    def place(self) -> str:
        """Where it is, as `rld check` shows it."""
        raise NotImplementedError


class ServedTeacher(_Teacher):
    """A teacher on a server, with the student's tokenizer: it hands over its likeliest tokens, not its states."""

    url: str = Field(pattern=r"^https?://[^/]")
    """Where `rld serve-teacher` says it is, or an OpenAI-compatible endpoint with vLLM's `prompt_logprobs`, whose
    address ends in `/v1`; that one scores at temperature 1."""
    top_k: int = Field(64, ge=1, le=255)
    """Tokens that it names at each place; all others are one outcome."""
    optional: bool = False
    """Whether training goes on without it when it stops answering. Otherwise the run stops, and `--resume` goes on."""
    timeout_seconds: float = Field(60.0, gt=0)
    """How long it is asked again before it counts as down."""
    token_variable: str = "RLD_TEACHER_TOKEN"
    """The environment variable with its bearer token, if it wants one."""
    fingerprint: str | None = None
    """What `rld serve-teacher` prints: weights other than these are refused. None: those that it starts with."""

    @property
    def place(self) -> str:
        return f"at {self.url}"


class TeacherSpec(_Teacher):
    """A teacher that is loaded beside the student."""

    model: str
    """A name in `models`, an earlier stage, a hub id or a folder."""
    from_pretrained: dict[str, Any] = {}
    """Arguments of transformers' `from_pretrained`, such as dtype, device_map or quantization_config (a mapping)."""
    adapter: str | None = None
    """A folder or hub id of a PEFT adapter on the model. Teachers with the same model, loaded alike, share weights."""
    offload: bool = False
    """Whether the weights rest in CPU memory and are on the GPU only while the teacher scores: slower, and smaller."""
    align: Align | None = None
    """For a teacher with another tokenizer: teach by the `likelihood` of spans of text that both tokenizers can say, or
    by the `vocabulary` that both have and the shape of the rest. None: it has the student's tokenizer."""
    chat_template: str | None = None
    """A chat template in Jinja, for a teacher that comes without one. None: its tokenizer's."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check its model, adapter and tokenizer too."""
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
        """The same for teachers that share one copy of a model's weights."""
        return json.dumps([self.model, self.from_pretrained, self.chat_template], sort_keys=True, default=str)


AnyTeacher = Annotated[
    Annotated[TeacherSpec, Tag("TeacherSpec")] | Annotated[ServedTeacher, Tag("ServedTeacher")],
    Discriminator(
        union_by_key(url=ServedTeacher, model=TeacherSpec),
        custom_error_type="unknown_kind",
        custom_error_message="should be a mapping with one of the keys 'model' and 'url'",
    ),
]


class CacheSpec(FrozenOptions):
    """Where what teachers say of gold answers is kept, so that it is computed once."""

    folder: str
    """Relative to the recipe; each teacher has a folder of its name in it."""
    top_k: int = Field(64, ge=1, le=255)
    """Tokens that a teacher names at each place; all others are one outcome. A teacher on a server has its own."""


def _check_adapter(names: RecipeNames, loc: Loc, name: Any) -> Iterator[RecipeProblem]:
    """Check that a name leads to a PEFT adapter."""
    if not isinstance(name, str):
        return
    path = registry.find_path(name, names.folder)
    if path is None and (name.startswith((".", "/", "~")) or not is_hub_id(name)):
        beside = [path.parent.name for path in names.folder.glob("*/adapter_config.json")]
        near = hint(name.removeprefix("./"), beside) or "; give the folder or hub id (owner/name) of a PEFT adapter"
        yield names.problem(loc, f": there is no adapter {name!r}{near}")
    elif path is not None and not (path / "adapter_config.json").is_file():
        yield names.problem(loc, f": {name} is no PEFT adapter: it has no adapter_config.json")


def _check_tokenizer(names: RecipeNames, loc: Loc, raw: Mapping[Any, Any]) -> Iterator[RecipeProblem]:
    """Check that a teacher reads the student's tokens, where the files of both are on this machine."""
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
