"""The share of prompts whose gold answers are learnt follows how often the student fails."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rld.controllers.baselines import FixedController
from rld.controllers.gap import GapController
from rld.controllers.gold_share import FirstAnswers, GoldShareController
from rld.controllers.observation import Observation, SkillObservation
from rld.utils.flops import SourceFlops


def observed(successes: int, attempts: int = 20) -> Observation:
    add = SkillObservation(attempts=attempts, successes=successes, groups=5)
    measured = {"add": add, "sort": SkillObservation(groups=5)}
    return Observation(1, measured)


def shares(controller: GoldShareController, successes: int, ticks: int = 60) -> dict[str, float]:
    state = controller.start(["add", "sort"], [], ["policy"])
    for _ in range(ticks):
        state, weights, _ = controller.step(json.loads(json.dumps(state)), observed(successes))
    return dict(weights.gold_share)


def test_gold_answers_that_do_not_end_are_most_prompts():
    controller = GoldShareController(FixedController(), gold_lengths={"add": 10.0, "sort": 10.0})
    start = controller.weights(controller.start(["add", "sort"], [], ["policy"])).gold_share
    assert start == shares(controller, 0) == shares(controller, 20) == {"add": 31 / 32, "sort": 31 / 32}


def test_a_fixed_share_stays():
    assert shares(GoldShareController(FixedController(), 0.3), 20) == {"add": 0.3, "sort": 0.3}


@pytest.mark.parametrize("successes", [0, 20])
def test_repeated_answers_have_half_of_the_prompts_at_equal_costs_however_often_the_student_succeeds(successes):
    controller = GoldShareController(FixedController(), num_rows={"add": 10}, num_iterations=2)
    state = controller.start(["add", "sort"], [], ["policy"])
    measured = SkillObservation(groups=5, attempts=20, successes=successes, gold_answers=20)
    for tick in (1, 2):
        state, weights, events = controller.step(state, Observation(tick, {"add": measured, "sort": measured}))
        assert weights.gold_share["sort"] == 31 / 32, "a generator's rows have no end"
        assert (weights.gold_share["add"] == 31 / 32) == (tick == 1), "each answer is learnt twice: 80 after two ticks"
        assert [(event.kind, event.skill) for event in events] == [("gold answers repeat", "add")] * (tick == 2)
    for tick in range(60):
        state, weights, events = controller.step(state, Observation(tick, {"add": measured, "sort": measured}))
    assert not events and weights.gold_share["add"] == 0.5


@pytest.mark.parametrize(
    ("sampled_flops", "share"),
    # Nothing was measured; as dear as a gold answer; 3, 9 and 99 times as dear.
    [(0.0, 0.5), (20.0, 0.5), (60.0, 0.75), (180.0, 0.9), (1980.0, 31 / 32)],
)
def test_more_repeated_answers_are_learnt_where_a_sampled_completion_costs_more(sampled_flops, share):
    controller = GoldShareController(FixedController(), num_rows={"add": 10})
    state = controller.start(["add"], [], ["policy"])
    # The verifier applies to every second completion; all of them cost something.
    measured = SkillObservation(groups=5, sampled=20, attempts=10, gold_answers=80)
    observation = Observation(1, {"add": measured}, flops=SourceFlops(sampled=sampled_flops, gold=80.0))
    for _ in range(60):
        state, weights, _ = controller.step(json.loads(json.dumps(state)), observation)
    assert weights.gold_share["add"] == pytest.approx(share, abs=0.01)
    nothing = Observation(1, {"add": SkillObservation()})
    assert controller.step(state, nothing)[1].gold_share["add"] == pytest.approx(share, abs=0.01), "the last one holds"


def attempts(successes: int, own_length: int, num: int = 8) -> SkillObservation:
    """Attempts of equal length, in groups of four."""
    return SkillObservation(
        groups=num // 4,
        attempts=num,
        attempt_tokens=num * own_length,
        successes=successes,
        success_tokens=successes * own_length,
    )


@pytest.mark.parametrize(("own_length", "shares"), [(19, [31 / 32] * 4), (21, [0.0, 0.0, 0.0, 0.0])])
def test_answers_much_shorter_than_the_students_correct_ones_are_not_learnt(own_length, shares):
    controller = GoldShareController(FixedController(), gold_lengths={"add": 10.0}, longest=40)
    state = controller.start(["add"], [], ["policy"])
    kinds, courses = [], []
    for measured in (attempts(4, own_length), attempts(4, own_length), attempts(8, 1), attempts(8, 1)):
        state, weights, events = controller.step(json.loads(json.dumps(state)), Observation(1, {"add": measured}))
        kinds.append([event.kind for event in events])
        courses.append(weights.gold_share["add"])
    assert courses == shares
    assert kinds == [[], ["gold answers bare"] if 0.0 in shares else [], [], []]


@pytest.mark.parametrize(
    ("measured", "share"),
    [
        (SkillObservation(), 31 / 32),  # nothing was sampled yet
        (attempts(0, 19, num=4), 31 / 32),
        (attempts(0, 21, num=4), 0.0),
        (attempts(0, 21, num=8), 31 / 32),
        (attempts(1, 21, num=8), 0.0),
        (SkillObservation(groups=2), 31 / 32),  # no verifier judges this skill
    ],
)
def test_all_is_sampled_while_long_completions_may_show_that_gold_answers_are_bare(measured, share):
    controller = GoldShareController(FixedController(), gold_lengths={"add": 10.0})
    state = controller.start(["add"], [], ["policy"])
    assert controller.step(state, Observation(1, {"add": measured}))[1].gold_share == {"add": share}
    first = FirstAnswers(**{name: getattr(measured, name) for name in FirstAnswers.model_fields})
    state = controller.with_first_answers(state, {"add": first})[0]
    assert controller.weights(json.loads(json.dumps(state))).gold_share == {"add": share}, (
        "before the first update, too"
    )


@pytest.mark.parametrize(("own_length", "kinds"), [(19, []), (21, ["gold answers short"])])
def test_it_is_told_once_that_short_gold_answers_are_learnt_beside_long_completions_of_which_none_is_correct(
    own_length, kinds
):
    controller = GoldShareController(FixedController(), gold_lengths={"add": 10.0})
    state = controller.start(["add"], [], ["policy"])
    all_kinds = []
    for _ in range(3):
        observation = Observation(1, {"add": attempts(0, own_length, num=4)})
        state, _, events = controller.step(json.loads(json.dumps(state)), observation)
        all_kinds += [event.kind for event in events]
    assert all_kinds == kinds


@pytest.mark.parametrize(("share", "skills"), [(None, ["sort"]), (0.5, [])])
def test_gold_answers_may_be_bare_where_a_completion_can_be_twice_as_long(share, skills):
    lengths = {"add": 10.0, "sort": 9.0}
    controller = GoldShareController(FixedController(), share, gold_lengths=lengths, longest=20)
    assert controller.doubtful_skills == skills


@pytest.mark.parametrize(
    ("successes", "own_length", "kinds"),
    [(8, 21, ["gold answers bare"]), (3, 21, []), (8, 19, []), (0, 21, ["gold answers short"])],
)
def test_what_the_first_answers_show_is_told_once(successes, own_length, kinds):
    controller = GoldShareController(FixedController(), gold_lengths={"add": 10.0})
    state = controller.start(["add"], [], ["policy"])
    first = FirstAnswers(
        attempts=8, attempt_tokens=8 * own_length, successes=successes, success_tokens=successes * own_length
    )
    after, events = controller.with_first_answers(state, {"add": first})
    assert [(event.step, event.kind) for event in events] == [(0, kind) for kind in kinds]
    assert {**after, "gold": None} == {**state, "gold": None}, "the controller beside it counts them as no attempts"
    _, _, events = controller.step(after, Observation(1, {"add": attempts(0, own_length)}))
    assert not events


def test_a_skill_without_rows_to_learn_from_has_none():
    assert shares(GoldShareController(FixedController(), num_rows={"sort": 0}), 5) == {"add": 31 / 32, "sort": 0.0}


def test_teachers_answer_a_skill_whose_rows_have_no_answers_to_learn_or_bare_ones():
    rows = {"num_rows": {"sort": 0, "copy": 0}, "num_answerable": {"add": 3, "sort": 5}}
    controller = GoldShareController(FixedController(), **rows, gold_lengths={"add": 10.0})
    state = controller.start(["add", "sort", "copy"], [], ["policy"])
    weights = controller.weights(state)
    assert weights.gold_share == {"add": 31 / 32, "sort": 31 / 32, "copy": 0.0} and weights.teacher_answers == {"sort"}
    doubt = {"add": attempts(4, 21), "sort": SkillObservation(), "copy": SkillObservation()}
    _, weights, events = controller.step(state, Observation(1, doubt))
    assert weights.teacher_answers == {"add", "sort"} and not events
    add = replace(attempts(8, 21), gold_answers=100)  # of rows, many passes
    measured = {"add": add, "sort": SkillObservation(gold_answers=40), "copy": SkillObservation()}
    state, weights, events = controller.step(state, Observation(1, measured))
    assert weights.gold_share == {"add": 31 / 32, "sort": 0.5, "copy": 0.0}
    assert weights.teacher_answers == {"add", "sort"}
    assert [(event.kind, event.skill) for event in events] == [
        ("gold answers bare", "add"),
        ("gold answers repeat", "sort"),
    ]
    state, weights, _ = controller.step(state, Observation(2, measured | {"add": SkillObservation(gold_answers=23)}))
    assert weights.gold_share["add"] == 31 / 32
    state, weights, _ = controller.step(state, Observation(3, measured | {"add": SkillObservation(gold_answers=1)}))
    assert weights.gold_share["add"] == 0.5, "eight passes of teachers' answers to three rows"
    fixed = GoldShareController(FixedController(), 0.3, **rows).weights(state)
    assert fixed.gold_share == {"add": 0.3, "sort": 0.3, "copy": 0.0} and fixed.teacher_answers == {"sort"}


def test_the_other_controller_decides_as_without_it():
    alone, beside = GapController(), GoldShareController(GapController())
    state, other = (made.start(["add", "sort"], ["one"], ["policy", "response"]) for made in (alone, beside))
    for successes in (0, 5, 20):
        state, weights, events = alone.step(state, observed(successes))
        other, more, more_events = beside.step(other, observed(successes))
        assert more.signals == weights.signals and more.teachers == weights.teachers and more_events == events
    assert beside.resume(other, ["two"])["teachers"] == ["two"]
