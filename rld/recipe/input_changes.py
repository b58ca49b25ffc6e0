"""What has changed in the inputs of a run that is resumed, and whether the run may go on with it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from rld.recipe.inputs import Inputs
from rld.utils.secrets import without_masked


class Effect(Enum):
    """What a change means for a run that is resumed."""

    ALLOWED = "the run goes on with it, and says so"
    NEEDS_CONSENT = "the numbers that follow are others, so the user has to accept it"
    IMPOSSIBLE = "the run cannot go on with it"


class InputChange(NamedTuple):
    """A change: what was and what is, as the end of a message."""

    text: str
    effect: Effect


_ABSENT = object()

_NO_NUMBERS = {"checkpoint_every", "evaluate_every", "timeout_seconds", "token_variable", "offload"}
"""Keys of stages and teachers on which no weight depends."""

_NO_NUMBERS_PREFIXES = ("logging_", "log_", "report_to", "run_name", "disable_tqdm", "hub_", "push_to_hub", "save_")
"""The first letters of options of trainers on which no weight depends."""

_CONSTANT = ("constant", "constant_with_warmup")
"""Learning-rate schedules that do not depend on the number of updates."""


def input_changes(old: Inputs, new: Inputs, finished: Collection[str], run: Path) -> list[InputChange]:
    """Return what has changed.

    Args:
        old: The inputs that the run had.
        new: Those that it has now.
        finished: The names of its finished stages.
        run: The run's folder.
    """
    return [
        *_recipe_changes(without_masked(old.recipe), without_masked(new.recipe), finished, run),
        *_fingerprint_changes(old, new),
        *_package_changes(old.packages, new.packages),
        *_launch_changes(old.launch, new.launch),
    ]


def _recipe_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], finished: Collection[str], run: Path
) -> Iterator[InputChange]:
    names = [[stage.get("name") for stage in recipe.get("stages", [])] for recipe in (old, new)]
    if names[0] != names[1]:
        listed = " → ".join(", ".join(map(str, stages)) for stages in names)
        fix = f"start a new run, where `models` may name what is done, such as {run / 'student'}"
        yield InputChange(f"stages: {listed}; a run's stages are fixed: {fix}", Effect.IMPOSSIBLE)
        return
    unused = set(old["models"].keys() ^ new["models"].keys())  # who uses one has another name for it
    for keys, before, after in _differences(old, new):
        if (keys[0] == "models" and len(keys) > 1 and keys[1] in unused) or keys[0] == "trainer":
            continue  # a stage's trainer has what it takes of the recipe's
        text = f"{'.'.join(map(str, keys))}: {_shown(before)} → {_shown(after)}"
        if keys[0] != "stages":
            yield InputChange(text, Effect.ALLOWED if keys == ("name",) else Effect.NEEDS_CONSENT)
            continue
        stage = next(stage for stage in new["stages"] if stage["name"] == keys[1])
        is_finished = keys[1] in finished
        if keys[2] in ("steps", "max_flops"):
            yield _length_change(text, keys, before, after, stage=stage, is_finished=is_finished, run=run)
        elif keys[2:] == ("trainer", "warmup_steps") and _has_default_warmup(old, new, keys[1]):
            yield InputChange(f"{text}, which is the default for so many steps", Effect.ALLOWED)
        elif _has_no_numbers(keys[2:]):
            yield InputChange(text, Effect.ALLOWED)
        else:
            note = f" (stage '{keys[1]}' is finished and keeps its result)" if is_finished else ""
            yield InputChange(text + note, Effect.NEEDS_CONSENT)


def _length_change(
    text: str, keys: tuple[Any, ...], before: Any, after: Any, *, stage: Mapping[str, Any], is_finished: bool, run: Path
) -> InputChange:
    """Return a change of the number of updates of a stage, or of its budget of FLOPs."""
    if is_finished:
        reason = f"stage '{keys[1]}' is finished, and its optimizer's state was removed with its checkpoints"
        fix = f"train on in a new run, where `models` names its result, such as {run / 'student'}"
        return InputChange(f"{text}; {reason}: {fix}", Effect.IMPOSSIBLE)
    is_longer = after is None or (before is not None and after > before)
    if keys[2] == "steps":
        schedule = stage["trainer"].get("lr_scheduler_type", "linear")
        if schedule not in _CONSTANT:
            text += f"; the learning rate follows its schedule, {schedule}, over {after} updates from here on"
        if stage["kind"] == "sft":
            text += "; the rows are drawn anew, for all updates"
    return InputChange(text, Effect.ALLOWED if is_longer else Effect.NEEDS_CONSENT)


def _has_default_warmup(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> bool:
    """Tell whether a stage's `warmup_steps` changed because its `steps` did; both recipes leave it to the default."""
    stages = [next(stage for stage in recipe["stages"] if stage["name"] == name) for recipe in (old, new)]
    is_set = any("warmup_steps" in recipe.get("trainer", {}) for recipe in (old, new))
    shorter, longer = sorted(stages, key=lambda stage: int(stage["steps"]))
    few, many = (stage["trainer"].get("warmup_steps") for stage in (shorter, longer))
    return not is_set and few == shorter["steps"] // 2 and many is not None and few <= many <= longer["steps"] // 2


def _has_no_numbers(keys: tuple[Any, ...]) -> bool:
    if keys[0] == "trainer":
        return len(keys) > 1 and str(keys[1]).startswith(_NO_NUMBERS_PREFIXES)
    is_teacher = keys[0] == "teachers" and len(keys) == 3
    return (len(keys) == 1 or is_teacher) and keys[-1] in _NO_NUMBERS


def _differences(old: Any, new: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Yield the keys that lead to each difference, and both values; stages go by their names."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), (*keys, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            key = before["name"] if keys == ("stages",) else index
            yield from _differences(before, after, (*keys, key))
    elif old != new:
        yield keys, old, new


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fingerprint_changes(old: Inputs, new: Inputs) -> Iterator[InputChange]:
    for name, change in _changed(old.files, new.files):
        yield InputChange(f"file {name}: {change}", Effect.NEEDS_CONSENT)
    for model in old.models.keys() & new.models.keys():
        before, after = old.models[model], new.models[model]
        if before is None or after is None:  # not on this machine when the run was started, or not any more
            continue
        names = [f"{name} {change}" for name, change in _changed(before, after)]
        if names:
            yield InputChange(f"model {model}: {', '.join(names)}", Effect.NEEDS_CONSENT)


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
