"""All parts of the code read and write the same text, for tokenizers and chat templates of the shapes of real ones.

A cell of the matrix is a member of the fleet and a reader, a part of the code. What is right is `fleet.expected`.
"""

from __future__ import annotations

import inspect
import itertools

import pytest

from rld.errors import RldError, TeacherError
from rld.models.prompting import PromptEncoder
from rld.teachers.teacher import Teacher
from tests.support.fleet import FLEET, expected_rows, rows
from tests.support.text_readers import READERS


@pytest.mark.parametrize(("name", "reader"), itertools.product(FLEET, READERS))
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


def test_a_template_that_refuses_a_system_message_is_an_error_of_the_user():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]
    with pytest.raises(RldError, match="System role not supported"):
        PromptEncoder(FLEET["gemma"].tokenizer()).encode(messages)
