"""Reads files of text, source code among them: a file is one record with the column `text`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (
    *(".txt", ".md", ".rst", ".tex", ".html", ".xml", ".yaml", ".toml", ".css"),
    *(".py", ".pyi", ".js", ".jsx", ".ts", ".tsx", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".cu", ".go", ".rs"),
    *(".java", ".kt", ".scala", ".swift", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".hs", ".ml", ".sh", ".sql"),
)

_PIECE = 1 << 20
"""Characters of a file that are read together."""


def read(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the text of a file, with the line number 1; line ends become `\\n`. An empty file has no record."""
    text = path.read_text(encoding="utf-8-sig")
    if text.strip():
        yield 1, {"text": text}


def read_documents(path: Path, separator: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each text of a file that stands between two separators, with the number of its first line.

    Texts without a visible character are left out. Memory holds no more than the longest text and a piece of the file.
    """
    line, rest = 1, ""
    with path.open(encoding="utf-8-sig") as file:
        while piece := file.read(max(_PIECE, len(rest))):  # a long text is searched a few times, and not once a piece
            *texts, rest = (rest + piece).split(separator)
            for text in texts:
                if text.strip():
                    yield line, {"text": text}
                line += text.count("\n") + separator.count("\n")
    if rest.strip():
        yield line, {"text": rest}
