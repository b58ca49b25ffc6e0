"""Between the trainer and a controller: measured sums become observations, and decisions become tables of weights.

`ControllerRuntime` adds up counts between ticks, shows them to the controller as an `Observation`, and turns the
controller's weights into tensors that the trainer indexes by skill. It holds no model, only sums over all processes;
every process uses what the first one decides. Its state is JSON.

Shapes: S skills, K teachers; signals are in the order of `SIGNALS`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from rld.controllers.observation import (
    Controller,
    GradientStats,
    Observation,
    SkillObservation,
    TeacherInfo,
    TeacherObservation,
    Weights,
)
from rld.errors import ControllerError
from rld.types import SIGNALS, Event, Signal

_SPREAD_DECAY = 0.95

_SPREAD_RATIO = 4.0

_PHASES = ("distilling", "mostly reinforcing", "reinforcing alone")

_PHASE_BAND = 0.05
"""Difference of the signals' shares within which a phase holds, so that it does not flap."""


class ControllerRuntime:
    """Keep a controller's state, feed it, and serve its weights."""

    def __init__(
        self, controller: Controller, skills: list[str], teachers: Sequence[TeacherInfo], signals: list[Signal]
    ) -> None:
        self.controller = controller
        self.skills, self.teachers, self.signals = skills, list(teachers), signals
        self.state = controller.start(skills, [t.name for t in teachers], signals)
        self.ticks, self.last_step, self._looks = 0, 0, 0
        self.looking = controller.heartbeat > 0
        """Whether the rollout at hand is the one of a heartbeat, at which all teachers and signals are measured."""
        self._phases = [0] * len(skills)
        self._spread: list[float | None] = [None] * len(skills)
        self._idle = False
        self._clear_window()
        self._use(controller.weights(self.state))

    def _clear_window(self) -> None:
        self.updates = 0
        self._counts = torch.zeros(len(self.skills), 6, dtype=torch.float64)
        self._gate = torch.zeros(len(self.skills), len(self.teachers), 6, dtype=torch.float64)
        self._table = torch.zeros(len(self.skills), 3 + 4 * len(self.teachers), dtype=torch.float64)
        self._scalars = torch.zeros(7, dtype=torch.float64)

    def _use(self, weights: Weights) -> None:
        """Turn weights into tables: `signals_SG` `[S, 3]` with the scale in it, and `teachers_SK` `[S, K]`."""
        self.weights = weights
        for skill in self.skills:
            if skill not in weights.signals or skill not in weights.teachers:
                raise ControllerError(f"{type(self.controller).__name__} gave no weights for skill {skill!r}")
        signals = [[weights.signals[skill].get(signal, 0.0) for signal in SIGNALS] for skill in self.skills]
        shares = []
        for skill in self.skills:
            given = [weights.teachers[skill].get(t.name, 0.0) * t.teaches(skill) for t in self.teachers]
            total = sum(given)
            shares.append([share / total if total else 0.0 for share in given])
        numbers = [*(w for row in signals for w in row), *(w for row in shares for w in row), *weights.scale.values()]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ControllerError(
                f"{type(self.controller).__name__} gave a weight that is negative or not a number: {weights}; "
                "weights are finite, and at least 0"
            )
        scale = torch.tensor([weights.scale.get(signal, 1.0) for signal in SIGNALS])
        self.signals_SG = torch.tensor(signals) * scale
        self.teachers_SK = torch.tensor(shares).reshape(len(self.skills), len(self.teachers))
        self._phases = [self._phase(s, before) for s, before in enumerate(self._phases)]
        idle = not self.signals_SG.any()
        if idle and not self._idle:
            warnings.warn(
                "no signal has any weight on any skill: until one has, the student learns nothing", stacklevel=2
            )
        self._idle = idle

    def set_teachers(self, teachers: Sequence[TeacherInfo]) -> None:
        """Use other descriptions of the same teachers, after what one teaches has changed."""
        self.teachers = list(teachers)
        self._use(self.weights)

    @property
    def teaches_SK(self) -> Tensor:
        """Which teachers teach which skills, `[S, K]` bool, whatever their weight."""
        teaches = [[t.teaches(skill) for t in self.teachers] for skill in self.skills]
        return torch.tensor(teaches, dtype=torch.bool).reshape(self.teachers_SK.shape)

    def _phase(self, s: int, before: int) -> int:
        """0 while a skill distils, 1 while reinforcement weighs more, 2 when it is alone."""
        given = self.weights.signals[self.skills[s]]
        policy = given.get("policy", 0.0)
        taught = sum(given.values()) - policy
        if not policy and not taught:
            return before
        if not taught:
            return 2
        lead = (policy - taught) / (policy + taught)
        return before if before < 2 and abs(lead) <= _PHASE_BAND else int(lead > 0)

    @property
    def last_of_window(self) -> bool:
        """Whether the update in progress is the one before a tick, on which gradients are measured."""
        return self.updates + 1 >= self.controller.every

    def computed(self, signal: Signal) -> bool:
        """Whether the next rollout needs a signal: it takes part, and has weight on some skill or it is a heartbeat."""
        if signal not in self.signals:
            return False
        return self.looking or bool((self.signals_SG[:, SIGNALS.index(signal)] > 0).any())

    def wanted(self, teacher_reward: float, shares_SK: Tensor) -> Tensor:
        """Which teachers a rollout needs per skill, `[S, K]`: those with a share, and at a heartbeat all that teach."""
        if self.looking:
            return self.teaches_SK
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
        """Add a new rollout's attempts, successes, groups and informative groups per skill."""
        heartbeat = self.controller.heartbeat
        self.looking = heartbeat > 0 and self.ticks >= self._looks * heartbeat
        if self.looking:
            self._looks = self.ticks // heartbeat + 1
        self._counts[:, :4] += counts_S4.cpu()

    def count_audit(self, counts_S2: Tensor) -> None:
        """Add a rollout's successes that were checked, and those found right, per skill."""
        self._counts[:, 4:] += counts_S2.cpu()

    def count_gate(self, counts_SK6: Tensor) -> None:
        """Add what the gate saw, as `rollout.gate_counts` counts it."""
        self._gate += counts_SK6.cpu()

    def update(
        self,
        table: Tensor,
        scalars: Tensor,
        step: int,
        num_steps: int = 0,
        pulls: Mapping[str, GradientStats] | None = None,
    ) -> tuple[dict[str, float], list[Event]]:
        """Take in the ledger of one optimiser step of `num_steps`; at the end of a window, tick.

        Args:
            table, scalars: The ledger's, over all processes.
            step: The optimiser step, from 1.
            num_steps: Of the stage; 0: unknown.
            pulls: By skill, from the update before a tick, if the controller asks for them.

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
        self.updates, self.last_step = self.updates + 1, step
        events: list[Event] = []
        if self.updates >= self.controller.every:
            seen = self._observe(step, min(step / num_steps, 1.0) if num_steps else 0.0, pulls or {})
            metrics |= self._tick_metrics(seen)
            self.state, weights, events = broadcast_object_list([*self.controller.step(self.state, seen)])
            self.ticks += 1
            self._clear_window()
            weighed, phases = self.weights, list(self._phases)
            self._use(weights)
            events = [*events, *self._turned(weighed, events, step), *self._phase_events(phases, step)]
        return metrics, events

    def _turned(self, before: Weights, told: list[Event], step: int) -> list[Event]:
        """What was turned on or off since `before`, as far as the controller has not told it."""
        known = {
            (event.kind, skill, event.about)
            for event in told
            for skill in ([event.skill] if event.skill in self.skills else self.skills)  # or it is told of them all
        }
        events = []
        for what in ("signals", "teachers"):
            for skill in self.skills:
                was, now = getattr(before, what)[skill], getattr(self.weights, what)[skill]
                for name in now:
                    kind = f"{what[:-1]} {'on' if now[name] else 'off'}"
                    if bool(was.get(name)) != bool(now[name]) and (kind, skill, name) not in known:
                        measured = f"weight {was.get(name, 0.0):.2g} before, {now[name]:.2g} now"
                        events.append(Event(step, kind, skill, name, measured, "as the controller has it"))
        return events

    def _phase_events(self, before: list[int], step: int) -> list[Event]:
        return [
            Event(
                *(step, "phase", skill, _PHASES[now]),
                ", ".join(f"{signal} {w:.2f}" for signal, w in self.weights.signals[skill].items()),
                f"it was {_PHASES[was]}",
            )
            for skill, was, now in zip(self.skills, before, self._phases, strict=True)
            if now != was
        ]

    def _observe(self, step: int, progress: float, pulls: Mapping[str, GradientStats]) -> Observation:
        num = len(self.teachers)
        skills = {}
        for s, skill in enumerate(self.skills):
            attempts, successes, groups, informative, audited, genuine = (int(x) for x in self._counts[s].tolist())
            sums = self._table[s, 3:].reshape(4, num).tolist()
            skills[skill] = SkillObservation(
                attempts,
                successes,
                groups,
                informative,
                {
                    teacher.name: TeacherObservation(
                        sums[0][k] / sums[1][k] if sums[1][k] else None,
                        *teacher.verified.get(skill, (0, 0)),
                        teacher.teaches(skill),
                        *(int(x) for x in self._gate[s, k].tolist()),
                    )
                    for k, teacher in enumerate(self.teachers)
                },
                audited,
                genuine,
                pulls.get(skill),
            )
        gradients: dict[str, float | None] = {}
        for i, signal in enumerate(SIGNALS):
            squares, count = self._scalars[1 + 2 * i : 3 + 2 * i].tolist()
            gradients[signal] = math.sqrt(squares / count) if count else None
        return Observation(step, skills, gradients, progress)

    def _weight_metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for signal in SIGNALS:
            if not any(signal in weights for weights in self.weights.signals.values()):
                continue
            per_skill = [self.weights.signals[skill].get(signal, 0.0) for skill in self.skills]
            metrics[f"weight/{signal}"] = sum(per_skill) / len(per_skill)
            metrics |= {f"weight/{signal}/{skill}": w for skill, w in zip(self.skills, per_skill, strict=True)}
            metrics[f"scale/{signal}"] = self.weights.scale.get(signal, 1.0)
        metrics |= {f"phase/{skill}": float(phase) for skill, phase in zip(self.skills, self._phases, strict=True)}
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
            if news.audited:
                metrics[f"audit/{skill}"] = news.genuine / news.audited
            asked = {name: told for name, told in news.teachers.items() if told.again}
            metrics |= {f"sure/{name}/{skill}": told.right_again / told.again for name, told in asked.items()}
            if news.pulls is not None:
                metrics |= {f"noise/{signal}/{skill}": value for signal, value in news.pulls.noise.items()}
                metrics |= {f"aligned/{signal}/{skill}": value for signal, value in news.pulls.aligned.items()}
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
            "step": self.last_step,
            "looks": self._looks,
            "phases": self._phases,
            "spread": self._spread,
            "counts": self._counts.tolist(),
            "gate": self._gate.tolist(),
            "table": self._table.tolist(),
            "scalars": self._scalars.tolist(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> list[Event]:
        """Go on from a saved state, with the teachers of this run.

        Returns:
            What is worth telling: teachers that it was not saved with, and those that are gone.

        Raises:
            ControllerError: it was saved with other skills or signals, another controller, or by another rld.
        """
        mine = self.state_dict()
        for what in ("skills", "signals", "controller"):
            if saved[what] != mine[what]:
                raise ControllerError(
                    f"the checkpoint was written with {what} {saved[what]}, this run has {mine[what]}; "
                    "resume with the same, or start anew"
                )
        theirs, ours = saved["state"].get("version"), self.state.get("version")
        if theirs != ours:
            raise ControllerError(
                f"the checkpoint has version {theirs} of the state of controller {self.controller.kind!r}, this rld "
                f"reads version {ours}; resume with the rld that wrote it, or start anew"
            )
        self.state, self.ticks, self.updates = saved["state"], saved["ticks"], saved["updates"]
        self.last_step, self._phases, self._spread = saved["step"], list(saved["phases"]), saved["spread"]
        self._looks = saved["looks"]
        names, before = mine["teachers"], saved["teachers"]
        self._counts = torch.tensor(saved["counts"], dtype=torch.float64)
        self._scalars = torch.tensor(saved["scalars"], dtype=torch.float64)
        gate = torch.tensor(saved["gate"], dtype=torch.float64).reshape(len(self.skills), len(before), 6)
        table = torch.tensor(saved["table"], dtype=torch.float64)
        streams = table[:, 3:].reshape(len(self.skills), 4, len(before))
        self._gate = _picked(gate, 1, before, names)
        self._table = torch.cat([table[:, :3], _picked(streams, 2, before, names).flatten(1)], dim=1)
        events = []
        if before != names:
            self.state = self.controller.resume(self.state, names)
            events = [self._changed(name, "joined", "it enters at the prior") for name in names if name not in before]
            events += [self._changed(name, "left", "its counts are dropped") for name in before if name not in names]
        self._use(self.controller.weights(self.state))
        return events

    def _changed(self, name: str, how: str, rule: str) -> Event:
        warnings.warn(f"teacher '{name}' {how} since the checkpoint was written: {rule}", stacklevel=3)
        return Event(self.last_step, f"teacher {how}", "all skills", name, "resumed with other teachers", rule)


def _picked(values: Tensor, dim: int, before: list[str], now: list[str]) -> Tensor:
    """Values by teacher along `dim`, for the teachers of `now`; zeros for those that are new."""
    padded = torch.cat([values, torch.zeros_like(values.sum(dim, keepdim=True))], dim)
    places = [before.index(name) if name in before else len(before) for name in now]
    return padded.index_select(dim, torch.tensor(places, dtype=torch.long))
