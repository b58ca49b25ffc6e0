"""Checkpoints of students whose weights or optimizer processes share, in the files that one process writes.

FSDP2 and DeepSpeed write checkpoints in formats of their own, which only as many processes can read. Here weights and
optimizer state are gathered first, so that a run goes on in any number of processes and in any way to share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from rld.models.heads import whole
from rld.trainer.sharding import whole_state_dict


class WholeCheckpoints(Trainer):
    """A trainer that writes and reads the same checkpoint whether and however processes share its student.

    It stands in place of transformers' trainer, behind TRL's in a class's bases: TRL adds a state of its own to what is
    written and read here.
    """

    model: Any
    optimizer: Any
    lr_scheduler: Any
    _trained: list[list[str]] = []
    """Names of the weights that the optimizer trains, by its groups."""

    @property
    def _is_shared(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def create_optimizer(self, *args: Any, **options: Any) -> Any:
        optimizer = super().create_optimizer(*args, **options)
        names = {id(weight): name for name, weight in self.model.named_parameters()}
        self._weight_names = [[names[id(weight)] for weight in group["params"]] for group in optimizer.param_groups]
        return optimizer

    # -- saving --------------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self._is_shared:
            super().save_model(output_dir, _internal_call)
            return
        state = whole_state_dict(self)
        if self.args.should_save:
            folder, dtype = str(output_dir or self.args.output_dir), next(iter(state.values())).dtype
            self._save(folder, state_dict=state)  # it empties the state
            if isinstance(self.model, PreTrainedModel):  # its configuration has the data type of DeepSpeed's weights
                self.model.config.dtype = dtype
                self.model.config.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._is_shared:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        is_writer = self.args.should_save
        if self.is_deepspeed_enabled:
            state = _deepspeed_state(self, self._weight_names, is_writer)
        else:
            state = _gathered(self.optimizer, is_writer)
        if is_writer:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    # -- resuming ------------------------------------------------------------------------------------------------------

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        if not self._is_shared:
            return super()._prepare_for_training(  # type: ignore[no-untyped-call]
                max_steps, train_dataloader, resume_from_checkpoint
            )
        if resume_from_checkpoint is not None:  # before they are shared, weights are read as one process reads them
            self._load_from_checkpoint(resume_from_checkpoint)
        with _kept_in_float32(self):
            prepared = super()._prepare_for_training(max_steps, train_dataloader, None)  # type: ignore[no-untyped-call]
        if resume_from_checkpoint is not None:
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        is_fsdp_enabled, self.is_fsdp_enabled = self.is_fsdp_enabled, False
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        finally:
            self.is_fsdp_enabled = is_fsdp_enabled

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self._is_shared or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        if self.is_deepspeed_enabled:
            _load_deepspeed_state(self, self._weight_names, state)
        else:
            self.optimizer.load_state_dict(_distributed(self.optimizer, state))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))


# -- FSDP2 -----------------------------------------------------------------------------------------------------------


def _gathered(optimizer: Any, is_writer: bool) -> dict[str, Any]:
    """Return an optimizer's state with whole tensors; on processes that do not write it, with None in their place."""
    state = optimizer.state_dict()
    values = {
        i: {name: _copy_for_writer(whole(value), is_writer) for name, value in of.items()}
        for i, of in state["state"].items()
    }
    return {**state, "state": values}


def _copy_for_writer(value: Any, is_writer: bool) -> Any:
    """Return a gathered value in CPU memory, of which only the process that writes it has enough."""
    return _copy(value) if is_writer else None


def _copy(value: Any) -> Any:
    """Return a value in CPU memory that no other weight shares: an optimizer counts its updates in place."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _distributed(optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of `_gathered` with each tensor split over processes as its weight is."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def share(weight: Any, value: Any) -> Any:
        if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
            return value
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)

    values = {i: {name: share(weights[i], value) for name, value in of.items()} for i, of in state["state"].items()}
    return {**state, "state": values}


# -- DeepSpeed -------------------------------------------------------------------------------------------------------


@contextmanager
def _kept_in_float32(trainer: Any) -> Iterator[None]:
    """Let DeepSpeed's float32 copies of weights be as exact as weights are before DeepSpeed prepares them.

    In mixed precision it rounds weights to bf16, and copies them afterwards.
    """
    is_new = trainer.is_deepspeed_enabled and trainer.model_wrapped is trainer.model
    # DeepSpeed gives weights other memory, so these stay as they are.
    exact = [(weight, weight.detach()) for weight in trainer.model.parameters() if weight.requires_grad and is_new]
    yield
    if exact:
        from deepspeed.utils import safe_set_full_fp32_param

        for weight, value in exact:
            safe_set_full_fp32_param(weight, value.to(weight.device, torch.float32))


def _weights(trainer: Any, groups: Sequence[Sequence[str]]) -> list[Any]:
    parameters = dict(trainer.model.named_parameters())
    return [parameters[name] for names in groups for name in names]


def _partitions(zero: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield this process's parts of the trained weights, each of which is flat, with the optimizer's state of it."""
    flat = zero.fp32_partitioned_groups_flat if hasattr(zero, "fp32_partitioned_groups_flat") else None
    for part in zero.single_partition_of_fp32_groups if flat is None else flat:
        yield part, zero.optimizer.state[part]


def _link(zero: Any) -> None:
    """Let each weight know of its part of the optimizer's state.

    ZeRO-2 does so by itself after the first update of the first group of weights, when the others have no state yet.
    """
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if hasattr(zero, "single_partition_of_fp32_groups"):
        for weights, part in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(weights, part, zero.optimizer.state)


def _deepspeed_state(trainer: Any, groups: Sequence[Sequence[str]], is_writer: bool) -> dict[str, Any]:
    """Return the optimizer's state as one process has it; on processes that do not write it, without its tensors."""
    from deepspeed.utils import safe_get_full_optimizer_state

    zero = trainer.optimizer.optimizer
    _link(zero)
    part, of_part = next(_partitions(zero))
    state: dict[int, dict[str, Any]] = {}
    for i, weight in enumerate(_weights(trainer, groups)):
        state[i] = {
            name: _copy_for_writer(
                safe_get_full_optimizer_state(weight, name) if _is_of(part, value) else value, is_writer
            )
            for name, value in of_part.items()
        }
    starts = [sum(map(len, groups[:i])) for i in range(len(groups))]
    used = iter(zero.param_groups)  # it drops groups without weights
    param_groups = [
        {**(next(used) if names else zero.param_groups[0]), "params": list(range(start, start + len(names)))}
        for start, names in zip(starts, groups, strict=True)
    ]
    return {"state": {i: of for i, of in state.items() if of}, "param_groups": param_groups}


def _is_of(part: Tensor, value: Any) -> bool:
    """Tell whether a value of the optimizer's state has a number for each one of a weight."""
    return isinstance(value, Tensor) and value.shape == part.shape


def _load_deepspeed_state(trainer: Any, groups: Sequence[Sequence[str]], state: Mapping[str, Any]) -> None:
    """Restore what `_deepspeed_state` returned, or one process wrote."""
    from deepspeed.utils import safe_set_full_optimizer_state

    zero, weights = trainer.optimizer.optimizer, _weights(trainer, groups)
    used = [group for group in state["param_groups"] if group["params"]]
    for group, saved in zip(zero.param_groups, used, strict=True):
        group.update({name: value for name, value in saved.items() if name != "params"})
    if not state["state"]:
        return
    shape = tuple(weights[0].ds_shape if hasattr(weights[0], "ds_shape") else weights[0].shape)
    first = state["state"][0]
    spread = [name for name, value in first.items() if isinstance(value, Tensor) and tuple(value.shape) == shape]
    for part, of_part in _partitions(zero):  # it is empty until the first update
        of_part.update(
            {name: torch.zeros_like(part) if name in spread else _copy(value) for name, value in first.items()}
        )
    _link(zero)
    for i, weight in enumerate(weights):
        for name in spread:
            safe_set_full_optimizer_state(weight, state["state"][i][name].to(weight.device), name)
