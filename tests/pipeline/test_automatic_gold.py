"""The default controller lets the student learn gold answers by itself, where they are ones to learn from."""

from __future__ import annotations

import json

import pytest

from rld.cli import main
from rld.pipeline.recipe_check import check_recipe
from rld.recipe.measurement_cost import first_answer_flops
from rld.recipe.reading import read_recipe
from rld.recipe.sizes import Sizes
from rld.utils.files import read_jsonl
from rld.utils.flops import forward_flops
from tests.support.runs import one_thread, written

__all__ = ["one_thread"]

RECIPE = """
name: gold
tokenizer: {characters: "abcdx:="}
max_new_tokens: 3
skills:
  copy: {file: copy.jsonl, held_out: 2}
  refused: {generator: ./tasks.py:refused, levels: [{length: 2}], held_out: 2}
  long: {generator: ./tasks.py:copy, levels: [{length: 3}], held_out: 2}
rewards: [{use: "./tasks.py:paid"}]
models:
  small: {new: llama, config: {hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 1}}
stages:
  - {name: first, kind: sft, student: small, skills: [refused], steps: 1, batch: 2}
  - name: learn
    kind: distill
    student: first
    teachers: {one: {model: first}}
    signals: {policy: {}, response: {}}
    rollout: {prompts: 8, completions: 2}
    steps: 6
"""

SKILLS = ["copy", "refused", "long"]

TASKS = """
def copy(rng, *, length):
    word = "".join(rng.choices("abcd", k=length))
    return f"a:{word}=", word

def refused(rng, *, length):
    return copy(rng, length=length)[0], "x"

def paid(completions, answer, **_):
    return [float(text[:2] == gold[:2] != "x") for text, gold in zip(completions, answer)]

async def later(completions, answer, **_):
    return paid(completions, answer)
"""


def test_where_rows_have_no_answer_to_learn_teachers_may_answer_them(tmp_path):
    words = ["abc", *(a + b for a in "abcd" for b in "abcd")]
    rows = [{"question": f"{i:b}=".replace("0", "a").replace("1", "b"), "answer": words[i % 17]} for i in range(120)]
    rows = [row for i, row in enumerate(rows) if len(row["answer"]) < 3 or not i]  # one is too long to be learnt
    (tmp_path / "copy.jsonl").write_text("\n".join(map(json.dumps, rows)))
    taught = "stages.learn.teachers.one.skills=[copy, refused]"
    assert main(["train", str(written(tmp_path, RECIPE, TASKS)), taught, "--output", str(tmp_path / "run")]) == 0
    log = read_jsonl(tmp_path / "run" / "metrics.jsonl").records
    shares = [[entry[f"gold_share/{skill}"] for skill in SKILLS] for entry in log if "gold_share/copy" in entry]
    assert shares[0] == shares[-1] == [31 / 32, 31 / 32, 0.0]
    answered = [key for entry in log for key in entry if key.startswith("answered/")]
    assert set(answered) == {"answered/refused"}
    events = read_jsonl(tmp_path / "run" / "events.jsonl").records
    kinds = {event["skill"]: event["kind"] for event in events if "gold answers" in event["kind"]}
    assert kinds == {"refused": "gold answers of teachers", "long": "gold answers off"}
    reasons = {event["skill"]: event["measured"] for event in events if "gold answers" in event["kind"]}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stages"][-1]["flops_by_account"]["answers"] > 0
    assert reasons["refused"] == "the verifier ./tasks.py:paid does not accept 'x'"
    assert "takes 4 tokens with its end, and 3 are allowed" in reasons["long"]


def test_the_student_itself_does_not_answer_rows_without_an_answer_to_learn(tmp_path):
    (tmp_path / "copy.jsonl").write_text("\n".join(json.dumps({"prompt": f"{a}{b}="}) for a in "abcd" for b in "abc"))
    itself = 'stages.learn.teachers={one: {model: first}, itself: {model: student, prompt: "{question}"}}'
    overrides = [itself, "stages.learn.skills=[copy]", "max_new_tokens=4"]
    recipe = str(written(tmp_path, RECIPE, TASKS + SAYS_X))
    rewards = "rewards=[{use: './tasks.py:says_x'}]"
    assert main(["train", recipe, *overrides, rewards, "--output", str(tmp_path / "run")]) == 0
    events = read_jsonl(tmp_path / "run" / "events.jsonl").records
    (off,) = [event["measured"] for event in events if event["kind"] == "gold answers off"]
    assert off.endswith("signals.gold: {answers: teachers} learns correct answers of teachers in their place")


@pytest.mark.parametrize(
    ("overrides", "has_gold"),
    [
        ([], True),
        (["stages.learn.signals.gold=null"], False),
        (["stages.learn.signals={response: {}}"], False),
        (["stages.learn.signals={policy: {}}", "stages.learn.teachers={}"], False),
        (["stages.learn.controller={kind: fixed}"], False),
        (["stages.learn.controller={kind: fixed}", "stages.learn.signals.gold={}"], True),
        (["stages.learn.rollout.temperature=0.9"], False),
        (["stages.learn.rollout.gold_completions=1"], False),
        (["stages.learn.curriculum.use=ladder:Ladder"], False),
        (["stages.learn.curriculum.use=ladder:Ladder", "stages.learn.signals.gold={}"], True),
    ],
)
def test_what_a_recipe_says_goes_first(tmp_path, overrides, has_gold):
    (tmp_path / "copy.jsonl").touch()
    recipe = read_recipe(written(tmp_path, RECIPE, TASKS), overrides)
    assert recipe.stages[1].has_gold_prompts is has_gold
    sampled_by_vllm = recipe.stages[1].model_copy(update={"trainer": {"use_vllm": True}})
    assert sampled_by_vllm.has_gold_prompts is (has_gold and "stages.learn.signals.gold={}" in overrides), (
        "unless the recipe names it"
    )


OF_TEACHERS = "correct answers of teachers are learnt, for "
NONE = "no gold answer is learnt, for "


@pytest.mark.parametrize(
    ("overrides", "skill", "text"),
    [
        ([], "copy", None),
        ([], "refused", f"{OF_TEACHERS}the verifier ./tasks.py:paid does not accept 'x'"),
        (["stages.learn.teachers.one.skills=[copy]"], "refused", f"{NONE}the verifier ./tasks.py:paid does not"),
        ([], "long", "takes 4 tokens with its end, and 3 are allowed"),
        (["stages.learn.signals.gold=null"], "long", None),
        (["rewards=[{use: './tasks.py:later'}]"], "copy", f"{NONE}the verifier ./tasks.py:later cannot"),
        (["prompts.strip_thinking=true"], "copy", f"{OF_TEACHERS}answers have no thinking"),
        (
            ["prompts.strip_thinking=true", "stages.learn.signals.gold={answers: either}"],
            "copy",
            f"{OF_TEACHERS}answers have no thinking",
        ),
    ],
)
def test_the_check_says_where_the_answers_of_rows_are_not_learnt(tmp_path, capsys, overrides, skill, text):
    rows = [{"question": f"{letter}=", "answer": letter} for letter in "abcd"]
    (tmp_path / "copy.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["check", str(written(tmp_path, RECIPE, TASKS)), *overrides]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if f"stage 'learn', skill '{skill}': " in line]
    assert len(told) == (text is not None)
    assert text is None or text in told[0]


WITHOUT_ANSWERS = [
    "max_new_tokens=4",
    "stages.first.steps=150",
    "stages.first.batch=16",
    "stages.learn.signals.gold={answers: teachers}",
    "stages.learn.skills=[copy]",
    "rewards=[{use: './tasks.py:says_x'}]",
]
"""The first stage learns to say `x`, which is what the verifier accepts of a skill whose rows have no answer."""

SAYS_X = """
def says_x(completions, **_):
    return [float(text == "x") for text in completions]

async def later(completions, **_):
    return says_x(completions)
"""


def test_correct_answers_of_teachers_are_learnt_of_rows_without_any(tmp_path):
    rows = [{"prompt": f"{letter}="} for letter in ["a", "b", "c", "d", "x", ":", "ab", "ba", "aa", "bb"]]
    (tmp_path / "copy.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = written(tmp_path, RECIPE, TASKS + SAYS_X)
    assert main(["train", str(recipe), *WITHOUT_ANSWERS, "--output", str(tmp_path / "run")]) == 0
    log = read_jsonl(tmp_path / "run" / "metrics.jsonl").records
    updates = [entry for entry in log if "gold_share/copy" in entry]
    assert [entry["answered/copy"] for entry in updates[:5]] == [1.0] * 5 and "loss/gold" in updates[0]
    assert [entry["gold_share/copy"] for entry in updates[:5]] == [31 / 32] * 5
    assert 0.5 < updates[5]["gold_share/copy"] < 0.9, "a completion is also sampled, and teachers read it"
    events = read_jsonl(tmp_path / "run" / "events.jsonl").records
    (repeat,) = [event for event in events if event["kind"] == "gold answers repeat"]
    assert repeat["step"] == 5 and "gold answers of its 8 rows were learnt" in repeat["measured"]


def test_the_planned_flops_of_rows_that_the_student_answers_first_are_those_that_a_run_counts(tmp_path):
    """Gold answers have two tokens, where six are allowed; the student says the same."""
    rows = [{"question": f"{letter}=", "answer": "x"} for letter in "abcdx:"]
    (tmp_path / "copy.jsonl").write_text("\n".join(map(json.dumps, rows)))
    overrides = [*WITHOUT_ANSWERS[1:3], *WITHOUT_ANSWERS[4:], "max_new_tokens=6", "stages.learn.steps=1"]
    path = written(tmp_path, RECIPE, TASKS + SAYS_X)
    assert main(["train", str(path), *overrides, "--output", str(tmp_path / "run")]) == 0
    planned = read_recipe(path, overrides)
    lengths = {summary.skill: summary.lengths for summary in check_recipe(planned, path).skills}
    sizes = Sizes(planned.models, planned.tokenizer, ["copy"], planned.max_new_tokens, tmp_path, lengths)
    size = sizes.parameters("small")
    last = json.loads((tmp_path / "run" / "summary.json").read_text())["stages"][-1]
    counted = last["flops_by_part"]["student"]["probes"]
    assert counted == first_answer_flops(planned.stages[1], size, sizes, None, True) == forward_flops(size, 8 * (2 + 2))


def test_a_verifier_that_cannot_be_asked_about_answers_of_teachers_is_refused(tmp_path, capsys):
    rows = [{"question": f"{letter}=", "answer": "x"} for letter in "abcd"]
    (tmp_path / "copy.jsonl").write_text("\n".join(map(json.dumps, rows)))
    overrides = [*WITHOUT_ANSWERS[:-1], "rewards=[{use: './tasks.py:later'}]"]
    assert main(["check", str(written(tmp_path, RECIPE, TASKS + SAYS_X)), *overrides]) == 2
    assert "stages.learn.signals.gold.answers" in (text := capsys.readouterr().err)
    assert "./tasks.py:later is to tell which answers of teachers are correct" in text
