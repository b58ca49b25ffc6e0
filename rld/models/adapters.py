"""Several PEFT adapters on one base model, of which one at a time is active."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, inject_adapter_in_model, set_peft_model_state_dict
from peft.functional import set_adapter
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers import PreTrainedModel

from rld.errors import ModelError
from rld.utils.hub import use_caches_if_unreachable
from rld.utils.messages import one_line
from rld.utils.model_files import adapter_folder_problem

_PREFIX = "rld_teacher_"
"""Prefix of the names of adapters that `add_adapter` added."""

_MOST_LOST = 0.2
"""Share of an adapter's change of the weights, by its norm, that rounding may take before the user is told."""

_WRAPPER = "base_model.model."
"""Prefix that PeftModel puts before the names of weights of the model inside it."""


def add_adapter(model: PreTrainedModel, path: str) -> str:
    """Put an adapter's layers into `model`, beside those of other teachers, and return its name in the model.

    Args:
        model: The base model; its own weights stay where they are.
        path: A folder or hub id of a PEFT adapter, such as LoRA.

    Raises:
        ValueError: there is no adapter, it can't be put into layers, or it is another model's.
    """
    others = getattr(model, "peft_config", {})
    if not all(name.startswith(_PREFIX) for name in others):
        raise ValueError("the base model has an adapter of its own already; merge that first")
    if not Path(path).is_dir():
        use_caches_if_unreachable()
    elif (problem := adapter_folder_problem(Path(path))) is not None:
        raise ValueError(problem)
    try:
        config = PeftConfig.from_pretrained(path)
    except (KeyError, TypeError) as error:
        raise ValueError(f"its adapter_config.json cannot be read: {type(error).__name__}: {error}") from error
    if config.is_prompt_learning:
        raise ValueError("a prompt-learning adapter cannot teach; use LoRA")
    name = f"{_PREFIX}{len(others)}"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are intended
        inject_adapter_in_model(config, model, name, low_cpu_mem_usage=True)  # draws no random numbers
    try:
        weights = {key.removeprefix(_WRAPPER): value for key, value in load_peft_weights(path, device="cpu").items()}
        loaded: Any = set_peft_model_state_dict(model, weights, adapter_name=name, low_cpu_mem_usage=True)
    except RuntimeError as error:
        raise ValueError(f"it is an adapter of another model: {one_line(error)}") from error
    lacking = [key for key in loaded.missing_keys if name in key.split(".")] + loaded.unexpected_keys
    if lacking:
        raise ValueError(f"it does not fit the model: {lacking[0]} is in only one of them")
    return name


def with_adapter(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """Return a model with an adapter in its weights.

    Args:
        model: The base model, which is changed.
        path: A folder or hub id of a PEFT adapter, such as LoRA.

    Raises:
        ValueError: as `add_adapter`.
        ModelError: it cannot be merged.
    """
    kind: Any = type(model)
    with torch.device("meta"):
        skeleton = kind(copy.deepcopy(model.config))
    add_adapter(skeleton, path)  # PEFT itself only warns of an adapter that does not fit
    wrapped = PeftModel.from_pretrained(model, path)
    require_mergeable(model)
    return merge_adapter(wrapped)


@contextmanager
def active_adapter(model: PreTrainedModel, adapter: str | None) -> Iterator[None]:
    """Activate one of the adapters in `model` and no other; None: the base model alone."""
    if not any(name.startswith(_PREFIX) for name in getattr(model, "peft_config", {})):
        yield
        return
    if adapter is not None:
        set_adapter(model, adapter, inference_mode=True)
    _switch(model, on=adapter is not None)
    try:
        yield
    finally:
        _switch(model, on=True)


def _switch(model: PreTrainedModel, on: bool) -> None:
    for module in model.modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            module.enable_adapters(on)
    model.requires_grad_(False)  # PEFT makes an adapter that it enables trainable


def has_changed_head(model: PreTrainedModel) -> bool:
    """Tell whether an adapter changes the output head, whose weight alone then does not give the logits."""
    return isinstance(model.get_output_embeddings(), (BaseTunerLayer, AuxiliaryTrainingWrapper))


def require_mergeable(base: PreTrainedModel) -> None:
    """Refuse an adapter that cannot be merged into the model that it is in without changing what the model computes.

    A tied embedding and head are one matrix; an adapter on one of them trains them apart, and merging ties them again.

    Raises:
        ModelError: an adapter is on a layer whose weight is tied to another layer's.
    """
    if not getattr(base.config.get_text_config(), "tie_word_embeddings", False):
        return
    tied = {"embedding": base.get_input_embeddings(), "output head": base.get_output_embeddings()}
    wrapped = [name for name, layer in tied.items() if isinstance(layer, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    if wrapped:
        raise ModelError(
            f"lora: the adapter changes the model's {' and '.join(wrapped)}, which share one weight, so that it cannot "
            "be merged into the result; leave embed_tokens and lm_head out of target_modules and modules_to_save"
        )


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Return the model in which an adapter was trained, with the adapter in its weights; warn if these are too coarse.

    A weight of 0.02 in bfloat16 is rounded by up to 4e-5, which is as much as an adapter may change it.
    """
    error, total, dtypes = 0.0, 0.0, set[str]()
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        weight = layer.get_base_layer().weight
        if not weight.is_floating_point() or weight.dtype == torch.float32:
            continue
        for name in layer.active_adapters:
            change = layer.get_delta_weight(name).detach().float()
            rounded_change = (weight.detach() + change.to(weight.dtype)).float() - weight.detach().float()
            error += float((rounded_change - change).square().sum())
            total += float(change.square().sum())
        dtypes.add(str(weight.dtype).removeprefix("torch."))
    if error > _MOST_LOST**2 * total:
        warnings.warn(
            f"merged into weights of {', '.join(sorted(dtypes))}, the adapter is off by {(error / total) ** 0.5:.0%} "
            "of what it had learnt; the scores are those of the merged model: load the student in float32 "
            "(from_pretrained.dtype)",
            stacklevel=2,
        )
    wrapper: Any = model
    base: PreTrainedModel = wrapper.merge_and_unload()
    return base


def own_weights(model: PreTrainedModel, adapter: str | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a forward with `adapter` active, named as if no other adapter were in `model`."""
    for name, weight in model.named_parameters():
        parts = name.split(".")
        if all(part == adapter for part in parts if part.startswith(_PREFIX)):
            yield ".".join("adapter" if part == adapter else part for part in parts if part != "base_layer"), weight
