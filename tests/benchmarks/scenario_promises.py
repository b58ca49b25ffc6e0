"""Count on how many seeds the default controller does what each of the eight scenarios asks of it.

    python -m tests.benchmarks.scenario_promises runs/report

The folder is that of `rld ablate` over the scenarios, with the arm `gap`, in s5 `distil` and in s7 `policy` too, as
`docs/scenarios.md` has it. What is asked is in `docs/scenarios.md` too; scores are those of held-out rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

from tests.learning.test_scenarios import EVERY, OFF, SKILLS, Finished

ARMS = ("gap", "distil", "policy")
Arms = dict[str, Finished]
Promises = dict[str, bool]


def _after(run: Finished, step: int) -> tuple[float, list[float]]:
    """The first score from an update on, and those that follow."""
    scores = [score for at, score in run.curve(SKILLS) if at >= step]
    return scores[0], scores[1:]


def wrong_teacher(arms: Arms) -> Promises:
    run, wrong = arms["gap"], (("one", "rotate"), ("two", "reverse"), ("two", "sort"))
    weights = [max(run.follow(f"teacher/{teacher}/weight/{skill}", ticks=10)) for teacher, skill in wrong]
    return {"wrong teachers below 0.05 after 10 ticks, for good": max(weights) < OFF}


def flawed_teacher(arms: Arms) -> Promises:
    run = arms["gap"]
    teacher = run.summary["teachers"]["flawed"]["scores"]
    return {"better than the teacher in both": all(run.after[s] > teacher[s] for s in ("reverse", "sort"))}


def teacher_leaves(arms: Arms) -> Promises:
    then, later = _after(arms["gap"], 60)
    return {"no drop by more than 0.03": min(later) > then - 0.03, "higher at the end": later[-1] > then}


def teacher_regresses(arms: Arms) -> Promises:
    run = arms["gap"]
    weights = [max(run.follow(f"weight/response/{skill}", 60, ticks=15)) for skill in ("reverse", "rotate")]
    then, later = _after(run, 60)
    return {
        "response below 0.05 after 15 ticks, for good": max(weights) < OFF,
        "no drop by more than 0.05": min(later) > then - 0.05,
    }


def fooled_reward(arms: Arms) -> Promises:
    run = arms["gap"]
    lowest = [min(run.follow(f"weight/policy/{skill}", 20)[: 15 * EVERY]) for skill in ("reverse", "sort")]
    return {
        "policy below 0.1 within 15 ticks": max(lowest) < 0.1,
        "on average below 0.1 in reverse after them": fmean(run.follow("weight/policy/reverse", 20, ticks=15)) < 0.1,
        "at most 0.02 below distillation alone": run.mean() >= arms["distil"].mean() - 0.02,
    }


def forgotten_skill(arms: Arms) -> Promises:
    run, old = arms["gap"], ("sort", "following")
    start = fmean(run.before[skill] for skill in old)
    scores = [score for _, score in run.curve(old)]
    late = [score for step, score in run.curve(old) if step > 20 * EVERY]
    return {
        "within 0.05 of the start in four scorings of five": fmean(s >= start - 0.05 for s in scores) >= 0.8,
        "the same after 20 ticks": fmean(s >= start - 0.05 for s in late) >= 0.8,
    }


def features(arms: Arms) -> Promises:
    run = arms["gap"]
    weights = [max(run.follow(f"teacher/untrained/weight/{skill}", ticks=20)) for skill in SKILLS]
    areas = [fmean(score for _, score in arms[name].curve(SKILLS)) for name in ("gap", "policy")]
    return {
        "the untrained teacher below 0.05 after 20 ticks": max(weights) < OFF,
        "0.02 better on average than without features": areas[0] >= areas[1] + 0.02,
    }


def shifting_levels(arms: Arms) -> Promises:
    shares = {skill: fmean(arms["gap"].follow(f"share/{skill}", ticks=30)) for skill in ("label", "following")}
    return {f"{skill} has at most 0.1 of the prompts": share <= 0.1 for skill, share in shares.items()}


SCENARIOS: dict[str, Callable[[Arms], Promises]] = {
    "s1_wrong_teacher": wrong_teacher,
    "s2_flawed_teacher": flawed_teacher,
    "s3_teacher_leaves": teacher_leaves,
    "s4_teacher_regresses": teacher_regresses,
    "s5_fooled_reward": fooled_reward,
    "s6_forgotten_skill": forgotten_skill,
    "s7_features": features,
    "s8_shifting_levels": shifting_levels,
}


def lines(folder: Path) -> Iterator[str]:
    """One for each promise."""
    for name, promises in SCENARIOS.items():
        seeds = sorted((folder / name).glob("seed-*"))
        kept = [promises({arm: Finished(seed / arm) for arm in ARMS if (seed / arm).is_dir()}) for seed in seeds]
        for promise in kept[0]:
            yield f"{name}: {promise}: {sum(found[promise] for found in kept)} of {len(kept)}"


if __name__ == "__main__":
    print(*lines(Path(sys.argv[1])), sep="\n")
