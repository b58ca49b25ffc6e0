"""From measured sums to weights: what stands between the trainer and a controller.

`Steering` adds up counts and ledgers between ticks, shows them to the controller as an `Observation`, and turns its
weights into tables that the trainer can index by skill. It holds no model, only sums that are already over all
processes, so that every process comes to the same weights; all its state is JSON.

Shapes: S skills, K teachers; signals are in the order of `SIGNALS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rld.errors import ControllerError
from rld.teachers import Teacher
from rld.types import SIGNALS, Controller, Event, Observation, Signal, SkillSeen, TeacherSeen, Weights

_SPREAD_DECAY = 0.95
_SPREAD_RATIO = 4.0


class Steering:
    """Keep a controller's state, feed it, and serve its weights."""

    def __init__(
        self, controller: Controller, skills: list[str], teachers: Sequence[Teacher], signals: list[Signal]
    ) -> None:
        self.controller = controller
        self.skills, self.teachers, self.signals = skills, list(teachers), signals
        self.state = controller.start(skills, [str(t.name) for t in teachers], signals)
        self.ticks = 0
        self._spread: list[float | None] = [None] * len(skills)
        self._clear_window()
        self._use(controller.weights(self.state))

    def _clear_window(self) -> None:
        self.updates = 0
        self._counts = torch.zeros(len(self.skills), 4, dtype=torch.float64)
        self._gate = torch.zeros(len(self.skills), len(self.teachers), 4, dtype=torch.float64)
        self._table = torch.zeros(len(self.skills), 3 + 4 * len(self.teachers), dtype=torch.float64)
        self._scalars = torch.zeros(7, dtype=torch.float64)

    def _use(self, weights: Weights) -> None:
        """Turn weights into tables: `signals_SG` `[S, 3]` with the scale in it, and `teachers_SK` `[S, K]`."""
        self.weights = weights
        signals = [[weights.signals[skill].get(signal, 0.0) for signal in SIGNALS] for skill in self.skills]
        shares = []
        for skill in self.skills:
            given = [weights.teachers[skill].get(str(t.name), 0.0) * t.teaches(skill) for t in self.teachers]
            total = sum(given)
            shares.append([share / total if total else 0.0 for share in given])
        numbers = [*(w for row in signals for w in row), *(w for row in shares for w in row), *weights.scale.values()]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ControllerError(
                f"{type(self.controller).__name__} gave a weight that is negative or not a number: {weights}; "
                "weights are in [0, 1]"
            )
        scale = torch.tensor([weights.scale.get(signal, 1.0) for signal in SIGNALS])
        self.signals_SG = torch.tensor(signals) * scale
        self.teachers_SK = torch.tensor(shares).reshape(len(self.skills), len(self.teachers))

    @property
    def last_of_window(self) -> bool:
        """Whether the update in progress is the one before a tick, on which gradients are measured."""
        return self.updates + 1 >= self.controller.every

    @property
    def looking(self) -> bool:
        """Whether the next rollout is the one of a heartbeat, at which all teachers and signals are measured."""
        return self.updates == 0 and self.ticks % self.controller.heartbeat == 0

    def computed(self, signal: Signal) -> bool:
        """Whether the next rollout needs a signal: it takes part, and has weight on some skill or it is a heartbeat."""
        if signal not in self.signals:
            return False
        return self.looking or bool((self.signals_SG[:, SIGNALS.index(signal)] > 0).any())

    def wanted(self, teacher_reward: float, shares_SK: Tensor) -> Tensor:
        """Which teachers a rollout needs per skill, `[S, K]`: those with a share, and at a heartbeat all that teach."""
        if self.looking:
            teaches = [[t.teaches(skill) for t in self.teachers] for skill in self.skills]
            return torch.tensor(teaches, dtype=torch.bool).reshape(self.teachers_SK.shape)
        policy, response, feature = self.signals_SG.unbind(1)
        used_S = (response > 0) | (feature > 0) | ((policy > 0) & (teacher_reward > 0))
        return (shares_SK > 0) & used_S[:, None]

    def spread_S(self) -> Tensor:
        """Running root-mean-square of the teacher-scored reward's delta per skill; 1 until one was measured.

        A skill's is kept within a factor of 4 of that over all skills, so that one on which teacher and student agree
        is not blown up to the size of the others (DN-MOPD, arXiv 2609.35347).
        """
        known = [spread for spread in self._spread if spread is not None]
        if not known:
            return torch.ones(len(self._spread))
        overall = max(math.sqrt(sum(spread**2 for spread in known) / len(known)), 1e-3)
        spread_S = torch.tensor([overall if spread is None else spread for spread in self._spread])
        return spread_S.clamp(overall / _SPREAD_RATIO, overall * _SPREAD_RATIO)

    def count(self, counts_S4: Tensor) -> None:
        """Add a rollout's attempts, successes, groups and informative groups per skill."""
        self._counts += counts_S4.cpu()

    def count_gate(self, counts_SK4: Tensor) -> None:
        """Add, per skill and teacher, the prompts it was asked and answered rightly, and the student's attempts and
        successes on the latter."""
        self._gate += counts_SK4.cpu()

    def update(self, table: Tensor, scalars: Tensor, step: int) -> tuple[dict[str, float], list[Event]]:
        """Take in the ledger of one optimiser step; at the end of a window, tick.

        Returns:
            The step's metrics under the names of `metrics.jsonl`, and the events of a tick.
        """
        table, scalars = table.cpu(), scalars.cpu()
        self._table += table
        self._scalars += scalars
        for s, (_, squares, count) in enumerate(table[:, :3].tolist()):
            if count:
                now, before = math.sqrt(squares / count), self._spread[s]
                self._spread[s] = now if before is None else _SPREAD_DECAY * before + (1 - _SPREAD_DECAY) * now
        metrics = self._weight_metrics() | self._stream_metrics(table)
        self.updates += 1
        events: list[Event] = []
        if self.updates >= self.controller.every:
            seen = self._observe(step)
            metrics |= self._tick_metrics(seen)
            self.state, weights, events = self.controller.step(self.state, seen)
            self.ticks += 1
            self._clear_window()
            self._use(weights)
        return metrics, events

    def _observe(self, step: int) -> Observation:
        num = len(self.teachers)
        skills = {}
        for s, skill in enumerate(self.skills):
            attempts, successes, groups, informative = (int(x) for x in self._counts[s].tolist())
            sums = self._table[s, 3:].reshape(4, num).tolist()
            skills[skill] = SkillSeen(
                attempts,
                successes,
                groups,
                informative,
                {
                    str(teacher.name): TeacherSeen(
                        sums[0][k] / sums[1][k] if sums[1][k] else None,
                        *teacher.verified.get(skill, (0, 0)),
                        teacher.teaches(skill),
                        *(int(x) for x in self._gate[s, k].tolist()),
                    )
                    for k, teacher in enumerate(self.teachers)
                },
            )
        gradients: dict[str, float | None] = {}
        for i, signal in enumerate(SIGNALS):
            squares, count = self._scalars[1 + 2 * i : 3 + 2 * i].tolist()
            gradients[signal] = math.sqrt(squares / count) if count else None
        return Observation(step, skills, gradients)

    def _weight_metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for signal in SIGNALS:
            if not any(signal in weights for weights in self.weights.signals.values()):
                continue
            per_skill = [self.weights.signals[skill].get(signal, 0.0) for skill in self.skills]
            metrics[f"weight/{signal}"] = sum(per_skill) / len(per_skill)
            metrics |= {f"weight/{signal}/{skill}": w for skill, w in zip(self.skills, per_skill, strict=True)}
            metrics[f"scale/{signal}"] = self.weights.scale.get(signal, 1.0)
        for skill in self.skills:
            policy = self.weights.signals[skill].get("policy", 0.0)
            taught = sum(self.weights.signals[skill].values()) - policy
            # 0: distilling, 1: both with reinforcement ahead, 2: reinforcement alone
            metrics[f"phase/{skill}"] = 2.0 if not taught else float(policy > taught)
        for k, teacher in enumerate(self.teachers):
            shares = self.teachers_SK[:, k].tolist()
            metrics[f"teacher/{teacher.name}/weight"] = sum(shares) / len(shares)
            metrics |= {f"teacher/{teacher.name}/weight/{s}": w for s, w in zip(self.skills, shares, strict=True)}
        return metrics

    def _stream_metrics(self, table: Tensor) -> dict[str, float]:
        metrics = {}
        num = len(self.teachers)
        heard = (self.teachers_SK > 0).double().repeat(1, 4)  # a heartbeat also looks where nobody listens
        sums = (table[:, 3:] * heard).sum(0).reshape(4, num).tolist()
        for k, teacher in enumerate(self.teachers):
            if sums[1][k]:
                metrics[f"divergence/{teacher.name}"] = sums[0][k] / sums[1][k]
            if sums[3][k]:
                metrics[f"distance/{teacher.name}"] = sums[2][k] / sums[3][k]
        return metrics

    def _tick_metrics(self, seen: Observation) -> dict[str, float]:
        metrics = {f"grad/{signal}": norm for signal, norm in seen.gradients.items() if norm is not None}
        for skill, news in seen.skills.items():
            if news.attempts:
                metrics[f"progress/{skill}"] = news.successes / news.attempts
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            "teachers": [teacher.name for teacher in self.teachers],
            "skills": self.skills,
            "signals": list(self.signals),
            "controller": self.controller.kind,
            "state": self.state,
            "ticks": self.ticks,
            "updates": self.updates,
            "spread": self._spread,
            "counts": self._counts.tolist(),
            "gate": self._gate.tolist(),
            "table": self._table.tolist(),
            "scalars": self._scalars.tolist(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ControllerError: it was saved with other teachers, skills or another controller.
        """
        mine = self.state_dict()
        for what in ("teachers", "skills", "signals", "controller"):
            value = mine[what]
            if saved[what] != value:
                raise ControllerError(
                    f"the checkpoint was written with {what} {saved[what]}, this run has {value}; "
                    "resume with the same, or start anew"
                )
        self.state, self.ticks, self.updates = saved["state"], saved["ticks"], saved["updates"]
        self._spread = saved["spread"]
        self._counts = torch.tensor(saved["counts"], dtype=torch.float64)
        self._gate = torch.tensor(saved["gate"], dtype=torch.float64).reshape(self._gate.shape)
        self._table = torch.tensor(saved["table"], dtype=torch.float64).reshape(self._table.shape)
        self._scalars = torch.tensor(saved["scalars"], dtype=torch.float64)
        self._use(self.controller.weights(self.state))
