"""Rows: held-out ones that training never sees, prompts, files, the stream that a curriculum orders, tokens."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration
from datasets import Dataset
from pydantic import ValidationError
from torch.utils.data import DataLoader
from transformers import AutoTokenizer
from trl.trainer.utils import RepeatSampler, identity

from rld.data.file_items import read_items
from rld.data.generators import item_source
from rld.data.prompt_stream import PromptStream
from rld.data.recipe_rows import skill_rows
from rld.data.row_kinds import ROW_KINDS
from rld.data.skill_rows import SkillRows
from rld.errors import CurriculumError, DataError
from rld.models import tokenizers
from rld.recipe.schema import Recipe
from rld.recipe.skills import ReasoningGymSkill
from rld.types import Task

REVERSE = {"generator": "rld.recipes.strings:reverse", "levels": [{"length": 2}, {"length": 3}, {"length": 4}]}
CHAIN_SUM = {
    "reasoning_gym": "chain_sum",
    "levels": [{"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}],
}


def source(skill: dict[str, Any], folder: Path = Path(), **recipe: Any) -> SkillRows:
    stages = [{"name": "only", "kind": "sft", "student": "any", "steps": 1}]
    tree = {"name": "r", "stages": stages, "skills": {"it": skill}, **recipe}
    return skill_rows(Recipe.model_validate(tree), folder)["it"]


# -- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", [REVERSE, CHAIN_SUM], ids=["generated", "reasoning_gym"])
def test_no_training_row_is_held_out(skill):
    made = source({**skill, "held_out": 60})
    held_out = [row["prompt"] for row in made.held_out()]
    assert len(set(held_out)) == 60
    drawn = [made.draw(i % made.num_levels, random.Random(i)) for i in range(3000)]
    trained = {row["prompt"] for row in [*drawn, *made.rows(500, seed=1), *made.probe(300)]}
    assert len(trained) > 100
    assert not trained & set(held_out)


def test_a_skill_that_is_never_scored_avoids_what_others_hold_out():
    tree = {"name": "r", "stages": [{"name": "only", "kind": "sft", "student": "any", "steps": 1}]}
    tree["skills"] = {"lesson": REVERSE | {"held_out": 0}, "scored": REVERSE | {"held_out": 60}}
    made = skill_rows(Recipe.model_validate(tree), Path())
    held_out = {row["prompt"] for row in made["scored"].held_out()}
    drawn = {made["lesson"].draw(i % 3, random.Random(i))["prompt"] for i in range(1000)}
    assert made["lesson"].held_out() == []
    assert len(held_out) == 60 < len(drawn)
    assert not drawn & held_out
    with pytest.raises(ValidationError, match="no model is ever scored"):
        Recipe.model_validate({**tree, "skills": {"lesson": REVERSE | {"held_out": 0}}})


def test_held_out_rows_depend_on_the_seed_alone():
    rows = source(REVERSE).held_out()
    assert Counter(row["level"] for row in rows) == {0: 34, 1: 33, 2: 33}
    other = source(REVERSE)
    other.draw(0, random.Random(0))
    assert other.held_out() == rows
    assert source(REVERSE, seed=1).held_out() != rows


def test_rows_are_spread_over_the_levels_and_repeatable():
    made = source(REVERSE)
    rows = made.rows(30, seed=5)
    assert Counter(row["level"] for row in rows) == {0: 10, 1: 10, 2: 10}
    assert rows == source(REVERSE).rows(30, seed=5) != made.rows(30, seed=6)
    assert rows[1]["prompt"] == f"rev:{rows[1]['answer'][::-1]}=" and len(rows[1]["answer"]) == 3


def test_reasoning_gym_rows_carry_what_the_verifier_needs():
    row = source(CHAIN_SUM).held_out()[0]
    entry = json.loads(row["entry"])
    assert (entry["task"], entry["config"]) == ("chain_sum", CHAIN_SUM["levels"][0])
    assert (entry["question"], entry["answer"]) == (row["prompt"], row["answer"])
    assert entry["metadata"]["num_terms"] == 2


@pytest.mark.parametrize("task", ["letter_counting", "survo"])  # survo looks at its seed only while it is built
def test_items_are_those_of_a_data_set_built_with_the_seed(task):
    import reasoning_gym

    make = item_source("it", ReasoningGymSkill(reasoning_gym=task), Path()).make
    for i in range(3):
        built = reasoning_gym.create_dataset(task, seed=random.Random(i).getrandbits(32), size=1)[0]
        assert make(0, random.Random(i))[:2] == (built["question"], built["answer"])


def test_items_of_a_task_that_draws_beside_its_generator_are_repeatable():
    make = item_source("it", ReasoningGymSkill(reasoning_gym="list_functions"), Path()).make
    first, second = ([make(0, random.Random(i)) for i in range(40)] for _ in range(2))
    assert first == second, "one in eight differed"
    state = random.getstate()
    make(0, random.Random(0))
    assert random.getstate() == state


@pytest.mark.parametrize("held_out", [11, 10])  # 10 questions: too few to hold out, and then none left to train on
def test_too_small_a_level_is_an_error_that_says_how_to_mend_it(held_out):
    with pytest.raises(DataError, match=r"skill 'it', level 0: too few different questions.*held_out \(now 1"):
        source({**REVERSE, "levels": [{"length": 1}], "held_out": held_out}).held_out()


def test_a_generator_that_fails_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("def no(rng):\n    return 1 / 0\ndef bad(rng):\n    return 'one'\n")
    with pytest.raises(DataError, match=r"skill 'it', level 0: .*mine.* raised ZeroDivisionError.*mine.py:2"):
        source({"generator": "./mine.py:no"}, tmp_path).held_out()
    with pytest.raises(DataError, match=r"mine.py:bad returned 'one'; it should return \(question, answer\)"):
        source({"generator": "./mine.py:bad"}, tmp_path).held_out()
    with pytest.raises(DataError, match="min_terms must be positive"):
        source({**CHAIN_SUM, "levels": [{"min_terms": 0}]}).held_out()


GENERATORS = """
import random

CALLS = []

def draws(rng, size):
    a, b = rng.randrange(size), random.randrange(size)
    return f"{a}+{b}=", str(a + b)

def counts(rng, size):
    CALLS.append(rng.randrange(size))
    return f"{len(CALLS)}+{CALLS[-1]}=", str(len(CALLS) + CALLS[-1])

def words(rng, size):
    return f"{rng.randrange(size)}", random.choice(["yes", "no"])
"""


@pytest.mark.parametrize("name", ["draws", "counts", "words"])
def test_a_generator_that_does_not_depend_on_its_random_numbers_alone_is_named(tmp_path, name):
    (tmp_path / "mine.py").write_text(GENERATORS)
    levels = [{"size": 1000}, {"size": 2000}]
    message = f"skill 'it', level [01]: ./mine.py:{name} returned .*, and for the same random numbers"
    with pytest.raises(DataError, match=message):
        source({"generator": f"./mine.py:{name}", "levels": levels}, tmp_path).examples()


def test_questions_without_gold_answers_cannot_be_imitated():
    made = source({"reasoning_gym": "graph_color", "held_out": 1})
    assert made.probe(1)[0]["answer"] == ""
    with pytest.raises(DataError, match="without a gold answer"):
        made.rows(1, seed=0)


def test_prompts_may_have_a_template_and_be_a_chat():
    plain = source(REVERSE, prompts={"template": "Solve {this}: {question}"}).held_out()[0]["prompt"]
    assert plain.startswith("Solve {this}: rev:")
    chat = source(REVERSE, prompts={"style": "chat", "system": "Be brief."}).held_out()[0]["prompt"]
    assert [message["role"] for message in chat] == ["system", "user"]
    assert chat[1]["content"].startswith("rev:")


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_keep_their_texts(tmp_path):
    lines = [f'"Say,\r\n{i}",00{i},{i % 2}' for i in range(10)]
    (tmp_path / "rows.csv").write_text("question,answer,level\n" + "\n".join(lines), newline="")
    records = [{"question": f"Say,\r\n{i}", "answer": f"00{i}", "level": i % 2} for i in range(10)]
    (tmp_path / "rows.jsonl").write_text("\n\n".join(map(json.dumps, records)))
    for name in ("rows.csv", "rows.jsonl"):
        made = source({"file": name, "held_out": 4}, tmp_path)
        held_out = made.held_out()
        assert [row["level"] for row in held_out] == [0, 1, 0, 1]
        rows = [*held_out, *made.rows(100, seed=0)]
        assert {(row["prompt"], row["answer"], row["level"]) for row in rows} == {tuple(r.values()) for r in records}
        assert not {row["prompt"] for row in held_out} & {row["prompt"] for row in rows[4:]}


def test_bad_rows_are_listed_with_their_lines(tmp_path):
    rows = {
        '{"question": "a", "answer": 1}': None,
        "{": "not valid JSON",
        "[]": "a row is a mapping",
        '{"question": "b"}': "no answer",
        '{"question": "a", "answer": "", "level": 0}': "answer is empty",
        '{"question": "a", "answer": "b", "level": -1}': "level should be a whole number from 0, not -1",
        '{"question": "a", "answer": "b", "level": "%s"}'
        % ("9" * 5000): "level should be a whole number from 0, not '9",
        '{"question": "a", "answer": %s}' % ("9" * 5000): "not valid JSON: a number has 5,000 digits",
        '{"question": "a", "answer": %s}' % ("[" * 99_999): "not valid JSON: it is nested too deep",
    }
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(rows))
    with pytest.raises(DataError) as caught:
        source({"file": "bad.jsonl"}, tmp_path)
    wanted = [f"{path}:{number}: {problem}" for number, problem in enumerate(rows.values(), start=1) if problem]
    for line, start in zip(str(caught.value).splitlines(), [*wanted, "mend these rows"], strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,answer,level\na,b,1\n", "no rows of level 0"),
        ("question,answer,level\na,b,0\nc,d,2000000000\n", "no rows of level 1, and some of level 2000000000"),
        ("question,answer\n", "no rows"),
        ("q,a\n1,2", "no row has a column 'question'; the first row has 'q', 'a'"),
        ("question,answer\n2,000+1?,2001\n", "rows.csv:2: 3 cells, and 2 columns; quote a cell"),
        ("question,answer\na,1\nb\n", "rows.csv:3: 1 cells, and 2 columns"),
        ('question,answer\na,1\n"b,2\nc,3\nd,"4"\n', "the row on line 3 is not CSV"),
        ('question,answer\na,"1" or "2"\n', "the row on line 2 is not CSV: .* written twice"),
        ('question,answer\na,"1\nb,2\n', "the row on line 2 is not CSV: unexpected end of data"),
        ("question,answer,answer\na,1,2\n", "two of its columns are called 'answer'"),
        ("question|answer\na|1\n", r"its columns are separated by '\|'"),
        ("question;answer\na;1\nb;2;3\n", "rows.csv:3: 3 cells, and 2 columns; quote a cell that has ';' in it"),
    ],
)
def test_unusable_files_are_refused(tmp_path, text, message):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        source({"file": "rows.csv"}, tmp_path)


def test_cells_and_numbers_are_texts_as_they_are_written(tmp_path):
    (tmp_path / "rows.csv").write_text('\nquestion, answer\na, "say ""so"", or 1"\n\nb,  007\nc," 7"\n')
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(f'{{"question": "{n}", "answer": {n}}}' for n in ("3.10", "1e3", "0.10000000000000000001", "7"))
    )
    read = {name: [item.answer for item in read_items(tmp_path / name)[0][0]] for name in ("rows.csv", "rows.jsonl")}
    assert read["rows.csv"] == ['say "so", or 1', "007", " 7"]
    assert read["rows.jsonl"] == ["3.10", "1e3", "0.10000000000000000001", "7"]


def test_a_key_that_a_row_sets_twice_and_another_encoding_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n{"question": "b", "answer": "1", "answer": "2"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:2: not valid JSON: 'answer' is set twice"):
        read_items(path)
    path.write_bytes('{"question": "caf\u00e9", "answer": "1"}'.encode("latin-1"))
    told = r"rows.jsonl: is not text in UTF-8, at byte 17 \(0xe9, on line 1\); save it as UTF-8"
    with pytest.raises(DataError, match=told):
        read_items(path)


def test_any_columns_of_a_file_are_question_and_answer_and_rewards_get_the_others(tmp_path):
    (tmp_path / "news.csv").write_text("label,title,text,source\n1,A,long,x\n3,B,short,y\n")
    columns = {"question": "{title}:\n{text}", "answer": "label"}
    made = source({"file": "news.csv", "columns": columns, "held_out": 1}, tmp_path)
    rows = {row["prompt"]: row for row in [*made.held_out(), *made.rows(1, seed=0)]}
    assert {prompt: row["answer"] for prompt, row in rows.items()} == {"A:\nlong": "1", "B:\nshort": "3"}
    assert json.loads(rows["B:\nshort"]["entry"]) == {"source": "y"}
    (tmp_path / "plain.csv").write_text("question,answer\na,b\n")
    assert read_items(tmp_path / "plain.csv")[0][0][0].entry == ""


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused_with_their_row(tmp_path, number):
    rows = ['{"question": "a", "answer": 1.5}', f'{{"question": "b", "answer": {number}}}']
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"rows.jsonl:2: .*(NaN|Infinity|inf)"):
        source({"file": "rows.jsonl"}, tmp_path)


# -- the stream -------------------------------------------------------------------------------------------------------


class Climb:
    """Goes up one level with every observed update, so that rows show what had been observed when they were drawn."""

    def __init__(self) -> None:
        self.updates = 0

    def next(self, rng: random.Random) -> Task:
        return Task("it", self.updates)

    def observe(self, task: Task, successes: int, attempts: int) -> None:
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]

    def metrics(self) -> dict[str, float]:
        return {}


def stream(curriculum: Any, prompts_per_update: int = 2) -> PromptStream:
    made = PromptStream({"it": source({**REVERSE, "levels": [{"length": n} for n in range(2, 10)]})}, curriculum, 0, 16)
    made.prompts_per_update = prompts_per_update
    return made


def loader(made: PromptStream, skip: int = 0) -> Any:
    """The data loader of TRL's trainer: batches of 2 prompts, 3 completions each, every batch used twice."""
    sampler = RepeatSampler(made.dataset, mini_repeat_count=3, batch_size=2, repeat_count=2, shuffle=False)
    plain = DataLoader(made.dataset, batch_size=6, sampler=sampler, collate_fn=identity)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    return skip_first_batches(accelerator.prepare(plain), 2 * skip)


def train(made: PromptStream, batches: Any, stop: int | None = None) -> tuple[list[Any], Any]:
    """Observe after each update; return the batches, and the state after update `stop`."""
    seen, state = [], None
    for i, batch in enumerate(batches):
        seen.append(batch)
        if i % 2 == 1:  # the second use of a batch ends an update
            made.observe(Task("it", batch[0]["level"]), 0, 6)
            if (i + 1) // 2 == stop:
                state = json.loads(json.dumps(made.state_dict(2 * stop)))
    return seen, state


def test_rows_are_drawn_when_they_are_asked_for():
    made = stream(Climb())
    seen, _ = train(made, loader(made))
    assert len(seen) == 16
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert first == second
        assert [first[0]] * 3 + [first[3]] * 3 == first != [first[0]] * 6
    # Accelerate looks one batch ahead: update i sees what was observed up to update i - 2.
    assert [batch[0]["level"] for batch in seen[::2]] == [0, 0, 1, 2, 3, 4, 5, 6]


def test_a_resumed_stream_goes_on_with_the_same_rows():
    made = stream(Climb())
    seen, state = train(made, loader(made), stop=3)
    again = stream(Climb())
    again.load_state_dict(state)
    draws: list[int] = []
    draw = again._sources["it"].draw
    again._sources["it"].draw = lambda level, *rest: draws.append(level) or draw(level, *rest)  # type: ignore[method-assign]
    resumed, _ = train(again, loader(again, skip=3))
    assert resumed == seen[6:]
    assert len(draws) == 10, "what is skipped is not drawn"


def test_every_process_knows_the_tasks_of_the_others():
    first, second = stream(Climb(), prompts_per_update=4), stream(Climb(), prompts_per_update=4)
    first.dataset[[0, 1]], second.dataset[[2, 3]]
    assert first.state_dict(0) == second.state_dict(0)
    assert [slot for slot, *_ in first.state_dict(0)["tasks"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("task", [("other", 0), ("it", 8), ("it", -1), None])
def test_a_task_that_does_not_exist_is_refused(task):
    curriculum = Climb()
    curriculum.next = lambda rng: task  # type: ignore[method-assign]
    with pytest.raises(CurriculumError, match=r"curriculum Climb: next\(\) returned .*'it' with 8"):
        stream(curriculum).dataset[0]


def test_a_curriculum_that_raises_is_named():
    curriculum = Climb()
    curriculum.next = lambda rng: 1 / 0  # type: ignore[method-assign, return-value, assignment]
    with pytest.raises(CurriculumError, match=r"Climb: next\(\) raised ZeroDivisionError.*test_skill_rows.py"):
        stream(curriculum).dataset[0]
    with pytest.raises(CurriculumError, match=r"Climb: observe.* raised TypeError"):
        Broken = type("Climb", (Climb,), {"observe": lambda self: None})
        stream(Broken()).observe(Task("it", 0), 0, 1)


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("metrics", None, "metrics.. returned None; it should return a dict of numbers"),
        ("metrics", {"level/it": "high"}, "metrics.. returned 'high' for 'level/it'; it should be a number"),
        ("state_dict", {"seen": object()}, "state_dict.. returned what JSON cannot hold"),
        ("state_dict", {"seen": float("nan")}, "state_dict.. returned what JSON cannot hold"),
    ],
)
def test_a_curriculum_that_returns_something_else_is_named(method, value, message):
    Broken = type("Climb", (Climb,), {method: lambda self: value})
    with pytest.raises(CurriculumError, match=f"curriculum Climb: {message}"):
        stream(Broken()).state_dict(0)


def test_the_line_of_a_failure_is_the_users_though_a_library_raised():
    Broken = type("Climb", (Climb,), {"metrics": lambda self: json.loads("")})
    with pytest.raises(CurriculumError, match=r"metrics\(\) raised JSONDecodeError.*test_skill_rows.py:\d+"):
        stream(Broken())


def test_a_stream_over_a_data_set_of_the_user():
    rows = {"prompt": list("abcd"), "skill": ["x", "x", "it", "it"], "level": [0, 1, 0, 1]}
    made = PromptStream.over(Dataset.from_dict(rows), Climb(), seed=0, num_slots=4)
    assert made.skills == ["x", "it"]
    assert made.dataset[0] == {"prompt": "c", "skill": "it", "level": 0}
    made.observe(Task("it", 0), 0, 1)
    assert made.dataset[1]["prompt"] == "d"
    with pytest.raises(DataError, match="skill 'it' has no rows of level 0"):
        PromptStream.over(Dataset.from_dict({**rows, "level": [0, 1, 1, 1]}), Climb(), seed=0, num_slots=4)


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_the_tokenizer_has_one_token_per_character(tmp_path):
    made = tokenizers.character_tokenizer("ab c\né=")
    for read in (made, (made.save_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path))[1]):
        ids = read("a b\né=<eos>")["input_ids"]
        assert len(ids) == 7 and ids[-1] == read.eos_token_id
        assert read.decode(ids, skip_special_tokens=True) == "a b\né="
        assert (read.pad_token, read.padding_side, len(read)) == ("<pad>", "left", 10)
    with pytest.raises(DataError, match="'a' twice"):
        tokenizers.character_tokenizer("aba")


class Even:
    """Draws two skills alike, at the first of two levels."""

    level = 0

    def next(self, rng: random.Random) -> Task:
        return Task(rng.choices(["x", "y"], [0.3, 0.7])[0], self.level)

    def observe(self, task: Task, successes: int, attempts: int) -> None:
        self.level = 1

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level = state["level"]

    def metrics(self) -> dict[str, float]:
        return {f"level/{skill}": float(self.level) for skill in "xy"}


def two_skills(prompts_per_update: int = 10) -> PromptStream:
    rows = {"prompt": list("abcd"), "skill": ["x", "x", "y", "y"], "level": [0, 1, 0, 1]}
    made = PromptStream.over(Dataset.from_dict(rows), Even(), seed=0, num_slots=100)
    made.prompts_per_update = prompts_per_update
    return made


def test_each_update_has_the_skills_shares_to_within_one():
    made = two_skills()
    for first in range(0, 100, 10):
        skills = [row["skill"] for row in made.dataset.select(range(first, first + 10))]
        assert 2 <= skills.count("x") <= 4


def test_a_skill_that_has_left_is_not_drawn_and_all_cannot_leave():
    made = two_skills()
    made.inactive_skills = frozenset({"y"})
    assert {row["skill"] for row in made.dataset.select(range(20))} == {"x"}
    made.inactive_skills = frozenset({"x", "y"})
    with pytest.raises(CurriculumError, match="skills that have left: x, y"):
        made.dataset[50]


def test_a_shifted_level_takes_the_place_of_what_the_curriculum_picks():
    made = two_skills()
    made.level_overrides["x"] = [1]
    rows = [made.dataset[i] for i in range(20)]
    assert {(row["prompt"], row["level"]) for row in rows} == {("b", 0), ("c", 0)}


def test_a_move_to_another_level_is_an_event():
    made = two_skills()
    assert made.level_events(1) == []
    made.observe(Task("x", 0), 3, 4)
    first, second = made.level_events(2)
    assert (first.kind, first.skill, first.about, first.measured) == (
        *("level up", "x", "from 0 to 1"),
        "at level 0, 3 of 4 answers were correct",
    )
    assert second.skill == "y"
    assert made.level_events(3) == []


def test_a_file_of_held_out_rows_leaves_all_others_to_train_on(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(f'{{"question": "{i}", "answer": "{i}"}}\n' for i in range(10)))
    (tmp_path / "test.jsonl").write_text("".join(f'{{"question": "{i}", "answer": "{i}"}}\n' for i in (3, 20, 21, 20)))
    made = source({"file": "train.jsonl", "held_out": {"file": "test.jsonl"}}, tmp_path)
    assert [row["prompt"] for row in made.held_out()] == ["3", "20", "21"]
    assert {row["prompt"] for row in made.rows(200, seed=0)} == {*"012456789"}


def test_a_small_file_can_hold_out_all_rows_but_one(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"question": "{i}", "answer": "{i}"}}\n' for i in range(500)))
    made = source({"file": "rows.jsonl", "held_out": 499}, tmp_path)
    assert len({row["prompt"] for row in made.held_out()} | {row["prompt"] for row in made.rows(3, seed=0)}) == 500


RECORDS = {
    "question_answer": lambda text: {"question": text, "answer": "a"},
    "labelled": lambda text: {"question": text, "answer": "b" if text == "four" else "a"},
    "code_task": lambda text: {"prompt": text, "tests": "assert True"},
    "plain_text": lambda text: {"text": text},
    "conversation": lambda text: {
        "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}]
    },
}
"""A record of each kind of rows, by the text of its question."""


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_a_held_out_question_is_never_trained_on_whatever_the_kind_of_rows(kind, tmp_path):
    texts = {"train.jsonl": ["one  two", "three", "four"], "test.jsonl": ["one two", "one\ntwo", "five"]}
    for name, questions in texts.items():
        (tmp_path / name).write_text("\n".join(json.dumps(RECORDS[kind](text)) for text in questions))
    options = {"labels": {"a": "a", "b": "b"}} if kind == "labelled" else {}
    skill = {"file": "train.jsonl", "kind": kind, "held_out": {"file": "test.jsonl"}, **options}
    rows = source(skill, tmp_path, prompts={"style": "chat" if kind == "conversation" else "plain"})
    assert len(rows.held_out()) == 2, "the same question is held out once"
    drawn = {str(rows.draw(0, random.Random(seed))) for seed in range(40)}
    assert drawn and not any("one" in text for text in drawn)


@pytest.mark.filterwarnings("ignore:.*neither trained on nor scored")
@pytest.mark.parametrize(
    ("levels", "most"),
    [
        (["abcdefgh", "abcdefgh"], 7),
        (["abcde", "fg"], 3),
        (["abcd", "cdef", "efgh"], 3),
        (["abab", "c"], 1),
        (["aab"], 1),
    ],
)
def test_the_number_of_held_out_rows_that_a_refusal_names_can_be_held_out(tmp_path, levels, most):
    rows = [(question, level) for level, questions in enumerate(levels) for question in questions * 3]
    text = "question,answer,level\n" + "".join(f"{question},1,{level}\n" for question, level in rows)
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(DataError, match=rf"set held_out to at most {most} \(now 20\)"):
        source({"file": "rows.csv", "held_out": 20}, tmp_path).held_out()
    for seed in range(20):
        assert len(source({"file": "rows.csv", "held_out": most}, tmp_path, seed=seed).held_out()) == most
