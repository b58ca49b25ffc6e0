"""A language model's output head apart from its model.

Shapes: B completions, T completion tokens, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.utils import FusedCausalLMOutput as FusedCausalLMOutput

from rld.utils.tensors import at_least_float32


@dataclass(frozen=True)
class LMHead:
    """A language model's output head: `softcap(scale * (h @ weight.T + bias))`."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> LMHead:
        """Return the head of `model`, with the transforms of logits that its configuration names.

        Where FSDP2 shards the model, its head is whole until the next backward pass; all processes have to call this.
        """
        config = model.config.get_text_config()
        output = model.get_output_embeddings()
        if isinstance(output, FSDPModule):
            output.unshard()
        scales = (getattr(config, name, None) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"))
        scale = next((value for value in scales if value is not None), None)
        divisor = getattr(config, "logits_scaling", None)
        if scale is None and divisor is not None:
            scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(whole(output.weight), whole(output.bias), 1.0 if scale is None else scale, softcap)

    def detach(self) -> LMHead:
        """Return the head without gradients."""
        bias = None if self.bias is None else self.bias.detach()
        return LMHead(self.weight.detach(), bias, self.scale, self.softcap)

    def with_float32_logits(self) -> LMHead:
        """Return the head with logits that are not rounded to half precision.

        A GPU needs no copy of the weight for that, other devices one in single precision.
        """
        weight = self.weight if multiplies_in_half(self.weight) else self.weight.float()
        return LMHead(weight, None if self.bias is None else self.bias.float(), self.scale, self.softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits `[..., V]` in at least single precision, with gradients to the states and to the head.

        The product with the weight is computed in the weight's precision; on a GPU, where no gradient is needed, its
        result is not rounded to it.
        """
        if torch.is_grad_enabled() and (hidden.requires_grad or self.weight.requires_grad):
            z_NV = at_least_float32(hidden.to(self.weight.dtype) @ self.weight.T)
        else:
            z_NV = product(hidden.flatten(0, -2), self.weight.T).unflatten(0, hidden.shape[:-1])
        if self.bias is not None:
            z_NV = z_NV + self.bias
        if self.scale != 1:
            z_NV = z_NV * self.scale
        return z_NV if self.softcap is None else self.softcap * (z_NV / self.softcap).tanh()

    def logit_derivative(self, logits_NV: Tensor) -> Tensor | float:
        """Return the derivative of the logits with respect to `h @ weight.T`."""
        if self.softcap is None:
            return self.scale
        return self.scale * (1 - (logits_NV / self.softcap) ** 2)

    def truncated(self, size: int) -> LMHead:
        """Return the head over the first `size` tokens; padded vocabularies of one tokenizer differ only behind."""
        if self.weight.shape[0] == size:
            return self
        return self._cut(slice(size))

    def for_tokens(self, ids: Sequence[int]) -> LMHead:
        """Return the head over these tokens alone, in their order."""
        return self._cut(list(ids))

    def _cut(self, rows: slice | list[int]) -> LMHead:
        return LMHead(self.weight[rows], None if self.bias is None else self.bias[rows], self.scale, self.softcap)

    def to(self, device: torch.device) -> LMHead:
        """Return the head on another device, without gradients."""
        head = self.detach()
        return LMHead(
            head.weight.to(device), None if head.bias is None else head.bias.to(device), self.scale, self.softcap
        )


def multiplies_in_half(weight: Tensor) -> bool:
    """Whether a weight is in half precision and on a GPU, whose products of such operands are sums in float32."""
    return weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16)


@torch.no_grad()
def product(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """Return `a @ b`, computed in the precision of `b`, in at least single precision; without gradient."""
    a_MK = a_MK.to(b_KN.dtype)
    if multiplies_in_half(b_KN):
        return torch.mm(a_MK, b_KN, out_dtype=torch.float32)
    return at_least_float32(a_MK @ b_KN)


@torch.no_grad()
def add_product(sum_MN: Tensor, a_MK: Tensor, b_KN: Tensor) -> None:
    """Add `a @ b`, computed in the precision of `b`, to a sum in float32."""
    a_MK = a_MK.to(b_KN.dtype)
    if multiplies_in_half(b_KN):
        torch.addmm(sum_MN, a_MK, b_KN, out_dtype=torch.float32, out=sum_MN)
    else:
        sum_MN.addmm_(a_MK, b_KN)


def whole(weight: Any) -> Any:
    """Return a weight; one that FSDP2 splits over processes is gathered, for which all have to call this."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


@torch.no_grad()
def log_probabilities(head: LMHead, hidden_BTH: Tensor, targets_BT: Tensor, *, temperature: float) -> Tensor:
    """Return the log-probability of each target token, `[B, T]`, in nats, without storing all logits."""
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
