"""The sizes of the script: those of Qwen2.5 0.5B and 1.5B on a GPU, and small ones that a CPU does in seconds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


@dataclass(frozen=True)
class Width:
    """The sizes of a model."""

    hidden: int
    inner: int
    layers: int
    heads: int
    groups: int


@dataclass(frozen=True)
class Sizes:
    """All that differs between the script on a GPU and its small form."""

    student: Width
    teacher: Width
    vocabulary: int
    prompt: int
    completion: int
    group: int
    groups: int
    updates: int
    repeats: int
    device: torch.device
    spread: float = 0.02
    """Standard deviation of random weights; narrow models need more for attention to matter."""
    half: torch.dtype = torch.bfloat16

    @property
    def num_tokens(self) -> int:
        """Completion tokens of a rollout."""
        return self.groups * self.group * self.completion


def full() -> Sizes:
    return Sizes(
        student=Width(896, 4864, 24, 14, 2),
        teacher=Width(1536, 8960, 28, 12, 2),
        vocabulary=151_936,
        prompt=256,
        completion=192,
        group=8,
        groups=4,
        updates=3,
        repeats=5,
        device=torch.device("cuda"),
    )


def small() -> Sizes:
    return Sizes(
        student=Width(16, 32, 2, 4, 2),
        teacher=Width(32, 48, 2, 4, 2),
        vocabulary=36_000,
        prompt=24,
        completion=16,
        group=2,
        groups=2,
        updates=1,
        repeats=1,
        device=torch.device("cpu"),
        spread=0.3,
    )


def model(width: Width, sizes: Sizes, dtype: torch.dtype, seed: int, attention: str = "sdpa") -> Qwen2ForCausalLM:
    """Return a Qwen2 with random weights on the device."""
    config = Qwen2Config(
        vocab_size=sizes.vocabulary,
        hidden_size=width.hidden,
        intermediate_size=width.inner,
        num_hidden_layers=width.layers,
        num_attention_heads=width.heads,
        num_key_value_heads=width.groups,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        attn_implementation=attention,
        initializer_range=sizes.spread,
    )
    torch.manual_seed(seed)
    with torch.device(sizes.device):
        made = Qwen2ForCausalLM(config)
    return made.to(dtype).eval()


def tokenizer(sizes: Sizes) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one word per token."""
    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, sizes.vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>", padding_side="left"
    )


def rollout(sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids `[B, S]` of groups that share a prompt, and their mask; completions have various lengths."""
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(2, sizes.vocabulary, (sizes.groups, sizes.prompt), generator=draw)
    prompts = prompts.repeat_interleave(sizes.group, 0)
    completions = torch.randint(2, sizes.vocabulary, (len(prompts), sizes.completion), generator=draw)
    lengths = torch.randint(sizes.completion // 2, sizes.completion + 1, (len(prompts), 1), generator=draw)
    mask = torch.cat([torch.ones_like(prompts), (torch.arange(sizes.completion) < lengths).long()], 1)
    return torch.cat([prompts, completions], 1).to(sizes.device), mask.to(sizes.device)
