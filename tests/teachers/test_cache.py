"""Teachers' scores of gold answers on disk: computed once, refused when stale, and worth the same."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

import tests.support.tiny as tiny
from rld.cli import main
from rld.errors import CacheError, TeacherError
from rld.losses.features import Cosine
from rld.models.logprob_source import ScoredSequence, TopKLogprobs
from rld.models.prompting import PromptEncoder
from rld.recipe.stages.distill import Distill
from rld.teachers.cache import CachedLogprobs
from rld.teachers.ensemble import TeacherEnsemble, TeacherReading
from rld.teachers.local import LocalLogprobs
from rld.teachers.slot_base import StudentInterface
from rld.teachers.teacher import Teacher
from rld.teachers.wire_format import pack_logprobs, unpack_logprobs

PASSAGES = [ScoredSequence([5 + (3 * i + j) % 10 for j in range(4 + i % 5)], 1 + i % 3) for i in range(24)]
STUDENT = tiny.tokenizer()
CPU = torch.device("cpu")


class Counted(LocalLogprobs):
    """Counts the sequences that it is run on."""

    num = 0

    def score(self, sequences: Sequence[ScoredSequence], *options: Any, **more: Any) -> list[TopKLogprobs]:
        self.num += len(sequences)
        return super().score(sequences, *options, **more)


def cached(folder: Path, seed: int = 1, top_k: int = 4) -> tuple[CachedLogprobs, Counted]:
    source = Counted(Teacher(tiny.model(seed=seed), "t", tokenizer=STUDENT), torch.device("cpu"), top_k)
    made = CachedLogprobs(source, folder, top_k)
    made.connect(STUDENT)
    return made, source


def test_what_was_scored_is_not_scored_again(tmp_path):
    first, run = cached(tmp_path)
    scores = first.score([*PASSAGES, *PASSAGES[:3]], 0.7)
    assert run.num == 24
    assert first.take_cached_tokens() == sum(len(sequence.ids) for sequence in PASSAGES[:3])
    second, run_again = cached(tmp_path)
    for there, here, fresh in zip(second.score(PASSAGES, 0.7), scores, run.score(PASSAGES, 0.7), strict=False):
        assert all(torch.equal(a, b) for a, b in zip(there.tensors(), here.tensors(), strict=True))
        assert torch.equal(there.ids, fresh.ids)
        torch.testing.assert_close(there.log_p.float(), fresh.log_p, rtol=2**-11, atol=0)
        torch.testing.assert_close(there.sampled, fresh.sampled)
    assert run_again.num == 0
    assert second.take_cached_tokens() == sum(len(sequence.ids) for sequence in PASSAGES)
    second.score([*PASSAGES, ScoredSequence([5, 5, 5], 1)], 0.7)
    assert run_again.num == 1  # only the new one
    second.score(PASSAGES[:2], 1.0)
    assert run_again.num == 3  # another temperature is another score


def test_missing_shards_are_filled_and_broken_or_stale_ones_refused(tmp_path):
    made, _ = cached(tmp_path)
    made.score(PASSAGES[:10], 1.0)
    made.score(PASSAGES[10:], 1.0)
    one, two = sorted(tmp_path.glob("*.safetensors"))
    data = one.read_bytes()
    one.unlink()
    again, run = cached(tmp_path)
    again.score(PASSAGES, 1.0)
    assert run.num in (10, 14)
    assert one.read_bytes() == data
    one.write_bytes(data[:-7])
    with pytest.raises(CacheError, match=f"{one.name} is damaged, or was cut short; delete it"):
        cached(tmp_path)
    one.write_bytes(data)
    with pytest.raises(
        CacheError, match=r"is stale: it was written with teacher .*; delete it, or name another folder"
    ):
        cached(tmp_path, seed=2)
    with pytest.raises(CacheError, match="top_k 4, now 5"):
        cached(tmp_path, top_k=5)
    assert two.exists()


def test_shards_of_another_teacher_are_refused_wherever_they_come_from(tmp_path):
    for i, options in enumerate(({}, {"seed": 2}, {"top_k": 5})):
        cached(tmp_path / str(i), **options)[0].score(PASSAGES[:2], 1.0)
    (theirs,) = (tmp_path / "1").glob("*.safetensors")
    shutil.copy(theirs, tmp_path / "0")
    with pytest.raises(CacheError, match=f"{theirs.name} is stale: it was written with teacher"):
        cached(tmp_path / "0")
    (tmp_path / "2" / "manifest.json").unlink()
    with pytest.raises(CacheError, match="is stale: it was written with top_k 5, now 4"):
        cached(tmp_path / "2")
    assert not (tmp_path / "2" / "manifest.json").exists()
    _, run = cached(tmp_path / "1", seed=2)
    assert run.num == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda entries: [[[key], size] for key, size in entries], "is no shard of a cache: unhashable"),
        (lambda entries: [["a", -1], ["b", 1 + sum(size for _, size in entries)]], "its entries do not add up"),
        (lambda entries: [[key, str(size)] for key, size in entries], "its entries do not add up"),
        (lambda entries: entries[:-1], "its entries do not add up"),
        (lambda entries: [[key, size] for key, (_, size) in zip("ab", entries, strict=True)], None),
        (lambda entries: [[entries[0][0], entries[1][1]], [entries[1][0], entries[0][1]]], "not those of its keys"),
    ],
)
def test_a_shard_whose_entries_are_made_up_is_refused(tmp_path, change, reason):
    cached(tmp_path)[0].score(PASSAGES[:2], 1.0)
    (path,) = tmp_path.glob("*.safetensors")
    logprobs, metadata = unpack_logprobs(path.read_bytes())
    content = json.loads(metadata["shard"])
    data = pack_logprobs(logprobs, {"shard": json.dumps(content | {"entries": change(content["entries"])})})
    path.unlink()
    (tmp_path / f"{hashlib.sha256(data).hexdigest()[:24]}.safetensors").write_bytes(data)
    with pytest.raises(CacheError, match=reason) if reason else contextlib.nullcontext():
        cached(tmp_path)[0].score(PASSAGES[:2], 1.0)


def test_a_shard_with_other_numbers_of_tokens_than_those_beside_it_is_refused(tmp_path):
    made, _ = cached(tmp_path)
    made.score(PASSAGES[:2], 1.0)
    (path,) = tmp_path.glob("*.safetensors")
    logprobs, metadata = unpack_logprobs(path.read_bytes())
    fewer = TopKLogprobs(logprobs.ids[:, 1:], logprobs.log_p[:, 1:], logprobs.tail, logprobs.sampled)
    data = pack_logprobs(fewer, metadata)
    (tmp_path / f"{hashlib.sha256(data).hexdigest()[:24]}.safetensors").write_bytes(data)
    with pytest.raises(CacheError, match="has other numbers of tokens or states than the cache"):
        cached(tmp_path)


@pytest.mark.parametrize("content", ["", '{"version": "2", ', "[1]"])
def test_a_manifest_that_was_cut_short_is_the_users_to_delete(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CacheError, match=r"manifest\.json is .*; delete it"):
        cached(tmp_path)


def test_another_configuration_is_another_teacher_and_another_copy_is_not(tmp_path):
    def fingerprint(model: Any) -> str:
        return Teacher(model, "t", tokenizer=STUDENT).fingerprint()

    model, other = tiny.model(seed=1), tiny.model(seed=1)
    other.config.rope_parameters = {**other.config.rope_parameters, "rope_theta": 500.0}
    assert fingerprint(other) != fingerprint(model)
    model.save_pretrained(tmp_path)
    assert fingerprint(type(model).from_pretrained(tmp_path)) == fingerprint(model)


def test_an_adapter_that_is_scaled_otherwise_is_another_teacher(tmp_path):
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["q_proj"])
    get_peft_model(tiny.model(seed=1), config).save_pretrained(tmp_path)

    def fingerprint() -> str:
        return Teacher(tiny.model(seed=1), "t", tokenizer=STUDENT, adapter=str(tmp_path)).fingerprint()

    before = fingerprint()
    assert fingerprint() == before
    adapter_config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter_config | {"lora_alpha": 8}))
    assert fingerprint() != before


def test_a_folder_that_cannot_be_written_and_scores_that_are_none_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="can't be written: Not a directory; name another folder"):
        cached(tmp_path / "file" / "scores")
    made, source = cached(tmp_path / "scores")
    with torch.no_grad():
        source.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(TeacherError, match="no log-probabilities; nothing was stored"):
        made.score(PASSAGES, 1.0)
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["manifest.json"]


def test_a_full_disk_is_a_failure_of_the_machine(tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    made, _ = cached(tmp_path)
    monkeypatch.setattr("rld.utils.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        made.score(PASSAGES, 1.0)
    with pytest.raises(OSError, match="No space left on device"):
        cached(tmp_path / "other")


class Slow(Teacher):
    """Takes its time between switching its adapter on and running."""

    @contextlib.contextmanager
    def running(self, device: torch.device) -> Iterator[PreTrainedModel]:
        with super().running(device) as model:
            time.sleep(0.05)
            yield model


def rollout(mask: list[list[int]]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 15, (len(mask), 3 + len(mask[0])), generator=generator)
    prompts = {"prompt_ids": ids[:, :3], "prompt_mask": torch.ones_like(ids[:, :3])}
    return prompts | {"completion_ids": ids[:, 3:], "completion_mask": torch.tensor(mask)}


def ensemble_of(*teachers: Teacher, feature: Any = None) -> TeacherEnsemble:
    student = StudentInterface(tiny.model(seed=0), PromptEncoder(STUDENT), feature)
    return TeacherEnsemble(teachers, student, prepare=lambda model: model)


def score(teachers: TeacherEnsemble, made: dict[str, Any]) -> list[TeacherReading]:
    """Score two completions with all teachers."""
    rows = torch.ones(2, len(teachers.slots), dtype=torch.bool)
    return teachers.score(made, rows, prompts=["", ""], temperature=1.0, rows_per_forward=8)


def test_cached_teachers_that_share_weights_speak_as_they_would_alone(tmp_path):
    """Two adapters on one base, in one ensemble."""
    for i in range(2):
        base = tiny.model(seed=1)
        torch.manual_seed(i)
        config = LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "up_proj"])
        get_peft_model(base, config).save_pretrained(tmp_path / f"a{i}")

    def said(adapters: Sequence[int], name: str) -> dict[str, Any]:
        base, teachers = tiny.model(seed=1), []
        for i in adapters:
            hosted = LocalLogprobs(Slow(base, f"a{i}", None, {}, STUDENT, adapter=str(tmp_path / f"a{i}")), CPU, 4)
            teachers.append(Teacher(CachedLogprobs(hosted, tmp_path / name / str(i), 4), f"a{i}", ["any"]))
        made = rollout([[1, 1, 1, 1], [1, 1, 0, 0]])
        score(ensemble_of(*teachers), made)
        return made

    together, alone = said((0, 1), "both"), [said((i,), f"only{i}") for i in range(2)]
    for k in range(2):
        torch.testing.assert_close(together[f"teacher_{k}_sampled"], alone[k]["teacher_0_sampled"])
        assert torch.equal(together[f"teacher_{k}_ids"], alone[k]["teacher_0_ids"])
    assert not torch.allclose(together["teacher_0_sampled"], together["teacher_1_sampled"], atol=1e-2)


@pytest.mark.parametrize("mask", [[[0, 0, 0], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]]])
def test_a_completion_that_is_left_out_is_not_asked_about(mask):
    counted = Counted(Teacher(tiny.model(seed=1), "t", tokenizer=STUDENT), CPU, 4)
    made, size = rollout(mask), [sum(row) for row in mask]
    score(ensemble_of(Teacher(counted)), made)
    assert counted.num == sum(n > 0 for n in size)
    assert made["teacher_tokens"].sum(-1)[:, 0].tolist() == size


def test_two_processes_may_open_one_cache(tmp_path):
    """Each fills it; a manifest that says the same already is left alone."""
    source = LocalLogprobs(Teacher(tiny.model(seed=1), "t", tokenizer=STUDENT), CPU, 4)
    with ThreadPoolExecutor(8) as pool:
        for i in range(20):
            list(pool.map(lambda _, i=i: CachedLogprobs(source, tmp_path / str(i), 4).connect(STUDENT), range(8)))
    manifest = tmp_path / "0" / "manifest.json"
    before = manifest.stat().st_mtime_ns, manifest.stat().st_ino
    cached(tmp_path / "0")
    assert (manifest.stat().st_mtime_ns, manifest.stat().st_ino) == before
    assert not list(tmp_path.rglob("*.draft"))


RECIPE = """\
name: kept
seed: 3
tokenizer: {characters: "ab:="}
prompts: {template: "{question}="}
models:
  small: {new: llama, config: {hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}}
  big: {new: llama, config: {hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}
skills: {copy: {generator: ./tasks.py:copy, levels: [{length: 3}, {length: 4}], held_out: 4}}
max_new_tokens: 6
trainer: {learning_rate: 1e-6, lr_scheduler_type: linear, warmup_steps: 0}
stages:
  - {name: teacher, kind: sft, student: big, steps: 40, batch: 8, trainer: {learning_rate: 1e-2}}
  - {name: main, kind: distill, student: small, steps: 6, gate: off, controller: {kind: fixed},
     teachers: {t: {model: teacher, probe_prompts: 2}},
     signals: {response: {divergence: {kind: forward_kl}}}, rollout: {prompts: 4, completions: 1, gold_completions: 1}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    (folder / "tasks.py").write_text(
        "def copy(rng, *, length):\n    word = ''.join(rng.choices('ab', k=length))\n    return word, word\n"
    )
    (folder / "kept.yaml").write_text(RECIPE)
    return folder / "kept.yaml"


def logged(folder: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if line.get("stage") == "main" and key in line]


def test_training_from_a_cache_is_training_live_and_costs_no_teacher_forward(recipe, tmp_path, capsys):
    """Off-policy, on gold answers alone, one a prompt. The vocabulary has 7 tokens: a cache of 7 leaves nothing out."""

    def run(name: str, *overrides: str) -> Path:
        assert main(["train", str(recipe), "--output", str(tmp_path / name), *overrides]) == 0
        return tmp_path / name

    live = run("live")
    kept = [f"models.trained={live / 'models' / 'teacher'}", "stages.main.teachers.t.model=trained"]
    whole, cut = (
        [*kept, f"stages.main.cache.folder=./{name}", f"stages.main.cache.top_k={k}"]
        for name, k in (("w", 7), ("c", 2))
    )
    for overrides in (whole, cut):
        assert main(["cache-teachers", str(recipe), *overrides]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert main(["cache-teachers", str(recipe), *whole]) == 0
    assert "main: t read 0 of" in " ".join(capsys.readouterr().out.split())
    assert "main: t read 0 of" not in text
    from_whole, from_cut = run("whole", *whole), run("cut", *cut)
    expected = logged(live, "loss/response")
    assert len(expected) == 6
    assert logged(from_whole, "loss/response") == pytest.approx(expected, rel=1e-3)
    # two tokens and a tail see 98% of the divergence
    assert logged(from_cut, "loss/response") == pytest.approx([0.981 * loss for loss in expected], rel=5e-3)
    assert logged(live, "tokens/scored")[-1] > 0
    assert logged(from_whole, "tokens/scored")[-1] == 0
    assert logged(from_whole, "flops")[-1] < logged(live, "flops")[-1]


@pytest.mark.parametrize("loss", ["{kind: cosine, layers: uniform}", "{kind: lens}"])
def test_features_are_learnt_from_a_cache_as_they_are_live(recipe, tmp_path, capsys, loss):
    """States of several layers, wider than the student's, and ones that the teacher's head reads: up to bfloat16."""

    def run(name: str, *overrides: str) -> Path:
        assert main(["train", str(recipe), "--output", str(tmp_path / name), feature, *overrides]) == 0
        return tmp_path / name

    feature, cache = f"stages.main.signals.feature.loss={loss}", f"stages.main.cache.folder={tmp_path / 'kept'}"
    live = run("live")
    kept = [cache, f"models.trained={live / 'models' / 'teacher'}", "stages.main.teachers.t.model=trained"]
    assert main(["cache-teachers", str(recipe), feature, *kept]) == 0
    again = run("again", *kept)
    for key in ("loss/response", "loss/feature"):
        assert len(logged(live, key)) == 6
        assert logged(again, key) == pytest.approx(logged(live, key), rel=5e-3)
    assert logged(again, "tokens/scored")[-1] == 0
    without = ["train", str(recipe), *kept, "--output", str(tmp_path / "without")]
    assert main(without) == 2
    assert "now none; delete it, or name another folder" in capsys.readouterr().err


def test_a_source_that_lacks_a_token_says_so():
    with pytest.raises(TeacherError, match="reads token ids below 15, not 15"):
        LocalLogprobs(Teacher(tiny.model(seed=1), "t", tokenizer=STUDENT), CPU, 4).score(
            [ScoredSequence([5, 15], 1)], 1.0
        )


def test_what_is_said_does_not_depend_on_the_precision_of_the_training_that_asks():
    """Trainers run teachers under autocast; `rld cache-teachers` does not."""
    source = LocalLogprobs(Teacher(tiny.model(seed=1).bfloat16(), "t", tokenizer=STUDENT), CPU, 4, state_keys=(1, 2))
    alone = source.score(PASSAGES, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = source.score(PASSAGES, 1.0)
        whole = TopKLogprobs.concatenated([TopKLogprobs(*(t.half() for t in one.tensors())) for one in inside])
    assert whole.layers is not None
    for one, other in zip(alone, inside, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


def test_a_source_with_states_from_elsewhere_is_refused(tmp_path):
    teacher = Teacher(tiny.model(seed=1), "t", tokenizer=STUDENT)
    source = LocalLogprobs(teacher, CPU, 4, state_keys=(1,))
    with pytest.raises(TeacherError, match=r"hands over the states at \(1,\), and features are matched with .*\(2,\)"):
        ensemble_of(Teacher(source), feature=Cosine())
    ready = ensemble_of(Teacher(LocalLogprobs(teacher, CPU, 4, state_keys=(2,))), feature=Cosine())
    made, live = rollout([[1, 1, 1, 1], [1, 1, 0, 0]]), rollout([[1, 1, 1, 1], [1, 1, 0, 0]])
    score(ready, made)
    score(ensemble_of(teacher, feature=Cosine()), live)
    mask = live["completion_mask"].bool()
    theirs, ours = (one["teacher_0_layers"].transpose(1, 2)[mask] for one in (live, made))
    torch.testing.assert_close(ours, theirs.bfloat16(), rtol=2**-7, atol=1e-5)


SERVED = {"teachers": {"t": {"url": "http://h:1"}}}
KEPT = {"cache": {"folder": "x"}, "rollout": {"completions": 2, "gold_completions": 2}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rollout": {"completions": 1}}, "takes gold_completions: 1, and even prompts"),
        (
            {"rollout": {"completions": 1, "gold_completions": 1, "prompts": 3}},
            "takes gold_completions: 1, and even prompts",
        ),
        (
            {"rollout": {"completions": 2, "gold_completions": 2}, "signals": {"policy": {}}},
            "name the signals without policy",
        ),
        (
            {"rollout": {"completions": 2, "gold_completions": 1}, "cache": {"folder": "x"}},
            "set rollout.gold_completions to rollout.completions",
        ),
        (SERVED | {"signals": {"feature": {}}}, "a server gives no hidden states, and this stage matches"),
        (SERVED | {"signals": {"response": {"temperature": 2}}}, "on a server has the rollout's temperature 1, not 2"),
        (
            {"teachers": {"t": {"url": "http://h:1/v1"}}, "rollout": {"temperature": 0.5}},
            "an OpenAI-compatible endpoint scores at temperature 1, and the rollout's is 0.5",
        ),
        (KEPT | {"teachers": {"t": {"model": "m", "align": "vocabulary"}}}, "so no teacher with align is cached"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, expected):
    stage = {"name": "s", "kind": "distill", "student": "m", "steps": 1, "signals": {"response": {}}}
    with pytest.raises(ValueError, match=re.escape(expected)):
        Distill.model_validate(stage | changes)


def test_a_recipe_without_a_cache_has_nothing_to_fill(recipe, capsys):
    assert main(["cache-teachers", str(recipe)]) == 2
    assert "stages: none has a cache; set cache.folder" in capsys.readouterr().err
