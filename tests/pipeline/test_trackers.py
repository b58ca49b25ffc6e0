"""What goes to TensorBoard and W&B, by a stand-in for their packages: names, places, and runs that end."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from transformers.integrations import integration_utils

from rld.cli import main
from rld.pipeline.trackers import tracked
from rld.recipe import trainer_options
from rld.reporting.metric_names import LEFT_OUT, METRICS, Metric
from tests.support import tiny
from tests.support.runs import written

PAGE = (Path(__file__).parents[2] / "docs" / "trackers.md").read_text()
RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills: {copy: {generator: "./tasks.py:copy", levels: [{length: 2}], held_out: 2}}
models: {tiny: {new: llama, config: {hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1}}}
stages:
  - {name: teacher, kind: sft, student: tiny, steps: 2, batch: 2, checkpoint_every: 1}
  - name: student
    kind: distill
    student: tiny
    teachers: {teacher: {model: teacher, probe_prompts: 2}}
    signals: {policy: {}, response: {}, gold: null}
    rollout: {prompts: 2, completions: 2}
    steps: 3
    evaluate_every: 2
"""  # noqa: E501 - one line is one key
AT_THE_END = {"train_runtime", "train_loss", "total_flos", "train_samples_per_second", "train_steps_per_second"}
OTHER_NAMES = {"stage", "step", "seconds", "flops", "loss/sft", "reward/exact_match"}
"""Metrics of the log that have another name there, or none, as the page says."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[Path, dict[str, dict[int, float]]]:
    """What TensorBoard gets: by folder and name, the value at each step."""
    folders: dict[Path, dict[str, dict[int, float]]] = {}

    class Writer:
        def __init__(self, log_dir: str) -> None:
            Path(log_dir).mkdir(parents=True, exist_ok=True)
            self.values = folders.setdefault(Path(log_dir), {})

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.values.setdefault(name, {})[step] = value

        def add_text(self, *_: Any) -> None: ...

        flush = close = lambda self: None

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setitem(trainer_options._LOGGERS, "tensorboard", ("torch",))
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    return folders


def test_a_run_sends_what_the_page_says_to_a_folder_that_stays(
    tmp_path: Path, sent: dict[Path, dict[str, dict[int, float]]]
) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    recipe, run = written(tmp_path, RECIPE + block), tmp_path / "run"
    old = run / "tensorboard" / "teacher" / "old"
    assert main(["train", str(recipe), "--output", str(run)]) == 0
    assert list(sent) == [run / "tensorboard" / name for name in ("teacher", "student")]
    assert all(folder.is_dir() for folder in sent)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row.split("|")[1] for row in PAGE.splitlines() if row.startswith("| `")]
    other_names = {name for row in rows for name in re.findall("`train/(.*?)`", row)}
    patterns = [*(metric.pattern for metric in METRICS), *(name for names in LEFT_OUT.values() for name in names)]
    metrics = [Metric(pattern, "", "") for pattern in [*patterns, *other_names, *AT_THE_END]]
    for stage in ("teacher", "student"):
        values = sent[run / "tensorboard" / stage]
        names = {name.removeprefix("train/") for name in values}
        assert [name for name in names if all(metric.match(name) is None for metric in metrics)] == []
        for line in lines:
            if line["stage"] == stage:
                there = {f"train/{name}": value for name, value in line.items() if name not in OTHER_NAMES}
                assert {name: values[name].get(line["step"]) for name in there} == there
    student = sent[run / "tensorboard" / "student"]
    assert student["train/score/copy"].keys() == {2} and "train/rewards/exact_match/mean" in student
    old.write_text("of a try that did not end")
    (run / "models" / "teacher" / "model.safetensors").unlink()
    assert main(["train", str(recipe), "--output", str(run), "--resume"]) == 0
    assert not old.exists()  # the stage began anew


def test_the_pages_script_sends_to_its_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: dict[Path, dict[str, dict[int, float]]]
) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(re.findall(r'"HuggingFaceTB/([^"]+)"', script)):
        tiny.model(seed=i).save_pretrained(name)
        tiny.tokenizer().save_pretrained(name)
    extra = "max_steps=1, logging_steps=1, num_generations=2, per_device_train_batch_size=4, "
    extra += "max_completion_length=4, use_cpu=True"
    script = script.replace('"HuggingFaceTB/', '"./').replace('"student",', f'"student", bf16=False, {extra},')
    exec(script, {"dataset": tiny.rows(), "correct": tiny.letters})
    ((folder, values),) = sent.items()
    assert folder.parts[:2] == ("student", "runs") and {"train/loss", "train/flops"} <= values.keys()


def test_a_stage_ends_its_run_of_wandb_also_where_it_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the next stage would send its updates to the same run, from step 1 on again."""
    ended = []

    def finish(exit_code: int) -> None:
        ended.append(exit_code)
        raise ConnectionError("no network")

    module = types.ModuleType("wandb")
    module.finish = finish  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    callback = object.__new__(integration_utils.WandbCallback)
    handler = types.SimpleNamespace(callbacks=[callback])
    trainer: Any = types.SimpleNamespace(callback_handler=handler, is_world_process_zero=lambda: True)
    with pytest.raises(KeyboardInterrupt), tracked(trainer, tmp_path, is_new=True):
        raise KeyboardInterrupt
    assert ended == [1]
    with tracked(trainer, tmp_path, is_new=True):
        pass
    assert ended == [1, 0]
    assert capsys.readouterr().err.count("W&B could not be ended: ConnectionError: no network") == 2
    handler.callbacks.clear()
    with tracked(trainer, tmp_path, is_new=True):
        pass
    assert ended == [1, 0]
