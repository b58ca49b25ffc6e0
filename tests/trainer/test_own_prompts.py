"""Teachers that read a prompt of their own, and the student as such a teacher of itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import tests.support.own_prompts_one_and_two as runs
import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.errors import TeacherError
from rld.models.weight_average import WeightAverage
from rld.rollout.gate import TeacherGate
from rld.teachers.ensemble import TeacherEnsemble
from rld.teachers.local import LocalLogprobs
from rld.teachers.self_teacher import SelfTeacher
from rld.teachers.slot_base import StudentInterface
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.types import STUDENT_PROMPT
from tests.support.processes import run_modules, sharing_environment

TELLING = "{answer}:{question}"


def student() -> Any:
    return tiny.model().double()


def trainer(folder: Path, teacher: Teacher, *, num_parts: int = 1, model: Any = None, **options: Any) -> RLDTrainer:
    """A trainer that learns from one teacher alone, with 2 prompts of 4 completions an update."""
    options = {
        "per_device_train_batch_size": 8 // num_parts,
        "gradient_accumulation_steps": num_parts,
        "divergence": "reverse_kl",
        **options,
    }
    more = {name: options.pop(name) for name in ("train_dataset", "peft_config", "reward_funcs") if name in options}
    return RLDTrainer(
        student() if model is None else model,
        more.pop("reward_funcs", None),
        RLDConfig(**tiny.rld_options(folder, **options)),
        more.pop("train_dataset", tiny.rows()),
        processing_class=tiny.tokenizer(),
        teachers=[teacher],
        controller=FixedController(policy=0.0, response=1.0),
        **more,
    )


def losses(made: RLDTrainer) -> list[tuple[float, float]]:
    made.train()
    return [(entry["loss"], entry["grad_norm"]) for entry in made.state.log_history if "loss" in entry]


def weights(made: RLDTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()])


def by_hand(model: Any, teacher: Any, rollout: dict[str, Any], telling: list[str]) -> torch.Tensor:
    """The mean over tokens of KL(student(prompt) || teacher(own prompt)), one completion at a time."""
    sums, num_tokens = torch.zeros((), dtype=torch.float64), 0
    for i, own_prompt in enumerate(telling):
        ids = rollout["completion_ids"][i][rollout["completion_mask"][i].bool()]
        prompt = rollout["prompt_ids"][i][rollout["prompt_mask"][i].bool()]
        own = torch.tensor(tiny.tokenizer()(own_prompt)["input_ids"])

        def log_p(read_by: Any, prompt: torch.Tensor, ids: torch.Tensor = ids) -> torch.Tensor:
            logits = read_by(torch.cat([prompt, ids])[None]).logits[0, len(prompt) - 1 : -1]
            return logits.double().log_softmax(-1)

        log_student, log_teacher = log_p(model, prompt), log_p(teacher, own).detach()
        sums = sums + (log_student.exp() * (log_student - log_teacher)).sum()
        num_tokens += len(ids)
    return sums / num_tokens


@pytest.mark.parametrize("num_parts", [1, 4])
@pytest.mark.parametrize("kind", ["itself", "another", "source"])
def test_the_loss_is_the_divergence_from_what_the_teacher_says_behind_its_own_prompt(tmp_path, kind, num_parts):
    other = tiny.model(seed=1).double()
    local = Teacher(other, "one", tokenizer=tiny.tokenizer(), prompt=TELLING)
    source = LocalLogprobs(Teacher(other, "one", tokenizer=tiny.tokenizer()), torch.device("cpu"), 15)
    teachers = {"itself": SelfTeacher(TELLING), "another": local, "source": Teacher(source, "one", prompt=TELLING)}
    made = trainer(tmp_path, teachers[kind], num_parts=num_parts)
    rollouts: list[dict[str, Any]] = []
    score = made._teacher_scoring.score

    def kept(batch: Any, record: Any, step: int) -> Any:
        rollouts.append({**batch, "rows": list(record.rows)})
        report = score(batch, record, step)
        rollouts[-1]["read"] = sum(report.counts.tokens.values())
        return report

    made._teacher_scoring.score = kept  # type: ignore[method-assign]
    made.args.max_steps = 1
    ((loss, grad_norm),) = losses(made)
    (rollout,) = rollouts
    telling = [f"{row['answer']}:{row['prompt']}" for row in rollout["rows"]]
    model = student()
    expected = by_hand(model, model if kind == "itself" else other, rollout, telling)
    expected.backward()
    expected = expected.detach()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert loss > 0.05
    assert rollout["read"] == sum(map(len, telling)) + int(rollout["completion_mask"].sum())


def test_a_student_that_tells_itself_nothing_new_has_nothing_to_learn(tmp_path):
    for loss, grad_norm in losses(trainer(tmp_path, SelfTeacher("{question}"), max_steps=2)):
        assert loss == pytest.approx(0, abs=1e-7)
        assert grad_norm == pytest.approx(0, abs=1e-6)


def test_it_reads_with_the_present_adapter_and_no_weight_is_frozen(tmp_path):
    """Behind an adapter that is not zero the student's own prompt still gives no loss."""
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.5)
    made = trainer(tmp_path, SelfTeacher("{question}"), peft_config=adapter, max_steps=1)
    before = weights(made)
    made.model.eval()
    ids = torch.tensor([[5, 6, 4, 7]])
    with made.teachers[0].running(torch.device("cpu")) as read_by:
        assert torch.equal(read_by(ids).logits, made.model(ids).logits)
    made.model.train()
    made.train()
    assert not torch.equal(weights(made), before), "dropout is in the student's forward alone, so there is a loss"


ADAPTER = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["whole", "adapter"])
def test_an_average_teaches_with_what_it_has_kept_of_the_students_weights(tmp_path, adapter):
    """Rollout 3 is scored by 1/4 of the first weights, 1/4 of those after one update and 1/2 of those after two."""
    itself = SelfTeacher(TELLING, average=0.5)
    made = trainer(tmp_path, itself, max_steps=3, peft_config=adapter)
    moments, rollouts = list[list[torch.Tensor]](), list[dict[str, Any]]()
    score = made._teacher_scoring.score

    def kept(batch: Any, record: Any, step: int) -> Any:
        moments.append([weight.detach().clone() for weight in made._student.parameters()])
        rollouts.append({**batch, "rows": list(record.rows)})
        return score(batch, record, step)

    made._teacher_scoring.score = kept  # type: ignore[method-assign]
    loss, _ = losses(made)[-1]

    def with_weights(values: Sequence[torch.Tensor]) -> Any:
        model = student() if adapter is None else get_peft_model(student(), adapter).get_base_model()
        for weight, value in zip(model.parameters(), values, strict=True):
            weight.data = value
        return model.eval()

    average = with_weights([a / 4 + b / 4 + c / 2 for a, b, c in zip(*moments, strict=True)])
    present = with_weights(moments[2])
    telling = [f"{row['answer']}:{row['prompt']}" for row in rollouts[2]["rows"]]
    assert loss == pytest.approx(by_hand(present, average, rollouts[2], telling).item(), rel=1e-5)
    assert abs(loss - by_hand(present, present, rollouts[2], telling).item()) > 1e-4 * loss
    num_trained = sum(weight.numel() for weight in made._student.parameters() if weight.requires_grad)
    assert sum(value.numel() for value in itself.state_dict().values()) == num_trained


def test_an_average_in_half_precision_keeps_small_steps_and_gives_the_weights_back():
    layer = torch.nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        average = WeightAverage(layer, 0.999)
        layer.weight.fill_(2.0)
    for _ in range(100):
        average.update()
    own = layer.weight.data_ptr()
    with average.in_place(layer):
        assert layer.weight.dtype == torch.bfloat16
        assert layer.weight.mean().item() == pytest.approx(2 - 0.999**100, rel=2**-8)
    assert layer.weight.data_ptr() == own
    assert (layer.weight == 2).all()


@pytest.mark.parametrize("average", [None, 0.5])
def test_a_run_goes_on_where_it_was_interrupted(tmp_path, average):
    """What a checkpoint has of the teacher are the student's weights, and their average."""
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trainer(tmp_path / "run", SelfTeacher(TELLING, average=average), **options)
    whole.train()
    resumed = trainer(tmp_path / "run", SelfTeacher(TELLING, average=average), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert torch.equal(weights(resumed), weights(whole))
    averages, expected = (made.teachers[0].state_dict() for made in (resumed, whole))
    assert len(averages) == (0 if average is None else len(list(whole.model.parameters())))
    assert all(torch.equal(value, expected[name]) for name, value in averages.items())


needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")


@pytest.mark.parametrize("way", ["DDP", pytest.param("ZeRO-2", marks=needs_deepspeed)])
def test_one_process_and_two_give_the_same_update(tmp_path, way):
    environment = {} if way == "DDP" else sharing_environment("accelerate/zero3", "--zero_stage", "2")
    module, arguments = "tests.support.own_prompts_one_and_two", [str(tmp_path), "2"]
    run_modules(module, arguments, 2, log=tmp_path / "log", environment=environment)
    one = runs.trained(tmp_path / "one")
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), one, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(one, torch.cat([weight.flatten() for weight in tiny.model().parameters()]), atol=1e-4)


@pytest.mark.parametrize("style", ["text", "chat"])
def test_the_gate_asks_by_the_own_prompt_and_the_verifier_sees_the_students(style):
    asked: list[Any] = []

    def verify(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        assert STUDENT_PROMPT not in columns
        asked.extend(prompts)
        return [1.0] * len(prompts)

    itself, given = SelfTeacher(TELLING), [dict(row) for row in tiny.rows(4, chat=style == "chat")]
    itself.bind(tiny.model(), tiny.tokenizer())
    gate = TeacherGate([itself], tiny.encoder(), verify, max_new_tokens=3, device=torch.device("cpu"))
    for num_asked in (4, 8):  # in the second rollout again, because its weights may have changed
        questions = gate.ask(given, torch.ones(4, 1, dtype=torch.bool))
        assert gate.decide(questions, {}).open_BK.all()
        assert asked == [row["prompt"] for row in given] * (num_asked // 4)
    read = [row["prompt"] for row in map(itself.own_row, given)]
    texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in read]
    end = "=" if style == "text" else ""
    assert texts == [f"{row['answer']}:{row['answer'][::-1]}{end}" for row in given]


def test_places_are_filled_once_and_other_messages_stay():
    teacher = Teacher(tiny.model(), tokenizer=tiny.tokenizer(), prompt="{question} \\boxed{x} {answer}")
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Q: {answer}"}]
    row = {"prompt": messages, "question": "{answer}", "answer": "{question}"}
    own = teacher.own_row(row)
    assert own["prompt"] == [messages[0], {"role": "user", "content": "{answer} \\boxed{x} {question}"}]
    assert own[STUDENT_PROMPT] == messages


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{question} {anser}", "'self': its prompt .* it has {anser}; did you mean {answer}"),
        ("Go.", "it should contain {question}"),
    ],
)
def test_a_template_that_cannot_be_meant_is_refused(prompt, message):
    with pytest.raises(TeacherError, match=message):
        SelfTeacher(prompt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signals": ["response", "feature"]}, "goes without the feature signal"),
        ({"num_iterations": 2}, "no update may lie inside a rollout"),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 3}, "no update may lie inside a rollout"),
        ({"train_dataset": tiny.rows().remove_columns("answer")}, "the rows have no column 'answer'"),
        ({"train_dataset": Dataset.from_dict({"prompt": ["a="] * 16, "answer": [""] * 16})}, "has no gold answer"),
    ],
)
def test_a_trainer_in_which_it_cannot_teach_is_refused(tmp_path, options, message):
    with pytest.raises(TeacherError, match=message):
        trainer(tmp_path, SelfTeacher(TELLING), **options).train()


def test_the_student_teaches_itself_where_an_update_takes_several_rollouts(tmp_path):
    options = {"steps_per_generation": 1, "gradient_accumulation_steps": 2, "max_steps": 1}
    made = trainer(tmp_path, SelfTeacher("{question}"), **options)
    assert losses(made) == [pytest.approx((0, 0), abs=1e-6)]
    assert made.totals.rollouts == 2


def test_what_a_closed_gate_saves_is_counted_in_the_teachers_own_prompts(tmp_path):
    """A teacher that may teach nowhere would have read as much as the one that may teach everywhere."""

    def never(completions: list[str], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    rows = tiny.rows().map(lambda row, i: {"answer": row["answer"] * (1 + i % 2)}, with_indices=True)
    totals = []
    for gate in ("off", "per_prompt"):
        teacher = Teacher(tiny.model(seed=1).double(), "one", tokenizer=tiny.tokenizer(), prompt=TELLING)
        options = {"max_steps": 1, "gate": gate, "train_dataset": rows, "reward_funcs": never}
        made = trainer(tmp_path / gate, teacher, **options)
        made.train()
        totals.append(made.totals)
    everywhere, nowhere = totals
    assert everywhere.tokens_saved == 0
    assert nowhere.tokens_scored + nowhere.tokens_saved == everywhere.tokens_scored


def test_an_aligned_teacher_scores_the_same_tokens_behind_the_same_own_prompt():
    def scores(align: Any) -> torch.Tensor:
        own = Teacher(tiny.model(seed=1), "t", ["any"], tokenizer=tiny.tokenizer(), align=align, prompt=TELLING)
        ensemble = TeacherEnsemble([own], StudentInterface(tiny.model(), tiny.encoder(), None), lambda model: model)
        given, every = [dict(row) for row in tiny.rows(3)], torch.ones(3, 1, dtype=torch.bool)
        prompts = [row["prompt"] for row in given]
        ids = torch.tensor(tiny.tokenizer()(prompts)["input_ids"])
        rollout: dict[str, Any] = {"prompt_ids": ids, "prompt_mask": torch.ones_like(ids)}
        rollout["completion_ids"] = torch.tensor([[5, 6, 1], [7, 8, 9], [10, 5, 1]])
        rollout["completion_mask"] = torch.ones(3, 3, dtype=torch.long)
        options = {"prompts": prompts, "temperature": 1.0, "rows_per_forward": 8}
        ensemble.score(rollout, every, own_prompts=ensemble.own_prompts([given], every), **options)
        return ensemble.sampled_scores(rollout, 1.0)["teacher_scores"]

    torch.testing.assert_close(scores("likelihood"), scores(None))
