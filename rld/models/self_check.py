"""Checks of a model before it is used: its head is read as it is, its values are finite, and its texts fit.

Shapes: S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import RldError
from rld.models.heads import LMHead
from rld.models.hidden_states import capture_states, depth
from rld.models.tokenizer_profile import special_tokens

_NUM_TOKENS = 8
"""Tokens that are read to compare logits."""

_MIN_TOLERANCE = 1e-4
"""Tolerated difference of logits, relative to the largest logit, in float32."""

_EPSILONS = 2
"""The same in a smaller dtype, in units of its precision."""


@torch.no_grad()
def require_sound_model(model: PreTrainedModel, name: str, kind: type[RldError], *, is_student: bool = False) -> None:
    """Refuse a model whose logits are not those of its `LMHead`, or not finite, by reading a few tokens.

    A model may transform its hidden states or logits in a way that its configuration does not name, and then its
    distributions would be other ones in all losses.

    Args:
        model: The model without wrappers. One whose weights are not all here, such as one on the meta device, passes.
        name: Its name in errors.
        kind: Class of the errors.
        is_student: Whether its states are captured while its head runs, as a student's are.
    """
    if any(weight.numel() == 0 or weight.device.type == "meta" for weight in model.parameters()):
        return
    rows: Any = model.get_input_embeddings()
    size = min(_NUM_TOKENS, context_length(model.config) or _NUM_TOKENS)
    ids_1S = torch.arange(size, device=model.device)[None] % len(rows.weight)
    inputs: dict[str, Any] = {"input_ids": ids_1S, "attention_mask": torch.ones_like(ids_1S), "use_cache": False}
    forward = getattr(model, "_original_forward", model)  # without the autocast that accelerate puts around it
    with evaluating(model), torch.autocast(model.device.type, enabled=False), capture_states(model, ()) as states:
        logits_SV = forward(**inputs).logits[0].float()
        if depth(model) not in states and not is_student:  # its forward calls a part of the backbone
            model.base_model(**inputs)
    if not logits_SV.isfinite().all():
        weight = non_finite_weight(model)
        cause = f"its weight {weight} is not finite" if weight else f"its logits are not finite in {model.dtype}"
        raise kind(f"{name}: {cause}; load sound weights, or load them in bfloat16 or float32")
    difference = _difference(LMHead.of(model), states.get(depth(model)), logits_SV)
    if difference is not None:
        raise kind(
            f"{name}: a model of type {model.config.model_type!r} ({type(model).__name__}) is not supported: its "
            f"logits are not those of its output head on its last hidden states ({difference}); it transforms them in "
            "a way that rld does not know. Choose a model of another type"
        )


def _difference(head: LMHead, states_1SH: Tensor | None, logits_SV: Tensor) -> str | None:
    """Return in what logits differ from those of a head on hidden states; None if in rounding alone."""
    if states_1SH is None:
        return "its forward does not call its backbone as a whole"
    if states_1SH.shape[-1] != head.weight.shape[-1]:
        return f"states of width {states_1SH.shape[-1]}, a head of width {head.weight.shape[-1]}"
    own_SV = head.logits(states_1SH[0].to(head.weight.device)).to(logits_SV.device)
    if own_SV.shape != logits_SV.shape:
        return f"{logits_SV.shape[-1]} logits, {own_SV.shape[-1]} rows of the head"
    largest = (own_SV - logits_SV).abs().max().item()
    relative = max(_MIN_TOLERANCE, _EPSILONS * torch.finfo(head.weight.dtype).eps)
    return None if largest <= relative * logits_SV.abs().max().item() + 1e-6 else f"largest difference {largest:.3g}"


def require_token_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, *, kind: type[RldError]
) -> None:
    """Refuse a model whose embedding has no row for a token that its tokenizer can give to a text.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        name: Its name in errors.
        kind: Class of the errors.
    """
    embeddings: Any = model.get_input_embeddings()
    added = tokenizer.added_tokens_decoder
    occurring = {i: token for token, i in tokenizer.get_vocab().items() if i not in added} | special_tokens(tokenizer)
    if tokenizer.pad_token_id is not None:  # it is read too, behind a mask
        occurring[int(tokenizer.pad_token_id)] = str(tokenizer.pad_token)
    last, num_rows = max(occurring, default=-1), embeddings.num_embeddings
    if last >= num_rows > 0:
        raise kind(
            f"{name}: its tokenizer has the token {last}, {occurring[last]!r}, and its embedding only {num_rows} rows; "
            "give it its own tokenizer, or call model.resize_token_embeddings(len(tokenizer))"
        )


def require_context(model: PreTrainedModel, num_tokens: int, *, name: str, text: str, kind: type[RldError]) -> None:
    """Refuse texts that are longer than a model's context.

    Args:
        model: The model.
        num_tokens: Tokens of the longest text.
        name: The model's name in errors.
        text: What the tokens are, for the error.
        kind: Class of the errors.
    """
    limit = context_length(model.config)
    if limit is not None and num_tokens > limit:
        raise kind(
            f"{name} reads at most {limit} tokens, and {text} has {num_tokens}; shorten the prompts or "
            "max_completion_length (max_new_tokens in a recipe), or choose a model with a longer context"
        )


def context_length(config: PretrainedConfig) -> int | None:
    """Return the number of positions that a model of a configuration knows; None where it names none.

    Windows of local attention do not limit it. What a scaling of rotary positions adds is counted.
    """
    config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    rope: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [part for part in rope.values() if isinstance(part, dict)] or [rope]  # one for each kind of layer
    scaled = [(part.get("original_max_position_embeddings") or limit) * (part.get("factor") or 1) for part in parts]
    return max(limit, *map(int, scaled))


def non_finite_weight(model: nn.Module) -> str | None:
    """Return the name of the first weight that has a value that is not finite; None if there is none."""
    weights = [(name, weight) for name, weight in model.named_parameters() if weight.is_floating_point()]
    finite = [own_part(weight).detach().isfinite().all() for _, weight in weights]
    flags = torch.stack([flag.cpu() for flag in finite]).tolist() if finite else []
    return next((name for (name, _), flag in zip(weights, flags, strict=True) if not flag), None)


def own_part(weight: Any) -> Tensor:
    """Return what this process holds of a weight: its part under FSDP2 and ZeRO-3, else all of it."""
    part: Tensor = weight.to_local() if isinstance(weight, DTensor) else getattr(weight, "ds_tensor", weight)
    return part


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off, and back on for the modules that had it."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
