"""A language model's output head apart from its model, and the hidden states that a teacher hands over.

Shapes: B completions, T completion tokens, H width, L mapped layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.kernels.chunked_logprob import ChunkedLogProbFunction


@dataclass(frozen=True)
class Head:
    """A language model's output head: `softcap(scale * (h @ weight.T + bias))`."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """Read the head off `model`, with the logit transforms that its configuration names."""
        config = model.config.get_text_config()
        output = model.get_output_embeddings()
        scales = (getattr(config, name, None) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"))
        scale = next((value for value in scales if value is not None), None)
        divisor = getattr(config, "logits_scaling", None)
        if scale is None and divisor is not None:
            scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(output.weight, output.bias, 1.0 if scale is None else scale, softcap)

    def first(self, size: int) -> Head:
        """The head over the first `size` tokens: padded vocabularies of one tokenizer differ only behind those."""
        if self.weight.shape[0] == size:
            return self
        return self._cut(slice(size))

    def of_tokens(self, ids: Sequence[int]) -> Head:
        """The head over these tokens alone, in their order."""
        return self._cut(list(ids))

    def _cut(self, rows: slice | list[int]) -> Head:
        return Head(self.weight[rows], None if self.bias is None else self.bias[rows], self.scale, self.softcap)

    def to(self, device: torch.device) -> Head:
        """The head on another device."""
        bias = None if self.bias is None else self.bias.detach().to(device)
        return Head(self.weight.detach().to(device), bias, self.scale, self.softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits in float32, `[..., H]` to `[..., V]`: for few tokens or a head over few, because they are stored."""
        raw = hidden.float() @ self.weight.float().T
        raw = self.scale * (raw if self.bias is None else raw + self.bias.float())
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)


@dataclass(frozen=True)
class TeacherStates:
    """What one teacher says about a batch of completions."""

    head: Head
    hidden_BTH: Tensor | None
    """Last hidden states at the positions that predict the completion tokens; None when it was not run at all."""
    layers_BLTH: Tensor | None
    """Hidden states of the mapped layers; None when it was not run, or the feature signal is off."""
    tokens_BT: Tensor
    """The tokens on which this teacher speaks; elsewhere its states mean nothing."""


@torch.no_grad()
def log_probabilities(head: Head, hidden_BTH: Tensor, targets_BT: Tensor, temperature: float) -> Tensor:
    """The log-probability of each target token, `[B, T]`, without storing logits."""
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
