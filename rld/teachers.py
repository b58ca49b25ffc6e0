"""A teacher: which model, which skills, where it was seen to be right, and whether it reads the student's tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import TeacherError
from rld.hints import hint
from rld.types import Align

# Texts whose tokens tell tokenizers apart: words, digits, code, white space, other scripts.
_PROBES = ("The quick brown fox jumps over 13 lazy dogs.", "def f(x):\n    return x ** 2", "Ünïcode 漢字 🙂", "a b=c:d")


@dataclass
class Teacher:
    """One teacher of a student.

    Args:
        model: A loaded model, or what `from_pretrained` takes.
        name: How metrics and errors call it. None: the last part of the model's path.
        skills: The skills that it teaches. None: any.
        verified: Per skill, how many probe prompts it answered correctly, of how many. A skill that is not listed is
            taken on trust.
        tokenizer: Its tokenizer. None: loaded from the model's path.
        init: Arguments of `from_pretrained`, such as dtype or device_map.
        align: How a teacher with another tokenizer teaches: by the likelihood of spans of text that both tokenizers can
            say, or by the tokens that both vocabularies have and the shape of the rest. None: it has the student's
            tokenizer.
        chat_template: In Jinja, for an aligned teacher that has none of its own. None: its tokenizer's.
    """

    model: str | PreTrainedModel | PeftModel
    name: str | None = None
    skills: Sequence[str] | None = None
    verified: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    init: Mapping[str, Any] = field(default_factory=dict)
    align: Align | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if self.name is None:
            path = self.model if isinstance(self.model, str) else self.model.config._name_or_path
            self.name = path.rstrip("/").split("/")[-1] or "teacher"

    def load(self) -> PreTrainedModel:
        """The model, frozen and in eval mode: no dropout, no gradients."""
        if isinstance(self.model, str):
            try:
                self.model = AutoModelForCausalLM.from_pretrained(self.model, **self.init)
            except (OSError, ValueError) as error:
                first = str(error).strip().splitlines()[0]
                raise TeacherError(f"teacher '{self.name}': cannot load {self.model!r}: {first}") from error
        if isinstance(self.model, PeftModel):
            if self.model.active_peft_config.is_prompt_learning:
                raise TeacherError(f"teacher '{self.name}': a prompt-learning adapter cannot teach; use LoRA")
            base: Any = self.model.get_base_model()  # its layers have the adapter in them
            self.model = base
        model: PreTrainedModel = self.model  # type: ignore[assignment]  # a PeftModel was unwrapped above
        model.eval().requires_grad_(False)
        return model

    def fingerprint(self) -> str:
        """What tells this teacher's weights from another's: a hash of samples of each."""
        digest = hashlib.sha256()
        for name, weight in self.load().named_parameters():
            flat = weight.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
            digest.update(name.encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    def ends(self) -> set[int]:
        """The token ids that end a completion of this teacher."""
        declared = self.load().generation_config.eos_token_id
        ids = [*(declared if isinstance(declared, list) else [declared])]
        ids += [self.tokenizer.eos_token_id] if self.tokenizer is not None else []
        return {i for i in ids if i is not None}

    def teaches(self, skill: str) -> bool:
        return self.skills is None or skill in self.skills

    def require_same_tokenizer(self, student: PreTrainedTokenizerBase) -> None:
        """Refuse a teacher that would read the student's token ids as other text; `align` is for those.

        Vocabularies that differ only in padding are fine: both heads are cut to the shorter one.

        Raises:
            TeacherError: the tokenizers differ without `align`, the teacher's is missing, or `align` is no way to.
        """
        if self.align not in (None, *get_args(Align)):
            ways = hint(str(self.align), get_args(Align))
            raise TeacherError(f"teacher '{self.name}': align cannot be {self.align!r}{ways}")
        model = self.load()
        tokenizer = self.tokenizer
        if tokenizer is None and model.config._name_or_path:
            try:
                tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
            except (OSError, ValueError):
                tokenizer = None  # a folder or an id without one
        if tokenizer is None:
            raise TeacherError(
                f"teacher '{self.name}': no tokenizer came with it, so nobody knows whether it reads the student's "
                "tokens; pass Teacher(..., tokenizer=...)"
            )
        self.tokenizer = tokenizer
        for text in _PROBES if self.align is None else ():
            if tokenizer.encode(text, add_special_tokens=False) != student.encode(text, add_special_tokens=False):
                raise TeacherError(
                    f"teacher '{self.name}': its tokenizer differs from the student's (on {text!r}), so it would read "
                    "the student's tokens as other text; set align: likelihood or align: vocabulary for it in the "
                    "recipe, Teacher(..., align='likelihood') in Python, or choose a teacher of the student's family"
                )
