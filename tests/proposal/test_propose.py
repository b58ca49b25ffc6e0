"""A first recipe: each kind of rows gives one that trains, and what cannot be told is refused with a fix."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tests.support.tiny as tiny
from rld.cli import main
from rld.proposal.lines import entry
from rld.recipe import registry
from rld.recipe.document import RecipeDocument
from rld.recipe.hardware import Card, Cards
from rld.recipe.reading import read_recipe

DATA = registry.folder("recipes") / "data"
SUMS = [{"question": f"{a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"} for a in range(6) for b in range(5)]
NEWS = "title,text,label\n" + "".join(f"Cup {i},They won it.,{['World', 'Sci_Tech'][i % 2]}\n" for i in range(40))
TALKS = [
    {"talk": [{"from": "human", "value": f"Is {i} even?"}, {"from": "gpt", "value": "It is a number, as you know."}]}
    for i in range(30)
]
FILES = {
    "sums.jsonl": "\n".join(map(json.dumps, SUMS)),
    "news.csv": NEWS,
    "talks.jsonl": "\n".join(map(json.dumps, TALKS)),
    "prose.txt": "The moon is round, and the sea is deep. " * 400,
    "replies.csv": "frage,antwort\n" + "".join(f"Who has {i}?,Nobody has {i}.\n" for i in range(30)),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with files of rows, a student and a larger teacher with a chat template."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    size = len(json.loads((DATA / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]) + 16
    for name, width in (("small", 32), ("large", 48)):
        tiny.model(width=width, vocabulary=size, max_position_embeddings=512).save_pretrained(name)
        shutil.copytree(DATA / "tokenizer", name, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def slow_machine(monkeypatch):
    """One that makes a thousand million operations per second, whichever runs the tests."""
    cards = Cards("a card", measured=Card(1e9, 1e9, 100e9))
    monkeypatch.setattr("rld.proposal.propose.measure_machine", lambda: (cards, False))


def propose(*words: str) -> int:
    return main(["init", *words, "--student", "small", "--minutes", "0.05"])


@pytest.mark.parametrize(
    ("file", "kind", "stages"),
    [
        ("sums.jsonl", "question_answer", ["gold", "distill"]),
        ("news.csv", "labelled", ["distill"]),
        ("talks.jsonl", "conversation", ["gold", "distill"]),
        ("prose.txt", "plain_text", ["distill"]),
    ],
)
def test_each_kind_of_rows_gives_a_recipe_that_trains(file, kind, stages, folder):
    assert propose(file, "--teacher", "large") == 0
    recipe = read_recipe("recipe.yaml")
    (skill,) = recipe.skills.values()
    assert (skill.kind, [stage.name for stage in recipe.stages]) == (kind, stages)
    few = [f"stages.{stage}.steps=1" for stage in stages]
    assert main(["train", "recipe.yaml", *few, "--output", "run"]) == 0
    assert (folder / "run" / "student" / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.csv", None, "there is no file absent.csv"),
        (
            "a.csv",
            "x,y,z\none,two,three\n",
            "a.csv: no column has the answer (it has 'x', 'y', 'z'); name it by --answer",
        ),
        ("a.csv", "id,label\n1,one\n", "no column has the question (it has 'id', 'label'); name it by --question"),
        ("a.csv", "id,title,question\n1,one,two\n", "no column has the answer"),
        ("a.csv", "What is 19 plus 49?,68\nWhat is 1 plus 1?,2\n", "the column name 'What is 19 plus 49?' looks like"),
        ("a.tsv", "it is fine\tgood\nit is dull\tbad\nit is new\tgood\n", "the column name 'good' looks like data; if"),
        ("a.csv", "text|label\none|two\n", "separated by '|'; save the file with commas"),
        ("a.csv", "text,label\n" + "They won.,Sports\n" * 9, "'label' has 'Sports' on every row; labels differ"),
        ("a.jsonl", '{"prompt": "p", "tests": "assert f()"}', "rld copy code"),
        ("a.csv", "text,label\n", "it has no rows"),
        ("a.xls", "text", "rows come from .jsonl, .csv, .tsv"),
    ],
)
def test_what_cannot_be_told_is_refused_and_nothing_is_written(name, text, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text)
    assert propose(name) == 2
    assert message in capsys.readouterr().err
    assert not Path("recipe.yaml").exists()


def test_semicolons_give_the_recipe_of_commas(folder, slow_machine):
    assert propose("news.csv") == 0
    recipe = Path("recipe.yaml").read_text()
    Path("recipe.yaml").unlink()
    Path("news.csv").write_text(NEWS.replace(",", ";"))
    assert propose("news.csv") == 0
    assert Path("recipe.yaml").read_text() == recipe


def test_a_file_in_another_encoding_is_refused_with_the_place_of_the_byte(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_bytes("text,label\nn\u00f6,b\n".encode("latin-1"))
    assert propose("a.csv") == 2
    assert "a.csv: is not text in UTF-8, at byte 12 (0xf6, on line 2); save it as UTF-8" in capsys.readouterr().err


def test_a_file_that_exists_is_never_overwritten(folder, capsys):
    Path("recipe.yaml").write_text("mine")
    assert propose("sums.jsonl") == 2
    assert "recipe.yaml exists; remove it, or choose another --output" in capsys.readouterr().err
    assert Path("recipe.yaml").read_text() == "mine"


def test_rows_that_cannot_be_used_are_left_out_and_named(folder):
    Path("sums.jsonl").write_text(f'{{"question": "", "answer": "1"}}\n{FILES["sums.jsonl"]}')
    assert propose("sums.jsonl") == 0
    text = " ".join(Path("recipe.yaml").read_text().replace("#", " ").split())
    assert f"1 row cannot be used; the first: {folder}/sums.jsonl:1: question is empty bad_rows: skip" in text


def test_a_path_in_a_reason_stays_whole():
    path = "/a-long" * 20
    assert entry(0, "key", 1, f"the file {path} was read") == ["# the file", f"# {path}", "# was read", "key: 1"]


def test_a_file_of_its_own_is_held_out_and_brings_its_labels(folder):
    Path("test.csv").write_text("title,text,label\nRain,It falls.,Weather\n")
    Path("news.csv").write_text(NEWS + "Wind,It blows.,Weather\n")
    assert propose("news.csv", "--held-out", "test.csv", "--output", "own.yaml") == 0
    skill = read_recipe("own.yaml").skills["news"]
    assert skill.held_out.file == "./test.csv"
    assert skill.columns == {"question": "{title}\n{text}", "answer": "label"}
    assert skill.labels == {"Sci_Tech": " Sci Tech", "Weather": " Weather", "World": " World"}


def test_two_columns_of_any_name_are_a_question_and_its_answer(folder):
    assert propose("replies.csv") == 0
    text = Path("recipe.yaml").read_text()
    assert "guessed, as their names do not tell them" in text
    recipe = read_recipe("recipe.yaml")
    assert recipe.skills["replies"].columns == {"question": "frage", "answer": "antwort"}
    assert [stage.kind for stage in recipe.stages] == ["sft"]


def table(names: str, *columns: Callable[[int], str]) -> str:
    """Return a CSV file of 30 rows whose cells are made of their numbers."""
    return f"{names}\n" + "".join(",".join(cell(i) for cell in columns) + "\n" for i in range(30))


def number(i: int) -> str:
    return str(i + 7)


def sentence(i: int) -> str:
    return f"They won {i} of the cups."


def words(i: int) -> str:
    return f"Cup {i}"


def label(i: int) -> str:
    return "ab"[i % 2]


def rarely(i: int) -> str:
    return "in words" if i % 5 == 0 else ""


@pytest.mark.parametrize(
    ("text", "kind", "columns"),
    [
        (table("id,comment", number, sentence), "plain_text", {"text": "comment"}),
        (table("id,message,department", number, sentence, label), "labelled", ("message", "department")),
        (table("department,mail", label, sentence), "labelled", ("mail", "department")),
        (table("messageId,a,b,c", words, words, sentence, label), "labelled", ("b", "c")),
        (table("id,en,de", number, words, sentence), "question_answer", ("en", "de")),
        (table("nr,en,de", number, words, sentence), "question_answer", ("en", "de")),
        (
            table("id,dialogue,summary,topic", number, sentence, words, label),
            "question_answer",
            ("dialogue", "summary"),
        ),
        (table("id,chat,summary,topic", number, sentence, words, label), "question_answer", ("chat", "summary")),
        (table(",text,label", number, sentence, label), "labelled", ("text", "label")),
        (table("id,url,title,text", number, words, words, sentence), "plain_text", {}),
        (table("id,article,headline", number, sentence, words), "question_answer", ("article", "headline")),
        (
            table("instruction,input,output", sentence, rarely, words),
            "question_answer",
            ("{instruction}\n{input}", "output"),
        ),
        (
            table("frage,options,answer", sentence, lambda i: "A: x B: y", label),
            "labelled",
            ("{frage}\n{options}", "answer"),
        ),
    ],
)
def test_columns_are_told_by_names_and_then_by_values(text, kind, columns, folder):
    """Row numbers, keys and addresses are neither question nor answer; what stands beside a question may be empty."""
    Path("rows.csv").write_text(text)
    assert propose("rows.csv") == 0
    skill = read_recipe("recipe.yaml").skills["rows"]
    if isinstance(columns, tuple):
        columns = {name: column for name, column in zip(("question", "answer"), columns, strict=True) if name != column}
    assert (skill.kind, skill.columns) == (kind, columns)


@pytest.mark.parametrize(("value", "question"), [([], "{question}\n{choices}"), ({"A": "x"}, "question")])
def test_choices_are_part_of_the_question_where_a_template_reads_them(value, question, folder, capsys):
    rows = [
        {"question": sentence(i), "choices": value if i == 1 else ["x", "y"], "answer": label(i)} for i in range(30)
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert propose("rows.jsonl") == 0
    assert read_recipe("recipe.yaml").skills["rows"].columns == ({"question": question} if "{" in question else {})
    assert ("not used: 'choices'" in capsys.readouterr().err) is (question == "question")


def test_guesses_and_columns_without_use_are_told_and_stand_in_the_recipe(folder, capsys):
    Path("rows.csv").write_text(table("id,message,author,department", number, sentence, words, label))
    assert propose("rows.csv") == 0
    cautions = capsys.readouterr().err
    assert "rows.csv: guessed: question 'message', answer 'department'; --question and --answer name others" in cautions
    assert "rows.csv: columns that are not used: 'author'; --question and --answer name columns to use" in cautions
    assert "labels; not used: 'author'" in Path("recipe.yaml").read_text()


def test_options_name_columns(folder, capsys):
    """They also say that a first line has names, which looks like data."""
    Path("rows.csv").write_text(table("Are you well?,Say more in words.,no", label, words, label))
    assert propose("rows.csv") == 2
    options = ["--question", "Say more in words.", "--question", "no", "--answer", "Are you well?"]
    assert propose("rows.csv", *options) == 0
    skill = read_recipe("recipe.yaml").skills["rows"]
    assert skill.kind == "labelled"
    assert skill.columns == {"question": "{Say more in words.}\n{no}", "answer": "Are you well?"}
    capsys.readouterr()
    for options, message in (
        (["--answer", "yes"], "--answer: FOLDER/rows.csv has no column 'yes' (it has 'Are you well?', 'Say more in"),
        (["--question", "yes", "--answer", "no"], "--question: FOLDER/rows.csv has no column 'yes'"),
        (["--question", "no", "--answer", "no"], "--question and --answer name the same column, 'no'"),
    ):
        assert propose("rows.csv", *options, "--output", "other.yaml") == 2
        assert message.replace("FOLDER", str(folder)) in capsys.readouterr().err
    assert propose("prose.txt", "--answer", "text", "--output", "other.yaml") == 2
    assert "prose.txt is text, which has no columns; leave out --answer" in capsys.readouterr().err


def test_one_option_leaves_the_other_column_to_names_and_values(folder, capsys):
    Path("rows.csv").write_text(table("en,de,fr", words, sentence, sentence))
    assert propose("rows.csv", "--question", "fr") == 2
    assert propose("rows.csv", "--answer", "en", "--output", "answer.yaml") == 0
    assert read_recipe("answer.yaml").skills["rows"].columns == {"question": "de", "answer": "en"}
    assert "by --answer, else guessed" in Path("answer.yaml").read_text()
    assert "rows.csv: guessed: question 'de'; --question and" in capsys.readouterr().err
    assert propose("news.csv", "--question", "title", "--output", "question.yaml") == 0
    assert read_recipe("question.yaml").skills["news"].columns == {"question": "title", "answer": "label"}


def test_more_minutes_are_more_steps(folder, slow_machine, capsys):
    """And are asked for only where the time is what limits the steps, not the rows."""
    steps, cautions = [], []
    for minutes in ("0.005", "5"):
        words = ["news.csv", "--student", "small", "--minutes", minutes, "--output", f"{minutes}.yaml"]
        assert main(["init", *words]) == 0
        steps.append(read_recipe(f"{minutes}.yaml").stages[0].steps)
        cautions.append("give it more --minutes" in capsys.readouterr().err)
    assert steps[0] < steps[1] <= 3 * 40 // 4
    assert cautions == [True, False]


def test_what_memory_does_not_hold_is_made_smaller(folder, monkeypatch):
    """By parts of an update, then by an adapter."""
    found = {}
    for memory in (100e9, 1e6):
        cards = Cards("a card", measured=Card(1e12, 1e12, memory))
        monkeypatch.setattr("rld.proposal.propose.measure_machine", lambda cards=cards: (cards, False))
        assert main(["init", "news.csv", "--student", "small", "--output", f"{memory:.0f}.yaml"]) == 0
        (stage,) = read_recipe(f"{memory:.0f}.yaml").stages
        found[memory] = stage.trainer.get("gradient_accumulation_steps", 1), stage.lora is not None
    assert found == {100e9: (1, False), 1e6: (8, True)}


@pytest.mark.parametrize(("minutes", "completions"), [("60", 4), ("0.002", 1)])
def test_a_student_tries_answers_where_there_is_time(minutes, completions, folder, slow_machine):
    assert main(["init", "sums.jsonl", "--student", "small", "--teacher", "large", "--minutes", minutes]) == 0
    recipe = read_recipe("recipe.yaml")
    assert recipe.stages[-1].rollout.completions == completions
    assert recipe.verifier_in_use.use == "answers:final_number"


def test_the_page_shows_what_is_written(folder):
    page = (Path(__file__).parents[2] / "docs" / "first_run.md").read_text()
    command, train, options = (
        block.split() for block in re.findall(r"```sh\n(rld (?:init|train).*?)```", page, re.DOTALL)
    )
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("news.csv").write_text(NEWS.replace("Sci_Tech", "Sports"))
    places = {"HuggingFaceTB/SmolLM2-135M-Instruct": "small", "HuggingFaceTB/SmolLM2-1.7B-Instruct": "large"}
    assert main([places.get(word, word) for word in command[1:]]) == 0
    tree = RecipeDocument(Path("recipe.yaml")).tree
    Path("shown.yaml").write_text(shown)
    assert {key: tree[key] for key in ("prompts", "skills")} == RecipeDocument(Path("shown.yaml")).tree
    assert main([*train[1:], "stages.distill.steps=1"]) == 0
    Path("mails.csv").write_text(table("id,subject,body,team", number, words, sentence, label))
    assert main(["small" if word == "MODEL" else word for word in options[1:]] + ["--output", "mails.yaml"]) == 0
    columns = read_recipe("mails.yaml").skills["mails"].columns
    assert columns == {"question": "{subject}\n{body}", "answer": "team"}
    for line in re.findall(r"^rld generate .*", page, re.MULTILINE):
        assert main([places.get(word, word) for word in shlex.split(line)[1:]] + ["--max-new-tokens", "4"]) == 0
