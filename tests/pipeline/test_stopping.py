"""Rules that end a stage, and the learning rate that is told of its budget."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from rld.cli import main
from rld.pipeline import stopping
from rld.pipeline.stage_training import StageTraining
from rld.pipeline.stopping import Stopping, plateau
from rld.recipe.stopping import Plateau, StoppingRules
from rld.trainer.training_progress import TrainingProgress
from rld.utils import files
from tests.support import tiny
from tests.support.runs import Killed, one_thread, recipe

__all__ = ["one_thread", "recipe"]

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}], held_out: 4}
  flip: {generator: ./tasks.py:copy, levels: [{length: 2}], held_out: 0}
models:
  tiny: {new: llama, config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}}
trainer: {learning_rate: 1e-2, warmup_steps: 2}
stages:
  - {name: teacher, kind: sft, student: tiny, steps: 20, batch: 8, checkpoint_every: 1, skills: [copy]}
  - name: student
    kind: distill
    student: tiny
    skills: [copy]
    teachers: {teacher: {model: teacher, probe_prompts: 2}}
    gate: "off"
    rollout: {prompts: 2, completions: 4}
    steps: 20
    checkpoint_every: 1
"""


def arguments(folder: str, **options: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=folder, use_cpu=True, bf16=False, report_to="none", **options)


class Rates(TrainingProgress):
    """The learning rates of a trainer that makes no update, before each of its steps."""

    def of(self, steps: int, **options: Any) -> list[float]:
        self.state.max_steps, self.lr_scheduler = steps, None
        self.args = arguments("unused", max_steps=steps, learning_rate=1.0, **options)
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler, rates = self.create_scheduler(steps), []
        for step in range(steps):
            self.state.global_step = step
            rates.append(scheduler.get_last_lr()[0])
            self.optimizer.step()
            scheduler.step()
        return [*rates, scheduler.get_last_lr()[0]]


@pytest.fixture
def rates(tmp_path) -> Rates:
    return Rates(tiny.model(), arguments(str(tmp_path)))


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant_with_warmup", "polynomial", "inverse_sqrt"])
def test_a_budget_that_is_used_as_fast_as_the_steps_changes_no_rate(rates, kind):
    plain = rates.of(12, lr_scheduler_type=kind, warmup_steps=3)
    for used in (lambda: 0.0, lambda: rates.state.global_step / 12):
        rates.budget_used = used
        assert rates.of(12, lr_scheduler_type=kind, warmup_steps=3) == plain


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_the_rate_is_zero_where_the_budget_ends_and_warms_up_by_steps(rates, kind):
    rates.budget_used = lambda: (rates.state.global_step + 1) / 6
    short = rates.of(60, lr_scheduler_type=kind, warmup_steps=2)
    assert short[:2] == [0, 0.5]
    assert all(0 < rate <= 1 for rate in short[1:6])
    assert short[6:] == pytest.approx([0] * 55, abs=1e-12)
    assert short[2:] == sorted(short[2:], reverse=True)


def met(rules: StoppingRules, scorings: list[dict[str, float]], **counts: float) -> list[tuple[int, str, str]]:
    """Take scores in, one after each step; return which rule ended the stage, after which step, and the figures."""
    events: list[Any] = []
    stop = Stopping(
        rules,
        skills=["a", "b"],
        teachers={"a": 0.5, "b": 1.0},
        flops=lambda: counts.get("flops", 0),
        tokens=lambda: counts.get("tokens", 0),
        tell=events.append,
    )
    state, control = TrainerState(), TrainerControl()
    stop.on_train_begin(None, state, control)
    for scores in [] if control.should_training_stop else scorings:
        state.global_step += 1
        stop.on_step_end(None, state, control)
        if not control.should_training_stop:
            stop.receive_scores(scores, state, control)
        if control.should_training_stop:
            break
    assert len(events) == control.should_training_stop
    return [(event.step, event.about, event.measured) for event in events]


def test_each_rule_ends_the_stage_and_tells_its_figures():
    rising = [{"a": 0.1 * n, "b": 0.25 * min(n, 4)} for n in range(9)]
    assert met(StoppingRules(), rising) == []
    assert met(StoppingRules(score={"a": 0.3}), rising) == [(4, "score", "a 0.3 of at least 0.3")]
    assert met(StoppingRules(teacher_surpassed=True), rising)[0][:2] == (7, "teacher_surpassed")
    flat = StoppingRules(plateau=Plateau(scorings=3, gain=0.06))
    assert met(flat, rising) == []
    assert met(flat, [*rising[:4], *[rising[3]] * 5])[0][:2] == (7, "plateau")
    assert met(StoppingRules(max_flops=10), rising, flops=10.0) == [(0, "max_flops", "10 of 10 FLOPs")]
    assert plateau([0.5, 0.5], Plateau(scorings=2, gain=0)) is None


def run(recipe: Path, output: Path, *options: str) -> dict[str, Any]:
    assert main(["train", str(recipe), *options, "--output", str(output)]) == 0
    return {stage["name"]: stage for stage in files.read_json(output / "summary.json")["stages"]}


def weights(run: Path) -> list[str]:
    paths = [run / "models" / "teacher" / "model.safetensors", run / "student" / "model.safetensors"]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


RULES = {
    "budgets": ["stages.teacher.stop.max_tokens=700", "stages.student.stop.max_flops=9e6"],
    "scores": [
        *("stages.teacher.evaluate_every=2", "stages.teacher.stop={score: {copy: 0}}"),
        *("stages.student.evaluate_every=1", "stages.student.stop={plateau: {scorings: 2, gain: 1}}"),
    ],
}


@pytest.mark.parametrize("rules", RULES)
def test_a_stage_that_ends_by_a_rule_is_the_same_after_kills(recipe, tmp_path, monkeypatch, rules):
    """Killed within each stage, and when it has made its last update."""
    options, whole, resumed = RULES[rules], tmp_path / "whole", tmp_path / "run"
    stages = run(recipe, whole, *options)
    for name, rule in (("teacher", options[0 if rules == "budgets" else 1]), ("student", options[-1])):
        ending = stages[name]["ending"]
        assert ending["rule"] in rule
        assert 0 < ending["step"] == stages[name]["steps"] < 20
    step_end, finish, moments = Stopping.on_step_end, StageTraining.finish, ["step", "end"] * 2

    def killed_in_step(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if moments[0] == "step" and state.global_step == 2:
            raise Killed

    def killed_at_end(self, *args):
        if moments[0] == "end":
            raise Killed
        finish(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Stopping, "on_step_end", killed_in_step)
        patch.setattr(StageTraining, "finish", killed_at_end)
        while moments:
            with pytest.raises(Killed):
                main(["train", str(recipe), *options, "--output", str(resumed), "--resume"])
            del moments[0]
    run(recipe, resumed, *options, "--resume")
    assert weights(resumed) == weights(whole)
    events = [files.read_jsonl(path / "events.jsonl").records for path in (whole, resumed)]
    assert events[0] == events[1]
    assert [event["stage"] for event in events[0] if event["kind"] == "stage ended"] == ["teacher", "student"]


def test_a_budget_of_seconds_counts_over_resumes(recipe, tmp_path, monkeypatch, capsys):
    """A step takes a second of this clock."""
    clock = [1000.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    begin = stopping.Stopping.on_optimizer_step

    def tick(self, args, state, control, **kwargs):
        clock[0] += 1
        begin(self, args, state, control, **kwargs)
        if state.global_step == 3 and clock[0] < 1005:
            raise Killed

    monkeypatch.setattr(stopping.Stopping, "on_optimizer_step", tick)
    options = ["stages.teacher.stop.max_seconds=6"]
    with pytest.raises(Killed):
        main(["train", str(recipe), *options, "--output", str(tmp_path / "run")])
    clock[0] = 9000.0
    assert run(recipe, tmp_path / "run", *options, "--resume")["teacher"]["ending"]["step"] == 6
    assert main(["check", str(recipe), *options]) == 0
    assert "so its result is not reproducible" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.student.stop={plateau: {}}"], "stages.student.stop.plateau needs scores on the way: set the stage's"),
        (["stages.teacher.stop={teacher_surpassed: true}", "stages.teacher.evaluate_every=2"], "needs teachers, and"),
        (["stages.teacher.stop={score: {copy: 90}}"], "stages.teacher.stop.score.copy"),
        (["stages.teacher.stop={score: {cpy: 1}}"], "stages.teacher.stop.score.cpy: 'cpy' is no skill; did you mean"),
        (["stages.teacher.stop={score: {flip: 1}}"], "skill 'flip' has no held-out rows"),
        (
            ["stages.teacher.stop={plateau: {}}", "stages.teacher.evaluate_every=2", "stages.teacher.skills=[flip]"],
            "stages.teacher.stop.plateau needs held-out rows, and no skill of this stage has any",
        ),
        (
            ["stages.teacher.stop={score: {copy: 1}}", "stages.teacher.evaluate_every=2", "evaluation=[{kind: x}]"],
            "stages.teacher.stop.score needs held-out rows",
        ),
        (["stages.teacher.stop.max_flop=1"], "unknown key 'stages.teacher.stop.max_flop'"),
    ],
)
def test_rules_that_cannot_be_met_are_refused_by_name(recipe, capsys, overrides, message):
    assert main(["check", str(recipe), *overrides]) == 2
    assert message in capsys.readouterr().err


def test_when_scores_end_a_stage_their_distance_is_part_of_it(recipe, tmp_path, capsys):
    options = ["stages.teacher.evaluate_every=2", "stages.student.steps=1"]
    for number, rule in enumerate(["stages.teacher.stop={score: {copy: 0}}", "stages.teacher.stop={max_flops: 1e6}"]):
        output = tmp_path / str(number)
        run(recipe, output, *options, rule)
        capsys.readouterr()
        assert (
            main(["check", str(recipe), *options, rule, "stages.teacher.evaluate_every=3", "--output", str(output)])
            == 0
        )
        assert (" stale" in capsys.readouterr().out) == (number == 0)
        shutil.rmtree(output)
