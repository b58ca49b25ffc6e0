"""The quickstart, shortened: teachers learn their own skills alone, the student learns from both, and is exported."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from rld.cli import main

SKILLS = ("reverse", "sort", "shift", "rotate")
SHORTER = [
    *(f"skills.{skill}.levels=[{{length: 2}}, {{length: 3}}]" for skill in SKILLS),
    *("stages.order.steps=180", "stages.letters.steps=130", "stages.first_steps.steps=40", "stages.distill.steps=120"),
]
NEEDED = "onnx", "onnxruntime_genai", "onnxscript", "gguf", "xllamacpp"
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    assert main(["train", "quickstart", *SHORTER, "--output", str(folder)]) == 0
    return folder


def mean_score(scoring: dict[str, dict[str, dict[str, float]]]) -> float:
    return sum(next(iter(scores.values()))["value"] for scores in scoring.values()) / len(scoring)


def test_the_student_learns_from_both_teachers(run):
    summary = json.loads((run / "summary.json").read_text())
    distill = summary["stages"][-1]
    order, letters = (distill["teachers"][name]["scores"] for name in ("order", "letters"))
    for skill in ("reverse", "sort"):
        assert order[skill] >= 0.9 > 0.35 > letters[skill]
    for skill in ("shift", "rotate"):
        assert letters[skill] >= 0.9 > 0.35 > order[skill]
    before, after = (sum(distill[when].values()) / 4 for when in ("before", "after"))
    assert after >= before + 0.25
    assert 2 * distill["student"]["parameters"] <= distill["teachers"]["order"]["parameters"]

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["stage"] == "distill"][-1]
    assert last["teacher/order/weight/reverse"] > 0.95 > 0.05 > last["teacher/order/weight/shift"]
    assert last["loss/response"] < 0.5 * next(line for line in lines if "loss/response" in line)["loss/response"]


@pytest.mark.skipif(bool(MISSING), reason=f"exports need {', '.join(MISSING)}: pip install -e '.[export]'")
@pytest.mark.parametrize(
    ("form", "precision", "agreement", "most_divergence", "most_loss"),
    [
        ("onnx", "f32", 1.0, 1e-6, 0.0),
        ("onnx", "int8", 0.97, 0.01, 0.05),
        ("gguf", "f16", 0.99, 1e-3, 0.02),
        ("gguf", "q8_0", 0.97, 0.01, 0.05),
    ],
)
def test_the_student_in_its_runtime_is_the_student(
    run, tmp_path, monkeypatch, form, precision, agreement, most_divergence, most_loss
):
    """`rld export` itself refuses a file whose likeliest tokens or perplexity differ; this asks for more."""
    monkeypatch.chdir(tmp_path)
    assert main(["copy", "quickstart"]) == 0  # the generator of its rows
    shutil.copy(run / "recipe.json", "short.yaml")
    options = ["--recipe", "short.yaml", "--max-rows", "32", "--output", "exported"]
    assert main(["export", str(run / "student"), "--to", form, "--precision", precision, *options]) == 0
    content = json.loads(Path("exported/rld_export.json").read_text())
    export, scorings = content["export"], content["scorings"]
    assert export["texts"] == "gold answers of held-out rows" and export["tokens"] >= 400
    assert export["agreement"] >= agreement and export["divergence"] <= most_divergence
    student, file = (mean_score(scorings[name]) for name in ("the model", "its export"))
    assert student >= 0.5 and abs(file - student) <= most_loss
