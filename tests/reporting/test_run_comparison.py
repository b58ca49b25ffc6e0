"""Two runs side by side: differences with their intervals, curves in the same charts, and what cannot be compared."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from rld.cli import main
from rld.reporting.comparison_page import comparison_page, findings, show_comparison
from rld.reporting.run_comparison import compare_runs
from tests.reporting.test_report import EVIL, Page
from tests.support import made_up_run

ROWS = 100


def make(
    folder: Path,
    shares: dict[str, float],
    seed: int = 0,
    status: str = "done",
    rows: str = "row",
    num_rows: int = ROWS,
) -> Path:
    """Write a run that answers so many rows of each skill correctly, each row for itself."""
    made_up_run.make(folder, skills=list(shares), status=status)
    summary = json.loads((folder / "summary.json").read_text())
    summary["heldout_rows"] = dict.fromkeys(shares, num_rows)
    for result in summary["stages"]:
        lines = []
        result["scorings"] = {"after": {}}
        for skill, share in shares.items():
            rng, correct = random.Random(f"{seed}{skill}{result['name']}"), round(share * num_rows)
            rewards = [1.0] * correct + [0.5] * (num_rows - correct)
            rng.shuffle(rewards)
            lines += [
                {"skill": skill, "prompt": f"{rows} {i}", "gold": "x", "answer": "x", "reward": reward}
                for i, reward in enumerate(rewards)
            ]
            reach = 1.96 * math.sqrt(share * (1 - share) / num_rows)
            score = {"value": share, "low": share - reach, "high": share + reach}
            result["scorings"]["after"][skill] = {"solved": score}
            result["after"][skill] = share
        path = folder / "predictions" / result["name"] / "after.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def rewards(run: Path, skill: str) -> list[float]:
    lines = (run / "predictions" / "main" / "after.jsonl").read_text().splitlines()
    return [float(line["reward"] == 1) for line in map(json.loads, lines) if line["skill"] == skill]


def changed(run: Path, **values: Any) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["stages"][1] |= values
    (run / "recipe.json").write_text(json.dumps(recipe))


def test_the_same_rows_are_compared_in_pairs_and_other_ones_as_independent(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", {"sort": 0.5, "copy": 0.6}), make(tmp_path / "b", {"sort": 0.9, "copy": 0.6}, seed=1)
    sort, copy, mean = compare_runs(a, b).scores
    changes = [after - before for before, after in zip(rewards(a, "sort"), rewards(b, "sort"), strict=True)]
    assert (sort.basis, copy.basis, mean.skill) == ("row by row", "row by row", "mean")
    assert sort.difference is not None and mean.difference is not None
    assert sort.difference.value == pytest.approx(fmean(changes)) == pytest.approx(0.4)
    reach = 1.96 * stdev(changes) / math.sqrt(ROWS)
    assert (sort.difference.low, sort.difference.high) == pytest.approx((0.4 - reach, 0.4 + reach), abs=0.02)
    assert mean.difference.value == pytest.approx(0.2)
    assert findings(compare_runs(a, b)) == [
        "B scores higher on `sort` by 0.400, `mean` by 0.200.",
        "No difference beyond chance on `copy`.",
    ]
    assert findings(compare_runs(b, a))[0].startswith("A scores higher on `sort` by 0.400")
    make(b, {"sort": 0.9, "copy": 0.6}, seed=1, rows="other row")
    sort = compare_runs(a, b).scores[0]
    assert sort.basis == "as independent: other rows" and sort.difference is not None
    assert sort.difference.high - 0.4 == pytest.approx(1.96 * math.sqrt((0.25 + 0.09) / ROWS))


@pytest.mark.parametrize(
    ("num_rows", "low", "high", "finding"),
    [
        (2, 0.5 - 0.849, 1.0, "No difference beyond chance on `sort`."),
        (4, 0.0, 1.0, "No difference beyond chance on `sort`."),
        (5, 0.714 - 0.518, 1.0, "B scores higher on `sort` by 1.000."),
    ],
)
def test_few_rows_that_all_change_alike_are_not_certain(tmp_path, num_rows, low, high, finding) -> None:
    runs = [make(tmp_path / name, {"sort": share}, num_rows=num_rows) for name, share in (("a", 0.0), ("b", 1.0))]
    comparison = compare_runs(*runs)
    sort = comparison.scores[0]
    assert sort.basis == "row by row" and sort.difference is not None
    shown = sort.difference
    assert (shown.value, shown.low, shown.high) == pytest.approx((1, low, high), abs=1e-3)
    assert findings(comparison) == [finding]


def test_the_mean_over_skills_of_few_rows_is_not_certain(tmp_path: Path) -> None:
    runs = [make(tmp_path / name, dict.fromkeys("st", share), num_rows=2) for name, share in (("a", 0.0), ("b", 1.0))]
    mean = compare_runs(*runs).scores[-1].difference
    assert mean is not None
    assert (mean.low, mean.high) == (pytest.approx(1 - 0.849 / math.sqrt(2), abs=1e-3), 1.0)


def test_rows_that_say_something_else_than_the_score_are_not_taken_for_it(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", {"sort": 0.5}), make(tmp_path / "b", {"sort": 0.9})
    path = b / "predictions" / "main" / "after.jsonl"
    path.write_text(path.read_text().replace('"reward": 1.0', '"reward": 0.5', 1))
    assert compare_runs(a, b).scores[0].basis == "as independent"


@pytest.mark.parametrize("reward", ['"high"', "[1]", "true"])
def test_a_reward_that_is_no_number_is_a_damaged_file(tmp_path: Path, reward: str) -> None:
    a, b = make(tmp_path / "a", {"sort": 0.5}), make(tmp_path / "b", {"sort": 0.9})
    path = b / "predictions" / "main" / "after.jsonl"
    path.write_text(path.read_text().replace('"reward": 1.0', f'"reward": {reward}', 1))
    assert compare_runs(a, b).scores[0].basis == "as independent: no rows recorded"


def test_a_task_of_another_evaluator_has_no_number_of_rows(tmp_path: Path) -> None:
    runs = [make(tmp_path / name, {"sort": 0.5, "arc_easy": 0.5}) for name in "ab"]
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        del summary["heldout_rows"]["arc_easy"]
        (run / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "page.html").write_text(comparison_page(compare_runs(*runs)))
    text = Page(tmp_path / "page.html").text
    assert "arc_easysolved-0.500" in text and "sortsolved1000.500" in text and "meanof these1000.500" in text


def test_the_page_has_the_curves_of_both_in_the_same_charts_and_what_differs(tmp_path: Path) -> None:
    shares = {"sort": 0.5, "copy": 0.6}
    a, b = make(tmp_path / "a", shares), make(tmp_path / "b", shares)
    changed(b, learning_rate=0.5, extra=None)
    text = comparison_page(compare_runs(a, b))
    (tmp_path / "page.html").write_text(text)
    page = Page(tmp_path / "page.html")
    assert not page.open
    entropy = next(chart for chart in page.charts() if chart.startswith("Entropy"))
    assert "Entropy, nats per token A" in entropy and "Entropy, nats per token B" in entropy
    success = next(chart for chart in page.charts() if chart.startswith("Success rate"))
    assert [name in success for name in ("sort A", "sort B", "copy A", "copy B")] == [True] * 4
    assert "stages.main.learning_rate-0.5" in page.text and "stages.main.extra-null" in page.text
    assert "sortsolved1000.500 (0.402 to 0.598)0.500 (0.402 to 0.598)+0.000" in page.text
    assert "first_steps1 min1 min2T2T" in page.text


def with_stage(run: Path, kind: str, share: float) -> None:
    """Add a finished stage of a kind, with a score of its own, behind the last."""
    recipe, summary = (json.loads((run / name).read_text()) for name in ("recipe.json", "summary.json"))
    recipe["stages"].append({"name": kind, "kind": kind})
    score = {"sort": {"solved": {"value": share, "low": share, "high": share}}}
    last = summary["stages"][-1] | {"name": kind, "kind": kind, "scorings": {"after": score}}
    summary["stages"].append(last)
    (run / "recipe.json").write_text(json.dumps(recipe))
    (run / "summary.json").write_text(json.dumps(summary))


def test_the_models_are_compared_and_not_what_a_last_stage_scores_or_exports(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", {"sort": 0.5}), make(tmp_path / "b", {"sort": 0.9})
    with_stage(a, "evaluate", 1.0)
    with_stage(b, "export", 0.0)
    comparison = compare_runs(a, b)
    assert [side.result and side.result.name for side in comparison.sides] == ["main", "main"]
    assert comparison.scores[0].difference is not None
    assert comparison.scores[0].difference.value == pytest.approx(0.4)


def test_a_run_that_runs_is_compared_by_what_both_have_finished(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", {"sort": 0.5}), make(tmp_path / "b", {"sort": 0.6}, status="running")
    (b / "run.lock.json").write_text("{}")
    comparison = compare_runs(a, b)
    assert [side.result and side.result.name for side in comparison.sides] == ["first_steps", "first_steps"]
    assert comparison.notes[0].startswith("B is not finished, and what it has so far is compared. The run is running.")


def test_skills_of_one_run_alone_are_listed_and_not_compared(tmp_path: Path) -> None:
    comparison = compare_runs(make(tmp_path / "a", {"sort": 0.5, "one": 1.0}), make(tmp_path / "b", {"sort": 0.9}))
    assert [(pair.skill, pair.basis) for pair in comparison.scores] == [
        ("sort", "row by row"),
        ("one", "not: only one has it"),
    ]
    assert "Only A has the skill `one`." in comparison.notes


def test_no_text_of_either_run_is_read_as_html(tmp_path: Path) -> None:
    runs = [make(tmp_path / name, {EVIL: 0.5, "b": 0.5}) for name in ("x<b x=1>", "y<b x=1>")]
    changed(runs[0], **{EVIL: EVIL})
    (tmp_path / "page.html").write_text(comparison_page(compare_runs(*runs)))
    page = Page(tmp_path / "page.html")
    assert not page.open and {"script", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert "b" not in [tag for tag, attributes in page.tags if attributes]
    assert EVIL in page.text


def test_the_command_prints_the_tables_and_draws_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make(tmp_path / "a", {"sort": 0.5}), make(tmp_path / "b", {"sort": 0.9})
    changed(b, learning_rate=0.5)
    assert main(["report", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "Scores on held-out rows" in out and "B scores higher on `sort` by 0.400." in out
    assert "stages.main.learning_rate" in out and "`rld ablate` compares over seeds" in out
    assert out.endswith(f"page: {b}/compared.html\n")
    assert (b / "compared.html").is_file() and not (a / "compared.html").exists()


def others(folder: Path) -> Sequence[tuple[Path, str]]:
    """What cannot be laid beside a run with the skill `sort`, and what is said of it."""
    ablation = folder / "ablation"
    ablation.mkdir()
    (ablation / "ablation.json").write_text("{}")
    return [
        (folder / "run", "are the same folder"),
        (folder / "rum", "rum holds no run; did you mean"),
        (ablation, "is an ablation, which compares its runs itself"),
        (make(folder / "other", {"copy": 0.5}), "no skill in common, so nothing can be compared: "),
    ]


def test_what_cannot_be_compared_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path / "run", {"sort": 0.5})
    for other, message in others(tmp_path):
        assert main(["report", str(run), str(other)]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*/compared.html"))


def test_many_options_are_cut_in_the_terminal_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make(tmp_path / "a", {"sort": 0.5}), make(tmp_path / "b", {"sort": 0.5})
    changed(b, **{f"option{i}": i for i in range(30)})
    show_comparison(a, b)
    assert "and 10 more options, which are on the page" in capsys.readouterr().out
    assert "option29" in (b / "compared.html").read_text()
