"""The shipped curricula: what holds for all of them, and the ladder's promises."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rld.errors import CurriculumError
from rld.recipe import registry
from rld.types import Curriculum, Task

NAMES = sorted(registry.names("curricula"))
LEVELS = {"one": 1, "two": 2, "many": 6}
OBSERVATIONS = st.lists(
    st.tuples(st.sampled_from(sorted(LEVELS)), st.integers(0, 5), st.integers(0, 64), st.floats(0, 1)), max_size=60
)


def make(name: str, levels: dict[str, int] | None = None, **options) -> Curriculum:
    return registry.load("curricula", name, Path())(LEVELS if levels is None else levels, **options)


def observe(curriculum: Curriculum, observations) -> None:
    for skill, level, attempts, rate in observations:
        curriculum.observe(Task(skill, min(level, LEVELS[skill] - 1)), round(rate * attempts), attempts)


@pytest.mark.parametrize("name", NAMES)
@given(observations=OBSERVATIONS, more=OBSERVATIONS, seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_what_every_curriculum_promises(name, observations, more, seed):
    first, second = make(name), make(name)
    observe(first, observations)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    observe(first, more)
    observe(second, more)
    state = json.dumps(first.state_dict())
    for i in range(20):
        task = first.next(random.Random(seed + i))
        assert 0 <= task.level < LEVELS[task.skill]
        assert task == second.next(random.Random(seed + i))
    assert json.dumps(first.state_dict()) == state, "next changes nothing"
    metrics = first.metrics()
    assert set(metrics) == {f"{what}/{skill}" for what in ("level", "share") for skill in LEVELS}
    assert sum(metrics[f"share/{skill}"] for skill in LEVELS) == pytest.approx(1)
    assert all(0 <= metrics[f"level/{skill}"] < LEVELS[skill] for skill in LEVELS)


@pytest.mark.parametrize("name", NAMES)
def test_skills_are_drawn_in_the_shares_that_are_shown(name):
    curriculum = make(name)
    observe(curriculum, [("one", 0, 64, 0.9), ("two", 0, 64, 0.5)] * 4)
    drawn = Counter(curriculum.next(random.Random(i)).skill for i in range(4000))
    for skill in LEVELS:
        assert drawn[skill] / 4000 == pytest.approx(curriculum.metrics()[f"share/{skill}"], abs=0.03)


def test_uniform_can_weigh_skills():
    curriculum = make("fixed:Uniform", weights={"one": 0, "two": 1, "many": 3})
    drawn = Counter(curriculum.next(random.Random(i)) for i in range(4000))
    assert sum(count for task, count in drawn.items() if task.skill == "many") == pytest.approx(3000, abs=120)
    assert len(drawn) == 8, "all levels of the two skills that have a weight"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fixed:Uniform", {"weights": {"one": 1}}),
        ("fixed:Uniform", {"weights": dict.fromkeys(LEVELS, 0)}),
        ("fixed:Uniform", {"weights": {"one": 1, "two": 1, "many": -1}}),
        ("staged:Staged", {"attempts": 0}),
        ("ladder:Ladder", {"window": 0}),
        ("competence:SquareRoot", {"attempts": 0}),
        ("competence:SquareRoot", {"start": 0.0}),
        ("progress:LearningProgress", {"explore": 0.0}),
        ("progress:LearningProgress", {"window": 0}),
    ],
)
def test_impossible_options_are_refused(name, options):
    with pytest.raises(CurriculumError, match=name):
        make(name, **options)


def test_staged_opens_levels_at_equal_distances():
    curriculum = make("staged:Staged", attempts=100)
    opened = []
    for _ in range(12):
        opened.append(max(curriculum.next(random.Random(i)).level for i in range(300) if curriculum.metrics()))
        curriculum.observe(Task("many", 0), 0, 10)
    assert opened == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert curriculum.metrics()["level/two"] == 0, "skills open on their own"


@given(observations=OBSERVATIONS)
@settings(deadline=None, max_examples=200)
def test_the_ladder_moves_one_level_at_a_time_and_only_on_enough(observations):
    ladder = make("ladder:Ladder", window=32)
    since = dict.fromkeys(LEVELS, (0, 0))
    for skill, level, attempts, rate in observations:
        before = dict(ladder.level)
        task = Task(skill, min(level, LEVELS[skill] - 1))
        ladder.observe(task, round(rate * attempts), attempts)
        if task.level == before[skill] and attempts:
            since[skill] = (since[skill][0] + 1, since[skill][1] + attempts)
        moved = {s for s in LEVELS if ladder.level[s] != before[s]}
        assert moved <= {skill} and abs(ladder.level[skill] - before[skill]) <= 1
        for s in moved:
            assert since[s][0] >= 3 and since[s][1] >= 32
            since[s] = (0, 0)
        assert min(ladder.shares().values()) >= 0.2 / len(LEVELS)


@given(successes=st.integers(5, 22), num=st.integers(1, 40))
def test_the_ladder_stays_where_success_is_steady_and_between(successes, num):
    """Rates from 0.156 to 0.6875, at a level with others above and below."""
    ladder = make("ladder:Ladder")
    ladder.level["many"] = 3
    for _ in range(num):
        ladder.observe(Task("many", 3), successes, 32)
        assert ladder.level["many"] == 3


def test_the_ladder_climbs_and_steps_down():
    ladder = make("ladder:Ladder")
    levels = []
    for successes in [32] * 12 + [0] * 12:
        ladder.observe(Task("many", ladder.level["many"]), successes, 32)
        levels.append(ladder.level["many"])
    assert levels == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 1, 0]


def test_after_a_move_the_ladder_judges_anew():
    ladder = make("ladder:Ladder")
    for attempts in [32] * 3 + [1] * 31:
        ladder.observe(Task("many", ladder.level["many"]), attempts, attempts)
        assert ladder.level["many"] <= 1
    ladder.observe(Task("many", 1), 1, 1)
    assert ladder.level["many"] == 2


def test_what_happens_at_other_levels_does_not_move_the_ladder():
    ladder = make("ladder:Ladder")
    ladder.level["many"] = 2
    for level in (0, 1, 3):
        for _ in range(10):
            ladder.observe(Task("many", level), 32, 32)
    assert ladder.level["many"] == 2


def test_the_ladder_practises_below_its_level_too():
    ladder = make("ladder:Ladder", {"many": 6})
    for level, shares in {0: [1.0], 1: [0.3, 0.7], 3: [0.05, 0.05, 0.2, 0.7]}.items():
        ladder.level["many"] = level
        drawn = Counter(ladder.next(random.Random(i)).level for i in range(4000))
        assert [drawn[i] / 4000 for i in range(level + 1)] == pytest.approx(shares, abs=0.03)


def test_the_ladder_favours_the_edge_and_does_not_give_up_on_failures():
    ladder = make("ladder:Ladder", {"solved": 1, "edge": 1, "failing": 1})
    for _ in range(10):
        for skill, successes in {"solved": 63, "edge": 32, "failing": 0}.items():
            ladder.observe(Task(skill, 0), successes, 64)
    shares = ladder.shares()
    assert shares["edge"] > shares["failing"] > 3 * shares["solved"]


def test_competence_grows_with_the_square_root_of_the_attempts():
    curriculum = make("competence:SquareRoot", {"many": 10}, attempts=100, start=0.2)
    opened = []
    for _ in range(11):
        opened.append(curriculum.num_open("many"))
        curriculum.observe(Task("many", 0), 0, 10)
    competence = [(t * (1 - 0.04) + 0.04) ** 0.5 for t in (i / 10 for i in range(11))]
    assert opened == [int(10 * share + 1e-9) for share in competence]


def test_learning_progress_follows_what_changes():
    curriculum = make("progress:LearningProgress", {"still": 1, "rising": 2}, explore=0.2, window=16)
    for step in range(40):
        curriculum.observe(Task("still", 0), 5, 10)
        curriculum.observe(Task("rising", 0), 10, 10)
        curriculum.observe(Task("rising", 1), min(step // 4, 10), 10)
    drawn = Counter(curriculum.next(random.Random(i)) for i in range(3000))
    assert drawn[Task("rising", 1)] > 0.6 * 3000
    for _ in range(12):  # what is forgotten is drawn again
        curriculum.observe(Task("still", 0), 5, 10)
        curriculum.observe(Task("rising", 0), 0, 10)
        curriculum.observe(Task("rising", 1), 10, 10)
    drawn = Counter(curriculum.next(random.Random(i)) for i in range(3000))
    assert max(drawn, key=lambda task: drawn[task]) == Task("rising", 0)
