"""Several teachers in one process: adapters on one base, where the weights are, and that none of it shows in scores."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import tests.support.tiny as tiny
from rld.cli import main
from rld.controllers.baselines import FixedController
from rld.errors import CheckpointError, ModelError, TeacherError
from rld.models.adapters import merge_adapter, require_mergeable
from rld.teachers.teacher import Teacher, share_base_models
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer

CPU = torch.device("cpu")
IDS = torch.randint(3, 15, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base model with its tokenizer, and two adapters on it, with dropout in their configuration."""
    made = tmp_path_factory.mktemp("hosting")
    tiny.model(seed=1).save_pretrained(made / "base")
    tiny.tokenizer().save_pretrained(made / "base")
    for i, name in enumerate(("one", "two")):
        save_adapter(made / name, tiny.model(seed=1), seed=i, target_modules=["q_proj", "up_proj"])
    return made


def save_adapter(to: Path, base: Any, seed: int, **options: Any) -> None:
    torch.manual_seed(seed)
    config = LoraConfig(r=2, task_type="CAUSAL_LM", lora_dropout=0.5, init_lora_weights=False, **options)
    get_peft_model(base, config).save_pretrained(to)


def merged(folder: Path, adapter: str) -> LlamaForCausalLM:
    """The base with an adapter added to its weights, by PEFT's own means."""
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    return PeftModel.from_pretrained(base, folder / adapter).merge_and_unload().eval()


def trained(folder: Path, output: Path, teachers: list[Teacher], **changes: Any) -> RLDTrainer:
    options = {"signals": ["policy", "response"], "teacher_reward": 0.1, "max_steps": 3, **changes}
    resume = options.pop("resume", None)
    made = RLDTrainer(
        model=tiny.model(),
        reward_funcs=tiny.letters,
        args=RLDConfig(**tiny.rld_options(output, **options)),
        train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=teachers,
        controller=FixedController(policy=0.3),
    )
    made.train(resume_from_checkpoint=resume)
    return made


def specialists(folder: Path, **changes: Any) -> list[Teacher]:
    return [Teacher(str(folder / "base"), adapter=str(folder / name), **changes) for name in ("one", "two")]


def test_adapters_share_one_copy_of_the_base_and_speak_like_merged_models(folder):
    teachers = [*specialists(folder), Teacher(str(folder / "base"))]
    share_base_models(teachers)
    assert [teacher.name for teacher in teachers] == ["one", "two", "base"]
    wanted = [merged(folder, "one"), merged(folder, "two"), tiny.model(seed=1).eval()]
    for teacher, alone in [*zip(teachers, wanted, strict=True)] * 2:  # twice, because each leaves its traces
        with teacher.running(CPU) as model, torch.no_grad():
            torch.testing.assert_close(model(IDS).logits, alone(IDS).logits, rtol=1e-5, atol=1e-5)
            assert not any(module.training for module in model.modules())
        assert not any(weight.requires_grad for weight in model.parameters())
    places = [{p.data_ptr() for n, p in t.load().named_parameters() if "lora" not in n} for t in teachers]
    assert places[0] == places[1] == places[2]
    sizes = [teacher.num_parameters() for teacher in teachers]
    assert sizes[0] == sizes[1] > sizes[2] == tiny.model().num_parameters()


def test_a_fingerprint_is_of_the_weights_that_speak(folder):
    alone = Teacher(str(folder / "base")).fingerprint()
    one, two, base = teachers = [*specialists(folder), Teacher(str(folder / "base"))]
    share_base_models(teachers)
    one.load(), two.load()
    assert base.fingerprint() == alone
    assert len({teacher.fingerprint() for teacher in teachers}) == 3
    _, other = reversed_order = specialists(folder)[::-1]
    share_base_models(reversed_order)
    assert other.fingerprint() == one.fingerprint()


def test_a_run_with_shared_and_offloaded_adapters_is_a_run_with_separate_models(folder, tmp_path):
    def weights(teachers: list[Teacher]) -> torch.Tensor:
        made = trained(folder, tmp_path, teachers, optim="sgd", learning_rate=0.1)
        return torch.cat([p.detach().flatten() for p in made.model.parameters()])

    separate = [Teacher(merged(folder, name), name, tokenizer=tiny.tokenizer()) for name in ("one", "two")]
    wanted = weights(separate)
    torch.testing.assert_close(weights(specialists(folder)), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights(specialists(folder, offload=True)), wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(weights(specialists(folder)[:1]), wanted, rtol=1e-4, atol=1e-5)


def test_resuming_with_another_adapter_is_refused(folder, tmp_path):
    trained(folder, tmp_path, specialists(folder), save_strategy="steps", save_steps=2, max_steps=2)
    swapped = specialists(folder)
    swapped[0].adapter = str(folder / "two")
    with pytest.raises(CheckpointError, match="other weights of teacher 'one'"):
        trained(folder, tmp_path, swapped, max_steps=4, resume=str(tmp_path / "checkpoint-2"))


def test_no_dropout_while_a_teacher_scores_whatever_the_student_does(folder, tmp_path):
    noisy = tiny.model(seed=2)
    noisy.config.attention_dropout = 0.9
    teachers = [*specialists(folder), Teacher(noisy.train(), "noisy", tokenizer=tiny.tokenizer())]
    modes: list[bool] = []
    share_base_models(teachers)
    for teacher in teachers:
        for module in teacher.load().modules():
            module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    made = trained(folder, tmp_path, teachers)
    made.model.train()
    for teacher in teachers:
        logits = []
        for _ in range(2):
            with teacher.running(CPU) as model, torch.no_grad():
                logits.append(model(IDS).logits)
        assert torch.equal(*logits)
    assert modes and not any(modes)


class Moves:
    """Devices that a model is told to move to, on a machine that has but one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        monkeypatch.setattr(LlamaForCausalLM, "device", property(lambda _: self.seen[-1] if self.seen else CPU))
        monkeypatch.setattr(LlamaForCausalLM, "to", lambda model, device: self.seen.append(str(device)) or model)


def test_an_offloaded_teacher_is_on_the_device_only_while_it_runs(monkeypatch):
    moves = Moves(monkeypatch)
    resting = Teacher(tiny.model(), offload=True)
    with resting.running(torch.device("cuda:3")):
        assert moves.seen == ["cuda:3"]
    assert moves.seen == ["cuda:3", "cpu"]
    with pytest.raises(ZeroDivisionError), resting.running(torch.device("cuda:3")):
        1 / 0  # noqa: B018 - what fails inside
    assert moves.seen[2:] == ["cuda:3", "cpu"]
    moves.seen.clear()
    with Teacher(tiny.model()).running(torch.device("cuda:3")):
        pass
    assert moves.seen == ["cuda:3"]


def test_the_head_of_an_offloaded_teacher_is_copied_once():
    resting = Teacher(tiny.model(), offload=True)
    meta = torch.device("meta")  # stands for any other device
    assert resting.head(meta).weight.device == meta
    assert resting.head(meta).weight is resting.head(meta).weight
    assert resting.load().get_output_embeddings().weight.device == CPU
    kept = Teacher(tiny.model())
    assert kept.head(CPU).weight.data_ptr() == kept.load().get_output_embeddings().weight.data_ptr()


def test_arguments_of_from_pretrained_arrive(folder):
    base = str(folder / "base")
    assert Teacher(base, from_pretrained={"dtype": "bfloat16"}).load().dtype == torch.bfloat16
    placed = Teacher(base, from_pretrained={"device_map": {"": "meta"}, "attn_implementation": "eager"}).load()
    assert (placed.device.type, placed.config._attn_implementation) == ("meta", "eager")
    with pytest.raises(TeacherError, match=r"'base'.*8-bit quantization requires bitsandbytes: `pip install"):
        Teacher(base, from_pretrained={"quantization_config": {"load_in_8bit": True}}).load()
    with pytest.raises(TeacherError, match="dtyp"):
        Teacher(base, from_pretrained={"dtyp": "float32"}).load()


def test_models_loaded_in_different_ways_are_not_shared(folder):
    teachers = [Teacher(str(folder / "base")), Teacher(str(folder / "base"), from_pretrained={"dtype": "bfloat16"})]
    share_base_models(teachers)
    assert [teacher.load().dtype for teacher in teachers] == [torch.float32, torch.bfloat16]


def test_what_cannot_host_an_adapter_is_refused(folder, tmp_path):
    def refused(model: Any, adapter: Path, **options: Any) -> str:
        with pytest.raises(TeacherError, match="teacher 't'") as error:
            Teacher(model, "t", adapter=str(adapter), **options).load()
        return str(error.value)

    assert "adapter_config.json" in refused(tiny.model(), tmp_path / "nothing")
    assert "another model" in refused(tiny.model(width=48), folder / "one")
    wrapped = PeftModel.from_pretrained(tiny.model(seed=1), folder / "one")
    assert "an adapter of its own" in refused(wrapped, folder / "two")
    save_adapter(tmp_path / "head", tiny.model(), 0, target_modules=["lm_head"])
    assert "output head" in refused(tiny.model(), tmp_path / "head")
    spread = tiny.model()
    spread.hf_device_map = {"model": 0, "lm_head": "cpu"}
    assert "leave out offload" in refused(spread, folder / "one", offload=True)


RECIPE = """
name: hosting
max_new_tokens: 3
skills: {copy: {generator: ./tasks.py:copy, held_out: 4}}
models: {base: ./base}
stages:
  - name: learn
    kind: distill
    student: base
    teachers:
      one: {model: base, adapter: ./one, probe_prompts: 4}
      two: {model: base, adapter: ./two, probe_prompts: 4, offload: true}
      plain: {model: base, probe_prompts: 4}
    signals: {policy: {teacher_reward: 0.1}, response: {}, feature: {}}
    gate: off
    controller: {kind: fixed}
    steps: 2
    rollout: {prompts: 2, completions: 2}
"""
TASKS = "def copy(rng):\n    word = ''.join(rng.choices('abcd', k=3))\n    return word + '=', word\n"


def test_a_recipe_gives_a_base_several_adapters(folder, tmp_path, capsys):
    (folder / "tasks.py").write_text(TASKS)
    (folder / "hosting.yaml").write_text(RECIPE)
    assert main(["check", str(folder / "hosting.yaml")]) == 0
    assert "one: base with adapter ./one" in capsys.readouterr().out
    assert main(["train", str(folder / "hosting.yaml"), "--output", str(tmp_path / "run")]) == 0
    (stage,) = json.loads((tmp_path / "run" / "summary.json").read_text())["stages"]
    sizes = {name: teacher["parameters"] for name, teacher in stage["teachers"].items()}
    assert sizes["one"] == sizes["two"] > sizes["plain"] == stage["student"]["parameters"]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    divergences = [last[f"divergence/{name}"] for name in ("one", "two", "plain")]
    assert divergences[2] == pytest.approx(0, abs=1e-6)  # the student starts as its base
    assert min(divergences[:2]) > 1e-3


def test_a_library_that_is_missing_is_the_users_to_install(folder, tmp_path, capsys):
    (folder / "tasks.py").write_text(TASKS)
    (folder / "hosting.yaml").write_text(RECIPE)
    override = "stages.learn.teachers.plain.from_pretrained={quantization_config: {load_in_8bit: true}}"
    assert main(["train", str(folder / "hosting.yaml"), override, "--output", str(tmp_path / "run")]) == 2
    assert "requires bitsandbytes: `pip install" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`", "ignore:.*a tied layer is part of")
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_a_merged_adapter_computes_what_was_trained_or_is_refused(is_tied, options, tmp_path):
    """PEFT merges an adapter of a tied layer into both layers, without an error."""
    base = tiny.model()
    if not is_tied:
        base.config.tie_word_embeddings = False
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    model = get_peft_model(base, LoraConfig(r=4, **options))
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.5)
            assert "lora" in name or "modules_to_save" in name
    ids = torch.tensor([[5, 6, 7, 8]])
    trained = model.eval()(input_ids=ids).logits
    try:
        require_mergeable(model.get_base_model())
    except ModelError as error:
        assert is_tied and "share one weight" in str(error)
        return
    model.merge_and_unload().save_pretrained(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, trained, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "size", "is_told"), [("bfloat16", 1e-3, True), ("bfloat16", 0.3, False), ("float32", 1e-3, False)]
)
def test_an_adapter_that_rounding_takes_away_is_told(dtype, size, is_told):
    base = tiny.model().to(getattr(torch, dtype))
    weights = base.model.layers[0].self_attn.q_proj.weight.detach().float().clone()
    trained = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]))
    for name, weight in trained.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=size)
    change = base.model.layers[0].self_attn.q_proj.get_delta_weight("default").float()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = merge_adapter(trained)
    assert any(f"merged into weights of {dtype}, the adapter is off by" in str(w.message) for w in caught) == is_told
    held = model.model.layers[0].self_attn.q_proj.weight.float() - weights
    assert bool((held - change).norm() > 0.2 * change.norm()) == is_told, "the warning is true"
