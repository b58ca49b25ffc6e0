"""Record what three short runs compute, or compare them with such a recording.

    python -m tests.support.unchanged record FILE.json
    python -m tests.support.unchanged compare FILE.json

A restructuring must not change any number, so `compare` allows no tolerance: it prints every difference and exits with
1 if there is one. The runs go through `rld train`, each in a process of its own with one thread. Recordings agree only
on one kind of CPU with the same versions of torch, transformers and TRL; a recording holds both, and `compare` prints
where they differ. `unchanged/baseline.json` was recorded at commit b0fc140.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parents[2]
RECIPES = Path(__file__).with_suffix("")
DIGITS = "01234567"

Json: TypeAlias = Any
Recording: TypeAlias = dict[str, Json]


@dataclass(frozen=True)
class Run:
    """A recipe and its overrides.

    Attributes:
        recipe: A path, or the name of a shipped recipe.
        overrides: `key.path=value`; `{folder}` is a temporary folder.
        prepare: Writes what the recipe needs into that folder.
    """

    recipe: str
    overrides: tuple[str, ...] = ()
    prepare: Callable[[Path], None] = lambda folder: None


def write_foreign_model(folder: Path) -> None:
    """Write a random Llama whose tokenizer has a token for each pair of digits into `folder/foreign`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()

    pairs = list(product(DIGITS, repeat=2))
    tokens = ["<pad>", "<eos>", *pre_tokenizers.ByteLevel.alphabet(), *("".join(pair) for pair in pairs)]
    tokens = tokens[:2] + sorted(tokens[2:])  # the alphabet comes in no fixed order
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "foreign")
    tokenizer.save_pretrained(folder / "foreign")


RUNS = {
    "quickstart": Run(
        "quickstart",
        (
            *(f"skills.{skill}.held_out=30" for skill in ("reverse", "sort", "shift", "rotate")),
            "stages.order.steps=80",
            "stages.letters.steps=60",
            "stages.first_steps.steps=60",
            "stages.distill.steps=22",
            "stages.distill.trainer.learning_rate=2e-3",
            "stages.distill.evaluate_every=10",
            "stages.distill.checkpoint_every=8",
        ),
    ),
    "retention": Run(str(RECIPES / "retention.yaml")),
    "aligned": Run(str(RECIPES / "aligned.yaml"), ("models.foreign={folder}/foreign",), write_foreign_model),
}
METRICS, EVENTS, SUMMARY, REPORT, WEIGHTS = (
    "metrics.jsonl",
    "events.jsonl",
    "summary.json",
    "report.html",
    "student/model.safetensors",
)
CLOCKS = ("seconds", "time/")
"""Beginnings of the names of metrics that depend on the machine's speed."""
NOT_RESULTS = {"seconds", "versions", "command", "fingerprint"}
"""Keys of the summary, at any depth, that are no results."""


def record() -> Recording:
    """Do all runs, two at a time, and return what they computed, and in which environment."""
    with ThreadPoolExecutor(2) as pool:
        runs = dict(zip(RUNS, pool.map(run, RUNS.values()), strict=True))
    versions = next(iter(runs.values()))["versions"]
    environment = {"machine": platform.machine(), "cpu": cpu(), "python": platform.python_version(), **versions}
    return {"environment": environment, "runs": {name: result["results"] for name, result in runs.items()}}


def cpu() -> str:
    """Return the CPU's name, which Linux tells best."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def run(spec: Run) -> dict[str, Json]:
    """Train, and return the `versions` of the libraries and the `results`.

    Raises:
        SystemExit: the run failed; with the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec.prepare(folder)
        overrides = [override.format(folder=folder) for override in spec.overrides]
        command = [sys.executable, "-m", "rld", "train", spec.recipe, "--output", str(folder / "run"), *overrides]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if process.returncode:
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{process.stderr[-4000:]}")
        return {
            "versions": json.loads((folder / "run" / SUMMARY).read_text())["versions"],
            "results": results(folder / "run"),
        }


def results(folder: Path) -> dict[str, Json]:
    """Return what a run left in `folder`, without clocks and paths."""
    report = (folder / REPORT).read_text()
    return {
        "metrics": columns(lines(folder / METRICS)),
        "events": lines(folder / EVENTS),
        "summary": without(json.loads((folder / SUMMARY).read_text()), NOT_RESULTS),
        "report": {tag: report.count(f"<{tag}") for tag in ("svg", "path", "table", "tr")},
        "weights": digest(folder / WEIGHTS),
    }


def lines(path: Path) -> list[dict[str, Json]]:
    """Return the objects of a JSON Lines file; none where nothing was written."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def columns(logged: list[dict[str, Json]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return each metric's values as `[stage][metric][step]`: a table by column, which says each name once."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for line in logged:
        for name, value in line.items():
            if name not in ("stage", "step") and not name.startswith(CLOCKS):
                table.setdefault(line["stage"], {}).setdefault(name, {})[str(line["step"])] = value
    return table


def without(value: Json, keys: set[str]) -> Json:
    """Return a JSON value without some keys of its objects."""
    if isinstance(value, dict):
        return {key: without(inner, keys) for key, inner in value.items() if key not in keys}
    return [without(inner, keys) for inner in value] if isinstance(value, list) else value


def digest(path: Path) -> str:
    """Return the SHA-256 of a safetensors file's tensors: names, types, shapes and bytes in the order of the names."""
    from safetensors import safe_open

    sha = hashlib.sha256()
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name).contiguous()
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()


def differences(before: Json, after: Json, place: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a line for each value that changed, and for each key or row that only one side has."""
    if isinstance(before, list) and isinstance(after, list):
        before, after = (dict(enumerate(rows)) for rows in (before, after))
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        if before != after:
            yield f"{' '.join(place)}: {before!r} -> {after!r}"
        return
    for key in [*before, *(key for key in after if key not in before)]:
        path = (*place, str(key))
        if key in before and key in after:
            yield from differences(before[key], after[key], path)
        else:
            yield f"{' '.join(path)}: only {'before' if key in before else 'after'}"


def compare(before: Recording, after: Recording) -> int:
    """Print how two recordings differ; returns the exit code."""
    for line in differences(before["environment"], after["environment"], ("environment",)):
        print(line)
    changes = list(differences(before["runs"], after["runs"]))
    print("\n".join(changes) or "no differences")
    return 1 if changes else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Record what three short runs compute, or compare with a recording.")
    parser.add_argument("command", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "compare":
        return compare(json.loads(arguments.file.read_text()), record())
    arguments.file.write_text(json.dumps(record(), separators=(",", ":")) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
