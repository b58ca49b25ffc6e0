"""Capture a model's hidden states while it runs.

A state key names a place. A number is a hidden layer: 0 the embedding, n the output of the n-th block, the last one
after the final norm. A text is the path of a module, whose output is captured.

Shapes: B rows, S tokens, H width, L states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rld.errors import TeacherError
from rld.utils.suggestions import hint


@dataclass(frozen=True)
class InputOf:
    """The state key of a module's input."""

    module: str


StateKey = int | str | InputOf

_FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "final_norm")


def depth(model: PreTrainedModel) -> int:
    """Return the number of blocks of `model`, which is the number of its last hidden layer."""
    layers: int = model.config.get_text_config().num_hidden_layers
    return layers


def stack_states(states: Mapping[StateKey, Tensor], state_keys: Sequence[StateKey]) -> Tensor:
    """Stack the states `[B, …, H]` at `state_keys` into one tensor `[B, L, …, H]`, narrower ones padded with zeros."""
    width = max(states[key].shape[-1] for key in state_keys)
    return torch.stack(
        [nn.functional.pad(states[key], (0, width - states[key].shape[-1])) for key in state_keys], dim=1
    )


@contextmanager
def capture_states(
    model: PreTrainedModel,
    state_keys: Collection[StateKey],
    restore: Callable[[Tensor], Tensor] = lambda states: states,
) -> Iterator[dict[StateKey, Tensor]]:
    """Capture the states `[B, S, H]` at `state_keys` and of the last layer in the one forward inside the `with`.

    The states are part of the forward's graph, with gradient checkpointing too (the kind with `use_reentrant=False`).

    Args:
        model: The model that runs.
        state_keys: The states besides the last layer's.
        restore: Applied to all captured states, and to the last states that the backbone returns.

    Raises:
        TeacherError: a module does not exist, or gradient checkpointing cut a state off from its gradient.
    """
    states: dict[StateKey, Tensor] = {}
    last = depth(model)
    layers = {last, *(key for key in state_keys if isinstance(key, int))}

    def request_layers(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | ({"output_hidden_states": True} if layers - {last} else {})

    def capture_layers(_module: nn.Module, _args: Any, output: Any) -> None:
        output.last_hidden_state = restore(output.last_hidden_state)
        states.update({n: output.hidden_states[n] for n in layers - {last}})
        states[last] = output.last_hidden_state

    hooks = [
        model.base_model.register_forward_pre_hook(request_layers, with_kwargs=True),
        model.base_model.register_forward_hook(capture_layers),
        *(_hook(model, key, states) for key in state_keys if not isinstance(key, int)),
    ]
    with ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.remove)
        yield states
    for key in states.keys() - {last}:
        # Not in the hooks: a hook inside a checkpointed block would not restore again when the block is recomputed.
        states[key] = restore(states[key])
    _require_gradients(model, states)


def _hook(model: PreTrainedModel, key: str | InputOf, states: dict[StateKey, Tensor]) -> Any:
    """Register a hook that captures the state at `key`."""

    def capture(_module: nn.Module, args: Any, output: Any = None) -> None:
        value = args if isinstance(key, InputOf) else output
        states[key] = value[0] if isinstance(value, tuple) else value

    module = module_at(model, key.module if isinstance(key, InputOf) else key)
    if isinstance(key, InputOf):
        return module.register_forward_pre_hook(capture)
    return module.register_forward_hook(capture)


def _require_gradients(model: PreTrainedModel, states: dict[StateKey, Tensor]) -> None:
    if not (model.training and model.is_activation_checkpointing and states[depth(model)].requires_grad):
        return
    for key, state in states.items():
        if not state.requires_grad:
            raise TeacherError(
                f"the feature signal reads the student at {key!r}, where activation checkpointing leaves no gradient; "
                "set activation_checkpointing_kwargs={'use_reentrant': False}, or activation_checkpointing=False"
            )


def module_at(model: PreTrainedModel, path: str) -> nn.Module:
    """Return the module of `model` at `path`.

    Raises:
        TeacherError: there is none.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if path not in modules:
        raise TeacherError(f"feature layers: {type(model).__name__} has no module {path!r}{hint(path, modules)}")
    return modules[path]


def submodule_path(model: PreTrainedModel, layer: int | str, part: str) -> str:
    """Return the path of the module called `part`, such as `q_proj`, in a block that is given by number or path.

    Raises:
        TeacherError: the block has none, or several.
    """
    inside = f"{layer}." if isinstance(layer, str) else ""
    paths: list[str] = [
        path for path, _ in model.named_modules() if path.startswith(inside) and path.endswith(f".{part}")
    ]
    if isinstance(layer, str) and len(paths) == 1:
        return paths[0]
    if isinstance(layer, int) and layer > 0 and len(paths) == depth(model):
        return paths[layer - 1]
    raise TeacherError(
        f"feature layers: layer {layer} of a {type(model).__name__} has no single {part}, so its queries, keys and "
        "values cannot be read; relate hidden states instead, with `of: hidden`"
    )


def final_norm(model: PreTrainedModel) -> str:
    """Return the path of the norm before the head.

    Raises:
        TeacherError: the model has none with one of the usual names.
    """
    for name in _FINAL_NORMS:
        if isinstance(getattr(model.base_model, name, None), nn.Module):
            return f"{model.base_model_prefix}.{name}"
    raise TeacherError(
        f"the lens needs the norm before the head, and a {type(model).__name__} has none of {', '.join(_FINAL_NORMS)}; "
        "choose another feature loss, such as cosine"
    )


@torch.no_grad()
def state_widths(model: PreTrainedModel, state_keys: Collection[StateKey]) -> dict[StateKey, int]:
    """Return the width H at each key, by running one token.

    Raises:
        TeacherError: a module does not exist, was not run, or gives no states `[B, S, H]`.
    """
    with capture_states(model, state_keys) as states:
        ids_11 = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        # On the meta device the values of a mask [B, S] cannot be read; one of four dimensions is used as it is.
        mask = torch.zeros(1, 1, 1, 1, device="meta") if model.device.type == "meta" else None
        model.base_model(input_ids=ids_11, attention_mask=mask, use_cache=False)
    for key in state_keys:
        state = states.get(key)
        if not isinstance(state, Tensor) or state.dim() != 3:
            raise TeacherError(
                f"feature layers: module {key!r} of a {type(model).__name__} gives no state per token; name a block, "
                "such as model.layers.2, or a module inside it"
            )
    return {key: states[key].shape[-1] for key in state_keys}
