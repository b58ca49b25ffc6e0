"""The tutorial's script writes its rows, and its recipe grows block by block into one that trains, with fewer steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rld.cli import main
from rld.recipe.reading import read_recipe

TEXT = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text()


def test_the_tutorial_trains_as_it_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows, reward = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    recipe, rewards, *stages, _models = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(rows, {})
    Path("my_rewards.py").write_text(reward)
    Path("mine.yaml").write_text(recipe)
    assert main(["check", "mine.yaml"]) == 0
    assert main(["train", "mine.yaml", "stages.teacher.steps=2", "stages.first_steps.steps=2"]) == 0
    summary = Path("runs/mine/summary.json")
    trained = json.loads(summary.read_text())["stages"]
    Path("mine.yaml").write_text(recipe.replace("stages:\n", f"{rewards}stages:\n") + "".join(stages))
    assert main(["check", "mine.yaml"]) == 0
    assert "caution: stage" not in capsys.readouterr().err
    fewer = [f"stages.{name}.steps=2" for name in ("teacher", "first_steps", "reinforced", "distilled")]
    assert main(["train", "mine.yaml", "--resume", "--accept-changes", *fewer]) == 0
    assert json.loads(summary.read_text())["stages"][:2] == trained
    log = Path("runs/mine/metrics.jsonl").read_text()
    assert '"reward/length"' in log and '"level/sums"' in log


def test_its_last_block_takes_the_place_of_the_new_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, _rewards, *stages, models = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    head = re.sub(r"tokenizer:.*\n|models:\n( .*\n)*|stages:\n( .*\n)*", "", recipe)
    stage = stages[-1].replace("first_steps", "small").replace("{model: teacher}", "{model: large}")
    Path("sums.jsonl").write_text("\n".join(f'{{"question": "{i}+1=", "answer": "{i + 1}"}}' for i in range(200)))
    Path("pretrained.yaml").write_text(f"{head}{models}rewards: [{{use: answers:exact_match}}]\nstages:\n{stage}")
    assert [stage.student for stage in read_recipe(Path("pretrained.yaml")).stages] == ["small"]
