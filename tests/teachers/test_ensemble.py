"""The teachers of a trainer: changes of one, and the tokens that each computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tests.support.tiny as tiny
from rld.errors import TeacherError
from rld.losses.features import Cosine
from rld.models.drafts import ReadDrafts
from rld.teachers.ensemble import TeacherEnsemble, TeacherReading
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


@pytest.mark.parametrize("align", [None, "likelihood"])
def test_drafts_beside_completions_are_read_as_they_are_alone_and_change_nothing_else(align):
    own = Teacher(tiny.model(seed=1), "t", ["any"], tokenizer=tiny.tokenizer(), align=align)
    teachers = TeacherEnsemble([own], StudentInterface(tiny.model(), tiny.encoder(), Cosine()), lambda model: model)
    (slot,) = teachers.slots
    ids, mask = torch.randint(5, 15, (4, 7), generator=torch.Generator().manual_seed(0)), torch.ones(4, 7).long()
    ids[1, :3], ids[3, :3] = ids[0, :3], ids[2, :3]
    mask[2:, 0] = mask[1, 5:] = 0  # a shorter prompt, and a shorter completion
    rollout = {"prompt_ids": ids[:, :3], "prompt_mask": mask[:, :3]}
    rollout |= {"completion_ids": ids[:, 3:], "completion_mask": mask[:, 3:]}
    texts = tiny.tokenizer().batch_decode(
        [row[row_mask == 1] for row, row_mask in zip(ids[:, :3], mask[:, :3], strict=True)]
    )
    prompts = [tiny.encoder().encode(text.replace(" ", "")) for text in texts]
    drafts = [(prompts[2], [5, 6, 7, 8, 9, 1]), (prompts[0], [9]), ([6, 6, 6, 6], [7, 1])]
    options = {"prompts": [text.replace(" ", "") for text in texts], "temperature": 1.0}
    assert slot.takes_drafts(None)
    assert not slot.takes_drafts(torch.bfloat16), "alone they are read in float32"

    def scored_with(given: Any, rows_per_forward: int) -> tuple[dict[str, Any], TeacherReading]:
        made = dict(rollout)
        rows = torch.ones(4, 1, dtype=torch.bool)
        (reading,) = teachers.score(made, rows, rows_per_forward=rows_per_forward, drafts=given, **options)
        return made, reading

    without, plain = scored_with({}, 8)
    alone = ReadDrafts.alone(own.load(), drafts)
    for rows_per_forward in (8, 1):
        scores, reading = scored_with({0: drafts}, rows_per_forward)
        for name, value in without.items():
            torch.testing.assert_close(scores[name], value)
        for state, wanted in zip(reading.draft_states, alone._states, strict=True):
            torch.testing.assert_close(state, wanted)
    assert [len(state) for state in reading.draft_states] == [6, 1, 2]
    assert scored_with({0: drafts}, 8)[1].computed < plain.computed + alone.num_tokens, "their prompts are shared"


def test_padding_does_not_count_for_the_context_of_a_teacher():
    """The one prompt is long, and the draft of the other one: together they are wider than the 12 tokens it reads."""
    own = Teacher(tiny.model(seed=1, max_position_embeddings=12), "t", ["any"], tokenizer=tiny.tokenizer())
    teachers = TeacherEnsemble([own], StudentInterface(tiny.model(), tiny.encoder(), None), lambda model: model)
    ids, mask = torch.randint(5, 15, (2, 10), generator=torch.Generator().manual_seed(0)), torch.ones(2, 10).long()
    mask[1, :5] = 0
    rollout = {"prompt_ids": ids[:, :8], "prompt_mask": mask[:, :8]}
    rollout |= {"completion_ids": ids[:, 8:], "completion_mask": mask[:, 8:]}
    rows, options = torch.ones(2, 1, dtype=torch.bool), {"prompts": [""] * 2, "temperature": 1.0, "rows_per_forward": 8}
    drafts = [(ids[1, 5:8].tolist(), [5, 6, 7, 8, 9])]
    (reading,) = teachers.score(rollout, rows, drafts={0: drafts}, **options)
    (wanted,) = ReadDrafts.alone(own.load(), drafts)._states
    torch.testing.assert_close(reading.draft_states[0], wanted)
    with pytest.raises(TeacherError, match="reads at most 12 tokens, and a prompt with its completion has 13"):
        teachers.score(rollout, rows, drafts={0: [(ids[0, :8].tolist(), [5, 6, 7, 8, 9])]}, **options)


def test_what_a_teacher_with_another_tokenizer_said_of_a_completion_can_be_taken_back():
    own = Teacher(tiny.model(seed=1), "t", ["any"], tokenizer=tiny.tokenizer(), align="likelihood")
    teachers = TeacherEnsemble([own], StudentInterface(tiny.model(), tiny.encoder(), None), lambda model: model)
    ids, mask = torch.randint(5, 15, (2, 7), generator=torch.Generator().manual_seed(0)), torch.ones(2, 7).long()
    rollout = {"prompt_ids": ids[:, :3], "prompt_mask": mask[:, :3]}
    rollout |= {"completion_ids": ids[:, 3:], "completion_mask": mask[:, 3:]}
    rows = torch.ones(2, 1, dtype=torch.bool)
    teachers.score(rollout, rows, prompts=["abc", "abd"], temperature=1.0, rows_per_forward=8)
    teachers.withdraw(rollout, torch.tensor([[True], [False]]))
    scores = teachers.sampled_scores(rollout, 1.0)
    assert scores["teacher_spans"][:, 0].tolist() == [[0, 1, 2, 3], [-1] * 4]
    assert scores["teacher_scores"][:, 0].bool().tolist() == [[True] * 4, [False] * 4]
    assert rollout["teacher_tokens"].any(-1).tolist() == [[True], [False]]
