"""docs/corpora.md and docs/pruning.md: recipes and script are trained as they are printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from rld.cli import main
from tests.support.fleet import FLEET

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "corpora.md").read_text()
SKILLS, STAGES = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
(PRUNED,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "pruning.md").read_text(), flags=re.DOTALL)
(SCRIPT,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with the texts and the model that the page names."""
    for i, name in enumerate(("one", "two", "deep/three", "deep/four", "five")):
        path = tmp_path / "texts" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Is it {i}? Yes, it is!\n\n" * (3 + i))
    member = FLEET["byte_level"]
    member.model().save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace("PerfectModel", "LlamaForCausalLM"))
    member.tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_recipe_is_checked_and_trained(folder, capsys):
    head = {
        "name": "page",
        "models": {"large": "./model", "small": "./model"},
        "trainer": {"use_cpu": True, "bf16": False},
    }
    (folder / "page.yaml").write_text(yaml.safe_dump(head) + SKILLS + STAGES)
    assert main(["check", "page.yaml"]) == 0
    assert re.search(r"prose\s+│\s+5\s+│", capsys.readouterr().out)
    assert main(["train", "page.yaml", "--output", "run"]) == 0
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert "nats_per_byte" in json.dumps(summary)
    losses = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss/gold", "loss/response", "loss/feature", "padding"} <= losses[-1].keys()


def test_the_recipe_of_a_pruned_student_is_checked_and_trained(folder):
    model = "{new: llama, tokenizer: ./model, config: {hidden_size: 16, num_attention_heads: 2, num_hidden_layers: 2}}"
    recipe = re.sub(r"whole: Hugging.*", f"whole: {model}", PRUNED) + "trainer: {use_cpu: true, bf16: false}\n"
    (folder / "half.yaml").write_text(recipe)
    smaller = ["stages.cut.layers=1", "stages.healed.steps=2", "skills.prose.block=16", "skills.prose.held_out=0.2"]
    assert main(["check", "half.yaml", *smaller]) == 0
    assert main(["train", "half.yaml", *smaller, "--output", "run"]) == 0
    cut, healed = json.loads((folder / "run" / "summary.json").read_text())["stages"]
    assert cut["after"] == healed["before"] != cut["before"]


def test_its_script_runs(folder):
    exec(SCRIPT, {})
