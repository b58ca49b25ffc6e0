"""Writes the table of docs/dependencies.md: `python -m tests.dependencies_page`, where the quickstart is installed."""

from __future__ import annotations

import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "dependencies.md"
BEGIN, END = "<!-- licences: written by python -m tests.dependencies_page -->\n", "<!-- end of licences -->\n"

_LONGEST = 120
"""Characters of a licence's name; what is longer is the licence's text."""


def direct() -> list[str]:
    """Return what rld itself needs, by name, without its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return sorted(canonicalize_name(Requirement(line).name) for line in project["dependencies"])


def needed(package: str, extras: set[str]) -> list[tuple[str, set[str]]]:
    """Return what an installed package needs on this machine: names and extras."""
    requirements = [Requirement(line) for line in distribution(package).requires or []]
    environments = [{"extra": extra} for extra in extras or {""}]
    return [
        (canonicalize_name(requirement.name), requirement.extras)
        for requirement in requirements
        if requirement.marker is None or any(requirement.marker.evaluate(values) for values in environments)
    ]


def users() -> dict[str, set[str]]:
    """Return all packages that the quickstart installs, and by which of them each is needed."""
    found = {name: {"rld"} for name in direct()}
    queue: list[tuple[str, set[str]]] = [(name, set()) for name in found]
    while queue:
        package, extras = queue.pop()
        for name, wanted in needed(package, extras):
            if name not in found or wanted:
                queue.append((name, wanted))
            found.setdefault(name, set()).add(package)
    return found


def licence(name: str) -> str:
    """Return the licence that a package's metadata names; classifiers where it names none in a line."""
    metadata = distribution(name).metadata
    text = metadata["License-Expression"] or metadata["License"] or ""
    if text and "\n" not in text and len(text) <= _LONGEST:
        return text
    classifiers = [line for line in metadata.get_all("Classifier", []) if line.startswith("License ::")]
    return "; ".join(line.rsplit(" :: ", 1)[1] for line in classifiers) or "not named in its metadata"


def row(name: str, needed_by: set[str]) -> str:
    return f"| {name} | {licence(name)} | {', '.join(sorted(needed_by))} |"


def table() -> str:
    rows = [row(name, needed_by) for name, needed_by in sorted(users().items())]
    return "\n".join(["| package | licence | needed by |", "|---|---|---|", *rows]) + "\n"


def page(text: str) -> str:
    """Return the page's text with the table as it should be."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
