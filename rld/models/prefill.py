"""Shared prefill: a prompt is read once before its completions are sampled, not once for each of them.

`generate` takes a row for each completion and reads the prompt in each. Here each different prompt is read once, all
but its last token, and `generate` continues from the cached keys and values, which all rows of that prompt get.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.configuration_utils import GenerationMode
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

_TOKEN_BY_TOKEN = {GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE}


class SharedPrefill:
    """Makes `model.generate` read each prompt once, where rows repeat it and the model allows it.

    It changes nothing for beam and other searches, for caches other than the dynamic one (a recurrent state, fixed
    shapes), for inputs besides token ids, and for models whose weights are gathered for each forward (ZeRO-3, FSDP),
    where all processes have to call the model equally often.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._generate: Any = model.generate
        self._num_read = 0
        model.generate = types.MethodType(lambda _model, *args, **options: self(*args, **options), model)  # type: ignore[assignment]

    def take_num_read(self) -> int:
        """Return the prompt tokens that `generate` has read since the last call."""
        num_read, self._num_read = self._num_read, 0
        return num_read

    def __call__(self, *args: Any, **options: Any) -> Any:
        if "attention_mask" in options:
            self._num_read += int(options["attention_mask"].sum())
        if not args and set(options) == {"input_ids", "attention_mask", "generation_config"}:
            ids_BP, mask_BP = options["input_ids"], options["attention_mask"]
            _, row_B = torch.cat([ids_BP, mask_BP], dim=1).unique(dim=0, return_inverse=True)
            repeats = int(row_B.max()) + 1 < len(row_B)
            if repeats and ids_BP.shape[1] > 1 and self._can_share(options["generation_config"]):
                return self._generate(**options, past_key_values=self._read(ids_BP, mask_BP, row_B))
        return self._generate(*args, **options)

    def _can_share(self, config: GenerationConfig) -> bool:
        """Tell whether rows can start from a shared cache."""
        model = self._model
        options = {name: value for name, value in config.to_dict().items() if value is not None}
        merged = GenerationConfig.from_dict({**model.generation_config.to_dict(), **options})  # as `generate` does it
        return (
            merged.get_generation_mode() in _TOKEN_BY_TOKEN
            and (merged.num_return_sequences or 1) == 1
            and merged.use_cache is not False
            and not (merged.cache_implementation or merged.prefill_chunk_size)
            and not getattr(model, "_is_stateful", False)
            and model.config.get_text_config() is model.config  # others keep positions of the last prompts
            and "prepare_inputs_for_generation" not in vars(model)  # tokens that PEFT learns to put in front
            and not is_deepspeed_zero3_enabled()
            and not is_fsdp_managed_module(model)
            and {type(layer) for layer in DynamicCache(config=model.config).layers}
            <= {DynamicLayer, DynamicSlidingWindowLayer}
        )

    def _read(self, ids_BP: Tensor, mask_BP: Tensor, row_B: Tensor) -> DynamicCache:
        """Read the different prompts `[U, P]`, and return the caches of all B rows.

        Args:
            ids_BP: The prompts of all rows.
            mask_BP: 1 at their tokens.
            row_B: The number of each row's prompt among the different ones.
        """
        numbers_B = torch.arange(len(row_B), device=row_B.device)
        first_U = numbers_B.new_full((int(row_B.max()) + 1,), len(row_B)).scatter_reduce(0, row_B, numbers_B, "amin")
        self._num_read -= int(mask_BP[:, :-1].sum() - mask_BP[first_U, :-1].sum())
        # Greedy, so that no random number is drawn and later samples stay the same. It replaces the model's own
        # configuration, from which `generate` would fill gaps.
        own_config = self._model.generation_config
        self._model.generation_config = GenerationConfig(max_new_tokens=1, return_dict_in_generate=True)
        try:
            prompts = {"input_ids": ids_BP[first_U, :-1], "attention_mask": mask_BP[first_U, :-1]}
            cache: DynamicCache = self._generate(**prompts, pad_token_id=0).past_key_values
        finally:
            self._model.generation_config = own_config
        cache.batch_select_indices(row_B.cpu())  # its layers may lie on several devices
        return cache
