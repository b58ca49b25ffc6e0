"""Exports of SmolLM2-135M itself; `RLD_SMOLLM2` names a folder with its weights."""

from __future__ import annotations

import os

import pytest

from rld.models.generation import encoder_of
from rld.pipeline.exporting import ExportPlan
from rld.pipeline.model_sources import StoredModel

FOLDER = os.environ.get("RLD_SMOLLM2")

pytestmark = pytest.mark.skipif(FOLDER is None, reason="set RLD_SMOLLM2 to a folder with SmolLM2-135M")


@pytest.mark.parametrize(
    ("form", "precision", "least", "most_divergence", "megabytes"),
    [("gguf", "f16", 0.99, 1e-3, 275), ("gguf", "q8_0", 0.93, 0.02, 150), ("onnx", "f32", 0.999, 1e-6, 550)],
)
def test_an_export_of_a_real_model_is_that_model(tmp_path, form, precision, least, most_divergence, megabytes):
    model, tokenizer = StoredModel(str(FOLDER), {}, is_here=True).load({}, "float32")
    record = ExportPlan(model, encoder_of(model, tokenizer, {}), form, precision, []).export(tmp_path)
    assert record.agreement >= least
    assert record.divergence <= most_divergence
    assert record.reads_text
    assert record.bytes < megabytes * 1e6
