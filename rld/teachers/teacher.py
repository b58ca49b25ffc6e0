"""A teacher: its model, its skills, how often it was correct, and how it reads the student's tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import DataError, ModelError, TeacherDown, TeacherError
from rld.models.adapters import active_adapter, add_adapter, has_changed_head, own_weights
from rld.models.decoding import end_tokens
from rld.models.heads import LMHead
from rld.models.hidden_states import StateKey
from rld.models.loading import load_model, load_tokenizer
from rld.models.logprob_source import LogprobSource, ScoredSequence, TopKLogprobs
from rld.models.placement import is_placed, move_unless_placed
from rld.models.prompting import PromptEncoder
from rld.models.tokenizer_profile import TokenizerProfile
from rld.teachers.fingerprint import fingerprint
from rld.teachers.own_rows import own_row
from rld.types import Align, Row
from rld.utils.os_errors import is_system_failure
from rld.utils.suggestions import hint
from rld.utils.templates import rollout_fields, template_problem


@dataclass
class _ModelInMemory:
    """A teacher's model in memory."""

    model: PreTrainedModel
    """Frozen and in eval mode, with the adapter's layers in it."""
    adapter_name: str | None
    """The name of the teacher's adapter in the model; None: it has none."""
    device_head: LMHead | None = None
    """A copy of the head on the device, where the model's own is elsewhere."""


@dataclass
class Teacher:
    """One teacher of a student.

    Args:
        model: A loaded model, what `from_pretrained` takes, or a `LogprobSource`, such as `rld.remote_teacher(url)`.
        name: Its name in metrics and errors. None: the last part of the model's path, or the source's name.
        skills: The skills that it teaches. None: all.
        verified: Per skill, the number of probe prompts that it answered correctly, and the number of all. A skill that
            is not listed was not probed.
        tokenizer: Its tokenizer. None: loaded from the model's path.
        from_pretrained: Arguments of transformers' `from_pretrained`, such as dtype, device_map or
            quantization_config (a mapping will do).
        align: How a teacher with another tokenizer teaches: by the likelihood of spans of text at whose ends both
            tokenizers end a token, or by the tokens that both vocabularies have and the shape of the rest. None: it has
            the student's tokenizer.
        chat_template: A chat template in Jinja for an aligned teacher that has none. None: its tokenizer's.
        adapter: A folder or hub id of a PEFT adapter on `model`. Teachers that name the same model, or are given the
            same loaded one, share its weights; each adds only those of its adapter.
        offload: Whether the weights stay in CPU memory and are on the device only while the teacher scores. Each use
            costs a copy to the device and back. A copy of the output head stays there, because the loss needs it.
        optional: Whether training continues when a source stops answering. The teacher is dropped then, with an event.
        prompt: What it reads in place of the student's prompt: a template with `{question}` and `{answer}`, the row's,
            and what a rollout has (`utils.templates.ROLLOUT_FIELDS`). None: the student's prompt.
    """

    model: str | PreTrainedModel | PeftModel | LogprobSource
    name: str | None = None
    skills: Sequence[str] | None = None
    verified: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    from_pretrained: Mapping[str, Any] = field(default_factory=dict)
    align: Align | None = None
    chat_template: str | None = None
    adapter: str | None = None
    offload: bool = False
    optional: bool = False
    prompt: str | None = None
    is_down: bool = field(default=False, init=False)
    """Whether it has stopped answering, though it is optional."""
    _model_in_memory: _ModelInMemory | None = field(default=None, init=False, repr=False)
    _reader: PreTrainedTokenizerBase | None = field(default=None, init=False, repr=False)
    """The tokenizer of the student that its source is connected to."""

    def __post_init__(self) -> None:
        if self.name is None and isinstance(self.model, LogprobSource):
            self.name = self.model.name
        elif self.name is None:
            assert not isinstance(self.model, LogprobSource)
            path = self.model if isinstance(self.model, str) else self.model.config._name_or_path
            self.name = (self.adapter or path).rstrip("/").split("/")[-1] or "teacher"
        problem = None if self.prompt is None else template_problem(self.prompt)
        if problem is not None:
            raise self._error(f"its prompt {self.prompt!r}: {problem}")

    @property
    def is_student(self) -> bool:
        """Whether it is the student itself, whose weights change while it teaches."""
        return False

    @property
    def reads_attempts(self) -> bool:
        """Whether its prompt shows something of a rollout, so that it can be made only once there is one."""
        return bool(rollout_fields(self.prompt))

    def own_row(self, row: Row) -> Row:
        """Return a row as this teacher reads it: with its own prompt, where it has a template.

        Raises:
            TeacherError: the row lacks what the template shows.
        """
        if self.prompt is None:
            return row
        try:
            return own_row(row, self.prompt)
        except DataError as error:
            raise self._error(f"its own prompt can't be made of a row: {error}") from error

    def load(self) -> PreTrainedModel:
        """Return the model, frozen and in eval mode: no dropout, no gradients. To run it, use `running`.

        Raises:
            TeacherError: the model or its adapter cannot be loaded, or cannot teach.
        """
        return self._load().model

    def _load(self) -> _ModelInMemory:
        if self._model_in_memory is not None:
            return self._model_in_memory
        model, adapter_name = self._unwrapped(self.load_base()), None
        if self.adapter is not None:
            try:
                adapter_name = add_adapter(model, self.adapter)
            except (OSError, ValueError) as error:
                if is_system_failure(error):
                    raise
                raise self._error(f"cannot load the adapter {self.adapter!r}: {error}") from error
        if has_changed_head(model):
            raise self._error("an adapter changes its output head; merge it into the model, and name that")
        if self.offload and is_placed(model):
            raise self._error("a model with device_map or quantization_config stays in place; leave out offload")
        model.eval().requires_grad_(False)
        self._model_in_memory = _ModelInMemory(model, adapter_name)
        return self._model_in_memory

    @property
    def source(self) -> LogprobSource | None:
        """The source of its log-probabilities; None for a teacher that hands over hidden states."""
        return self.model if isinstance(self.model, LogprobSource) else None

    def score(self, sequences: Sequence[ScoredSequence], temperature: float) -> list[TopKLogprobs] | None:
        """Return the source's log-probabilities; None once it is down, if it is optional."""
        assert self.source is not None
        try:
            return None if self.is_down else self.source.score(sequences, temperature)
        except TeacherDown:
            if not self.optional:
                raise
            self.is_down = True
            return None

    def require_states(self, state_keys: Sequence[StateKey]) -> None:
        """Refuse a source whose hidden states are captured at other places than `state_keys`.

        Raises:
            TeacherError: they are.
        """
        if self.source is not None and self.source.state_keys != state_keys:
            states = f"the states at {self.source.state_keys}" if self.source.state_keys else "no hidden states"
            raise self._error(
                f"it hands over {states}, and features are matched with those at {state_keys}; "
                "give its source these state_keys"
            )

    def swap(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Use the weights of another model from now on, without the adapter.

        Raises:
            TeacherError: the tokenizer is another one, or the teacher has a source instead of a model.
        """
        if self.source is not None:
            raise self._error("its model lives elsewhere, so it can't become another one here")
        if self.tokenizer is None or tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise self._error(f"it can't become {model.config._name_or_path!r}, which has another tokenizer")
        self.model, self.adapter, self._model_in_memory = model, None, None

    def load_base(self) -> PreTrainedModel | PeftModel:
        """Return the model without the adapter.

        Raises:
            TeacherError: it cannot be loaded.
        """
        if isinstance(self.model, str):
            if self.model.startswith((".", "/", "~")) and not Path(self.model).expanduser().is_dir():
                raise self._error(f"there is no folder {self.model}")
            try:
                self.model = load_model(self.model, self.from_pretrained)
            except ModelError as error:
                raise self._error(str(error)) from error
        if not isinstance(self.model, LogprobSource):
            return self.model
        if self.model.model is None:
            raise self._error("it hands over its likeliest tokens, not hidden states, so it can't teach features")
        return self.model.model

    def _unwrapped(self, model: PreTrainedModel | PeftModel) -> PreTrainedModel:
        if not isinstance(model, PeftModel):
            return model
        if model.active_peft_config.is_prompt_learning:
            raise self._error("a prompt-learning adapter cannot teach; use LoRA")
        base: Any = model.get_base_model()  # its layers have the adapter in them
        unwrapped: PreTrainedModel = base
        return unwrapped

    def _error(self, message: str) -> TeacherError:
        return TeacherError(f"teacher '{self.name}': {message}")

    @contextmanager
    def running(self, device: torch.device) -> Iterator[PreTrainedModel]:
        """Yield the model, ready for forwards on `device`: only this teacher's adapter is active, without dropout."""
        loaded = self._load()
        move_unless_placed(loaded.model, device)
        try:
            with active_adapter(loaded.model, loaded.adapter_name):
                # `eval` visits every module, several times an update.
                yield loaded.model.eval() if loaded.model.training else loaded.model
        finally:
            if self.offload:
                move_unless_placed(loaded.model, torch.device("cpu"))

    @contextmanager
    def answering(self, device: torch.device) -> Iterator[PreTrainedModel | LogprobSource]:
        """Yield what answers prompts: its source, or the model as in `running`."""
        if self.source is not None:
            yield self.source
            return
        with self.running(device) as model:
            yield model

    def head(self, device: torch.device) -> LMHead:
        """Return the output head on `device`; a copy stays there while the model's own is elsewhere."""
        loaded = self._load()
        head = LMHead.of(loaded.model).detach()
        if not self.offload and head.weight.device == device:
            return head
        if loaded.device_head is None:
            loaded.device_head = head.to(device)
        return loaded.device_head

    def num_parameters(self) -> int:
        """Return the parameters of a forward, those of the teacher's adapter included; 0 where they are unknown."""
        if self.source is not None:
            return self.source.num_parameters()
        loaded = self._load()
        return sum(weight.numel() for _, weight in own_weights(loaded.model, loaded.adapter_name))

    def fingerprint(self) -> str:
        """Return a hash of the configuration and of samples of the weights, those of the adapter included."""
        if self.source is not None:
            return self.source.info().fingerprint
        loaded = self._load()
        return fingerprint(loaded.model, loaded.adapter_name)

    def ends(self) -> set[int]:
        """Return the token ids that end a completion of this teacher."""
        if self.source is not None:
            return set(self.source.info().ends)
        eos_token_id: int | None = getattr(self.tokenizer, "eos_token_id", None)
        return {*end_tokens(self.load()), *(() if eos_token_id is None else (eos_token_id,))}

    def teaches(self, skill: str) -> bool:
        """Tell whether it teaches a skill."""
        return self.skills is None or skill in self.skills

    def find_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return its tokenizer, loaded from the model's path if none was given.

        Raises:
            TeacherError: there is none.
        """
        path = self.load().config._name_or_path
        if self.tokenizer is None and path:
            try:
                self.tokenizer = load_tokenizer(path, self.from_pretrained)
            except ModelError as error:
                raise self._error(f"{error}; or pass Teacher(..., tokenizer=...)") from error
        if self.tokenizer is None:
            raise self._error(
                "no tokenizer came with it, so nobody knows whether it reads the student's tokens; "
                "pass Teacher(..., tokenizer=...)"
            )
        return self.tokenizer

    def prompt_encoder(self, student: PromptEncoder) -> PromptEncoder:
        """Return the encoder of prompts that this teacher reads: the student's, unless the teacher is aligned."""
        if self.align is None:
            return student
        ends = end_tokens(self.load())
        return replace(student, tokenizer=self.find_tokenizer(), chat_template=self.chat_template, model_ends=ends)

    def require_same_tokenizer(
        self, student: PreTrainedTokenizerBase, chat_options: Mapping[str, Any] | None = None
    ) -> None:
        """Refuse a teacher that would read the student's token ids as other text; `align` is for those.

        `TokenizerProfile.difference` says what is compared.

        Raises:
            TeacherError: the tokenizers differ without `align`, the teacher's is missing, or `align` is unknown.
        """
        if self.align not in (None, *get_args(Align)):
            ways = hint(str(self.align), get_args(Align))
            raise TeacherError(f"teacher '{self.name}': align cannot be {self.align!r}{ways}")
        if self.source is not None:
            if self.align is not None:
                raise self._error("a teacher that hands over token ids must have the student's tokenizer; no align")
            if self._reader is not student:
                self.source.connect(student)
            self.tokenizer = self._reader = student
            return
        tokenizer = self.find_tokenizer()
        if self.align is not None:
            return
        difference = TokenizerProfile.of(tokenizer).difference(student, chat_options)
        if difference is not None:
            raise self._error(
                f"its tokenizer differs from the student's: {difference}; so it would read the student's tokens as "
                "other text; set align: likelihood or align: vocabulary for it in the recipe, "
                "Teacher(..., align='likelihood') in Python, or choose a teacher of the student's family"
            )

    def foreign_tokens(self, student: PreTrainedTokenizerBase) -> Mapping[int, str]:
        """Return the student's added tokens, by id, that the teacher would read as other tokens."""
        if self.source is not None:
            return self.source.foreign_tokens(student)
        return {} if self.align is not None else TokenizerProfile.of(self.find_tokenizer()).foreign_tokens(student)


def share_base_models(teachers: Iterable[Teacher]) -> None:
    """Give teachers that name the same model, to be loaded in the same way, one copy of its weights."""
    firsts: dict[str, Teacher] = {}
    for teacher in teachers:
        if isinstance(teacher.model, str):
            first = firsts.setdefault(repr((teacher.model, sorted(teacher.from_pretrained.items()))), teacher)
            teacher.model = first.load_base()
