"""Whether two tokenizers are told apart by all that can occur in a prompt or at the end of a completion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.errors import TeacherError
from rld.models.tokenizer_profile import TokenizerProfile, vocabulary_hash
from rld.models.tokenizers import character_tokenizer
from rld.teachers.local import LocalLogprobs
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.support.fleet import FLEET, Member
from tests.support.real_tokenizers import byte_level

END = "<|endoftext|>"
NO_THINKING = {"enable_thinking": False}


def difference(student: Any, teacher: Any, **chat_options: Any) -> str | None:
    """Compare with a loaded tokenizer and with what a server sends of it, which has to come to the same."""
    profile = TokenizerProfile.of(teacher)
    over_the_wire = TokenizerProfile(**profile.to_json()).difference(student, chat_options)
    here = profile.difference(student, chat_options)
    assert (over_the_wire is None) == (here is None)
    return here


@pytest.mark.parametrize("member", FLEET.values(), ids=list(FLEET))
def test_a_tokenizer_is_the_same_as_itself(member):
    assert difference(member.tokenizer(), member.tokenizer(), **member.chat_options) is None
    assert vocabulary_hash(member.tokenizer()) == vocabulary_hash(member.tokenizer())


@pytest.mark.parametrize(
    ("student", "teacher", "told"),
    [
        ("turn_end", "sibling", "is '<|im_start|>' in the student's and '<|user|>' in the teacher's"),
        ("bos", "byte_level", "is <|begin|>"),
        ("byte_level", "add_prefix_space", "jumps over 13 lazy dogs.' is The "),
        ("byte_level", "nfc", "' caf"),
        ("nfc", "nfkc", "' caf"),
        ("gemma", "phi3", "token "),
        ("qwen2_5", "deepseek_r1_distill", "'The quick brown fox jumps over 13 lazy dogs.' is The"),
    ],
)
def test_what_differs_is_named(student, teacher, told):
    one, other = FLEET[student].tokenizer(), FLEET[teacher].tokenizer()
    assert told in str(difference(one, other))
    assert difference(other, one) is not None or student == "turn_end"  # a base model's text has no turns
    assert vocabulary_hash(one) != vocabulary_hash(other)


def test_ordinary_tokens_are_compared_all():
    assert "token 5 is 'c' in the student's and 'x' in" in str(
        difference(character_tokenizer("abc"), character_tokenizer("abx"))
    )


def test_special_tokens_that_occur_nowhere_may_differ():
    """Such as the reserved ones of a base model, which have names in its instruct sibling."""
    chat, turns = FLEET["turn_end"].tokenizer(), (END, "<|im_start|>", "<|im_end|>")
    named, reserved = (
        byte_level(*turns, token, eos_token=END, chat_template=chat.chat_template) for token in ("<|tool|>", "<|r9|>")
    )
    base = byte_level(*turns, "<|r9|>", eos_token=END)
    assert [difference(named, other) for other in (reserved, base)] == [None, None]
    named.chat_template += "{{ '<|tool|>' }}"
    assert "is '<|tool|>' in the student's and '<|r9|>'" in str(difference(named, reserved))


def test_tokens_that_the_options_of_the_chat_template_bring_in_are_compared():
    name = "qwen3_enable_thinking_false"
    student = FLEET[name].tokenizer()
    lacking = byte_level(
        *(END, "<|im_start|>", "<|im_end|>"), normalizer=student.backend_tokenizer.normalizer, eos_token="<|im_end|>"
    )
    assert difference(student, lacking, enable_thinking=True) is None
    assert "is '<think>' in the student's and not there" in str(difference(student, lacking, **NO_THINKING))


def tokenizers_of_siblings() -> tuple[Any, Any]:
    """Two that differ in a special token that occurs in no template and at no end."""
    return tuple(byte_level(END, token, eos_token=END, pad_token=END) for token in ("<|tool|>", "<|r9|>"))


@pytest.mark.parametrize("as_source", [False, True])
def test_a_prompt_with_a_token_that_the_teacher_lacks_is_refused(as_source, tmp_path):
    """Text may name any special token, and is encoded as it."""
    student, other = tokenizers_of_siblings()
    model = tiny.model(vocabulary=len(student))
    teacher: Any = Teacher(tiny.model(1, vocabulary=len(student)), "other", tokenizer=other)
    if as_source:
        teacher = Teacher(LocalLogprobs(teacher, torch.device("cpu"), 4), "other")
    for prompt, refused in (("What?", False), ("<|tool|>What?", True)):
        made = RLDTrainer(
            model,
            args=RLDConfig(**tiny.rld_options(tmp_path, max_steps=1), signals=["response"]),
            train_dataset=Dataset.from_dict({"prompt": [prompt] * 8}),
            processing_class=student,
            teachers=[teacher],
            controller=FixedController(),
        )
        if refused:
            with pytest.raises(TeacherError, match=r"'other': a prompt has the student's token .*'<.tool.>'"):
                made.train()
        else:
            made.train()


def test_a_source_of_a_sibling_is_refused():
    def source(member: Member) -> LocalLogprobs:
        teacher = Teacher(member.model(), member.name, tokenizer=member.tokenizer())
        return LocalLogprobs(teacher, torch.device("cpu"), 4)

    student = FLEET["turn_end"].tokenizer()
    source(FLEET["turn_end"]).connect(student)
    with pytest.raises(TeacherError, match="'sibling': its tokenizer differs from the student's: token"):
        source(FLEET["sibling"]).connect(student)
