"""How much a teacher favours each label of a skill, whatever it reads.

Shapes: N rows, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor

_NUM_ROWS = 512
"""Rows of a skill that are kept of each teacher, the latest."""
_TOLERANCE, _MOST_ROUNDS = 1e-4, 200
"""How far a label's mean may be from 1 / L, relative to that, and the rounds in which it comes as near."""


class LabelPriors:
    """Keeps the teachers' latest distributions over labels, and finds the prior that makes their mean uniform.

    The prior r of a teacher on a skill is that with which the mean over its rows x of `p(l | x) / r_l`, each scaled to
    a sum of 1, is 1 / L for every label (prior matching, Liusie et al. 2023). As if L further rows were uniform, few
    rows say little.

    Args:
        labels: The words of each skill's labels.
        teachers: The teachers' names.
    """

    def __init__(self, labels: Mapping[str, Sequence[str]], teachers: Sequence[str]) -> None:
        self.teachers = list(teachers)
        self._rows = {
            (skill, k): torch.zeros(0, len(words)) for skill, words in labels.items() for k in range(len(teachers))
        }
        """The latest distributions `[N, L]`, by skill and teacher's number."""
        self._log_priors: dict[tuple[str, int], Tensor] = {}

    def add(self, distributions: Sequence[tuple[str, int, Tensor]]) -> None:
        """Keep distributions of this process and of all others, each of which calls this with its own.

        Args:
            distributions: A skill, a teacher's number, and its probabilities of the skill's labels, `[L]`.
        """
        for skill, k, p in gather_object([(skill, k, p_L.tolist()) for skill, k, p_L in distributions]):
            self._rows[skill, k] = torch.cat([self._rows[skill, k], torch.tensor([p])])[-_NUM_ROWS:]
        self._log_priors.clear()

    def log_prior(self, skill: str, k: int) -> Tensor:
        """Return the log of teacher k's prior over a skill's labels, `[L]`; of an unread skill it is uniform."""
        if (skill, k) not in self._log_priors:
            self._log_priors[skill, k] = _log_prior(self._rows[skill, k])
        return self._log_priors[skill, k]

    def forget(self, k: int) -> None:
        """Forget what is known of teacher k, because its weights have changed."""
        self._rows = {key: rows_NL[:0] if key[1] == k else rows_NL for key, rows_NL in self._rows.items()}
        self._log_priors.clear()

    def save(self, path: Path) -> None:
        """Write the distributions, by skill and teacher."""
        save_file(
            {f"{skill}/{self.teachers[k]}": rows_NL.contiguous() for (skill, k), rows_NL in self._rows.items()}, path
        )

    def load(self, path: Path) -> None:
        """Restore what `save` wrote; a teacher that it lacks begins anew."""
        saved = load_file(path)
        self._rows |= {
            (skill, k): saved.get(f"{skill}/{self.teachers[k]}", new) for (skill, k), new in self._rows.items()
        }
        self._log_priors.clear()


def _log_prior(rows_NL: Tensor) -> Tensor:
    """Return the log of the prior that makes the mean distribution of these rows uniform, `[L]`.

    Rows and columns are scaled in turn to the sums that they should have, which converges for positive matrices
    (Sinkhorn and Knopp 1967).
    """
    num_labels = rows_NL.shape[1]
    uniform_1L = torch.full((1, num_labels), 1 / num_labels, dtype=torch.float64)
    p_NL = torch.cat([rows_NL.double().clamp(min=torch.finfo(torch.float32).tiny), uniform_1L])
    counts_N = torch.ones(len(p_NL), dtype=torch.float64)
    counts_N[-1] = num_labels
    prior_L = torch.ones(num_labels, dtype=torch.float64)
    for _ in range(_MOST_ROUNDS):
        q_NL = p_NL / prior_L
        q_NL /= q_NL.sum(1, keepdim=True)
        excess_L = num_labels * (counts_N @ q_NL) / counts_N.sum()
        prior_L = prior_L * excess_L
        if (excess_L - 1).abs().max() < _TOLERANCE:
            break
    return (prior_L / prior_L.sum()).log()
