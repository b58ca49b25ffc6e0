"""The pages on data and on the kinds of rows: what they show is read, checked and trained as it is printed."""

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
from rld.data.row_kinds import RowReader
from rld.recipe.reading import read_recipe
from tests.support.fleet import FLEET

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)


RECIPES = [yaml.safe_load(block) for block in blocks("data", "yaml")]
REWARD, SCRIPT = blocks("questions", "python")
(TALK_SCRIPT,) = blocks("conversations", "python")

STAGES = """
name: page
models: {small: ./model}
max_new_tokens: 4
bad_rows: refuse
trainer: {bf16: false, use_cpu: true}
stages:
  - {name: imitate, kind: sft, student: small, steps: 1, batch: 4}
  - name: distil
    kind: distill
    student: imitate
    teachers: {teacher: {model: small, probe_prompts: 4}}
    rollout: {prompts: 2, completions: 2}
    steps: 1
"""
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Look it up.", "parameters": {}}}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the files that the page names."""
    news = [f'{"Sports" if i % 2 else "World"},Title {i},"Text, {i}",{"paper" if i % 3 else "web"}' for i in range(6)]
    (tmp_path / "news.csv").write_text("\n".join(["label,title,text,source", *news]))
    talks = [
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"{i}?"},
            {"role": "assistant", "content": "No"},
            {"role": "user", "content": f"{i + 1}?"},
            {"role": "assistant", "content": "Yes"},
        ]
        for i in range(6)
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join(json.dumps({"messages": t, "tools": [TOOL]}) for t in talks))
    (tmp_path / "problems.csv").write_text("\n".join(["question,answer", *(f"{i} and 1?,{i + 1}" for i in range(6))]))
    member = FLEET["qwen3_instruct_2507"]
    member.model().save_pretrained(tmp_path / "model")
    member.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def written(folder: Path, fragment: dict[str, Any], **keys: Any) -> Path:
    path = folder / "page.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(STAGES) | fragment | keys))
    return path


def test_columns_are_read_and_the_reward_gets_the_others(folder):
    (folder / "mine.py").write_text(REWARD)
    (fragment,) = [recipe for recipe in RECIPES if "topics" in recipe["skills"]]
    recipe = read_recipe(written(folder, fragment, rewards=[{"use": "./mine.py:from_papers"}]))
    rows = skill_rows(recipe, folder)["topics"].rows(20, seed=0)
    assert {(row["prompt"], row["answer"]) for row in rows} <= {
        (f"Title {i}\nText, {i}", "Sports" if i % 2 else "World") for i in range(6)
    }
    scope: dict[str, Any] = {}
    exec(REWARD, scope)
    texts, answers, entries = zip(*((row["answer"], row["answer"], row["entry"]) for row in rows), strict=True)
    assert set(scope["from_papers"](texts, answers, entries)) == {1.0, None}


def test_conversations_with_tools_are_checked_and_trained(folder, capsys):
    (fragment,) = [recipe for recipe in RECIPES if "help" in recipe["skills"]]
    path = written(folder, fragment)
    assert main(["check", str(path)]) == 0
    assert "# Tools" in capsys.readouterr().out
    assert main(["train", str(path), "--output", str(folder / "run")]) == 0
    assert (folder / "run" / "student" / "config.json").is_file()


def test_labelled_rows_are_checked_and_trained(folder, capsys):
    (fragment,) = [recipe for recipe in RECIPES if "sections" in recipe["skills"]]
    with (folder / "news.csv").open("a") as file:
        file.write("\n,Title 6,Nobody knows,web\n")
    path = written(folder, fragment, max_new_tokens=8)
    assert main(["check", str(path)]) == 0
    assert "Title" in capsys.readouterr().out
    assert main(["train", str(path), "--output", str(folder / "run")]) == 0
    assert (folder / "run" / "student" / "config.json").is_file()


def test_the_conversation_that_the_page_shows_has_two_answers():
    (row,) = blocks("conversations", "json")
    items = RowReader("conversation", options={"turns": "all"}).items(json.loads(row))
    assert [(len(item.messages), item.answer) for item, _ in items] == [(4, "Three coins."), (6, "Six coins.")]


CONFIG = "{hidden_size: 16, intermediate_size: 16, num_attention_heads: 2, num_hidden_layers: 1}"
SHORTER = {
    "questions": ["skills.topics.held_out=2"],
    "conversations": [],
    "reasoning": [  # its teacher has something to say, and is never right
        "skills.problems.held_out=2",
        "stages.imitate.verify=false",
        f"models.teacher={{new: llama, tokenizer: ./model, config: {CONFIG}}}",
    ],
}


@pytest.mark.parametrize("page", SHORTER)
def test_the_recipe_of_a_kind_of_rows_is_checked_and_trained(folder, page, capsys):
    (recipe,) = (yaml.safe_load(block) for block in blocks(page, "yaml"))
    (folder / "talks_held_out.jsonl").write_text((folder / "talks.jsonl").read_text().splitlines()[0])
    models = dict.fromkeys(recipe["models"], "./model")
    path = folder / "page.yaml"
    path.write_text(yaml.safe_dump(recipe | {"models": models, "trainer": {"bf16": False, "use_cpu": True}}))
    shorter = [f"stages.{stage['name']}.steps=1" for stage in recipe["stages"]]
    shorter += ["stages.distill.rollout={prompts: 2, completions: 2}", "max_new_tokens=8"]
    shorter += SHORTER[page]
    assert main(["check", str(path), *shorter]) == 0
    assert main(["train", str(path), *shorter, "--output", str(folder / "run")]) == 0
    assert (folder / "run" / "student" / "config.json").is_file()


@pytest.mark.parametrize("script", [SCRIPT, TALK_SCRIPT], ids=["questions", "conversations"])
def test_the_script_of_a_kind_of_rows_trains(folder, script, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    tiny.model().save_pretrained("tiny")
    tiny.tokenizer().save_pretrained("tiny")
    script = re.sub(r'"(HuggingFaceTB|Qwen)/[^"]+"', '"./tiny"', script).replace("max_steps=100", "max_steps=1")
    script = re.sub(r"max_completion_length=\d+", "max_completion_length=4, num_generations=2, use_cpu=True", script)
    scope: dict[str, Any] = {}
    exec(script.replace("bf16=False", "bf16=False, per_device_train_batch_size=4, report_to='none'"), scope)
    assert scope["trainer"].state.global_step == 1
