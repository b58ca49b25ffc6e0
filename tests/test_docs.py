"""What the README and the docs show is what the program does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import tests.tiny as tiny
from tests.recipe_page import PAGE, page

ROOT = Path(__file__).parent.parent


def test_the_recipe_page_is_the_schema():
    assert PAGE.read_text() == page(), "write it anew with: python -m tests.recipe_page"


def test_the_readmes_script_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    names = re.findall(r'"(HuggingFaceTB/[^"]+)"', script)
    assert len(names) == 3
    for i, name in enumerate(names):
        folder = tmp_path / name.split("/")[1]
        tiny.model(seed=i).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        script = script.replace(name, str(folder))
    extra = ", max_steps=2, num_generations=2, per_device_train_batch_size=4, max_completion_length=4, use_cpu=True"
    script = script.replace('output_dir="student"', f'output_dir="student", report_to="none", bf16=False{extra}')
    scope: dict[str, Any] = {"dataset": tiny.rows(chat=True), "exact_match": tiny.letters}
    exec(re.sub(r"^  ", "", script, flags=re.MULTILINE), scope)
    assert scope["trainer"].state.global_step == 2
    assert [teacher.name for teacher in scope["trainer"].teachers] == ["SmolLM2-1.7B-Instruct", "SmolLM2-360M-Instruct"]


@pytest.mark.parametrize("heading", ["Quickstart", "Tests"])
def test_the_readme_has_one_command_line_under(heading):
    text = (ROOT / "README.md").read_text()
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    assert len(block.strip().splitlines()) == 1
    assert ".venv" in block


def test_links_in_the_docs_lead_somewhere():
    for source in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", source.read_text()):
            assert link.startswith("http") or (source.parent / link).exists(), f"{source.name}: {link}"
