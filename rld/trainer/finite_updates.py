"""Losses, gradients and weights that are not finite are kept out of the weights and of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rld.errors import DivergedError
from rld.models.heads import whole
from rld.models.self_check import non_finite_weight, own_part
from rld.trainer.launch import CheckedLaunch
from rld.trainer.skipped_batch import save_batch
from rld.types import Event
from rld.utils.messages import tell

_ADVICE = "lower the learning rate or max_grad_norm, or look at the rows and rewards of this update"

_MAX_SKIPPED = 3
"""Updates in a row that are not finite, of which the last one stops the training: one may be bad luck."""


class FiniteUpdates(CheckedLaunch):
    """A trainer that checks each update's loss and gradient norm before its optimizer step, and weights before a save.

    An update whose loss or gradient is not finite is skipped: its optimizer step changes nothing. The third in a row
    stops the training, and its batch is stored in the output folder. Sound weights and the checkpoints stay.

    In float16 the gradient scaler skips updates whose gradient overflows, so only the loss is checked there. DeepSpeed
    makes its own steps, so there the first update that is not finite stops the training.

    Raises:
        DivergedError: while training, the third update in a row is not finite, or a weight is not; the message names
            the cause, the update and the files of its batch.
    """

    _update_loss: Tensor | None = None
    """The sum of the losses of an update's micro-batches so far."""
    is_skipped = False
    """Whether the update in progress is skipped."""
    num_skipped = 0
    """Updates that were skipped, in a row; a checkpoint has their number."""

    @cached_property
    def events(self) -> list[Event]:
        """Events of the training, oldest first; a callback that writes them also removes them."""
        return []

    @cached_property
    def _micro_batches(self) -> list[Mapping[str, Any]]:
        """What the update in progress computed its loss from."""
        return []

    def _prepare_inputs(self, inputs: Any) -> Any:
        prepared = super()._prepare_inputs(inputs)
        if self.model is not None and self.model.training:
            self._micro_batches.append(prepared)
        return prepared

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._update_loss = loss.detach() if self._update_loss is None else self._update_loss + loss.detach()
        if self.accelerator.sync_gradients:
            total, self._update_loss = self._update_loss, None
            if not _is_finite_everywhere(total, self.accelerator):
                self._skip(_problem("the loss", total))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        if norm is not None and self.accelerator.scaler is None and not self.is_skipped:
            value = whole(torch.as_tensor(norm))  # FSDP2 has a share of it on each process
            if not _is_finite_everywhere(value, self.accelerator):
                self._skip(_problem("the gradient's norm", value))
        if not self.is_skipped:
            self.num_skipped = 0
        elif self.accelerator.scaler is None:  # a scaler would look for the gradients, and skips the update itself
            assert self.optimizer is not None
            self.optimizer.zero_grad(set_to_none=True)  # an optimizer leaves parameters without gradient as they are
        self.is_skipped = False
        self._micro_batches.clear()
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        # transformers sets it to zero by a subtraction; an evaluation before the training has none
        if hasattr(self, "_tr_loss") and not self._tr_loss.isfinite():
            self._tr_loss.zero_()

    def _skip(self, problem: str) -> None:
        """Skip the update in progress.

        Raises:
            DivergedError: it is the third in a row, or to skip it does not help.
        """
        # Only the process that holds a part of a weight sees that it is not finite, and all have to go on or stop.
        is_sound, weight = _soundness(self.model, self.accelerator)
        error = self._non_finite(problem, weight)
        self.num_skipped += 1
        can_go_on = is_sound and self.accelerator.distributed_type != DistributedType.DEEPSPEED
        if can_go_on and self.num_skipped < _MAX_SKIPPED:
            self.is_skipped = True
            tell(f"{error}; this update is skipped")
            measured = f"{problem}{self._cause()}; {self.num_skipped} in a row"
            rule = f"{_MAX_SKIPPED} in a row stop the training"
            self.events.append(Event(self.state.global_step + 1, "update skipped", "all skills", "", measured, rule))
            return
        assert self.args.output_dir is not None
        assert isinstance(self.processing_class, PreTrainedTokenizerBase)
        path = Path(self.args.output_dir) / f"skipped-{self.state.global_step + 1}-{self.accelerator.process_index}"
        save_batch(path, self._micro_batches, self.processing_class)
        if self.accelerator.num_processes > 1:  # any of them may have the cause
            path = path.with_name(f"skipped-{self.state.global_step + 1}-*")
        count = f"; {_MAX_SKIPPED} updates in a row were skipped" if self.num_skipped == _MAX_SKIPPED else ""
        raise DivergedError(f"{error}{count}; its rows are in {path}.jsonl, its tensors in {path}.safetensors")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        require_finite_weights(model, f"after update {self.state.global_step}", self.accelerator)
        if not _is_finite_everywhere(_sum_of_zeros(self.optimizer, self.accelerator), self.accelerator):
            raise self._non_finite("the optimizer's state is not finite")
        super()._save_checkpoint(model, trial)

    def _non_finite_terms(self) -> list[str]:
        """Return the terms of the update's loss that are not finite, as far as the trainer knows them."""
        return []

    def _non_finite(self, problem: str, weight: str | None = None) -> DivergedError:
        advice = _ADVICE if weight is None else f"the student's weight {weight} is not finite; start from a sound model"
        return DivergedError(f"update {self.state.global_step + 1}: {problem}{self._cause()}; {advice}")

    def _cause(self) -> str:
        terms = self._non_finite_terms()
        return f" (of its terms {', '.join(terms)})" if terms else ""


def _problem(name: str, value: Tensor) -> str:
    """Return what is not finite: a number of this process, or of another one."""
    return f"{name} of another process is not finite" if value.isfinite() else f"{name} is {value.item()}"


def require_finite_weights(model: nn.Module, moment: str, accelerator: Accelerator) -> None:
    """Refuse a model that has weights that are not finite, on every process if on one.

    Args:
        model: The model, with or without wrappers.
        moment: When it has them, for the error.
        accelerator: Of the training.

    Raises:
        DivergedError: it has such weights; the message names the first.
    """
    is_sound, name = _soundness(model, accelerator)
    if not is_sound:
        weight = "a part of a weight on another process" if name is None else f"the student's weight {name}"
        raise DivergedError(f"{moment} {weight} is not finite, so nothing is stored; {_ADVICE}")


def _soundness(model: Any, accelerator: Accelerator) -> tuple[bool, str | None]:
    """Tell whether a model's weights are finite on all processes; and name the first that is not on this one."""
    name = non_finite_weight(accelerator.unwrap_model(model))
    flag = torch.tensor(0.0 if name is None else float("nan"), device=accelerator.device)
    return _is_finite_everywhere(flag, accelerator), name


def _sum_of_zeros(optimizer: Any, accelerator: Accelerator) -> Tensor:
    """Return 0, or NaN if a value of the optimizer's state is not finite."""
    total = torch.zeros((), device=accelerator.device)
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                total += (own_part(value).detach() * 0).sum().to(total)
    return total


def _is_finite_everywhere(value: Tensor, accelerator: Accelerator) -> bool:
    """Tell whether a number is finite on all processes."""
    if accelerator.num_processes > 1:
        value = accelerator.reduce(value.detach().float().to(accelerator.device), reduction="sum")
    return bool(value.isfinite().all())
