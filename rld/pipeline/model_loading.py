"""Load the model and the tokenizer that a name in a recipe refers to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import ModelError, RecipeError
from rld.models import tokenizers
from rld.models.loading import load_tokenizer, require_end
from rld.models.prompting import PromptEncoder
from rld.models.self_check import context_length
from rld.pipeline.model_sources import CutModel, ModelSource, RandomModel, StoredModel, cut_out
from rld.recipe import registry
from rld.recipe.cut import Cut
from rld.recipe.models import NewModel, PretrainedModel, PrunedModel
from rld.recipe.schema import Recipe
from rld.recipe.tokenizer_files import lone_tokenizer
from rld.types import Row

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


class ModelLoader:
    """Loads the models and tokenizers that a recipe refers to.

    Args:
        source: The recipe's file; paths in it are relative to its folder.
        stage_folder: Returns the folder of a stage's result.
        training_rows: Returns so many training rows, for models that are pruned by the importance of their parts.
        count_flops: Gets the operations by which that importance is measured.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Path,
        stage_folder: Callable[[str], Path],
        training_rows: Callable[[int], Sequence[Row]],
        count_flops: Callable[[float], None],
    ) -> None:
        self._recipe, self._source, self._stage_folder = recipe, source, stage_folder
        self._training_rows, self._count_flops = training_rows, count_flops
        self._encoders: dict[tuple[str, str | None], tuple[PromptEncoder, int | None]] = {}
        """What `encoder` returned, by its arguments."""

    def path(self, name: str) -> str:
        """Return the folder `name`, searched beside the recipe first, or `name` itself as a hub id if there is none."""
        return str(registry.find_path(name, self._source.parent) or name)

    def is_adapter(self, name: str) -> bool:
        """Tell whether a name is that of a PEFT adapter: of no model and no stage, and one that is on this machine."""
        is_own = name in self._recipe.models or any(stage.name == name for stage in self._recipe.stages)
        return not is_own and registry.is_adapter(name, self._source.parent)

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
        with self._mistakes_in(reference):
            model, tokenizer = self._model_source(reference).load(from_pretrained or {}, dtype)
        return model, self._with_template(reference, tokenizer, chat_template)

    def encoder(self, reference: str, chat_template: str | None = None) -> tuple[PromptEncoder, int | None]:
        """Return the encoder of prompts and answers of a model, and its context length, without loading its weights.

        Args:
            reference: As of `load`. An earlier stage has the tokenizer and the context of its origin.
            chat_template: Replaces the tokenizer's chat template.

        Raises:
            RecipeError: tokenizer or configuration cannot be loaded, or there is no chat template.
        """
        key = self._recipe.origin(reference), chat_template
        if key not in self._encoders:
            self._encoders[key] = self._new_encoder(*key)
        return self._encoders[key]

    def _new_encoder(self, reference: str, chat_template: str | None) -> tuple[PromptEncoder, int | None]:
        prompts = self._recipe.prompts
        with self._mistakes_in(reference):
            tokenizer, config, ends = self._model_source(reference).describe()
        encoder = PromptEncoder(
            self._with_template(reference, tokenizer, chat_template),
            chat_template=chat_template,
            model_ends=ends,
            chat_template_kwargs=prompts.chat_template_kwargs,
            strip_thinking=prompts.strip_thinking,
        )
        return encoder, context_length(config)

    def skeleton(self, reference: str) -> PreTrainedModel | None:
        """Return a model without weights, on the meta device; None for one that is not on this machine.

        An earlier stage's is as its options make it, whether or not the stage has run.

        Raises:
            RecipeError: its configuration cannot be used.
        """
        with self._mistakes_in(reference):
            return self._planned_source(reference).skeleton()

    def cut_out(self, loaded: Loaded, cut: Cut) -> PreTrainedModel:
        """Return a smaller model that is cut out of a loaded one.

        Raises:
            RecipeError: the model cannot be cut so.
        """
        model, tokenizer = loaded
        return cut_out(model, cut, lambda count: self._calibration_texts(count, tokenizer), self._count_flops)

    def _with_template(
        self, reference: str, tokenizer: PreTrainedTokenizerBase, chat_template: str | None
    ) -> PreTrainedTokenizerBase:
        """Return a tokenizer with the template that replaces its own, if any; refuse chats without one."""
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        if self._recipe.prompt_style == "chat" and tokenizer.chat_template is None:
            fix = "use plain, or for a teacher set its chat_template"
            with self._recipe.mistakes_at(self._recipe.place("prompts", "style")):
                raise RecipeError(f"{reference!r} has no chat template; {fix}")
        return tokenizer

    @contextmanager
    def _mistakes_in(self, reference: str) -> Iterator[None]:
        """Name the recipe's line and key in the error when a model cannot be loaded or built."""
        with self._recipe.mistakes_at(self._recipe.place_of_model(reference)):
            try:
                yield
            except ModelError as error:
                is_named = reference in self._recipe.models
                fix = f" (a local copy can be named on the command line, such as models.{reference}=FOLDER)"
                raise RecipeError(f"{error}{fix if is_named else ''}") from error

    def _model_source(self, reference: str) -> ModelSource:
        """Return the way to get the model that a reference names."""
        if any(stage.name == reference for stage in self._recipe.stages):
            return StoredModel(str(self._stage_folder(reference)), {}, is_here=True)
        spec = self._recipe.models.get(reference, reference)
        match spec:
            case NewModel():
                return RandomModel(spec, lambda: self._tokenizer_of(spec))
            case PrunedModel():
                return CutModel(spec, self._model_source(spec.prune), self._calibration_texts, self._count_flops)
            case PretrainedModel():
                return self._stored_model(spec.path, spec.from_pretrained)
            case _:
                return self._stored_model(spec, {})

    def _planned_source(self, reference: str) -> ModelSource:
        """Return the way to get the model that a reference will name, without the results of stages."""
        stage = next((stage for stage in self._recipe.stages if stage.name == reference), None)
        if stage is None:
            return self._model_source(reference)
        origin = self._planned_source(stage.origin)
        if stage.cut is None:
            return origin
        return CutModel(stage.cut, origin, self._calibration_texts, self._count_flops)

    def _stored_model(self, name: str, options: Mapping[str, Any]) -> StoredModel:
        place = self.path(name)
        is_here = registry.model_file(place, "config.json", self._source.parent) is not None
        return StoredModel(place, options, is_here)

    def _tokenizer_of(self, spec: NewModel) -> PreTrainedTokenizerBase:
        """Return the tokenizer of a new model: another model's, or the recipe's character tokenizer."""
        if spec.tokenizer is not None and lone_tokenizer(spec.tokenizer, self._source.parent) is not None:
            place = self.path(spec.tokenizer)
            tokenizer = load_tokenizer(place)
            require_end(tokenizer, [], place)
            return tokenizer
        if spec.tokenizer is not None:
            return self._model_source(spec.tokenizer).describe().tokenizer
        assert self._recipe.tokenizer is not None  # validated when the recipe was read
        return tokenizers.character_tokenizer(self._recipe.tokenizer.characters)

    def _calibration_texts(self, count: int, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Return the token ids of prompts with gold answers; those without are prompts alone.

        Raises:
            RecipeError: there are none.
        """
        prompts = self._recipe.prompts
        encoder = PromptEncoder(tokenizer, chat_template_kwargs=prompts.chat_template_kwargs)
        rows = self._training_rows(count)
        if not rows:
            raise RecipeError("no skill has a training row with an answer, from which importance could be measured")
        encoded = encoder.encode_rows([row["prompt"] for row in rows], [row["answer"] for row in rows])
        return [[*prompt_ids, *answer_ids] for prompt_ids, answer_ids in encoded]
