"""A training comes to the same student however processes share it: the table of docs/scaling.md, cell by cell."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from transformers import LlamaForCausalLM

from rld.cli import main
from rld.recipe.registry import files
from rld.trainer import sharding
from rld.trainer.sharding import whole_copy, whole_state_dict
from rld.utils.files import read_jsonl
from tests.support import parity, zero_bf16
from tests.support.processes import run_modules, sharing_environment
from tests.support.runs import written

ROOT = Path(__file__).parents[2]

WAYS = {
    "DDP": ("cpu", "MULTI_CPU", []),
    "FSDP2": ("fsdp2", "FSDP", []),
    "ZeRO-2": ("zero3", "DEEPSPEED", ["--zero_stage", "2"]),
    "ZeRO-3": ("zero3", "DEEPSPEED", []),
}
"""The columns of the table: how processes share a training, as the launcher's file, Accelerate's name, and options."""

FEATURES = {
    "policy": ("grpo", ["loss", "grad_norm", "reward"]),
    "sampling": ("sampled", ["loss", "completions/mean_length", "reward"]),
    "response": ("signals", ["loss/response", "divergence/one", "grad/response"]),
    "feature": ("signals", ["loss/feature", "distance/one", "grad/feature"]),
    "teacher reward": ("signals", ["loss/policy", "grad/policy"]),
    "gate": ("signals", ["teacher/one/used/second", "teacher/two/used/second"]),
    "retention": ("signals", ["loss/reference", "weight/reference"]),
    "LoRA": ("lora", ["loss", "loss/response", "loss/feature", "loss/policy", "loss/reference", "grad_norm"]),
    "resume": ("resumed", ["loss", "learning_rate", "entropy_coef"]),
}
"""The rows: a feature, the training in which it is on, and what is logged of it, which should not be 0 throughout."""

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
ways = [pytest.param(way, marks=needs_deepspeed if "ZeRO" in way else ()) for way in WAYS]


def start(folder: Path, way: str, *options: str, others: Sequence[Path] = (), module: Any = parity) -> None:
    """Run a module in one process, or in two of one of the `WAYS` with other options of its launcher."""
    folder.mkdir()
    written(folder, module.RECIPE)
    is_alone = way == "one process"
    environment = {} if is_alone else sharing_environment(f"accelerate/{WAYS[way][0]}", *WAYS[way][2], *options)
    arguments = [str(folder), *map(str, others)]
    run_modules(module.__name__, arguments, 1 if is_alone else 2, log=folder / "log", environment=environment)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """Returns the folder of the trainings of one way, `one process` included, which are run once."""
    folders: dict[str, Path] = {}

    def of(way: str) -> Path:
        if way not in folders:
            folders[way] = tmp_path_factory.mktemp("parity") / way
            start(folders[way], way, others=[] if way == "one process" else [of("one process")])
        return folders[way]

    return of


def read(folder: Path, training: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The student's weights, and what was logged."""
    return torch.load(folder / f"{training}.pt"), json.loads((folder / f"{training}.json").read_text())


def require_same(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for key, value in weights.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: key + text)


@pytest.mark.parametrize("parts", (1, 4))
@pytest.mark.parametrize("way", ways)
@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_trains_the_same_student(trainings, feature, way, parts):
    training, metrics = FEATURES[feature]
    weights, log = read(trainings(way), f"{training}_{parts}")
    assert log["kind"] == WAYS[way][1]
    expected, expected_log = read(trainings("one process"), f"{training.replace('resumed', 'whole')}_1")
    for metric in metrics:
        values, expected_values = ([update.get(metric, 0.0) for update in of["updates"]] for of in (log, expected_log))
        assert any(values), metric
        assert values == pytest.approx(expected_values, rel=1e-3, abs=1e-6), metric
    require_same(weights, expected)


@pytest.mark.parametrize("way", ways)
def test_a_checkpoint_goes_on_in_another_number_of_processes(trainings, tmp_path, way):
    whole, log = read(trainings("one process"), "whole_1")
    weights, log_of_two = read(trainings(way), "taken over")  # from one process to two
    trainer = parity.resumed(tmp_path, 1, trainings(way) / "whole_1" / "checkpoint-2")  # from two to one
    require_same(weights, whole)
    require_same(whole_state_dict(trainer), whole)
    for updates in (log_of_two["updates"], [line for line in trainer.state.log_history if "loss" in line]):
        for metric in ("step", "learning_rate", "entropy_coef", "loss", "grad_norm", "loss/response", "divergence/one"):
            values, expected = ([update.get(metric, 0.0) for update in of] for of in (updates, log["updates"]))
            assert values == pytest.approx(expected, rel=1e-3, abs=1e-6), metric


@pytest.mark.parametrize("way", ways)
def test_a_run_goes_on_in_another_number_of_processes_if_its_user_accepts_that(trainings, tmp_path, capsys, way):
    """`parity` has resumed in two processes what one process began; here one goes on with what two began."""
    run = tmp_path / "run"
    shutil.copytree(trainings(way) / "stopped", run)
    command = ["train", str(trainings(way) / "small.yaml"), "--output", str(run), "--resume"]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "processes: 2 → 1" in told and "--accept-changes" in told
    assert main([*command, "--accept-changes"]) == 0
    whole = trainings("one process") / "run"
    for resumed in (run, trainings(way) / "resumed"):
        model, expected = (LlamaForCausalLM.from_pretrained(of / "models/teacher") for of in (resumed, whole))
        require_same(model.state_dict(), expected.state_dict())
        logs = [read_jsonl(of / "metrics.jsonl").records for of in (resumed, whole)]
        losses, expected_losses = ([(x["step"], x["loss"]) for x in log if x["stage"] == "teacher"] for log in logs)
        assert [step for step, _ in losses] == [1, 2, 3, 4]
        assert dict(losses) == pytest.approx(dict(expected_losses), rel=1e-3)


@pytest.mark.parametrize("way", ways)
def test_a_checkpoint_is_one_ordinary_folder(trainings, way):
    checkpoint = trainings(way) / "whole_1" / "checkpoint-4"
    assert not [path for path in checkpoint.iterdir() if path.is_dir()]
    model = LlamaForCausalLM.from_pretrained(checkpoint)
    weights, _ = read(trainings(way), "whole_1")
    require_same(model.state_dict(), weights)


@pytest.mark.parametrize("way", ways)
def test_a_recipe_trains_and_stores_the_student_of_ddp(trainings, way):
    run, expected = trainings(way) / "run", trainings("DDP") / "run"
    for stage in ("models/teacher", "student"):
        model, same = (LlamaForCausalLM.from_pretrained(of / stage) for of in (run, expected))
        require_same(model.state_dict(), same.state_dict())
    summary, same = (json.loads((of / "summary.json").read_text()) for of in (run, expected))
    assert summary["launch"]["processes"] == 2
    assert summary["launch"]["strategy"] == {"DDP": "DDP", "FSDP2": "FSDP"}.get(way, "DeepSpeed")
    assert [stage["after"] for stage in summary["stages"]] == [stage["after"] for stage in same["stages"]]


@pytest.mark.parametrize("training", [functools.partial(parity.signals, tied=True), parity.lora])
def test_a_copy_is_made_without_the_models_recipe_and_has_all_of_its_weights(training, tmp_path):
    trainer = training(tmp_path, 1)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    copied = whole_copy(trainer)
    require_same(copied.state_dict(), trained.state_dict())
    head, embedding = copied.get_output_embeddings().weight, copied.get_input_embeddings().weight
    assert (head is embedding) == trained.config.tie_word_embeddings
    ids = torch.tensor([[3, 4, 5]])
    copied.eval(), trained.eval()
    torch.testing.assert_close(copied(ids).logits, trained(ids).logits)


@pytest.mark.parametrize("is_writer", [True, False])
def test_a_state_is_gathered_one_tensor_at_a_time_and_only_its_writer_keeps_it(tmp_path, monkeypatch, is_writer):
    trainer, gathered = parity.signals(tmp_path, 1), list[weakref.ref[torch.Tensor]]()
    state = trainer.accelerator.unwrap_model(trainer.model).state_dict()

    def gather(part: torch.Tensor) -> torch.Tensor:
        assert not [tensor for tensor in gathered if tensor() is not None]
        whole = part.clone()
        gathered.append(weakref.ref(whole))
        return whole

    monkeypatch.setattr(sharding, "whole", gather)
    monkeypatch.setattr(type(trainer.accelerator), "is_main_process", is_writer)
    require_same(whole_state_dict(trainer), state if is_writer else {})
    require_same(whole_state_dict(trainer, everywhere=True), state)
    assert len(gathered) == 2 * len(state)


@needs_deepspeed
@pytest.mark.parametrize("way", ("ZeRO-2", "ZeRO-3"))
def test_zero_in_bf16_loses_no_update_when_it_stores_and_resumes(tmp_path, way):
    folder = tmp_path / "zero"
    start(folder, way, "--mixed_precision", "bf16", module=zero_bf16)
    before, whole, resumed = (torch.load(folder / f"{name}.pt") for name in ("start", "whole", "resumed"))
    stored = LlamaForCausalLM.from_pretrained(folder / "whole" / "checkpoint-4").state_dict()
    for key, value in whole.items():
        assert value.dtype == torch.float32, key
        assert 0 < (value - before[key]).abs().max() < 1e-5, key  # bf16 rounds by more than 1e-5
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=1e-8)
        assert key not in stored or torch.equal(stored[key], value), key
    result = LlamaForCausalLM.from_pretrained(folder / "run" / "student")
    assert any((weight.bfloat16() != weight).any() for weight in result.parameters())


def test_the_page_shows_what_is_tested():
    page = (ROOT / "docs" / "scaling.md").read_text().partition("## What is the same on several processes")[2]
    lines = page.partition("## How to start it")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == ["", *WAYS]
    assert {row[0]: row[1:] for row in rows[2:]} == {feature: ["same"] * len(WAYS) for feature in FEATURES}


@pytest.mark.parametrize("name", files("accelerate"))
def test_accelerate_reads_the_files_for_its_launcher(name):
    path = files("accelerate")[name]
    options = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    options, file, _ = _validate_launch_command(options)
    several = {"cpu": ("MULTI_GPU", 2), "ddp": ("MULTI_GPU", 8), "fsdp2": ("FSDP", 8), "zero3": ("DEEPSPEED", 8)}
    expected = several | {"one_gpu": ("NO", 1)}
    assert (file.distributed_type, options.num_processes) == expected[path.stem]
    assert options.use_cpu == (path.stem == "cpu")
