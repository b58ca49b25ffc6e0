"""Rollouts that vLLM samples, by TRL's switch `use_vllm`: what is refused, and what rld adds to TRL's part.

TRL hands vLLM the student's weights before the first rollout of each update, and multiplies the policy loss of each
token or completion by the student's probability of it over vLLM's (`vllm_importance_sampling_correction`). rld adds:

- Completions end at the tokens at which all readers of a prompt end them, whatever the student's files say.
- The weights of the feature signal, which are no part of the student, are not handed over.
- A vLLM in the training process draws from its random numbers. TRL builds it with a seed that is the same for all
  runs; here they follow the run's seed again, and a resumed run goes on with those of its checkpoint.
- Gold answers take the place of sampled completions, and have no probability of vLLM's to be corrected by.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers import PreTrainedModel

from rld.errors import ModelError, RecipeError, RldError, SystemFailure
from rld.losses.feature_matching import PROJECTIONS
from rld.trainer.rld_config import RLDConfig
from rld.utils.messages import one_line

Sampled: TypeAlias = tuple[list[list[int]], list[list[float | None]]]
"""The token ids of each completion, and their log-probabilities; None where one is unknown."""


def require_vllm() -> None:
    """Refuse to train where vLLM is not installed.

    Raises:
        RecipeError: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise RecipeError(
            "use_vllm: vLLM is not installed; install it on a machine with a GPU (pip install 'trl[vllm]'), or leave "
            "it out: transformers samples then"
        )


def require_possible(model: str | PreTrainedModel) -> None:
    """Refuse to build a trainer whose vLLM could not be built.

    Args:
        model: The student, or its folder or hub id.

    Raises:
        RecipeError: vLLM is not installed.
        ModelError: the student is in no file from which vLLM could load it.
    """
    require_vllm()
    if not isinstance(model, str) and not model.config._name_or_path:
        raise ModelError("use_vllm: vLLM loads the student from its folder or hub id, and this model has none; save it")


def adapt(trainer: Any) -> None:
    """Let the `vllm_generation` of a GRPO trainer sample rollouts for rld, once it is known where completions end."""
    generation, args, accelerator = trainer.vllm_generation, trainer.args, trainer.accelerator
    generation.generation_kwargs = {**generation.generation_kwargs, "stop_token_ids": trainer.eos_token_ids}
    named_weights = generation._iter_named_params

    def without_projections() -> Iterator[tuple[str, Tensor]]:
        return ((name, weight) for name, weight in named_weights() if f"{PROJECTIONS}." not in name)

    generation._iter_named_params = without_projections
    if args.vllm_mode == "colocate":
        # Processes that share a vLLM sample the same completions, and need the same random numbers.
        set_seed(args.seed + accelerator.process_index // args.vllm_tensor_parallel_size)


def sample(generate: Callable[[], Sampled], args: RLDConfig) -> Sampled:
    """Return what TRL gets from vLLM.

    Args:
        generate: Calls TRL.
        args: The trainer's, which name the server.

    Raises:
        SystemFailure: the server failed.
    """
    if args.vllm_mode != "server":
        return generate()
    try:
        return generate()
    except (RldError, torch.OutOfMemoryError):  # of this process
        raise
    except Exception as error:  # TRL raises `Exception` itself where the server refuses
        address = args.vllm_server_base_url or f"{args.vllm_server_host}:{args.vllm_server_port}"
        reason = one_line(error)[:300]
        raise SystemFailure(
            f"use_vllm: the server at {address} failed in a rollout ({type(error).__name__}: {reason}); start it "
            "again, and go on from the last checkpoint"
        ) from error


def with_gold(samples: Sampled, gold: Mapping[int, list[int]]) -> Sampled:
    """Put gold answers in the place of sampled completions.

    They have no log-probabilities, which TRL reads as a correction by the factor 1.

    Args:
        samples: The sampled completions.
        gold: The gold answers, by the index of the completion that each replaces.
    """
    completions, log_p = list(samples[0]), list(samples[1])
    for i, ids in gold.items():
        completions[i], log_p[i] = ids, [None] * len(ids)
    return completions, log_p
