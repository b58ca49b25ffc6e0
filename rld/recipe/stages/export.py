"""The options of an `export` stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.exports import FORMATS, install_hint
from rld.recipe.names import RecipeNames
from rld.recipe.sizes import Sizes, StageCost, quantity
from rld.recipe.stages.base import Stage
from rld.utils.flops import frozen_bytes
from rld.utils.options import OptionError
from rld.utils.suggestions import hint


class Export(Stage):
    """Writes a model in a format of another runtime into `exports/NAME`, and [verifies](deploy.md) what was written.

    The file is loaded in its runtime and compared with the model; it is refused where they differ by more than its
    precision explains. Then it is measured, and scored on held-out rows.
    """

    makes_model: ClassVar[bool] = False
    result_folder: ClassVar[str] = "exports"

    kind: Literal["export"]
    """The kind of stage."""
    model: str
    """The model: a name in `models`, an earlier stage, a hub id or a folder."""
    format: str
    """`gguf`: one file for llama.cpp, of a Llama or Qwen2 with byte-level BPE or a token for each ASCII character.
    `onnx`: a folder for onnxruntime-genai."""
    precision: str | None = None
    """How weights are stored: `f16`, `f32`, `q8_0` or `q4_0` in GGUF, `f32`, `int8` or `int4` in ONNX. None: the first
    of these."""
    max_rows: int = Field(64, ge=0)
    """Held-out rows of each skill, at most, on which model and file are scored, one row at a time."""

    @model_validator(mode="after")
    def _has_a_precision_of_its_format(self) -> Export:
        if self.format not in FORMATS:
            raise OptionError(f"there is no format {self.format!r}{hint(self.format, FORMATS)}", "format")
        possible = FORMATS[self.format].bits
        if self.precision is not None and self.precision not in possible:
            fix = hint(self.precision, possible)
            raise OptionError(f"{self.format} has {', '.join(possible)}, not {self.precision!r}{fix}", "precision")
        return self

    @property
    def precision_in_use(self) -> str:
        """How weights are stored."""
        return self.precision or next(iter(FORMATS[self.format].bits))

    def references(self) -> list[str]:
        return [self.model]

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check also its model, and that the packages of its format are installed."""
        yield from super().check(names, loc, raw)
        yield from names.reference((*loc, "model"), raw.get("model"))
        form = FORMATS.get(str(raw.get("format")))
        if form is not None and form.missing_package is not None:
            yield names.problem((*loc, "format"), f" cannot be {raw['format']!r}: {install_hint(form.missing_package)}")

    def cost(self, sizes: Sizes) -> StageCost:
        size = sizes.parameters(self.model)
        return StageCost(size, {}, None if size is None else frozen_bytes(2 * size), {})

    def describe(self, cost: StageCost, skills: list[str]) -> list[tuple[str, str]]:
        return [
            ("exports", f"{self.model}, {quantity(cost.parameters)} parameters"),
            ("to", f"{self.format} in {self.precision_in_use}, {FORMATS[self.format].about}"),
        ]
