"""The folder of a run that never was: all that a run of two stages leaves behind, with noise, gaps and events."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SFT_STEPS, DISTILL_STEPS = 120, 300
SIGNALS = ("policy", "response", "feature")


def _sft(rng: random.Random) -> Iterator[dict[str, Any]]:
    for step in range(1, SFT_STEPS + 1):
        loss = 2.5 * math.exp(-step / 30) + 0.1 + rng.gauss(0, 0.05)
        yield {"loss": loss, "loss/sft": loss, "entropy": 0.5 * loss}


def _distill(rng: random.Random, skills: Sequence[str], teachers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The second teacher is only looked at now and then from step 150 on."""
    for step in range(1, DISTILL_STEPS + 1):
        done, ticks = step / DISTILL_STEPS, step % 5 == 0
        values: dict[str, Any] = {"loss": rng.gauss(0.4 - 0.3 * done, 0.05), "loss/policy": rng.gauss(0, 0.02)}
        values["loss/response"] = (0.8 + rng.random()) * 0.9 ** (step / 10)
        values["loss/feature"] = (0.9 + 0.2 * rng.random()) * 0.5 * (1 - 0.6 * done)
        for i, skill in enumerate(skills):
            policy = 0.2 + 0.65 * (step - step % 5) / DISTILL_STEPS + 0.1 * (i % 2)
            for signal, weight in zip(SIGNALS, (policy, 0.8 * (1 - policy), 0.2 * (1 - policy)), strict=True):
                values[f"weight/{signal}/{skill}"] = weight
            values |= {f"level/{skill}": float(min(step // (60 + 20 * i), 2)), f"share/{skill}": 1 / len(skills)}
            for j, teacher in enumerate(teachers):
                share = 1 / len(teachers) if step < 30 else float(i % len(teachers) == j)
                values[f"teacher/{teacher}/weight/{skill}"] = share
            if ticks:
                chance = 1 / (1 + math.exp(-12 * (done - 0.2 - 0.12 * i)))
                values[f"progress/{skill}"] = sum(rng.random() < chance for _ in range(40)) / 40
        for i, signal in enumerate(SIGNALS):
            values[f"weight/{signal}"] = sum(values[f"weight/{signal}/{skill}"] for skill in skills) / len(skills)
            values[f"scale/{signal}"] = 1.0 + i * (step > 20)
            if ticks:
                values[f"grad/{signal}"] = math.exp(rng.gauss(-3 - 3 * done - i, 0.3))
        for j, teacher in enumerate(teachers):
            shares = [values[f"teacher/{teacher}/weight/{skill}"] for skill in skills]
            values[f"teacher/{teacher}/weight"] = sum(shares) / len(shares)
            if j == 0 or step < 150 or step % 50 == 0:
                values[f"divergence/{teacher}"] = math.exp(rng.gauss(-4 * done, 0.2)) * (j + 1)
                values[f"distance/{teacher}"] = rng.gauss(0.6 - 0.3 * done, 0.03)
        values |= {"reward/exact_match": rng.gauss(done, 0.05), "reward/brief": rng.gauss(0.5, 0.05)}
        values |= {"entropy": rng.gauss(1.2 - done, 0.05), "tokens/generated": 700.0 * step}
        yield values | {"tokens/scored": 1100.0 * step}


def _result(name: str, kind: str, skills: Sequence[str], teachers: Sequence[str]) -> dict[str, Any]:
    after = {skill: 0.9 + 0.02 * (i % 4) for i, skill in enumerate(skills)}
    taught = {
        teacher: {skill: 0.99 if i % len(teachers) == j else 0.04 for i, skill in enumerate(skills)}
        for j, teacher in enumerate(teachers)
    }
    return {
        "name": name,
        "kind": kind,
        "seconds": 62.0,
        "flops": 2e12,
        "flops_by_account": {"generation": 0.5e12, "student": 1.5e12, "gate": 0.0},
        "flops_by_part": {"student": {"updates": 1.5e12}},
        "student": {"parameters": 361_000, "scores": after},
        "teachers": {teacher: {"parameters": 1_050_000, "scores": scores} for teacher, scores in taught.items()},
        "before": {skill: 0.1 + 0.05 * i for i, skill in enumerate(skills)},
        "after": after,
        "retention": dict.fromkeys(skills),
    }


def with_all_scores(result: dict[str, Any], skill: str, teacher: str) -> dict[str, Any]:
    """Return the record of a stage with the intervals of a skill's score, and a table of its labels."""
    intervals = {"before": (0.2, 0.1, 0.3), "after": (0.9, 0.8, 1.0), f"teacher/{teacher}": (0.95, 0.9, 1.0)}
    score = {scoring: dict(zip(("value", "low", "high"), three, strict=True)) for scoring, three in intervals.items()}
    agreement = {skill: {"value": 0.75, "low": 0.6, "high": 0.9}}
    result["teachers"][teacher]["agreement"] = agreement
    result["scorings"] = {scoring: {skill: {"solved": three}} for scoring, three in score.items()}
    result["confusion"] = {skill: {"labels": ["no", "yes"], "counts": [[6, 2], [1, 9]]}}
    return result


def make(
    folder: Path,
    skills: Sequence[str] = ("reverse", "sort", "shift"),
    teachers: Sequence[str] = ("order", "letters"),
    status: str = "done",
) -> Path:
    """Write the run's folder and return it."""
    rng = random.Random(0)
    stages = [
        {"name": "first_steps", "kind": "sft", "student": "small", "steps": SFT_STEPS},
        {"name": "main", "kind": "distill", "steps": DISTILL_STEPS, "teachers": {t: {"model": t} for t in teachers}},
    ]
    results = [_result("first_steps", "sft", skills, []), _result("main", "distill", skills, teachers)]
    recipe = {
        "name": "made-up",
        "seed": 3,
        "skills": {skill: {"rows": "./x.csv"} for skill in skills},
        "stages": stages,
    }
    summary = {
        "recipe": "made-up",
        "seed": 3,
        "status": status,
        "seconds": 213.4,
        "flops": 4e12,
        "versions": {"rld": "0.1.0", "torch": "2.13.0", "trl": "1.16.0"},
        "heldout_rows": dict.fromkeys(skills, 200),
        "stages": results if status == "done" else results[:1],
    }
    metrics: list[dict[str, Any]] = []
    for stage, logged in (("first_steps", _sft(rng)), ("main", _distill(rng, skills, teachers))):
        for step, values in enumerate(logged, 1):
            spent = {"seconds": 0.5 * len(metrics), "flops": 1e10 * len(metrics)}
            metrics.append({"stage": stage, "step": step} | spent | values)
    decided = [(30, skills[-1], "teacher off", teachers[0]), (150, skills[0], "signal off", "feature")]
    events = [
        {"step": s, "kind": k, "skill": on, "about": a, "measured": "student 0.81, its worth 0.02", "stage": "main"}
        for s, on, k, a in decided
    ]
    samples = [
        {"stage": "main", "skill": skill, "prompt": f"{skill}:ab=", "gold": "ba"}
        | {"before": {"answer": "", "is_correct": False}, "after": {"answer": "ba", "is_correct": True}}
        | {"teachers": {teacher: {"answer": f"<{teacher}>", "is_correct": False} for teacher in teachers}}
        for skill in skills
    ]
    folder.mkdir(exist_ok=True)
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
    return folder
