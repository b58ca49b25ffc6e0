"""The base class of all options of a recipe, and helpers for discriminated unions of options."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from rld.errors import RecipeError
from rld.utils.suggestions import nearest


class FrozenOptions(BaseModel):
    """Options of one part of a recipe: unknown keys, NaN, infinity and later changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class OptionError(ValueError):
    """What a validator of several options at once raises, for pydantic knows of the whole class alone.

    Args:
        message: What is wrong, and how to mend it.
        keys: The keys that lead from the validated class to the option that is to be changed; it need not be set.
    """

    def __init__(self, message: str, *keys: Any) -> None:
        super().__init__(message)
        self.keys = keys


def union_by_key(**kinds: type[FrozenOptions]) -> Callable[[Any], str | None]:
    """Return the discriminator of a union in which a distinct key identifies each member.

    A misspelt key is matched to the nearest member, so that the error names the key instead of the whole union.
    """

    def kind(value: Any) -> str | None:
        if isinstance(value, dict):
            keys = [key for key in value if isinstance(key, str)]
            member_key = next((key for key in kinds if key in keys), None)
            member_key = member_key or next(filter(None, (nearest(key, kinds) for key in keys)), None)
            return kinds[member_key].__name__ if member_key else None
        return type(value).__name__

    return kind


def parse_option(name: str, options_type: Any, value: dict[str, Any] | str) -> Any:
    """Return an instance of `options_type`, a class or a union, from the plain value of the option `name`.

    Args:
        name: The option's name in error messages.
        options_type: A subclass of `FrozenOptions`, or a union of such classes with the discriminator `kind`.
        value: The kind, a mapping of kind and options, or that mapping as JSON, as on a command line.

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


def kinds_of(union: Any) -> dict[str, type[FrozenOptions]]:
    """Return the members of a union discriminated by a literal, keyed by that literal."""
    key = _discriminator(union)
    return {get_args(member.model_fields[key].annotation)[0]: member for member in _members(union)}


def member_of(union: Any, value: Any) -> type[FrozenOptions] | None:
    """Return the member of a discriminated union that a plain value selects, or None if it selects none."""
    discriminator = _discriminator(union)
    if callable(discriminator):
        name = discriminator(value)
        return next((member for member in _members(union) if member.__name__ == name), None)
    kind = value.get(discriminator) if isinstance(value, dict) else None
    return kinds_of(union).get(kind) if isinstance(kind, str) else None


def _members(union: Any) -> list[type[FrozenOptions]]:
    members = get_args(get_args(union)[0])
    return [get_args(member)[0] if get_origin(member) is Annotated else member for member in members]


def _discriminator(union: Any) -> Any:
    """Return the discriminator of a union: a key or a function."""
    return next(filter(None, (getattr(metadata, "discriminator", None) for metadata in get_args(union)[1:])))
