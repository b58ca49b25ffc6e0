"""Rows that a model cannot read or write stop a run before its first stage, or are left out of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import tests.support.tiny as tiny
from rld.data import skill_rows
from rld.errors import DataError, RecipeError
from rld.pipeline.run import RunContext
from rld.pipeline.train import train
from rld.recipe.reading import read_recipe

GOOD = [{"question": a + b, "answer": b + a} for a in "abcdef" for b in "cdef"]
LONG, UNKNOWN, UNWRITABLE = (
    {"question": "abab", "answer": "abcdefab"},
    {"question": "xyz", "answer": "a"},
    {"question": "hij", "answer": "Hij"},
)
SFT = {"name": "tune", "kind": "sft", "student": "small", "steps": 1, "batch": 2}


def context(folder: Path, *bad: dict[str, str], **recipe: Any) -> RunContext:
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in [*bad, *GOOD]))
    tree = {
        "name": "it",
        "models": {"small": str(folder / "model")},
        "skills": {"swap": {"file": "rows.jsonl", "held_out": 8}},
        "max_new_tokens": 6,
        "stages": [SFT],
        **recipe,
    }
    (folder / "recipe.yaml").write_text(json.dumps(tree))
    source = folder / "recipe.yaml"
    return RunContext(read_recipe(source), source, folder / "run", resume=False)


def test_bad_rows_are_named_by_line_before_anything_is_trained(tmp_path):
    made = context(tmp_path, LONG, UNKNOWN, UNWRITABLE)
    with pytest.raises(DataError) as raised:
        train(made.recipe, made.source, tmp_path / "run", resume=False)
    message = str(raised.value)
    assert "1 of 27 rows: rows.jsonl:1 has the answer 'abcdefab', of 9 tokens with its end, and 6 are" in message
    assert "rows.jsonl:2 has 'xyz', which the tokenizer lacks" in message
    assert "rows.jsonl:3 has the answer 'Hij', and the tokenizer reads and writes it as" in message
    assert not (tmp_path / "run").exists()


def test_bad_rows_that_are_skipped_are_neither_trained_nor_scored(tmp_path):
    made = context(tmp_path, LONG, UNKNOWN, UNWRITABLE, bad_rows="skip")
    with pytest.warns(UserWarning, match="left out") as warned:
        made.row_checks.require(made.skill_rows)
    assert len(warned) == 3
    source = made.skill_rows["swap"]
    drawn = [source.draw(0, random.Random(i)) for i in range(300)] + source.held_out()
    assert {row["prompt"] for row in drawn} == {row["question"] for row in GOOD}


def test_rows_that_are_all_bad_are_refused_though_bad_rows_are_skipped(tmp_path):
    with pytest.raises(DataError, match="bad_rows: skip leaves out 200"):
        context(tmp_path, bad_rows="skip", max_new_tokens=1)


def test_a_teacher_with_a_short_context_is_named(tmp_path):
    short = tiny.model()
    short.config.max_position_embeddings = 9
    short.save_pretrained(tmp_path / "short")
    tiny.tokenizer().save_pretrained(tmp_path / "short")
    stage = {"name": "last", "kind": "distill", "student": "small", "steps": 1}
    stage["teachers"] = {"brief": {"model": str(tmp_path / "short")}}
    long = {"question": "abcdefab", "answer": "a"}
    made = context(tmp_path, long, stages=[stage], max_new_tokens=6)
    with pytest.raises(DataError, match=r"teacher brief, skill 'swap': 1 of 25 rows: rows.jsonl:1 has 8 tokens in its"):
        made.row_checks.require(made.skill_rows)


def test_a_model_with_fewer_rows_than_its_tokenizer_has_tokens_is_refused_before_it_reads_any(tmp_path):
    made = context(tmp_path)
    tiny.model(vocabulary=9).save_pretrained(tmp_path / "model")
    with pytest.raises(RecipeError, match="has the token 14, 'j', and its embedding only 9 rows"):
        train(made.recipe, made.source, tmp_path / "run", resume=False)


def test_an_answer_that_is_not_learnt_need_not_fit_where_the_judge_accepts_what_does(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def first(completions, answer, **_):\n"
        "    return [float(text[:2] == gold[:2]) for text, gold in zip(completions, answer)]\n"
    )
    stage = {"name": "last", "kind": "distill", "student": "small", "steps": 1}
    made = context(tmp_path, LONG, stages=[stage], rewards=[{"use": "./mine.py:first"}])
    made.row_checks.require(made.skill_rows)
    made = context(tmp_path, LONG, rewards=[{"use": "./mine.py:first"}])
    with pytest.raises(DataError, match="answer 'abcdefab'"):
        made.row_checks.require(made.skill_rows)


def test_a_large_file_is_checked_in_part_and_that_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(skill_rows, "_MOST_EXAMPLES", 10)
    made = context(tmp_path)
    made.row_checks.require(made.skill_rows)
    assert "skill 'swap': 8 of 24 rows are checked, evenly spread" in capsys.readouterr().err
