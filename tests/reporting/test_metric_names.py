"""Every metric that is logged is listed, and the list is what the log, the charts and the docs say."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
from trl.trainer import grpo_trainer, sft_trainer

from rld.errors import UnlistedMetricWarning
from rld.reporting.chart_groups import GROUPS
from rld.reporting.metric_names import METRICS, find_metric, logged_metrics
from tests.run_folder_page import PAGE, page

BASELINE = Path(__file__).parents[1] / "support" / "unchanged" / "baseline.json"


def test_everything_that_three_whole_runs_logged_is_listed() -> None:
    runs = json.loads(BASELINE.read_text())["runs"].values()
    names = {name for run in runs for stage in run["metrics"].values() for name in stage}
    assert len(names) > 50
    assert [name for name in names if find_metric(name) is None] == []


def test_what_trl_measures_is_listed_or_left_out_on_purpose() -> None:
    source = inspect.getsource(grpo_trainer) + inspect.getsource(sft_trainer)
    names = re.findall(r'_metrics\[(?:mode|"train")\]\[f?"([^"]+)"\]', source)
    assert len(names) > 30
    logs = {name.replace("{reward_func_name}", "exact_match"): 1.0 for name in names}
    kept = set(logged_metrics({"loss": 1.0, **logs}, supervised=False))
    assert kept == {
        *("loss", "entropy", "entropy_coef", "reward/exact_match", "sampling/sampling_logp_difference/mean"),
    }


def test_a_metric_that_is_not_listed_is_kept_with_a_warning() -> None:
    with pytest.warns(UnlistedMetricWarning, match="'my/own'"):
        assert logged_metrics({"loss": 1.0, "my/own": 2.0}, supervised=False) == {"loss": 1.0, "my/own": 2.0}


@pytest.mark.parametrize(
    ("name", "pattern", "names"),
    [
        ("weight/policy/sort", "weight/<signal>/<skill>", {"signal": "policy", "skill": "sort"}),
        ("weight/reference/sort", "weight/reference/<skill>", {"skill": "sort"}),
        ("teacher/org/a/weight", "teacher/<teacher>/weight", {"teacher": "org/a"}),
        ("teacher/org/a/weight/b", "teacher/<teacher>/weight/<skill>", {"teacher": "org/a", "skill": "b"}),
    ],
)
def test_a_name_tells_whose_metric_it_is(name: str, pattern: str, names: dict[str, str]) -> None:
    listed = find_metric(name)
    assert listed is not None
    assert (listed[0].pattern, listed[1]) == (pattern, names)


def test_each_chart_has_metrics_and_each_metric_names_a_chart_that_there_is() -> None:
    charts = [style.title for _, _, styles in GROUPS for style in styles]
    assert len(set(charts)) == len(charts)
    assert {metric.chart for metric in METRICS} - {""} == set(charts) - {"Other metrics"}


def test_the_page_on_a_runs_folder_has_the_list() -> None:
    text = PAGE.read_text()
    assert text == page(text), "write it anew with: python -m tests.run_folder_page"
