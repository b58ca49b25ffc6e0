"""docs/code_tasks.md: its recipes and its script are read and trained as they are printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import tests.support.tiny as tiny
from rld.cli import main
from rld.data.recipe_rows import skill_rows
from rld.errors import RewardError
from rld.recipe.reading import read_recipe
from rld.utils import sandbox
from tests.data.test_code_task import HUMANEVAL, MBPP
from tests.support.fleet import FLEET

PAGE = (Path(__file__).parents[2] / "docs" / "code_tasks.md").read_text()
TEACHERS_PAGE = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text()
RECIPE, SHAPES = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL))
(ROW,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
(SCRIPT,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(autouse=True)
def _bubblewrap() -> None:
    try:
        sandbox.require_sandbox()
    except RewardError as error:
        pytest.skip(f"no sandbox here: {error}")


def write_recipe(folder: Path, **keys: Any) -> Path:
    member = FLEET["qwen3_instruct_2507"]
    member.model().save_pretrained(folder / "model")
    member.tokenizer().save_pretrained(folder / "model")
    (folder / "tasks.jsonl").write_text("\n".join(json.dumps({**json.loads(ROW), "prompt": str(i)}) for i in range(6)))
    small = {"models": {"student": "./model", "teacher": "./model"}, "trainer": {"bf16": False, "use_cpu": True}}
    path = folder / "tasks.yaml"
    path.write_text(yaml.safe_dump(RECIPE | small | keys))
    return path


def test_the_recipe_is_checked_and_trained(tmp_path, capsys):
    path = write_recipe(tmp_path)
    fewer = ["skills.code.held_out=2", "stages.distill.steps=1", "stages.distill.rollout={prompts: 2, completions: 2}"]
    assert main(["check", str(path), *fewer]) == 0
    output = capsys.readouterr()
    assert "code:unit_tests" in output.out and "are not correct" not in output.err
    assert main(["train", str(path), *fewer, "--output", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "student" / "config.json").is_file()


def test_teachers_read_the_feedback_on_programs_as_the_page_on_teachers_has_it(tmp_path, capsys):
    """The recipe of that page with these rows: the programs of a model that knows nothing fail, and are told why."""
    (block,) = re.findall(r"```yaml\n(teachers:\n  corrected:.*?)```", TEACHERS_PAGE, flags=re.DOTALL)
    stage = {**RECIPE["stages"][0], **yaml.safe_load(block), "student": "small", "steps": 1, "gate": "off"}
    stage["rollout"] = {"prompts": 2, "completions": 2}
    skills = {"code": {**RECIPE["skills"]["code"], "held_out": 2}}
    options = {"models": {"small": "./model"}, "prompts": {"style": "chat"}, "max_new_tokens": 20}
    path = write_recipe(tmp_path, stages=[stage], skills=skills, **options)
    assert main(["check", str(path)]) == 0
    assert "{feedback}" in capsys.readouterr().out
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 0
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (entry,) = [entry for entry in metrics if "teacher/corrected/informed" in entry]
    assert (entry["teacher/corrected/informed"], entry["teacher/compared/informed"]) == (1, 0)
    assert entry["teacher/corrected/used/code"] == pytest.approx(1)
    assert entry["loss/response"] > 0


def test_the_columns_of_other_data_sets_are_theirs(tmp_path):
    for name, record in ("mbpp", MBPP), ("humaneval", HUMANEVAL):
        rows = [record | {"text": f"{i}", "prompt": f"n = {i}\n{record.get('prompt')}"} for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = write_recipe(tmp_path, **SHAPES)
    overrides = [f"skills.{name}.held_out=1" for name in SHAPES["skills"]]
    sources = skill_rows(read_recipe(path, overrides), tmp_path)
    assert all(source.rows(2, seed=0)[0]["answer"] for source in sources.values())


def test_the_script_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    script = re.sub(r'"HuggingFaceTB/[^"]+"', '"./model"', SCRIPT).replace("max_steps=100", "max_steps=1")
    script = script.replace("max_completion_length=128", "max_completion_length=4, num_generations=2, use_cpu=True")
    scope: dict[str, Any] = {}
    exec(script.replace("bf16=False", "bf16=False, per_device_train_batch_size=4, report_to='none'"), scope)
    assert scope["trainer"].state.global_step == 1
