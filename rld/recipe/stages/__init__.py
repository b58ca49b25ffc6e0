"""The kinds of stages. To add one, write a module here and put its class in `AnyStage`, the last line."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rld.recipe.stages.distill import Distill
from rld.recipe.stages.evaluate import Evaluate
from rld.recipe.stages.export import Export
from rld.recipe.stages.merge import Merge
from rld.recipe.stages.prune import Prune
from rld.recipe.stages.sft import Sft

AnyStage = Annotated[Sft | Distill | Evaluate | Export | Merge | Prune, Field(discriminator="kind")]
