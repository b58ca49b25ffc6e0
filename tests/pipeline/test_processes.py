"""A run in two processes gives the models, scores and endings of a run in one: packed text, rules of ending, a target,
labels, levels by a teacher's loss, sampled scores, and lm-eval where it is installed. It goes on without a teacher that
does not answer one of the two.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rld.errors import TeacherDown
from rld.models.logprob_source import LogprobSource, ScoredSequence, SourceInfo, TopKLogprobs
from rld.pipeline import stopping, teacher_loading
from rld.pipeline.launch import process_timeout
from rld.recipe.reading import read_recipe
from rld.types import Answer
from rld.utils import files
from tests.support.lm_eval_task import write_lm_eval_task
from tests.support.processes import exit_codes, free_port, rank_environment, started, train_quietly
from tests.support.runs import one_thread, written

__all__ = ["one_thread"]

RECIPE = """
name: two
tokenizer: {characters: "abcdefgh:="}
max_new_tokens: 4
skills:
  prose: {file: ./texts.jsonl, kind: plain_text, block: 32, held_out: 2}
  copy:
    generator: ./tasks.py:copy
    levels: [{length: 1}, {length: 2}]
    held_out: 4
    scores: [pass_at_2]
    samples: {count: 12}
  swap: {file: ./swap.jsonl, held_out: 2}
  topics:
    kind: labelled
    file: ./news.csv
    labels: {A: ef, B: g, C: gh}
    held_out: 3
    prompts: {template: "{question}:"}
models:
  tiny: {new: llama, config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}
trainer: {learning_rate: 1e-1, lr_scheduler_type: constant, optim: sgd}
EVALUATION
stages:
  - {name: texts, kind: sft, student: tiny, skills: [prose], steps: 20, batch: 4, stop: {max_tokens: 500}}
  - name: teacher
    kind: sft
    student: tiny
    skills: [copy, swap]
    steps: 60
    batch: 8
    evaluate_every: 20
    stop: {plateau: {scorings: 1, gain: 1}}
    trainer: {learning_rate: 1}
  - name: ordered
    kind: distill
    student: tiny
    skills: [swap]
    teachers: &taught {teacher: {model: teacher, probe_prompts: 2}}
    gate: "off"
    controller: {kind: fixed}
    signals: &response {response: {divergence: {kind: forward_kl}}}
    curriculum: {use: competence:SquareRoot, options: {attempts: 8, start: 0.2}, levels_by: teacher_loss}
    rollout: &gold {prompts: 4, completions: 1, gold_completions: 1}
    steps: 9
    evaluate_every: 2
    stop: {score: {swap: 0}}
  - name: labels
    kind: distill
    student: tiny
    skills: [topics]
    teachers: *taught
    signals: {response: {divergence: {kind: forward_kl}}, gold: {weight: 0.5}}
    rollout: {prompts: 4, completions: labels}
    steps: 9
    stop: {max_flops: 6e6}
  - name: targeted
    kind: distill
    student: tiny
    skills: [copy, swap]
    target: [copy]
    teachers: *taught
    gate: "off"
    signals: *response
    controller: {kind: gap, decide_every: 2}
    rollout: *gold
    steps: 40
    stop: {max_seconds: 4}
  - name: better
    kind: distill
    student: teacher
    skills: [copy]
    teachers: {old: {model: tiny, probe_prompts: 2}}
    gate: "off"
    controller: {kind: fixed}
    signals: {response: {}, gold: {}}
    rollout: *gold
    steps: 5
    evaluate_every: 1
    stop: {teacher_surpassed: true}
"""


def recipe(folder: Path) -> Path:
    """A recipe with rows of every kind, and a task of lm-eval where it is installed."""
    rng = random.Random(0)
    texts = ("".join(rng.choices("abcd:=", k=rng.randint(5, 70))) for _ in range(24))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    swaps = ({"question": f"b:{one}{other}=", "answer": other + one} for one in "abcd" for other in "abcd")
    (folder / "swap.jsonl").write_text("".join(json.dumps(swap) + "\n" for swap in swaps))
    with (folder / "news.csv").open("w", newline="") as file:
        rows = [("".join(rng.choices("abcd", k=8)), ("A", "B", "C", "")[i % 4]) for i in range(200)]
        csv.writer(file).writerows([("question", "answer"), *rows])
    evaluation = ""
    if importlib.util.find_spec("lm_eval") is not None:
        evaluation = "evaluation: [{kind: held_out}, {kind: lm_eval, tasks: [own], include_path: ./mine}]"
        write_lm_eval_task(folder)
    return written(folder, RECIPE.replace("EVALUATION", evaluation))


def train(rank: int, number: int, port: int, arguments: list[str], log: Path) -> None:
    """Run in a process of its own, whose clock goes by a second in each step, and that of the second process by two."""
    seconds, clock = rank + 1, [0.0]
    begin = stopping.Stopping.on_optimizer_step

    def tick(self: Any, *args: Any, **options: Any) -> None:
        clock[0] += seconds
        begin(self, *args, **options)

    stopping.Stopping.on_optimizer_step, stopping.time.monotonic = tick, lambda: clock[0]
    environment = {"CUDA_VISIBLE_DEVICES": "", "HF_DATASETS_CACHE": str(log.parent / "cache")}
    train_quietly(arguments, log, environment | rank_environment(rank, number, port))


def run(folder: Path, number: int) -> Path:
    port, output, logs = free_port(), folder / str(number), [folder / f"{number}_{rank}.log" for rank in range(number)]
    arguments = [str(folder / "small.yaml"), "--output", str(output)]
    processes = started(train, [(i, number, port, arguments, log) for i, log in enumerate(logs)])
    assert exit_codes(processes, 240.0) == [0] * number, logs[0].read_text()[-3000:]
    return output


def weights(run: Path) -> dict[str, torch.Tensor]:
    paths = {
        path.parent.name: path for path in [*run.glob("models/*/*.safetensors"), *run.glob("student/*.safetensors")]
    }
    return {f"{name}.{key}": x for name, path in paths.items() for key, x in load_file(path).items()}


@pytest.mark.skipif(not torch.distributed.is_available(), reason="processes cannot be connected")
def test_two_processes_come_to_the_models_scores_and_endings_of_one(tmp_path):
    recipe(tmp_path)
    one, two = run(tmp_path, 1), run(tmp_path, 2)
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-4, atol=1e-6)
    stages = [files.read_json(path / "summary.json")["stages"] for path in (one, two)]
    endings = [[(stage["ending"]["rule"], stage["steps"]) for stage in of_run] for of_run in stages]
    assert endings[0] == endings[1]
    rules = ["max_tokens", "plateau", "score", "max_flops", "max_seconds", "teacher_surpassed"]
    assert [rule for rule, _ in endings[0]] == rules
    for first, second in zip(*stages, strict=True):
        assert second["after"] == pytest.approx(first["after"], rel=1e-5)
        if first["name"] in ("texts", "teacher", "labels"):  # elsewhere prompts repeat, and each process reads its own
            assert second["flops"] == first["flops"]
    assert 0 < stages[0][1]["after"]["copy"] < 1, "some samples pass"
    order = [
        [x for x in files.read_jsonl(path / "events.jsonl").records if x["kind"] == "difficulty"] for path in (one, two)
    ]
    assert len(order[0]) == 1 and order[0] == order[1]
    transfer = [
        [line["transfer/swap"] for line in files.read_jsonl(path / "metrics.jsonl").records if "transfer/swap" in line]
        for path in (one, two)
    ]
    assert len(transfer[0]) == 2 and transfer[1] == pytest.approx(transfer[0], rel=1e-4)


SERVED = """
name: served
tokenizer: {characters: "abcdefgh:="}
max_new_tokens: 4
skills:
  prose: {file: ./texts.jsonl, kind: plain_text, block: 32, held_out: 2}
  swap: {file: ./swap.jsonl, held_out: 2}
  topics: {kind: labelled, file: ./news.csv, labels: {A: ef, B: g, C: gh}, held_out: 2}
models:
  tiny: {new: llama, config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}
stages:
  - name: student
    kind: distill
    student: tiny
    skills: [swap]
    teachers:
      TEACHERS
      near: {model: tiny, probe_prompts: 2}
    signals: {response: {}}
    curriculum: {use: competence:SquareRoot, options: {attempts: 8, start: 1}, levels_by: teacher_loss}
    rollout: {prompts: 4, completions: 1, gold_completions: 1}
    steps: 2
"""

NUM_CALLS = 8
"""Calls of a process to a teacher: to connect it; for texts, an answer and a label that are held out; for the answer of
a probe; for levels; and for the gate in each of two updates."""


class GoingDown(LogprobSource):
    """Answers anything, but for its n-th call on one of the two processes."""

    def __init__(self, name: str) -> None:
        self.name, self._calls = name, 0
        self._down_at = int(name.removeprefix("down_")) if int(os.environ["RANK"]) == int(name[-1]) % 2 else None

    def _count(self) -> None:
        self._calls += 1
        if self._down_at == self._calls:
            raise TeacherDown(f"teacher '{self.name}': no answer")

    def connect(self, student: Any) -> None:
        group: Any = torch.distributed.group.WORLD
        timeout = group._get_backend(torch.device("cpu")).options._timeout
        assert timeout.total_seconds() == 1800 + NUM_CALLS * (4 * 300 + 60), "each server may use up its limits"
        self._count()
        self._num_tokens = len(student)

    def info(self) -> SourceInfo:
        return SourceInfo(self.name, frozenset([1]), 0)

    def generate(self, prompts: Sequence[list[int]], *_: Any) -> list[Answer]:
        self._count()
        return [Answer("ab", True) for _ in prompts]

    def score(self, sequences: Sequence[ScoredSequence], temperature: float) -> list[TopKLogprobs]:
        self._count()
        uniform = torch.zeros(self._num_tokens).log_softmax(-1)
        return [
            TopKLogprobs.of(uniform.expand(num, -1), torch.tensor(ids[-num:]), 4) for ids, num in map(tuple, sequences)
        ]


def train_with_failures(rank: int, port: int, arguments: list[str], log: Path) -> None:
    teacher_loading.remote_teacher = lambda url, name, *_, **__: GoingDown(name)  # type: ignore[assignment]
    train_quietly(arguments, log, {"CUDA_VISIBLE_DEVICES": "", **rank_environment(rank, 2, port)})


def test_a_teacher_that_does_not_answer_one_of_two_processes_is_dropped_on_both(tmp_path):
    recipe(tmp_path)
    names = [f"down_{call}" for call in range(1, NUM_CALLS + 1)]
    served = (f"{name}: {{url: 'http://127.0.0.1:9', optional: true, probe_prompts: 2}}" for name in names)
    written(tmp_path, SERVED.replace("TEACHERS", "\n      ".join(served)))
    arguments, port = [str(tmp_path / "small.yaml"), "--output", str(tmp_path / "run")], free_port()
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    processes = started(train_with_failures, [(rank, port, arguments, log) for rank, log in enumerate(logs)])
    assert exit_codes(processes, 240.0) == [0, 0], "".join(log.read_text()[-3000:] for log in logs)
    events = files.read_jsonl(tmp_path / "run" / "events.jsonl").records
    assert [event["about"] for event in events if event["kind"] == "teacher dropped"] == names


OWN_ORDER = """
name: own-order
tokenizer: {characters: "abcd:="}
max_new_tokens: 3
skills: {copy: {generator: ./own.py:copy}}
models:
  tiny: {new: llama, config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}
stages: [{name: teacher, kind: sft, student: tiny, steps: 1, batch: 4}]
"""

OWN = """
import os

def copy(rng):  # stands for one that goes through a set of texts
    word = "".join(rng.choices("abcd"[:: 1 - 2 * int(os.environ["RANK"])], k=2))
    return f"{rng.choice('abcd')}{rng.choice('abcd')}{word}=", word
"""


def test_a_generator_whose_rows_differ_between_processes_is_refused_before_anything_trains(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    arguments, port = [str(written(tmp_path, OWN_ORDER)), "--output", str(tmp_path / "run")], free_port()
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    environments = [{"CUDA_VISIBLE_DEVICES": "", **rank_environment(rank, 2, port)} for rank in range(2)]
    processes = started(train_quietly, [(arguments, *pair) for pair in zip(logs, environments, strict=True)])
    assert exit_codes(processes, 240.0) == [2, 2], "".join(log.read_text()[-3000:] for log in logs)
    assert "skill 'copy': processes have drawn different rows" in logs[0].read_text()
    assert not (tmp_path / "run" / "models").exists()


def test_processes_wait_for_one_another_as_long_as_the_recipe_says(tmp_path):
    path = recipe(tmp_path)
    assert process_timeout(read_recipe(path)).total_seconds() == 1800, "no stage has a server"
    overrides = ["trainer.ddp_timeout=77", "stages.labels.trainer.ddp_timeout=99"]
    assert process_timeout(read_recipe(path, overrides)).total_seconds() == 99
