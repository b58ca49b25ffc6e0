"""The report of a made-up run: what is on the page, and that no name, gap or damage breaks it."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from rld.errors import CheckpointError
from rld.reporting import series
from rld.reporting.history import read_run
from rld.reporting.report import show_report, write_report
from rld.reporting.score_records import ScoreRecord
from rld.reporting.tables import closing_table, scores_table
from rld.utils import files
from tests.support import made_up_run


class Page(HTMLParser):
    """The tags and the visible text of a page, and whether every tag is closed."""

    VOID = {"meta", "br"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", list[str]()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def charts(self) -> list[str]:
        """What each chart says of itself to who cannot see it."""
        return [str(attributes["aria-label"]) for tag, attributes in self.tags if "aria-label" in attributes]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_up_run.make(tmp_path / "run")


def test_the_page_has_a_chart_for_everything_that_was_logged(run: Path) -> None:
    page = Page(write_report(run))
    assert not page.open
    titles = [chart.split(";")[0] for chart in page.charts()]
    per_skill = ["Mean over skills", "reverse", "sort", "shift"]
    assert titles == [
        *("Loss, nats per token", "Entropy, nats per token"),
        *("Success rate", "Curriculum level", "Share of prompts"),
        *per_skill,
        *per_skill,
        *("Total", "policy", "response", "feature", "Scale"),
        *("Divergence, nats per token", "Distance of hidden states", "Gradient at the last hidden states"),
        *("Reward", "Entropy, nats per token", "Tokens so far"),
    ]
    signals = next(chart for chart in page.charts() if chart.startswith("sort"))
    assert signals == "sort; at the end policy 0.95, response 0.04, feature 0.01"
    for words in ("made-up", "seed 3", "3 min 33 s", "torch 2.13.0", "rld train made-up seed=3", "+0.800"):
        assert words in page.text
    assert "teacher order switched off for skill" in page.text
    assert "steps 1 to 7\npolicy 0.211\nresponse 0.631\nfeature 0.158" in page.text  # shown by hovering
    assert sum(attributes.get("class") == "mark" for _, attributes in page.tags) == 4  # on the mean, and on the skill
    assert (run / "report.html").stat().st_size < 400_000


def test_the_page_shows_answers_and_where_the_compute_went(run: Path) -> None:
    page = Page(write_report(run))
    assert "sort:ab=ba✗ (empty)✓ ba✗ <order>✗ <letters>" in page.text
    assert "stagegenerationstudenttotalfirst_steps500G25%1.5T75%2T" in page.text  # nothing was spent on the gate
    (run / "samples.jsonl").unlink()
    assert "gold answer" not in Page(write_report(run)).text


def test_the_page_shows_what_a_stage_and_a_point_of_it_cost(run: Path) -> None:
    assert "hours a point" in Page(write_report(run)).text
    recipe, summary = files.read_json(run / "recipe.json"), files.read_json(run / "summary.json")
    prices = {"currency": "EUR", "machine_per_hour": 36.0, "watts": 500.0, "per_kilowatt_hour": 72.0}
    prices |= {"apis": {"served": {"input_per_million_tokens": 500.0, "output_per_million_tokens": 0.0}}}
    recipe["stages"][1]["signals"] = {"policy": {"teacher_reward": 0.0}, "response": {}, "feature": None}
    files.write_json(run / "recipe.json", recipe | {"prices": prices})
    first, last = summary["stages"]
    last |= {"seconds": 100.0, "before": {"sort": 0.25}, "after": {"sort": 0.5}, "flops": 5e9, "watts": 1000.0}
    accounts = {"generation": 0.5e9, "student": 1.5e9, "teachers": 2e9, "gate": 0.5e9, "answers": 0.25e9}
    last["flops_by_account"] = accounts | {"retention": 0.25e9}
    of_teachers = {"teachers": {"order": 1e9, "served": 1e9}, "gate": {"order": 0.5e9}, "answers": {"order": 0.25e9}}
    last["flops_by_part"] = of_teachers | {"student": {"updates": 1e9, "gold": 0.5e9, "probes": 0.0}}
    last["teaching"] = {"order": {"tokens": 1e6, "prompts": 30}, "served": {"tokens": 1e3, "prompts": 7}}
    first |= {"seconds": 3600.0, "watts": None}
    files.write_json(run / "summary.json", summary)
    (run / "cost.html").write_text("")
    text = Page(write_report(run)).text
    # a second costs 0.01 EUR, and of 1 kW 0.02 EUR more; 1,000 tokens of an API cost 0.5 EUR, and no machine here
    assert f"{last['name']}0.02783.5+25.00.14" in text, "the cells of a row"
    for name, cells in {
        "teacher order": "response1.75G35.0%301.310.0525",
        "teacher served": "response1G20.0%70.50.02",
        "completions, and updates on them": "policy, response1.5G30.0%-1.120.045",
        "gold answers beside completions": "gold500M10.0%-0.3750.015",
        "protected skills": "retain250M5.0%-0.1880.0075",
    }.items():
        assert f"{last['name']}{name}{cells}" in text, name
    assert "updates on rows" not in text, "of a stage with one purpose there is nothing to share"
    assert f"{first['name']}0.572" in text
    assert "of stages without that: 500 W, which the prices state" in text
    assert "When the student has paid for itself" in text


def test_the_page_loads_and_runs_nothing(run: Path) -> None:
    page = Page(write_report(run))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base"})
    loading = {"src", "srcset", "xlink:href", "data", "action", "poster"}
    for _, attributes in page.tags:
        assert loading.isdisjoint(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|https?:", (run / "report.html").read_text())


def test_the_same_name_has_the_same_colour_everywhere_and_its_own(run: Path) -> None:
    text = write_report(run).read_text()
    colours = {
        name: set(re.findall(rf'class="(colour\d[^"]*)"><i></i>{name} ', text))
        for name in ("policy", "response", "feature", "reverse", "sort", "shift", "order", "letters")
    }
    assert all(len(css) == 1 for css in colours.values())
    assert len(set.union(*colours.values())) == len(colours)


def test_names_are_text_even_where_they_look_like_html(tmp_path: Path) -> None:
    evil = '</title></style><script>alert("1")</script>&amp;\'"><b x="'
    run = made_up_run.make(tmp_path / "run", skills=[evil, "b"], teachers=[evil, "org/b-1"])
    page = Page(write_report(run))
    assert not page.open
    assert {"script", "b"}.isdisjoint({tag for tag, attributes in page.tags if attributes})
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.text.count(evil) > 10


EVIL = "</title></style></text></svg>-->]]><script>alert('1')</script><img src=x onerror=alert(1)>&amp;'\"><b x=\""
CONTROLS = "\x1b[2J\u202e\x07"


def with_evil(tree: object, key: str = "") -> object:
    """Return the content of a run's file with HTML at the end of all texts but those that name a stage or a kind."""
    if isinstance(tree, dict):
        return {name: with_evil(value, name) for name, value in tree.items()}
    if isinstance(tree, list):
        return [with_evil(value, key) for value in tree]
    return tree + EVIL + CONTROLS if isinstance(tree, str) and key not in ("stage", "kind", "status") else tree


@pytest.mark.parametrize("name", ["samples.jsonl", "events.jsonl", "metrics.jsonl", "summary.json", "recipe.json"])
def test_no_text_of_a_run_is_read_as_html(tmp_path: Path, name: str) -> None:
    run = made_up_run.make(tmp_path / ("run" + EVIL.replace("/", "")), skills=[EVIL, "b"], teachers=[EVIL, "c"])
    tags = {tag for tag, _ in Page(write_report(run)).tags}
    lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
    for line in lines:
        if name == "events.jsonl":
            line["kind"] += EVIL
        elif name == "metrics.jsonl":
            line |= {f"reward/{EVIL}": 0.5, f"loss/{EVIL}": 0.5}
        elif name == "summary.json":
            line["command"] = ""
            confusion = made_up_run.with_all_scores(line["stages"][1], "b", "c")["confusion"]
            confusion["b"]["labels"] = [EVIL, "yes"]
    (run / name).write_text("".join(json.dumps(with_evil(line)) + "\n" for line in lines))
    page = Page(write_report(run))
    assert not set("\x1b\u202e\x07") & set(page.text)
    assert not page.open and {tag for tag, _ in page.tags} <= tags
    assert not [at for _, attributes in page.tags for at in attributes if at.startswith("on") or at == "src"]
    assert EVIL in page.text


def test_many_skills_keep_colours_apart_by_dashes_and_the_file_small(tmp_path: Path) -> None:
    run = made_up_run.make(tmp_path / "run", skills=[f"skill{i}" for i in range(14)])
    text = write_report(run).read_text()
    colours = [re.search(rf'class="(colour\d[^"]*)"><i></i>skill{i} ', text) for i in range(14)]
    assert len({css[1] for css in colours if css}) == 14
    assert len(text) < 1_000_000


def test_a_killed_run_is_drawn_up_to_where_it_came(tmp_path: Path) -> None:
    run = made_up_run.make(tmp_path / "run", status="running")
    lines = (run / "metrics.jsonl").read_text().splitlines()[:200]
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"stage": "main", "st')
    (run / "events.jsonl").unlink()
    text = Page(write_report(run)).text
    for words in (
        "it was killed",
        "The last line of metrics.jsonl is incomplete",
        "Result so far: first_steps",
        "at step 80",
    ):
        assert words in text


def test_a_run_that_logged_nothing_yet_says_so(tmp_path: Path) -> None:
    run = made_up_run.make(tmp_path / "run", status="running")
    (run / "metrics.jsonl").write_text("")
    summary = json.loads((run / "summary.json").read_text()) | {"stages": []}
    (run / "summary.json").write_text(json.dumps(summary))
    page = Page(write_report(run))
    assert "Nothing has been logged yet" in page.text
    assert page.charts() == []


def test_values_that_are_not_numbers_are_told_not_drawn(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-1] |= {"loss/response": None, "loss/feature": math.inf}
    for line in lines:
        line["loss/policy"] = None if line["stage"] == "main" else 0.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report(run))
    assert "response: 1 of 300 logged values were not numbers" in page.text
    assert "feature: 1 of 300 logged values were not numbers" in page.text
    assert "policy: 300 of 300 logged values were not numbers" in page.text
    assert "NaN" not in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("recipe.json", None, "has no recipe.json"),
        ("summary.json", '{"recipe": "made', "summary.json is damaged"),
        ("summary.json", '{"recipe": "made-up"}', "summary.json is not what rld writes: seed"),
        (
            "summary.json",
            '{"recipe": "made", "seed": 1, "status": "done", "seconds": -1, "flops": 1}',
            "summary.json is not what rld writes: seconds",
        ),
    ],
)
def test_a_damaged_folder_is_refused_by_name(run: Path, file: str, content: str | None, expected: str) -> None:
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        write_report(run)
    assert not (run / "report.html").exists()


def test_damaged_lines_of_the_logs_are_left_out_and_counted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text('oops\n{}\n{"stage": "main"}\n')
    (run / "events.jsonl").write_text('{"step": 1}\n')
    show_report(run)
    printed = capsys.readouterr().out
    assert "3 damaged lines of metrics.jsonl" in printed
    assert "1 damaged lines of events.jsonl" in printed


def printed(renderable: object, width: int = 120) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_closing_table_has_the_students_of_all_stages_and_the_last_ones_teachers(tmp_path: Path) -> None:
    run = made_up_run.make(tmp_path / "run", skills=["[red]sort", "b"])
    lines = printed(closing_table(read_run(run).summary)).splitlines()
    cells = [re.findall(r"[^\s│┃]+", line) for line in lines]
    assert ["[red]sort", "200", "0.900", "0.100", "0.900", "0.990", "0.040"] in cells
    assert ["mean", "400", "0.910", "0.125", "0.910", "0.515", "0.515"] in cells
    head = " ".join(" ".join(line) for line in cells[:4])
    for words in ("first_steps", "before main", "order", "(1.05M)", "(361k)"):
        assert words in head


def test_the_closing_table_of_many_stages_has_a_model_a_line(tmp_path: Path) -> None:
    summary = read_run(made_up_run.make(tmp_path / "run", skills=["sort", "b"])).summary
    stages = [summary.stages[0].model_copy(update={"name": f"a_stage_with_a_name_{i}"}) for i in range(6)]
    many = summary.model_copy(update={"stages": [*stages, summary.stages[-1]]})
    lines = [re.findall(r"[^\s│┃]+", line) for line in printed(closing_table(many), width=80).splitlines()]
    assert ["skill", "sort", "b", "mean"] in lines and ["rows", "200", "200", "400"] in lines
    assert [line[0] for line in lines if line[:1] and line[0].startswith("a_stage")] == [stage.name for stage in stages]


def test_scores_of_one_model_say_how_many_rows_they_rest_on() -> None:
    rows = [{"skill": "a"}, {"skill": "a"}, {"skill": "b"}]
    half, whole, loss = (ScoreRecord(value=v, low=v / 2, high=v) for v in (0.5, 1.0, 3.0))
    scoring = {"a": {"solved": half}, "b": {"byte_probability": whole, "perplexity": loss}}
    text = printed(scores_table("some/model", scoring, rows))
    assert "scores on held-out rows (solved" in text
    assert re.search(r"a\s*│\s*2\s*│ solved\s*│\s*0.500 │ 0.250 to 0.500", text)
    assert re.search(r"│ perplexity\s*│\s*3.000", text)
    assert re.search(r"mean\s*│\s*3\s*│ of the first\s*│\s*0.750", text)


def test_all_scores_have_their_intervals_and_labels_a_table(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    made_up_run.with_all_scores(summary["stages"][-1], "sort", "order")
    (run / "summary.json").write_text(json.dumps(summary))
    page = Page(write_report(run))
    assert "sortsolved0.2000.100 to 0.3000.9000.800 to 1.0000.9500.900 to 1.000" in page.text
    assert "sortsame answer as the student--0.7500.600 to 0.900" in page.text
    assert "gold labelnoyesno62yes19" in page.text


def test_long_series_are_thinned_without_losing_spikes_or_the_level() -> None:
    noisy = [(float(i), 1.0 + (i % 2) + (100.0 if i == 4321 else 0.0)) for i in range(10_000)]
    assert (4321.0, 102.0) in series.envelope(noisy)
    assert len(series.envelope(noisy)) <= 2 * series.MAX_POINTS
    smoothed = series.smooth([(step, min(value, 2.0)) for step, value in noisy])
    assert len(smoothed) <= series.MAX_POINTS
    assert all(math.isclose(value, 1.5, abs_tol=0.02) for _, value in smoothed)
    spiked = [(float(i), 1000.0 if i == 50 else 1.0) for i in range(100)]
    assert max(value for _, value in series.smooth(spiked)) > 100
    assert max(value for _, value in series.smooth(spiked, geometric=True)) < 5
    steps = [(float(i), float(i // 1000)) for i in range(10_000)]
    assert series.change_points(steps) == [*((1000.0 * i, float(i)) for i in range(10)), (9999.0, 9.0)]


def test_a_line_is_cut_where_nothing_was_measured() -> None:
    points = [(float(i), 1.0) for i in [*range(10), 100, *range(200, 210)]]
    assert [len(piece) for piece in series.segments(points)] == [10, 1, 10]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.03, 0.05), (1e-15, 3e-15), (-5e5, 2e7), (0.97, 0.98), (1, 3)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = series.axis_ticks(low, high, 4)
    assert 2 <= len(ticks) <= 5
    assert all(low - 1e-9 * abs(low) <= tick <= high * (1 + 1e-9) for tick in ticks)
    gaps = [b - a for a, b in pairwise(ticks)]
    assert all(math.isclose(gap, gaps[0], rel_tol=1e-6) for gap in gaps)
    assert len({series.number(tick) for tick in ticks}) == len(ticks)
