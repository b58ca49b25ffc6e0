"""Write a `cascade` of a recipe out as ordinary stages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from pydantic import Field, ValidationError

from rld.utils.options import FrozenOptions
from rld.utils.suggestions import hint

_Keys: TypeAlias = tuple[Any, ...]
"""The keys and indices that lead from the top of a recipe to a value."""

_TEACHER_KEYS = {"distill": "teachers", "sft": "teacher"}
"""The kinds of stages of a cascade, and the option by which each has its teacher."""


class Cascade(FrozenOptions):
    """Stands among the `stages` as `cascade: {...}`: each model is trained by the one before it, the largest first.

    It is written out as ordinary stages, each called `STUDENT_from_TEACHER`, which the resolved recipe shows, and which
    the command line and other stages name.
    """

    models: list[str] = Field(min_length=2)
    """Names in `models`, the first one may be an earlier stage. The first teaches the second, the model of that stage
    the third, and so on."""
    stage: dict[str, Any]
    """Options of each of its stages: `kind`, and those of [`distill`](#distill) or [`sft`](#sft), without name, student
    and teachers."""
    teacher: dict[str, Any] = {}
    """Options of each [teacher](#teacherspec) without its `model`, for `distill`."""


class Expansion(NamedTuple):
    """The stages of a recipe without cascades.

    Attributes:
        stages: The stages.
        written: For the place of each part of them, as keys of the recipe, the place where it was written.
        mistakes: Places of a cascade's mistakes, and what each should be; then the stages are as they were.
    """

    stages: list[Any]
    origins: dict[_Keys, _Keys]
    mistakes: list[tuple[_Keys, str]]


def expand(stages: list[Any]) -> Expansion:
    """Write the cascades among the stages of a recipe out."""
    result, origins, mistakes = list[Any](), dict[_Keys, _Keys](), list[tuple[_Keys, str]]()
    for index, entry in enumerate(stages):
        place = ("stages", index)
        if not (isinstance(entry, Mapping) and "cascade" in entry):
            origins["stages", len(result)] = place
            result.append(entry)
            continue
        problems = list(_mistakes(entry, place))
        mistakes += problems
        if not problems:
            options = Cascade.model_validate(entry["cascade"])
            for number in range(1, len(options.models)):
                origins |= _places(options, number, ("stages", len(result)), (*place, "cascade"))
                result.append(_stage(options, number))
    return Expansion(stages, {}, mistakes) if mistakes else Expansion(result, origins, [])


def _stage(cascade: Cascade, number: int) -> dict[str, Any]:
    """Return the stage that trains the model at an index."""
    teacher, student = cascade.models[number - 1 : number + 1]
    model = teacher if number == 1 else _name(cascade, number - 1)
    kind = cascade.stage["kind"]
    taught: Any = model if kind == "sft" else {teacher: {"model": model, **_copied(cascade.teacher)}}
    stage = {"name": _name(cascade, number), "kind": kind, "student": student, _TEACHER_KEYS[kind]: taught}
    return stage | {key: _copied(value) for key, value in cascade.stage.items()}


def _name(cascade: Cascade, number: int) -> str:
    return f"{cascade.models[number]}_from_{cascade.models[number - 1]}"


def _places(cascade: Cascade, number: int, stage: _Keys, origin: _Keys) -> dict[_Keys, _Keys]:
    """Return where the parts of the stage that trains the model at an index were written."""
    key = _TEACHER_KEYS[cascade.stage["kind"]]
    teacher = (*origin, "models", number - 1)
    places = {stage: (*origin, "stage"), (*stage, "name"): (*origin, "models", number)}
    places |= {(*stage, "student"): (*origin, "models", number), (*stage, key): teacher}
    if key == "teachers":
        teacher_keys = (*stage, key, cascade.models[number - 1])
        places |= {teacher_keys: (*origin, "teacher"), (*teacher_keys, "model"): teacher}
    return places


def _mistakes(entry: Mapping[Any, Any], place: _Keys) -> Iterator[tuple[_Keys, str]]:
    for key in entry:
        if key != "cascade":
            yield (*place, key), "stands beside a cascade; an option of its stages goes into its `stage`"
    raw = entry["cascade"]
    try:
        cascade = Cascade.model_validate(raw, strict=True)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            loc = details["loc"]
            texts = {"missing": "is required", "too_short": "should name at least two models"}
            if details["type"] == "extra_forbidden":
                texts["extra_forbidden"] = f"is no key of a cascade{hint(str(loc[-1]), Cascade.model_fields)}"
            text = texts.get(details["type"], details["msg"].replace("Input should", "should"))
            yield (*place, "cascade", *loc), text
        return
    for index, name in enumerate(cascade.models):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            yield (*place, "cascade", "models", index), f"names a stage too: give {name!r} a name in models"
    yield from _mistakes_in_stage(cascade, (*place, "cascade"))


def _mistakes_in_stage(cascade: Cascade, place: _Keys) -> Iterator[tuple[_Keys, str]]:
    kind = cascade.stage.get("kind")
    if not isinstance(kind, str) or kind not in _TEACHER_KEYS:
        yield (*place, "stage", "kind"), f"should be {' or '.join(_TEACHER_KEYS)}, not {kind!r}"
    for key in ("name", "student", "teacher", "teachers"):
        if key in cascade.stage:
            yield (*place, "stage", key), "is set by the cascade, from its models"
    if "model" in cascade.teacher:
        yield (*place, "teacher", "model"), "is set by the cascade, from its models"
    if cascade.teacher and kind == "sft":
        yield (*place, "teacher"), "is for kind distill; the teacher of a stage sft has no options"


def _copied(value: Any) -> Any:
    """Return a copy of a tree, so that no two stages share a part of it."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
