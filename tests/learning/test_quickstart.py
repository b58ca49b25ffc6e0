"""The quickstart, shortened: teachers learn their own skills alone, and the student learns from both."""

from __future__ import annotations

import json

from rld.cli import main

SKILLS = ("reverse", "sort", "shift", "rotate")
SHORTER = [
    *(f"skills.{skill}.levels=[{{length: 2}}, {{length: 3}}]" for skill in SKILLS),
    *("stages.order.steps=180", "stages.letters.steps=130", "stages.first_steps.steps=40", "stages.distill.steps=120"),
]


def test_the_student_learns_from_both_teachers(tmp_path):
    run = tmp_path / "run"
    assert main(["train", "quickstart", *SHORTER, "--output", str(run)]) == 0
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
