"""Students cut from a larger model, and random ones with another model's tokenizer, in recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rld.cli import main
from rld.pipeline.run import RunContext
from rld.recipe.reading import read_recipe
from rld.recipe.sizes import quantity
from tests.support import tiny

RECIPE = """
name: cut
max_new_tokens: 4
prompts: {style: chat}
skills: {swap: {file: rows.jsonl, held_out: 4}}
rewards: [{use: answers:exact_match}]
models:
  large: ./large
  small: {prune: large, layers: 2, layers_by: influence, intermediate_size: 40, heads_per_group: 1, calibration_rows: 8}
  shallow: {prune: large, layers: [0, 3]}
  random:
    new: qwen2
    tokenizer: large
    config:
      {hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1}
stages:
  - {name: heal, kind: sft, student: small, steps: 2, batch: 4, checkpoint_every: 1}
  - name: learn
    kind: distill
    student: random
    teachers: {large: {model: large, probe_prompts: 4}, healed: {model: heal, probe_prompts: 4}}
    steps: 1
    rollout: {prompts: 2, completions: 2}
  - {name: shallow_heal, kind: sft, student: shallow, steps: 1, batch: 4}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    model = tiny.model(layers=4)
    model.save_pretrained(tmp_path / "large")
    tiny.tokenizer().save_pretrained(tmp_path / "large")
    rows = [{"question": a + b, "answer": b + a} for a in "abcdef" for b in "ghij"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "cut.yaml"
    path.write_text(RECIPE)
    return path


def test_cut_and_random_students_train_like_others(recipe: Path, tmp_path: Path) -> None:
    assert main(["train", str(recipe), "--output", str(tmp_path / "run")]) == 0
    models = tmp_path / "run" / "models"
    healed: Any = AutoModelForCausalLM.from_pretrained(models / "heal")
    assert (healed.config.num_hidden_layers, healed.config.intermediate_size) == (2, 40)
    assert (healed.config.num_attention_heads, healed.config.head_dim) == (2, 8)
    assert len(healed.config.origin_layers) == 2
    learnt: Any = AutoModelForCausalLM.from_pretrained(models / "learn")
    assert learnt.config.model_type == "qwen2"
    assert learnt.config.vocab_size == len(tiny.tokenizer())
    tokenizer = AutoTokenizer.from_pretrained(models / "learn")
    assert tokenizer.get_vocab() == tiny.tokenizer().get_vocab()
    assert tokenizer.chat_template == tiny.tokenizer().chat_template
    shallow: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")
    assert shallow.config.origin_layers == [0, 3]


def test_check_counts_the_parameters_of_what_is_built(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe)]) == 0
    printed = capsys.readouterr().out
    source = read_recipe(recipe)
    run = RunContext(source, recipe, recipe.parent / "run", resume=False)
    for name in ("small", "random", "shallow"):
        built = run.models.load(name)[0].num_parameters()
        assert f"{name}, {quantity(built)} parameters" in printed


def test_a_random_student_has_the_tokenizer_of_a_folder_without_a_model(recipe, tmp_path, capsys):
    tiny.tokenizer().save_pretrained(tmp_path / "words")
    recipe.write_text(recipe.read_text().replace("tokenizer: large", "tokenizer: ./words"))
    test_check_counts_the_parameters_of_what_is_built(recipe, capsys)
    (tmp_path / "words" / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")
    assert main(["check", str(recipe)]) == 2
    assert "tokenizer.json is a Git LFS pointer and not the file itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("prune: large, layers: 2,", "prune: lrage, layers: 2,", "there is no model 'lrage'; did you mean 'large'?"),
        ("prune: large, layers: [0, 3]", "prune: large", "models.shallow cuts nothing: set layers"),
        ("layers: [0, 3]", "layers: [0, 4]", "the model has layers 0 to 3"),
        ("layers: 2,", "layers: 5,", "5 layers cannot be kept: the model has 4"),
        ("intermediate_size: 40", "intermediate_size: 400", "400 feed-forward units cannot be kept: the model has 64"),
        ("prune: large, layers: [0, 3]", "prune: random, layers: 1", "'random' should stand before 'shallow'"),
        (", num_key_value_heads: 1", "", "num_attention_heads (2) should be a multiple of num_key_value_heads (32)"),
        ("tokenizer: large", "tokenizer: lrage", "there is no model 'lrage'"),
    ],
)
def test_what_cannot_be_built_is_told_by_check(
    recipe: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    recipe.write_text(recipe.read_text().replace(old, new))
    assert main(["check", str(recipe)]) == 2
    assert message in capsys.readouterr().err
