"""Teachers: which model, which skills, and what it says about the student's completions.

A teacher is run once per rollout, without gradients and in eval mode, and hands over hidden states; its head is
applied to them later, in tiles. Shapes: B completions, T completion tokens, P prompt tokens, H width, L layers.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from rld.errors import TeacherError
from rld.features import AnyFeature, layer_pairs
from rld.student import Head, Projections, TeacherStates

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

    model: str | PreTrainedModel | PeftModel
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
                tokenizer = None  # a folder or an id without one
        if tokenizer is None:
            raise TeacherError(
                f"teacher '{self.name}': no tokenizer came with it, so nobody knows whether it reads the student's "
                "tokens; pass Teacher(..., tokenizer=...)"
            )
        self.tokenizer = tokenizer
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
    outputs: tuple[Tensor, ...] = ChunkedLogProbFunction.apply(
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
    return outputs[0].view(targets_BT.shape)


class Panel:
    """The teachers of one trainer, ready to score rollouts.

    What it adds to a rollout is batch first and survives TRL's shuffling and splitting into micro-batches.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        student: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        feature: AnyFeature | None,
        prepare: Callable[[PreTrainedModel], PreTrainedModel],
    ) -> None:
        names = [teacher.name for teacher in teachers]
        if len(set(names)) < len(names):
            raise TeacherError(f"two teachers share a name: {names}; give them names with Teacher(model, name=...)")
        unknown = [teacher.name for teacher in teachers if not teacher.verified and teacher.skills is None]
        if len(unknown) > 1:
            warnings.warn(
                f"nothing says where teachers {unknown} are right, so all teach everywhere alike, and one that is "
                "wrong on a skill harms the student there; give them Teacher(..., skills=[...]) or verified={...}",
                stacklevel=4,
            )
        config = student.config.get_text_config()
        for teacher in teachers:
            teacher.require_same_tokenizer(tokenizer)
        # A base model ends with another token than its instruct sibling: what one says of the other's end is noise.
        self._foreign_ends = [sorted(set(ends) - teacher.ends()) for teacher in teachers]
        self.models = [prepare(teacher.load()) for teacher in teachers]
        self.num_parameters = [model.num_parameters() for model in self.models]
        self._vocabulary = student.get_output_embeddings().weight.shape[0]
        depths = [model.config.get_text_config().num_hidden_layers for model in self.models]
        self.pairs = [layer_pairs(feature.layers, config.num_hidden_layers, d) if feature else [] for d in depths]

    def projections(self, student: PreTrainedModel) -> Projections:
        """Maps from the student's hidden width to each teacher's, for the feature signal."""
        widths = [model.config.get_text_config().hidden_size for model in self.models]
        return Projections(student.config.get_text_config().hidden_size, self.pairs, widths)

    def head(self, k: int) -> Head:
        """Teacher k's output head over the vocabulary that it shares with the student."""
        head = Head.of(self.models[k])
        return head.first(min(self._vocabulary, head.weight.shape[0]))

    @torch.no_grad()
    def score(self, rollout: dict[str, Any], rows_BK: Tensor, batch: int) -> None:
        """Run each teacher once over the rows that need it, `batch` at a time, and add what it says to `rollout`."""
        ids_BS = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
        attention_BS = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
        num_tokens = rollout["completion_ids"].shape[1]
        rollout["teacher_tokens"] = torch.stack(
            [rows_BK[:, k, None] & self._speaks(k, rollout["completion_ids"]) for k in range(len(self.models))], dim=1
        )
        for k, model in enumerate(self.models):
            rows = rows_BK[:, k].nonzero().squeeze(1)
            if not len(rows):
                continue
            layers = [layer for _, layer in self.pairs[k]]
            last, mapped = hidden_states(model, ids_BS[rows], attention_BS[rows], num_tokens, layers, batch)
            rollout[f"teacher_{k}_hidden"] = _at_rows(last, rows, len(ids_BS))
            if mapped is not None:
                rollout[f"teacher_{k}_layers"] = _at_rows(mapped, rows, len(ids_BS))

    def _speaks(self, k: int, ids_BT: Tensor) -> Tensor:
        """Where teacher k's opinion means something: it has the token, and the token is not an end unknown to it."""
        known_BT = ids_BT < self.head(k).weight.shape[0]
        return known_BT & ~torch.isin(ids_BT, torch.tensor(self._foreign_ends[k], device=ids_BT.device))

    def sampled_log_probabilities(self, rollout: dict[str, Any], temperature: float) -> Tensor:
        """Weighted sum over teachers of their log-probability of each sampled token: `[B, T]`."""
        score_BT = torch.zeros(rollout["completion_ids"].shape, device=rollout["completion_ids"].device)
        for k in range(len(self.models)):
            tokens_BT = rollout["teacher_tokens"][:, k]
            rows = tokens_BT.any(1)
            if rows.any():
                head = self.head(k)
                targets_BT = rollout["completion_ids"][rows].clamp(max=head.weight.shape[0] - 1)
                log_p_BT = log_probabilities(head, rollout[f"teacher_{k}_hidden"][rows], targets_BT, temperature)
                log_p_BT = log_p_BT.masked_fill(~tokens_BT[rows], 0.0)
                score_BT[rows] += rollout["teacher_weights"][rows, k, None] * log_p_BT
        return score_BT

    def states(self, inputs: dict[str, Any]) -> list[TeacherStates]:
        """What each teacher said about a micro-batch."""
        return [
            TeacherStates(
                self.head(k),
                inputs.get(f"teacher_{k}_hidden"),
                inputs.get(f"teacher_{k}_layers"),
                inputs["teacher_tokens"][:, k],
            )
            for k in range(len(self.models))
        ]


def _at_rows(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Put `values` at `rows` of a zero tensor with `num_rows` rows."""
    if len(rows) == num_rows:
        return values
    return values.new_zeros(num_rows, *values.shape[1:]).index_copy_(0, rows, values)
