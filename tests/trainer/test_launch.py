"""What a training runs on is told, and a strategy that it does not get is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from rld.cli import main
from rld.errors import LaunchError
from rld.trainer import launch
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.support import tiny
from tests.support.processes import sharing_environment

ROOT = Path(__file__).parents[2]
RECIPE = """
name: short
tokenizer: {characters: "ab="}
max_new_tokens: 4
skills: {copy: {file: ./rows.csv, held_out: 2}}
models: {tiny: {new: llama, config: {hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1}}}
stages: [{name: only, kind: sft, student: tiny, steps: 1, batch: 2}]
"""  # noqa: E501 - one line is one key


@pytest.fixture(autouse=True)
def same_environment():
    """transformers writes variables of Accelerate when its arguments are built."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def recipe(tmp_path) -> Path:
    rows = [f"{word}=,{word}" for word in ("aa", "ab", "ba", "bb", "aab", "abb")]
    (tmp_path / "rows.csv").write_text("\n".join(["question,answer", *rows]))
    (tmp_path / "short.yaml").write_text(RECIPE)
    return tmp_path / "short.yaml"


def test_accelerate_on_a_cpu_starts_one_process_and_the_run_says_so(recipe, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "rld"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(
        [*command, "train", str(recipe), "--output", str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[0] == "short: 1 process on cpu, no mixed precision"
    assert "2 processes were asked for, and 1 runs" in process.stderr
    record = json.loads((tmp_path / "run/summary.json").read_text())["launch"]
    assert (record["processes"], record["strategy"], record["device"]) == (1, "one process", "cpu")
    page = (tmp_path / "run/report.html").read_text()
    assert "1 process on cpu, no mixed precision" in page and "2 processes were asked for" in page


@pytest.mark.skipif(launch.torch.cuda.is_available(), reason="a GPU can have what a CPU cannot")
@pytest.mark.parametrize(
    ("variables", "overrides", "expected"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, [], "ACCELERATE_USE_FSDP asks for FSDP, and on cpu"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, [], "asks for Megatron-LM"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, [], "DeepSpeed"),
        ({}, ["trainer.fp16=true"], "fp16 is asked for, and on a CPU"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, [], "fp16 is asked for, and on a CPU"),
        ({}, ["trainer.fsdp=full_shard"], "fsdp in the trainer's arguments asks for FSDP"),
        ({}, ["trainer.deepspeed={folder}/zero.json"], "deepspeed in the trainer's arguments asks for DeepSpeed"),
    ],
)
def test_a_strategy_that_the_run_would_not_get_is_refused(
    recipe, tmp_path, monkeypatch, capsys, variables, overrides, expected
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    overrides = [override.format(folder=tmp_path) for override in overrides]
    assert main(["train", str(recipe), *overrides, "--output", str(tmp_path / "run")]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_configuration_file_counts_though_accelerate_ignores_it(tmp_path):
    (tmp_path / "fsdp.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_processes: 4\nuse_cpu: true\n"
        "fsdp_config: {fsdp_version: 2}\n"
    )
    words = ["python", "/usr/bin/accelerate", "launch", "--cpu", "--config_file", str(tmp_path / "fsdp.yaml"), "x.py"]
    arguments = launch._accelerate_command([["bash"], words])
    options = launch._with_file(launch._parsed(arguments))
    assert (options.num_processes, options.use_fsdp) == (4, True)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(LaunchError, match="3 processes were started on this machine, which has 2 GPUs"):
        launch.require_possible(launch.read_request())


@pytest.mark.parametrize(
    ("file", "options", "expected"),
    [
        ("fsdp2", {"fsdp_version": "1", "fsdp_sync_module_states": "false"}, "fsdp_version: 1"),
        ("fsdp2", {"fsdp_cpu_ram_efficient_loading": "true"}, "fsdp_cpu_ram_efficient_loading"),
        ("fsdp2", {"fsdp_offload_params": "true"}, "fsdp_offload_params"),
        ("fsdp2", {"mixed_precision": "fp16"}, "fp16: its scaled gradients"),
        ("fsdp2", {}, None),
        ("zero3", {"zero_stage": "0"}, "zero_stage: 0"),
        ("zero3", {"mixed_precision": "fp16"}, "fp16: its scaled gradients"),
        ("zero3", {"zero3_init_flag": "true"}, "zero3_init_flag"),
        ("zero3", {"zero_stage": "1"}, None),
    ],
)
def test_options_of_the_launcher_that_would_train_another_student_are_refused(
    tmp_path, monkeypatch, file, options, expected
):
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    for name, value in sharing_environment(f"accelerate/{file}", *words).items():
        monkeypatch.setenv(name, value)
    if file == "zero3":
        pytest.importorskip("deepspeed")
    arguments = RLDConfig(**tiny.rld_options(tmp_path))
    with nullcontext() if expected is None else pytest.raises(LaunchError, match=expected):
        launch.require_supported(arguments)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"optimizer": {}}, "optimizer: the .* is the trainer's here"),
        ({"scheduler": {}}, "scheduler: the .* is the trainer's here"),
        ({"fp16": {"enabled": True}}, "fp16: its scaled gradients .* use bf16"),
        ({"fp16": {"enabled": False}}, None),
    ],
)
def test_a_file_of_deepspeed_that_would_train_in_another_way_is_refused(config, expected):
    plugin = SimpleNamespace(zero3_init_flag=False, deepspeed_config={"zero_optimization": {"stage": 2}, **config})
    arguments = SimpleNamespace(fsdp_plugin_args=None, deepspeed_plugin=plugin, mixed_precision="no")
    with nullcontext() if expected is None else pytest.raises(LaunchError, match=expected):
        launch.require_supported(arguments)


@pytest.mark.skipif(launch.torch.cuda.is_available(), reason="a GPU can have what a CPU cannot")
def test_a_script_with_a_trainer_is_refused_too(tmp_path):
    args = RLDConfig(**tiny.rld_options(tmp_path, fsdp="full_shard"))
    with pytest.raises(LaunchError, match="fsdp in the trainer's arguments"):
        RLDTrainer(tiny.model(), tiny.letters, args, tiny.rows(), processing_class=tiny.tokenizer())
