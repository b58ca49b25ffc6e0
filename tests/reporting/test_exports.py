"""What is printed of an exported model."""

from __future__ import annotations

import io

from rich.console import Console

from rld.reporting.exports import ExportRecord, export_table


def test_a_path_is_shown_as_it_is():
    record = ExportRecord(
        format="gguf",
        precision="f16",
        runtime="xllamacpp 1",
        bytes=1_000_000,
        load_seconds=1.0,
        memory=1,
        context=8,
        milliseconds={"1": 2.0},
        texts="prose",
        tokens=400,
        agreement=1.0,
        divergence=0.0,
        perplexity=2.0,
        model_perplexity=2.0,
        reads_text=True,
    )
    file = io.StringIO()
    Console(file=file, width=120).print(export_table(record, "student in runs/[dim]/[/x]"))
    assert "student in runs/[dim]/[/x]" in file.getvalue()
