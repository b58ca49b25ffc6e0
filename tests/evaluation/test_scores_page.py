"""docs/scores.md: its table is that of the code, and its recipe trains and is scored as it is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from rld.cli import main
from rld.utils import files
from tests.scores_page import PAGE, page
from tests.support.fleet import FLEET

(RECIPE,) = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)]
RUN = """
name: page
models: {small: ./model}
max_new_tokens: 8
trainer: {bf16: false, use_cpu: true}
stages:
  - {name: one, kind: sft, student: small, steps: 2, batch: 4, evaluate_every: 1}
  - name: two
    kind: distill
    student: one
    teachers: {teacher: {model: small, probe_prompts: 2}}
    signals: {response: {}}
    rollout: {prompts: 2, completions: 2}
    steps: 1
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of the page's skills."""
    folder = tmp_path_factory.mktemp("page")
    for name, start in (("news.csv", 0), ("test.csv", 100)):
        rows = [f'{"Sports" if i % 2 else "World"},Title {i},"Text, {i}"' for i in range(start, start + 8)]
        (folder / name).write_text("\n".join(["label,title,text", *rows]))
    sums = [{"question": f"{i}+{i}=", "answer": str(2 * i)} for i in range(12)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    member = FLEET["qwen3_instruct_2507"]
    member.model().save_pretrained(folder / "model")
    member.tokenizer().save_pretrained(folder / "model")
    (folder / "page.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False) + RUN)
    assert main(["check", str(folder / "page.yaml")]) == 0
    assert main(["train", str(folder / "page.yaml"), "--output", str(folder / "run")]) == 0
    return folder / "run"


def test_the_table_is_that_of_the_code():
    text = PAGE.read_text()
    assert page(text) == text, "write it anew with: python -m tests.scores_page"


def test_every_score_is_in_the_summary_and_the_report(run):
    one, two = files.read_json(run / "summary.json")["stages"]
    for skill, options in RECIPE["skills"].items():
        names = options.get("scores", ["accuracy", "macro_f1", "calibration_error"])
        for scoring in ("before", "after", "teacher/teacher"):
            scores = two["scorings"][scoring][skill]
            assert list(scores) == names
            assert all(score["low"] <= score["value"] <= score["high"] for score in scores.values())
        assert two["after"][skill] == two["scorings"]["after"][skill][names[0]]["value"]
        assert skill in two["teachers"]["teacher"]["agreement"]
    assert two["before"] == one["after"]
    assert [len(row) for row in two["confusion"]["sections"]["counts"]] == [2, 2]
    page = (run / "report.html").read_text()
    assert "Labels of sections" in page and "pass_at_5" in page and "scores on held-out rows (rouge_l" in page


def test_each_scoring_has_its_predictions(run):
    places = ["one/after", "one/before", "one/step/1", "two/after", "two/before", "two/teacher/teacher"]
    paths = sorted(run.glob("predictions/**/*.jsonl"))
    assert [path.relative_to(run / "predictions").with_suffix("").as_posix() for path in paths] == places
    for path in paths:
        lines = files.read_jsonl(path).records
        assert [line["skill"] for line in lines] == ["summaries"] * 4 + ["sections"] * 8 + ["sums"] * 4
        assert all(sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-4) for line in lines[4:12])
    assert [len(line["sample_rewards"]) for line in lines[12:]] == [8] * 4


def test_rld_evaluate_shows_them_all(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["evaluate", str(run.parent / "page.yaml"), "--model", str(run / "student")]) == 0
    text = capsys.readouterr().out
    for name in ("rouge_2", "macro_f1", "pass_at_1"):
        assert re.search(rf"│ {name} +│ +0\.[0-9]{{3}} │ 0\.[0-9]{{3}} to ", text)


def test_a_score_of_gold_answers_is_refused_where_a_row_has_none(run, tmp_path, capsys):
    recipe = yaml.safe_load((run.parent / "page.yaml").read_text())
    (tmp_path / "open.jsonl").write_text("\n".join(json.dumps({"prompt": f"{i}?"}) for i in range(9)))
    recipe["skills"] = {"open": {"file": "open.jsonl", "held_out": 2, "scores": ["rouge_l"]}}
    recipe["models"] = {"small": str(run.parent / "model")}
    recipe["stages"] = recipe["stages"][1:]
    recipe["stages"][0] |= {"student": "small"}
    (tmp_path / "open.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["check", str(tmp_path / "open.yaml")]) == 2
    message = "open.yaml:9: skills.open.scores: rouge_l needs gold answers, and the held-out row open.jsonl:"
    assert message in capsys.readouterr().err
