"""Small models, a tokenizer and rows, built in milliseconds, for tests that need the real trainers."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rld.models.prompting import PromptEncoder

WORDS = "abcdefghij"


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter, with a chat template."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", ":", "=", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    made.chat_template = (
        "{% for m in messages %}{{ m['content'] }}:{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    return made


def encoder() -> PromptEncoder:
    """The tokenizer as an encoder of prompts."""
    return PromptEncoder(tokenizer())


def model(seed: int = 0, width: int = 32, layers: int = 2, vocabulary: int = 15, **changes: Any) -> LlamaForCausalLM:
    """A Llama with random weights; `changes` are of its configuration."""
    torch.manual_seed(seed)
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        **changes,
    }
    return LlamaForCausalLM(LlamaConfig(**config))


def rows(num: int = 16, chat: bool = False) -> Dataset:
    """Prompts such as `ab=` of two skills, with a gold answer."""
    prompts = [WORDS[i % 10] + WORDS[(3 * i + 1) % 10] for i in range(num)]
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": p}] for p in prompts] if chat else [p + "=" for p in prompts],
            "answer": [p[::-1] for p in prompts],
            "skill": ["first" if i % 2 else "second" for i in range(num)],
            "level": [0] * num,
        }
    )


def text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def letters(completions: list[Any], **_: Any) -> list[float]:
    """A dense reward: the share of a's and b's."""
    return [sum(c in "ab" for c in text(x)) / max(len(text(x)), 1) for x in completions]


def weights(trainer: Any) -> torch.Tensor:
    """Return the student's weights, one after the other, without the wrappers of several processes."""
    student = trainer.accelerator.unwrap_model(trainer.model)
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])


def options(folder: Any, **changes: Any) -> dict[str, Any]:
    """Training arguments for a handful of deterministic steps on the CPU."""
    return {
        "output_dir": str(folder),
        "max_steps": 5,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": False,
        "activation_checkpointing": False,
        **changes,
    }


def rld_options(folder: Any, **changes: Any) -> dict[str, Any]:
    """Arguments of `RLDConfig`: teachers with random weights answer nothing correctly, so no gate keeps them out."""
    return options(folder, **{"gate": "off", **changes})
