"""Load the model and the tokenizer that a name in a recipe refers to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import RecipeError
from rld.models import tokenizers
from rld.recipe import registry
from rld.recipe.models import NewModel, PretrainedModel
from rld.recipe.schema import Recipe
from rld.types import Row

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


class ModelLoader:
    """Loads the models and tokenizers that a recipe refers to.

    Args:
        source: The recipe's file; paths in it are relative to its folder.
        stage_folder: Returns the folder of a stage's result.
        held_out: Rows whose characters must be in the vocabulary of a character tokenizer.
    """

    def __init__(self, recipe: Recipe, source: Path, stage_folder: Callable[[str], Path], held_out: list[Row]) -> None:
        self._recipe, self._source, self._stage_folder, self._held_out = recipe, source, stage_folder, held_out

    def path(self, name: str) -> str:
        """Return the folder `name`, searched beside the recipe first, or `name` itself as a hub id if there is none."""
        return str(registry.find_path(name, self._source.parent) or name)

    def load(
        self,
        reference: str,
        from_pretrained: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        chat_template: str | None = None,
    ) -> Loaded:
        """Return the model and the tokenizer that a reference names.

        Args:
            reference: A name in `models`, an earlier stage, a hub id or a folder.
            from_pretrained: Arguments of transformers' `from_pretrained`; they override those in `models`.
            dtype: Data type of the weights where neither sets it. The default is float32, for AdamW loses small updates
                of bf16 weights; a GPU computes in bf16 through autocast. `auto`, for weights that are not trained: the
                data type in which they are stored.
            chat_template: Replaces the tokenizer's chat template.

        Raises:
            RecipeError: it cannot be loaded, or has no chat template though prompts need one.
        """
        spec, options = self._resolve(reference)
        if isinstance(spec, NewModel):
            return self._new(reference, spec)
        try:
            arguments = {"dtype": dtype, **options, **(from_pretrained or {})}
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(spec, **arguments)
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(spec, padding_side="left")
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            first = str(error).strip().splitlines()[0]
            raise RecipeError(
                f"{self._source}: cannot load {spec!r}: {first} (a local copy can be named on the command line, "
                f"such as models.{reference}=FOLDER)"
            ) from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        if self._recipe.prompt_style == "chat" and tokenizer.chat_template is None:
            fix = "use plain, or for a teacher set its chat_template"
            raise RecipeError(f"{self._source}: prompts.style: {spec!r} has no chat template; {fix}")
        return model, tokenizer

    def _resolve(self, reference: str) -> tuple[str | NewModel, dict[str, Any]]:
        """Return a path or hub id with its loading options, or the specification of a new model."""
        if any(stage.name == reference for stage in self._recipe.stages):
            return str(self._stage_folder(reference)), {}
        spec = self._recipe.models.get(reference, reference)
        if isinstance(spec, NewModel):
            return spec, {}
        if isinstance(spec, PretrainedModel):
            return self.path(spec.path), dict(spec.from_pretrained)
        return self.path(spec), {}

    def _new(self, reference: str, spec: NewModel) -> Loaded:
        """Return a model with random weights, and the recipe's character tokenizer."""
        assert self._recipe.tokenizer is not None  # validated when the recipe was read
        characters = tokenizers.character_tokenizer(self._recipe.tokenizer.characters)
        tokenizers.require_known(characters, self._held_out)
        options = {
            "vocab_size": len(characters),
            "pad_token_id": characters.pad_token_id,
            "eos_token_id": characters.eos_token_id,
            "bos_token_id": None,
            **spec.config,
        }
        try:
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(spec.new, **options)), characters
        except (ValueError, StrictDataclassError) as error:
            message = " ".join(str(error).split())
            raise RecipeError(f"{self._source}: models.{reference}: {message}") from error
