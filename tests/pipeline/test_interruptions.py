"""A run with every kind of stage, killed within and between them, and resumed with a changed recipe."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rld.cli import main
from rld.evaluation.held_out import HeldOutEvaluator
from rld.pipeline import merge, model_sources, stage_results
from rld.pipeline.stopping import Stopping
from rld.pipeline.summary import SummaryWriter
from rld.recipe.stages.base import Stage
from rld.utils import files
from tests.support.runs import Killed, one_thread, recipe, whole

__all__ = ["one_thread", "recipe", "whole"]

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}], held_out: 4}
models:
  tiny: &tiny
    new: llama
    config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}
  middle: *tiny
  small: *tiny
trainer: {learning_rate: 1e-2}
stages:
  - {name: taught, kind: sft, student: tiny, steps: 3, batch: 4, checkpoint_every: 1}
  - cascade:
      models: [taught, middle, small]
      stage: {kind: distill, rollout: {prompts: 2, completions: 2}, gate: "off", steps: 2, checkpoint_every: 1}
      teacher: {probe_prompts: 2}
  - {name: mean, kind: merge, models: [middle_from_taught, small_from_middle]}
  - {name: scores, kind: evaluate, model: mean}
  - {name: cut, kind: prune, model: mean, layers: 1, intermediate_size: 16, calibration_rows: 4}
  - {name: last, kind: sft, student: cut, steps: 2, batch: 4, checkpoint_every: 1}
"""

MOMENTS = [
    ("taught", "step 2"),
    ("taught", "result"),
    ("taught", "summary"),
    ("middle_from_taught", "step 1"),
    ("middle_from_taught", "step 2"),
    ("small_from_middle", "step 2"),
    ("small_from_middle", "result"),
    ("mean", "merge"),
    ("mean", "predict"),
    ("mean", "result"),
    ("scores", "predict"),
    ("scores", "result"),
    ("scores", "summary"),
    ("cut", "prune"),
    ("cut", "result"),
    ("last", "step 2"),
    ("last", "summary"),
]
"""By stage: in a step, before its checkpoint; while two models are merged, rows predicted, a model cut; when the result
is written and not in its place; when it is there and the summary is not written."""


def contents(run: Path) -> dict[str, Any]:
    """What a run leaves, without times."""
    paths = [*run.rglob("model.safetensors"), *run.rglob("predictions/**/*.jsonl"), run / "samples.jsonl"]
    result: dict[str, Any] = {str(path.relative_to(run)): path.read_bytes() for path in paths}
    for name in ("metrics.jsonl", "events.jsonl"):
        lines = files.read_jsonl(run / name).records
        result[name] = [{k: v for k, v in line.items() if not k.startswith(("seconds", "time/"))} for line in lines]
    stages = files.read_json(run / "summary.json")["stages"]
    return result | {"stages": [{k: v for k, v in stage.items() if k != "seconds"} for stage in stages]}


class Killer:
    """Raises `Killed` when the moment comes that it was told."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.stage, self.moment = "", ("", "")
        run = Stage.run

        def noted(stage: Stage, context: Any) -> None:
            self.stage = stage.name
            run(stage, context)

        patch.setattr(Stage, "run", noted)
        self._watch(patch, Stopping, "on_step_end", lambda args: f"step {args[2].global_step}")
        self._watch(patch, merge, "_merged", lambda _: "merge")
        self._watch(patch, model_sources, "prune", lambda _: "prune")
        self._watch(patch, HeldOutEvaluator, "predict", lambda _: "predict")
        self._watch(patch, stage_results, "write_manifest", lambda _: "result")
        self._watch(patch, SummaryWriter, "write", lambda _: "summary")

    def _watch(
        self, patch: pytest.MonkeyPatch, owner: Any, name: str, moment: Callable[[tuple[Any, ...]], str]
    ) -> None:
        function = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            if (self.stage, moment(args)) == self.moment:
                raise Killed
            return function(*args, **options)

        patch.setattr(owner, name, watched)


def test_kills_within_and_between_any_stages_change_nothing(recipe, whole, tmp_path, monkeypatch):
    run, command = tmp_path / "run", ["train", str(recipe), "--resume", "--output"]
    with monkeypatch.context() as patch:
        killer = Killer(patch)
        for moment in MOMENTS:
            killer.stage, killer.moment = "", moment
            with pytest.raises(Killed):
                main([*command, str(run)])
    assert main([*command, str(run)]) == 0
    assert contents(run) == contents(whole)


@pytest.mark.parametrize(
    ("override", "stale", "runs"),
    [
        ("stages.cut.layers=[1]", ["cut", "last"], True),
        ("stages.mean.weights=[1, 3]", ["mean", "scores", "cut", "last"], False),
        (
            "stages.1.cascade.stage.steps=3",
            ["middle_from_taught", "small_from_middle", "mean", "scores", "cut", "last"],
            False,
        ),
        ("stages.scores.skills=[copy]", ["scores"], True),
    ],
)
def test_a_changed_recipe_runs_again_what_is_stale(recipe, whole, tmp_path, capsys, override, stale, runs):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    capsys.readouterr()
    assert main(["check", str(recipe), override, "--output", str(run)]) == 0
    table = capsys.readouterr().out.partition("the run in")[2].splitlines()
    assert [line.split()[1] for line in table if " stale" in line] == stale
    if runs:
        before = {path.parent.name: path.stat().st_mtime_ns for path in run.rglob("rld_stage.json")}
        assert main(["train", str(recipe), override, "--resume", "--output", str(run)]) == 0
        changed = [path for path in run.rglob("rld_stage.json") if before[path.parent.name] != path.stat().st_mtime_ns]
        assert {files.read_json(path)["name"] for path in changed} == set(stale)
