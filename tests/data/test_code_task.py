"""Rows of programming tasks, in the shapes of MBPP and HumanEval: read, checked, rewarded and trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rld.rewards.code import unit_tests

import tests.support.tiny as tiny
from rld.cli import main
from rld.data.row_kinds import RowReader
from rld.errors import RewardError
from rld.utils import sandbox

MBPP = {
    "text": "Write a function that doubles a number.",
    "code": "def double(x):\n    return x * two",
    "test_setup_code": "two = 2",
    "test_list": ["assert double(2) == 4", "assert double(-1) == -2"],
    "task_id": 7,
}
MBPP_COLUMNS = {"prompt": "{text}\n{test_list}", "tests": "test_list", "solution": "code", "setup": "test_setup_code"}
HUMANEVAL = {
    "task_id": "own/0",
    "prompt": 'from math import pi\n\n\ndef area(r):\n    """Return the area of a circle."""\n',
    "canonical_solution": "    return pi * r ** 2\n",
    "test": "def check(candidate):\n    assert candidate(0) == 0\n    assert 3.1 < candidate(1) < 3.2\n",
    "entry_point": "area",
}
HUMANEVAL_COLUMNS = {"tests": "test", "solution": "canonical_solution"}


@pytest.fixture
def bubblewrap() -> None:
    try:
        sandbox.require_sandbox()
    except RewardError as error:
        pytest.skip(f"no sandbox here: {error}")


def read(record: dict[str, Any], **columns: str) -> Any:
    ((item, _),) = RowReader("code_task", columns).items(record)
    return item


def test_the_shapes_of_mbpp_and_humaneval_go_in_by_their_columns():
    item = read(MBPP, **MBPP_COLUMNS)
    assert item.question == "Write a function that doubles a number.\nassert double(2) == 4\nassert double(-1) == -2"
    assert item.answer == MBPP["code"]
    assert json.loads(item.entry) == {
        "task_id": 7,
        "tests": "assert double(2) == 4\nassert double(-1) == -2",
        "setup": "two = 2",
    }
    item = read(HUMANEVAL, **HUMANEVAL_COLUMNS)
    entry = json.loads(item.entry)
    assert (item.question, item.answer, entry["prompt"]) == (
        HUMANEVAL["prompt"],
        HUMANEVAL["canonical_solution"],
        HUMANEVAL["prompt"],
    )
    assert entry["tests"].endswith("\ncheck(area)")


@pytest.mark.parametrize(
    ("record", "columns"), [(MBPP, MBPP_COLUMNS), (HUMANEVAL, HUMANEVAL_COLUMNS)], ids=["mbpp", "humaneval"]
)
def test_the_reward_runs_the_tests_of_both(bubblewrap, record, columns):
    item = read(record, **columns)
    name = item.answer.split("(")[0] if record is MBPP else "def area"
    wrong = f"{name}(x):\n    return 0"
    fenced = f"Here it is:\n```python\n{item.answer}\n```"
    assert unit_tests([item.answer, fenced, wrong, ""], [item.entry] * 4) == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a"}, "no tests, but 'prompt'"),
        ({"prompt": "a", "tests": ""}, "tests is empty"),
        ({"prompt": "a", "tests": []}, "nothing in the tests can fail"),
        ({"prompt": "a", "tests": "assert f(1"}, "tests are not Python: '\\(' was never closed"),
        ({"prompt": "a", "tests": "x\0"}, "tests are not Python"),
        ({"prompt": "a", "tests": "['assert f(1) == 2']"}, "nothing in the tests can fail"),
        ({"prompt": "a", "tests": "def check(f):\n    assert f(1)"}, "nothing in the tests can fail"),
        ({"prompt": "a", "tests": "assert f(1)", "entry_point": "f(x)"}, "the name of a function, not 'f\\(x\\)'"),
        ({"prompt": "a", "tests": "assert f(1)", "solution": 3.5}, "solution should be text, not 3.5"),
    ],
)
def test_tasks_that_cannot_be_tested_are_refused(record, message):
    with pytest.raises(ValueError, match=message):
        read(record)


def recipe(folder: Path, **keys: Any) -> str:
    """A recipe of tasks in which the second solution is wrong."""
    tasks = [{"prompt": f"f{i}", "tests": f"assert x == {i}", "solution": f"x={i}"} for i in range(6)]
    tasks[1]["solution"] = "x=7"
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    tree = {
        "name": "code",
        "tokenizer": {"characters": "abcdefghijklmnopqrstuvwxyz=0123456789"},
        "models": {"small": {"new": "llama", "config": {"hidden_size": 16, "num_attention_heads": 2}}},
        "max_new_tokens": 6,
        "skills": {"code": {"file": "tasks.jsonl", "kind": "code_task", "held_out": 2}},
        "stages": [
            {"name": "tune", "kind": "sft", "student": "small", "steps": 1, "batch": 2},
            {
                "name": "reinforce",
                "kind": "distill",
                "student": "tune",
                "steps": 1,
                "rollout": {"prompts": 2, "completions": 2},
            },
        ],
        **keys,
    }
    (folder / "code.yaml").write_text(json.dumps(tree))
    return str(folder / "code.yaml")


def test_a_solution_that_fails_its_tests_is_named_and_the_tests_are_the_reward(bubblewrap, tmp_path, capsys):
    path = recipe(tmp_path)
    assert main(["check", path]) == 0
    output = capsys.readouterr()
    assert "code:unit_tests x 1" in output.out
    assert "of the first 6 gold answers 1 are not correct for it (tasks.jsonl:2)" in output.err
    assert main(["train", path, "--output", str(tmp_path / "run")]) == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "reward/unit_tests" in last


def test_tasks_without_a_solution_under_a_stage_that_learns_them_are_refused(bubblewrap, tmp_path, capsys):
    path = recipe(tmp_path)
    tasks = [{"prompt": f"f{i}", "tests": f"assert x == {i}"} for i in range(6)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    assert main(["check", path]) == 2
    assert "; stage 'tune' (sft) learns gold answers: give each row its `solution`, or" in capsys.readouterr().err


def test_without_bubblewrap_it_is_refused_by_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None if name == "bwrap" else f"/usr/bin/{name}")
    for cached in (sandbox._sandbox, sandbox._interpreter):
        cached.cache_clear()
    path = recipe(tmp_path)
    try:
        for command in (["check", path], ["train", path, "--output", str(tmp_path / "run")]):
            assert main(command) == 2
            assert "needs bwrap: install the packages bubblewrap and util-linux" in capsys.readouterr().err
    finally:
        for cached in (sandbox._sandbox, sandbox._interpreter):
            cached.cache_clear()
    assert not (tmp_path / "run").exists()


def test_rewards_of_several_kinds_are_to_be_named(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 2)
    skills = {"code": {"file": "tasks.jsonl", "kind": "code_task", "held_out": 2}, "it": {"file": "rows.jsonl"}}
    assert main(["check", recipe(tmp_path, skills=skills)]) == 2
    assert "checked by answers:exact_match and code:unit_tests; name the recipe's rewards" in capsys.readouterr().err
