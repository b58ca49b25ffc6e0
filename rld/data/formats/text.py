"""Reads files of text, source code among them: a file is one record with the column `text`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (
    *(".txt", ".md", ".rst", ".tex", ".html", ".xml", ".yaml", ".toml", ".css"),
    *(".py", ".pyi", ".js", ".jsx", ".ts", ".tsx", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".cu", ".go", ".rs"),
    *(".java", ".kt", ".scala", ".swift", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".hs", ".ml", ".sh", ".sql"),
)


def read(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the text of a file, with the line number 1; line ends become `\\n`. An empty file has no record."""
    text = path.read_text(encoding="utf-8-sig")
    if text.strip():
        yield 1, {"text": text}
