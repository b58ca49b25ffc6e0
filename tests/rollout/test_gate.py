"""A teacher teaches on the prompts that it answers rightly."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rld.rewards.answers import exact_match

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.controllers.gap import GapController
from rld.controllers.observation import Observation, SkillObservation, TeacherObservation
from rld.errors import RecipeError, TeacherDown, TeacherError
from rld.rollout import gate_memory
from rld.rollout.counts import gate_counts
from rld.rollout.gate import TeacherGate, unverified
from rld.rollout.gate_memory import GateMemory, Judgement, News, SecondAnswer
from rld.rollout.gate_questions import GateVerdict, ScoringForwards
from rld.teachers.local import LocalLogprobs
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.types import Answer
from rld.utils.flops import forward_flops

CPU = torch.device("cpu")


def rows() -> list[dict[str, Any]]:
    return [dict(row) for row in tiny.rows(8)]


def teacher(name: str = "wide", seed: int = 1) -> Teacher:
    return Teacher(tiny.model(seed=seed, width=48, layers=3), name=name, tokenizer=tiny.tokenizer())


def answers(made: Teacher, given: list[dict[str, Any]]) -> list[str]:
    """What a teacher answers, one prompt at a time."""
    tokenizer = tiny.tokenizer()
    texts = []
    for row in given:
        ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
        out = made.load().generate(ids, do_sample=False, max_new_tokens=3, pad_token_id=0, eos_token_id=1)
        texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


class Verifier:
    """Right is what `wide` says to the prompts with an even number, and counts how often it was asked."""

    def __init__(self, right: dict[str, str]) -> None:
        self.right, self.asked = right, 0

    def __call__(self, prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        self.asked += len(prompts)
        return [float(self.right.get(p) == c) for p, c in zip(prompts, completions, strict=True)]


def gate_and_verifier(made: Teacher, given: list[dict[str, Any]]) -> tuple[TeacherGate, Verifier]:
    texts = answers(made, given)
    verify = Verifier({row["prompt"]: text for row, text in list(zip(given, texts, strict=True))[::2]})
    return gate_of([made, teacher("stranger", 7)], verify), verify


def gate_of(teachers: list[Teacher], verify: Any, **options: Any) -> TeacherGate:
    return TeacherGate(teachers, tiny.encoder(), verify, max_new_tokens=3, device=CPU, **options)


def constant(reward: float | None) -> Any:
    """A verifier that gives the same reward to all answers."""
    return lambda completions, **_: [reward] * len(completions)


def judged(gate: TeacherGate, rows: list[dict[str, Any]], needed_BK: torch.Tensor | None = None) -> GateVerdict:
    """The verdict of a gate; without `needed_BK` it has one teacher, which every row needs."""
    needed_BK = torch.ones(len(rows), 1, dtype=torch.bool) if needed_BK is None else needed_BK
    return gate.decide(gate.ask(rows, needed_BK), {})


def test_it_opens_where_the_verifier_agrees_and_asks_each_prompt_once():
    given = rows()
    gate, verify = gate_and_verifier(teacher(), given)
    group = [row for row in given for _ in range(2)]
    wanted = torch.ones(16, 2, dtype=torch.bool)
    wanted[:, 1] = False
    verdict = judged(gate, group, wanted)
    assert verdict.open_BK[:, 0].tolist() == [True, True, False, False] * 4
    assert not verdict.open_BK[:, 1].any()
    assert verify.asked == 8
    assert verdict.tokens_K[0] > 0
    second = judged(gate, group, wanted)
    assert torch.equal(second.open_BK, verdict.open_BK)
    assert (verify.asked, verdict.tokens_K[1], second.tokens_K) == (8, 0, [0, 0])


@pytest.mark.parametrize("is_source", [False, True])
def test_a_teacher_whose_logits_are_nan_is_named_and_is_no_divergence_of_the_student(is_source):
    own = teacher()
    broken = Teacher(LocalLogprobs(own, CPU), "wide", tokenizer=tiny.tokenizer()) if is_source else own
    own.load().model.norm.weight.data[0] = float("nan")
    message = "teacher 'wide' generates from logits that are NaN: its weight model.norm.weight is not finite"
    with pytest.raises(TeacherError, match=message):
        judged(gate_of([broken], constant(1.0)), rows())


class Silent(LocalLogprobs):
    """A teacher whose server does not answer."""

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int, ends: Collection[int] = ()) -> list[Answer]:
        raise TeacherDown("no answer")


def test_a_teacher_that_is_down_is_asked_again_when_it_is_back(tmp_path):
    """After a resume too: nothing of it is kept, neither what it got wrong nor how often."""
    down = Teacher(Silent(teacher(), CPU), "wide", tokenizer=tiny.tokenizer(), optional=True)
    gate = gate_of([down], constant(1.0))
    given = rows()
    verdict = judged(gate, given)
    assert not verdict.open_BK.any()
    assert down.is_down
    needed_BK, skills_B = torch.ones(len(given), 1, dtype=torch.bool), torch.zeros(len(given), dtype=torch.long)
    is_attempt_B = needed_BK[:, 0]
    counts = gate_counts(
        verdict,
        needed_BK,
        skills_B,
        attempted_A=is_attempt_B,
        succeeded_A=is_attempt_B,
        group_size=1,
        skills=["first"],
    )
    assert counts.to_json()["prompts_SK"] == [[0]], "nobody answered them, right or wrong"
    gate.save(tmp_path / "gate.json")
    resumed = gate_of([teacher()], gate.verify)
    resumed.load(tmp_path / "gate.json")
    assert judged(resumed, rows()).open_BK.all()


def test_where_the_verifier_has_no_say_a_teacher_is_trusted():
    assert judged(gate_of([teacher()], constant(None)), rows()).open_BK.all()


def test_a_teacher_that_is_never_right_is_told_of_once():
    gate = gate_of([teacher()], constant(0.5))
    with pytest.warns(UserWarning, match=r"'wide' answered none of its first 100 prompts correctly.*gate to off"):
        judged(gate, [{"prompt": f"{a}{b}"} for a in tiny.WORDS for b in tiny.WORDS])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judged(gate, [{"prompt": f"{a}{b}="} for a in tiny.WORDS for b in tiny.WORDS])


def test_the_counts_are_of_prompts_for_teachers_and_of_attempts_for_the_student():
    counts = gate_counts(
        GateVerdict(
            open_BK=torch.tensor([[True, False]] * 2 + [[True, True]] * 2),
            assumed_BK=torch.tensor([[False, False]] * 2 + [[False, True]] * 2),
            has_answer_BK=torch.tensor([[True, True]] * 2 + [[True, False]] * 2),
            second_K=[[SecondAnswer("b", True)], [SecondAnswer("b", False)]],
            tokens_K=[0, 0],
        ),
        torch.ones(4, 2, dtype=torch.bool),
        torch.tensor([0, 0, 1, 1]),
        attempted_A=torch.tensor([False, True, False, True]),  # the first of each pair is a gold answer
        succeeded_A=torch.tensor([False, True, False, False]),
        group_size=2,
        skills=["a", "b"],
    )
    assert counts.to_json() == {
        "prompts_SK": [[1, 1], [1, 0]],  # the last verdict is assumed
        "correct_SK": [[1, 0], [1, 0]],
        "attempts_SK": [[1, 0], [1, 1]],
        "successes_SK": [[1, 0], [0, 0]],
        "resampled_SK": [[0, 0], [1, 1]],
        "resampled_correct_SK": [[0, 0], [1, 0]],
    }


def prompts(num: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": tiny.WORDS[i % 10] + tiny.WORDS[i // 10] + "=", "skill": "s"} for i in range(first, first + num)]


def test_a_teacher_is_asked_once_more_where_it_is_right_and_seldom_once_that_is_known(tmp_path):
    """Greedy answers are all right here, and sampled ones where they are the same."""
    made, greedy = teacher(), {}

    def verify(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [float(greedy.setdefault(p, c) == c and p[0] != "a") for p, c in zip(prompts, completions, strict=True)]

    gate = gate_of([made], verify, resampling_temperature=1.0)
    before = torch.get_rng_state()
    verdict = judged(gate, [row for row in prompts(20) for _ in range(2)])
    assert torch.equal(torch.get_rng_state(), before)
    (second,) = verdict.second_K
    assert verdict.open_BK[:, 0].tolist() == ([False] * 2 + [True] * 18) * 2
    assert len(second) == 18, "one of each open prompt"
    assert 0 < sum(answer.is_correct for answer in second) < 18
    nums = [len(judged(gate, prompts(3, first)).second_K[0]) for first in range(21, 96, 3)]
    last_question = next(i for i in range(len(nums)) if 18 + sum(nums[: i + 1]) >= 32)
    assert [i + 2 for i, num in enumerate(nums) if num and i > last_question] == [16]  # then in one rollout of 16
    gate.save(tmp_path / "gate.json")
    resumed = gate_of([teacher()], verify, resampling_temperature=1.0)
    resumed.load(tmp_path / "gate.json")
    new = [{"prompt": "jj=", "skill": "s"}, {"prompt": "jj=j", "skill": "s"}]
    assert judged(gate, new).second_K == judged(resumed, new).second_K
    gate.forget(0)
    assert len(judged(gate, [{"prompt": "bc=", "skill": "s"}]).second_K[0]) == 1


def test_a_verdict_is_assumed_where_all_of_the_latest_are_the_same(tmp_path):
    """Answers to prompts that begin with `b` are correct, and those of level 1 change sides at some point."""
    changed = set()

    def verify(prompts: list[str], level: list[int], **_: Any) -> list[float]:
        return [float((p[0] == "b") != (n in changed)) for p, n in zip(prompts, level, strict=True)]

    def of(letter: str, num: int) -> list[dict[str, Any]]:
        texts = (letter + "".join(rest) for rest in itertools.product(tiny.WORDS, repeat=3))
        new = [{"prompt": text, "skill": letter, "level": 1, "answer": "j"} for text in texts if text not in asked]
        asked.update(row["prompt"] for row in new[:num])
        return new[:num]

    asked: set[str] = set()
    gate = gate_of([teacher()], verify)
    assert not judged(gate, of("b", 499) + of("c", 498)).assumed_BK.any()
    verdict = judged(gate, of("b", 100) + of("c", 40))
    assert 75 < verdict.assumed_BK[:100].sum() < 95, "all but about one in 8"
    assert not verdict.assumed_BK[100:].any(), "498 are too few"
    assert verdict.open_BK[:, 0].tolist() == [True] * 100 + [False] * 40
    gate.save(tmp_path / "gate.json")
    resumed = gate_of([teacher()], verify)
    resumed.load(tmp_path / "gate.json")
    verdict = judged(resumed, of("b", 40) + of("c", 40))
    assert 20 < verdict.assumed_BK[:40].sum() < 40
    assert 20 < verdict.assumed_BK[40:].sum() < 40
    assert verdict.open_BK[:, 0].tolist() == [True] * 40 + [False] * 40
    assert not judged(resumed, [row | {"level": 2} for row in of("b", 40)]).assumed_BK.any(), "another level"
    changed.add(1)
    verdict = judged(resumed, of("b", 40))
    assert verdict.open_BK.sum() == verdict.assumed_BK.sum() > 20
    verdict = judged(resumed, of("b", 40))
    assert not verdict.assumed_BK.any() and not verdict.open_BK.any(), "one other verdict, and all are asked again"
    resumed.memories[0].streaks["b 1"] = 1000
    resumed.forget(0)
    assert not judged(resumed, of("b", 40)).assumed_BK.any()


def test_what_is_assumed_of_a_teacher_is_wrong_on_less_than_one_prompt_in_500():
    """A teacher that is wrong on 0.4% of the prompts, at which most wrong answers pass: 24 runs of 4,000 prompts."""
    rng, num_wrong, num_assumed = random.Random(0), 0, 0
    for _ in range(24):
        memory = GateMemory("t")
        for _ in range(0, 4000, 8):
            asked = {f"{rng.getrandbits(64):016x}": {"skill": "s"} for _ in range(8)}
            correct = {key: rng.random() >= 0.004 for key in asked}
            assumed = memory.assumed(asked)
            num_assumed += len(assumed)
            num_wrong += sum(assumed[key] != correct[key] for key in assumed)
            memory.learn(
                [News([Judgement(key, "s", "s 0", correct[key], None) for key in asked if key not in assumed])]
            )
    assert num_assumed > 24 * 4000 * 0.2
    assert num_wrong < 24 * 4000 * 0.002


def test_nobody_is_asked_once_more_unless_the_controller_wants_it_or_where_nothing_is_sampled():
    listed = Teacher(LocalLogprobs(teacher(), CPU), "far", tokenizer=tiny.tokenizer())
    for made, temperature in ((teacher(), None), (listed, 1.0)):
        verdict = judged(gate_of([made], constant(1.0), resampling_temperature=temperature), rows())
        assert verdict.open_BK.all()
        assert verdict.second_K == [[]]
    gate = gate_of([teacher()], constant(None), resampling_temperature=1.0)
    spent = [sum(judged(gate, prompts(20, first)).tokens_K) for first in range(0, 60, 20)]
    assert spent[1] > 1.5 * spent[2]  # a verifier that does not apply is not asked for ever
    assert GapController().required_measurements.resampled_answers
    assert not (
        GapController(use_gate_counts=False).required_measurements.resampled_answers
        or FixedController().required_measurements.resampled_answers
    )


def test_training_teaches_on_open_prompts_alone_and_gives_their_weight_to_teachers_that_may(tmp_path):
    one, two = teacher(), teacher("stranger", 7)
    verify = Verifier({row["prompt"]: text for row, text in zip(rows()[::2], answers(one, rows()[::2]), strict=True)})
    made = RLDTrainer(
        tiny.model(),
        verify,
        RLDConfig(**tiny.rld_options(tmp_path, gate="per_prompt", num_generations=2, max_completion_length=3)),
        tiny.rows(8),
        processing_class=tiny.tokenizer(),
        teachers=[one, two],
        controller=FixedController(policy=0.0, response=1.0, decide_every=1, recheck_every=1000),
    )
    made.runtime.ticks = 1
    made.model.train()
    rollout = made._generate_and_score_completions([row for row in rows()[:4] for _ in range(2)])
    assert rollout["teacher_weights"].tolist() == [[1, 0], [1, 0], [0, 0], [0, 0]] * 2
    assert (
        rollout["teacher_tokens"].any(-1).tolist() == [[True, False], [True, False], [False, False], [False, False]] * 2
    )
    used = {name: values for name, values in made._metrics["train"].items() if "/used/" in name}
    assert used == {
        "teacher/wide/used/first": [0.0],
        "teacher/wide/used/second": [1.0],
        "teacher/stranger/used/first": [0.0],
        "teacher/stranger/used/second": [0.0],
    }
    gate = made.runtime._window.gate
    assert (gate.prompts_SK.sum().item(), gate.correct_SK.sum().item()) == (8, 2)


def test_a_reward_that_goes_by_the_step_gets_the_present_one_from_the_gate_too(tmp_path):
    steps = []

    def reward(completions, trainer_state, **_):
        steps.append(trainer_state.global_step)
        return [1.0] * len(completions)

    made = RLDTrainer(
        tiny.model(),
        reward,
        RLDConfig(**tiny.rld_options(tmp_path, gate="per_prompt", max_steps=3)),
        tiny.rows(24),
        processing_class=tiny.tokenizer(),
        teachers=[teacher()],
        controller=FixedController(),
    )
    made.train()
    assert len(steps) > 3
    assert steps == sorted(steps)


@pytest.mark.parametrize("combine", ["mixture", "best_of"])
def test_the_mask_of_kdrl_leaves_out_completions_that_succeeded_and_their_forwards(tmp_path, combine):
    made = RLDTrainer(
        tiny.model(),
        lambda completions, **_: [float("a" in text) for text in completions],
        RLDConfig(**tiny.rld_options(tmp_path, distill_on="failed_completions", combine_teachers=combine)),
        tiny.rows(8),
        processing_class=tiny.tokenizer(),
        teachers=[teacher(), teacher("stranger", 7)],
        controller=FixedController(),
    )
    made.model.train()
    torch.manual_seed(0)
    rollout = made._generate_and_score_completions([row for row in rows()[:4] for _ in range(4)])
    texts = made.processing_class.batch_decode(rollout["completion_ids"], skip_special_tokens=True)
    failed = torch.tensor(["a" not in text for text in texts])
    assert 0 < failed.sum() < 16
    assert torch.equal(rollout["teacher_weights"].sum(1), failed.float())
    assert rollout["num_taught"] == rollout["completion_mask"][failed].sum()
    run = rollout["teacher_tokens"].any(-1).any(-1)
    assert torch.equal(run, failed) if combine == "mixture" else run.all()
    made.train()
    with pytest.raises(RecipeError, match="distill_on: 'wrong' is none of all, failed"):
        RLDConfig(**tiny.rld_options(tmp_path, distill_on="wrong"))


def seen(right: int, asked: int, successes: int, attempts: int, divergence: float = 0.5) -> TeacherObservation:
    return TeacherObservation(divergence, 0, 0, True, asked, right, attempts, successes)


def test_gap_values_a_gated_teacher_by_what_the_student_still_fails_where_it_is_right():
    controller = GapController()
    state = controller.start(["a"], ["weak", "useless"], ["policy", "response"])
    for step in range(12):
        # The student is better than `weak` over all, and still fails half of what that one knows.
        news = {"weak": seen(8, 16, 20, 40), "useless": seen(0, 16, 0, 0)}
        state, weights, _ = controller.step(state, Observation(step, {"a": SkillObservation(64, 48, 16, 8, news)}))
    assert weights.teachers["a"]["weak"] > 0.95
    assert weights.signals["a"]["response"] > 0.5
    for step in range(50):
        news = {"weak": seen(8, 16, 40, 40), "useless": seen(0, 16, 0, 0)}
        state, weights, _ = controller.step(state, Observation(step, {"a": SkillObservation(64, 48, 16, 8, news)}))
    assert weights.signals["a"]["response"] == 0  # it has learnt all that `weak` knows


@pytest.mark.parametrize(("resampled_correct", "teaches"), [(2, False), (8, True)])
def test_a_teacher_that_is_less_sure_than_the_student_does_not_teach(resampled_correct, teaches):
    """It is right on all prompts when greedy; the student, when sampling, on nine in ten."""
    controller = GapController()
    state = controller.start(["a"], ["t"], ["policy", "response"])
    for step in range(12):
        observation = replace(seen(16, 16, 58, 64), resampled=8, resampled_correct=resampled_correct)
        state, weights, _ = controller.step(
            state, Observation(step, {"a": SkillObservation(64, 58, 16, 4, {"t": observation})})
        )
    assert (weights.signals["a"]["response"] > 0) == teaches


def test_teachers_that_nobody_checks_are_told_of_in_the_events():
    (event,) = unverified([teacher()], None)
    assert (event.step, event.kind, event.about) == (1, "no gate", "wide")
    assert "learns wrong answers of a teacher too" in event.rule
    assert unverified([teacher()], gate_of([teacher()], constant(1.0))) == unverified([], None) == []


def test_a_teacher_that_is_often_right_is_asked_while_it_scores_with_the_same_verdicts_for_less(tmp_path):
    """Its gold answers are its own, but for a prompt of each rollout on which it has then scored for nothing."""
    made = teacher()
    asked = [{"prompt": f"{a}{b}=", "skill": "first"} for a in tiny.WORDS[:4] for b in tiny.WORDS[:8]]
    for i, (row, text) in enumerate(zip(asked, answers(made, asked), strict=True)):
        row["answer"] = "jjjj" if i % 8 == 0 else text
    options = {"gate": "per_prompt", "num_generations": 2, "max_completion_length": 3, "teacher_reward": 0.1}
    results = {}
    for name in ("later", "first"):
        trainer = RLDTrainer(
            tiny.model(),
            exact_match,
            RLDConfig(**tiny.rld_options(tmp_path / name, **options)),
            tiny.rows(8),
            processing_class=tiny.tokenizer(),
            teachers=[Teacher(made.model, name="wide", tokenizer=tiny.tokenizer())],
            controller=FixedController(),
        )
        trainer.model.train()
        if name == "first":
            trainer.ensemble.slots[0].takes_drafts = lambda _: False  # type: ignore[method-assign]
        rollouts = []
        for start in range(0, 32, 8):
            torch.manual_seed(start)
            group = [row for row in asked[start : start + 8] for _ in range(2)]
            rollouts.append(trainer._generate_and_score_completions(group))
        results[name] = rollouts, trainer.gate.memories[0].state(), trainer.flop_meter.accounts, trainer
    (later, memory, flops, trainer), (first, other_memory, other_flops, _) = results["later"], results["first"]
    assert memory == other_memory
    assert 0 < sum(memory["verdicts"].values()) < 32
    for one, other in zip(later, first, strict=True):
        for name in ("teacher_weights", "teacher_tokens", "teacher_scores", "teacher_spans", "num_taught"):
            torch.testing.assert_close(one[name], other[name])
        taught = other["teacher_tokens"].any(1)
        torch.testing.assert_close(one["teacher_0_hidden"][taught], other["teacher_0_hidden"][taught])
    assert flops["gate"] < 0.7 * other_flops["gate"]
    assert sum(flops.values()) < sum(other_flops.values())
    assert trainer._metrics["train"]["gate/assumed"] == [0.0] * 4


def long_rows(made: Teacher, letters: str) -> list[dict[str, Any]]:
    """Prompts so long beside completions that drafts are read while the teacher scores; its answers are the gold."""
    given = [{"prompt": f"{letter}bcdefghi=", "skill": "first"} for letter in letters]
    return [row | {"answer": text} for row, text in zip(given, answers(made, given), strict=True)]


def gated_trainer(folder: Any, made: Teacher) -> RLDTrainer:
    options = {"gate": "per_prompt", "num_generations": 2, "max_completion_length": 3}
    trainer = RLDTrainer(
        tiny.model(),
        exact_match,
        RLDConfig(**tiny.rld_options(folder, **options)),
        tiny.rows(8),
        processing_class=tiny.tokenizer(),
        teachers=[made],
        controller=FixedController(),
    )
    trainer.model.train()
    return trainer


def test_a_draft_is_read_while_a_teacher_scores_only_where_that_costs_less():
    """With 10 tokens of the prompt and a probability of one half it does with fewer than 10 of the completions."""
    gate = gate_of([teacher()], exact_match)
    given = [{"prompt": f"{letter}bcdefghi=", "skill": "s", "answer": "a"} for letter in "abcd"]
    forwards = ScoringForwards([True], [10] * 8, [4, 4, 4, 5, 5, 5, 0, 0])
    questions = gate.ask([row for row in given for _ in range(2)], torch.ones(8, 1, dtype=torch.bool), forwards)
    assert [row["prompt"][0] for row in map(questions.teachers[0].rows.get, questions.teachers[0].later)] == ["a", "b"]


def test_tokens_of_drafts_beside_completions_count_for_the_gate_and_for_the_teachers_no_second_time(tmp_path):
    made, num_read = teacher(), list[int]()
    asked = long_rows(made, "abcd")
    trainer = gated_trainer(tmp_path, made)
    made.load().model.register_forward_pre_hook(
        lambda _, args, options: num_read.append(options["input_ids"].numel()), with_kwargs=True
    )
    trainer._generate_and_score_completions([row for row in asked for _ in range(2)])
    accounts = trainer.flop_meter.accounts
    num_drafted = sum(len(row["answer"]) for row in asked)
    assert accounts["gate"] == forward_flops(made.num_parameters(), num_drafted) > 0
    assert accounts["gate"] + accounts["teachers"] == forward_flops(made.num_parameters(), sum(num_read))


def test_a_prompt_that_a_teacher_can_not_read_is_closed_and_not_scored(tmp_path):
    """With its answer it has 14 tokens, and the teacher reads 13, though it is likely to be correct."""
    short = Teacher(tiny.model(seed=1, max_position_embeddings=13), "wide", tokenizer=tiny.tokenizer())
    asked = long_rows(short, "abcd")
    asked[0]["prompt"] = "a" + asked[0]["prompt"]
    trainer = gated_trainer(tmp_path, short)
    with pytest.warns(UserWarning, match=r"leaves 1 of 4 prompts without an answer"):
        rollout = trainer._generate_and_score_completions([row for row in asked for _ in range(2)])
    assert rollout["teacher_tokens"].any((1, 2)).tolist() == [False] * 2 + [True] * 6


def test_processes_remember_the_verdicts_of_all_as_one_does(monkeypatch):
    """So they assume alike; a prompt that two of them asked counts once."""

    def news(numbers: Sequence[int]) -> News:
        judged = [Judgement(f"{i:x}", "s", "s 0", i != 3, i % 2 == 0) for i in numbers]
        return News(judged, {f"{i:x}": None if i == 65 else i != 66 for i in numbers if 60 <= i < 70})

    one, two = GateMemory("one"), GateMemory("one")
    second = [SecondAnswer("s", i != 66) for i in range(60, 70) if i != 65]
    assert one.learn([news(range(502))]) == second
    assert two.learn([news(range(70)), news(range(60, 502))]) == second
    assert one.state() == two.state()
    assert one.resampled == {"s": 10}
    assert one.assumed({"1001": {"skill": "s"}}) == {}, "498 since the last wrong one"
    two.learn([news([]), news([502])])
    assert two.assumed({key: {"skill": "s"} for key in ("1001", "1000", "1")}) == {"1001": True}, "1000 is asked anyway"
    monkeypatch.setattr(gate_memory, "_MAX_VERDICTS", 502)
    one.learn([news([502])])
    assert len(one.verdicts) == 503
    one.learn([news([504])])
    assert list(one.verdicts) == ["1f8"], "with too many, all are forgotten"


def test_second_answers_of_a_prompt_whose_group_two_processes_share_count_once(monkeypatch):
    """The controller is told the same by both, and as by one process that has the whole group."""
    given = [{"prompt": "ab=", "skill": "s"}]
    alone = judged(gate_of([teacher()], constant(1.0), resampling_temperature=1.0), given * 4)
    monkeypatch.setattr("rld.rollout.gate.gather_object", lambda news: news * 2)
    two = judged(gate_of([teacher()], constant(1.0), resampling_temperature=1.0), given * 2)
    assert alone.second_K == two.second_K == [[SecondAnswer("s", True)]]


def test_a_row_has_the_verdict_of_another_one_only_if_all_columns_are_the_same():
    """A verifier may read any of them; the order of the columns says nothing."""

    def verify(tests: list[Any], **_: Any) -> list[float]:
        return [float(sum(map(int, test)) == 1) for test in tests]

    verdict = judged(
        gate_of([teacher()], verify),
        [
            {"prompt": "ab=", "tests": ["1"]},
            {"prompt": "ab=", "tests": ["2"]},
            {"tests": ["1"], "prompt": "ab="},
            {"prompt": "ab=", "tests": np.zeros(2000, dtype=int)},
            {"prompt": "ab=", "tests": np.eye(2000, dtype=int)[1000]},
        ],
    )
    assert verdict.open_BK[:, 0].tolist() == [True, False, True, False, True]
