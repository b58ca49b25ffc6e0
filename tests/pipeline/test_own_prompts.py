"""Recipes with teachers that read a prompt of their own."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import tests.support.tiny as tiny
from rld.cli import main
from rld.errors import RecipeError
from rld.recipe.cost import stage_costs
from rld.recipe.reading import read_recipe
from rld.trainer.rld_trainer import RLDTrainer
from rld.utils.run_folder import stage_record_path
from tests.support.runs import Killed, one_thread

__all__ = ["one_thread"]

ROWS = [{"question": a + b, "answer": b + a} for a in "abcdef" for b in "cdef"]
SELF = {"model": "student", "prompt": "{answer}:{question}=", "probe_prompts": 2}


SAYING = {"model": "student", "prompt": "{feedback}:{question}="}
PROMPT = {"prompt": "{feedback}:{question}="}
OTHER = {"model": "small"}
ANSWERS = {"gold": {"answers": "teachers"}}
GOLD = {"rollout": {"prompts": 2, "completions": 2, "gold_completions": 2}}
MINE = """
def fine(completions, **_):
    return [1.0] * len(completions)


def says(completions, log_extra, **_):
    log_extra("feedback", ["ab" for _ in completions])
    return [1.0] * len(completions)


async def waits(completions, **_):
    return [1.0] * len(completions)


def ask(rng):
    return "".join(rng.choices("abcdef", k=4)), ""
"""


def written(
    folder: Path,
    teacher: Any = SELF,
    models: str = "small",
    skill: Any = None,
    reward: str = "fine",
    rows: Any = ROWS,
    **stage: Any,
) -> Path:
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "mine.py").write_text(MINE)
    tree = {
        "name": "it",
        "models": {models: str(folder / "model")},
        "prompts": {"template": "{question}="},
        "skills": {"swap": skill or {"file": "rows.jsonl", "held_out": 4}},
        "rewards": [{"use": f"./mine.py:{reward}"}],
        "max_new_tokens": 4,
        "stages": [
            {
                "name": "main",
                "kind": "distill",
                "student": models,
                "teachers": {"self": teacher},
                "steps": 2,
                "rollout": {"prompts": 2, "completions": 2},
                **stage,
            }
        ],
    }
    (folder / "recipe.yaml").write_text(json.dumps(tree))
    return folder / "recipe.yaml"


def test_the_check_shows_the_prompt_and_a_run_scores_probes_and_teaches_by_it(tmp_path, capsys):
    """The question in it is without the skill's template, which the student's prompt has."""
    path = written(tmp_path)
    assert main(["check", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "the student itself" in shown
    assert "ca:ac=" in shown
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 0
    record = json.loads(stage_record_path(tmp_path / "run" / "student").read_text())
    assert record["teachers"]["self"]["parameters"] == tiny.model().num_parameters()
    assert record["teacher_tokens"]["scored"] > 0


def test_a_prompt_with_feedback_is_shown_with_its_places_and_taught_by_without_a_score(tmp_path, capsys):
    """Before the stage there is no attempt, so that there are no probes and no held-out score."""
    teacher = {"model": "student", "prompt": "{feedback}:{question}="}
    path = written(tmp_path, teacher, reward="says", controller={"kind": "gap"}, gate="off", signals={"response": {}})
    assert main(["check", str(path)]) == 0
    assert "{feedback}:ac=" in capsys.readouterr().out
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 0
    record = json.loads(stage_record_path(tmp_path / "run" / "student").read_text())
    assert record["teachers"]["self"] == {"parameters": tiny.model().num_parameters(), "scores": {}, "agreement": {}}
    assert record["teacher_tokens"]["scored"] > 0
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {entry["teacher/self/informed"] for entry in metrics if "teacher/self/informed" in entry} == {1.0}


def test_feedback_that_no_reward_gives_is_refused_before_the_stage_and_otherwise_told(tmp_path, capsys):
    for command in ("check", "train"):
        options = [] if command == "check" else ["--output", str(tmp_path / "run")]
        assert main([command, str(written(tmp_path, {**SAYING, "prompt": "{feedback}{question}"})), *options]) == 2
        error = capsys.readouterr().err
        assert "teachers.self.prompt" in error
        assert "it shows {feedback}, and none of the rewards gives any: let one call log_extra('feedback'" in error
    assert main(["check", str(written(tmp_path, SAYING, reward="waits"))]) == 0  # which is not called before a rollout


def test_what_a_rollout_fills_in_costs_tokens_for_each_completion(tmp_path):
    """2 steps of 2 prompts with 2 completions, of rows of unknown length: an attempt has 4 tokens at most."""
    flops = []
    for prompt in ("{question}", "{attempt}{question}", "{feedback}{question}"):
        teacher = {"model": "student", "prompt": prompt} | ({"probe_prompts": 0} if prompt == "{question}" else {})
        recipe = read_recipe(written(tmp_path, teacher, gate="off", signals={"response": {}}))
        flops.append(stage_costs(recipe, tmp_path)["main"].flops or 0)
    size = 2 * tiny.model().num_parameters()
    assert [count - flops[0] for count in flops] == [0, 8 * 4 * size, 8 * 64 * size]


def test_a_run_that_is_killed_ends_as_if_nothing_had_happened(tmp_path, monkeypatch):
    """With what the student says now, and with what its average says."""
    options = {"signals": {"response": {}}, "gate": "off", "trainer": {"learning_rate": 1e-2}}
    teachers = {"now": SELF, "before": {**SELF, "average": 0.5}}
    path = str(written(tmp_path, steps=4, checkpoint_every=2, teachers=teachers, **options))
    save = RLDTrainer._save_checkpoint

    def killed(self: Any, *args: Any) -> None:
        save(self, *args)
        raise Killed

    for name, command in (("whole", []), ("run", []), ("run", ["--resume"])):
        monkeypatch.setattr(RLDTrainer, "_save_checkpoint", killed if (name, command) == ("run", []) else save)
        with suppress(Killed):
            assert main(["train", path, "--output", str(tmp_path / name), *command]) == 0
    files = [tmp_path / name / "student" / "model.safetensors" for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_average_is_counted_in_the_memory_of_a_stage_that_has_no_adapter(tmp_path):
    averaged, adapter, num_bytes = {**SELF, "average": 0.9}, {"lora": {"r": 2}}, list[int | None]()
    for teacher, stage in ((SELF, {}), (averaged, {}), (averaged, adapter)):
        recipe = read_recipe(written(tmp_path, teacher, **stage))
        num_bytes.append(stage_costs(recipe, tmp_path)["main"].bytes)
    size = tiny.model().num_parameters()
    assert num_bytes == [16 * size, 20 * size, 4 * size]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"skill": {"generator": "./mine.py:ask", "held_out": 4}},
            "has no gold answer, which a teacher's prompt shows ({answer}); name the teacher's `skills`",
        ),
        (
            {"teacher": {**SELF, "prompt": "a" * 70 + "{question}"}},
            "rows.jsonl:1 has 72 tokens in its prompt, and with",
        ),
    ],
)
def test_rows_of_which_no_prompt_can_be_made_are_refused(tmp_path, capsys, options, message):
    path = written(tmp_path, **options)
    for command in (["check", str(path)], ["train", str(path), "--output", str(tmp_path / "run")]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "teacher self" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": {**SAYING, "probe_prompts": 2}}, "probe_prompts: leave it out: the prompt shows {feedback}"),
        ({"rollout": {"completions": "labels"}, "signals": {"response": {}}}, "prompt: .* completions are labels here"),
        ({"signals": {"response": {}}, **GOLD}, "prompt: .* with gold answers alone the student tries nothing"),
        (
            {"teacher": {**OTHER, **PROMPT}, "cache": {"folder": "c"}, "signals": {"response": {}}, **GOLD},
            "leave cache",
        ),
        ({"teacher": {**OTHER, **PROMPT}, "signals": {"policy": {}, "response": {}, **ANSWERS}}, "and rows have none"),
        ({"stop": {"teacher_surpassed": True}}, "leave stop.teacher_surpassed out"),
        ({"capacity": {}, "gate": "off"}, "nothing tells capacity how often the teacher is correct"),
        ({"teacher": {**SAYING, "prompt": "{feedbak}{question}"}}, r"it has \{feedbak\}; did you mean \{feedback\}"),
    ],
)
def test_what_a_teacher_that_reads_attempts_cannot_be_is_refused_by_name(tmp_path, options, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(written(tmp_path, **{"teacher": SAYING, **options}))


def test_a_column_with_the_name_of_a_place_is_refused(tmp_path, capsys):
    path = written(tmp_path, SAYING, reward="says", rows=[{**row, "feedback": "a"} for row in ROWS])
    assert main(["check", str(path)]) == 2
    assert "has a column 'feedback', and {feedback} of a teacher's prompt is the rollout's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": "student"}, "it means the student itself, and a model or stage of the recipe has that name"),
        ({"teacher": {**SELF, "prompt": "{anser}"}}, r"teachers.self.prompt.* it has \{anser\}; did you mean"),
        ({"teacher": {"model": "student"}}, "there is no model 'student'"),
        ({"cache": {"folder": "c"}, "signals": {"response": {}}, **GOLD}, "nothing that it says is kept in a cache"),
        ({"signals": {"feature": {}}}, "teachers.self.model: signals.feature learns maps to the states of a teacher"),
        ({"teacher": {**SELF, "average": 1.5}}, "teachers.self.average"),
        ({"curriculum": {"levels_by": "teacher_loss"}}, "put no rows in order"),
        (
            {"rollout": {"completions": "labels"}, "signals": {"response": {"calibration": "content_free"}}},
            "prompts without content are the student's",
        ),
    ],
)
def test_what_a_teacher_by_its_own_prompt_cannot_be_is_refused_by_name(tmp_path, options, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(written(tmp_path, **options))
