"""What a run depends on: every kind of input that changes is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rld.errors import CheckpointError
from rld.recipe.input_changes import Effect, input_changes
from rld.recipe.inputs import Inputs, InputsFile
from rld.recipe.reading import read_recipe

RECIPE = """
name: r
skills:
  made: {generator: ./code/tasks.py:make, levels: [{}]}
  read: {file: rows.jsonl, held_out: 1}
models: {student: ./small}
rewards: [{use: ./code/tasks.py:pay}]
stages:
  - {name: warm, kind: sft, student: student, steps: 20}
  - {name: main, kind: distill, student: warm, teachers: {t: {model: student}}, steps: 20}
"""
FILES = {
    "recipe.yaml": RECIPE,
    "rows.jsonl": '{"question": "a", "answer": "b"}\n' * 4,
    "code/tasks.py": "from . import helper\ndef make(rng): return 'a', 'b'\ndef pay(completions, **_): return [1.0]\n",
    "code/helper.py": "def f():\n    import inner.deep\n",
    "code/inner/__init__.py": "",
    "code/inner/deep.py": "x = 1\n",
    "code/other.py": "x = 1\n",
    "small/config.json": "{}",
    "small/tokenizer.json": "{}",
    "small/chat_template.jinja": "a",
    "small/model.safetensors": "\2\0\0\0\0\0\0\0{}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def inputs(folder: Path, *overrides: str) -> Inputs:
    return Inputs.of(read_recipe(folder / "recipe.yaml", overrides), folder, {"processes": 1, "device": "cpu"})


def changes(folder: Path, change: Callable[[], Inputs], *started: str) -> list[tuple[str, Effect]]:
    return [(one.text, one.effect) for one in input_changes(inputs(folder), change(), started)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rows.jsonl", "file rows.jsonl: has changed"),
        ("code/tasks.py", "file ./code/tasks.py: has changed"),
        ("code/helper.py", "file code/helper.py: has changed"),
        ("code/inner/deep.py", "file code/inner/deep.py: has changed"),
        ("small/config.json", "model ./small: config.json has changed"),
        ("small/tokenizer.json", "model ./small: tokenizer.json has changed"),
        ("small/chat_template.jinja", "model ./small: chat_template.jinja has changed"),
        ("small/model.safetensors", "model ./small: model.safetensors has changed"),
        ("code/other.py", None),
    ],
)
def test_a_file_that_changes_is_named(folder, name, expected):
    def change() -> Inputs:
        (folder / name).write_text(FILES[name].replace("\2", "\3") + " ")  # weights begin with the length of a header
        return inputs(folder)

    assert changes(folder, change, "main") == ([] if expected is None else [(expected, Effect.NEEDS_CONSENT)])


@pytest.mark.parametrize(
    ("override", "expected", "effect"),
    [
        ("seed=7", "seed: 0 → 7", Effect.NEEDS_CONSENT),
        ("stages.main.trainer.learning_rate=1", "stages.main.trainer.learning_rate: 5e-06 → 1", Effect.NEEDS_CONSENT),
        ("stages.main.lora={r: 4}", 'stages.main.lora: null → {"r": 4}', Effect.NEEDS_CONSENT),
        ("stages.warm.batch=8", "stages.warm.batch: 32 → 8", Effect.ALLOWED),
        ("stages.warm.batch=8", "stage 'main' has started, and depends on stage 'warm'", Effect.NEEDS_CONSENT),
        ("stages.main.steps=15", "stages.main.steps: 20 → 15", Effect.NEEDS_CONSENT),
        ("stages.main.steps=40", "its schedule, cosine, over 40 updates", Effect.ALLOWED),
        ("stages.warm.steps=40", "stages.warm.steps: 20 → 40", Effect.ALLOWED),
        ("stages.main.checkpoint_every=3", "stages.main.checkpoint_every: 100 → 3", Effect.ALLOWED),
        ("stages.main.trainer.run_name=x", 'stages.main.trainer.run_name: absent → "x"', Effect.ALLOWED),
        ("stages.main.name=other", "stage 'other' is new", Effect.ALLOWED),
        ("rewards=[{use: answers:exact_match}]", 'rewards.0.use: "./code/tasks.py:pay" → ', Effect.NEEDS_CONSENT),
    ],
)
def test_a_key_of_the_recipe_that_changes_is_named_with_both_values(folder, override, expected, effect):
    started = [] if ".name=" in override else ["main"]
    effects = changes(folder, lambda: inputs(folder, override), *started)
    assert [shown_effect for text, shown_effect in effects if expected in text] == [effect]


def test_each_stage_depends_on_its_own_part_of_the_inputs(folder):
    before = inputs(folder)

    def changed(*overrides: str) -> list[str]:
        after = inputs(folder, *overrides)
        return [
            name for name in after.stages if name not in before.stages or prints(before)[name] != prints(after)[name]
        ]

    def prints(content: Inputs) -> dict[str, str]:
        return {name: content.fingerprint(name) for name in content.stages}

    assert changed() == changed("stages.main.checkpoint_every=3", "name=other", "models.unused=./small") == []
    assert changed("stages.main.steps=40") == changed("stages.main.teachers.t.probe_prompts=3") == ["main"]
    assert changed("stages.warm.steps=40") == changed("seed=3") == ["warm", "main"]
    assert changed("stages.warm.steps=40", "stages.main.student=student") == ["warm", "main"]
    assert changed("skills.made.held_out=3") == ["warm", "main"]
    before = inputs(folder, "stages.main.student=student")
    assert changed("stages.warm.steps=40", "stages.main.student=student") == ["warm"]
    (folder / "small/tokenizer.json").write_text("{} ")
    assert changed("stages.main.student=student") == ["warm", "main"]
    before = inputs(folder, "stages.warm.student=./small")
    (folder / "code/inner/deep.py").write_text("x = 2\n")
    assert changed("stages.warm.student=./small") == ["warm", "main"]


@pytest.mark.parametrize(
    ("before", "after", "effect"),
    [("2.13.0", "2.13.1", Effect.ALLOWED), ("2.13.0", "2.14.0", Effect.NEEDS_CONSENT)],
)
def test_another_version_of_a_package_needs_consent_but_not_a_patch(folder, before, after, effect):
    def with_torch(version: str) -> Inputs:
        return inputs(folder).model_copy(update={"packages": {"torch": version}})

    differences = input_changes(with_torch(before), with_torch(after), ())
    assert [(change.text, change.effect) for change in differences] == [(f"package torch: {before} → {after}", effect)]


def test_other_processes_need_consent(folder):
    other = inputs(folder).model_copy(update={"launch": {"processes": 2, "device": "cpu"}})
    assert changes(folder, lambda: other) == [("processes: 1 → 2", Effect.NEEDS_CONSENT)]


def test_the_file_comes_back_as_it_was_written_or_is_refused(folder):
    path = folder / "inputs.json"
    content = InputsFile(inputs=inputs(folder))
    content.write(path)
    assert InputsFile.read(path) == content
    for data in ("", "[]", "{}", '{"inputs": 3}', path.read_text().replace('"stages"', '"phases"')):
        path.write_text(data)
        with pytest.raises(CheckpointError, match=r"inputs.json is damaged"):
            InputsFile.read(path)
