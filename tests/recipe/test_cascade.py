"""A cascade is written out as stages, and its mistakes are named where they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rld.errors import RecipeError
from rld.recipe.reading import read_recipe

HEAD = """\
name: chain
tokenizer: {characters: "abc:="}
models:
  large: {new: llama, config: {hidden_size: 64}}
  middle: {new: llama, config: {hidden_size: 48}}
  small: {new: llama, config: {hidden_size: 32}}
skills:
  reverse: {generator: rld.recipes.strings:reverse, levels: [{length: 2}], held_out: 4}
stages:
  - {name: taught, kind: sft, student: large, steps: 4}
"""

CASCADE = """\
  - cascade:
      models: [taught, middle, small]
      stage:
        kind: distill
        steps: 6
        rollout: {prompts: 4}
      teacher: {probe_prompts: 3}
"""

WRITTEN_OUT = """\
  - name: middle_from_taught
    kind: distill
    student: middle
    teachers: {taught: {model: taught, probe_prompts: 3}}
    steps: 6
    rollout: {prompts: 4}
  - name: small_from_middle
    kind: distill
    student: small
    teachers: {middle: {model: middle_from_taught, probe_prompts: 3}}
    steps: 6
    rollout: {prompts: 4}
"""

LAST = "  - {name: scores, kind: evaluate, model: small_from_middle}\n"


def read(folder: Path, text: str, *overrides: str) -> Any:
    (folder / "r.yaml").write_text(text)
    return read_recipe(folder / "r.yaml", overrides).model_dump(mode="json")


def test_the_resolved_recipe_is_that_of_the_stages_written_out(tmp_path):
    resolved = read(tmp_path, HEAD + WRITTEN_OUT + LAST)
    assert read(tmp_path, HEAD + CASCADE + LAST) == resolved
    plain = {key: value for key, value in resolved.items() if value is not None}
    assert read(tmp_path, yaml.safe_dump(plain)) == resolved


def test_a_cascade_of_fine_tuning_has_the_models_before_as_teachers(tmp_path):
    text = HEAD + "  - cascade: {models: [taught, middle, small], stage: {kind: sft, steps: 6}}\n"
    stages = read(tmp_path, text)["stages"][1:]
    assert [(stage["name"], stage["student"], stage["teacher"]) for stage in stages] == [
        ("middle_from_taught", "middle", "taught"),
        ("small_from_middle", "small", "middle_from_taught"),
    ]


def test_the_command_line_names_its_stages_or_the_cascade(tmp_path):
    overrides = ["stages.small_from_middle.rollout.prompts=2", "stages.1.cascade.stage.steps=9"]
    stages = read(tmp_path, HEAD + CASCADE, *overrides)["stages"][1:]
    assert [(stage["steps"], stage["rollout"]["prompts"]) for stage in stages] == [(9, 4), (9, 2)]


def test_an_option_of_one_stages_teacher_is_that_of_no_other(tmp_path):
    text = (HEAD + CASCADE).replace("probe_prompts: 3", "from_pretrained: {dtype: float32}")
    override = "stages.small_from_middle.teachers.middle.from_pretrained.dtype=bfloat16"
    stages = read(tmp_path, text, override)["stages"][1:]
    dtypes = [spec["from_pretrained"]["dtype"] for stage in stages for spec in stage["teachers"].values()]
    assert dtypes == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 6", "stepz: 6", ":15: unknown key 'stages.1.cascade.stage.stepz'; did you mean 'steps'?"),
        ("steps: 6", "steps: six", ":15: stages.1.cascade.stage.steps should be a whole number, not 'six'"),
        ("prompts: 4", "prompts: 0", ":16: stages.1.cascade.stage.rollout.prompts"),
        ("probe_prompts: 3", "probe: 3", ":17: unknown key 'stages.1.cascade.teacher.probe'"),
        ("models: [taught,", "models: [tauht,", ":12: stages.1.cascade.models.0: there is no model 'tauht'"),
        ("middle, small]", "middle, smal]", ":12: stages.1.cascade.models.2: there is no model 'smal'"),
        ("middle, small]", "./middle, small]", ":12: stages.1.cascade.models.1 names a stage too: give './middle'"),
        ("[taught, middle, small]", "[taught]", ":12: stages.1.cascade.models should name at least two models"),
        ("[taught, middle, small]", "taught", ":12: stages.1.cascade.models should be a valid list"),
        ("kind: distill", "kind: merge", ":14: stages.1.cascade.stage.kind should be distill or sft, not 'merge'"),
        ("kind: distill", "student: small", ":14: stages.1.cascade.stage.student is set by the cascade"),
        ("teacher: {", "teachr: {", ":17: stages.1.cascade.teachr is no key of a cascade; did you mean 'teacher'?"),
        ("- cascade:", "- name: x\n    cascade:", ":11: stages.x.name stands beside a cascade"),
        ("- cascade:", "- cascade: 3\n  - ignored:", ":11: stages.1.cascade should be"),
    ],
)
def test_mistakes_have_the_line_and_the_keys_that_the_user_wrote(tmp_path, old, new, message):
    assert (HEAD + CASCADE).count(old) == 1
    with pytest.raises(RecipeError) as error:
        read(tmp_path, (HEAD + CASCADE).replace(old, new))
    lines = str(error.value).splitlines()
    assert sum(message in line for line in lines) == 1, lines


def test_a_mistake_of_the_command_line_has_the_keys_that_it_named(tmp_path):
    with pytest.raises(RecipeError, match=r"command line \(.*\): stages.small_from_middle.steps should be"):
        read(tmp_path, HEAD + CASCADE, "stages.small_from_middle.steps=x")
    with pytest.raises(RecipeError, match=r"command line \(stages.1.cascade.models.7=x\): there is no '7'"):
        read(tmp_path, HEAD + CASCADE, "stages.1.cascade.models.7=x")
