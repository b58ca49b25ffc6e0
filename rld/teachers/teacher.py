"""A teacher: which model, which skills, where it was seen to be right, and whether it reads the student's tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import TeacherDown, TeacherError
from rld.models.adapters import active_adapter, add_adapter, has_changed_head, own_weights
from rld.models.heads import LMHead
from rld.models.hidden_states import StateKey
from rld.models.logprob_source import LogprobSource, ScoredSequence, TopKLogprobs
from rld.models.placement import is_placed, move_unless_placed
from rld.models.prompting import PromptEncoder
from rld.models.tokenizers import PROBES
from rld.types import Align
from rld.utils.suggestions import hint

_NOT_SAID = {"transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "auto_map"}
_NOT_SAID |= {"base_model_name_or_path", "revision", "inference_mode", "peft_version", "runtime_config"}  # of adapters


@dataclass
class Teacher:
    """One teacher of a student.

    Args:
        model: A loaded model, what `from_pretrained` takes, or a `LogprobSource`, such as `rld.remote_teacher(url)`.
        name: How metrics and errors call it. None: the last part of the model's path, or the lister's.
        skills: The skills that it teaches. None: any.
        verified: Per skill, how many probe prompts it answered correctly, of how many. A skill that is not listed is
            taken on trust.
        tokenizer: Its tokenizer. None: loaded from the model's path.
        init: Arguments of `from_pretrained`, such as dtype, device_map or quantization_config (a mapping will do).
        adapter: A folder or hub id of a PEFT adapter on `model`. Teachers that name the same model, or are given the
            same loaded one, share its weights: each adds only its adapter's.
        offload: Whether the weights rest in CPU memory and are on the device only while the teacher scores. Each use
            costs a copy of them there and back; a copy of the output head stays, because the loss needs it.
        optional: Whether training goes on without a lister that stops answering. It is dropped then, and an event
            tells.
        align: How a teacher with another tokenizer teaches: by the likelihood of spans of text that both tokenizers can
            say, or by the tokens that both vocabularies have and the shape of the rest. None: it has the student's
            tokenizer.
        chat_template: In Jinja, for an aligned teacher that has none of its own. None: its tokenizer's.
    """

    model: str | PreTrainedModel | PeftModel | LogprobSource
    name: str | None = None
    skills: Sequence[str] | None = None
    verified: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    init: Mapping[str, Any] = field(default_factory=dict)
    align: Align | None = None
    chat_template: str | None = None
    adapter: str | None = None
    offload: bool = False
    optional: bool = False
    is_down: bool = field(default=False, init=False)
    """Whether it has stopped answering, though it was optional."""
    _ready: PreTrainedModel | None = field(default=None, init=False, repr=False)
    _adapter: str | None = field(default=None, init=False, repr=False)
    """The adapter's name in the model."""
    _head: LMHead | None = field(default=None, init=False, repr=False)
    """A copy of the head on the device, where the model's own is elsewhere."""

    def __post_init__(self) -> None:
        if self.name is None and isinstance(self.model, LogprobSource):
            self.name = self.model.name
        elif self.name is None:
            assert not isinstance(self.model, LogprobSource)
            path = self.model if isinstance(self.model, str) else self.model.config._name_or_path
            self.name = (self.adapter or path).rstrip("/").split("/")[-1] or "teacher"

    def load(self) -> PreTrainedModel:
        """The model, frozen and in eval mode: no dropout, no gradients. To run it, use `running`.

        Raises:
            TeacherError: it, or its adapter, cannot be loaded or cannot teach.
        """
        if self._ready is None:
            model = self._unwrapped(self._base())
            if self.adapter is not None:
                try:
                    self._adapter = add_adapter(model, self.adapter)
                except (OSError, ValueError) as error:
                    raise self._error(f"cannot load the adapter {self.adapter!r}: {error}") from error
            if has_changed_head(model):
                raise self._error("an adapter changes its output head; merge it into the model, and name that")
            if self.offload and is_placed(model):
                raise self._error("a model with device_map or quantization_config stays in place; leave out offload")
            model.eval().requires_grad_(False)
            self._ready = model
        return self._ready

    @property
    def lister(self) -> LogprobSource | None:
        """What hands over shortlists for it; None for a teacher that hands over hidden states."""
        return self.model if isinstance(self.model, LogprobSource) else None

    def shortlists(self, passages: Sequence[ScoredSequence], temperature: float) -> list[TopKLogprobs] | None:
        """What its lister says of passages; None once it is down, if it is optional."""
        assert self.lister is not None
        try:
            return None if self.is_down else self.lister.score(passages, temperature)
        except TeacherDown:
            if not self.optional:
                raise
            self.is_down = True
            return None

    def require_states(self, taps: Sequence[StateKey]) -> None:
        """Refuse a lister whose shortlists have hidden states from other places.

        Raises:
            TeacherError: they do.
        """
        if self.lister is not None and self.lister.taps != taps:
            theirs = f"the states at {self.lister.taps}" if self.lister.taps else "no hidden states"
            raise self._error(
                f"it hands over {theirs}, and features are matched with those at {taps}; give it these taps"
            )

    def swap(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Speak with the weights of another model from now on; an adapter goes with the old one.

        Raises:
            TeacherError: it has another tokenizer, or hands over shortlists.
        """
        if self.lister is not None:
            raise self._error("its model lives elsewhere, so it can't become another one here")
        if self.tokenizer is None or tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise self._error(f"it can't become {model.config._name_or_path!r}, which has another tokenizer")
        self.model, self.adapter = model, None
        self._ready, self._adapter, self._head = None, None, None

    def _base(self) -> PreTrainedModel | PeftModel:
        if isinstance(self.model, str):
            if self.model.startswith((".", "/", "~")) and not Path(self.model).expanduser().is_dir():
                raise self._error(f"there is no folder {self.model}")
            try:
                self.model = AutoModelForCausalLM.from_pretrained(self.model, **self.init)
            except (OSError, ValueError, TypeError, ImportError) as error:
                first = str(error).strip().splitlines()[0]
                raise self._error(f"cannot load {self.model!r}: {first}") from error
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

    def _error(self, what: str) -> TeacherError:
        return TeacherError(f"teacher '{self.name}': {what}")

    @contextmanager
    def running(self, device: torch.device) -> Iterator[PreTrainedModel]:
        """The model, ready for forwards on `device`: this teacher's adapter and no other takes part, no dropout."""
        model = self.load()
        move_unless_placed(model, device)
        try:
            with active_adapter(model, self._adapter):
                yield model.eval()
        finally:
            if self.offload:
                move_unless_placed(model, torch.device("cpu"))

    @contextmanager
    def answering(self, device: torch.device) -> Iterator[PreTrainedModel | LogprobSource]:
        """What answers prompts for it: its lister, or the model as in `running`."""
        if self.lister is not None:
            yield self.lister
            return
        with self.running(device) as model:
            yield model

    def head(self, device: torch.device) -> LMHead:
        """The output head on `device`; a copy is kept there while the model's own is elsewhere."""
        head = LMHead.of(self.load())
        if not self.offload and head.weight.device == device:
            return head
        if self._head is None:
            self._head = head.to(device)
        return self._head

    def num_parameters(self) -> int:
        """Parameters that take part in a forward: the model's and those of its own adapter; 0 where nobody says."""
        if self.lister is not None:
            return self.lister.num_parameters()
        return sum(weight.numel() for _, weight in own_weights(self.load(), self._adapter))

    def fingerprint(self) -> str:
        """What tells this teacher from another: a hash of its configuration and of samples of its weights.

        Those of its adapter are among them. What a configuration says of where it came from, of storage and of special
        tokens is left out: it changes from one copy of a model to the next.
        """
        if self.lister is not None:
            return self.lister.about().fingerprint
        config = self.load().config.to_dict()
        digest = hashlib.sha256(json.dumps(_plain(config), sort_keys=True, default=str).encode())
        if self._adapter is not None:  # which tells how its weights are scaled
            of_adapter: Any = self.load().peft_config[self._adapter]
            told = {key: sorted(v) if isinstance(v, set) else v for key, v in of_adapter.to_dict().items()}
            digest.update(json.dumps(_plain(told), sort_keys=True, default=str).encode())
        for name, weight in own_weights(self.load(), self._adapter):
            flat = weight.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
            digest.update(name.encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    def ends(self) -> set[int]:
        """The token ids that end a completion of this teacher."""
        if self.lister is not None:
            return set(self.lister.about().ends)
        declared = self.load().generation_config.eos_token_id
        ids = [*(declared if isinstance(declared, list) else [declared])]
        ids += [self.tokenizer.eos_token_id] if self.tokenizer is not None else []
        return {i for i in ids if i is not None}

    def teaches(self, skill: str) -> bool:
        return self.skills is None or skill in self.skills

    def find_tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, loaded from the model's path if none was given.

        Raises:
            TeacherError: there is none.
        """
        path = self.load().config._name_or_path
        if self.tokenizer is None and path:
            try:
                self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
            except (OSError, ValueError):
                self.tokenizer = None  # a folder or an id without one
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
        return PromptEncoder(self.find_tokenizer(), student.chat_options, self.chat_template)

    def require_same_tokenizer(self, student: PreTrainedTokenizerBase) -> None:
        """Refuse a teacher that would read the student's token ids as other text; `align` is for those.

        Vocabularies that differ only in padding are fine: both heads are cut to the shorter one.

        Raises:
            TeacherError: the tokenizers differ without `align`, the teacher's is missing, or `align` is no way to.
        """
        if self.align not in (None, *get_args(Align)):
            ways = hint(str(self.align), get_args(Align))
            raise TeacherError(f"teacher '{self.name}': align cannot be {self.align!r}{ways}")
        if self.lister is not None:
            if self.align is not None:
                raise self._error("a teacher that hands over token ids must have the student's tokenizer; no align")
            self.lister.meet(student)
            self.tokenizer = student
            return
        tokenizer = self.find_tokenizer()
        for text in PROBES if self.align is None else ():
            if tokenizer.encode(text, add_special_tokens=False) != student.encode(text, add_special_tokens=False):
                raise TeacherError(
                    f"teacher '{self.name}': its tokenizer differs from the student's (on {text!r}), so it would read "
                    "the student's tokens as other text; set align: likelihood or align: vocabulary for it in the "
                    "recipe, Teacher(..., align='likelihood') in Python, or choose a teacher of the student's family"
                )


def _plain(config: Any) -> Any:
    """A configuration without what does not change what a model says."""
    if not isinstance(config, dict):
        return config
    kept = {str(key): value for key, value in config.items() if str(key) not in _NOT_SAID}
    return {key: _plain(v) for key, v in kept.items() if not key.startswith("_") and not key.endswith("token_id")}


def share_base_models(teachers: Iterable[Teacher]) -> None:
    """Give teachers that name the same model, to be loaded in the same way, one copy of its weights."""
    firsts: dict[str, Teacher] = {}
    for teacher in teachers:
        if isinstance(teacher.model, str):
            first = firsts.setdefault(repr((teacher.model, sorted(teacher.init.items()))), teacher)
            teacher.model = first._base()
