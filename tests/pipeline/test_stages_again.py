"""A run that is resumed with another recipe: what is done stays, what is stale runs again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rld.cli import main
from rld.pipeline.stage_training import StageTraining
from rld.utils import files
from tests.support.runs import Killed, written

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}], held_out: 4}
models:
  tiny: {new: llama, config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}}
trainer: {lr_scheduler_type: constant, warmup_steps: 0, learning_rate: 1e-2}
stages:
  - {name: one, kind: sft, student: tiny, steps: 2, batch: 8, checkpoint_every: 1}
  - {name: side, kind: sft, student: tiny, steps: 2, batch: 4}
  - {name: two, kind: sft, student: one, steps: 2, batch: 8, checkpoint_every: 1}
"""
ADDED = "  - {name: three, kind: merge, models: [one, two]}\n"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = written(tmp_path_factory.mktemp("recipe"), RECIPE)
    (path.parent / "longer.yaml").write_text(RECIPE + ADDED)
    return path


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """A finished run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", str(recipe), "--output", str(output)]) == 0
    return output


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def times(run: Path) -> dict[str, int]:
    """By stage, when its result was written."""
    paths = {files.read_json(path)["name"]: path for path in run.rglob("rld_stage.json")}
    return {name: (path.parent / "model.safetensors").stat().st_mtime_ns for name, path in sorted(paths.items())}


def weights(run: Path) -> dict[str, bytes]:
    paths = [*run.glob("models/*/model.safetensors"), run / "student" / "model.safetensors"]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def again(run: Path, *words: str) -> list[str]:
    """Resume a run; return the stages that ran."""
    before = times(run)
    assert main(["train", *words, "--output", str(run), "--resume"]) == 0
    return [name for name, time in times(run).items() if before.get(name) != time]


@pytest.mark.parametrize(
    ("override", "ran"),
    [
        ("stages.two.steps=3", ["two"]),
        ("stages.one.steps=3", ["one", "two"]),
        ("stages.side.batch=8", ["side"]),
        ("stages.two.checkpoint_every=2", []),
        ("max_new_tokens=5", ["one", "side", "two"]),
    ],
)
def test_what_has_changed_runs_again_with_all_that_depends_on_it(recipe, run, tmp_path, capsys, override, ran):
    capsys.readouterr()
    assert main(["check", str(recipe), override, "--output", str(run)]) == 0
    assert capsys.readouterr().out.count(" stale") == len(ran)
    seconds = files.read_json(run / "summary.json")["seconds"]
    assert again(run, str(recipe), override) == ran
    assert override.partition("=")[0] in capsys.readouterr().err
    fresh = tmp_path / "fresh"
    assert main(["train", str(recipe), override, "--output", str(fresh)]) == 0
    assert weights(run) == weights(fresh)
    summary = files.read_json(run / "summary.json")
    assert [stage["name"] for stage in summary["stages"]] == ["one", "side", "two"]
    assert summary["flops"] == files.read_json(fresh / "summary.json")["flops"]
    assert sum(stage["seconds"] for stage in summary["stages"]) < seconds + 60
    assert again(run, str(recipe), override) == []


def test_a_stage_can_be_added_at_the_end_and_taken_away_again(recipe, run, capsys):
    longer = str(recipe.with_name("longer.yaml"))
    assert main(["check", longer, "--output", str(run)]) == 0
    assert "stage 'three' is new" in (out := capsys.readouterr().out)
    assert (out.count("done"), out.count("to do")) == (3, 1)
    assert again(run, longer) == ["three"]
    assert (run / "models" / "two" / "model.safetensors").is_file()
    assert files.read_json(run / "student" / "rld_stage.json")["kind"] == "merge"
    assert again(run, str(recipe)) == []
    assert files.read_json(run / "student" / "rld_stage.json")["name"] == "two"
    assert again(run, longer) == []


def test_a_stale_stage_keeps_its_result_until_it_has_another_one(recipe, run, monkeypatch, capsys):
    words, finish = [str(recipe), "stages.one.steps=4"], StageTraining.finish

    def killed(self, *args, **options):
        if self.stage.name == "one":
            raise Killed
        finish(self, *args, **options)

    before = weights(run)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StageTraining, "finish", killed)
        main(["train", *words, "--output", str(run), "--resume"])
    assert weights(run) == before
    capsys.readouterr()
    assert main(["check", *words, "--output", str(run)]) == 0
    assert "stale, goes on behind step 4" in capsys.readouterr().out
    assert main(["train", str(recipe), "stages.one.batch=4", "--output", str(run), "--resume"]) == 2
    assert "stages.one.batch: 8 → 4" in (message := capsys.readouterr().err)
    assert "--accept-changes" in message
    assert again(run, *words) == ["one", "two"]
    lines = files.read_jsonl(run / "metrics.jsonl").records
    assert [line["step"] for line in lines if line["stage"] == "one"] == [1, 2, 3, 4]


def test_with_consent_finished_stages_keep_their_results(recipe, run, capsys):
    assert again(run, str(recipe), "stages.one.batch=4", "--accept-changes") == []
    assert "stage 'one' is finished and keeps its result" in capsys.readouterr().err
    assert again(run, str(recipe), "stages.one.batch=4") == []
