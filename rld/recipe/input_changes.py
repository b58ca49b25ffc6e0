"""What has changed in the inputs of a run that is resumed, and whether the run may go on with it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

from rld.recipe.inputs import Inputs
from rld.recipe.stage_inputs import Keys, by_stage_name
from rld.recipe.stopping import BUDGETS
from rld.utils.secrets import without_masked


class Effect(Enum):
    """What a change means for a run that is resumed."""

    ALLOWED = "the run goes on with it, and says so; finished stages that depend on it run again"
    NEEDS_CONSENT = "what has been trained so far is of other numbers, so the user has to accept it"


class InputChange(NamedTuple):
    """A change: what was and what is, as the end of a message; and the stages whose result depends on it."""

    text: str
    effect: Effect
    stages: frozenset[str] = frozenset()


ABSENT = object()
"""Stands for a value that one of two recipes does not have."""

_CONSTANT = ("constant", "constant_with_warmup")
"""Learning-rate schedules that do not depend on the number of updates."""


def input_changes(old: Inputs, new: Inputs, started: Collection[str]) -> list[InputChange]:
    """Return what has changed.

    Args:
        old: The inputs that the run had.
        new: Those that it has now.
        started: The names of its stages that have a checkpoint and are not finished.
    """
    changes = [
        *_recipe_changes(old, new, started),
        *_seed_changes(old, new, started),
        *_fingerprint_changes(old, new, started),
    ]
    changed_stages = {stage for change in changes if change.effect is Effect.NEEDS_CONSENT for stage in change.stages}
    return [
        *changes,
        *_earlier_stages(old, new, [stage for stage in started if stage not in changed_stages]),
        *_package_changes(old.packages, new.packages),
        *_launch_changes(old.launch, new.launch),
    ]


def _change(text: str, stages: Collection[str], started: Collection[str]) -> InputChange:
    """Return a change on which the results of `stages` depend; only of a stage that has started it is serious."""
    effect = Effect.NEEDS_CONSENT if set(stages) & set(started) else Effect.ALLOWED
    return InputChange(text, effect, frozenset(stages))


def _recipe_changes(old: Inputs, new: Inputs, started: Collection[str]) -> Iterator[InputChange]:
    before, after = (by_stage_name(without_masked(inputs.recipe)) for inputs in (old, new))
    unused = set(before["models"].keys() ^ after["models"].keys())  # who uses one has another name for it
    for keys, was, now in differences(before, after):
        if (keys[0] == "models" and len(keys) > 1 and keys[1] in unused) or keys[0] == "trainer":
            continue  # a stage's trainer has what it takes of the recipe's
        if keys[0] == "stages" and len(keys) == 2:
            how = "is new" if was is ABSENT else "is gone"
            yield _change(f"stage '{keys[1]}' {how}", [keys[1]], started)
            continue
        text = f"{'.'.join(map(str, keys))}: {value_text(was)} → {value_text(now)}"
        stages = [name for inputs in (old, new) for name, needs in inputs.stages.items() if needs.depends_on(keys)]
        if keys[0] != "stages" or keys[1] not in started:
            yield _change(text, stages, started)
        elif keys[2] == "steps" or (keys[2] == "stop" and keys[-1] in BUDGETS):
            yield _length_change(text, keys, was, now, stage=after["stages"][keys[1]])
        elif keys[2:] == ("trainer", "warmup_steps") and _has_default_warmup(before, after, keys[1]):
            note = ", which is the default for so many steps"
            yield InputChange(text + note, Effect.ALLOWED, frozenset(stages))
        else:
            yield _change(text, stages, started)


def _length_change(text: str, keys: Keys, before: Any, after: Any, *, stage: Mapping[str, Any]) -> InputChange:
    """Return a change of the number of updates of a stage that has started, or of its budget."""
    is_longer = after is None or (before is not None and after > before)
    schedule = stage["trainer"].get("lr_scheduler_type", "linear")
    if schedule not in _CONSTANT:
        length = f"over {after} updates" if keys[2] == "steps" else "by the new budget"
        text += f"; the learning rate follows its schedule, {schedule}, {length} from here on"
    if keys[2] == "steps" and stage["kind"] == "sft":
        text += "; the rows are drawn anew, for all updates"
    return InputChange(text, Effect.ALLOWED if is_longer else Effect.NEEDS_CONSENT, frozenset([keys[1]]))


def _seed_changes(old: Inputs, new: Inputs, started: Collection[str]) -> Iterator[InputChange]:
    """Yield the stages that have another seed because other stages train before them."""
    if old.recipe["seed"] != new.recipe["seed"]:
        return
    for name in old.stages.keys() & new.stages.keys():
        if old.stages[name].seed != new.stages[name].seed:
            text = f"stage '{name}' has another seed, because another number of stages train before it"
            yield _change(text, [name], started)


def _earlier_stages(old: Inputs, new: Inputs, started: Collection[str]) -> Iterator[InputChange]:
    """Yield the stages that have started from the result of a stage that is to run again."""
    for name in started:
        for earlier in new.stages[name].stages:
            if earlier in old.stages and old.fingerprint(earlier) != new.fingerprint(earlier):
                yield _change(f"stage '{name}' has started, and depends on stage '{earlier}'", [name], started)


def _has_default_warmup(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> bool:
    """Tell whether a stage's `warmup_steps` changed because its `steps` did; both recipes leave it to the default."""
    stages = [recipe["stages"][name] for recipe in (old, new)]
    is_set = any("warmup_steps" in recipe.get("trainer", {}) for recipe in (old, new))
    shorter, longer = sorted(stages, key=lambda stage: int(stage["steps"]))
    short_warmup, long_warmup = (stage["trainer"].get("warmup_steps") for stage in (shorter, longer))
    return (
        not is_set
        and short_warmup == shorter["steps"] // 2
        and long_warmup is not None
        and short_warmup <= long_warmup <= longer["steps"] // 2
    )


def differences(old: Any, new: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Yield the keys that lead to each difference, and both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key, ABSENT), new.get(key, ABSENT), (*keys, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, (*keys, index))
    elif old != new:
        yield keys, old, new


def value_text(value: Any) -> str:
    """Return a value of a recipe as a short text."""
    if value is ABSENT:
        return "absent"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fingerprint_changes(old: Inputs, new: Inputs, started: Collection[str]) -> Iterator[InputChange]:
    needs = [*old.stages.items(), *new.stages.items()]
    for name, change in _changed(old.files, new.files):
        yield _change(f"file {name}: {change}", [stage for stage, need in needs if name in need.files], started)
    for model in old.models.keys() & new.models.keys():
        before, after = old.models[model], new.models[model]
        if before is None or after is None:  # not on this machine when the run was started, or not any more
            continue
        names = [f"{name} {change}" for name, change in _changed(before, after)]
        if names:
            stages = [stage for stage, need in needs if model in need.models]
            yield _change(f"model {model}: {', '.join(names)}", stages, started)


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in [*old, *(name for name in new if name not in old)]:
        if name == "revision" and old.get(name) != new.get(name):
            yield name, f"{old.get(name)} → {new.get(name)}"
        elif name not in old or name not in new:
            yield name, "is new" if name not in old else "is gone"
        elif old[name] != new[name]:
            yield name, "has changed"


def _package_changes(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[InputChange]:
    for name in old:
        before, after = old[name], new.get(name, "not installed")
        if before != after:
            is_patch = before.split(".")[:2] == after.split(".")[:2]
            yield InputChange(
                f"package {name}: {before} → {after}", Effect.ALLOWED if is_patch else Effect.NEEDS_CONSENT
            )


def _launch_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[InputChange]:
    for name in old.keys() & new.keys():
        if old[name] != new[name]:
            effect = Effect.ALLOWED if name == "device" else Effect.NEEDS_CONSENT
            yield InputChange(f"{name}: {old[name]} → {new[name]}", effect)
