"""docs/corpora.md: its recipe and its script are trained as they are printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from rld.cli import main
from tests.support.fleet import FLEET

PAGE = (Path(__file__).parents[2] / "docs" / "corpora.md").read_text()
SKILLS, STAGES = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
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


def test_its_script_runs(folder):
    exec(SCRIPT, {})
