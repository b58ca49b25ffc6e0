"""The documentation site: `sphinx-build -W -c docs . build/site` in the root of the repository, with the extra `docs`.

The root is the folder of sources, so that links between README.md, CONTRIBUTING.md and docs/ are the same here and on
GitHub. Nothing is downloaded: theme and styles are in the packages.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

project = html_title = "rld"
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/**.md"]
exclude_patterns = [".venv", "build", "dist", "runs"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
html_theme = "furo"
html_extra_path = ["site"]

# GitHub gives every heading an anchor; these are the deepest that are linked to.
myst_heading_anchors = 3

autodoc_typehints = "none"
autosummary_generate = False


def as_rst(app: Sphinx, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """Spell the code in a docstring, which is in single backticks, as reStructuredText does."""
    lines[:] = [re.sub(r"(?<![:`])`([^`]+)`(?!`)(\w?)", _code, line) for line in lines]


def _code(match: re.Match[str]) -> str:
    escape = "\\ " if match[2] else ""
    return f"``{match[1]}``{escape}{match[2]}"


def add_fields(app: Sphinx, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """Append the fields of `RLDConfig`, whose texts are in their metadata, to its docstring."""
    if name == "rld.RLDConfig":
        own = [field for field in dataclasses.fields(documented) if field.name in vars(documented)["__annotations__"]]
        for field in own:
            lines += ["", f"``{field.name}``", f"    {field.metadata['help']}"]


def setup(app: Sphinx) -> None:
    """Connect what changes docstrings."""
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-process-docstring", add_fields)
