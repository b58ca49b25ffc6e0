"""Writes docs/recipe.md from the recipe's schema: `python -m tests.recipe_page`. A test holds the page to it."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rld.recipe.schema import Recipe

PAGE = Path(__file__).parent.parent / "docs" / "recipe.md"

HEAD = """# Every key of a recipe

A recipe is YAML. Unknown keys, wrong types and impossible combinations are reported all at once, with file and line,
before anything is loaded: `rld check RECIPE`. Any value can be set on the command line, a stage by its name:
`rld train RECIPE seed=1 stages.distill.steps=50 models.base=./folder`. Files (`./my.py:name`, rows, folders) are found
relative to the recipe.

This page is written from the schema by `python -m tests.recipe_page`.
"""


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation mentions, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def shown(annotation: Any) -> str:
    """An annotation in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "anything"
    if origin is Annotated:
        return shown(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(shown(part) for part in arguments))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {shown(arguments[0])}"
    if origin is dict:
        return f"mapping of {shown(arguments[0])} to {shown(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}[annotation.__name__]


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None or value in ({}, []):
        return {None: "null"}.get(value, "empty") if not isinstance(value, (dict, list)) else "empty"
    if isinstance(value, BaseModel):
        needs = any(field.is_required() for field in type(value).model_fields.values())
        return (
            "its defaults" if not needs and value == type(value)() else f"`{value.model_dump(exclude_defaults=True)}`"
        )
    if isinstance(value, list):
        return f"`{[v.model_dump(exclude_defaults=True) if isinstance(v, BaseModel) else v for v in value]}`"
    return f"`{value}`"


def section(model: type[BaseModel]) -> str:
    about = " ".join((model.__doc__ or "").split("\n\n")[0].split())
    lines = [f"## {model.__name__}", "", about, "", "| key | value | default | what it is |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{field.alias or name}` | {shown(field.annotation)} | {default(field)} | {text} |")
    return "\n".join(lines)


def page() -> str:
    queue, done = [Recipe], []
    while queue:
        model = queue.pop(0)
        if model not in done:
            done.append(model)
            queue += [found for field in model.model_fields.values() for found in models_in(field.annotation)]
    return "\n\n".join([HEAD.strip(), *(section(model) for model in done)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
