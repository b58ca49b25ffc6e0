"""The arms of an ablation: overrides of one recipe, all read and checked before anything runs.

Arms are compared on the recipe's last stage that has a controller, or on its last stage where none has.
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
from rld.recipe.document import RecipeDocument
from rld.recipe.reading import read_recipe
from rld.recipe.schema import Recipe
from rld.recipe.stages.base import Stage, TrainingStage
from rld.utils.options import kinds_of
from rld.utils.suggestions import hint, nearest

NUM_EVALUATIONS = 10
"""How often the compared stage is scored where neither recipe nor arm says so: enough for a curve."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

_CONTROLLER_KINDS = kinds_of(AnyController)

_STAGE_KEYS = {"trainer"}
"""Keys of a recipe as well as of a stage which in an arm are the compared stage's."""

_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Arm:
    """One of the settings that are compared.

    Attributes:
        overrides: As `rld train` takes them, with those of all arms.
        recipe: The recipe with these overrides and the ablation's first seed.
    """

    name: str
    overrides: tuple[str, ...]
    recipe: Recipe

    @property
    def index(self) -> int:
        """The index of the compared stage."""
        return compared_stage_index(self.recipe)

    @property
    def stage(self) -> TrainingStage:
        stage = self.recipe.stages[self.index]
        assert isinstance(stage, TrainingStage)
        return stage


@dataclass(frozen=True)
class _ArmText:
    """An arm as the user wrote it: its name, and its overrides in the form that `rld train` takes."""

    name: str
    overrides: tuple[str, ...]


def compared_stage_index(recipe: Recipe) -> int:
    """Return the index of the last stage that has a controller, or of the last one that trains where none has.

    Raises:
        RecipeError: no stage trains.
    """
    training = [i for i, stage in enumerate(recipe.stages) if isinstance(stage, TrainingStage)]
    if not training:
        raise RecipeError(f"no stage of recipe {recipe.name} trains, so there is nothing to compare")
    controlled = [i for i in training if _controller(recipe.stages[i]) is not None]
    return (controlled or training)[-1]


def _controller(stage: Stage) -> AnyController | None:
    controller: AnyController | None = getattr(stage, "controller", None)
    return controller


def read_arms(text: str, source: Path, overrides: Sequence[str], *, max_flops: float | None = None) -> list[Arm]:
    """Read arms and the recipe of each.

    Args:
        text: Arms in the short form, separated by semicolons or line ends; or the name of a file: a YAML file of arms
            with full paths, or else a text file of arms in the short form, where `#` begins a comment line.
        source: The recipe's file.
        overrides: Overrides of all arms.
        max_flops: The budget of the compared stage, in FLOPs. None: the stage ends after its steps.

    Raises:
        AblationError: the arms are wrong; one line per mistake.
        RecipeError: the recipe is wrong without any arm, or the YAML file cannot be read.
    """
    base = read_recipe(source, overrides)
    mistakes: list[str] = []
    arms: dict[str, Arm] = {}
    arm_texts = _read_yaml(Path(text), mistakes) if text.endswith(_YAML) else _read_short_forms(text, base, mistakes)
    for arm in arm_texts:
        if arm.name in arms:
            mistakes.append(f"two arms are called {arm.name!r}; choose another name for one")
        try:
            arms[arm.name] = _resolve(arm, source, overrides, max_flops)
        except AblationError as error:
            mistakes.append(str(error))
    if not arms and not mistakes:
        mistakes.append("there is no arm; write such as --arms 'gap; fixed'")
    if mistakes:
        raise AblationError("\n".join(mistakes))
    return list(arms.values())


def _resolve(arm: _ArmText, source: Path, overrides: Sequence[str], max_flops: float | None) -> Arm:
    """Read the recipe of an arm; the compared stage is scored on the way, and ends with its budget."""
    try:
        if any(text.partition("=")[0] == "seed" for text in arm.overrides):
            raise RecipeError("an arm cannot set the seed, which all arms share; set it for all")
        first = Arm(arm.name, (*overrides, *arm.overrides), read_recipe(source, (*overrides, *arm.overrides)))
        extra = []
        if first.stage.evaluate_every is None:
            extra.append(f"stages.{first.stage.name}.evaluate_every={-(-first.stage.steps // NUM_EVALUATIONS)}")
        if max_flops is not None:
            extra.append(f"stages.{first.stage.name}.stop.max_flops={max_flops!r}")
        extended = (*first.overrides, *extra)
        return replace(first, overrides=extended, recipe=read_recipe(source, extended))
    except RecipeError as error:
        raise AblationError("\n".join(f"arm {arm.name!r}: {line}" for line in str(error).splitlines())) from error


def _read_yaml(path: Path, mistakes: list[str]) -> list[_ArmText]:
    """Read a mapping of names to mappings of full paths to values; adds what is wrong to `mistakes`.

    Raises:
        RecipeError: the file cannot be read, or is no mapping in YAML.
    """
    document = RecipeDocument(path)
    if document.problems:
        raise document.report(document.problems)
    arms = []
    for name, overrides in document.tree.items():
        if not _NAME.fullmatch(str(name)):
            mistakes.append(f"{path}: {name!r} cannot be an arm's name, which is also that of a folder")
        elif not isinstance(overrides, dict):
            mistakes.append(
                f"{path}: arm {name!r} should be a mapping of paths to values, or {{}} for the recipe as it is"
            )
        else:
            texts = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]
            arms.append(_ArmText(str(name), tuple(texts)))
    return arms


def _read_short_forms(text: str, base: Recipe, mistakes: list[str]) -> list[_ArmText]:
    """Read arms in the short form, from a text or a file; adds what is wrong to `mistakes`."""
    if os.path.isfile(text):
        text = Path(text).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    arms = []
    for piece in _split("\n".join(lines), ";\n"):
        if piece.strip():
            try:
                arms.append(_read_short_form(piece.strip(), base))
            except AblationError as error:
                mistakes.append(str(error))
    return arms


def _read_short_form(piece: str, base: Recipe) -> _ArmText:
    """Read `NAME: key.path=value ...`, or a controller's kind alone.

    In YAML's quotes and brackets a value may hold blanks and semicolons.
    """
    name, colon, rest = piece.partition(":")
    name = name.strip()
    if not colon and name in _CONTROLLER_KINDS:
        return _ArmText(name, tuple(_full_paths([f"controller.kind={name}"], base)))
    if not colon or not _NAME.fullmatch(name):
        raise AblationError(
            f"arm {piece!r}: write NAME: key.path=value ..., NAME: alone for the recipe as it is, the kind of a "
            f"controller, or the name of a file of arms{hint(piece, _CONTROLLER_KINDS)}"
        )
    return _ArmText(name, tuple(_full_paths(list(filter(None, _split(rest, " \t"))), base)))


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


def _full_paths(overrides: list[str], base: Recipe) -> list[str]:
    """Return overrides with full paths: a key that the recipe does not have, and `trainer`, is the stage's.

    `controller.kind=` of another kind replaces the stage's controller, before all other overrides; options that all
    controllers have stay as the recipe sets them.
    """
    stage = base.stages[compared_stage_index(base)]
    controller = _controller(stage)
    prefix, recipe_keys = f"stages.{stage.name}.", [key for key in Recipe.model_fields if key not in _STAGE_KEYS]
    replacing, paths = [], []
    for text in overrides:
        key = re.split("[.=]", text, maxsplit=1)[0]
        nearest_key = key if key in recipe_keys else nearest(key, [*recipe_keys, *type(stage).model_fields])
        path = text if nearest_key in recipe_keys or nearest_key is None else prefix + text
        kind = path.removeprefix(f"{prefix}controller.kind=") if "controller.kind=" in path else None
        if controller is not None and kind in _CONTROLLER_KINDS and kind != controller.kind:
            options = controller.model_dump(mode="json", exclude_unset=True)
            common = {name: value for name, value in options.items() if name in BaseController.model_fields}
            replacing.append(f"{prefix}controller={json.dumps(common | {'kind': kind}, ensure_ascii=False)}")
        else:
            paths.append(path)
    return [*replacing, *paths]
