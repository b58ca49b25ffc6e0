"""A small vLLM: what TRL's `VLLMGeneration` imports of it, so that TRL's own code runs around a model here.

It reads the student's folder, takes weights by their names and refuses unknown ones, samples token by token from the
process's random numbers, and says the log-probability of each sampled token, as vLLM does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl.generation import vllm_generation

from rld.trainer import vllm_rollouts


class SamplingParams(SimpleNamespace):
    """The options of a request."""


class Engine:
    """A model that samples."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.sharpness = 1.0
        """By which it multiplies logits, as if it computed them wrongly."""
        self.requests: list[dict[str, Any]] = []
        self.num_syncs = 0

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        parameters = dict(self.model.named_parameters())
        for name, weight in weights:
            parameters[name].data.copy_(weight)  # a KeyError where the model has no such weight, as in vLLM

    @torch.no_grad()
    def sample(self, prompt: Sequence[int], options: dict[str, Any]) -> tuple[list[int], list[float]]:
        ids, log_p = list(prompt), []
        while len(ids) - len(prompt) < options["max_tokens"]:
            logits = self.model(torch.tensor([ids])).logits[0, -1] * self.sharpness
            log_p_V = (logits / options["temperature"]).log_softmax(-1)
            ids.append(int(torch.multinomial(log_p_V.exp(), 1)))
            log_p.append(log_p_V[ids[-1]].item())
            if ids[-1] in options["stop_token_ids"]:
                break
        return ids[len(prompt) :], log_p


class LLM(Engine):
    """`vllm.LLM`, in the training process: to build it seeds the process."""

    last: LLM

    def __init__(self, model: str, seed: int, **options: Any) -> None:
        super().__init__(model)
        self.options = options
        torch.manual_seed(seed)
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner))
        type(self).last = self

    def reset_prefix_cache(self) -> None:
        self.num_syncs += 1

    def generate(self, prompts: list[dict[str, Any]], sampling_params: SamplingParams, use_tqdm: bool) -> list[Any]:
        options = vars(sampling_params)
        self.requests.append(options)
        outputs = []
        for prompt in prompts:
            ids, log_p = self.sample(prompt["prompt_token_ids"], options)
            steps = [{i: SimpleNamespace(logprob=value, rank=7)} for i, value in zip(ids, log_p, strict=True)]
            answer = SimpleNamespace(token_ids=ids, logprobs=steps)
            outputs.append(SimpleNamespace(prompt_token_ids=prompt["prompt_token_ids"], outputs=[answer]))
        return outputs


class Client(Engine):
    """TRL's client of a vLLM server, which is this object."""

    last: Client
    folder: str
    failure: Exception | None = None

    def __init__(self, base_url: str, group_port: int, connection_timeout: float) -> None:
        super().__init__(self.folder)
        self.url = base_url
        type(self).last = self

    def init_communicator(self, device: torch.device) -> None:
        pass

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata: list[Any], named_params: Iterator[tuple[str, Tensor]]) -> None:
        announced = [name for name, _, _ in metadata]
        weights = list(named_params)
        assert announced == [name for name, _ in weights]
        self.load_weights(weights)

    def reset_prefix_cache(self) -> None:
        self.num_syncs += 1

    def generate(
        self, prompts: list[list[int]], features: None, n: int, generation_kwargs: dict[str, Any], **options: Any
    ) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        options |= generation_kwargs
        self.requests.append({"n": n, "prompts": prompts, **options})
        answers = [self.sample(prompt, options) for prompt in prompts for _ in range(n)]
        return {
            "prompt_ids": prompts,
            "completion_ids": [ids for ids, _ in answers],
            "logprobs": [[[value] for value in log_p] for _, log_p in answers],
        }


def install(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """Let TRL find this vLLM; the server's model comes from `folder`."""
    monkeypatch.setattr(vllm_rollouts, "require_vllm", lambda: None)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", LLM, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SamplingParams, raising=False)
    monkeypatch.setattr(vllm_generation, "VLLMClient", type("FolderClient", (Client,), {"folder": folder}))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)  # TRL sets them; monkeypatch takes them back
