"""The teachers of a trainer: changes of one, and the tokens that each computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tests.support.tiny as tiny
from rld.errors import TeacherError
from rld.losses.features import Cosine
from rld.teachers.ensemble import TeacherEnsemble
from rld.teachers.slot_base import StudentInterface
from rld.teachers.teacher import Teacher


def ensemble(feature: Any = None) -> TeacherEnsemble:
    teachers = [Teacher(tiny.model(seed=seed), f"t{seed}", ["any"], tokenizer=tiny.tokenizer()) for seed in (1, 2)]
    student = StudentInterface(tiny.model(), tiny.encoder(), feature)
    return TeacherEnsemble(teachers, student, prepare=lambda model: model)


def scored(teachers: TeacherEnsemble) -> tuple[dict[str, Any], list[int]]:
    """Score three completions; the second teacher is needed on the last one alone."""
    ids = torch.randint(5, 15, (3, 7), generator=torch.Generator().manual_seed(0))
    rollout = {"prompt_ids": ids[:, :3], "prompt_mask": torch.ones(3, 3, dtype=torch.long)}
    rollout |= {"completion_ids": ids[:, 3:], "completion_mask": torch.ones(3, 4, dtype=torch.long)}
    rows = torch.tensor([[True, False], [True, False], [True, True]])
    counts = teachers.score(rollout, rows, prompts=[""] * 3, temperature=1.0, rows_per_forward=8)
    return rollout, [count.computed for count in counts]


def test_a_teacher_is_run_on_the_rows_that_need_it():
    teachers = ensemble()
    rollout, computed = scored(teachers)
    assert computed == [18, 6]
    assert rollout["teacher_tokens"][:, 1].any(1).tolist() == [False, False, True]
    first, second = teachers.outputs(rollout)
    assert first.hidden_BTH.any(-1).all()
    assert second.hidden_BTH.any(-1).all(1).tolist() == [False, False, True]
    scores = teachers.sampled_scores(rollout, 1.0)
    assert scores["teacher_spans"][0].tolist() == [[0, 1, 2, 3], [-1] * 4]


def test_a_change_of_a_teacher_reaches_the_observers():
    teachers, changed = ensemble(), list[int]()
    teachers.observers.append(changed.append)
    before = scored(teachers)[0]
    teachers.swap(1, tiny.model(seed=3), tiny.tokenizer())
    after = scored(teachers)[0]
    assert torch.equal(before["teacher_0_hidden"], after["teacher_0_hidden"])
    assert not torch.allclose(before["teacher_1_hidden"], after["teacher_1_hidden"])
    teachers.retire(0)
    teachers.retire(1, is_down=True)
    assert [(t.teaches("any"), t.is_down) for t in teachers.teachers] == [(False, False), (False, True)]
    assert changed == [1, 0, 1]


def test_weights_can_not_change_under_a_feature_signal():
    with pytest.raises(TeacherError, match="'t2' can't change its weights with a feature signal"):
        ensemble(Cosine()).swap(1, tiny.model(seed=3), tiny.tokenizer())
