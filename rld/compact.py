"""TRL's fused head, made to look only at the tokens that have labels on a CPU too.

TRL leaves positions without a label out of the work where its Triton kernels run, and scores every position
elsewhere, because varying shapes make some compilers start again. A CPU has no such compiler, and with prompts that are
longer than answers the prompts would take most of the head's time: on SmolLM2-135M, prompts of 45 tokens and
answers of 5, over a third of a whole update.
"""

from __future__ import annotations

import torch
from trl.trainer import utils

_runs_triton = utils._use_triton


def _leaves_out_unlabelled(device: torch.device) -> bool:
    return device.type == "cpu" or bool(_runs_triton(device))


def score_labels_only() -> None:
    """Make the fused heads of this process leave out positions without a label; doing so twice does no harm."""
    utils._use_triton = _leaves_out_unlabelled
