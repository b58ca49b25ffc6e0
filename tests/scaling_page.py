"""Writes the tables of docs/scaling.md: `python -m tests.scaling_page`. A test holds the page to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rld.recipe import hardware
from rld.recipe.cost import stage_costs
from rld.recipe.hardware import CARDS, Cards, Estimate, estimate
from rld.recipe.schema import Recipe
from rld.recipe.sizes import Lengths, StageCost, quantity
from rld.reporting.series import duration
from rld.utils.flops import forward_flops, frozen_bytes

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- {}: written by python -m tests.scaling_page -->\n", "<!-- end of {} -->\n"

_HEADS_OF_8 = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256}
MODELS = {  # the shapes of Llama 3.2 1B, Llama 3.1 8B and 70B, and of Qwen3 32B
    "1B": ("llama", {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}),
    "8B": ("llama", {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32}),
    "32B": ("qwen3", {"hidden_size": 5120, "intermediate_size": 25_600, "num_hidden_layers": 64}),
    "70B": ("llama", {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80}),
}
_HEADS = {"1B": 32, "8B": 32, "32B": 64, "70B": 64}
_PROMPTS, _COMPLETIONS, _LENGTHS = 64, 8, Lengths(prompt=512, answer=1024)
_PER_FORWARD = 4
"""Completions of a forward and backward on each GPU."""
_CARD = "H100"


class Setup(NamedTuple):
    """A student with teachers in its process and on servers."""

    student: str
    local: tuple[str, ...]
    served: tuple[str, ...]
    training: int
    """GPUs of the training."""
    serving: int = 0
    """GPUs of all servers."""


SETUPS = [
    Setup("1B", ("8B", "32B"), (), 8),
    Setup("1B", ("8B",), ("32B",), 4, 4),
    Setup("1B", (), ("8B", "32B"), 4, 4),
    Setup("1B", ("8B",), ("32B",), 32, 32),
    Setup("1B", ("8B",), ("32B",), 24, 40),
    Setup("8B", ("70B",), (), 8),
    Setup("8B", (), ("70B",), 4, 4),
    Setup("8B", (), ("70B",), 32, 32),
    Setup("8B", (), ("70B",), 40, 24),
]


def config(name: str) -> dict[str, object]:
    """Return the options of a model's configuration."""
    kind, options = MODELS[name]
    every = {**_HEADS_OF_8, "num_attention_heads": _HEADS[name], "tie_word_embeddings": name == "1B", **options}
    return {"new": kind, "config": every | ({"vocab_size": 151_936} if name == "32B" else {})}


def cost(student: str, teachers: Sequence[str], num_gpus: int) -> StageCost:
    """Return what `rld check` plans for one update of a student and the teachers in its process."""
    accumulation = max(_PROMPTS * _COMPLETIONS // (_PER_FORWARD * num_gpus), 1)
    spec = {"from_pretrained": {"dtype": "bfloat16"}, "probe_prompts": 0}
    stage = {
        "name": "distill",
        "kind": "distill",
        "student": student,
        "teachers": {f"t{name}": {"model": name, **spec} for name in teachers},
        "signals": {"policy": {}, "response": {}, "gold": None},
        "gate": "off",
        "rollout": {"prompts": _PROMPTS, "completions": _COMPLETIONS},
        "steps": 1,
        "trainer": {"gradient_accumulation_steps": accumulation},
    }
    recipe = Recipe.model_validate(
        {
            "name": "scaling",
            "tokenizer": {"characters": "ab"},
            "models": {name: config(name) for name in MODELS},
            "skills": {"s": {"generator": "a.b:c"}},
            "max_new_tokens": int(_LENGTHS.answer),
            "stages": [stage],
        }
    )
    return stage_costs(recipe, Path(), {"s": _LENGTHS})["distill"]


def planned(setup: Setup) -> tuple[Estimate, float, float]:
    """Return the estimate of a training's GPUs, and the seconds and bytes of a GPU of the servers."""
    own = cost(setup.student, setup.local, setup.training)
    assert own.flops_by_account is not None
    assert own.demand is not None
    sizes = [cost(name, (), 1).parameters or 0 for name in setup.served]
    tokens = _PROMPTS * (_LENGTHS.prompt + _COMPLETIONS * _LENGTHS.answer)
    flops = sum(forward_flops(size, tokens) for size in sizes)
    seconds = flops / (max(setup.serving, 1) * CARDS[_CARD].flops * hardware.SCORING_SHARE)
    num_bytes = sum(frozen_bytes(size, "bfloat16") for size in sizes) / max(setup.serving, 1)
    return estimate(own.flops_by_account, own.demand, Cards(_CARD, setup.training)), seconds, num_bytes


def setups() -> str:
    heads = "student ← teachers", "GPUs: training + servers", "on servers", "a training GPU", "a server GPU"
    times = "sampling", "teachers", "student", "an update", "1,000 updates"
    lines = ["| " + " | ".join(heads + times) + " |", "|" + "---|" * len(heads + times)]
    for setup in SETUPS:
        own, served, num_bytes = planned(setup)
        scoring = max(own.seconds.get("teachers", 0.0), served)
        parts = [own.seconds["generation"], scoring, own.seconds["student"]]
        fits = own.sharded_bytes <= CARDS[_CARD].memory
        row = [
            f"{setup.student} ← {' + '.join(setup.local + setup.served)}",
            f"{setup.training} + {setup.serving}" if setup.serving else str(setup.training),
            ", ".join(setup.served) or "none",
            f"{quantity(round(own.sharded_bytes))}B" + ("" if fits else ": **does not fit**"),
            f"{quantity(round(num_bytes))}B" if setup.serving else "",
            *(f"**{duration(part)}**" if part == max(parts) else duration(part) for part in parts),
            duration(sum(parts)),
            duration(1000 * sum(parts)),
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def cards() -> str:
    lines = ["| card | peak in bf16 | bandwidth | memory |", "|---|---|---|---|"]
    for name, card in CARDS.items():
        numbers = [quantity(round(x)) for x in card]
        lines.append(f"| {name} | {numbers[0]}FLOP/s | {numbers[1]}B/s | {numbers[2]}B |")
    shares = hardware.TRAINING_SHARE, hardware.SCORING_SHARE, hardware.SAMPLING_SHARE
    training, scoring, sampling = (f"{share:.0%}" for share in shares)
    reached = f"{training} of the peak in training, {scoring} in scoring, {sampling} of the bandwidth in sampling"
    return "\n".join(lines) + f"\n\nAssumed to be reached: {reached}.\n"


TABLES = {"setups": setups, "cards": cards}


def page(text: str) -> str:
    """Return the page's text with its tables as they should be."""
    for name, table in TABLES.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, rest = text.split(begin)
        text = before + begin + table() + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
