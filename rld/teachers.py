"""Teachers: which model, which skills, and what it says about the student's completions.

A teacher is run once per rollout, without gradients and in eval mode, and hands over hidden states; its head is
applied to them later, in tiles. Shapes: B completions, T completion tokens, P prompt tokens, H width, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from rld.errors import TeacherError
from rld.student import Head

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
    """

    model: str | PreTrainedModel
    name: str | None = None
    skills: Sequence[str] | None = None
    verified: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    init: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name is None:
            path = self.model if isinstance(self.model, str) else self.model.config._name_or_path
            self.name = path.rstrip("/").split("/")[-1] or "teacher"

    def load(self) -> PreTrainedModel:
        """The model, frozen and in eval mode: no dropout, no gradients."""
        if isinstance(self.model, str):
            self.model = AutoModelForCausalLM.from_pretrained(self.model, **self.init)
        return self.model.eval().requires_grad_(False)

    def teaches(self, skill: str) -> bool:
        return self.skills is None or skill in self.skills

    def require_same_tokenizer(self, student: PreTrainedTokenizerBase, student_vocabulary: int) -> None:
        """Refuse a teacher that would read the student's token ids as other text.

        Vocabularies that differ only in padding are fine: both heads are cut to the shorter one.

        Raises:
            TeacherError: the tokenizers differ, or cannot be compared.
        """
        model = self.load()
        tokenizer = self.tokenizer
        if tokenizer is None and model.config._name_or_path:
            try:
                tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
            except (OSError, ValueError):
                tokenizer = None  # a folder or an id without a tokenizer: the vocabulary size decides below
        if tokenizer is None:
            size = model.config.get_text_config().vocab_size
            if size != student_vocabulary:
                raise TeacherError(
                    f"teacher '{self.name}': its vocabulary has {size} tokens, the student's {student_vocabulary}, and "
                    "it brings no tokenizer to compare; pass Teacher(..., tokenizer=...)"
                )
            return
        for text in _PROBES:
            if tokenizer.encode(text, add_special_tokens=False) != student.encode(text, add_special_tokens=False):
                raise TeacherError(
                    f"teacher '{self.name}': its tokenizer differs from the student's (on {text!r}), so it would read "
                    "the student's tokens as other text; choose a teacher of the student's family"
                )


@torch.no_grad()
def hidden_states(
    model: PreTrainedModel, ids_BS: Tensor, attention_BS: Tensor, num_tokens: int, layers: Sequence[int], batch: int
) -> tuple[Tensor, Tensor | None]:
    """Run a teacher's backbone over prompts and completions.

    Args:
        model: The teacher; only its backbone is run.
        ids_BS: Prompt and completion token ids, `S = P + T`.
        attention_BS: 1 for real tokens.
        num_tokens: T, the completion tokens at the end of each row.
        layers: The hidden layers to hand over besides the last state.
        batch: Rows per forward.

    Returns:
        Last hidden states `[B, T, H]` and, if `layers` is not empty, those layers' `[B, L, T, H]`, both at the
        positions that predict the completion tokens.
    """
    keep = slice(-num_tokens - 1, -1)
    last, mapped = [], []
    for ids, attention in zip(ids_BS.split(batch), attention_BS.split(batch), strict=True):
        output = model.base_model(
            input_ids=ids, attention_mask=attention, use_cache=False, output_hidden_states=bool(layers)
        )
        last.append(output.last_hidden_state[:, keep])
        if layers:
            mapped.append(torch.stack([output.hidden_states[layer][:, keep] for layer in layers], dim=1))
    return torch.cat(last), torch.cat(mapped) if layers else None


@torch.no_grad()
def log_probabilities(head: Head, hidden_BTH: Tensor, targets_BT: Tensor, temperature: float) -> Tensor:
    """A teacher's log-probability of each sampled token, `[B, T]`, without storing logits."""
    per_token, *_ = ChunkedLogProbFunction.apply(
        hidden_BTH.reshape(-1, hidden_BTH.shape[-1]),
        head.weight,
        head.bias,
        targets_BT.reshape(-1),
        temperature,
        32768,
        head.softcap,
        head.scale,
        (),
    )
    return per_token.view(targets_BT.shape)
