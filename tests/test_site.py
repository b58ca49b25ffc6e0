"""The documentation site is built without a warning, and its generated pages are what the program says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rld
from rld.cli import _COMMANDS
from tests import commands_page, dependencies_page

ROOT = Path(__file__).parent.parent
MISSING = [name for name in ("sphinx", "furo", "myst_parser") if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"the site needs {', '.join(MISSING)}: pip install -e '.[docs]'")
def test_the_site_is_built_without_a_warning(tmp_path):
    """So links lead somewhere, in docstrings too, and every page is in a table of contents."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", str(tmp_path / "trees")]
    process = subprocess.run([*command, ".", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert "docs/index.html" in (tmp_path / "site" / "index.html").read_text()
    pages = {path: path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    loading = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]* (?:src|href)="(?:https?:)?//[^"]*"')
    assert {path.name: loading.findall(text) for path, text in pages.items() if loading.search(text)} == {}


def test_every_page_is_in_a_table_of_contents():
    """Which the build requires too, where its packages are installed."""
    index = (ROOT / "docs" / "index.md").read_text()
    blocks = "\n".join(re.findall(r"```{toctree}\n(.*?)```", index, flags=re.DOTALL))
    listed = set(re.findall(r"^(?:.* <)?([\w/]+)>?$", blocks, flags=re.MULTILINE))
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}  # those in results/ are named by a pattern
    assert sorted(pages - listed) == ["index"], "name it in a toctree of docs/index.md"


def test_the_page_on_python_has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text()
    shown = {name for name in rld.__all__ if re.search(rf"^\.\. auto(class|function):: {name}\b", text, re.MULTILINE)}
    assert shown == set(rld.__all__)


def test_the_page_of_commands_is_what_they_take():
    assert commands_page.PAGE.read_text() == commands_page.page(), "python -m tests.commands_page"
    assert [name for name in _COMMANDS if f"\n## {name}\n" not in commands_page.page()] == []


def test_the_page_of_dependencies_has_every_direct_one_with_its_licence():
    """Others differ between machines; the direct ones' licences are those of what is installed."""
    rows = dict(re.findall(r"^\| ([\w.-]+) \| (.+?) \|", dependencies_page.PAGE.read_text(), flags=re.MULTILINE))
    wanted = {name: dependencies_page.licence(name) for name in dependencies_page.direct()}
    assert {name: rows.get(name) for name in wanted} == wanted, "python -m tests.dependencies_page"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = dependencies_page.PAGE.read_text()
    assert [extra for extra in project["optional-dependencies"] if f"`{extra}`" not in text] == []
