"""What the README and the docs show is what the program does."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import TypeAdapter

import tests.support.tiny as tiny
from rld.arguments import parse
from rld.cli import _COMMANDS, main
from rld.controllers import AnyController
from rld.recipe import registry
from rld.recipe.document import RecipeDocument
from rld.recipe.exports import FORMATS
from rld.recipe.models import AnyModel, NewModel, PrunedModel
from rld.recipe.reading import read_recipe
from rld.recipe.stages import AnyStage
from rld.recipe.stages.distill import Distill
from rld.teachers.local import LocalLogprobs
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import OF_VLLM, RLDConfig
from rld.utils.options import kinds_of
from tests.recipe_page import EXPERIMENT_PAGE, PAGE, SMALL, experiment_page, page

ROOT = Path(__file__).parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
PAGES = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")})
REPLACED = (
    *("beliefs", "compass", "hosted", "journal", "keeper", "lessons", "lister", "panel", "shortlist", "steering"),
    *("taps", "together", "yoked"),
)
STILL_THERE = {"together"}
"""Of the words that the glossary replaces, those that some file still has; the set may only shrink."""


def test_the_recipe_pages_are_the_schema():
    written = [path.read_text() for path in (PAGE, EXPERIMENT_PAGE)]
    assert written == [page(), experiment_page()], "write them anew with: python -m tests.recipe_page"


@pytest.mark.parametrize("folder", ["curricula", "gold_answers", "past_teacher", "target", "unseen"])
def test_recipes_whose_results_are_reported_can_still_be_run(folder, capsys):
    """Those of the folders that need no model and no rows from elsewhere."""
    recipes = [path for path in (ROOT / "docs" / "results" / folder).glob("*.yaml") if "stages:" in path.read_text()]
    assert recipes and not any(main(["check", str(recipe)]) for recipe in recipes), capsys.readouterr().err


def test_the_recipe_that_opens_the_page_is_complete(tmp_path):
    assert f"```yaml\n{SMALL}```" in PAGE.read_text()
    (tmp_path / "small.yaml").write_text(SMALL)
    recipe = read_recipe(tmp_path / "small.yaml", ["seed=1", "stages.distill.steps=50"])
    assert [stage.kind for stage in recipe.stages] == ["sft", "sft", "distill"]


def test_the_readmes_script_trains_as_it_is_printed(tmp_path, monkeypatch):
    """But for the models, which are not there without a network, and the number of steps."""
    monkeypatch.chdir(tmp_path)
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    for i, name in enumerate(re.findall(r'"(HuggingFaceTB/[^"]+)"', script)):
        folder = tmp_path / name.split("/")[1]
        tiny.model(seed=i).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        script = script.replace(name, str(folder))
    scope: dict[str, Any] = {}
    exec(script.replace("max_steps=100", "max_steps=1"), scope)
    assert scope["trainer"].state.global_step == 1
    assert [teacher.name for teacher in scope["trainer"].teachers] == ["SmolLM2-360M", "SmolLM2-1.7B"]


def test_the_readmes_recipe_is_valid_and_the_page_is_short(tmp_path):
    text = (ROOT / "README.md").read_text()
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "sums.yaml").write_text(recipe)
    assert read_recipe(tmp_path / "sums.yaml").name == "sums"
    assert len(text.splitlines()) <= 120


@pytest.mark.parametrize("page", sorted(page.relative_to(ROOT).as_posix() for page in {*ROOT.glob("*.md"), *PAGES}))
def test_lines_of_prose_have_120_characters_at_most(page):
    lines = (ROOT / page).read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and not line.lstrip().startswith("|")] == []


def test_the_scripts_on_rewards_hosting_and_curricula_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "".join((ROOT / "docs" / name).read_text() for name in ("algorithms.md", "curricula.md"))
    scripts = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["Yes", "No"])
    names = dict.fromkeys(re.findall(r'"(HuggingFaceTB/[^"]+)"', "".join(scripts)))
    for i, name in enumerate(names):
        tiny.model(seed=i, vocabulary=len(tokenizer)).save_pretrained(tmp_path / name.split("/")[1])
        tokenizer.save_pretrained(tmp_path / name.split("/")[1])
    for name in ("algebra-lora", "words-lora"):
        base = tiny.model(vocabulary=len(tokenizer))
        get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).save_pretrained(name)
    extra = ", max_steps=2, num_generations=2, per_device_train_batch_size=4, max_completion_length=4, use_cpu=True"
    rows = tiny.rows(chat=True).remove_columns(["skill", "level"])
    for script in scripts:
        skills, levels = (["add", "sort"], 2) if "Ladder" in script else (["algebra", "words"], 1)
        dataset = rows.add_column("skill", skills * 8).add_column("level", [i // 4 % levels for i in range(16)])
        script = script.replace('"HuggingFaceTB/', '"./').replace(
            'output_dir="student"', f'output_dir="student", report_to="none", bf16=False{extra}'
        )
        script = script.replace('"add": 3', '"add": 2')  # levels of the rows above
        scope: dict[str, Any] = {"dataset": dataset, "exact_match": tiny.letters}
        exec(script, scope)
        assert scope["trainer"].state.global_step == 2
    assert len(scripts) == 3


def yaml_blocks(text: str, folder: Path) -> list[Any]:
    """The YAML in a page, read as recipes are: `off` is text there."""
    path, trees = folder / "block.yaml", []
    for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL):
        path.write_text(block)
        trees.append(RecipeDocument(path).tree)
    return trees


def test_the_pages_on_controllers_show_what_a_stage_takes(tmp_path):
    pages = ("controller.md", "safeguards.md", "other_controllers.md")
    text = "".join((ROOT / "docs" / page).read_text() for page in pages)
    blocks = yaml_blocks(text, tmp_path)
    stage = {"name": "s", "kind": "distill", "student": "m", "steps": 400, "teachers": {"t": {"model": "m"}}}
    stages = [Distill.model_validate(stage | part) for block in blocks for part in block.get("stages", [block])]
    assert [part.controller.kind for part in stages] == ["gap"] * 10 + ["fixed", "schedule"]
    for member in get_args(get_args(AnyController)[0]):
        assert f"`{get_args(member.model_fields['kind'].annotation)[0]}`" in text


def test_the_page_on_students_shows_models(tmp_path):
    (block,) = yaml_blocks((ROOT / "docs" / "students.md").read_text(), tmp_path)
    kinds = {name: type(TypeAdapter(AnyModel).validate_python(model)) for name, model in block["models"].items()}
    assert kinds == {"large": str, "fresh": NewModel, "half": PrunedModel, "narrow": PrunedModel}


def test_the_page_on_several_stages_shows_recipes(tmp_path):
    """Each block is the end of the small recipe, with a model between its two."""
    text, head = (ROOT / "docs" / "multi_stage.md").read_text(), SMALL.partition("stages:")[0]
    small = next(line for line in head.splitlines() if line.startswith("  small:"))
    head = head.replace(small, f"{small}\n{small.replace('small:', 'middle:')}")
    for name in ("code-lora", "chat-lora"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    tiny.model().save_pretrained(tmp_path / "base")
    names = []
    for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL):
        (tmp_path / "r.yaml").write_text(head + block)
        names += [stage.name for stage in read_recipe(tmp_path / "r.yaml").stages]
    assert {"middle_from_teacher", "small_from_middle", "healed", "second", "both"} <= set(names)
    assert all(f"`{kind}`" in text for kind in kinds_of(AnyStage))


def test_the_page_on_exports_shows_a_stage_and_commands(tmp_path):
    pytest.importorskip("xllamacpp", reason="install the extra `export`")
    text, head = (ROOT / "docs" / "deploy.md").read_text(), SMALL.partition("stages:")[0]
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "r.yaml").write_text(head + block)
    assert [stage.kind for stage in read_recipe(tmp_path / "r.yaml").stages] == ["sft", "export"]
    (commands,) = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    options = [parse(line.partition("#")[0].split()[1:], {"export": ""}) for line in commands.strip().split("\n")]
    assert {option.to for option in options} == set(FORMATS)
    precisions = [precision for form in FORMATS.values() for precision in form.bits]
    assert [precision for precision in precisions if f"`{precision}`" not in text] == []


def test_the_page_on_teachers_shows_what_a_stage_and_a_script_take(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "teachers.md").read_text()
    blocks = yaml_blocks(text, tmp_path)
    stage = {"name": "s", "kind": "distill", "student": "m", "steps": 400}
    stages = [Distill.model_validate(stage | block) for block in blocks]
    assert [len(stage.loaded) for stage in stages] == [1, 2, 0, 0, 0, 1]
    (script,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    far = Teacher(tiny.model(seed=1), tokenizer=tiny.tokenizer())
    monkeypatch.setattr("rld.remote_teacher", lambda url, top_k: LocalLogprobs(far, torch.device("cpu"), top_k))
    (name,) = re.findall(r'"(HuggingFaceTB/[^"]+)"', script)
    tiny.model(seed=0).save_pretrained("student")
    tiny.tokenizer().save_pretrained("student")
    extra = ", max_steps=2, num_generations=2, per_device_train_batch_size=4, max_completion_length=4, use_cpu=True"
    script = script.replace(name, "./student").replace(
        'output_dir="student"', f'output_dir="out", report_to="none", bf16=False{extra}'
    )
    scope: dict[str, Any] = {"dataset": tiny.rows(chat=True), "exact_match": tiny.letters}
    exec(script, scope)
    assert scope["trainer"].state.global_step == 2


def shell_commands(text: str) -> Iterator[list[str]]:
    """The words of each command line in the shell blocks of a page; one goes on where a quote is open."""
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        line = ""
        for part in block.replace("\\\n", " ").split("\n"):
            line += part + "\n"
            with suppress(ValueError):  # the quote ends on a later line
                yield shlex.split(line, comments=True)
                line = ""
        assert not line.strip(), "a quote is open at the end of a block"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_command_lines_in_the_docs_are_understood(page):
    for words in shell_commands(page.read_text()):
        for command in [words[words.index("rld") + 1 :]] if "rld" in words else []:
            if not command[0].startswith("-"):
                parse([word.split(";")[0] for word in command if word not in ("&", "&&")], dict.fromkeys(_COMMANDS, ""))


def test_the_page_on_vllm_shows_what_a_stage_takes(tmp_path):
    text = (ROOT / "docs" / "vllm.md").read_text()
    stage = {"name": "s", "kind": "distill", "student": "m", "steps": 400}
    stages = [Distill.model_validate(stage | block) for block in yaml_blocks(text, tmp_path)]
    assert all(part.teachers or RLDConfig(str(tmp_path), **part.trainer, use_cpu=True, bf16=False) for part in stages)
    assert all(f"`{option}`" in text for option in OF_VLLM)


@pytest.mark.parametrize("heading", ["Quickstart", "Tests"])
def test_the_readme_has_one_command_line_under(heading):
    text = (ROOT / "README.md").read_text()
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    assert len(block.strip().splitlines()) == 1
    assert ".venv" in block


def test_the_page_on_your_own_parts_trains(tmp_path):
    """Its reward and its curriculum, in a small recipe."""
    reward, curriculum = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding.md").read_text(), flags=re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(reward)
    (tmp_path / "my_curriculum.py").write_text(curriculum)
    rewards, chosen = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "adding.md").read_text(), flags=re.DOTALL)
    (tmp_path / "tasks.py").write_text(
        "def copy(rng, *, length):\n    word = ''.join(rng.choices('ab', k=length))\n    return word, word\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntokenizer: {characters: ab}\nmax_new_tokens: 5\n"
        "skills: {copy: {generator: ./tasks.py:copy, levels: [{length: 4}, {length: 5}], held_out: 4}}\n"
        "models: {tiny: {new: llama, config: {hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, "
        f"num_attention_heads: 2}}}}}}\n{rewards}"
        "stages:\n  - name: learn\n    kind: distill\n    student: tiny\n    signals: {policy: {}}\n    steps: 2\n"
        f"    rollout: {{prompts: 2, completions: 2}}\n    {chosen}"
    )
    assert main(["train", str(tmp_path / "mine.yaml"), "--output", str(tmp_path / "run")]) == 0
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"reward/close"' in last
    assert '"level/copy"' in last


CURRICULA_RECIPE = """
name: page
tokenizer: {characters: "abcd:="}
max_new_tokens: 3
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 1}, {length: 2}], held_out: 2}
  swap: {generator: ./tasks.py:copy, levels: [{length: 1}, {length: 2}], held_out: 2}
models:
  tiny: {new: llama, config: {hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}}
stages:
  - name: learn
    kind: distill
    student: tiny
    teachers: {teacher: {model: tiny, probe_prompts: 2}}
    signals: {policy: {}, response: {}}
    steps: 2
"""


@pytest.mark.parametrize(
    "block", re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "curricula.md").read_text(), flags=re.DOTALL)
)
def test_each_snippet_of_the_page_on_curricula_trains(block, tmp_path):
    rollout = "" if "rollout:" in block else "    rollout: {prompts: 2, completions: 2}\n"
    (tmp_path / "tasks.py").write_text(
        "def copy(rng, *, length):\n    word = ''.join(rng.choices('abcd', k=length))\n    return word + '=', word\n"
    )
    (tmp_path / "page.yaml").write_text(CURRICULA_RECIPE + textwrap.indent(block, "    ") + rollout)
    assert main(["train", str(tmp_path / "page.yaml"), "--output", str(tmp_path / "run")]) == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2
    assert last["share/copy"] + last["share/swap"] == pytest.approx(1)
    assert ("prompts/replaced" in last) == ("refill" in block)


def test_the_page_on_curricula_has_every_one_that_ships():
    page = (ROOT / "docs" / "curricula.md").read_text()
    assert [name for name in registry.names("curricula") if page.count(f"`{name}`") < 1] == []
    assert [name for name in registry.names("curricula") if f"use: {name}" not in page] == []


def test_the_glossary_has_words_and_names_that_are_in_use():
    headings = re.findall(r"^## (.+)$", GLOSSARY.read_text(), flags=re.MULTILINE)
    assert headings == sorted(headings, key=str.lower)
    sources = [*PAGES, *(ROOT / "rld").rglob("*.py")]
    text = "\n".join(path.read_text() for path in sources if path != GLOSSARY)
    words = re.sub(r"[\s_*]+", " ", text.lower())
    assert [heading for heading in headings if heading.lower() not in words] == []
    code = "\n".join(path.read_text() for path in (ROOT / "rld").rglob("*.py"))
    names = {part for name in re.findall(r"`([A-Za-z_.]+)`", GLOSSARY.read_text()) for part in name.split(".")}
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", code)] == []


@pytest.mark.parametrize("word", REPLACED)
def test_words_that_the_glossary_replaces_are_gone(word):
    """The results keep the names of what was run; `together` is English, and replaced as a name alone."""
    pages = [path for path in PAGES if "results" not in path.relative_to(ROOT).as_posix()]
    sources = [path for folder in ("rld", "rewards", "curricula") for path in (ROOT / folder).rglob("*.py")]
    pattern = rf"(?<![a-z])(?i:{word.removesuffix('s')}s?)(?![a-z])"
    if word == "together":
        pattern = r"[.`_]together\b|\btogether( =|: bool|_)"
    files = [path.relative_to(ROOT).as_posix() for path in pages + sources if re.search(pattern, path.read_text())]
    assert bool(files) == (word in STILL_THERE), f"{word}: {files}"


def test_files_that_contributing_and_architecture_name_exist():
    folders = [ROOT, ROOT / "rld", *(ROOT / "rld").glob("*/")]
    for name in ("CONTRIBUTING.md", "docs/architecture.md"):
        names = re.findall(r"`([\w./]+(?:\.py|\.md|/))`", (ROOT / name).read_text())
        assert [file for file in names if not any((folder / file).exists() for folder in folders)] == [], name


def test_links_in_the_docs_lead_somewhere():
    for source in PAGES:
        for link, place in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", source.read_text()):
            if link.startswith("http"):
                continue
            target = source.parent / link if link else source
            assert target.exists(), f"{source.name}: {link}"
            assert not place or place in anchors(target), f"{source.name}: {link}#{place}"


def anchors(page: Path) -> set[str]:
    """Return the places in a page that a link can name, as GitHub spells its headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
