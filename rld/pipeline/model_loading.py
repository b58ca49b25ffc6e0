"""Load the model and the tokenizer that a name in a recipe refers to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import ModelError, RecipeError
from rld.models import tokenizers
from rld.models.loading import load_config, load_model, load_skeleton, load_tokenizer, require_end
from rld.models.prompting import PromptEncoder
from rld.models.self_check import context_length, require_token_rows
from rld.recipe import registry
from rld.recipe.models import NewModel, PretrainedModel
from rld.recipe.schema import Recipe

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


class ModelLoader:
    """Loads the models and tokenizers that a recipe refers to.

    Args:
        source: The recipe's file; paths in it are relative to its folder.
        stage_folder: Returns the folder of a stage's result.
    """

    def __init__(self, recipe: Recipe, source: Path, stage_folder: Callable[[str], Path]) -> None:
        self._recipe, self._source, self._stage_folder = recipe, source, stage_folder
        self._encoders: dict[tuple[str, str | None], tuple[PromptEncoder, int | None]] = {}
        """What `encoder` returned, by its arguments."""

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
        arguments = {"dtype": dtype, **options, **(from_pretrained or {})}
        with self._mistakes_in(reference):
            model = load_model(spec, arguments)
        tokenizer = self._tokenizer(spec, reference, arguments, chat_template)
        require_token_rows(model, tokenizer, f"the model {spec!r}", kind=ModelError)
        return model, tokenizer

    def encoder(self, reference: str, chat_template: str | None = None) -> tuple[PromptEncoder, int | None]:
        """Return the encoder of prompts and answers of a model, and its context length, without loading its weights.

        Args:
            reference: As of `load`. An earlier stage has the tokenizer and the context of the model that it trains.
            chat_template: Replaces the tokenizer's chat template.

        Raises:
            RecipeError: tokenizer or configuration cannot be loaded, or there is no chat template.
        """
        students = {stage.name: stage.student for stage in self._recipe.stages}
        while reference in students:
            reference = students[reference]
        key = reference, chat_template
        if key not in self._encoders:
            self._encoders[key] = self._new_encoder(*key)
        return self._encoders[key]

    def _new_encoder(self, reference: str, chat_template: str | None) -> tuple[PromptEncoder, int | None]:
        spec, options = self._resolve(reference)
        prompts = self._recipe.prompts
        chat: dict[str, Any] = {
            "chat_template_kwargs": prompts.chat_template_kwargs,
            "strip_thinking": prompts.strip_thinking,
        }
        if isinstance(spec, NewModel):
            characters = self._characters()
            return PromptEncoder(characters, **chat), context_length(self._new_config(reference, spec, characters))
        with self._mistakes_in(reference):
            config, model_ends = load_config(spec, options)
        tokenizer = self._tokenizer(spec, reference, options, chat_template)
        encoder = PromptEncoder(tokenizer, chat_template=chat_template, model_ends=model_ends, **chat)
        return encoder, context_length(config)

    def skeleton(self, reference: str) -> PreTrainedModel | None:
        """Return a model without weights, on the meta device; None for one that is not on this machine.

        Raises:
            RecipeError: its configuration cannot be used.
        """
        students = {stage.name: stage.student for stage in self._recipe.stages}
        while reference in students:
            reference = students[reference]
        spec, options = self._resolve(reference)
        if isinstance(spec, NewModel):
            config = self._new_config(reference, spec, self._characters())
            with self._mistakes_in_config(reference), torch.device("meta"):
                new_model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
            return new_model
        if registry.model_file(spec, "config.json", self._source.parent) is None:
            return None
        with self._mistakes_in(reference):
            return load_skeleton(spec, options)

    def _tokenizer(
        self, spec: str, reference: str, options: Mapping[str, Any], chat_template: str | None
    ) -> PreTrainedTokenizerBase:
        """Return the tokenizer of a model, padding on the left, with a token to pad with.

        Raises:
            RecipeError: it cannot be loaded, or has no chat template though prompts need one.
        """
        with self._mistakes_in(reference):
            tokenizer = load_tokenizer(spec, options)
            require_end(tokenizer, load_config(spec, options)[1], spec)
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        if self._recipe.prompt_style == "chat" and tokenizer.chat_template is None:
            fix = "use plain, or for a teacher set its chat_template"
            raise RecipeError(f"{self._source}: prompts.style: {spec!r} has no chat template; {fix}")
        return tokenizer

    @contextmanager
    def _mistakes_in(self, reference: str) -> Iterator[None]:
        """Name the recipe in the error when a model cannot be loaded."""
        try:
            yield
        except ModelError as error:
            raise RecipeError(
                f"{self._source}: {error} (a local copy can be named on the command line, such as "
                f"models.{reference}=FOLDER)"
            ) from error

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
        characters = self._characters()
        config = self._new_config(reference, spec, characters)
        with self._mistakes_in_config(reference):
            return AutoModelForCausalLM.from_config(config), characters

    def _characters(self) -> PreTrainedTokenizerBase:
        assert self._recipe.tokenizer is not None  # validated when the recipe was read
        return tokenizers.character_tokenizer(self._recipe.tokenizer.characters)

    def _new_config(self, reference: str, spec: NewModel, characters: PreTrainedTokenizerBase) -> PretrainedConfig:
        options = {
            "vocab_size": len(characters),
            "pad_token_id": characters.pad_token_id,
            "eos_token_id": characters.eos_token_id,
            "bos_token_id": None,
            **spec.config,
        }
        with self._mistakes_in_config(reference):
            config: PretrainedConfig = AutoConfig.for_model(spec.new, **options)
        return config

    @contextmanager
    def _mistakes_in_config(self, reference: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, LookupError, TypeError, RuntimeError, StrictDataclassError) as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise RecipeError(f"{self._source}: models.{reference}: {message}") from error
