"""The base class of everything that a recipe can configure, and unions whose members are told apart by a key."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from rld.errors import RecipeError
from rld.utils.suggestions import nearest


class FrozenOptions(BaseModel):
    """Options of one part of a recipe: unknown keys, NaN, infinity and later changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def union_by_key(**kinds: type[FrozenOptions]) -> Callable[[Any], str | None]:
    """Return the discriminator of a union whose members each have a key of their own.

    A misspelt key still finds its member, so that the error names the key instead of the whole union.
    """

    def kind(value: Any) -> str | None:
        if isinstance(value, dict):
            keys = [key for key in value if isinstance(key, str)]
            found = next((key for key in kinds if key in keys), None)
            found = found or next(filter(None, (nearest(key, kinds) for key in keys)), None)
            return kinds[found].__name__ if found else None
        return type(value).__name__

    return kind


def parse_option(name: str, options_type: Any, value: dict[str, Any] | str) -> Any:
    """Return an instance of `options_type`, a class or a union, from the plain value of the option `name`.

    Args:
        name: What the option is called in an error.
        options_type: A subclass of `FrozenOptions`, or a union of such classes with the discriminator `kind`.
        value: The kind, a mapping of kind and options, or that mapping as JSON, which is how a command line gives it.

    Raises:
        RecipeError: the value does not fit the type.
    """
    try:
        if isinstance(value, str):
            value = json.loads(value) if value.startswith("{") else {"kind": value}
        return TypeAdapter(options_type).validate_python(value)
    except (ValidationError, json.JSONDecodeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise RecipeError(f"{name}={value!r}: {reason}") from error
