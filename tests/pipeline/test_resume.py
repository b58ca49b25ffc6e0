"""Runs that were killed or damaged: what `--resume` makes of them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rld.cli import main
from rld.pipeline.stage_training import StageTraining
from rld.pipeline.summary import SummaryWriter
from rld.rollout.teacher_answers import TeacherAnswers
from rld.utils import files
from rld.utils.manifest import MANIFEST, write_manifest
from rld.utils.run_folder import stage_record_path
from tests.support.runs import COPY_TASKS, Killed, one_thread, recipe, whole

__all__ = ["one_thread", "recipe", "whole"]

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}], held_out: 4}
  constant: {generator: ./tasks.py:constant, levels: [{length: 9}], held_out: 4}
models:
  tiny:
    new: llama
    config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}
trainer: {lr_scheduler_type: linear, warmup_steps: 0, learning_rate: 1e-2}
stages:
  - {name: teacher, kind: sft, student: tiny, steps: 6, batch: 8, checkpoint_every: 2}
  - name: student
    kind: distill
    student: teacher
    teachers: {teacher: {model: teacher, probe_prompts: 2}}
    signals: {policy: {}, response: {}, feature: {}, gold: null}
    rollout: {prompts: 2, completions: 4}
    steps: 4
    checkpoint_every: 2
"""


def train(recipe: Path, output: Path, *options: str) -> int:
    return main(["train", str(recipe), "--output", str(output), *options])


def weights(run: Path) -> list[str]:
    """Hashes of the weights of both stages."""
    paths = [run / "models" / "teacher" / "model.safetensors", run / "student" / "model.safetensors"]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def killed_in(stage: str, recipe: Path, output: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Path:
    """Run until a stage has made its last update and is about to be scored; return the stage's checkpoints."""
    finish = StageTraining.finish

    def killed(self, *args, **options):
        if self.stage.name == stage:
            raise Killed
        finish(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StageTraining, "finish", killed)
        with pytest.raises(Killed):
            train(recipe, output, *options)
    return output / "checkpoints" / stage


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory) -> dict[str, Path]:
    """By stage, a run that was killed when the stage had made its last update."""
    folder, patch, num_drafts = tmp_path_factory.mktemp("trained"), pytest.MonkeyPatch(), list[int]()
    take_states = TeacherAnswers.take_states

    def counted(self: TeacherAnswers, states: Sequence[Any]) -> None:
        num_drafts.append(len(states))
        take_states(self, states)

    with patch.context() as counting:
        counting.setattr(TeacherAnswers, "take_states", counted)
        for stage in ("teacher", "student"):
            killed_in(stage, recipe, folder / stage, patch)
    assert num_drafts, "the gate's drafts are read beside completions, in which a resumed run should not differ"
    return {stage: folder / stage for stage in ("teacher", "student")}


def summary(run: Path) -> dict[str, Any]:
    return files.read_json(run / "summary.json")


def accounts(run: Path) -> list[Any]:
    """FLOPs of each stage by account and part, and the tokens and prompts of its teachers."""
    return [(stage["flops_by_part"], stage["teaching"]) for stage in summary(run)["stages"]]


def steps(run: Path) -> list[tuple[str, int]]:
    return [(line["stage"], line["step"]) for line in files.read_jsonl(run / "metrics.jsonl").records]


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_a_stage_that_has_made_its_last_update_makes_no_other(recipe, whole, trained, tmp_path, stage):
    run = tmp_path / "run"
    shutil.copytree(trained[stage], run)
    assert train(recipe, run, "--resume") == 0
    assert weights(run) == weights(whole)
    assert steps(run) == steps(whole)
    assert accounts(run) == accounts(whole)


def test_a_run_that_is_killed_before_it_could_note_its_time_goes_on_behind_what_has_its_time(
    recipe, trained, tmp_path, monkeypatch
):
    """After a stage has stored its result and before the summary has it; and in the next stage, of which the log is."""
    run, write = tmp_path / "run", SummaryWriter.write

    def killed(self, status):
        if run.joinpath("models/teacher").exists():
            raise Killed
        write(self, status)

    shutil.copytree(trained["teacher"], run)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(SummaryWriter, "write", killed)
        train(recipe, run, "--resume")
    result = run / "models" / "teacher"
    files.write_json(stage_record_path(result), files.read_json(stage_record_path(result)) | {"seconds": 1000.0})
    write_manifest(result)
    killed_in("student", recipe, run, monkeypatch, "--resume")
    logged = files.read_jsonl(run / "metrics.jsonl").records
    assert logged[-1]["seconds"] > 1000
    files.write_jsonl(run / "metrics.jsonl", [*logged[:-1], logged[-1] | {"seconds": 2000.0}])
    assert train(recipe, run, "--resume") == 0
    assert [stage["seconds"] >= 1000 for stage in summary(run)["stages"]] == [True, True]


def test_a_stage_that_used_up_its_budget_makes_no_other_update(recipe, tmp_path, monkeypatch):
    options = ["stages.teacher.stop.max_flops=1e6", "stages.teacher.checkpoint_every=1"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main(["train", str(recipe), *options, "--output", str(whole)]) == 0
    assert max(step for stage, step in steps(whole) if stage == "teacher") < 6

    def killed(self, *_args, **_options):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StageTraining, "finish", killed)
        main(["train", str(recipe), *options, "--output", str(run)])
    assert main(["train", str(recipe), *options, "--output", str(run), "--resume"]) == 0
    assert weights(run) == weights(whole)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_whatever_is_damaged_in_a_checkpoint_the_one_before_is_used(
    recipe, whole, trained, tmp_path, stage, capsys, monkeypatch
):
    """Every file is damaged in every way; that the run resumed from the one before is tried for one of them."""
    from rld.trainer import checkpoints

    source = trained[stage] / "checkpoints" / stage
    newest, before = checkpoints.latest(source), sorted(source.glob("checkpoint-*"))[0]
    assert newest is not None
    names = [path.name for path in newest.iterdir()]
    assert {MANIFEST, "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"} <= set(names)
    for name in names:
        for damage in (flip_a_bit, cut, Path.unlink, lambda path: path.write_bytes(b"")):
            folder = tmp_path / "checkpoints"
            shutil.copytree(source, folder)
            damage(folder / newest.name / name)
            (folder / "checkpoint-abc").mkdir()
            (message,) = checkpoints.remove_unusable(folder)
            assert newest.name in message
            latest = checkpoints.latest(folder)
            assert latest is not None and latest.name == before.name
            shutil.rmtree(folder)
    run = tmp_path / "run"
    shutil.copytree(trained[stage], run)
    flip_a_bit(run / "checkpoints" / stage / newest.name / "optimizer.pt")
    assert train(recipe, run, "--resume") == 0
    assert "optimizer.pt" in (message := capsys.readouterr().err)
    assert f"goes on from {before.name}" in message
    assert weights(run) == weights(whole)
    assert accounts(run) == accounts(whole)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, Path.unlink])
def test_a_finished_stage_with_a_damaged_model_is_trained_again(recipe, whole, tmp_path, capsys, damage):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    damage(run / "models" / "teacher" / "model.safetensors")
    assert train(recipe, run, "--resume") == 0
    assert "stage 'teacher' is not finished" in capsys.readouterr().err
    assert weights(run) == weights(whole)


def test_what_a_killed_process_left_behind_is_removed(recipe, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "checkpoints" / "teacher" / "checkpoint-6").mkdir(parents=True)
    for name in ("student.draft", "models/teacher.draft"):
        (run / name).mkdir()
    drafts = ("recipe.json.1-2.draft", "summary.json.1-2.draft", "predictions/student/after.jsonl.1-2.draft")
    for name in drafts:
        (run / name).write_text("{")
    assert train(recipe, run, "--resume") == 0
    assert not list(run.rglob("*.draft"))
    assert not list((run / "checkpoints").glob("*"))


DAMAGED = [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"seconds": "x", "stages": 3, "status": []}', b"null", b"[" * 9999]


@pytest.mark.parametrize("name", ["summary.json", "models/teacher/rld_stage.json", "student/rld_stage.json"])
def test_a_damaged_file_of_a_run_is_written_again(recipe, whole, tmp_path, capsys, name):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for data in DAMAGED:
        (run / name).write_bytes(data)
        assert main(["report", str(run)]) in (0, 2)
        assert train(recipe, run, "--resume") == 0
        assert "damaged" in (message := capsys.readouterr().err)
        assert "not finished" not in message
        assert summary(run)["status"] == "done"
        assert weights(run) == weights(whole)


LINES = [b"", b"{", b"[]\n", b"{}\n", b"\xff\n", b'{"stage": "teacher"}\n', b'{"stage": 3, "step": "a"}\n{"st']


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "samples.jsonl"])
def test_damaged_lines_of_a_log_are_left_out(recipe, trained, tmp_path, name):
    run = tmp_path / "run"
    for data in LINES:
        shutil.copytree(trained["student"], run)
        path = run / name
        path.touch()
        path.write_bytes(data + path.read_bytes() + data)
        assert main(["report", str(run)]) == 0
        shutil.rmtree(run)
    shutil.copytree(trained["student"], run)
    path.touch()
    path.write_bytes(b"".join(LINES) + b"\n" + path.read_bytes() + LINES[-1])
    assert train(recipe, run, "--resume") == 0
    assert files.read_jsonl(path).damaged == []


def test_changed_code_is_refused_until_it_is_accepted_and_then_recorded(recipe, trained, tmp_path, capsys):
    folder, run = tmp_path / "recipe", tmp_path / "run"
    shutil.copytree(recipe.parent, folder)
    shutil.copytree(trained["student"], run)
    (folder / "tasks.py").write_text(COPY_TASKS.replace("word\n", "word[::-1]\n"))
    command = ["train", str(folder / recipe.name), "--output", str(run), "--resume"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "file ./tasks.py: has changed" in message
    assert "--accept-changes" in message
    assert (run / "checkpoints" / "student" / "checkpoint-4").is_dir()  # nothing was touched
    assert main([*command, "--accept-changes"]) == 0
    (change,) = summary(run)["input_changes"]
    assert (change["stage"], change["step"], change["changes"]) == ("student", 5, ["file ./tasks.py: has changed"])
    assert "From update 5 of stage student on with other inputs: file ./tasks.py" in (run / "report.html").read_text()
    assert main(command) == 0  # it has been accepted


def test_a_stage_can_be_made_longer_before_it_is_finished(recipe, whole, trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained["student"], run)
    assert train(recipe, run, "--resume", "stages.student.steps=6", "stages.student.checkpoint_every=1") == 0
    assert "stages.student.steps: 4 → 6" in capsys.readouterr().err
    assert steps(run)[-1] == ("student", 6)
    assert weights(run)[1] != weights(whole)[1]


@pytest.mark.parametrize("data", [None, *DAMAGED])
def test_a_lost_or_damaged_list_of_inputs_needs_consent(recipe, whole, tmp_path, capsys, data):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "recipe.json").write_bytes(data or b"")
    if data is None:
        assert train(recipe, run, "--resume") == 0  # recipe.json alone is written again
        (run / "inputs.json").unlink()
    else:
        (run / "inputs.json").write_bytes(data)
    assert train(recipe, run, "--resume") == 2
    assert "inputs.json" in capsys.readouterr().err
    assert train(recipe, run, "--resume", "--accept-changes") == 0
    assert weights(run) == weights(whole)
