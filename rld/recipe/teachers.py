"""The options of a teacher: a model loaded here, or one on a server; and of a cache of log-probabilities."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from rld.types import Align
from rld.utils.options import FrozenOptions, union_by_key


class _Teacher(FrozenOptions):
    skills: list[str] | None = None
    """The skills that it teaches. None: wherever it proves better than the student."""
    probe: int = Field(32, ge=0)
    """Training prompts per skill that it answers before the stage, which show where it is right. 0: trust it."""


class ServedTeacher(_Teacher):
    """A teacher on a server, with the student's tokenizer: it hands over its likeliest tokens, not its states."""

    url: str = Field(pattern=r"^https?://[^/]")
    """Where `rld serve-teacher` says it is, or an OpenAI-compatible endpoint with vLLM's `prompt_logprobs`, whose
    address ends in `/v1`; that one scores at temperature 1."""
    top_k: int = Field(64, ge=1, le=255)
    """Tokens that it names at each place; all others are one outcome."""
    optional: bool = False
    """Whether training goes on without it when it stops answering. Otherwise the run stops, and `--resume` goes on."""
    patience: float = Field(60.0, gt=0)
    """Seconds for which it is asked again before it counts as down."""
    token_variable: str = "RLD_TEACHER_TOKEN"
    """The environment variable with its bearer token, if it wants one."""
    fingerprint: str | None = None
    """What `rld serve-teacher` prints: weights other than these are refused. None: those that it starts with."""


class TeacherSpec(_Teacher):
    """A teacher that is loaded beside the student."""

    model: str
    """A name in `models`, an earlier stage, a hub id or a folder."""
    init: dict[str, Any] = {}
    """Arguments of `from_pretrained`, such as dtype, device_map or quantization_config (a mapping)."""
    adapter: str | None = None
    """A folder or hub id of a PEFT adapter on the model. Teachers with the same model and init share its weights."""
    offload: bool = False
    """Whether the weights rest in CPU memory and are on the GPU only while the teacher scores: slower, and smaller."""
    align: Align | None = None
    """For a teacher with another tokenizer: teach by the `likelihood` of spans of text that both tokenizers can say, or
    by the `vocabulary` that both have and the shape of the rest. None: it has the student's tokenizer."""
    chat_template: str | None = None
    """A chat template in Jinja, for a teacher that comes without one. None: its tokenizer's."""

    @property
    def base(self) -> str:
        """The same for teachers that share one copy of a model's weights."""
        return json.dumps([self.model, self.init, self.chat_template], sort_keys=True, default=str)


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
