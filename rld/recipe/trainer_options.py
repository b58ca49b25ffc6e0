"""Check the options of a stage's trainer and adapter, whose ranges TRL, transformers and PEFT do not declare."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rld.recipe import third_party_options
from rld.recipe.document import Loc, RecipeProblem, value_text
from rld.recipe.names import RecipeNames, items
from rld.recipe.option_checks import check_options
from rld.utils.suggestions import hint


class _Range(NamedTuple):
    """The numbers that an option may be."""

    lowest: float
    highest: float = math.inf
    includes_lowest: bool = True
    includes_highest: bool = True

    def includes(self, number: float) -> bool:
        is_above = number >= self.lowest if self.includes_lowest else number > self.lowest
        return is_above and (number <= self.highest if self.includes_highest else number < self.highest)

    def __str__(self) -> str:
        lower = f"{'at least' if self.includes_lowest else 'above'} {self.lowest:g}"
        if self.highest == math.inf:
            return lower
        return f"{lower} and {'at most' if self.includes_highest else 'below'} {self.highest:g}"


_NOT_NEGATIVE = _Range(0)
_POSITIVE = _Range(0, includes_lowest=False)
_COUNT = _Range(1)
_SHARE = _Range(0, 1)
_BELOW_ONE = _Range(0, 1, includes_highest=False)

_TRAINER: dict[str, _Range] = {
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "warmup_steps"), _NOT_NEGATIVE),
    **dict.fromkeys(("neftune_noise_alpha", "beta", "epsilon", "epsilon_high", "entropy_coef", "min_p"), _NOT_NEGATIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), _BELOW_ONE),
    **dict.fromkeys(("ref_model_mixup_alpha", "top_entropy_quantile", "min_p"), _SHARE),
    **dict.fromkeys(("num_iterations", "steps_per_generation", "gradient_accumulation_steps"), _COUNT),
    **dict.fromkeys(("ref_model_sync_steps", "generation_batch_size", "num_generations_eval"), _COUNT),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_accumulation_steps"), _COUNT),
    **dict.fromkeys(("repetition_penalty", "delta", "logging_steps", "ddp_timeout"), _POSITIVE),
    "top_p": _Range(0, 1, includes_lowest=False),
    "top_k": _NOT_NEGATIVE,
    **dict.fromkeys(("vllm_tensor_parallel_size", "vllm_max_model_length"), _COUNT),
    **dict.fromkeys(("vllm_server_port", "vllm_group_port"), _Range(1, 65_535)),
    **dict.fromkeys(("vllm_importance_sampling_clip_min", "vllm_server_timeout"), _NOT_NEGATIVE),
    "vllm_importance_sampling_clip_max": _POSITIVE,
    "vllm_gpu_memory_utilization": _Range(0, 1, includes_lowest=False),
    "data_seed": _Range(0, 2**32 - 1),
}

_LORA: dict[str, _Range] = {
    "r": _Range(1, 65_536),
    "lora_alpha": _POSITIVE,
    "lora_dropout": _BELOW_ONE,
    "layers_to_transform": _NOT_NEGATIVE,
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("auto", "vllm", "transformers", "terratorch"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "bias": ("none", "all", "lora_only"),
}

_LOGGERS: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": ("kubeflow",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""The loggers that transformers knows, and the modules of which one must be installed."""


def check_trainer(
    names: RecipeNames,
    loc: Loc,
    options: Any,
    trainer_classes: Iterable[tuple[str, str]],
    reserved: Mapping[str, str],
) -> Iterator[RecipeProblem]:
    """Check the options of TRL's configuration of a trainer.

    Args:
        trainer_classes: Modules and names of TRL's configurations; each option is one of at least one of them.
        reserved: As for `check_options`.
    """
    if not isinstance(options, dict) or not options:
        return  # without a look into TRL's source, which takes a twentieth of a second
    all_fields = [third_party_options.trainer_fields(*trainer_class) for trainer_class in trainer_classes]
    fields: third_party_options.Fields = {}
    for class_fields in all_fields:
        fields |= class_fields or {}
    is_complete = bool(all_fields) and None not in all_fields
    yield from check_options(names, loc, options, fields if is_complete else None, reserved)
    yield from _check_values(names, loc, options, _TRAINER)
    yield from _check_loggers(names, (*loc, "report_to"), options.get("report_to"))


def check_lora(names: RecipeNames, loc: Loc, options: Any) -> Iterator[RecipeProblem]:
    """Check the options of `peft.LoraConfig`."""
    if not isinstance(options, dict) or not options:
        return
    yield from check_options(names, loc, options, third_party_options.lora_fields())
    yield from _check_values(names, loc, options, _LORA)


def _check_values(names: RecipeNames, loc: Loc, options: Any, ranges: Mapping[str, _Range]) -> Iterator[RecipeProblem]:
    for key, value in items(options) if isinstance(options, dict) else ():
        allowed, words = ranges.get(key), _CHOICES.get(key)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if allowed is not None and is_number and not allowed.includes(value):
            yield names.problem((*loc, key), f" should be {allowed}, not {value_text(value)}")
        elif words is not None and isinstance(value, str) and value not in words:
            yield names.problem((*loc, key), f" cannot be {value_text(value)}{hint(value, words)}")


def _check_loggers(names: RecipeNames, loc: Loc, value: Any) -> Iterator[RecipeProblem]:
    """Check that the packages of the loggers in `report_to` are installed."""
    for name in value if isinstance(value, list) else [value]:
        if not isinstance(name, str) or name in ("none", "all"):
            continue
        modules = _LOGGERS.get(name)
        if modules is None:
            yield names.problem(loc, f": there is no logger {value_text(name)}{hint(name, _LOGGERS)}")
        elif not any(importlib.util.find_spec(module) for module in modules):
            yield names.problem(loc, f": {name} is not installed; install it, or leave it out")
