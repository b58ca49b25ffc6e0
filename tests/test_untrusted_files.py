"""Files that somebody else has written run no code: weights, checkpoints, models with code of their own, recipes."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rld.errors import ModelError
from rld.models.loading import load_model, load_tokenizer
from rld.utils.manifest import write_manifest
from tests.support import parity, tiny
from tests.support.processes import run_modules, sharing_environment
from tests.support.resumed_in_rollout import four_updates

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*(ROOT / "rld").rglob("*.py"), *(ROOT / "rewards").glob("*.py"), *(ROOT / "curricula").glob("*.py")]

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")


class Hostile:
    """Makes a folder where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def plant(path: Path, mark: Path) -> None:
    """Write a file, as PyTorch writes its own, that makes the folder `mark` where it is unpickled without care."""
    torch.save({"state": Hostile(mark)}, path)
    torch.load(path, weights_only=False)
    mark.rmdir()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("trained") / "run"
    four_updates(folder).train()
    return folder / "checkpoint-3"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "rld_rollout_0.pt"])
def test_no_file_of_a_checkpoint_runs_code(checkpoint: Path, tmp_path: Path, name: str) -> None:
    path, mark = checkpoint / name, tmp_path / "mark"
    sound = path.read_bytes()
    plant(path, mark)
    write_manifest(checkpoint)
    try:
        with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
            four_updates(tmp_path / "run").train(resume_from_checkpoint=str(checkpoint))
    finally:
        path.write_bytes(sound)
        write_manifest(checkpoint)
    assert not mark.exists()


@pytest.mark.parametrize("way", ["fsdp2", pytest.param("zero3", marks=needs_deepspeed)])
def test_no_file_of_a_checkpoint_runs_code_where_processes_share_the_student(tmp_path: Path, way: str) -> None:
    parity.resumable(tmp_path / "run", 1).train()
    mark, hostile = tmp_path / "mark", list[str]()
    for name in ("optimizer.pt", "scheduler.pt"):
        checkpoint = tmp_path / name / "checkpoint-2"
        shutil.copytree(tmp_path / "run" / "checkpoint-2", checkpoint)
        plant(checkpoint / name, mark)
        write_manifest(checkpoint)
        hostile.append(str(checkpoint))
    environment = sharing_environment(f"accelerate/{way}")
    arguments = [str(tmp_path / "shared"), *hostile]
    run_modules("tests.support.hostile_resume", arguments, 2, log=tmp_path / "log", environment=environment)
    assert not mark.exists()


def test_weights_that_are_pickled_run_no_code(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path / "model")
    next((tmp_path / "model").glob("*.safetensors")).unlink()
    plant(tmp_path / "model" / "pytorch_model.bin", tmp_path / "mark")
    with pytest.raises(ModelError, match="holds more than weights, which could run code, and is refused; use safetens"):
        load_model(str(tmp_path / "model"), {})
    assert not (tmp_path / "mark").exists()


UNSAFE = r"\b(pickle\.load|Unpickler|joblib|np\.load|numpy\.load|yaml\.load|marshal|shelve|dill)\b"


def test_what_is_pickled_is_read_as_weights_alone() -> None:
    texts = {path: path.read_text() for path in SOURCES}
    loads = [call for text in texts.values() for call in re.findall(r"torch\.load\([^\n]*\n?[^\n]*", text)]
    assert len(loads) >= 2 and all("weights_only=True" in call for call in loads)
    assert [path for path, text in texts.items() if re.search(UNSAFE, text)] == []
    own = [path.name for path, text in texts.items() if "pickle.loads(" in text]
    assert own == ["stored.py"]  # of a temporary file without a name, which the process has written


CODE = """
import os
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
os.makedirs({mark!r}, exist_ok=True)
class C(LlamaConfig):
    model_type = "own"
class M(LlamaForCausalLM):
    config_class = C
class T(PreTrainedTokenizerFast):
    pass
"""


def with_code(folder: Path) -> Path:
    """Return a folder with a model whose code makes the folder `mark` beside it."""
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    own = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    for name, changes in (
        ("config.json", {"model_type": "own", "auto_map": own}),
        ("tokenizer_config.json", {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["code.T", "code.T"]}}),
    ):
        path = folder / "model" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (folder / "model" / "code.py").write_text(CODE.format(mark=str(folder / "mark")))
    return folder / "model"


def test_code_beside_weights_runs_only_for_the_model_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "cache"))
    trusted, other = (with_code(tmp_path / name) for name in ("trusted", "other"))
    assert load_model(str(trusted), {"trust_remote_code": True}).num_parameters()
    assert (trusted.parent / "mark").exists()
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match="set trust_remote_code: true"):
            load(str(other), {})
        assert not (other.parent / "mark").exists()


RECIPE = """
name: small
skills: {{copy: {{generator: "{generator}", held_out: 2}}}}
models: {{small: {{new: llama, config: {{hidden_size: 16, num_attention_heads: 2}}}}}}
tokenizer: {{characters: "abc="}}
max_new_tokens: 4
stages: [{{name: warm, kind: sft, student: small, steps: 1, batch: 2}}]
"""
OTHERS = "import pathlib\npathlib.Path('mark').mkdir()\n"
OWN = "def copy(rng):\n    word = rng.choice('abc') + rng.choice('abc')\n    return word + '=', word\n"


def test_no_code_of_a_recipes_folder_runs_but_what_the_recipe_names_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    for name in ("other.py", "yaml.py", "torch.py", "json.py", "conftest.py", "sitecustomize.py"):
        (tmp_path / name).write_text(OTHERS + OWN)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-m", "rld", "check", "small.yaml"]  # as the command `rld` does
    for generator, code in (("./own.py:copy", 0), ("other:copy", 2)):
        (tmp_path / "small.yaml").write_text(RECIPE.format(generator=generator))
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert process.returncode == code, process.stderr
        assert not (tmp_path / "mark").exists()


def test_every_promise_names_tests_that_exist() -> None:
    promised = (ROOT / "SECURITY.md").read_text().partition("## What is promised")[2].partition("\n## ")[0]
    for promise in re.findall(r"^- (.*?)(?=^- |^$)", promised, re.MULTILINE | re.DOTALL):
        assert "::" in promise, promise
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promised)
    assert len(named) > 20
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / file).read_text(), (file, test)
