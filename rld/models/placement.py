"""Moves models between devices."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def is_placed(model: PreTrainedModel) -> bool:
    """Tell whether the weights stay where they were loaded: spread over devices, or quantised."""
    return len(getattr(model, "hf_device_map", None) or {}) > 1 or getattr(model, "hf_quantizer", None) is not None


def move_unless_placed(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Move a model to `device`, unless its weights stay where they were loaded."""
    if not is_placed(model) and model.device != device:
        model.to(device)  # type: ignore[arg-type]  # transformers types it as if it took a model
    return model
