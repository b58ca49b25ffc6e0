"""Mutated recipes: whatever stands in a recipe's file or override, `rld` reads it, or refuses it as a user's mistake.

1,540 mutants of a fixed seed; with RLD_FRESH_SEEDS=1 of another one each time, which a failure prints with how to see
it again. What goes how far:

- 1,500 of the recipes that ship and of those in the docs are read, and what they cost is estimated.
- Of 30 the whole `rld check` runs, by the command line.
- 10 more differ in options that may stand together or not. Those that `rld check` accepts train to their first update,
  and the others are refused by `rld train` too, which leaves nothing of a run.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from rld.cli import main
from rld.errors import RecipeError, RldError
from rld.pipeline.stopping import Stopping
from rld.recipe import registry
from rld.recipe.reading import read_recipe
from rld.reporting.overview import overview
from tests.recipe_page import SMALL
from tests.support.mutations import Base, Mutant, mutated_recipes
from tests.support.runs import Killed, one_thread, written  # noqa: F401

ROOT = Path(__file__).parents[2]
RECIPES = registry.folder("recipes")
SHIPPED = sorted(registry.files("recipes").values())
RESULTS = [path for path in sorted((ROOT / "docs").rglob("*.yaml")) if "\nstages:" in path.read_text()]
BLOCKS = [
    block
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL)
    if re.search(r"^stages:", block, re.MULTILINE)
]
BASES = [
    *(Base(path.parent.relative_to(RECIPES).as_posix(), path.read_text()) for path in SHIPPED),
    *(Base(".", text) for text in (SMALL, *BLOCKS, *(path.read_text() for path in RESULTS))),
]
OPTIONS = settings(
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder of recipes, with the files that they name."""
    copy: Path = shutil.copytree(RECIPES, tmp_path_factory.mktemp("mutants") / "recipes")
    return copy


def put(folder: Path, mutant: Mutant) -> Path:
    path = folder / mutant.folder / "mutant.yaml"
    path.write_bytes(mutant.content)
    return path


def require_short(lines: list[str]) -> None:
    assert lines and all(0 < len(line) < 1000 for line in lines), "a mistake is told in a line that can be read"


def require_read_or_refused(folder: Path, mutant: Mutant) -> None:
    path = put(folder, mutant)
    try:
        Console(quiet=True).print(overview(read_recipe(path, mutant.overrides), path.parent))
    except RldError as error:
        assert error.exit_code == 2
        require_short(str(error).splitlines())


def require_checked_or_refused(folder: Path, mutant: Mutant, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(folder, mutant)
    before = sorted(path.parent.rglob("*"))
    code = main(["check", str(path), *mutant.overrides])
    assert code in (0, 2)
    errors = capsys.readouterr().err.splitlines()
    if code == 2:
        require_short(errors)
    assert sorted(path.parent.rglob("*")) == before


@given(mutant=mutated_recipes(BASES))
@settings(OPTIONS, max_examples=1500)
def test_mutants_are_read_or_refused(folder, mutant):
    require_read_or_refused(folder, mutant)


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(mutant=mutated_recipes(BASES))
@settings(OPTIONS, max_examples=30)
def test_mutants_are_checked_or_refused(folder, capsys, mutant):
    require_checked_or_refused(folder, mutant, capsys)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("models.large.config.hidden_size=.inf", "models.large.config.hidden_size should be a finite number"),
        (f"models.large.config.hidden_size={10**400}", "config.hidden_size should be a number of at most 64 bits"),
        (
            "stages.teacher.cascade={models: [large, small], stage: {kind: [sft]}}",
            "stage.kind should be distill or sft, not ['sft']",
        ),
    ],
)
def test_what_mutants_have_found_is_refused_with_its_place(tmp_path, override, expected):
    (tmp_path / "small.yaml").write_text(SMALL)
    with pytest.raises(RecipeError, match=re.escape(expected)):
        read_recipe(tmp_path / "small.yaml", [override])


TRAINED = """
name: trained
tokenizer: {characters: "abcd:= "}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 1}, {length: 2}], held_out: 4}
  rows: {file: rows.jsonl, held_out: 2}
models:
  tiny:
    new: llama
    config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}
stages:
  - name: s
    kind: distill
    student: tiny
    teachers: {t: {model: tiny, probe_prompts: 2}}
    rollout: {prompts: 2, completions: 2}
    steps: 1
"""

CHOICES: dict[str, list[str]] = {
    "seed": ["1", "4294967295"],
    "max_new_tokens": ["1", "3", "30"],
    "prompts.template": ["'{question}'", "'a{question} '", "'{question'"],
    "rewards": ["[{use: answers:exact_match, weight: 0}]", "[{use: answers:contains}, {use: answers:exact_match}]"],
    "skills.copy.held_out": ["1", "5", "500"],
    "skills.rows.held_out": ["0.5", "1", "7"],
    "models.tiny.config.num_attention_heads": ["1", "3"],
    "models.tiny.config.max_position_embeddings": ["8", "9", "32"],
    "models.tiny.config.vocab_size": ["9", "64"],
    "models.tiny.config.num_key_value_heads": ["1", "3"],
    "stages.s.signals": [
        *("{policy: {}}", "{response: {}}", "{policy: {}, response: {}, feature: {loss: {kind: cosine}}}"),
        *(
            "{feature: {loss: {kind: relation, heads: 3}}}",
            "{policy: {}, feature: {loss: {kind: cosine, layers: {0: 5}}}}",
        ),
    ],
    "stages.s.controller": ["gap", "{kind: fixed, policy: 0.5}", "{kind: fixed, policy: 2}", "{kind: schedule}"],
    "stages.s.rollout.completions": ["1", "3", "labels"],
    "stages.s.rollout.gold_completions": ["1", "2"],
    "stages.s.rollout.temperature": ["0", "0.1", "3"],
    "stages.s.rollout.prompts": ["1", "3"],
    "stages.s.skills": ["[copy]", "[rows]", "[nothing]"],
    "stages.s.lora": ["{r: 2}", "{r: 0}", "{r: 2, target_modules: [q_proj]}", "{r: 2, modules_to_save: [lm_head]}"],
    "stages.s.evaluate_every": ["1", "7"],
    "stages.s.teachers.t.probe_prompts": ["1", "50"],
    "stages.s.trainer.num_iterations": ["2", "0"],
    "stages.s.trainer.gradient_accumulation_steps": ["2", "3"],
    "stages.s.trainer.beta": ["0.1", "-1"],
    "stages.s.trainer.loss_type": ["grpo", "dr_grpo", "bnpo", "none"],
    "stages.s.trainer.scale_rewards": ["group", "batch", "none", "true"],
    "stages.s.trainer.epsilon": ["0", "0.5"],
    "stages.s.trainer.learning_rate": ["0", "1e-8", "10"],
    "stages.s.trainer.max_grad_norm": ["0", "1e-9"],
    "stages.s.trainer.warmup_steps": ["3", "-1"],
    "stages.s.trainer.lr_scheduler_type": ["constant", "polynomial", "cosine_with_restarts", "none"],
    "stages.s.trainer.optim": ["adafactor", "sgd", "adamw_torch_fused"],
    "stages.s.trainer.mask_truncated_completions": ["true"],
}
"""Values of options: some are refused, and some that may stand alone may not stand together."""


@st.composite
def choices(draw: Callable[[Any], Any]) -> list[str]:
    keys = draw(st.lists(st.sampled_from(sorted(CHOICES)), min_size=1, max_size=4, unique=True))
    return [f"{key}={draw(st.sampled_from(CHOICES[key]))}" for key in keys]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a recipe; its runs are killed when they have made an update."""

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(Stopping, "on_step_end", killed)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"question": "{c}=", "answer": "{c}"}}\n' for c in "abcdabcd"))
    return written(tmp_path, TRAINED)


def require_accepted_to_train(path: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    output = path.parent / "run"
    shutil.rmtree(output, ignore_errors=True)
    code = main(["check", str(path), *overrides])
    assert code in (0, 2)
    try:
        assert main(["train", str(path), "--output", str(output), *overrides]) == code == 2, capsys.readouterr().err
        assert not output.exists()
    except Killed:
        assert code == 0, "what trains was accepted"


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(overrides=choices())
@settings(OPTIONS, max_examples=10)
def test_options_that_are_accepted_train(trained, capsys, overrides):
    require_accepted_to_train(trained, overrides, capsys)
