"""The arms of an ablation: overrides of one recipe, all read and checked before anything runs.

What the arms are compared on is the recipe's last distillation stage, or its last stage where it has none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rld.controllers import AnyController
from rld.controllers.base import BaseController
from rld.errors import AblationError, RecipeError
from rld.recipe.reading import read_recipe
from rld.recipe.schema import Recipe
from rld.recipe.stages import AnyStage
from rld.utils.options import kinds_of
from rld.utils.suggestions import hint, nearest

NUM_SCORINGS = 10
"""Of an arm that does not say how often it is scored: enough for a curve."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

_KINDS = kinds_of(AnyController)


@dataclass(frozen=True)
class Arm:
    """One of the settings that are compared.

    Attributes:
        overrides: As `rld train` takes them, those of all arms included.
        recipe: What comes of them, with the ablation's first seed.
    """

    name: str
    overrides: tuple[str, ...]
    recipe: Recipe

    @property
    def index(self) -> int:
        """Which of the stages is compared."""
        return compared_stage_index(self.recipe)

    @property
    def stage(self) -> AnyStage:
        return self.recipe.stages[self.index]


def compared_stage_index(recipe: Recipe) -> int:
    """Return the index of the last stage that uses rewards, or of the last stage where there is none."""
    with_rewards = [i for i, stage in enumerate(recipe.stages) if stage.uses_rewards]
    return with_rewards[-1] if with_rewards else len(recipe.stages) - 1


def read_arms(text: str, source: Path, overrides: Sequence[str], max_flops: float | None = None) -> list[Arm]:
    """Read arms and the recipe that each makes.

    Args:
        text: Arms with semicolons or line ends between them, or the name of a file of arms, one a line, with `#` for
            comments. An arm is `NAME: key.path=value ...`, or a controller's kind alone; in YAML's quotes and brackets
            a value may hold blanks and semicolons.
        source: The recipe's file.
        overrides: Those of all arms.
        max_flops: The budget of the compared stage. None: its steps.

    Raises:
        AblationError: what is wrong with the arms, all of it.
        RecipeError: the recipe is wrong without any arm.
    """
    base = read_recipe(source, overrides)
    given = Path(text).read_text(encoding="utf-8") if os.path.isfile(text) else text
    lines = [line for line in given.splitlines() if not line.lstrip().startswith("#")]
    pieces = [piece.strip() for piece in _split("\n".join(lines), ";\n") if piece.strip()]
    mistakes: list[str] = [] if pieces else ["there is no arm; write such as --arms 'gap; fixed'"]
    arms: dict[str, Arm] = {}
    for piece in pieces:
        try:
            arm = _read_arm(piece, base, source, overrides, max_flops)
            if arm.name in arms:
                raise AblationError(f"two arms are called {arm.name!r}; choose another name for one")
            arms[arm.name] = arm
        except AblationError as error:
            mistakes.append(str(error))
    if mistakes:
        raise AblationError("\n".join(mistakes))
    return list(arms.values())


def _read_arm(piece: str, base: Recipe, source: Path, overrides: Sequence[str], max_flops: float | None) -> Arm:
    name, own = _parsed(piece)
    try:
        arm = Arm(name, (*overrides, *_placed(own, base)), base)
        arm = replace(arm, recipe=read_recipe(source, arm.overrides))
        extra = []
        if arm.stage.evaluate_every is None:
            extra.append(f"stages.{arm.stage.name}.evaluate_every={-(-arm.stage.steps // NUM_SCORINGS)}")
        if max_flops is not None:
            extra.append(f"stages.{arm.stage.name}.max_flops={max_flops!r}")
        overridden = (*arm.overrides, *extra)
        return Arm(name, overridden, read_recipe(source, overridden))
    except RecipeError as error:
        raise AblationError("\n".join(f"arm {name!r}: {line}" for line in str(error).splitlines())) from error


def _parsed(piece: str) -> tuple[str, list[str]]:
    """Return an arm's name and its overrides as they are written."""
    name, colon, rest = piece.partition(":")
    name = name.strip()
    if not colon and name in _KINDS:
        return name, [f"controller.kind={name}"]
    if not colon or not _NAME.fullmatch(name):
        near = hint(piece, _KINDS)
        raise AblationError(
            f"arm {piece!r}: write NAME: key.path=value ..., NAME: alone for the recipe as it is, the kind of a "
            f"controller, or the name of a file of arms{near}"
        )
    own = list(filter(None, _split(rest, " \t")))
    if any(text.partition("=")[0] == "seed" for text in own):
        raise AblationError(f"arm {name!r}: an arm cannot set the seed, which all arms share; set it for all")
    return name, own


def _split(text: str, separators: str) -> list[str]:
    """Split at each of the separators that is outside quotes and brackets."""
    pieces, quote, depth = [""], "", 0
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character in separators and not quote and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


def _placed(own: list[str], base: Recipe) -> list[str]:
    """Return overrides with full paths. A controller of another kind takes the recipe's place, before all else."""
    stage = base.stages[compared_stage_index(base)]
    fields, top = list(type(stage).model_fields), list(Recipe.model_fields)
    placed: list[str] = []
    controller = getattr(stage, "controller", None)  # stages of some kinds have none
    for text in own:
        first = re.split("[.=]", text, maxsplit=1)[0]
        meant = first if first in top else nearest(first, [*top, *fields])
        path = text if meant in top or meant is None else f"stages.{stage.name}.{text}"
        kind = path.removeprefix(f"stages.{stage.name}.controller.kind=")
        if kind != path and kind in _KINDS and controller is not None and kind != controller.kind:
            set_by_hand = controller.model_dump(mode="json", exclude_unset=True)
            kept = {key: value for key, value in set_by_hand.items() if key in BaseController.model_fields} | {
                "kind": kind
            }
            placed.insert(0, f"stages.{stage.name}.controller={json.dumps(kept, ensure_ascii=False)}")
        else:
            placed.append(path)
    return placed
