"""From which weights a model was made, and which licence the card of those weights names."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rld.pipeline.run import RunContext
from rld.recipe import registry
from rld.recipe.models import NewModel, PretrainedModel, PrunedModel
from rld.recipe.teachers import SelfTeacherSpec, TeacherSpec
from rld.utils.messages import one_line, tell

UNKNOWN = "unknown"

_FIELDS = ("license", "license_name", "license_link")
"""What a card's head says of a licence; the name and the link belong to the licence `other`."""

_HEAD = re.compile(r"\s*^---[ \t]*\n(.*?)^---[ \t]*$", flags=re.DOTALL | re.MULTILINE)
"""The head of a card: YAML between the first two lines of three hyphens."""


def base_model(context: RunContext, reference: str) -> str | None:
    """Return the folder or hub id from whose weights a reference started; None: random weights."""
    reference = context.recipe.origin(reference)
    match context.recipe.models.get(reference, reference):
        case NewModel():
            return None
        case PretrainedModel() as model:
            return model.path
        case PrunedModel() as model:
            return base_model(context, model.prune)
        case str(name):
            return name
    return None


def licence_fields(context: RunContext, place: str) -> dict[str, Any]:
    """Return `license` and its details as a model's own card has them; empty: it is not on this machine, or has none.

    Args:
        context: The run.
        place: A folder or a hub id.
    """
    path = registry.model_file(place, "README.md", context.source.parent)
    head = {} if path is None else _head(path)
    return {key: head[key] for key in _FIELDS if head.get(key)}


@cache  # so that a card that cannot be read is told once
def _head(path: Path) -> dict[Any, Any]:
    """Return the head of a card; empty where it has none or cannot be read, which is told and ends no run."""
    try:
        match = _HEAD.match(path.read_text(encoding="utf-8-sig"))
        content = None if match is None else yaml.safe_load(match[1])
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: such as a month 13 in YAML
        tell(f"{path}: the licence cannot be read, and counts as {UNKNOWN}: {one_line(error)}")
        return {}
    return content if isinstance(content, dict) else {}


def _licence_name(fields: dict[str, Any]) -> str:
    names = fields.get("license_name") if fields.get("license") == "other" else None
    names = names or fields.get("license") or UNKNOWN
    return ", ".join(map(str, names if isinstance(names, list) else [names]))


def licence_of_model(context: RunContext, reference: str) -> str:
    """Return in words under which licence the weights are from which a model of the recipe started."""
    base = base_model(context, reference)
    if base is None:
        return "none: it started from random weights"
    return _licence_name(licence_fields(context, base))


def licence_of_teacher(context: RunContext, spec: Any) -> str:
    """Return in words under which licence the weights of a teacher are, as far as cards on this machine tell."""
    if isinstance(spec, SelfTeacherSpec):
        return "the student's"
    if not isinstance(spec, TeacherSpec):
        return f"{UNKNOWN}: a server does not tell it"
    licence = licence_of_model(context, spec.model)
    if spec.adapter is not None:
        licence += f"; of its adapter: {_licence_name(licence_fields(context, spec.adapter))}"
    return licence
