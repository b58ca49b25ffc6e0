"""One verifier decides which answers are correct, in training and outside of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import TrainerState

from rld.cli import main
from rld.data.sft import sft_dataset
from rld.evaluation.predictors.text import TextPredictor
from rld.pipeline.judge import load_judge
from rld.recipe import registry
from rld.recipe.reading import read_recipe
from rld.rollout.rewards import all_checked
from rld.rollout.verifier import askable, verify_answers
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.types import Answer
from tests.support import scoring, tiny

REASONED = "3 + 4 is 7, so the answer is 7."
ROW = {"prompt": "3 + 4 =", "answer": "7", "skill": "sums", "level": 0, "entry": ""}
RECIPE = """\
name: sums
tokenizer: {characters: "0123456789+= soianwert,."}
models: {small: {new: llama, config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,
                                     num_attention_heads: 2}}}
skills: {sums: {generator: ./sums.py:sums, held_out: 4}}
rewards: [{use: "answers:final_number"}]
max_new_tokens: 4
stages: [{name: first, kind: sft, student: small, steps: 1, batch: 2}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sums.py").write_text(
        "def sums(rng):\n    a, b = rng.randrange(100), rng.randrange(100)\n    return f'{a}+{b}=', str(a + b)\n"
    )
    (tmp_path / "mine.py").write_text(
        "def mine(completions, **_):\n    return [1.0] * len(completions)\n"
        "async def slow(completions, **_):\n    return [1.0] * len(completions)\n"
        "def some(completions, **_):\n    return [None] * len(completions)\n"
    )
    (tmp_path / "sums.yaml").write_text(RECIPE)
    return tmp_path


def judged(folder: Path, *overrides: str) -> list[float | None]:
    """What the judge gives to an answer that reasons, the gold answer alone, and a wrong one."""
    judge = load_judge(read_recipe(folder / "sums.yaml", overrides), folder)
    texts = [REASONED, "7", "8"]
    return judge(prompts=["3 + 4 ="] * 3, completions=texts, completion_ids=[[]] * 3, answer=["7"] * 3, entry=[""] * 3)


def test_an_answer_that_reasons_first_counts_alike_everywhere(folder):
    recipe = read_recipe(folder / "sums.yaml")
    judge = load_judge(recipe, folder)
    scores = scoring.shares([ROW], [REASONED], judge, tiny.tokenizer())  # held-out scores, probes and rld evaluate
    assert scores == {"sums": 1.0}

    reward = registry.load("rewards", recipe.verifier_in_use.use, folder)  # the gate's and retention's
    verify = askable(all_checked(reward) or [], TrainerState)
    assert verify is not None
    assert verify_answers(tiny.encoder(), [ROW], [REASONED], verify).rewards == [1.0]

    class Rows:
        is_text = False

        def rows(self, count: int, seed: int, gold: bool) -> list[dict]:
            return [ROW] * count

    stage = recipe.stages[0].model_copy(update={"teacher": "some", "verify": True, "num_rows": 2})
    texts_of = TextPredictor(scoring.settings(judge, 16), {})
    rewards = lambda rows, texts: [r == 1 for r in texts_of.rewards(rows, texts, tiny.tokenizer())]  # noqa: E731
    learnt = sft_dataset(
        stage,
        {"sums": Rows()},
        ["sums"],
        seed=0,
        encode=lambda _, answers: [{"input_ids": list(a.text.encode()), "labels": []} for a in answers],
        teacher=lambda rows: [Answer(REASONED, is_complete=True)] * len(rows),
        verdicts=rewards,
        require=lambda rows: None,
    )
    assert set(map(bytes, learnt["input_ids"])) == {REASONED.encode()}  # the `verify` of fine-tuning


def test_the_judge_is_judge_then_audit_then_verifier_then_the_first_reward(folder):
    assert judged(folder) == [1, 1, 0]
    assert judged(folder, "verifier={use: answers:exact_match}") == [0, 1, 0]
    assert judged(folder, "verifier={use: ./mine.py:mine}", "judge={use: answers:exact_match}") == [0, 1, 0]
    audited = json.dumps(
        [
            {"name": "first", "kind": "sft", "student": "small", "steps": 1, "batch": 2},
            {"name": "last", "kind": "distill", "student": "first", "steps": 1, "signals": {"policy": {}}}
            | {"audit": {"use": "answers:exact_match"}},
        ]
    )
    assert judged(folder, "rewards=[{use: ./mine.py:mine}]", f"stages={audited}") == [0, 1, 0]


@pytest.mark.parametrize("name", ["slow", "some"])
def test_a_judge_that_cannot_say_leaves_it_to_exact_comparison(folder, name, capsys):
    assert judged(folder, f"judge={{use: ./mine.py:{name}}}") == [0, 1, 0]
    assert main(["check", str(folder / "sums.yaml"), f"judge={{use: ./mine.py:{name}}}"]) == 0
    assert ("comparison with the gold answers" in capsys.readouterr().out) == (name == "slow")


def test_a_verifier_of_its_own_decides_successes_and_adds_nothing_to_the_rewards(tmp_path):
    def nothing(completions, **_):
        return [0.0] * len(completions)

    def everything(completions, **_):
        return [1.0] * len(completions)

    made = RLDTrainer(
        tiny.model(),
        [tiny.letters, everything],
        RLDConfig(**tiny.options(tmp_path, max_steps=1, reward_weights=[1.0, 0.5])),
        tiny.rows(),
        processing_class=tiny.tokenizer(),
        verifier=nothing,
    )
    assert made.reward_weights.tolist() == [0.0, 1.0, 0.5]
    made.train()
    assert [x["progress/first"] for x in made.state.log_history if "progress/first" in x] in ([], [0.0])
    assert made.runtime._window.attempts.successes_S.sum() == 0 < made.runtime._window.attempts.attempts_S.sum()
