"""What must not be forgotten: the rule alone, its loss, and training with it."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel
from trl.trainer.utils import add_fused_lm_head

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.controllers.retention_rule import RetentionRule
from rld.errors import DataError, RecipeError
from rld.models import generation
from rld.models.heads import LMHead
from rld.teachers.teacher import Teacher
from rld.trainer.replay import replay_divergence, sample_examples, share_of_part
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.trainer.student_forward import add_signal_forward

# -- the rule ---------------------------------------------------------------------------------------------------------


def at(weight: float, rule: RetentionRule, asked: int = 32) -> Any:
    """The state of a skill that was known wholly, at this λ."""
    state = rule.start({"old": (asked, asked)})
    state["skills"]["old"]["weight"] = weight
    return state


def path(probes: list[int], asked: int = 32, state: Any = None) -> tuple[Any, list[float], list[str]]:
    """λ after each of the probes, from 0, of which the numbers are right answers; and the kinds of the events."""
    rule, weights, kinds = RetentionRule(drop=0.05), [], []
    state = at(0.0, rule, asked) if state is None else state
    for step, right in enumerate(probes):
        state, events = rule.step(state, {"old": (right, asked)}, step)
        weights.append(rule.weights(state)["old"])
        kinds += [event.kind for event in events]
    return state, weights, kinds


def test_a_stage_begins_insured_and_the_insurance_leaks_away_where_nothing_is_lost():
    rule = RetentionRule(drop=0.05)
    state = rule.start({"old": (32, 32)})
    assert rule.weights(state) == {"old": 2.0}
    _, weights, kinds = path([32] * 120, state=state)
    assert weights[0] == pytest.approx(2 * 0.95 - 0.05)  # the leak, and how much better it is than it must be
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] == 0.0
    assert kinds == ["retention off"]
    _, weights, kinds = path([16, 32, 16], state=state)
    assert weights[0] == pytest.approx(2 + 4 * 0.2)
    assert kinds == ["retention on"]


def test_without_a_violation_the_weight_stays_0_and_decays_to_0_after_one():
    assert path([32, 31, 32])[1] == [0.0, 0.0, 0.0]
    state, (first, second), _ = path([16, 16])
    assert second > first > 0
    _, weights, kinds = path([32] * 80, state=state)
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] == 0.0
    assert kinds == ["retention off"]


def test_with_no_drop_allowed_the_weight_decays_too_once_nothing_is_lost():
    rule = RetentionRule(drop=0.0)
    state = at(0.0, rule)
    for step, right in enumerate([16, *[32] * 120]):
        state, _ = rule.step(state, {"old": (right, 32)}, step)
    assert rule.weights(state)["old"] == 0.0


def test_a_steady_violation_grows_it_linearly_to_the_limit_and_no_further():
    _, weights, kinds = path([16] * 80)
    growth = [b - a for a, b in itertools.pairwise(weights)]
    assert weights[0] == pytest.approx(4 * 0.2)  # both gains at once, the violation cut at 0.2
    assert growth[:40] == pytest.approx([0.2] * 40)
    assert weights[-1] == 10.0
    assert kinds == ["retention on", "retention infeasible"]


def test_nothing_winds_up_behind_the_limit():
    for length in (60, 600):
        state, _, _ = path([0] * length)
        _, weights, _ = path([32] * 20, state=state)
        assert weights[0] < 9.5
        assert weights[-1] < 4


def test_a_drop_within_a_standard_error_of_what_is_allowed_moves_nothing_up():
    assert path([30, 29, 30], asked=32)[1] == [0.0, 0.0, 0.0]  # allowed are 30.4; an error is 1.7
    assert path([290, 280, 290], asked=320)[1][1] > 0


def test_a_budgets_weight_follows_the_ratio_of_divergence_and_budget_within_its_bounds():
    rule = RetentionRule(budget=0.1)
    state = at(0.0, rule)
    assert rule.weights(state) == {"old": 0.01}, "what is not replayed is not measured"
    weights, events = [], []
    for step, drift in enumerate([0.11, 0.4, 0.4, *[0.4] * 60, 0.09, 0.07, 0.0, None]):
        state, news = rule.step(state, {"old": (32, 32)}, step, drift)
        weights.append(rule.weights(state)["old"])
        events += [(event.step, event.kind) for event in news]
    assert weights[:3] == pytest.approx([0.011, 0.011 * 1.2, 0.011 * 1.2**2])
    assert max(weights) == 10.0
    assert weights[-3:] == pytest.approx([10 * 0.9 * 0.8, 10 * 0.9 * 0.8**2, 10 * 0.9 * 0.8**2])
    assert events == [(0, "budget exceeded"), (64, "budget kept")]
    assert RetentionRule().weights(state) == {"old": 0.0}


def test_skills_are_probed_every_second_tick_at_first_and_every_fifth_later():
    rule = RetentionRule()
    state, due = rule.start({"old": (1, 1)}), []
    for tick in range(1, 41):
        state, now = rule.tick(state)
        due += [tick] if now else []
    assert due == [*range(2, 21, 2), 25, 30, 35, 40]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 32), min_size=2, max_size=40), st.integers(0, 40))
def test_the_weight_is_bounded_and_a_state_through_json_goes_on_bit_for_bit(probes, cut):
    whole, weights, _ = path(probes)
    assert all(0 <= weight <= 10 for weight in weights)
    half, _, _ = path(probes[:cut])
    assert path(probes[cut:], state=json.loads(json.dumps(half)))[0] == whole


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_the_divergence_and_its_gradient_are_those_of_a_plain_reference():
    tokenizer, before, now = tiny.tokenizer(), tiny.model(seed=3), tiny.model(seed=4)
    prompts = [[5, 6, 4], [7, 4], [8, 9, 10, 4]]
    options: Any = {"skills": ["old"] * 3, "prompts": prompts, "max_new_tokens": 5, "seed": 0}
    kept = sample_examples(before, before, tokenizer, **options)
    assert [memory.prompt for memory in kept] == prompts
    assert len({tuple(memory.completion) for memory in kept}) > 1
    again = sample_examples(before, before, tokenizer, **options)
    assert [memory.completion for memory in again] == [memory.completion for memory in kept]

    weights = [0.5, 0.0, 2.0]
    expected, total_kl = torch.zeros(()), 0.0
    for memory, weight in zip(kept, weights, strict=True):
        ids = torch.tensor([memory.prompt + memory.completion])
        spoken = slice(len(memory.prompt) - 1, -1)
        p, q = (m(input_ids=ids).logits[0, spoken].log_softmax(-1) for m in (before, now))
        kl = (p.detach().exp() * (p.detach() - q)).sum()
        expected = expected + weight * kl
        total_kl += kl.item() * (weight > 0)
    gradient = torch.autograd.grad(expected, list(now.parameters()))

    add_fused_lm_head(now)
    add_signal_forward(now)
    rows = list(zip(kept, weights, strict=True))
    total, seen = replay_divergence(now, LMHead.of(before).detach(), rows, torch.device("cpu"))
    torch.testing.assert_close(total, expected.detach(), rtol=1e-4, atol=1e-5)
    assert seen.tolist() == pytest.approx([total_kl, len(kept[0].completion) + len(kept[2].completion)], rel=1e-4)
    for mine, theirs in zip(torch.autograd.grad(total, list(now.parameters())), gradient, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_a_student_with_learnt_positions_is_not_far_from_itself():
    """Prompts of different lengths are padded, and padding is no position."""
    torch.manual_seed(0)
    student = GPT2LMHeadModel(GPT2Config(vocab_size=15, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    prompts = [[5, 6, 4], [7, 4], [8, 9, 10, 4]]
    kept = sample_examples(
        student, student, tiny.tokenizer(), skills=["old"] * 3, prompts=prompts, max_new_tokens=5, seed=0
    )
    add_fused_lm_head(student)
    add_signal_forward(student)
    student.eval()
    _, (apart, count) = replay_divergence(
        student, LMHead.of(student), [(memory, 1.0) for memory in kept], torch.device("cpu")
    )
    assert count > 0
    assert apart.item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_parts_of_an_update_are_of_one_size_and_count_each_row_once(parts):
    kept: list[Any] = [(name, 1.0) for name in "abcde"]
    split = [share_of_part(kept, index, parts) for index in range(parts)]
    assert len({len(part) for part in split}) == 1
    assert sorted(name for part in split for name, weight in part if weight) == list("abcde")


# -- training ---------------------------------------------------------------------------------------------------------


def rows(mark: str, shift: int, skill: str) -> list[dict[str, Any]]:
    """Prompts of two letters and a mark, answered by the second letter, moved on in the alphabet."""
    letters = tiny.WORDS
    pairs = [(a, b) for b in range(10) for a in range(0, 10, 2)]
    answers = [(f"{letters[a]}{letters[b]}{mark}", letters[(b + shift) % 10]) for a, b in pairs]
    return [{"prompt": prompt, "answer": answer, "skill": skill} for prompt, answer in answers]


OLD, NEW = rows(":", 0, "old"), rows("=", 3, "new")


def exact(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [float(said.strip() == right) for said, right in zip(completions, answer, strict=True)]


def taught(given: list[dict[str, Any]], steps: int) -> Any:
    """A model that knows the answers."""
    made, tokenizer = tiny.model(), tiny.tokenizer()
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    ids = torch.tensor([[*tokenizer(row["prompt"] + row["answer"])["input_ids"], 1] for row in given])
    for _ in range(steps):
        logits = made(input_ids=ids).logits[:, 2:-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 3:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made


def right(model: Any, given: list[dict[str, Any]]) -> float:
    texts = [answer.text for answer in generation.generate(model, tiny.encoder(), given, max_new_tokens=3)]
    return sum(exact(texts, [row["answer"] for row in given])) / len(given)


@pytest.fixture(scope="module")
def models():
    old, new = taught(OLD, 100), taught(NEW, 100)
    assert right(old, OLD) == right(new, NEW) == 1
    return {name: model.state_dict() for name, model in (("old", old), ("new", new))}


def trainer(folder: Any, models: Any, retain: Any = None, **changes: Any) -> Any:
    student, teacher = tiny.model(), tiny.model()
    student.load_state_dict(models["old"])
    teacher.load_state_dict(models["new"])
    options = {"learning_rate": 3e-3, "max_completion_length": 3, "per_device_train_batch_size": 32, "max_steps": 40}
    options |= {"num_generations": 2, "lr_scheduler_type": "constant", "divergence": "forward_kl"}
    return RLDTrainer(
        model=student,
        reward_funcs=exact,
        args=RLDConfig(**tiny.rld_options(folder, **{**options, **changes}), signals=["response"], retain=retain),
        train_dataset=Dataset.from_list(NEW),
        processing_class=tiny.tokenizer(),
        teachers=[Teacher(teacher, name="new", tokenizer=tiny.tokenizer())],
        controller=FixedController(decide_every=1),
        retain_dataset=random.Random(0).sample(OLD, len(OLD)) if retain is not None else None,
    )


RULE = {"drop": 0.02, "probe_prompts": 20, "prompts": 30, "batch": 15}


def test_an_old_skill_is_forgotten_without_and_kept_with_retention(tmp_path, models):
    free, held = trainer(tmp_path, models), trainer(tmp_path, models, RULE)
    for made in (free, held):
        made.train()
        assert right(made.model, NEW) > 0.9
    assert right(free.model, OLD) < 0.5
    assert right(held.model, OLD) > 0.8
    assert [event.kind for event in held.events if event.kind.startswith("retention")] == ["retention on"]
    logged = {name for entry in held.state.log_history for name in entry}
    assert {"weight/reference", "weight/reference/old", "retention/old", "loss/reference"} <= logged


def test_a_budget_keeps_a_student_near_what_it_was(tmp_path, models):
    rule = {**RULE, "drop": 0.9, "skills": ["old"]}
    drifts = []
    for budget in (10.0, 0.02):
        made = trainer(tmp_path, models, {**rule, "budget": budget}, max_steps=60)
        made.train()
        logged = [entry["loss/reference"] for entry in made.state.log_history if "loss/reference" in entry]
        drifts.append(sum(logged[-10:]) / 10)
    assert drifts[0] > 3 * drifts[1]
    assert "budget exceeded" in {event.kind for event in made.events}


class Always(RetentionRule):
    """Holds on with the same strength throughout."""

    def weights(self, state: Any) -> dict[str, float]:
        return dict.fromkeys(state["skills"], 0.5)


class Never(RetentionRule):
    """Probes, and does not hold on."""

    def weights(self, state: Any) -> dict[str, float]:
        return dict.fromkeys(state["skills"], 0.0)


def weights(made: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


def test_an_update_is_the_same_in_one_part_and_in_four(tmp_path, models):
    results = []
    for size, parts in ((32, 1), (8, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "optim": "sgd"}
        made = trainer(tmp_path, models, RULE, max_steps=3, temperature=1e-4, **options)
        made.retention.rule = Always(**RULE)
        made.train()
        results.append(weights(made))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


def test_at_weight_0_an_update_is_what_it_is_without_and_runs_no_replay(tmp_path, models, monkeypatch):
    free, held = (trainer(tmp_path, models, given, max_steps=3) for given in (None, RULE))
    held.retention.rule = Never(**RULE)
    monkeypatch.setattr("rld.trainer.retention.replay_divergence", None)
    for made in (free, held):
        torch.manual_seed(0)
        made.train()
    assert torch.equal(weights(free), weights(held))
    size = free.model.num_parameters()
    probed = 2 * size * sum(len(tiny.tokenizer()(row["prompt"])["input_ids"]) + 1 for row in OLD[:20])
    replayed_flops = 2 * 2 * size * sum(memory.size for memory in held.retention._buffer.examples)
    spent = held.flop_meter.accounts["retention"]
    assert spent == pytest.approx(replayed_flops + 2 * probed, rel=0.05)  # at the start and at tick 2
    assert held.flop_meter.total - free.flop_meter.total == pytest.approx(spent)


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, models):
    options = {"max_steps": 8, "per_device_train_batch_size": 8}  # within one epoch
    rule = {**RULE, "budget": 0.02}
    whole = trainer(tmp_path / "whole", models, rule, save_strategy="steps", save_steps=3, **options)
    whole.train()
    resumed = trainer(tmp_path / "again", models, rule, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))  # between two probes
    assert whole.retention.state["budget"]["weight"] > 0.01
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.retention.state == whole.retention.state
    assert resumed.flop_meter.total == whole.flop_meter.total


def test_a_replay_whose_divergence_is_not_finite_is_not_measured(tmp_path, models, monkeypatch):
    def spoilt(*args: Any) -> Any:
        return tuple(value * float("nan") for value in replay_divergence(*args))

    made = trainer(tmp_path, models, {**RULE, "budget": 0.02}, max_steps=1)
    monkeypatch.setattr("rld.trainer.retention.replay_divergence", spoilt)
    before = weights(made)
    made.train()
    assert torch.equal(weights(made), before), "the update is skipped"
    assert made.retention.state_dict()["divergence"] == [0, 0]


def test_what_can_not_be_protected_is_said(tmp_path, models):
    with pytest.raises(DataError, match="no rows of skill 'odl'; did you mean 'old'"):
        trainer(tmp_path, models, {"skills": ["odl"]})
    with pytest.raises(DataError, match="50 rows, of which 60 are for probes"):
        trainer(tmp_path, models, {"probe_prompts": 60})
    with pytest.raises(RecipeError, match="drop"):
        trainer(tmp_path, models, {"drop": 2})
    with pytest.raises(RecipeError, match="can't be asked"):
        RLDTrainer(
            model=tiny.model(),
            args=RLDConfig(**tiny.rld_options(tmp_path)),
            train_dataset=tiny.rows(),
            processing_class=tiny.tokenizer(),
            teachers=[Teacher(tiny.model(), name="a", tokenizer=tiny.tokenizer())],
            retain_dataset=OLD,
        )
