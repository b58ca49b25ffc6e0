"""What a record means: questions with answers, TRL's shapes, conversations; and which records are refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rld.data.file_items import read_items
from rld.data.items import Item
from rld.data.row_kinds import RowReader
from rld.errors import DataError
from rld.models.prompting import PromptEncoder
from rld.models.row_checks import check_rows
from rld.recipe.skills import FileSkill
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


def call(arguments: Any) -> dict[str, Any]:
    return assistant("", tool_calls=[{"type": "function", "function": {"name": "look_up", "arguments": arguments}}])


CALL = call({})
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
        ({"prompt": "a?", "completion": ""}, "completion is empty"),
        ({"prompt": [user("a?")], "completion": [user("A")]}, "one message of the assistant"),
        ({"messages": TALK}, "a conversation of 5 messages before the answer; kind: conversation reads it"),
        ({"messages": [user("a?"), assistant("A")], "tools": [TOOL]}, "beside a column 'tools'; kind"),
        ({"messages": [user("a?"), assistant("A")], "system": "Hm"}, "beside a column 'system'; kind"),
        ({"messages": [user("a?")]}, "should end with an answer"),
        ({"messages": [assistant("A"), user("a?")]}, "begins with the assistant"),
        ({"messages": [SYSTEM]}, "no message of the user"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "hello"}, "a list of messages, not 'hello'"),
        ({"messages": [{"text": "a?"}]}, "message 1 of messages should have a role and content"),
        (
            {"messages": [{"from": "function_call", "value": "{}"}]},
            "the role 'function_call', not .*; write a function_call",
        ),
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


def test_a_conversation_in_sharegpt_form_is_read():
    turns = [("system", "Be brief."), ("human", "a?"), ("gpt", "A")]
    record = {"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}
    item = only(record, RowReader("conversation", {"messages": "conversations"}, {"turns": "last"}))
    assert (item.messages, item.answer) == ((SYSTEM, user("a?")), "A")
    record["conversations"].insert(2, {"from": "observation", "value": "A!"})
    with pytest.raises(
        ValueError, match=r"message 3 of conversations has the role 'observation'.*; write a function_call"
    ):
        only(record, RowReader("conversation", {"messages": "conversations"}, {"turns": "last"}))


def test_a_column_of_the_system_message_and_one_of_tools_stand_beside_a_conversation():
    turns = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "A"}]
    record = {"system": "Be brief.", "tools": json.dumps([TOOL]), "conversations": turns}
    reader = RowReader("conversation", {"messages": "conversations"}, {"turns": "last"})
    assert only(record, reader) == Item("a?", "A", messages=(SYSTEM | {"tools": [TOOL]}, user("a?")))
    for empty in (None, ""):
        assert only(record | {"system": empty, "tools": empty}, reader).messages == (user("a?"),)
    assert only({"prompt": [user("a?")], "answer": "A", "system": "Be brief."}, CONVERSATION).messages[0] == SYSTEM
    assert only({"messages": TALK, "system": "Be brief."}, CONVERSATION).messages == tuple(TALK[:-1])


def test_arguments_of_a_call_that_are_json_text_are_encoded_once():
    talks = [[user("b?"), call(arguments), TALK[5], assistant("B")] for arguments in ({"word": "b"}, '{"word": "b"}')]
    items = [only({"messages": talk}, CONVERSATION) for talk in talks]
    assert items[0] == items[1] and items[0].messages[1] == call({"word": "b"})
    bare = assistant("", tool_calls=[{"name": "look_up", "arguments": "{}"}])
    item = only({"messages": [user("b?"), bare, TALK[5], assistant("B")]}, CONVERSATION)
    assert item.messages[1]["tool_calls"] == [{"name": "look_up", "arguments": {}}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [user("b?"), call("b"), *TALK[5:]]}, "message 2 of messages calls 'look_up' with .* object: 'b'"),
        ({"messages": [user("b?"), call("[1]"), *TALK[5:]]}, "arguments that are no JSON object"),
        ({"messages": [user("b?"), assistant("", tool_calls="x"), *TALK[5:]]}, "a list of mappings as tool_calls"),
        ({"messages": TALK[:4]}, "should end with an answer"),
        ({"messages": [user("a?"), SYSTEM, assistant("A")]}, "messages has a message of the system behind others"),
        ({"messages": [user("a?"), user("b?"), assistant("A")]}, "messages has two messages of the user in a row"),
        ({"messages": [*TALK[:3], assistant("B")]}, "messages has two messages of the assistant in a row"),
        ({"messages": [user("a?"), TALK[5], assistant("A")]}, "messages has a message of a tool that was not called"),
        ({"messages": [user("a?"), CALL, assistant("A")]}, "a call of a tool without the tool's message behind it"),
        ({"prompt": TALK[:3], "completion": "B"}, "prompt ends with the assistant"),
        ({"messages": TALK[:5]}, "should end with an answer of the assistant that has text"),
        ({"messages": [SYSTEM, assistant("A"), *TALK]}, "begins with the assistant"),
        ({"messages": TALK, "system": "Be long."}, "have a system message, and the column of `system` has another"),
        ({"messages": TALK[1:], "system": ["Be brief."]}, "system should be text"),
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
    with pytest.warns(UserWarning, match=r"leaves out 2 rows: .*:2: no answer.*; .*:3: not valid JSON"):
        ((items,),) = read_items(path, skips_bad_rows=True)
    assert [item.place for item in items] == ["rows.jsonl:1", "rows.jsonl:4"]
    path.write_text('{"question": "b"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl: no row has a column 'answer'"):
        read_items(path, skips_bad_rows=True)


def test_an_empty_column_or_null_is_nothing_in_a_template_and_a_row_of_none_is_refused():
    reader = RowReader(columns={"question": "{instruction}\n{input}", "answer": "output"})
    for nothing in ("", None):
        assert only({"instruction": "Count.", "input": nothing, "output": "1"}, reader).question == "Count.\n"
    with pytest.raises(ValueError, match="question is empty"):
        only({"instruction": None, "input": "", "output": "1"}, reader)


# -- labelled ---------------------------------------------------------------------------------------------------------

LABELS = {"1": " World", "2": " Sports", "3": " Sci/Tech"}
LABELLED = RowReader("labelled", {"question": "{title}\n{text}", "answer": "label"}, {"labels": LABELS})


def news(label: Any, title: str = "Rain") -> dict[str, Any]:
    return {"label": label, "title": title, "text": "It rained."}


@pytest.mark.parametrize(
    ("label", "answer"), [("3", " Sci/Tech"), (1, " World"), (" 2 ", " Sports"), ("", None), (None, None)]
)
def test_a_label_becomes_its_words_and_a_row_may_have_none(label, answer):
    assert only(news(label), LABELLED) == Item("Rain\nIt rained.", answer)


def test_a_row_without_a_column_of_labels_has_no_label():
    assert only({"question": "a?"}, RowReader("labelled", options={"labels": LABELS})).answer is None


@pytest.mark.parametrize(("label", "message"), [("4", "the label '4' is none of `labels`"), (2.5, "not 2.5")])
def test_a_label_outside_the_set_is_refused(label, message):
    with pytest.raises(ValueError, match=message):
        LABELLED.items(news(label))


def _labelled_skill(folder: Path, rows: list[tuple[str, str]], **options: Any) -> dict[str, Any]:
    (folder / "news.csv").write_text("label,title,text\n" + "".join(f"{label},{title},.\n" for label, title in rows))
    columns = {"question": "{title}\n{text}", "answer": "label"}
    return {"kind": "labelled", "file": "news.csv", "labels": LABELS, "columns": columns, "held_out": 2} | options


def test_scores_probes_and_gold_rows_have_labels_and_training_rows_may_have_none(tmp_path):
    rows = [(str(1 + i % 3), f"known {i}") for i in range(8)] + [("", f"unknown {i}") for i in range(500)]
    made = source(_labelled_skill(tmp_path, rows), tmp_path)
    for some in (made.held_out(), made.probe(20), made.rows(20, seed=1)):
        assert some and all(row["answer"] in LABELS.values() for row in some)
    probes = [row["prompt"] for row in made.probe(200)]
    assert len(probes) == len(set(probes)) == 6  # each of the few counts as one row of evidence
    assert not {row["prompt"] for row in made.held_out()} & {row["prompt"] for row in made.probe(50)}
    drawn = [made.draw(0, random.Random(i))["answer"] for i in range(300)]
    assert drawn.count("") > 250


def test_without_any_label_there_are_no_probes_and_no_gold_rows(tmp_path):
    (tmp_path / "test.csv").write_text("label,title,text\n1,a,.\n2,b,.\n3,c,.\n")
    skill = _labelled_skill(tmp_path, [("", "x"), ("", "y")], held_out={"file": "test.csv"})
    made = source(skill, tmp_path)
    assert made.probe(5) == []
    assert {row["answer"] for row in made.held_out()} == {*LABELS.values()}
    with pytest.raises(DataError, match="no row with a label"):
        made.rows(4, seed=1)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [("1", "a"), ("2", "b"), ("4", "c")],
            {},
            r"labels that skills.it.labels has not: '4' on 1 row \(.*news.csv:4\)",
        ),
        ([("1", "a"), ("2", "b"), ("", "c")], {}, "skills.it.labels: no row of news.csv has the label '3'"),
        ([("", "a"), ("", "b")], {}, "none of its rows has a label"),
        (
            [("1", "a"), ("2", "b"), ("3", "c")],
            {"held_out": {"file": "test.csv"}},
            "skills.it.held_out: the row test.csv:2 has no label, and",
        ),
    ],
)
def test_labels_that_cannot_be_used_are_refused_by_place(tmp_path, rows, options, message):
    (tmp_path / "test.csv").write_text("label,title,text\n,z,.\n")
    with pytest.raises(DataError, match=message):
        source(_labelled_skill(tmp_path, rows, **options), tmp_path).held_out()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([" A"], "two labels at least"),
        ([" A", "A "], "'A' are there twice"),
        ({1: " A", 2: "A"}, "labels '1' and '2' have the same words"),
        ({1: " A", 2: " "}, "label '2' has no words"),
        ({}, "labelled rows have the words that say each label"),
    ],
)
def test_labels_differ(labels, message):
    with pytest.raises(ValidationError, match=message):
        FileSkill(file="x.csv", kind="labelled", labels=labels)
    with pytest.raises(ValidationError, match="set kind: labelled, or leave it out"):
        FileSkill(file="x.csv", labels=[" A", " B"])


@pytest.mark.parametrize(
    ("synonyms", "message"),
    [
        ({3: [" C"]}, "there is no label '3'"),
        ({1: [" B "]}, "the words ' B ' are there twice"),
        ({1: [" "]}, "a synonym of ' A' has no words"),
        ({2: [" Ace"]}, "the words ' Ace' and 'A' are of two labels, and one begins with the other"),
    ],
)
def test_synonyms_are_of_one_label(synonyms, message):
    labels = {1: " A", 2: " B", 4: " By"}
    with pytest.raises(ValidationError, match=message):
        FileSkill(file="x.csv", kind="labelled", labels=labels, synonyms=synonyms)
    with pytest.raises(ValidationError, match="set kind: labelled, or leave it out"):
        FileSkill(file="x.csv", synonyms={"A": [" C"]})
    assert FileSkill(file="x.csv", kind="labelled", labels=labels, synonyms={1: [" Al"]}).synonyms == {"1": [" Al"]}


def test_labels_may_be_a_list_of_words_or_have_numbers_as_names():
    assert FileSkill(file="x", kind="labelled", labels=[" A", " B"]).labels == {"A": " A", "B": " B"}
    assert FileSkill(file="x", kind="labelled", labels={1: " A", 2: " B"}).labels == {"1": " A", "2": " B"}
