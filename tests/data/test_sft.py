"""The answers that fine-tuning learns: those of a teacher that were cut off have no end."""

from __future__ import annotations

import functools
import random

import pytest

import tests.support.tiny as tiny
from rld.data.items import Item, ItemSource
from rld.data.sft import sft_dataset
from rld.data.skill_rows import SkillRows
from rld.pipeline import sft
from rld.recipe.prompts import Prompts
from rld.recipe.stages.sft import Sft
from rld.types import Answer


def test_an_answer_of_a_teacher_that_was_cut_off_is_learnt_without_an_end_and_told():
    encoder = tiny.encoder()

    def make(level: int, rng: random.Random) -> Item:
        return Item("".join(rng.choices("abcd", k=8)) + "=", None)

    source = SkillRows("copy", ItemSource(make, 1), 0, Prompts(), seed=0, held_out_questions=set())
    stage = Sft(kind="sft", name="warm", student="tiny", teacher="big", steps=1, batch=2, verify=False)
    with pytest.warns(UserWarning, match="1 of 2 answers of the teacher were cut off at max_new_tokens"):
        learnt = sft_dataset(
            stage,
            {"copy": source},
            ["copy"],
            seed=0,
            encode=functools.partial(sft._encoded, encoder),
            teacher=lambda rows: [Answer("ab", is_complete=False), Answer("ba", is_complete=True)],
            verdicts=lambda rows, texts: [True] * len(texts),
            require=lambda rows: None,
        )
    assert [learnt.features[name].feature.dtype for name in ("input_ids", "labels")] == ["int32", "int32"]
    ends = {
        encoder.tokenizer.decode(ids)[-2:]: ids[-1] == encoder.tokenizer.eos_token_id for ids in learnt["input_ids"]
    }
    assert sorted(ends.values()) == [False, True]
    assert ends["ab"] is False


def test_the_prompt_is_learnt_only_where_the_trainer_is_told_to():
    encode = functools.partial(sft._encoded, tiny.encoder(), ["ab="], [Answer("ba", is_complete=True)])
    (bare,), (whole,) = encode(), encode(learns_prompts=True)
    assert bare["labels"] == [-100] * 3 + bare["input_ids"][3:]
    assert whole["labels"] == whole["input_ids"] == bare["input_ids"]
