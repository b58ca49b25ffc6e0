"""The base class of what is read from the files of a run, and the numbers in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rld.errors import CheckpointError

LARGEST = 1e300
"""Values beyond are taken for infinite, for no axis can hold them."""

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Amount: TypeAlias = Annotated[float, Field(ge=0, le=LARGEST)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=1 << 62)]


class FileRecord(BaseModel):
    """A part of a file that a run wrote. Other keys are ignored, so that runs of other versions can be read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def parse(cls, path: Path, value: Mapping[str, Any]) -> Self:
        """Return `value`, which was read from `path`, as an object of this class.

        Raises:
            CheckpointError: it lacks something, or has another type.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "it"
            raise CheckpointError(f"{path} is not what rld writes: {key}: {first['msg']}") from error
