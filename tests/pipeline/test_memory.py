"""After a stage no model of it is left in memory."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch

from rld.cli import main
from rld.pipeline.model_loading import ModelLoader
from rld.recipe.stages.base import Stage
from tests.support.runs import written

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}], held_out: 4}
models:
  tiny: {new: llama, config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}}
trainer: {learning_rate: 2e-2}
stages:
  - {name: taught, kind: sft, student: tiny, steps: 12, batch: 8, evaluate_every: 6}
  - {name: told, kind: sft, student: tiny, teacher: taught, verify: false, steps: 1, batch: 4, lora: {r: 2}}
  - name: distilled
    kind: distill
    student: told
    teachers: {taught: {model: taught, probe_prompts: 2}}
    signals: {policy: {}, response: {}, feature: {}}
    rollout: {prompts: 2, completions: 2}
    trainer: {beta: 0.1}
    steps: 1
  - {name: cut, kind: prune, model: distilled, layers: 1, intermediate_size: 8, calibration_rows: 4}
  - {name: mean, kind: merge, models: [taught, told]}
  - {name: scores, kind: evaluate, model: mean}
  - {name: last, kind: sft, student: cut, steps: 1, batch: 4}
"""


def test_models_leave_the_memory_with_their_stage(tmp_path, monkeypatch):
    path: Path = written(tmp_path, RECIPE)
    loaded: list[tuple[str, weakref.ref[torch.nn.Module]]] = []
    left: dict[str, list[str]] = {}
    load, run = ModelLoader.load, Stage.run

    def noted(self: ModelLoader, reference: str, *args: Any, **options: Any) -> Any:
        model, tokenizer = load(self, reference, *args, **options)
        loaded.append((reference, weakref.ref(model)))
        return model, tokenizer

    def watched(self: Stage, context: Any) -> None:
        left[self.name] = [name for name, model in loaded if model() is not None]
        run(self, context)

    monkeypatch.setattr(ModelLoader, "load", noted)
    monkeypatch.setattr(Stage, "run", watched)
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 0
    assert len(loaded) >= 10
    assert not any(left.values()), left
