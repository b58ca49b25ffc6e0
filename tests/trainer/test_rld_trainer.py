"""The joint loop: every signal, several teachers, accumulation, masks, checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, TrlParser

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.errors import CheckpointError, RecipeError, TeacherError
from rld.losses.divergences import JSD, ReverseKL
from rld.losses.objective import ResponseObjective
from rld.models import backbone
from rld.recipe import catalogue, registry
from rld.teachers import slots
from rld.teachers.ensemble import TeacherEnsemble
from rld.teachers.slot_base import StudentInterface
from rld.teachers.teacher import Teacher
from rld.trainer import checkpoints
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.support.runs import Killed

EVERYTHING: dict[str, Any] = {
    "signals": ["policy", "response", "feature"],
    "feature": {"kind": "cosine", "layers": "uniform"},
    "teacher_reward": 0.1,
}


def teachers(**changes: Any) -> list[Teacher]:
    return [
        Teacher(tiny.model(seed=1, width=48, layers=3), name="wide", tokenizer=tiny.tokenizer(), **changes),
        Teacher(tiny.model(seed=2), name="narrow", tokenizer=tiny.tokenizer()),
    ]


def trainer(folder: Any, *, given: Any = None, controller: Any = None, **changes: Any) -> RLDTrainer:
    return RLDTrainer(
        model=tiny.model(),
        reward_funcs=tiny.letters,
        args=RLDConfig(**tiny.rld_options(folder, **{**EVERYTHING, **changes})),
        train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=teachers() if given is None else given,
        controller=controller,
    )


def parameters(made: RLDTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


def history(made: RLDTrainer, name: str) -> list[float]:
    return [entry[name] for entry in made.state.log_history if name in entry]


def test_all_signals_train_together(tmp_path):
    made = trainer(tmp_path, max_steps=12)
    made.train()
    for name in (
        "loss/policy",
        "loss/response",
        "loss/feature",
        "weight/response",
        "teacher/wide/weight",
        "grad/policy",
    ):
        assert history(made, name), name
    assert history(made, "loss/response")[-1] < history(made, "loss/response")[0]
    assert history(made, "loss/feature")[-1] < history(made, "loss/feature")[0]
    assert made.totals.tokens_scored > 0


@pytest.mark.parametrize("combine", list(catalogue.names("combinations")))
def test_every_combination_trains(tmp_path, combine):
    options = {"kind": "agreement", "limit": 2.0} if combine == "agreement" else combine
    made = trainer(tmp_path, max_steps=3, combine_teachers=options, token_weights={"kind": "top", "share": 0.5})
    made.train()
    assert all(value > 0 for value in history(made, "loss/response"))


def test_gold_answers_stand_in_each_group_and_teach_where_the_student_fails(tmp_path):
    def exact(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [float(c.replace(" ", "") == a) for c, a in zip(completions, answer, strict=True)]

    options = tiny.rld_options(
        tmp_path, gold_completions=1, num_generations=2, max_steps=30, per_device_train_batch_size=16
    )
    made = RLDTrainer(
        tiny.model(),
        exact,
        RLDConfig(**options),
        tiny.rows(),
        processing_class=tiny.tokenizer(),
        controller=FixedController(),
    )
    made.model.train()
    rows = [made.train_dataset[i // 2] for i in range(16)]
    rollout = made._generate_and_score_completions(rows)
    texts = made.processing_class.batch_decode(rollout["completion_ids"], skip_special_tokens=True)
    assert [text.replace(" ", "") for text in texts[::2]] == [row["answer"] for row in rows[::2]]
    assert (rollout["advantages"][::2] > 0).any()
    assert (rollout["advantages"][::2] >= 0).all()
    assert made.runtime._window.attempts.attempts_S.sum() == 8  # gold answers are no attempts
    made.train()
    solved = history(made, "progress/first")
    assert sum(solved[-3:]) > sum(solved[:3])


def test_gold_answers_need_completions_that_transformers_generates(tmp_path):
    with pytest.raises(RecipeError, match="gold answers"):
        RLDTrainer(
            tiny.model(),
            tiny.letters,
            RLDConfig(**tiny.rld_options(tmp_path, gold_completions=1)),
            tiny.rows(),
            processing_class=tiny.tokenizer(),
            rollout_func=lambda prompts, trainer: {},
        )


def test_best_of_can_be_evaluated_with_another_group_size(tmp_path):
    made = trainer(
        tmp_path, combine_teachers="best_of", num_generations_eval=2, per_device_eval_batch_size=4, max_steps=1
    )
    made.train()
    assert made.evaluate(tiny.rows(4))["eval_loss"] is not None


def test_accumulation_does_not_change_the_update(tmp_path):
    def run(steps: int) -> torch.Tensor:
        made = trainer(
            tmp_path,
            max_steps=3,
            per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps,
            generation_batch_size=8,
            optim="sgd",
            controller=FixedController(policy=0.3, response=0.5, feature=0.2),
        )
        made.train()
        return parameters(made)

    whole, quarters = run(1), run(4)
    assert not torch.equal(whole, parameters(trainer(tmp_path)))
    torch.testing.assert_close(whole, quarters, rtol=1e-4, atol=1e-6)


def test_a_student_equal_to_its_teacher_stays(tmp_path):
    made = trainer(
        tmp_path,
        given=[Teacher(tiny.model(), name="self", tokenizer=tiny.tokenizer())],
        controller=FixedController(policy=0.0),
        signals=["response"],
        teacher_reward=0.0,
        optim="sgd",
    )
    before = parameters(made)
    made.train()
    assert history(made, "loss/response") == pytest.approx([0.0] * 5, abs=1e-6)
    torch.testing.assert_close(parameters(made), before, rtol=0, atol=1e-6)


def test_a_teacher_without_weight_changes_nothing_and_is_not_run(tmp_path, monkeypatch):
    lone = trainer(
        tmp_path, given=teachers()[:1], controller=FixedController(recheck_every=1000), signals=["policy", "response"]
    )
    lone.train()
    both = trainer(
        tmp_path,
        controller=FixedController(teachers={"narrow": 0.0}, recheck_every=1000),
        signals=["policy", "response"],
    )
    runs = []
    slot = both.ensemble.slots[1]
    run = slot.run
    monkeypatch.setattr(slot, "run", lambda batch: runs.append(batch) or run(batch))
    both.train()
    torch.testing.assert_close(parameters(lone), parameters(both), rtol=0, atol=0)
    assert len(runs) == 1  # the look at the start, which every teacher gets


def test_teachers_that_run_out_of_memory_read_fewer_completions_at_a_time(tmp_path, monkeypatch):
    sgd = {"optim": "sgd", "learning_rate": 0.1}  # Adam makes as large a step of a gradient that is only rounding
    enough = trainer(tmp_path / "enough", **sgd)
    enough.train()
    read, sizes = backbone.hidden_states, []

    def short_of_memory(*args: Any, rows_per_forward: int, **options: Any) -> Any:
        sizes.append(rows_per_forward)
        if rows_per_forward > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return read(*args, rows_per_forward=rows_per_forward, **options)

    monkeypatch.setattr(slots, "hidden_states", short_of_memory)
    scarce = trainer(tmp_path / "scarce", **sgd)
    scarce.train()
    assert sizes == [8, 4] * 2 + [4] * 8  # each teacher fails once, and five rollouts are read by both
    torch.testing.assert_close(parameters(scarce), parameters(enough), atol=1e-6, rtol=1e-5)
    assert (parameters(enough) - parameters(trainer(tmp_path / "start"))).abs().max() > 1e-3


def test_padding_does_not_matter(tmp_path):
    made = trainer(tmp_path, controller=FixedController(policy=0.5))
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    rows = [made.train_dataset[i // 4] for i in range(8)]
    torch.manual_seed(0)
    inputs = made._generate_and_score_completions(rows)
    inputs["completion_mask"][:, 3:] = 0
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    record = made._begin_rollout(rows)
    record.rewards_AR = torch.zeros(8, 1)
    record.attempted_A = record.succeeded_A = torch.zeros(8, dtype=torch.bool)
    made._teacher_scoring.score(inputs, record, step=0)
    loss = made._compute_loss(made.model, inputs)
    spoilt = dict(inputs)
    spoilt["completion_ids"] = inputs["completion_ids"].clone()
    spoilt["completion_ids"][:, 3:] = 7
    for name in ("teacher_0_hidden", "teacher_1_hidden"):
        spoilt[name] = inputs[name].clone()
        spoilt[name][:, 4:] = float("nan")
    assert made._compute_loss(made.model, spoilt).item() == pytest.approx(loss.item(), rel=1e-5)


def test_a_teacher_speaks_without_dropout_and_is_not_trained(tmp_path):
    noisy = tiny.model(seed=1)
    noisy.config.attention_dropout = 0.9
    noisy.train()
    made = trainer(tmp_path, given=[Teacher(noisy, name="noisy", tokenizer=tiny.tokenizer())], max_steps=2)
    before = torch.cat([p.flatten() for p in noisy.parameters()])
    made.train()
    assert not noisy.training
    assert torch.equal(before, torch.cat([p.flatten() for p in noisy.parameters()]))


def test_a_teacher_with_a_shorter_vocabulary_falls_silent_at_the_first_token_that_it_lacks():
    teacher = Teacher(tiny.model(seed=1, vocabulary=12), "short", tokenizer=tiny.tokenizer())
    student = StudentInterface(tiny.model(), tiny.encoder(), feature=None)
    ensemble = TeacherEnsemble([teacher], student, prepare=lambda model: model)
    prompts, ids = torch.tensor([[5, 6, 7]] * 2), torch.tensor([[8, 14, 8, 9], [8, 9, 10, 11]])
    rollout = {"prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts)}
    rollout |= {"completion_ids": ids, "completion_mask": torch.ones_like(ids)}
    ensemble.score(rollout, torch.ones(2, 1).bool(), prompts=["", ""], temperature=1.0, rows_per_forward=8)
    assert rollout["teacher_tokens"][:, 0].tolist() == [[True, False, False, False], [True] * 4]
    with torch.no_grad():
        alone = teacher.load().model(torch.tensor([[5, 6, 7, 8, 9, 10, 11]])).last_hidden_state[0, 2:-1]
    torch.testing.assert_close(rollout["teacher_0_hidden"][1], alone, rtol=1e-4, atol=1e-5)


def test_a_larger_padded_vocabulary_is_cut(tmp_path):
    padded = Teacher(tiny.model(seed=1, vocabulary=20), name="padded", tokenizer=tiny.tokenizer())
    trainer(tmp_path, given=[padded], max_steps=1, controller=FixedController()).train()


@pytest.mark.parametrize("signals", [["policy"], ["feature"], ["policy", "feature"], ["response"]], ids=str)
def test_teachers_keep_their_weight_whichever_signals_take_part(tmp_path, signals):
    reward = 0.1 if "policy" in signals else 0.0
    made = trainer(tmp_path, signals=signals, teacher_reward=reward, max_steps=20)
    made.train()
    assert history(made, "teacher/wide/weight")[-1] > 0.2
    assert not [event for event in made.events if event.kind == "signal off"]
    assert bool(history(made, "divergence/wide")) == ("response" in signals)
    assert bool(history(made, "distance/wide")) == ("feature" in signals)


@pytest.mark.parametrize("changes", [{"loss_type": "grpo"}, {"loss_type": "dr_grpo"}, {"bf16": True}], ids=str)
def test_gradients_are_measured_the_same_whatever_the_policys_normaliser_or_precision(tmp_path, changes):
    def first(**options: Any) -> dict[str, float]:
        made = trainer(tmp_path, max_steps=1, controller=FixedController(decide_every=1), **options)
        made.train()
        return {name: history(made, f"grad/{name}")[0] for name in ("policy", "response", "feature")}

    assert first(**changes) == pytest.approx(first(), rel=0.05 if "bf16" in changes else 1e-4)


def test_a_teacher_that_ends_with_another_token_says_nothing_about_the_end(tmp_path):
    def run(end: int) -> float:
        teacher = tiny.model(seed=1)
        tokenizer = tiny.tokenizer()
        teacher.generation_config.eos_token_id = end
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        made = trainer(tmp_path, given=[Teacher(teacher, name="t", tokenizer=tokenizer)], controller=FixedController())
        made.model.train()
        torch.manual_seed(0)
        inputs = made._generate_and_score_completions([made.train_dataset[i // 4] for i in range(8)])
        ends = inputs["completion_ids"] == 1
        assert ends.any()
        return (inputs["teacher_tokens"][:, 0] & ends).any().item()

    assert run(1)
    assert not run(2)


def test_grpo_arguments_and_text_levels_and_numbered_skills(tmp_path):
    rows = tiny.rows().remove_columns("level").add_column("level", ["Level 5"] * 16)
    rows = rows.remove_columns("skill").add_column("skill", [0, 1] * 8)
    with pytest.raises(TypeError, match="RLDConfig"):
        RLDTrainer(tiny.model(), tiny.letters, GRPOConfig(**tiny.options(tmp_path)), rows)
    made = RLDTrainer(
        tiny.model(), tiny.letters, RLDConfig(**tiny.rld_options(tmp_path)), rows, processing_class=tiny.tokenizer()
    )
    made.train()
    assert made.skills == ["0", "1"]


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path):
    other = tiny.tokenizer()
    other.add_tokens(["brown"])
    with pytest.raises(TeacherError, match=r"'stranger'.*tokenizer differs"):
        trainer(tmp_path, given=[Teacher(tiny.model(1), name="stranger", tokenizer=other)])


def test_the_arguments_parse_like_trls(tmp_path):
    line = [
        "--output_dir",
        str(tmp_path),
        "--bf16",
        "false",
        "--signals",
        "policy",
        "response",
        "--teacher_reward",
        "0.1",
    ]
    for given, model in (("reverse_kl", ReverseKL()), ('{"kind": "jsd", "beta": 0.3}', JSD(beta=0.3))):
        (args,) = TrlParser((RLDConfig,)).parse_args_and_config([*line, "--divergence", given])
        assert ResponseObjective.from_config(args).divergence == model
        assert args.active_signals(has_teachers=True) == ["policy", "response"]
        assert args.teacher_reward == 0.1
    with pytest.raises(RecipeError, match="divergence="):
        ResponseObjective.from_config(RLDConfig(str(tmp_path), bf16=False, divergence="jds"))


def test_impossible_signals_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="need teachers"):
        trainer(tmp_path, given=[], signals=["feature"])
    with pytest.raises(RecipeError, match="'respnse'"):
        trainer(tmp_path, signals=["respnse"])
    with pytest.raises(RecipeError, match="loss_type: 'dapoo' is none of grpo"):
        trainer(tmp_path, loss_type="dapoo")


@pytest.mark.parametrize("lora", [False, True])
def test_resumed_is_uninterrupted(tmp_path, lora):
    from peft import LoraConfig

    def made(folder: str, **changes: Any) -> RLDTrainer:
        torch.manual_seed(0)
        return RLDTrainer(
            model=tiny.model(),
            reward_funcs=tiny.letters,
            args=RLDConfig(
                **tiny.rld_options(
                    tmp_path / folder, **{**EVERYTHING, "max_steps": 12, "save_strategy": "steps"}, **changes
                )
            ),
            train_dataset=tiny.rows(128),
            processing_class=tiny.tokenizer(),
            peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear") if lora else None,
            teachers=teachers(),
        )

    whole = made("whole", save_steps=7)
    whole.train()
    again = made("again", save_steps=7)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    for name in ("loss", "loss/response", "loss/feature", "weight/policy", "reward", "teacher/wide/weight/first"):
        assert history(again, name)[-5:] == history(whole, name)[-5:], name
    torch.testing.assert_close(parameters(again), parameters(whole), rtol=0, atol=0)
    exported = tiny.LlamaForCausalLM.from_pretrained if not lora else None
    if exported is not None:
        student = exported(tmp_path / "whole" / "checkpoint-7")
        assert not any("projection" in name for name, _ in student.named_parameters())


def test_the_last_complete_checkpoint_stays_until_the_next_one_is_complete(tmp_path, monkeypatch):
    made = trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1)
    write_state = checkpoints.write_json

    def killed_at_last(path: Path, content: Any) -> None:
        if made.state.global_step == 3:
            raise Killed
        write_state(path, content)

    monkeypatch.setattr(checkpoints, "write_json", killed_at_last)
    with pytest.raises(Killed):
        made.train()
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-2"
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert made.args.save_total_limit == 1


@pytest.mark.parametrize("changes", [{"num_iterations": 2}, {"steps_per_generation": 4}], ids=str)
def test_a_checkpoint_inside_a_rollout_goes_on_with_the_same_rollout(tmp_path, changes):
    def made(folder: str) -> RLDTrainer:
        chosen = tiny.rld_options(
            tmp_path / folder, **EVERYTHING, max_steps=8, save_strategy="steps", save_steps=3, **changes
        )
        return RLDTrainer(
            model=tiny.model(),
            reward_funcs=tiny.letters,
            args=RLDConfig(**chosen),
            train_dataset=tiny.rows(128),
            processing_class=tiny.tokenizer(),
            teachers=teachers(),
        )

    whole = made("whole")
    whole.train()
    again = made("again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert history(again, "loss")[-5:] == history(whole, "loss")[-5:]
    torch.testing.assert_close(parameters(again), parameters(whole), rtol=0, atol=0)


def test_resuming_with_other_weights_under_a_teachers_name_is_refused(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    swapped = [Teacher(tiny.model(seed=9, width=48, layers=3), name="wide", tokenizer=tiny.tokenizer()), teachers()[1]]
    with pytest.raises(CheckpointError, match="other weights of teacher 'wide'"):
        trainer(tmp_path, given=swapped, max_steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_without_what_its_gate_knows_is_refused_and_one_of_a_run_without_a_gate_is_not(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    for gate in ("off", "per_prompt"):
        trainer(tmp_path / gate, max_steps=2, gate=gate, **options).train()
    with_gate, without = (str(tmp_path / gate / "checkpoint-2") for gate in ("per_prompt", "off"))
    trainer(tmp_path, max_steps=3, gate="per_prompt", **options).train(resume_from_checkpoint=without)
    (tmp_path / "per_prompt" / "checkpoint-2" / "rld_gate.json").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-2 lacks rld_gate.json, what its gate knows"):
        trainer(tmp_path, max_steps=3, gate="per_prompt", **options).train(resume_from_checkpoint=with_gate)


def test_resuming_goes_on_with_the_teachers_there_are_and_says_who_came_and_left(tmp_path):
    options = {"signals": ["policy", "response"], "save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, max_steps=2, **options).train()
    new = Teacher(tiny.model(seed=9, width=48, layers=3), name="new", tokenizer=tiny.tokenizer())
    made = trainer(tmp_path, given=[new, teachers()[0]], max_steps=4, **options)
    with pytest.warns(UserWarning, match="teacher 'narrow' left"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    events = {(e.kind, e.about, e.step) for e in made.events if e.kind.startswith("teacher")}
    assert events >= {("teacher joined", "new", 2), ("teacher left", "narrow", 2)}
    assert made.runtime.teachers_SK.sum(1).tolist() == pytest.approx([1.0, 1.0])
    matching = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path / "matching", max_steps=2, **matching).train()
    with pytest.raises(CheckpointError, match="feature"):
        trainer(tmp_path, given=teachers()[:1], max_steps=4, **matching).train(
            resume_from_checkpoint=str(tmp_path / "matching" / "checkpoint-2")
        )


def test_activation_checkpointing_changes_nothing(tmp_path):
    def run(on: bool) -> torch.Tensor:
        made = trainer(tmp_path, activation_checkpointing=on, max_steps=3, optim="sgd", controller=FixedController())
        made.train()
        return parameters(made)

    torch.testing.assert_close(run(True), run(False), rtol=1e-5, atol=1e-7)


def test_evaluation_changes_neither_controller_nor_ledger(tmp_path):
    made = RLDTrainer(
        model=tiny.model(),
        reward_funcs=tiny.letters,
        args=RLDConfig(**tiny.rld_options(tmp_path, **EVERYTHING, per_device_eval_batch_size=4)),
        train_dataset=tiny.rows(),
        eval_dataset=tiny.rows(4),
        processing_class=tiny.tokenizer(),
        teachers=teachers(),
    )
    assert {"eval_loss", "eval_loss/response", "eval_reward"} <= made.evaluate().keys()  # what the student starts from
    made.train()

    def counted() -> Any:
        totals = dataclasses.asdict(made.totals)
        return made.runtime.state_dict(), made.flop_meter.total, totals, made._joint_loss.statistics.to_json()

    before = counted()
    scores = made.evaluate()
    assert {"eval_loss", "eval_loss/response", "eval_reward"} <= scores.keys()
    assert counted() == before


def test_a_students_own_generation_options_do_not_change_what_is_sampled(tmp_path):
    """huggingface/trl issue 5783: `generate` fills gaps in the trainer's options from the model's."""
    hostile = {
        "min_new_tokens": 6,
        "suppress_tokens": [5, 6],
        "no_repeat_ngram_size": 1,
        "top_k": 1,
        "temperature": 0.1,
    }
    completions = []
    for options in ({}, hostile):
        model = tiny.model()
        model.generation_config.update(**options)
        args = RLDConfig(**tiny.rld_options(tmp_path, signals=["policy"], max_steps=1, log_completions=True))
        made = RLDTrainer(model, tiny.letters, args, train_dataset=tiny.rows(), processing_class=tiny.tokenizer())
        made.train()
        completions.append(list(made._logs["completion"]))
        assert made.model.generation_config.to_diff_dict().get("min_new_tokens") == options.get("min_new_tokens")
    assert completions[0] == completions[1]


def test_a_curriculum_orders_a_users_rows(tmp_path):
    class Stubborn:
        def __init__(self) -> None:
            self.tasks: list[Any] = []

        def next(self, rng: Any) -> Any:
            return ("second", 0)

        def observe(self, task: Any, successes: int, attempts: int) -> None:
            self.tasks.append((*task, attempts))

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

        def metrics(self) -> dict[str, float]:
            return {"level/second": 0.0}

    curriculum = Stubborn()
    made = RLDTrainer(
        model=tiny.model(),
        reward_funcs=tiny.letters,
        args=RLDConfig(**tiny.rld_options(tmp_path)),
        train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
        curriculum=curriculum,
    )
    made.train()
    assert curriculum.tasks == [("second", 0, 8)] * 5
    assert history(made, "level/second") == [0.0] * 5


def test_epochs_over_a_users_rows_are_counted_in_prompts(tmp_path):
    curriculum = registry.load("curricula", "fixed:Uniform", tmp_path)({"first": 1, "second": 1})
    chosen = {**tiny.rld_options(tmp_path), "max_steps": -1, "num_train_epochs": 2}
    made = RLDTrainer(
        model=tiny.model(),
        reward_funcs=tiny.letters,
        args=RLDConfig(**chosen),
        train_dataset=tiny.rows(6),
        processing_class=tiny.tokenizer(),
        curriculum=curriculum,
    )
    made.train()
    assert made.state.global_step == 6  # two epochs of six prompts, two prompts an update
