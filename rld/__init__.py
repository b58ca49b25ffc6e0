"""rld: distillation and reinforcement of small language models, in one adaptive loop on top of TRL."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rld.controllers.baselines import FixedController as FixedController
    from rld.controllers.gap import GapController as GapController
    from rld.recipe.reading import read_recipe as read_recipe
    from rld.recipe.schema import Recipe as Recipe
    from rld.rollout.rewards import Reward as Reward
    from rld.teachers.remote import remote_teacher as remote_teacher
    from rld.teachers.self_teacher import SelfTeacher as SelfTeacher
    from rld.teachers.teacher import Teacher as Teacher
    from rld.trainer.rld_config import RLDConfig as RLDConfig
    from rld.trainer.rld_trainer import RLDTrainer as RLDTrainer

# Installed, rewards/, curricula/ and recipes/ are inside this folder; in a source checkout they are beside it, and
# this makes them importable as rld.rewards and so on all the same.
if not (_Path(__file__).resolve().parent / "rewards").is_dir():
    __path__.append(str(_Path(__file__).resolve().parent.parent))

_HOMES = {
    "RLDConfig": "trainer.rld_config",
    "RLDTrainer": "trainer.rld_trainer",
    "SelfTeacher": "teachers.self_teacher",
    "Teacher": "teachers.teacher",
    "FixedController": "controllers.baselines",
    "GapController": "controllers.gap",
    "Recipe": "recipe.schema",
    "Reward": "rollout.rewards",
    "read_recipe": "recipe.reading",
    "remote_teacher": "teachers.remote",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `rld check` need not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f"rld.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'rld' has no attribute {name!r}")
