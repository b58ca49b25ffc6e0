"""Whether the data type of a student's weights can hold the updates of its training."""

from __future__ import annotations

import warnings

import torch
from torch import nn

_SAMPLE = 4096
"""Numbers of each weight that are looked at."""

_MOST_LOST = 0.5
"""Share of weights that may lose their updates before the user is told."""


@torch.no_grad()
def warn_of_lost_updates(model: nn.Module, learning_rate: float) -> None:
    """Warn if most weights are so coarse that an update of AdamW is rounded away.

    AdamW's first steps change each weight by about the learning rate. bfloat16 has 8 bits of precision, so that a
    weight of 0.02 does not notice a step below 4e-5; the loss is logged, and the student stays as it was.

    Args:
        model: The model that is trained; weights that are frozen do not count.
        learning_rate: The largest learning rate of its schedule.
    """
    num_fixed, total, dtypes = 0, 0, set()
    for weight in model.parameters():
        if weight.requires_grad and weight.is_floating_point() and weight.numel() and weight.device.type != "meta":
            sample = weight.detach().flatten()[:: max(1, weight.numel() // _SAMPLE)]
            num_fixed += int((sample - learning_rate == sample).sum())
            total += sample.numel()
            dtypes.add(str(weight.dtype).removeprefix("torch."))
    if learning_rate > 0 and total and num_fixed > _MOST_LOST * total:
        warnings.warn(
            f"{num_fixed / total:.0%} of the student's weights ({', '.join(sorted(dtypes))}) cannot change by the "
            f"learning rate of {learning_rate:g}, which is rounded away: load the student in float32 "
            "(from_pretrained.dtype), train an adapter (lora), or raise the rate. A GPU computes in bfloat16 "
            "either way",
            stacklevel=2,
        )
