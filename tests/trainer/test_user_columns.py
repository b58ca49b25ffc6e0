"""Names in a user's rows and options: columns that TRL has arguments for, and skills that match nothing."""

from __future__ import annotations

from typing import Any

import pytest
from trl import GRPOTrainer
from trl.trainer.grpo_config import GRPOConfig

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.controllers.gradient import GradientAlignmentController
from rld.errors import ControllerError, DataError, RecipeError, TeacherError
from rld.recipe import registry
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer


def teacher(**options: Any) -> Teacher:
    return Teacher(tiny.model(seed=1), name="t", tokenizer=tiny.tokenizer(), **options)


def trainer(
    folder: Any, *, rows: Any = None, reward: Any = tiny.letters, args: Any = None, **options: Any
) -> RLDTrainer:
    return RLDTrainer(
        model=tiny.model(),
        reward_funcs=reward,
        args=RLDConfig(**tiny.rld_options(folder, max_steps=1, **(args or {}))),
        train_dataset=tiny.rows() if rows is None else rows,
        processing_class=tiny.tokenizer(),
        **options,
    )


def with_columns(*names: str) -> Any:
    rows = tiny.rows()
    for name in names:
        rows = rows.add_column(name, [f"{name} {i}" for i in range(len(rows))])
    return rows


class Recorder:
    """A verifier that records the names of its arguments at each call."""

    __name__ = "recorder"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        self.calls.append({"completions": completions, **columns})
        return [1.0] * len(completions)


COLLIDING = ("completion", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments", "other")


def test_a_reward_gets_the_arguments_that_it_gets_from_trl_in_every_path(tmp_path):
    rows, trl = with_columns(*COLLIDING), Recorder()
    args = GRPOConfig(**tiny.options(tmp_path, max_steps=1))
    GRPOTrainer(tiny.model(), trl, args, rows, processing_class=tiny.tokenizer()).train()
    verifier, audit = Recorder(), Recorder()
    options = {"gate": "per_prompt", "audit_share": 1.0}
    made = trainer(tmp_path, rows=rows, reward=verifier, args=options, teachers=[teacher()], audit_reward=audit)
    made.train()
    assert made.gate is not None and len(audit.calls) > 1  # by the gate, and by the audit
    for call in [*verifier.calls, *audit.calls]:
        assert set(call) == set(trl.calls[0])
        assert callable(call["log_extra"]) and not isinstance(call["trainer_state"], list)
        assert call["other"][0].startswith("other ") and isinstance(call["completion_ids"][0], list)


@pytest.mark.parametrize("name", ["prompts", "completions"])
def test_a_column_that_trl_cannot_hand_to_a_reward_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=f"train_dataset has a column '{name}', .* rename"):
        trainer(tmp_path, rows=with_columns(name))
    with pytest.raises(DataError, match=f"eval_dataset has a column '{name}'"):
        trainer(tmp_path, eval_dataset=with_columns(name))


@pytest.mark.parametrize("has_curriculum", [False, True])
def test_unused_columns_can_be_removed(tmp_path, has_curriculum):
    reward = Recorder()
    curriculum = registry.load("curricula", "fixed:Uniform", tmp_path)({"first": 1, "second": 1})
    made = trainer(
        tmp_path,
        rows=with_columns("other"),
        reward=reward,
        args={"remove_unused_columns": True},
        teachers=[teacher(skills=["first"])],
        curriculum=curriculum if has_curriculum else None,
    )
    made.train()
    assert made.skills == ["first", "second"]
    assert {"skill", "level", "answer"} <= set(reward.calls[0])
    assert ("other" in reward.calls[0]) == has_curriculum  # whose rows are made when they are read


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"teachers": [teacher(skills=["frist"])]}, TeacherError, "skills names 'frist'.*did you mean 'first'"),
        ({"teachers": [teacher(skills=["first", "thrid"])]}, TeacherError, "'thrid', which is no skill here"),
        ({"teachers": [teacher(skills="first")]}, TeacherError, "skills should be a list"),
        ({"teachers": [teacher(skills=[])]}, TeacherError, "leave it out to mean all"),
        ({"teachers": [teacher(verified={"frist": (3, 4)})]}, TeacherError, "verified names 'frist'"),
        ({"args": {"skills": ["first", "second", "thrid"]}}, RecipeError, "no row has the skill 'thrid'"),
        ({"args": {"skills": ["first", "secnd"]}}, RecipeError, "no row has the skill 'secnd'; did you mean 'second'"),
        ({"args": {"skills": ["first"]}}, DataError, "train_dataset: rows have the skill 'second'"),
        (
            {"eval_dataset": tiny.rows().map(lambda row: {"skill": row["skill"].upper()})},
            DataError,
            "eval_dataset: rows have the skill 'FIRST', .*did you mean 'first'",
        ),
        (
            {"controller": FixedController(policy={"first": 1.0, "second": 1.0, "thrid": 0.5})},
            ControllerError,
            "controller.policy: 'thrid' is no skill",
        ),
        (
            {"controller": FixedController(teachers={"tt": 0.5}), "teachers": [teacher()]},
            ControllerError,
            "controller.teachers.tt: no such teacher; did you mean 't'",
        ),
        (
            {
                "controller": GradientAlignmentController(),
                "teachers": [teacher()],
                "gold_rows": [{"prompt": "a=", "answer": "b", "skill": "frist"}],
            },
            DataError,
            "gold_rows: rows have the skill 'frist'",
        ),
        (
            {
                "args": {"retain": {"skills": ["lod"]}},
                "retain_dataset": [{"prompt": "a=", "answer": "b", "skill": "old"}],
            },
            DataError,
            "no rows of skill 'lod'; did you mean 'old'",
        ),
    ],
)
def test_a_name_that_matches_nothing_is_refused(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        trainer(tmp_path, **options)


def test_skills_that_evaluation_alone_has_may_be_named(tmp_path):
    rows = tiny.rows().map(lambda row: {"skill": "third"})
    made = trainer(tmp_path, args={"skills": ["first", "second", "third"]}, eval_dataset=rows)
    assert made.skills == ["first", "second", "third"]
