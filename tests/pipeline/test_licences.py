"""The licence that a model's own card names, also in a card that is not as the hub would have it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rld.pipeline.licences import licence_fields


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n1: x\n---\n", "mit"),
        ("\n---\nlicense: mit\nmodel-index: [{name: no results}]\n---\n# text\n---\n", "mit"),
        ("---\n- license: mit\n---\n", None),
        ("# text\n---\nlicense: mit\n---\n", None),
    ],
)
def test_a_licence_is_read_whatever_else_the_head_of_its_card_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], card: str, licence: str | None
) -> None:
    (tmp_path / "README.md").write_text(card)
    context: Any = SimpleNamespace(source=tmp_path / "recipe.yaml")
    assert licence_fields(context, ".").get("license") == licence
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "card", [b"---\nlicense: [mit\n---\n", b"---\nlicense: \xff\n---\n", b"---\nat: 2026-13-01\n---\n"]
)
def test_a_card_that_cannot_be_read_is_told_once_and_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], card: bytes
) -> None:
    (tmp_path / "README.md").write_bytes(card)
    context: Any = SimpleNamespace(source=tmp_path / "recipe.yaml")
    assert [licence_fields(context, ".") for _ in range(2)] == [{}, {}]
    assert capsys.readouterr().err.count(f"{tmp_path / 'README.md'}: the licence cannot be read") == 1
