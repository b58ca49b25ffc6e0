"""The default controller: weights follow the gap that each signal can still close, per skill."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rld.controllers.base import PRIOR, BaseController, Share, State, clip, normalised, running
from rld.controllers.beta_posterior import has_changed, mean, moments, since, updated
from rld.controllers.observation import Observation, RequiredMeasurements, SkillObservation, TeacherObservation, Weights
from rld.types import Event, Signal

_TINY = 0.01
"""Odds that what is on keeps, however little it is worth."""

_RETURN = 0.05
"""Weight, at least, with which something comes back."""

_TICKS_ON = 2
"""Ticks above `on` that switch something on."""

_UNAUDITED = (2.0, 0.2)
"""What is believed of a reward before any of its payments were checked: a Beta prior of the share that is right."""

_SURE, _LASTING = (2.0, 0.0), 0.98
"""What is believed of a teacher's sampled answers where its greedy ones are right, before any was seen: a Beta prior of
the share that is right too; and what a tick keeps of what was."""

_HALF_RIGHT, _RIGHT = 0.5, 0.9
"""A reward is trusted where at least the latter share of what it paid is right, and not at all below the former."""

_ALARM, _CALM = 0.25, 0.5
"""Trust below which a reward is reported, and above which it is taken to be mended."""

_STALE = 20
"""Ticks without any news of a skill after which it starts anew."""

_FLOOR = 0.2
"""Share of the prompts that all skills get alike."""

_PACE = 0.3
"""Share of the way to the skills' new shares that a tick takes."""

_WATCHED, _RECENT, _RISE, _PATIENT = 20, 10, 0.05, 0.25
"""A skill that has had prompts for so many ticks, and whose success moved by less than `_RISE` and its standard error
in the most recent ones, is worth practising in proportion to that movement, but not less than `_PATIENT`."""


class GapController(BaseController):
    """Weights follow the gap that each signal can still close, per skill.

    - `policy` is worth the measured share of groups whose completions got different rewards: where all succeed or
      all fail, reinforcement has no gradient.
    - A teacher that teaches only where it is right is worth how much more often than the student it is right on those
      prompts when both sample, up to `headroom`. One that teaches everywhere is worth its lead: the chance that it is
      better than the student times how far, up to `headroom`. Teachers share their signal in proportion to worth times
      the square of competence. Competences are Beta posteriors of verified successes, with forgetting. Teachers that
      were never measured are all worth how far the student still is from the furthest of them, up to `kappa` nats.
    - `response` is worth its best teacher; `feature` the same, fading as the outputs align.

    Each tick takes a capped mirror step towards weights in proportion to `prior * worth`, and switches a signal or
    teacher off after `patience` ticks below `off`, on again after two ticks above `on`. `policy` is off only while an
    audit shows that its reward can't be trusted: the worth of `policy`, and what counts as the student's success,
    shrink with the share of audited payments that are right. Prompts go to the skills in proportion to the most that
    any of their signals is worth, times what the student still fails.
    """

    kind: Literal["gap"] = "gap"
    by_gate: bool = True
    """Whether what the gate sees of teachers counts. False: only what was probed before the stage."""
    ratio: Share | None = None
    """Hold the policy's weight here, and share the rest by `prior`, instead of following worth. Teachers still move."""
    switch: bool = True
    """Whether signals and teachers of little worth are switched off. False: they keep a small weight."""
    allocate: bool = True
    """Whether prompts go where they are worth most, if the curriculum lets them. False: the curriculum's own shares."""
    forget: float = Field(0.9, gt=0, lt=1)
    """Per tick, the share of the student's counts that is kept."""
    headroom: float = Field(0.2, gt=0)
    """A lead, or a share of failures, of this much is worth 1."""
    margin: float = Field(0.02, ge=0)
    """A teacher must lead by more than this."""
    cover: float = Field(0.1, ge=0, lt=1)
    """A teacher that is right on less than twice this share of a skill's prompts is worth less there, by the cube."""
    kappa: float = Field(0.05, gt=0)
    """A divergence of this many nats per token is worth 1."""
    prior: dict[Signal, Annotated[float, Field(gt=0)]] = {}
    """How much a signal of worth 1 counts, relative to the others. Not named: 0.1 for `feature`, 1 for the others."""
    rate: float = Field(0.5, gt=0, le=1)
    """Share of the way to the target, in log space, that a tick takes."""
    cap: float = Field(0.7, gt=0)
    """The most that a tick changes the log of a weight by, before normalisation."""
    off: float = Field(0.05, ge=0)
    """Below this worth a signal or teacher is on its way out."""
    on: float = 0.15
    """Above this worth it is on its way back; higher than `off`, so that it does not flap."""
    patience: int = Field(3, gt=0)

    @property
    def required_measurements(self) -> RequiredMeasurements:
        return RequiredMeasurements(resampled_answers=self.by_gate)

    @model_validator(mode="after")
    def _on_is_above_off(self) -> GapController:
        if self.on <= self.off:
            raise ValueError(f"on ({self.on}) should be above off ({self.off})")
        return self

    # -- state -------------------------------------------------------------------------------------------------------

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        state = super().start(skills, teachers, signals)
        return state | {
            "skills": {skill: self._fresh(teachers, signals) for skill in skills},
            "allocation": normalised(dict.fromkeys(skills, 1.0)),
        }

    def _fresh(self, teachers: list[str], signals: list[Signal]) -> State:
        """A skill of which nothing is known."""
        prior = PRIOR | self.prior
        shares = normalised({signal: prior[signal] for signal in signals})
        if self.ratio is not None and "policy" in shares and len(shares) > 1:
            rest = normalised({signal: share for signal, share in shares.items() if signal != "policy"})
            shares = {"policy": self.ratio} | {signal: (1 - self.ratio) * share for signal, share in rest.items()}
        return {
            "student": [1.0, 1.0],
            "paid": list(_UNAUDITED),
            "since": since(list(_UNAUDITED)),
            "alarm": False,
            "informative": None,
            "gate": {},
            "apart": {},
            "stale": 0,
            "trace": [],
            "worth": 1.0,
            "signals": _table(shares),
            "teachers": _table(normalised(dict.fromkeys(teachers, 1.0))),
        }

    def _anew(self, entry: State, teachers: list[str], signals: list[Signal]) -> State:
        """A skill that has had no prompts for long. What is known of its reward does not go stale as a student does."""
        kept = {what: entry[what] for what in ("paid", "since", "alarm")}
        fresh = self._fresh(teachers, signals) | kept | {"stale": _STALE}
        if entry["alarm"] and "policy" in signals:
            fresh["signals"]["policy"] = entry["signals"]["policy"]
            _normalise(fresh["signals"])
        return fresh

    def resume(self, state: State, teachers: list[str]) -> State:
        state = super().resume(state, teachers)
        skills = {}
        for skill, entry in state["skills"].items():
            table = _table(normalised(dict.fromkeys(teachers, 1.0)))
            table |= {name: dict(kept) for name, kept in entry["teachers"].items() if name in table}
            _normalise(table)
            seen = {what: {name: v for name, v in entry[what].items() if name in table} for what in ("gate", "apart")}
            skills[skill] = {**entry, **seen, "teachers": table}
        return {**state, "skills": skills}

    def weights(self, state: State) -> Weights:
        return Weights(
            signals={skill: _shares(entry["signals"]) for skill, entry in state["skills"].items()},
            teachers={skill: _shares(entry["teachers"]) for skill, entry in state["skills"].items()},
            scale=self._scale(state),
            allocation=state["allocation"] if self.allocate else None,
        )

    # -- one tick ----------------------------------------------------------------------------------------------------

    def step(self, state: State, seen: Observation) -> tuple[State, Weights, list[Event]]:
        state = self._counted(state, seen)
        events: list[Event] = []
        for skill in sorted(state["skills"]):
            entry, news = state["skills"][skill], seen.skills.get(skill, SkillObservation())
            if news.attempts or news.groups:
                entry["stale"] = 0
                events += self._learn(entry, news, skill, seen.step, state["tick"])
                continue
            entry["stale"] += 1
            if entry["stale"] == _STALE and entry["trace"]:
                state["skills"][skill] = self._anew(entry, state["teachers"], state["signals"])
                measured = f"no prompt of it for {_STALE} ticks"
                events.append(Event(seen.step, "skill forgotten", skill, "all", measured, "back to the prior"))
        self._allocate(state)
        return state, self.weights(state), events

    def _learn(self, entry: State, news: SkillObservation, skill: str, step: int, tick: int) -> list[Event]:
        """Take in what was seen of a skill, in place, and move its weights."""
        events = self._audit(entry, news, skill, step)
        genuine = mean(entry["paid"])
        trust = 0.0 if entry["alarm"] else _trust(genuine)
        credible = min(genuine / _RIGHT, 1.0)
        entry["student"] = updated(entry["student"], credible * news.successes, news.attempts, self.forget)
        if news.attempts:
            entry["trace"] = [*entry["trace"], list(moments(entry["student"]))][-_WATCHED:]
        if news.groups:
            entry["informative"] = running(entry["informative"], news.informative_groups / news.groups, 0.5)
        teachers = {name: news.teachers.get(name) for name in entry["teachers"]}
        if self.by_gate and news.attempts:
            self._watch_the_gate(entry["gate"], teachers, credible, tick)
        # A teacher that is off says nothing until the next heartbeat: what it said last holds.
        for name, told in teachers.items():
            if told is not None and told.divergence is not None and math.isfinite(told.divergence):
                entry["apart"][name] = told.divergence
        leads, odds = self._leads(entry, teachers)
        heard = [nats for name, nats in entry["apart"].items() if entry["teachers"][name]["on"]]
        fade = clip(max(heard) / self.kappa, 0, 1) if heard else 1.0
        best = max(leads.values(), default=0.0)
        worth = {"policy": (entry["informative"] or 0.0) * trust, "response": best, "feature": best * fade}
        entry["worth"] = max(worth[signal] for signal in entry["signals"])
        measured = f"student {mean(entry['student']):.2f}, informative {worth['policy']:.2f}, best lead {best:.2f}"
        asked = {
            name: f", right {mean(gate['right']):.2f}, sampled {mean(gate['sure']):.2f} of that"
            for name, gate in entry["gate"].items()
        }
        moves: list[tuple[str, dict[str, float], dict[Any, float], str]] = [("teacher", leads, odds, "")]
        if self.ratio is None:
            moves.append(("signal", worth, PRIOR | self.prior, "" if entry["alarm"] else "policy"))
        return events + [
            Event(
                step,
                f"{what} {turned}",
                skill,
                name,
                f"{measured}, its worth {values[name]:.2f}{asked.get(name, '')}",
                rule,
            )
            for what, values, prior, never in moves
            for name, turned, rule in self._mirror(entry[f"{what}s"], values, prior, never)
        ]

    def _audit(self, entry: State, news: SkillObservation, skill: str, step: int) -> list[Event]:
        """Count in, in place, how much of what was paid is right; returns the alarm, or its end."""
        if not news.audited:
            return []
        changed = has_changed(entry["since"], news.audit_passed, news.audited)
        paid = list(_UNAUDITED) if changed else entry["paid"]
        entry["paid"] = updated(paid, news.audit_passed, news.audited, self.forget, _UNAUDITED)
        if not entry["since"]["asked"]:
            entry["since"]["known"] = entry["paid"]
        genuine = mean(entry["paid"])
        trust = _trust(genuine)
        measured = f"{news.audit_passed} of {news.audited} audited successes are right, in the long run {genuine:.2f}"
        if not entry["alarm"] and trust < _ALARM:
            entry["alarm"] = True
            return [Event(step, "audit alarm", skill, "policy", measured, f"trust below {_ALARM:g}")]
        if entry["alarm"] and trust > _CALM:
            entry["alarm"] = False
            return [Event(step, "audit calm", skill, "policy", measured, f"trust above {_CALM:g}")]
        return []

    def _watch_the_gate(
        self, gate: State, teachers: Mapping[str, TeacherObservation | None], credible: float, tick: int
    ) -> None:
        """Count in how often each teacher was right when asked, and how the student does on those prompts."""
        for name, seen in teachers.items():
            # Where the verifier has no say all answers pass, and nobody's attempts count: that shows nothing.
            if seen is None or not seen.prompts or (seen.correct and not seen.attempts):
                continue
            probed = [1.0 + seen.probe_correct, 1.0 + seen.probe_size - seen.probe_correct]
            start = {"right": probed, "student": [1.0, 1.0], "since": since(probed), "sure": list(_SURE)}
            entry = gate.setdefault(name, start | {"tick": tick - 1})
            known = entry["right"]
            if has_changed(entry["since"], seen.correct, seen.prompts):
                known, entry["sure"] = [1.0, 1.0], list(_SURE)
            entry["sure"] = updated(entry["sure"], seen.resampled_correct, seen.resampled, _LASTING, _SURE)
            # One that was off is seen again after many ticks. What it was then counts less, but it is still the best
            # guess: with the prior in its place, one that was never right would be back after each look.
            faded, entry["tick"] = self.forget ** (tick - entry["tick"] - 1), tick
            known, student = ([faded * x for x in beta] for beta in (known, entry["student"]))
            entry["right"] = updated(known, seen.correct, seen.prompts, self.forget)
            if not entry["since"]["asked"]:
                entry["since"]["known"] = entry["right"]
            entry["student"] = updated(student, credible * seen.successes, seen.attempts, self.forget)

    def _leads(
        self, entry: State, teachers: Mapping[str, TeacherObservation | None]
    ) -> tuple[dict[str, float], dict[Any, float]]:
        """Worth in [0, 1] of each teacher on a skill, and the odds at which teachers of the same worth share."""
        p, p_var = moments(entry["student"])
        teaching = {name: seen for name, seen in teachers.items() if seen is not None and seen.teaches}
        posterior = {}
        for name, seen in teaching.items():
            if name in entry["gate"]:
                posterior[name] = moments(entry["gate"][name]["right"])
            elif seen.probe_size and entry["trace"]:  # a lead is over a student that was seen
                posterior[name] = moments([1.0 + seen.probe_correct, 1.0 + seen.probe_size - seen.probe_correct])
        # Of teachers that nobody has verified none can be preferred: least of all the one that disagrees most.
        apart = [entry["apart"][name] for name in teaching if name not in posterior and name in entry["apart"]]
        trusted = clip(max(apart) / self.kappa, 0, 1) if apart else 1.0
        worth = dict.fromkeys(teachers, 0.0)
        for name in teaching:
            if name not in posterior:
                worth[name] = trusted
                continue
            c, c_var = posterior[name]
            if name in entry["gate"]:
                lead = mean(entry["gate"][name]["sure"]) - mean(entry["gate"][name]["student"])
                # A ramp, and no threshold: measured competence wavers, and weights should not.
                known = min(c / (2 * self.cover), 1.0) if self.cover else 1.0
                worth[name] = clip(lead / self.headroom, 0, 1) * known**3
            else:
                chance = 0.5 * math.erfc(-(c - p - self.margin) / math.sqrt(2 * (p_var + c_var)))
                worth[name] = chance * clip((c - p) / self.headroom, 0, 1)
        # Squared, so that a weak teacher does not dilute a strong one while the student is weaker than both.
        best = max((c for c, _ in posterior.values()), default=1.0)
        return worth, {name: (posterior[name][0] / best) ** 2 for name in posterior}

    def _mirror(
        self, table: State, worth: Mapping[str, float], prior: Mapping[Any, float], never_off: str
    ) -> list[tuple[str, str, str]]:
        """One capped mirror step on `table` in place; returns what was turned on or off, and by which rule."""
        turned = []
        for name, entry in table.items() if self.switch else ():
            value = worth[name]
            entry["ticks"] = entry["ticks"] + 1 if (value < self.off if entry["on"] else value > self.on) else 0
            if entry["on"] and entry["ticks"] >= self.patience and name != never_off:
                entry.update(on=False, ticks=0)
                turned.append((name, "off", f"worth below {self.off:g} for {self.patience} ticks"))
            elif not entry["on"] and (entry["ticks"] >= _TICKS_ON or name == never_off):
                entry.update(on=True, ticks=0, log=max(entry["log"], math.log(_RETURN)))
                rule = "never off" if name == never_off else f"worth above {self.on:g} for {_TICKS_ON} ticks"
                turned.append((name, "on", rule))
        active = [name for name in table if table[name]["on"]]
        raw = normalised({name: prior.get(name, 1.0) * clip(worth[name], 0, 1) + _TINY for name in active})
        for name in active:
            pull = self.rate * (math.log(raw[name]) - table[name]["log"])
            table[name]["log"] += clip(pull, -self.cap, self.cap)
        _normalise(table)
        return turned

    def _allocate(self, state: State) -> None:
        """Move the skills' shares of the prompts towards what they are worth; one that is never asked has no claim."""
        worth = {
            skill: entry["worth"] * _to_gain(entry) if entry["stale"] < _STALE else 0.0
            for skill, entry in state["skills"].items()
        }
        targets = normalised(worth) if sum(worth.values()) else normalised(dict.fromkeys(worth, 1.0))
        for skill, share in state["allocation"].items():
            target = (1 - _FLOOR) * targets[skill] + _FLOOR / len(targets)
            state["allocation"][skill] = share + _PACE * (target - share)


def _to_gain(entry: State) -> float:
    """What a skill's prompts can still gain, in [0, 1]: what is wrong, less of it where the skill stands still."""
    wrong, trace = 1 - mean(entry["student"]), entry["trace"]
    if len(trace) < _WATCHED:
        return wrong
    (before, doubt), (now, doubt_now) = trace[-1 - _RECENT], trace[-1]
    moved = abs(now - before) - math.sqrt(doubt + doubt_now)
    return wrong * clip(_PATIENT + moved / _RISE, _PATIENT, 1.0)


def _table(shares: Mapping[str, float]) -> State:
    return {name: {"log": math.log(w) if w else 0.0, "on": w > 0, "ticks": 0} for name, w in shares.items()}


def _normalise(table: State) -> None:
    """Make the weights of what is on sum to 1, in place."""
    active = [entry for entry in table.values() if entry["on"]]
    total = math.log(sum(math.exp(entry["log"]) for entry in active)) if active else 0.0
    for entry in active:
        entry["log"] -= total


def _shares(table: State) -> dict[str, float]:
    return normalised({name: math.exp(entry["log"]) if entry["on"] else 0.0 for name, entry in table.items()})


def _trust(genuine: float) -> float:
    """How far a reward is trusted of whose payments a share `genuine` is right, in [0, 1]."""
    return clip((genuine - _HALF_RIGHT) / (_RIGHT - _HALF_RIGHT), 0, 1)
