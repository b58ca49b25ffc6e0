"""What `rld check` shows of teachers that read a prompt of their own: one of each skill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rld.data.skill_rows import SkillRows
from rld.pipeline.skill_summary import prompt_text
from rld.recipe.schema import Recipe
from rld.teachers.own_rows import missing, own_row
from rld.utils.templates import ROLLOUT_FIELDS


class OwnPromptExample(NamedTuple):
    """A prompt that a teacher reads in place of the student's."""

    stage: str
    teacher: str
    skill: str
    prompt: str


def own_prompt_examples(recipe: Recipe, sources: Mapping[str, SkillRows], models: Any) -> Iterator[OwnPromptExample]:
    """Yield a prompt of each teacher with a template and each skill that it may teach.

    Args:
        recipe: The recipe.
        sources: The rows of each skill.
        models: A `pipeline.model_loading.ModelLoader`, which has the chat templates. None: messages are shown bare.
    """
    for stage in recipe.stages:
        for reader in stage.readers():
            if reader.prompt is None:
                continue
            names = (reader.model, reader.chat_template) if reader.has_own_tokenizer else (stage.origin, None)
            encoder = None if models is None else models.encoder(*names)[0]
            for skill in stage.skills_in_use(recipe.skills):
                rows = [row for _, row in sources[skill].examples() if missing(row, reader.prompt) is None]
                if rows and (reader.skills is None or skill in reader.skills):
                    places = {field: f"{{{field}}}" for field in ROLLOUT_FIELDS}  # there is no rollout yet
                    prompt = own_row(rows[0], reader.prompt, places)["prompt"]
                    yield OwnPromptExample(stage.name, reader.name, skill, prompt_text(prompt, encoder))
