"""What a record means: questions with answers, TRL's shapes, conversations; and which records are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rld.data.file_items import read_items
from rld.data.items import Item
from rld.data.row_kinds import RowReader
from rld.errors import DataError
from rld.models.prompting import PromptEncoder
from rld.models.row_checks import check_rows
from tests.data.test_skill_rows import source
from tests.support.fleet import FLEET

SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATION = RowReader("conversation", options={"turns": "last"})
ALL_TURNS = RowReader("conversation", options={"turns": "all"})
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Look it up.", "parameters": {}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **keys}


CALL = assistant("", tool_calls=[{"type": "function", "function": {"name": "look_up", "arguments": {}}}])
TALK = [SYSTEM, user("a?"), assistant("A"), user("b?"), CALL, {"role": "tool", "content": "B!"}, assistant("B")]


def only(record: Any, reader: RowReader = RowReader()) -> Item:  # noqa: B008 - a tuple
    ((item, level),) = reader.items(record)
    assert level == 0
    return item


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "a?", "answer": 7}, Item("a?", "7")),
        ({"prompt": "a?", "completion": " A"}, Item("a?", " A")),
        ({"prompt": "a?", "answer": "A"}, Item("a?", "A")),
        ({"prompt": "a?", "solution": "x = 3"}, Item("a?", None, '{"solution": "x = 3"}')),
        ({"prompt": [user("a?")], "completion": [assistant("A")]}, Item("a?", "A", messages=(user("a?"),))),
        (
            {"messages": [SYSTEM, user("a?"), assistant("A")], "id": 3},
            Item("a?", "A", '{"id": 3}', messages=(SYSTEM, user("a?"))),
        ),
        (  # a format with fixed columns fills the keys that a message lacks
            {"messages": [user("a?") | {"tool_calls": None}, assistant("A", tool_calls=None)]},
            Item("a?", "A", messages=(user("a?"),)),
        ),
    ],
)
def test_shapes_of_one_turn_are_read_as_they_are(record, expected):
    assert only(record) == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a?", "completion": ""}, "completion should be text"),
        ({"prompt": [user("a?")], "completion": [user("A")]}, "one message of the assistant"),
        ({"messages": TALK}, "a conversation of 5 messages before the answer; kind: conversation reads it"),
        ({"messages": [user("a?"), assistant("A")], "tools": [TOOL]}, "tools; kind: conversation reads it"),
        ({"messages": [user("a?")]}, "should end with an answer"),
        ({"messages": [assistant("A"), user("a?")]}, "begins with the assistant"),
        ({"messages": [SYSTEM]}, "no message of the user"),
        ({"messages": "hello"}, "a list of messages, not 'hello'"),
        ({"messages": [{"from": "human", "value": "a?"}]}, "message 0 of messages should have a role and content"),
        ({"messages": [{"role": "human", "content": "a?"}]}, "the role 'human', not one of system"),
        ({"messages": [user("a?"), {"role": "assistant", "content": [{"type": "text"}]}]}, "text as content"),
        ({"messages": [user(" "), assistant("A")]}, "an empty message of the user"),
    ],
)
def test_other_shapes_are_refused(record, message):
    with pytest.raises(ValueError, match=message):
        RowReader().items(record)


def test_the_last_answer_of_a_conversation_or_each_one_is_a_row():
    last = only({"messages": TALK, "id": 1}, CONVERSATION)
    assert (last.messages, last.answer, last.entry) == (tuple(TALK[:-1]), "B", '{"id": 1}')
    rows = [item for item, _ in ALL_TURNS.items({"messages": TALK})]
    assert [(item.messages, item.answer) for item in rows] == [(tuple(TALK[:2]), "A"), (tuple(TALK[:-1]), "B")]
    assert rows[0].question == "a?" and rows[1].question != rows[0].question
    prompt = only({"prompt": TALK[:4], "completion": "B"}, CONVERSATION)
    assert (prompt.messages, prompt.answer) == (tuple(TALK[:4]), "B")
    assert only({"prompt": TALK[:4], "rubric": "short"}, CONVERSATION).answer is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": TALK[:4]}, "should end with an answer"),
        ({"messages": TALK[:5]}, "should end with an answer of the assistant that has text"),
        ({"messages": [SYSTEM, assistant("A"), *TALK]}, "begins with the assistant"),
        ({"messages": TALK, "tools": "{"}, "tools is not valid JSON"),
        ({"messages": TALK, "tools": ["look_up"]}, "tools should be a list of JSON schemas"),
        ({"question": "a?", "answer": "A"}, "no messages, but 'question', 'answer'"),
    ],
)
def test_what_is_no_conversation_is_refused(record, message):
    with pytest.raises(ValueError, match=message):
        CONVERSATION.items(record)


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_tools_and_system_prompts_reach_the_chat_template(tmp_path, tools):
    (tmp_path / "talk.jsonl").write_text(
        "\n".join(json.dumps({"messages": TALK, "tools": tools, "n": 0}) for _ in "ab")
    )
    (tmp_path / "test.jsonl").write_text(json.dumps({"messages": [user("c?"), assistant("C")]}))
    skill = {"file": "talk.jsonl", "kind": "conversation", "turns": "all", "held_out": {"file": "test.jsonl"}}
    made = source(skill, tmp_path, prompts={"style": "chat", "system": "Be polite."})
    assert [message["content"] for message in made.held_out()[0]["prompt"]] == ["Be polite.", "c?"]
    rows = sorted(made.rows(20, seed=0), key=lambda row: len(row["prompt"]))
    encoder = PromptEncoder(FLEET["qwen3_instruct_2507"].tokenizer())
    for row, turns in (rows[0], 2), (rows[-1], 6):
        text = encoder.render(row["prompt"])
        assert "look_up" in text and "Be brief." in text and "Be polite." not in text
        assert len(row["prompt"]) == turns and text.endswith("<|im_start|>assistant\n")
    assert check_rows(encoder, rows[:1], max_new_tokens=8) == []
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (finding,) = check_rows(replace(encoder, chat_template=template), rows[:1], max_new_tokens=8)
    assert "loses its tools: the chat template does not show 'look_up'" in finding.described()


def test_messages_need_a_chat_and_fill_its_template(tmp_path):
    rows = [{"messages": [SYSTEM, user(f"{i}?"), assistant(str(i))]} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    skill = {"file": "rows.jsonl", "held_out": 1}
    with pytest.raises(DataError, match=r"rows.jsonl:\d: a row of messages needs prompts: \{style: chat\}"):
        source(skill, tmp_path).held_out()
    made = source(skill, tmp_path, prompts={"style": "chat", "template": "Count: {question}"})
    assert all(row["prompt"] == [SYSTEM, user(f"Count: {row['answer']}?")] for row in made.rows(9, seed=0))


def test_rows_that_cannot_be_used_are_left_out_where_the_recipe_says_so(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n{"question": "b"}\n{\n{"question": "c", "answer": "3"}')
    with pytest.warns(UserWarning, match=r"leaves out 2 rows of .*:2: no answer.*; .*:3: not valid JSON"):
        (items,) = read_items(path, skips_bad_rows=True)
    assert [item.place for item in items] == ["rows.jsonl:1", "rows.jsonl:4"]
    path.write_text('{"question": "b"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1: no answer"):
        read_items(path, skips_bad_rows=True)
