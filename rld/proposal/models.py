"""What a proposal has to know of the models: their size, context, tokenizer and chat template, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rld.errors import LibraryError, ModelError, RecipeError
from rld.recipe import registry
from rld.recipe.tokenizer_files import same_tokenizer
from rld.utils.files import user_path


@dataclass(frozen=True)
class Model:
    """A model as the command line names it.

    Attributes:
        place: Its absolute folder, or a hub id.
        encoder: The `PromptEncoder` of its tokenizer.
        context: The most tokens that it reads. None: its configuration does not say.
        num_token_rows: Rows of its embedding.
        has_chat: Whether its tokenizer has a chat template.
    """

    place: str
    encoder: Any
    context: int | None
    num_token_rows: int
    has_chat: bool


def describe(name: str) -> Model:
    """Return what configuration and tokenizer tell of a model; they are downloaded where a hub can be reached.

    Raises:
        RecipeError: it is no model that can be loaded.
    """
    from rld.models.loading import load_config, load_tokenizer, require_end
    from rld.models.prompting import PromptEncoder
    from rld.models.self_check import context_length

    folder = user_path(name)
    place = str(folder.resolve()) if folder.is_dir() else name
    try:
        config, ends = load_config(place, {})
        tokenizer = load_tokenizer(place)
        require_end(tokenizer, ends, place)
    except ModelError as error:
        raise RecipeError(str(error)) from error
    return Model(
        place,
        PromptEncoder(tokenizer, model_ends=ends),
        context_length(config),
        config.get_text_config().vocab_size,
        tokenizer.chat_template is not None,
    )


def needs_alignment(student: Model, teacher: Model) -> bool:
    """Tell whether a teacher has another tokenizer than the student.

    Raises:
        RecipeError: the tokenizer of one is damaged.
    """
    files = [registry.model_file(model.place, "tokenizer.json", Path()) for model in (student, teacher)]
    if files[0] is None or files[1] is None:
        return bool(student.encoder.tokenizer.get_vocab() != teacher.encoder.tokenizer.get_vocab())
    try:
        return not same_tokenizer(files[0], files[1])
    except LibraryError as error:
        raise RecipeError(str(error)) from error


def shortest_context(models: Sequence[Model]) -> int | None:
    """Return the shortest context of the models; None if no configuration has one."""
    return min((model.context for model in models if model.context is not None), default=None)
