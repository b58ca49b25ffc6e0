"""A user's code in a whole run: its scale, its helpers, code that ends the process, and code that does not return."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rld.cli import main

RECIPE = """\
name: sums
tokenizer: {characters: "0123456789+= "}
models: {small: {new: llama, config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,
                                     num_attention_heads: 2}}}
skills: {sums: {generator: ./sums.py:sums, held_out: 4}}
rewards: [{use: "./mine.py:mine"}]
max_new_tokens: 4
stages:
  - {name: first, kind: distill, student: small, steps: 1, signals: {policy: {}},
     rollout: {prompts: 2, completions: 2}}
"""

EXACT = "rewards.0.use=answers:exact_match"

SUMS = """\
def sums(rng):
    a, b = rng.randrange(100), rng.randrange(100)
    return f"{a}+{b}=", str(a + b)
"""

MARKS = """\
import scale

def mine(completions, answer, **_):
    return [scale.best if text == gold else scale.worst for text, gold in zip(completions, answer)]
"""


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs a command on the recipe with other files, and returns its exit code and stderr."""

    def call(command: str, *overrides: str, **files: str) -> tuple[int, str]:
        for name, text in {"sums": SUMS, "mine": MARKS, "scale": "best, worst = 1, 0", **files}.items():
            (tmp_path / f"{name}.py").write_text(text)
        (tmp_path / "sums.yaml").write_text(RECIPE)
        output = ["--output", str(tmp_path / "run")] if command == "train" else []
        code = main([command, str(tmp_path / "sums.yaml"), *overrides, *output])
        return code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("scale", "value", "overrides"),
    [
        ("best, worst = 10, 0", "10", []),
        ("best, worst = 1, -1", "-1", []),
        ("best, worst = 100, 50", "100", [EXACT, "judge={use: './mine.py:mine'}"]),
        (
            "best, worst = 10, 0",
            "10",
            [
                "rewards.0.use=answers:exact_match",
                "verifier={use: './mine.py:mine'}",
                "judge={use: 'answers:exact_match'}",
            ],
        ),
    ],
)
def test_a_verifier_on_another_scale_is_refused_before_anything_trains(run, tmp_path, scale, value, overrides):
    code, text = run("train", *overrides, scale=scale)
    assert code == 2
    assert "reward 'mine' returned " + value in text and "set success_at to the least value" in text
    assert not (tmp_path / "run").exists()


def test_a_threshold_in_the_rewards_own_scale_decides(run, tmp_path):
    scale = "best, worst = 10, 7"
    for threshold, score in ((8, 0.0), (7, 1.0)):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert run("train", f"rewards.0.success_at={threshold}", scale=scale)[0] == 0
        summary = json.loads((tmp_path / "run/summary.json").read_text())
        assert summary["stages"][0]["after"] == {"sums": score}


def test_a_threshold_without_effect_is_refused(run):
    both = "rewards=[{use: 'answers:exact_match'}, {use: './mine.py:mine', success_at: 2}]"
    assert "success_at has no effect: the first of the rewards is the verifier" in run("check", both)[1]
    other = ["rewards.0.success_at=2", "verifier={use: 'answers:exact_match'}"]
    assert "success_at has no effect beside a verifier; set it there" in run("check", *other)[1]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"mine": "import sys\n\ndef mine(completions, **_):\n    sys.exit(0)\n"},
            r"reward 'mine' called sys.exit(0) (",
        ),
        (
            {"mine": "def mine(completions, **_):\n    raise KeyboardInterrupt\n"},
            "reward 'mine' raised KeyboardInterrupt",
        ),
        ({"mine": "quit()\nmine = print"}, "mine.py:1: importing it called sys.exit()"),
        (
            {"sums": "import sys\ndef sums(rng):\n    sys.exit(3)\n"},
            "skill 'sums', level 0: ./sums.py:sums called sys.exit(3)",
        ),
    ],
)
def test_code_that_ends_the_process_is_an_error(run, files, expected):
    code, text = run("train", **files)
    assert code == 2 and expected in text


def test_a_curriculum_that_ends_the_process_is_an_error(run):
    for body in (
        "    def __init__(self, levels): quit(0)",
        "    def __init__(self, levels): ...\n    def metrics(self): quit(0)",
    ):
        code, text = run("train", "stages.first.curriculum.use=./mine.py:C", mine=f"{MARKS}\nclass C:\n{body}\n")
        assert code == 2 and "curriculum" in text and "called sys.exit(0)" in text and "mine.py:" in text


def test_a_reward_that_does_not_return_is_an_error(run):
    endless = "import time\ndef mine(completions, **_):\n    time.sleep(60)\n"
    code, text = run("train", "rewards.0.timeout_seconds=0.2", mine=endless)
    assert code == 2 and "reward 'mine' did not return within 0.2 seconds (" in text and "timeout_seconds" in text


def test_a_generator_that_does_not_return_is_an_error(run, monkeypatch):
    monkeypatch.setattr("rld.data.skill_rows.CALL_SECONDS", 0.2)
    code, text = run("train", sums="def sums(rng):\n    while True: pass\n")
    assert code == 2 and "./sums.py:sums did not return within 0.2 seconds (" in text


def test_a_reward_that_never_differs_is_told(run, tmp_path, capsys):
    mine = MARKS + "\n\ndef format(completions, **_):\n    return [1.0] * len(completions)\n"
    varied = "def mine(completions, **_):\n    return [i % 2 for i in range(len(completions))]\n"
    rewards = "rewards=[{use: './other.py:mine'}, {use: './mine.py:format'}, {use: './mine.py:mine', weight: 0}]"
    with pytest.warns(UserWarning, match="reward 'format' taught nothing: .* in all 4 groups"):
        code, _ = run("train", rewards, "stages.first.steps=2", mine=mine, other=varied)
    assert code == 0
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert [event["about"] for event in events if event["kind"] == "equal rewards"] == ["format"]
    assert main(["report", str(tmp_path / "run")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "always got the same reward from `format`" in text
