"""Documents: files of text, pieces, passes over them, held-out documents, and what recipes refuse."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rld.cli import main
from rld.data.formats import read_rows
from rld.data.prompt_stream import PromptStream
from rld.data.recipe_rows import skill_rows
from rld.data.skill_rows import SkillRows
from rld.errors import DataError
from rld.models.prompting import PromptEncoder
from rld.models.text_checks import check_texts
from rld.models.text_pieces import cut_text
from rld.recipe.schema import Recipe
from rld.rollout.gold import gold_completions
from tests.support import fleet, tiny

TEXTS = ["a b c. d e f.\n", "bcd efg.\n\n\nhij abc.", "  one  two\n", "jihg fedcba abcdefghij"]
STAGE: dict[str, Any] = {"name": "only", "kind": "sft", "student": "any", "steps": 1}


def source(folder: Path, stages: Any = None, **options: Any) -> SkillRows:
    skill = {"file": "texts", "kind": "plain_text", "held_out": 1, **options}
    recipe = Recipe.model_validate({"name": "r", "stages": stages or [STAGE], "skills": {"it": skill}})
    return skill_rows(recipe, folder, cut=lambda skill, text: [text[i : i + 4] for i in range(0, len(text), 4)])["it"]


def written(folder: Path, texts: list[str], suffix: str = ".txt") -> Path:
    for i, text in enumerate(texts):
        path = folder / "texts" / f"part{i % 2}" / f"{i}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def documents(made: SkillRows) -> set[str]:
    return {row["answer"] for _, row in made.examples()}


def test_a_document_is_a_file_in_a_folder_or_a_row_or_a_part_between_separators(tmp_path):
    assert documents(source(written(tmp_path / "a", TEXTS))) == set(TEXTS)
    assert documents(source(written(tmp_path / "b", TEXTS, ".py"))) == set(TEXTS)
    separated = documents(source(written(tmp_path / "c", TEXTS), document_separator="\n\n\n"))
    assert separated == {*TEXTS} - {TEXTS[1]} | {"bcd efg.", "hij abc."}
    rows = tmp_path / "d" / "texts"
    rows.mkdir(parents=True)
    (rows / "rows.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    (rows / "README.md").write_text("no rows")
    assert documents(source(tmp_path / "d", columns={"text": "body"})) == set(TEXTS)


def test_held_out_documents_are_never_trained_on_not_even_a_copy(tmp_path):
    made = source(written(tmp_path, [*TEXTS, TEXTS[0] + "\n"]), held_out=0.4)
    held_out = {" ".join(row["answer"].split()) for row in made.held_out()}
    assert len(held_out) == 2
    left = [text for text in [*TEXTS, TEXTS[0] + "\n"] if " ".join(text.split()) not in held_out]
    assert sorted("".join(row["answer"] for row in made.rows(made.num_pieces, seed=0))) == sorted("".join(left))


def test_of_a_single_document_the_end_is_held_out(tmp_path):
    (tmp_path / "one.txt").write_text("abc def ghi jkl mno pqr")
    made = source(tmp_path, file="one.txt", held_out=0.25)
    assert [row["answer"] for row in made.held_out()] == [" pqr"]
    pieces = made.pieces(0)
    assert sorted(pieces.row(i, "x")["answer"] for i in range(len(pieces))) == sorted(
        ["abc ", "def ", "ghi ", "jkl ", "mno"]
    )


@pytest.mark.parametrize("piece", [1, 5, 100])
def test_a_file_of_text_is_read_document_by_document(tmp_path, monkeypatch, piece):
    monkeypatch.setattr("rld.data.formats.text._PIECE", piece)
    (tmp_path / "it.txt").write_bytes("\ufeffab\r\n--\r\nc--d\n--\n \n--\nef\n--\n".encode())
    documents = read_rows(tmp_path / "it.txt", "\n--\n")
    assert [*documents] == [(1, {"text": "ab"}), (3, {"text": "c--d"}), (7, {"text": "ef"})]


def test_documents_of_levels_of_different_sizes_are_all_drawn(tmp_path):
    rows = [{"text": f"{i:04}", "level": int(i > 1)} for i in range(9)]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = source(tmp_path)
    drawn = {row["answer"] for row in made.rows(made.num_pieces, seed=0)}
    assert drawn == {row["text"] for row in rows} - {row["answer"] for row in made.held_out()}


def test_every_piece_is_drawn_once_a_pass_in_another_order_also_after_a_resume(tmp_path):
    made = source(written(tmp_path, TEXTS))
    size = made.num_pieces

    def stream() -> PromptStream:
        return PromptStream({"it": made}, _Only(), seed=3, num_slots=3 * size)

    first = stream()
    rows = [first.dataset[i]["answer"] for i in range(2 * size)]
    one, two = rows[:size], rows[size:]
    assert Counter(one) == Counter(two) == Counter(made.pieces(0).row(i, "x")["answer"] for i in range(size))
    assert one != two
    resumed, again = stream(), stream()
    for i in range(5):
        again.dataset[i]
    resumed.load_state_dict(json.loads(json.dumps(again.state_dict(5))))
    assert [resumed.dataset[i]["answer"] for i in range(5, 2 * size)] == rows[5:]


class _Only:
    """A curriculum of one skill."""

    def next(self, rng: random.Random) -> tuple[str, int]:
        return "it", 0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece_bpe", "add_prefix_space", "nfc", "sibling"])
def test_pieces_make_up_the_text_fit_into_a_block_and_end_where_it_ends(name):
    encoder = PromptEncoder(fleet.FLEET[name].tokenizer())
    text = "Is it so? Yes, it is! " * 9 + "coffee" * 30 + "  \n\n What is 7 plus 5? "
    pieces = cut_text(encoder, text, size=12)
    assert "".join(pieces) == text
    rows = [{"prompt": "", "answer": piece, "is_cut": i + 1 < len(pieces)} for i, piece in enumerate(pieces)]
    completions = gold_completions(rows, encoder, max_tokens=12)
    assert max(len(encoder.encode("")) + len(ids) for ids in completions) <= 12
    assert len(encoder.encode("")) == 1
    end = encoder.end_token(is_chat=False)
    assert [ids[-1] == end for ids in completions] == [False] * (len(pieces) - 1) + [True]


def test_byte_level_tokenizers_spell_the_pieces_as_they_spell_the_text():
    encoder = PromptEncoder(fleet.FLEET["byte_level"].tokenizer())
    text = " ".join(question for question, _ in fleet.QUESTIONS) * 5
    ids = [token for piece in cut_text(encoder, text, 16) for token in encoder.encode_with("", piece)[1]]
    assert ids == encoder.encode_answer(text)


def test_texts_that_a_tokenizer_cannot_spell_or_a_context_cannot_hold_are_found():
    texts = ["abc", "abz", "a" + "\ud800"]
    rows = [{"prompt": "", "answer": text, "is_cut": False} for text in texts]
    findings = {finding.kind: finding.rows for finding in check_texts(tiny.encoder(), rows, [8] * 3, 64)}
    assert findings == {"unknown characters": (1,), "no text": (2,)}
    (finding,) = check_texts(tiny.encoder(), rows[:1], [128], 64)
    assert "blocks of 128 tokens, which do not fit into a context of 64" in finding.described()


def test_a_character_of_more_tokens_than_a_block_is_refused():
    with pytest.raises(DataError, match="tokens, and a row has room for"):
        cut_text(PromptEncoder(fleet.FLEET["byte_level"].tokenizer()), "\U0001f642" * 9, 5)


TEACHERS = {"t": {"model": "any"}}
SIGNALS = {"response": {}}
GOLD = {"prompts": 4, "completions": 1, "gold_completions": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signals": {"policy": {}, "response": {}}, "rollout": {}}, "name the signals without policy"),
        ({"rollout": {"prompts": 4, "completions": 2}}, "gold_completions to 1"),
        ({"gate": "per_prompt"}, "set gate: off"),
        ({"kind": "sft", "teacher": "any"}, "no answer that a teacher could give: leave it out"),
    ],
)
def test_stages_that_cannot_learn_documents_are_refused(tmp_path, changes, message):
    stage = {"kind": "distill", "teachers": TEACHERS, "signals": SIGNALS, "gate": "off", "rollout": GOLD, **changes}
    if stage["kind"] == "sft":
        stage = {key: stage[key] for key in ("kind", "teacher")}
    source(
        written(tmp_path, TEXTS),
        [{**STAGE, "kind": "distill", "teachers": TEACHERS, "signals": SIGNALS, "gate": "off", "rollout": GOLD}],
    )
    with pytest.raises(ValidationError, match=message):
        source(tmp_path, [{**STAGE, **stage}])


def test_texts_without_their_kind_and_shares_of_generators_are_refused(tmp_path, capsys):
    (tmp_path / "one.txt").write_text("abc")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "{name: r, skills: {it: {file: one.txt}}, stages: [{name: s, kind: sft, student: a/b, steps: 1}]}"
    )
    assert main(["check", str(recipe)]) == 2
    assert "one.txt is a text; kind: plain_text reads it" in capsys.readouterr().err
    with pytest.raises(ValidationError, match="give a number"):
        Recipe.model_validate({"name": "r", "stages": [STAGE], "skills": {"it": {"generator": "a:b", "held_out": 0.5}}})


def test_the_check_without_libraries_asks_them_about_blocks_that_no_context_holds(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for name, text in ("a", "abc"), ("b", "bca"):
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    config = "{hidden_size: 16, num_attention_heads: 2, num_hidden_layers: 1, max_position_embeddings: 64}"
    (tmp_path / "r.yaml").write_text(
        "{name: r, tokenizer: {characters: abc}, skills: {it: {file: texts, kind: plain_text, held_out: 1}}, "
        f"models: {{m: {{new: llama, config: {config}}}}}, stages: [{{name: s, kind: sft, student: m, steps: 1}}]}}"
    )
    assert main(["check", str(tmp_path / "r.yaml"), "skills.it.block=16"]) == 0
    assert main(["check", str(tmp_path / "r.yaml")]) == 2
    assert (
        "blocks of 256 tokens, which do not fit into a context of 64; lower the skill's block"
        in capsys.readouterr().err
    )
