"""`rld ablate`: what arms mean, that they start alike, that nothing is trained twice, and what is shown."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from rld.ablation import jobs
from rld.ablation.ablate import ablate
from rld.ablation.arms import read_arms
from rld.ablation.jobs import Job
from rld.ablation.outcomes import read_result
from rld.cli import main
from rld.errors import AblationError, CheckpointError, RecipeError
from tests.pipeline.test_train import RECIPE, TASKS, metrics
from tests.reporting.test_report import Page
from tests.support.runs import one_thread

ROOT = Path(__file__).parents[2]
__all__ = ["one_thread"]


class Ended:
    """A process that is over."""

    def __init__(self, code: int = 0) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    wait = poll

    def terminate(self) -> None:
        raise AssertionError("it has ended")


class Here:
    """Starts jobs in this process, and remembers them."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.titles = failing, list[str]()

    def __call__(self, job: Job) -> Ended:
        self.titles.append(job.title)
        return Ended(1 if job.title == self.failing else main(["train", *job.arguments]))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "tasks.py").write_text(TASKS)
    (folder / "small.yaml").write_text(RECIPE.replace("steps: 40,", "steps: 20,").replace("steps: 14", "steps: 6"))
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory) -> tuple[Path, Here]:
    """Two arms and two seeds, of which one run fails at first; the same again finishes it."""
    folder, start = tmp_path_factory.mktemp("ablation") / "out", Here(failing="seed 1, fixed")
    assert ablate(recipe, [], "gap; fixed", num_seeds=2, folder=folder, start=start) == 1
    assert ablate(recipe, [], "gap; fixed", num_seeds=2, folder=folder, start=(again := Here())) == 0
    assert again.titles == ["seed 1, fixed"]
    return folder, start


def result(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "ablation.json").read_text())
    return read


def test_what_comes_before_is_trained_once_a_seed(done):
    folder, start = done
    assert start.titles == [
        *("seed 0, teacher", "seed 0, gap", "seed 0, fixed"),
        *("seed 1, teacher", "seed 1, gap", "seed 1, fixed"),
    ]
    teachers = [folder / f"seed-0/{arm}/models/teacher/model.safetensors" for arm in ("gap", "fixed")]
    assert len({path.read_bytes() for path in teachers}) == 1
    other = (folder / "seed-1/gap/models/teacher/model.safetensors").read_bytes()
    assert other != teachers[0].read_bytes()


def test_a_run_is_as_if_trained_alone(done, recipe, tmp_path):
    folder, _ = done
    given = ["seed=1", "stages.student.controller={kind: fixed, decide_every: 2}", "stages.student.evaluate_every=1"]
    assert main(["train", str(recipe), *given, "--output", str(tmp_path / "alone")]) == 0
    assert metrics(tmp_path / "alone") == metrics(folder / "seed-1" / "fixed")
    assert (folder / "seed-1" / "fixed" / "report.html").is_file()


def test_arms_start_alike_and_sample_with_the_same_noise(done):
    folder, _ = done
    for seed in (0, 1):
        runs = [folder / f"seed-{seed}" / arm for arm in ("gap", "fixed")]
        logs = [[line for line in metrics(run) if line["stage"] == "student"] for run in runs]
        before, after = ([log[i] for log in logs] for i in (0, 1))
        for key in ("entropy", "reward/share", "loss/response", "tokens/generated"):
            assert before[0][key] == before[1][key], key
        assert before[0]["flops"] >= before[1]["flops"]  # `gap` may have some prompts answered twice
        assert before[0]["loss"] != before[1]["loss"]
        assert after[0]["entropy"] != after[1]["entropy"]
    starts = [run["curve"][0] for run in result(folder)["runs"] if run["seed"] == 0]
    assert starts[0] == starts[1]


def test_numbers_are_those_of_the_runs(done):
    folder, _ = done
    whole = result(folder)
    assert (whole["seeds"], whole["skills"], list(whole["arms"])) == ([0, 1], ["copy", "flip"], ["gap", "fixed"])
    for run in whole["runs"]:
        summary = json.loads((folder / run["folder"] / "summary.json").read_text())
        stage = summary["stages"][-1]
        assert run["scores"] == stage["after"]
        assert run["flops"] == stage["flops"] == run["curve"][-1]["flops"]
        assert [point["scores"] for point in run["curve"][:: len(run["curve"]) - 1]] == [
            stage["before"],
            stage["after"],
        ]
        flops = [point["flops"] for point in run["curve"]]
        assert flops == sorted(flops)
        assert len(flops) == 1 + 6  # before, five on the way, after
    assert whole["flops"] == min(run["flops"] for run in whole["runs"])
    assert {d["measure"] for d in whole["differences"]} == {"final", "at_equal_flops", "mean_to_equal_flops"}


def test_the_page_has_all_in_one_file_and_leads_to_the_reports(done):
    folder, _ = done
    page = Page(folder / "ablation.html")
    assert not page.open
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any(name == "src" for _, attributes in page.tags for name in attributes)
    links = [str(attributes["href"]) for _, attributes in page.tags if "href" in attributes]
    assert len(links) == 4
    assert all((folder / link).is_file() for link in links)
    assert [chart.split(";")[0] for chart in page.charts()] == ["Mean over skills", "copy", "flip"]
    for words in ("gap", "fixed", "FLOPs", "Difference to gap", "stages.student.evaluate_every=1"):
        assert words in page.text


def test_report_draws_the_page_of_an_ablation_again(done, capsys):
    folder, _ = done
    page, numbers = (folder / "ablation.html").read_text(), (folder / "ablation.json").read_text()
    (folder / "ablation.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert "Difference to gap" in capsys.readouterr().out
    assert (folder / "ablation.html").read_text() == page
    assert (folder / "ablation.json").read_text() == numbers


def test_nothing_is_trained_again_and_arms_may_come(done, recipe, capfd, monkeypatch):
    """One more arm fails in a process of its own; the others are shown."""
    folder, _ = done
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    broken = "broken: rollout.prompts=3 trainer.gradient_accumulation_steps=5"
    arguments = ["--arms", f"gap;fixed; {broken}", "--seeds", "1", "--jobs", "2", "--output", str(folder)]
    assert main(["ablate", str(recipe), *arguments]) == 1
    out, err = capfd.readouterr()
    assert "seed 0, broken: failed with exit code 2" in err
    assert "12 rows an update cannot be split" in err
    assert "finished in" not in err
    assert "fixed" in out
    assert "broken" not in out
    (folder / "seed-0" / "broken" / "recipe.json").unlink(missing_ok=True)


def test_a_budget_ends_an_arm_and_one_that_cannot_spend_it_is_named(recipe, tmp_path, capsys, done):
    spent = {run["arm"]: run["flops"] for run in result(done[0])["runs"] if run["seed"] == 0}
    half = 0.5 * spent["gap"]
    arms = "short: steps=1; long:"
    assert ablate(recipe, [], arms, num_seeds=1, folder=tmp_path / "out", max_flops=half, start=Here()) == 0
    short, long = result(tmp_path / "out")["runs"]
    assert short["flops"] < half <= long["flops"] < spent["gap"]
    steps = [line["step"] for line in metrics(tmp_path / "out" / "seed-0" / "long")]
    assert 1 < steps[-1] < 6
    err = capsys.readouterr().err
    assert "short ran out of steps" in err
    assert "long ran out" not in err


def test_the_probes_of_teachers_are_charged(recipe, tmp_path):
    """Eight more prompts, of four or five characters, and answers of at most four tokens."""
    arms = "fixed; probed: controller.kind=fixed teachers.teacher.probe_prompts=8"
    before = ["stages.teacher.steps=1", "stages.student.steps=1"]
    assert ablate(recipe, before, arms, num_seeds=1, folder=tmp_path, start=Here()) == 0
    fixed, probed = result(tmp_path)["runs"]
    summary = json.loads((tmp_path / "seed-0" / "fixed" / "summary.json").read_text())
    size = summary["stages"][-1]["teachers"]["teacher"]["parameters"]
    assert 8 * 4 <= (probed["flops"] - fixed["flops"]) / (2 * size) <= 8 * (5 + 4)


def test_damaged_files_are_named_and_written_again(done, recipe, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(done[0], folder)
    whole = result(folder)
    for data in (b"", b"[]", b"{}", b"\xff", json.dumps({**whole, "runs": [{}]}).encode()):
        (folder / "ablation.json").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"ablation.json is damaged.*the same rld ablate writes it again"):
            read_result(folder)
    for i, name in enumerate(("ablation.json.1-2.draft", "seed-0/gap/summary.json.1-2.draft", "seed-0/gap.draft/x")):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{" * i)
    (folder / "seed-0" / "gap" / "summary.json").write_text("{")
    (folder / "seed-0" / "fixed" / "summary.json").write_text('{"status": "done", "stages": []}')
    (folder / "seed-1" / "gap" / "recipe.json").write_text("")
    assert ablate(recipe, [], "gap; fixed", num_seeds=2, folder=folder, start=(again := Here())) == 0
    assert sorted(again.titles) == ["seed 0, fixed", "seed 0, gap", "seed 1, gap"]
    runs = {(run["arm"], run["seed"]): run for run in whole["runs"]}
    again_runs = {(run["arm"], run["seed"]): run for run in result(folder)["runs"]}
    assert len(again_runs) == 4
    common = runs.keys() & again_runs.keys()  # the other tests of this module compare other arms and seeds
    assert {key: runs[key] for key in common} == {key: again_runs[key] for key in common}
    assert not list(folder.rglob("*.draft"))


def test_a_run_of_another_recipe_is_refused(done, recipe):
    with pytest.raises(CheckpointError, match=r"gap holds a run with other inputs \(stages.student.steps: \d+ → 3"):
        ablate(recipe, [], "gap: steps=3", num_seeds=1, folder=done[0], start=Here())


def test_an_arm_that_changes_what_comes_before_has_its_own(recipe, tmp_path):
    start = Here()
    arms = "gap; rewarded: rewards=[{use: answers:exact_match}]; more: stages.teacher.steps=3"
    assert (
        ablate(
            recipe,
            ["stages.teacher.steps=2", "stages.student.steps=1"],
            arms,
            num_seeds=1,
            folder=tmp_path,
            start=start,
        )
        == 0
    )
    assert [title.removeprefix("seed 0, ") for title in start.titles] == [
        "teacher",
        "gap",
        "rewarded",
        "teacher",
        "more",
    ]
    flops = {run["arm"]: run["curve"][0]["flops"] for run in result(tmp_path)["runs"]}
    assert flops["more"] == pytest.approx(1.5 * flops["gap"], rel=0.2)  # now each is charged for its own teacher
    assert flops["gap"] == flops["rewarded"] > 0


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ("gpa", "arm 'gpa': write NAME: key.path=value ..., NAME: alone for the recipe as it is"),
        ("gpa", "did you mean 'gap'?"),
        ("gap; gap", "two arms are called 'gap'"),
        ("x: contoller.kind=fixed", "unknown key 'stages.student.contoller'; did you mean 'controller'?"),
        ("x: controller.kind=fixd", "arm 'x': command line (stages.student.controller.kind=fixd)"),
        ("x: stages.studnet.steps=3", "there is no 'studnet' in this list; did you mean 'student'?"),
        ("x: controller.kind=fixed controller.policy=7", "should be less than or equal to 1"),
        ("x: seed=3", "an arm cannot set the seed"),
        ("x: steps", "is not of the form key.path=value"),
        ("../x: steps=3", "arm '../x: steps=3': write NAME"),
        (" ; ", "there is no arm"),
    ],
)
def test_a_bad_arm_is_said_before_anything_runs(recipe, tmp_path, capsys, arms, expected):
    assert main(["ablate", str(recipe), "--arms", arms, "--output", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert all(line.startswith("rld: ") for line in err.splitlines())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--seeds", "0"], ["--jobs", "none"], ["--max-flops", "nan"]])
def test_a_bad_number_is_a_wrong_command_line(recipe, capsys, option):
    assert main(["ablate", str(recipe), "--arms", "gap", *option]) == 2
    assert option[0] in capsys.readouterr().err


def test_what_arms_mean(recipe, tmp_path):
    (tmp_path / "arms").write_text(
        "# a comment\n"
        "fixed\n"
        "mild: controller.policy=0.3 controller.kind=fixed controller.teachers={teacher: 1.0}\n"
        "same:\n"
        "slow: controller.step_size=0.1 evaluate_every=4; chat: max_new_tokens=3\n"
    )
    arms = {arm.name: arm for arm in read_arms(str(tmp_path / "arms"), recipe, ["seed=5"], max_flops=1e12)}
    assert list(arms) == ["fixed", "mild", "same", "slow", "chat"]
    assert {arm.recipe.seed for arm in arms.values()} == {5}
    assert arms["fixed"].stage.controller.model_dump(exclude_unset=True) == {"kind": "fixed", "decide_every": 2}
    assert arms["mild"].stage.controller.policy == 0.3
    assert arms["mild"].stage.controller.teachers == {"teacher": 1.0}
    assert arms["same"].stage.controller.kind == "gap"
    assert (arms["slow"].stage.controller.step_size, arms["slow"].stage.controller.decide_every) == (0.1, 2)
    assert (arms["slow"].stage.evaluate_every, arms["same"].stage.evaluate_every) == (4, 1)
    assert arms["chat"].recipe.max_new_tokens == 3
    assert all(arm.stage.stop.max_flops == 1e12 for arm in arms.values())
    with pytest.raises(AblationError) as caught:
        read_arms("a: steps=0; b: steps=x", recipe, [])
    assert [line[:8] for line in str(caught.value).splitlines()] == ["arm 'a':", "arm 'b':"]


def test_arms_of_a_yaml_file_have_full_paths(recipe, tmp_path):
    arms = tmp_path / "arms.yaml"
    arms.write_text("same: {}\nmild:\n  stages.student.controller: {kind: fixed, policy: 0.3}\n  max_new_tokens: 3\n")
    same, mild = read_arms(str(arms), recipe, ["seed=5"])
    assert (same.name, same.stage.controller.kind, same.recipe.seed) == ("same", "gap", 5)
    assert (mild.name, mild.stage.controller.policy, mild.recipe.max_new_tokens) == ("mild", 0.3, 3)
    for text, expected in {
        "a: {steps: 3}": r"arm 'a': command line \(steps=3\): unknown key 'steps'",
        "a: {seed: 3}": "arm 'a': an arm cannot set the seed",
        "a: 3": "arm 'a' should be a mapping of paths to values",
        "../a: {}": "'../a' cannot be an arm's name",
        "a: {}\na: {}": r"arms.yaml:2: not valid YAML: 'a' is set twice",
        "a:": r"arms.yaml:1: a has no value; \{\} stands for defaults",
    }.items():
        arms.write_text(text)
        with pytest.raises((AblationError, RecipeError), match=expected):
            read_arms(str(arms), recipe, [])


def test_the_module_that_jobs_share_exists():
    assert callable(importlib.import_module(jobs.PRELOADED).train)


class Working:
    """A process that goes on until it is asked to stop."""

    def __init__(self) -> None:
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code

    def wait(self) -> int:
        assert self.code is not None, "nobody has asked it to stop"
        return self.code

    def terminate(self) -> None:
        self.code = 143


def test_stopping_stops_what_is_at_work_and_starts_no_more(tmp_path):
    made = list[Working]()

    def start(_job: Job) -> Working:
        made.append(Working())
        if len(made) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return made[-1]

    todo = [Job(str(i), tmp_path, (), None, lambda: None) for i in range(4)]
    with pytest.raises(KeyboardInterrupt):
        jobs.run_jobs(todo, 2, start, print)
    assert [process.code for process in made] == [143, 143]


def test_a_job_whose_need_failed_is_not_run(tmp_path):
    messages = list[str]()
    first = Job("first", tmp_path, (), None, lambda: None)
    second, third = Job("second", tmp_path, (), first, lambda: None), Job("third", tmp_path, (), None, lambda: None)
    failed = jobs.run_jobs([first, second, third], 2, lambda job: Ended(job.title == "first"), messages.append)
    assert failed == [first, second]
    assert any("second: not run, because first failed" in line for line in messages)
    assert any("third: finished" in line for line in messages)
