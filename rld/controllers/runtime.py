"""Between the trainer and a controller: sums become observations, and decisions become tables of weights.

`ControllerRuntime` adds up counts between ticks, shows them to the controller as an `Observation`, and turns the
controller's weights into tensors that the trainer indexes by skill. It holds no model, only sums over all processes;
every process uses the weights that the first one decides. Its state is JSON.

Shapes: S skills, K teachers, G signals in the order of `SIGNALS`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from rld.controllers.base import normalised
from rld.controllers.observation import Controller, GradientStats, Observation, TeacherInfo, Weights
from rld.controllers.runtime_metrics import divergence_metrics, signal_metrics, teacher_metrics, tick_metrics
from rld.controllers.statistics import AttemptCounts, AuditCounts, GateCounts, UpdateStatistics, WindowStatistics
from rld.controllers.weight_events import phase_events, phase_of, switch_events
from rld.errors import ControllerError
from rld.types import SIGNALS, Event, Signal
from rld.utils.flops import SourceFlops

_DELTA_MEMORY = 0.95
"""Share of a skill's running root-mean-square delta that one update keeps."""

_DELTA_RATIO = 4.0
"""Factor within which a skill's root-mean-square delta is kept of that over all skills."""

_MIN_DELTA = 1e-3
"""Root-mean-square delta over all skills, in nats, that is used at least: a divisor must not vanish."""


class ControllerRuntime:
    """Keeps a controller's state, shows it measurements, and turns its weights into tables.

    Attributes:
        weights: The controller's decision in use.
        signals_SG: Weights of the signals, their scale multiplied in.
        teachers_SK: Shares of the teachers; a skill's sum to 1, or all are 0.
        teacher_share_S: Share of the teachers in the softened target of each skill, in (0, 1]; None: none is softened.
        updates: Optimiser steps since the last tick.
        is_recheck: Whether the current rollout is one in which all teachers and signals are measured.
    """

    weights: Weights
    signals_SG: Tensor
    teachers_SK: Tensor
    teacher_share_S: Tensor | None

    def __init__(
        self, controller: Controller, skills: list[str], teachers: Sequence[TeacherInfo], signals: list[Signal]
    ) -> None:
        self.controller = controller
        self.skills, self.teachers, self.signals = skills, list(teachers), signals
        self.state = controller.start(skills, self._names, signals)
        self.ticks, self.updates, self.last_step = 0, 0, 0
        self.is_recheck, self._rechecks = controller.recheck_every > 0, 0
        self._phases = dict.fromkeys(skills, 0)
        self._delta_rms: list[float | None] = [None] * len(skills)
        self._learns_nothing = False
        self._transfer: Mapping[str, float] = {}
        self._flops = self._flops_at_tick = SourceFlops()
        self._window = WindowStatistics.zeros(len(skills), len(self.teachers))
        self._apply(controller.weights(self.state))

    @property
    def _names(self) -> list[str]:
        return [teacher.name for teacher in self.teachers]

    # -- weights -----------------------------------------------------------------------------------------------------

    def _apply(self, weights: Weights) -> None:
        """Use these weights from now on.

        Raises:
            ControllerError: a skill has no weights, or a weight is negative or not finite.
        """
        self._require_numbers(weights)
        self.weights = weights
        scale_G = torch.tensor([weights.scale.get(signal, 1.0) for signal in SIGNALS])
        signals = [[weights.signals[skill].get(signal, 0.0) for signal in SIGNALS] for skill in self.skills]
        self.signals_SG = torch.tensor(signals) * scale_G
        shares = [list(self._teacher_shares(skill).values()) for skill in self.skills]
        self.teachers_SK = torch.tensor(shares).reshape(len(self.skills), len(self.teachers))
        soft = weights.teacher_share
        self.teacher_share_S = torch.tensor([soft.get(skill, 1.0) for skill in self.skills]) if soft else None
        self._phases = {skill: phase_of(weights.signals[skill], before) for skill, before in self._phases.items()}
        learns_nothing = not self.signals_SG.any()
        if learns_nothing and not self._learns_nothing:
            warnings.warn(
                "no signal has any weight on any skill: until one has, the student learns nothing", stacklevel=2
            )
        self._learns_nothing = learns_nothing

    def _require_numbers(self, weights: Weights) -> None:
        name = type(self.controller).__name__
        for skill in self.skills:
            if skill not in weights.signals or skill not in weights.teachers:
                raise ControllerError(f"{name} gave no weights for skill {skill!r}")
        per_skill = [*weights.signals.values(), *weights.teachers.values()]
        numbers = [
            *weights.scale.values(),
            *weights.teacher_share.values(),
            *weights.gold_share.values(),
            *(w for of_skill in per_skill for w in of_skill.values()),
        ]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ControllerError(
                f"{name} gave a weight that is negative or not a number: {weights}; weights are finite, and at least 0"
            )

    def _teacher_shares(self, skill: str) -> dict[str, float]:
        weights = self.weights.teachers[skill]
        return normalised({t.name: weights.get(t.name, 0.0) * t.teaches(skill) for t in self.teachers})

    def use_state(self, state: dict[str, Any]) -> None:
        """Use another state of the controller, the first process's on every process, as before the first update."""
        (self.state,) = broadcast_object_list([state])
        self._apply(self.controller.weights(self.state))

    def set_teachers(self, teachers: Sequence[TeacherInfo]) -> None:
        """Use other descriptions of the same teachers, after what one teaches has changed."""
        self.teachers = list(teachers)
        self._apply(self.weights)

    # -- questions of the trainer ------------------------------------------------------------------------------------

    @property
    def teaches_SK(self) -> Tensor:
        """Which teachers teach which skills, `[S, K]` bool, whatever their weight."""
        teaches = [[t.teaches(skill) for t in self.teachers] for skill in self.skills]
        return torch.tensor(teaches, dtype=torch.bool).reshape(self.teachers_SK.shape)

    def preferred_teachers(self, skill: str) -> list[int]:
        """Return the numbers of the teachers that teach a skill: by weight, then by the share of correct probes."""
        weights = self.teachers_SK[self.skills.index(skill)].tolist()
        numbers = [k for k, teacher in enumerate(self.teachers) if teacher.teaches(skill)]
        return sorted(numbers, key=lambda k: (-weights[k], -self.teachers[k].probed_accuracy(skill), k))

    @property
    def measures_gradients(self) -> bool:
        """Whether the update in progress is the last one before a tick, on which gradients are measured."""
        return self.updates + 1 >= self.controller.decide_every

    def is_active(self, signal: Signal) -> bool:
        """Whether the next rollout needs a signal: it takes part, and has weight on some skill or it is a recheck."""
        if signal not in self.signals:
            return False
        return self.is_recheck or bool((self.signals_SG[:, SIGNALS.index(signal)] > 0).any())

    def teachers_needed(self, teacher_reward: float, shares_SK: Tensor) -> Tensor:
        """Which teachers a rollout needs per skill, `[S, K]` bool: those with a share; at a recheck all that teach.

        Args:
            teacher_reward: Weight of the teacher-scored reward; above 0 the policy needs teachers too.
            shares_SK: The teachers' shares.
        """
        if self.is_recheck:
            return self.teaches_SK
        policy_S, response_S, feature_S = self.signals_SG.unbind(1)
        needed_S = (response_S > 0) | (feature_S > 0) | ((policy_S > 0) & (teacher_reward > 0))
        return (shares_SK > 0) & needed_S[:, None]

    def delta_rms_S(self) -> Tensor:
        """Running root-mean-square delta of the teacher-scored reward per skill, in nats; 1 until one was measured.

        A skill's is kept within a factor of 4 of that over all skills, so that one on which teacher and student agree
        is not scaled up to the size of the others (DN-MOPD, arXiv 2609.35347).
        """
        measured = [rms for rms in self._delta_rms if rms is not None]
        if not measured:
            return torch.ones(len(self._delta_rms))
        overall = max(math.sqrt(sum(rms**2 for rms in measured) / len(measured)), _MIN_DELTA)
        rms_S = torch.tensor([overall if rms is None else rms for rms in self._delta_rms])
        return rms_S.clamp(overall / _DELTA_RATIO, overall * _DELTA_RATIO)

    # -- measurements ------------------------------------------------------------------------------------------------

    def add_attempt_counts(self, counts: AttemptCounts) -> None:
        """Add the counts of a new rollout, over all processes."""
        interval = self.controller.recheck_every
        self.is_recheck = interval > 0 and self.ticks >= self._rechecks * interval
        if self.is_recheck:
            self._rechecks = self.ticks // interval + 1
        self._window.attempts += counts.cpu()

    def add_audit_counts(self, counts: AuditCounts) -> None:
        """Add what the audit of a rollout counted, over all processes."""
        self._window.audit += counts.cpu()

    def add_gate_counts(self, counts: GateCounts) -> None:
        """Add what the gate counted in a rollout, over all processes."""
        self._window.gate += counts.cpu()

    def add_label_counts(self, attempts: AttemptCounts, gate: GateCounts) -> None:
        """Add how often the student and its teachers predicted gold labels in an update, over all processes."""
        self._window.attempts += attempts.cpu()
        self._window.gate += gate.cpu()

    def set_transfer(self, cosines: Mapping[str, float]) -> None:
        """Show these cosines of each skill's gradient with the target's at the next tick, the same on every process."""
        self._transfer = cosines

    def set_flops(self, flops: SourceFlops) -> None:
        """Show what was added to these operations of the stage at the next tick, the same on every process."""
        self._flops = flops

    def finish_update(
        self,
        statistics: UpdateStatistics,
        step: int,
        progress: float = 0.0,
        gradients: Mapping[str, GradientStats] | None = None,
    ) -> tuple[dict[str, float], list[Event]]:
        """Take in the measurements of one optimiser step; at the end of a window, tick.

        Args:
            statistics: Over all processes.
            step: The optimiser step, from 1.
            progress: How much of the stage is done, from 0 to 1.
            gradients: By skill, from the update before a tick, if the controller requires them.

        Returns:
            The step's metrics under the names of `metrics.jsonl`, and the events of a tick.
        """
        statistics = statistics.cpu()
        self._window.updates += statistics
        self._update_delta_rms(statistics)
        metrics = signal_metrics(self.weights, self.skills, list(self._phases.values()))
        metrics |= teacher_metrics(self.teachers_SK, self.skills, self._names)
        metrics |= divergence_metrics(statistics, self.teachers_SK, self._names)
        self.updates, self.last_step = self.updates + 1, step
        if self.updates < self.controller.decide_every:
            return metrics, []
        observation = self._observation(step, progress, gradients or {})
        return metrics | tick_metrics(observation), self._tick(observation)

    def _update_delta_rms(self, statistics: UpdateStatistics) -> None:
        sums = zip(statistics.delta_squares_S.tolist(), statistics.delta_tokens_S.tolist(), strict=True)
        for s, (squares, tokens) in enumerate(sums):
            if tokens:
                now, before = math.sqrt(squares / tokens), self._delta_rms[s]
                self._delta_rms[s] = now if before is None else _DELTA_MEMORY * before + (1 - _DELTA_MEMORY) * now

    def _observation(self, step: int, progress: float, gradients: Mapping[str, GradientStats]) -> Observation:
        return Observation(
            step=step,
            skills={
                skill: replace(
                    self._window.skill_observation(s, skill, self.teachers, gradients.get(skill)),
                    transfer=self._transfer.get(skill),
                )
                for s, skill in enumerate(self.skills)
            },
            gradients=self._window.gradient_norms(),
            progress=progress,
            flops=SourceFlops(*(now - before for now, before in zip(self._flops, self._flops_at_tick, strict=True))),
        )

    def _tick(self, observation: Observation) -> list[Event]:
        """Let the controller of the first process decide, and use its weights on every process."""
        events: list[Event]
        self.state, weights, events = broadcast_object_list([*self.controller.step(self.state, observation)])
        self.ticks, self.updates, self._flops_at_tick = self.ticks + 1, 0, self._flops
        self._window = WindowStatistics.zeros(len(self.skills), len(self.teachers))
        old_weights, old_phases = self.weights, self._phases
        self._apply(weights)
        return [
            *events,
            *switch_events(observation.step, old_weights, weights, events),
            *phase_events(observation.step, weights, old_phases, self._phases),
        ]

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "teachers": self._names,
            "skills": self.skills,
            "signals": list(self.signals),
            "controller": self.controller.kind,
            "state": self.state,
            "ticks": self.ticks,
            "updates": self.updates,
            "step": self.last_step,
            "rechecks": self._rechecks,
            "phases": self._phases,
            "delta_rms": self._delta_rms,
            "flops_at_tick": self._flops_at_tick,
            "window": self._window.to_json(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> list[Event]:
        """Continue from a saved state, with the teachers of this run.

        Returns:
            An event for each teacher that joined since the state was saved, and for each that left.

        Raises:
            ControllerError: it was saved with other skills or signals, another controller, or by another rld.
        """
        self._require_same_run(saved)
        self.state, self.ticks, self.updates = saved["state"], saved["ticks"], saved["updates"]
        self.last_step, self._rechecks = saved["step"], saved["rechecks"]
        self._phases, self._delta_rms = dict(saved["phases"]), list(saved["delta_rms"])
        self._flops = self._flops_at_tick = SourceFlops(*saved["flops_at_tick"])
        before, now = saved["teachers"], self._names
        self._window = WindowStatistics.from_json(saved["window"]).for_teachers(before, now)
        events = []
        if before != now:
            self.state = self.controller.resume(self.state, now)
            events = [self._changed(name, "joined", "it starts from the prior") for name in now if name not in before]
            events += [self._changed(name, "left", "its counts were dropped") for name in before if name not in now]
        self._apply(self.controller.weights(self.state))
        return events

    def _require_same_run(self, saved: dict[str, Any]) -> None:
        current = self.state_dict()
        for key in ("skills", "signals", "controller"):
            if saved[key] != current[key]:
                raise ControllerError(
                    f"the checkpoint was written with {key} {saved[key]}, this run has {current[key]}; "
                    "resume with the same, or start anew"
                )
        changed = sorted(saved["state"].keys() ^ current["state"].keys())
        if changed:
            raise ControllerError(
                f"the checkpoint's controller and that of this run do not both have {', '.join(changed)}: target, "
                "capacity or signals.gold was added or left out; resume with the same, or start anew"
            )
        saved_version, version = saved["state"].get("version"), self.state.get("version")
        if saved_version != version:
            raise ControllerError(
                f"the checkpoint has version {saved_version} of the state of controller {self.controller.kind!r}, "
                f"this rld reads version {version}; resume with the rld that wrote it, or start anew"
            )

    def _changed(self, name: str, how: str, rule: str) -> Event:
        warnings.warn(f"teacher '{name}' {how} since the checkpoint was written: {rule}", stacklevel=3)
        return Event(
            self.last_step, f"teacher {how}", "all skills", name, "the run was resumed with other teachers", rule
        )
