"""How much a teacher favours each label of a skill, whatever it reads.

Shapes: N rows, L labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rld.errors import CheckpointError
from rld.utils.label_words import LabelWords

NUM_ROWS = 512
"""Rows of a skill that are kept of each teacher, the latest; a self-teacher has changed a little since the first."""
_TOLERANCE, _MOST_ROUNDS = 1e-4, 200
"""How far a label's mean may be from 1 / L, relative to that, and the rounds after which what is left stays."""


class LabelPriors:
    """Keeps the teachers' latest distributions over labels, and finds the prior that makes their mean uniform.

    The prior r of a teacher on a skill is that with which the mean over its rows x of `p(l | x) / r_l`, each scaled to
    a sum of 1, is 1 / L for every label (prior matching, Liusie et al. 2023). As if L further rows were uniform, few
    rows say little.

    Args:
        labels: The words of each skill's labels, with the synonyms by which teachers are asked for them.
        teachers: The teachers' names.
    """

    def __init__(self, labels: Mapping[str, LabelWords], teachers: Sequence[str]) -> None:
        self.labels, self.teachers = dict(labels), list(teachers)
        self._rows = {
            (skill, k): torch.zeros(0, len(label_words.words))
            for skill, label_words in labels.items()
            for k in range(len(teachers))
        }
        """The latest log-probabilities `[N, L]`, by skill and teacher's number."""
        self._log_priors: dict[tuple[str, int], Tensor] = {}

    def add(self, distributions: Sequence[tuple[str, int, Tensor]]) -> None:
        """Keep distributions of this process and of all others, each of which calls this with its own.

        Args:
            distributions: A skill, a teacher's number, and the log-probabilities of the skill's labels, `[L]`.
        """
        for skill, k, log_p in gather_object([(skill, k, log_p_L.tolist()) for skill, k, log_p_L in distributions]):
            self._rows[skill, k] = torch.cat([self._rows[skill, k], torch.tensor([log_p])])[-NUM_ROWS:]
        self._log_priors.clear()

    def log_prior(self, skill: str, k: int) -> Tensor:
        """Return the log of teacher k's prior over a skill's labels, `[L]` float64; without a row it is uniform."""
        if (skill, k) not in self._log_priors:
            self._log_priors[skill, k] = _log_prior(self._rows[skill, k])
        return self._log_priors[skill, k]

    def forget(self, k: int) -> None:
        """Forget what is known of teacher k, because its weights have changed."""
        self._rows = {key: rows_NL[:0] if key[1] == k else rows_NL for key, rows_NL in self._rows.items()}
        self._log_priors.clear()

    def save(self, path: Path) -> None:
        """Write the distributions of each skill and teacher."""
        skills = list(self.labels)
        tensors = {f"{skills.index(skill)}.{k}": rows_NL.contiguous() for (skill, k), rows_NL in self._rows.items()}
        save_file(tensors, path, {"labels": self._label_text(), "teachers": json.dumps(self.teachers)})

    def load(self, path: Path) -> None:
        """Restore what `save` wrote; a teacher that it lacks begins anew.

        Raises:
            CheckpointError: it was written with other labels or synonyms.
        """
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            teachers = json.loads(metadata["teachers"])
            if metadata["labels"] != self._label_text():
                fix = "resume with those, or start a new run"
                raise CheckpointError(f"{path} was written with other labels or synonyms; {fix}")
            for s, skill in enumerate(self.labels):
                for k, name in enumerate(self.teachers):
                    if name in teachers:
                        self._rows[skill, k] = file.get_tensor(f"{s}.{teachers.index(name)}")
        self._log_priors.clear()

    def _label_text(self) -> str:
        """Return all words of each skill, in their order, with the numbers of their labels."""
        return json.dumps({skill: label_words.completions for skill, label_words in self.labels.items()})


def _log_prior(rows_NL: Tensor) -> Tensor:
    """Return the log of the prior that makes the mean distribution of these rows uniform, `[L]` float64.

    Rows and columns are scaled in turn to the sums that they should have, which converges for positive matrices
    (Sinkhorn and Knopp 1967); in logs, because a label may have less probability than a float32 can hold.
    """
    num_labels = rows_NL.shape[1]
    log_p_NL = torch.cat([rows_NL.double(), torch.full((1, num_labels), -math.log(num_labels), dtype=torch.float64)])
    log_weights_N1 = torch.zeros(len(log_p_NL), 1, dtype=torch.float64)
    log_weights_N1[-1] = math.log(num_labels)
    log_weights_N1 -= math.log(len(rows_NL) + num_labels)
    log_prior_L = torch.zeros(num_labels, dtype=torch.float64)
    for _ in range(_MOST_ROUNDS):
        log_q_NL = (log_p_NL - log_prior_L).log_softmax(1)
        excess_L = (log_q_NL + log_weights_N1).logsumexp(0) + math.log(num_labels)
        log_prior_L = log_prior_L + excess_L
        if excess_L.abs().max() < _TOLERANCE:
            break
    return log_prior_L.log_softmax(0)
