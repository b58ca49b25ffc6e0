"""The base class of everything that a recipe can configure, and unions whose members are told apart by a key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

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
