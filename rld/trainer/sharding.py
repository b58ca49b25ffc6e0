"""Students whose weights several processes share: under FSDP2 and ZeRO-3 each holds a part of every weight.

A forward through the outermost wrapper gathers what it needs, layer by layer, and all processes have to run it
together. What runs a student in another way, such as greedy answers and hidden states, asks for whole weights first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_peft_model
from peft import get_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import PreTrainedModel, Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.models import unwrap_model_for_generation

from rld.models.heads import whole
from rld.models.loading import loading_whole


@contextmanager
def whole_student(trainer: Trainer) -> Iterator[Any]:
    """Yield a trainer's student without DDP's or DeepSpeed's wrapper, with whole weights on every process.

    All processes have to enter and to leave together. In between each may run the student as often as it needs, or not
    at all, but must not change it. Memory: all weights once, as far as they were shared.
    """
    kwargs: Any = trainer.args.activation_checkpointing_kwargs
    gathered = unwrap_model_for_generation(
        trainer.model_wrapped, trainer.accelerator, gradient_checkpointing_kwargs=kwargs
    )
    with gathered as student, _unsharded(student):  # the former gathers ZeRO-3's weights, the latter FSDP2's
        yield student


def whole_state_dict(trainer: Trainer, everywhere: bool = False) -> dict[str, Tensor]:
    """Return the student's state with whole weights in CPU memory, in float32 where DeepSpeed trains in bf16.

    Args:
        trainer: Its trainer.
        everywhere: Whether all processes get it. If not, it is empty on all but the main one.
    """
    return whole_state(trainer, trainer.accelerator.unwrap_model(trainer.model_wrapped), everywhere)


def whole_state(trainer: Trainer, module: nn.Module, everywhere: bool = False) -> dict[str, Tensor]:
    """Return the state of a part of the student as `whole_state_dict` does.

    All processes have to call this. Tensors are gathered one after the other: beside its share and its copies, which
    only a process that gets the state has, a process holds one whole tensor at a time.
    """
    is_kept = everywhere or trainer.accelerator.is_main_process
    weights = dict(module.named_parameters(remove_duplicate=False))
    copies = {
        name: _whole_value(trainer, value, weights.get(name), is_kept) for name, value in module.state_dict().items()
    }
    return {name: copy for name, copy in copies.items() if copy is not None}


def _whole_value(trainer: Trainer, value: Tensor, weight: nn.Parameter | None, is_kept: bool) -> Tensor | None:
    """Return a copy of a whole tensor of a state in CPU memory; None if it is not kept.

    Args:
        trainer: The student's trainer.
        value: The tensor as the state has it: under FSDP2 a part of it, under ZeRO-3 nothing.
        weight: The weight whose value it is; None for a buffer.
        is_kept: Whether this process keeps it; if not, it only takes part.
    """

    def copied(tensor: Tensor) -> Tensor | None:
        # Where DeepSpeed trains in bf16, an adapter would be merged into weights in bf16.
        dtype = torch.float32 if trainer.is_deepspeed_enabled and tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to("cpu", dtype, copy=True) if is_kept else None

    master = None if weight is None else _master_weight(trainer, weight)
    if master is not None:
        return copied(master)
    if weight is None or not hasattr(weight, "ds_id"):
        return copied(whole(value))
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight]):
        return copied(weight)


def _master_weight(trainer: Any, weight: nn.Parameter) -> Tensor | None:
    """Return the float32 copy of a weight that DeepSpeed's optimizer updates; None if there is none.

    In mixed precision the weights themselves are in bf16, which loses updates below 1/256 of a weight.
    """
    if not trainer.is_deepspeed_enabled or trainer.model_wrapped is trainer.model:  # not shared yet
        return None
    from deepspeed.utils import safe_get_full_fp32_param

    master: Tensor | None = safe_get_full_fp32_param(weight)
    return master


def whole_copy(trainer: Trainer) -> Any:
    """Return a trainer's student, whose weights processes share, as an ordinary model in every process's CPU memory."""
    state = whole_state_dict(trainer, everywhere=True)
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    base = trained.get_base_model() if is_peft_model(trained) else trained
    own_class: Any = next(kind for kind in type(base).__mro__ if not issubclass(kind, FSDPModule))
    with loading_whole():
        model = own_class(copy.deepcopy(base.config))  # not on the meta device, for no state has its other buffers
    model.generation_config = base.generation_config
    if base is not trained:
        model = get_peft_model(model, trained.peft_config[trained.active_adapter])
    model.load_state_dict(state, assign=True)  # with the state's data types
    model.tie_weights()
    return model


@contextmanager
def _unsharded(model: nn.Module) -> Iterator[None]:
    """Hold all weights of a model that FSDP2 shards whole; no process waits for another one until the end."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not parts:
        yield
        return
    with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be trained afterwards
        _start(model)
        resharded = [part for part in parts if _is_resharded(part)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
        for part in resharded:
            part.set_reshard_after_forward(True, recurse=False)


def _start(root: Any) -> None:
    """Run an empty forward: a part whose forward comes before the root's would take itself for a root."""
    root.run_nothing = lambda: None
    register_fsdp_forward_method(root, "run_nothing")
    root.run_nothing()
    del root.run_nothing


def _is_resharded(part: Any) -> bool:
    """Tell whether FSDP2 shards a part's weights again after each forward."""
    return any(group.post_forward_mesh_info is not None for group in part._get_fsdp_state()._fsdp_param_groups)


def gather_for_forward(model: PreTrainedModel, others: Iterable[nn.Parameter] = ()) -> None:
    """Let ZeRO-3 gather weights for the whole of a model's own forward and backward: its output head, and `others`.

    Otherwise it gathers a head for the head's own forward, which losses that never store all logits do not call; and
    other weights where they are read, though a process whose completions need them would wait for one whose do not.
    """
    if is_deepspeed_zero3_enabled():
        import deepspeed

        output = model.get_output_embeddings()
        for weight in (output.weight, output.bias, *others):
            if weight is not None:
                deepspeed.zero.register_external_parameter(model, weight)


def is_sharded(model: nn.Module) -> bool:
    """Tell whether processes share the weights of a model."""
    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        hasattr(weight, "ds_id") for weight in model.parameters()
    )
