"""Training stops at a loss, gradient or weight that is not finite, before it reaches the weights or a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rld.errors import NonFiniteError
from rld.models.self_check import non_finite_weight
from rld.trainer.launch import CheckedLaunch

_ADVICE = "lower the learning rate or max_grad_norm, or look at the rows and rewards of this update"


class FiniteUpdates(CheckedLaunch):
    """A trainer that checks each update's loss and gradient norm before its optimizer step, and weights before a save.

    In float16 the gradient scaler skips updates whose gradient overflows, so only the loss is checked there.

    Raises:
        NonFiniteError: while training, a number that is not finite; the message names its cause and the update.
    """

    _update_loss: Tensor | None = None
    """The sum of the losses of an update's micro-batches so far."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._update_loss = loss.detach() if self._update_loss is None else self._update_loss + loss.detach()
        if self.accelerator.sync_gradients:
            total, self._update_loss = self._update_loss, None
            if not _is_finite_everywhere(total, self.accelerator):
                raise self._non_finite(f"the loss is {total.item()}")
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        if norm is not None and self.accelerator.scaler is None:
            value = torch.as_tensor(norm)
            if not _is_finite_everywhere(value, self.accelerator):
                raise self._non_finite(f"the gradient's norm is {value.item()}")
        return norm

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        require_finite_weights(model, f"after update {self.state.global_step}", self.accelerator)
        if not _is_finite_everywhere(_sum_of_zeros(self.optimizer, self.accelerator), self.accelerator):
            raise self._non_finite("the optimizer's state is not finite")
        super()._save_checkpoint(model, trial)

    def _non_finite_terms(self) -> list[str]:
        """Return the terms of the update's loss that are not finite, as far as the trainer knows them."""
        return []

    def _non_finite(self, problem: str) -> NonFiniteError:
        terms, weight = self._non_finite_terms(), non_finite_weight(self.accelerator.unwrap_model(self.model))
        cause = f" (of its terms {', '.join(terms)})" if terms else ""
        advice = _ADVICE if weight is None else f"the student's weight {weight} is not finite; start from a sound model"
        return NonFiniteError(f"update {self.state.global_step + 1}: {problem}{cause}; {advice}")


def require_finite_weights(model: nn.Module, when: str, accelerator: Accelerator) -> None:
    """Refuse a model that has weights that are not finite, on every process if on one.

    Args:
        model: The model, with or without wrappers.
        when: When it has them, for the error.
        accelerator: Of the training.

    Raises:
        NonFiniteError: it has such weights; the message names the first.
    """
    name = non_finite_weight(accelerator.unwrap_model(model))
    is_finite = torch.tensor(0.0 if name is None else float("nan"), device=accelerator.device)
    if not _is_finite_everywhere(is_finite, accelerator):
        raise NonFiniteError(f"{when} the student's weight {name} is not finite, so nothing is stored; {_ADVICE}")


def _sum_of_zeros(optimizer: Any, accelerator: Accelerator) -> Tensor:
    """Return 0, or NaN if a value of the optimizer's state is not finite."""
    total = torch.zeros((), device=accelerator.device)
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                part = getattr(value, "to_local", lambda value=value: value)()  # of a tensor that processes share
                total += (part.detach() * 0).sum().to(total)
    return total


def _is_finite_everywhere(value: Tensor, accelerator: Accelerator) -> bool:
    """Tell whether a number is finite on all processes."""
    if accelerator.num_processes > 1:
        value = accelerator.reduce(value.detach().float().to(accelerator.device), reduction="sum")
    return bool(value.isfinite().all())
