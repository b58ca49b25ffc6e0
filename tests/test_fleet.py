"""All parts of the code read and write the same text, for tokenizers and chat templates of the shapes of real ones.

A cell of the matrix is a member of the fleet and a reader, a part of the code. What is right is `fleet.expected`.
"""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
from jinja2 import TemplateError

from rld.errors import RldError, TeacherError
from rld.models.prompting import PromptEncoder
from rld.teachers.teacher import Teacher
from tests.support.fleet import FLEET, expected_rows, rows
from tests.support.text_readers import READERS

_NOT_THINKING = "qwen3_enable_thinking_false", "qwen3_5_think_enable_thinking_false"
_THINKING = "qwen3_enable_thinking_true", "qwen3_5_think_enable_thinking_true"
_SPACE_IN_FRONT = "sentencepiece_bpe", "sentencepiece_unigram", "add_prefix_space"
_DEEPSEEK = "deepseek_r1_distill", "deepseekv3"

FAILING: dict[str, dict[str, tuple[str, ...]]] = {
    "sft": {
        "the options of the chat template do not reach fine-tuning": (*_NOT_THINKING, "llama3_2"),
        "the template writes thoughts between prompt and answer, and their text is learnt": _THINKING,
        "the rendered prompt is no prefix of the conversation: its end is left out of what is learnt": _DEEPSEEK,
        "prompt and answer are encoded as one text, and a token reaches over the border": ("merges_over_the_border",),
        "TRL adds the tokenizer's EOS, which is None": ("no_eos",),
    },
    "held_out": {
        "the options of the chat template do not reach the evaluator": _NOT_THINKING,
        "prompts are padded by a tokenizer without a pad token": ("no_pad", "llama3", "llama3_2"),
        "the token that closes a turn does not end a generation": ("turn_end_not_in_ends",),
    },
    "rollout": {
        "None is among the end tokens that TRL hands to generate": ("no_eos",),
        "the token that closes a turn does not end a generation": ("turn_end_not_in_ends",),
    },
    "gate": {
        "None is among the end tokens that TRL hands to generate": ("no_eos",),
        "the token that closes a turn does not end a generation": ("turn_end_not_in_ends",),
    },
    "gold": {
        "the answer is encoded with a space in front, which it has not behind the prompt": _SPACE_IN_FRONT,
        "it ends with the tokenizer's EOS, not with the token that closes a turn": (
            *("turn_end", "turn_end_not_in_ends", "gemma", "gemma3", "phi3"),
        ),
        "it ends with the tokenizer's EOS, which is None": ("no_eos",),
    },
    "aligned_teacher": {
        "the completion is encoded with a space in front, which it has not behind the prompt": _SPACE_IN_FRONT,
        "the token that closes a turn is none of the ends": ("turn_end_not_in_ends",),
        "the last end in the conversation is taken, and an EOS stands behind the token that closes a turn": ("phi3",),
    },
    "aligned_student": {
        "the token that closes a turn is none of the ends, and spells nothing": ("turn_end_not_in_ends",),
        "the space that the tokenizer puts behind a special token is taken for one of the answer's": ("phi3",),
    },
    "likelihood": {
        "the options of the chat template do not reach the reward": (*_NOT_THINKING, "llama3_2"),
    },
    "judge": {
        "the options of the chat template do not reach the reward": (*_NOT_THINKING, "llama3_2"),
    },
}
"""By reader and reason the members for which a reader is wrong today."""


def cells() -> list[Any]:
    known = {
        (name, reader): reason
        for reader, reasons in FAILING.items()
        for reason, names in reasons.items()
        for name in names
    }
    return [
        pytest.param(
            *cell, marks=pytest.mark.xfail(strict=True, reason=known[cell]) if cell in known else (), id="-".join(cell)
        )
        for cell in itertools.product(FLEET, READERS)
    ]


@pytest.mark.parametrize(("name", "reader"), cells())
def test_every_reader_reads_and_writes_the_same_text(name, reader, tmp_path_factory, monkeypatch):
    member, read = FLEET[name], READERS[reader]
    available = {"folder": tmp_path_factory.getbasetemp() / name, "monkeypatch": monkeypatch}
    available["folder"].mkdir(exist_ok=True)
    read(member, **{key: value for key, value in available.items() if key in inspect.signature(read).parameters})


def test_the_fleet_has_the_shapes_that_its_readings_rest_on():
    """Prompts are as transformers encodes them, answers can be read back, and no token is unknown."""
    over_the_border = set()
    for member in FLEET.values():
        tokenizer = member.tokenizer()
        for row, (prompt_ids, completion_ids) in zip(rows(member), expected_rows(member), strict=True):
            assert PromptEncoder(tokenizer, member.chat_options).encode(row["prompt"]) == prompt_ids
            assert member.same_text(tokenizer.decode(completion_ids, skip_special_tokens=True), row["answer"])
            assert tokenizer.unk_token is None or tokenizer.unk_token_id not in prompt_ids + completion_ids
            if not member.chat:
                ids = tokenizer(row["prompt"] + row["answer"])["input_ids"]
                over_the_border |= {member.name} if ids != prompt_ids + completion_ids[:-1] else set()
    assert over_the_border == {name for name, member in FLEET.items() if "merges" in member.traits}


def test_a_sibling_with_other_special_tokens_at_the_same_ids_is_refused():
    """It would read `<|user|>` where the student's prompt has `<|im_start|>`."""
    student, sibling = FLEET["turn_end"], FLEET["sibling"]
    assert len(student.tokenizer()) == len(sibling.tokenizer())
    teacher = Teacher(sibling.model(), "sibling", tokenizer=sibling.tokenizer())
    with pytest.raises(TeacherError, match="differs"):
        teacher.require_same_tokenizer(student.tokenizer())


@pytest.mark.xfail(strict=True, raises=TemplateError, reason="the error of jinja2 is passed on")
def test_a_template_that_refuses_a_system_message_is_an_error_of_the_user():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]
    with pytest.raises(RldError, match="System role not supported"):
        PromptEncoder(FLEET["gemma"].tokenizer()).encode(messages)
