"""The estimated FLOPs of a `distill` stage, by account."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any, NamedTuple

from rld.controllers.gold_share import MOST_DRAWS, NEW_PASSES, NEW_SHARE, repeated_share
from rld.recipe.measurement_cost import first_answer_flops, retention_flops, transfer_flops
from rld.recipe.sizes import Sizes
from rld.utils.flops import Account, forward_flops, training_flops
from rld.utils.label_words import begins_another
from rld.utils.templates import has_answer, rollout_fields


class Assumptions(NamedTuple):
    """What decides the FLOPs of a stage and shows only when it runs."""

    can_solve: bool = True
    """Whether the student ever succeeds; otherwise it answers more rows before its first update."""
    completion: float | None = None
    """Mean tokens of a sampled completion. None: those of the gold answers, or the most without any."""
    agrees: bool = True
    """Whether a teacher's answer is the gold answer or differs so that it counts as wrong; it is decoded otherwise.
    And whether the first answer of a teacher that could be learnt is correct, and not only the last of the last one."""
    refills: int = 0
    """How often each prompt is replaced and sampled anew, because all completions of it got the same reward."""
    cost_ratio: float = 1.0
    """FLOPs of a sampled completion per those of a gold answer. It sets the share of gold answers that are repeated,
    and a plan computes it."""


_FEEDBACK_TOKENS = 64
"""Tokens that a plan takes the feedback on a completion to have."""

EXPECTED = Assumptions()
"""What a plan takes for granted."""


class _Step(NamedTuple):
    """What a mean step reads. No forward but that of sampling reads the last token of a completion."""

    num_prompts: float
    """Prompts with several completions; gold answers that are learnt alone have others."""
    prompt_tokens: float
    """Their tokens, each prompt once."""
    sampled_tokens: float
    """Tokens of the completions that the student samples."""
    read_tokens: float
    """Tokens of prompts and completions that are read to learn from them or to score them."""
    gold_tokens: float
    """Tokens that are read of the other prompts, to learn their gold answers or those of teachers."""


def distill_flops(
    stage: Any, student: int, teachers: Mapping[str, int], sizes: Sizes, assumed: Assumptions = EXPECTED
) -> dict[Account, int]:
    """Return the estimated FLOPs of a stage.

    Args:
        stage: The stage, a `Distill`.
        student: Parameters of the student.
        teachers: Parameters of each teacher that is loaded in the training process.
        sizes: The sizes of the recipe.
        assumed: What shows only when the stage runs.
    """
    skills = stage.skills or sizes.skills
    assumed = _with_cost_ratio(stage, student, teachers, sizes, assumed)
    lengths, step = sizes.lengths(skills), _mean_step(stage, sizes, assumed)
    num_ticks = stage.steps // stage.controller.decide_every
    measured_tokens = stage.controller.required_measurements.gold_rows * len(skills) * lengths.total
    flops: dict[Account, float] = {
        "generation": 0.0,
        "student": stage.steps * training_flops(student, step.read_tokens + step.gold_tokens),
        "retention": 0.0,
    }
    if step.sampled_tokens:
        num_sampled = (1 + assumed.refills) * (step.prompt_tokens + step.sampled_tokens)
        flops["generation"] = stage.steps * forward_flops(student, num_sampled)
    flops["student"] += num_ticks * forward_flops(student, measured_tokens)
    flops["student"] += first_answer_flops(stage, student, sizes, assumed.completion, assumed.can_solve)
    if stage.target is not None:
        flops["student"] += num_ticks * transfer_flops(student, len(skills), len(stage.target), lengths)
    if stage.retain is not None:
        protected = stage.protected(sizes.skills)
        flops["retention"] = retention_flops(stage.retain, protected, student, sizes, stage.steps, num_ticks)
    flops |= _teacher_flops(stage, teachers, sizes, step, assumed)
    return {account: round(number) for account, number in flops.items()}


def _with_cost_ratio(
    stage: Any, student: int, teachers: Mapping[str, int], sizes: Sizes, assumed: Assumptions
) -> Assumptions:
    """Return the same with what a sampled completion and a gold answer cost, if a stage learns both.

    Verdicts of the gate are kept, so that they cost nothing where gold answers repeat.
    """
    step, num_gold = _mean_step(stage, sizes, assumed), sum(_num_gold(stage, sizes, assumed).values())
    if not (num_gold and step.sampled_tokens):
        return assumed
    num_sampled = step.num_prompts * stage.rollout.completions
    sampled = forward_flops(student, step.prompt_tokens + step.sampled_tokens)
    sampled += training_flops(student, step.read_tokens)
    scored = _teacher_flops(stage, teachers, sizes, step, assumed)["teachers"] / stage.steps
    gold = training_flops(student, step.gold_tokens)
    return assumed._replace(cost_ratio=(sampled + scored) / num_sampled / (gold / num_gold))


def distill_flops_range(stage: Any, student: int, teachers: Mapping[str, int], sizes: Sizes) -> tuple[int, int] | None:
    """Return the fewest and the most FLOPs of a stage; None where its student samples nothing.

    The student is taken to write completions that are as long as the gold answers, some of them correct, or as long as
    they may be and all wrong, gold answers to decide those of teachers always or never, and prompts to be replaced
    never or as often as `rollout.refill` allows.
    """
    if not _mean_step(stage, sizes, EXPECTED).sampled_tokens:
        return None
    longest = Assumptions(
        can_solve=False, completion=float(sizes.max_new_tokens), agrees=False, refills=stage.rollout.refill
    )
    totals = [sum(distill_flops(stage, student, teachers, sizes, end).values()) for end in (EXPECTED, longest)]
    return min(totals), max(totals)


def _mean_step(stage: Any, sizes: Sizes, assumed: Assumptions) -> _Step:
    """Return what a step reads in the mean over a stage; a prompt is read once for all of its completions."""
    skills, rollout = stage.skills or sizes.skills, stage.rollout
    lengths = sizes.lengths(skills)
    num_completions = rollout.num_completions(sizes.num_words(skills))
    num_sampled = 0 if stage.learns_labels else num_completions - rollout.gold_completions
    num_prompts = rollout.prompts * (1 - fmean(_gold_shares(stage, sizes, assumed).values()))
    num_gold = _num_gold(stage, sizes, assumed)
    completion = lengths.answer if assumed.completion is None else assumed.completion
    fixed = fixed_completion(stage, sizes)
    # The last token of a completion predicts nothing.
    read = num_sampled * max(completion - 1, 0) + (num_completions - num_sampled) * max(fixed - 1, 0)
    return _Step(
        num_prompts,
        num_prompts * lengths.prompt,
        num_prompts * num_sampled * completion,
        num_prompts * (lengths.prompt + read),
        sum(max(_learnt_length(stage, sizes, skill, assumed) - 1, 0) * num_gold[skill] for skill in skills),
    )


def _num_gold(stage: Any, sizes: Sizes, assumed: Assumptions) -> dict[str, float]:
    """Return how many gold answers, or answers of teachers, a mean step learns of each skill, each with its prompt."""
    skills = stage.skills or sizes.skills
    num_completions = stage.rollout.prompts / len(skills) * stage.rollout.num_completions(sizes.num_words(skills))
    return {skill: num_completions * share for skill, share in _gold_shares(stage, sizes, assumed).items()}


def _learnt_length(stage: Any, sizes: Sizes, skill: str, assumed: Assumptions) -> float:
    """Return the mean tokens of a skill's prompts with the gold answers, or those of teachers, that are learnt."""
    lengths = sizes.lengths([skill])
    if assumed.completion is None or not _learns_teachers(stage, sizes, skill):
        return lengths.total
    return lengths.prompt + assumed.completion


def _learns_teachers(stage: Any, sizes: Sizes, skill: str) -> bool:
    """Return whether a stage learns correct answers of teachers on a skill; a plan knows rows without answers alone."""
    is_taught = any(spec.skills is None or skill in spec.skills for spec in stage.teachers.values())
    if not stage.learns_teachers or not is_taught:
        return False
    has_judge = sizes.can_judge or stage.audit is not None
    return has_judge and (stage.gold.answers == "teachers" or not sizes.num_answered(skill))


def fixed_completion(stage: Any, sizes: Sizes) -> float:
    """Return the mean tokens of a stage's completions that are not sampled: gold answers, or words that say labels.

    The end of an answer is a part of labels where the words of one begin with those of another.
    """
    skills = stage.skills or sizes.skills
    if not stage.learns_labels:
        return sizes.lengths(skills).answer
    has_end = any(begins_another(sizes.labels[skill].words) for skill in skills if skill in sizes.labels)
    return sizes.label_length(skills) + has_end


def _teacher_flops(
    stage: Any, teachers: Mapping[str, int], sizes: Sizes, step: _Step, assumed: Assumptions
) -> dict[Account, float]:
    """Return the FLOPs of all that teachers read.

    Teachers that name no skills are taken to share the rows. For the gate each reads the gold answer of a row once, as
    one completion more; where that does not decide its answer, it reads prompt and gold answer apart, and the prompt
    again with an answer of its own. No verdict is taken to be assumed.
    """
    skills = stage.skills or sizes.skills
    lengths = sizes.lengths(skills)
    flops: dict[Account, float] = {"teachers": 0.0, "gate": 0.0, "answers": 0.0}
    num_drawn = stage.steps * step.num_prompts / len(skills)
    num_asked = sum(min(num_drawn, sizes.num_rows(skill)) for skill in skills)
    completion = assumed.completion or lengths.answer
    decoded = 0.0 if assumed.agrees else 2 * lengths.prompt + completion
    num_tries = max([len(sizes.labels[skill].words) for skill in skills if stage.learns_labels], default=1)
    for name, size in teachers.items():
        spec = stage.teachers[name]
        share = len(spec.skills) / len(skills) if spec.skills is not None else 1 / len(teachers)
        extra_tokens = _own_prompt_tokens(stage, spec, sizes, step.num_prompts, completion)
        flops["teachers"] += stage.steps * share * forward_flops(size, extra_tokens + step.read_tokens)
        if stage.has_gate(can_judge=sizes.can_judge) and not stage.learns_labels:
            num_answered = num_drawn * len(skills) if spec.reads_attempts else num_asked  # no verdict is remembered
            flops["gate"] += share * forward_flops(size, num_answered * (lengths.answer + decoded))
        probed = {*(spec.skills or skills)} & {*skills} - {*sizes.blocks}  # a document asks for no answer
        num_probes = len(probed) * spec.num_probes(are_read=stage.reads_probes(can_judge=sizes.can_judge))
        flops["answers"] += forward_flops(size, num_probes * (lengths.prompt + num_tries * lengths.answer))
        num_tokens = _answered_tokens(stage, sizes, assumed)
        flops["answers"] += (share if assumed.agrees else 1.0) * forward_flops(size, num_tokens)
    return flops


def _own_prompt_tokens(stage: Any, spec: Any, sizes: Sizes, num_prompts: float, completion: float) -> float:
    """Return the tokens that a teacher reads in a mean step for its own prompt beside those of the student's.

    A prompt that shows the gold answer is longer by that answer. One that shows something of the rollout is another for
    each completion, and longer by that; all of them are taken to be read.
    """
    lengths = sizes.lengths(stage.skills or sizes.skills)
    fields = rollout_fields(spec.prompt)
    answer = lengths.answer if spec.prompt is not None and has_answer(spec.prompt) else 0.0
    if not fields:
        return num_prompts * answer
    texts = sum(_FEEDBACK_TOKENS if field == "feedback" else completion for field in fields)
    own_tokens = stage.rollout.completions * (lengths.prompt + answer + texts)
    return num_prompts * float(own_tokens - lengths.prompt)


def _answered_tokens(stage: Any, sizes: Sizes, assumed: Assumptions) -> float:
    """Return the tokens of the rows that a teacher answers so that its answers are learnt, each once."""
    num_tokens, num_draws = 0.0, stage.steps * (1 if assumed.agrees else MOST_DRAWS)
    for skill, num_gold in _num_gold(stage, sizes, assumed).items():
        if _learns_teachers(stage, sizes, skill):
            num_rows = min(num_draws * num_gold, sizes.num_rows(skill))
            num_tokens += num_rows * _learnt_length(stage, sizes, skill, assumed)
    return num_tokens


def planned_gold_share(stage: Any, student: int, teachers: Mapping[str, int], sizes: Sizes) -> float:
    """Return the mean share of a stage's prompts that have their gold answer alone, over steps and skills.

    Where the controller sets it, no gold answers are taken to be bare results.

    Args:
        stage: The stage, a `Distill`.
        student: Parameters of the student.
        teachers: Parameters of each teacher that is loaded in the training process.
        sizes: The sizes of the recipe.
    """
    assumed = _with_cost_ratio(stage, student, teachers, sizes, EXPECTED)
    return fmean(_gold_shares(stage, sizes, assumed).values())


def _gold_shares(stage: Any, sizes: Sizes, assumed: Assumptions) -> dict[str, float]:
    """Return that share of each skill."""
    skills = stage.skills or sizes.skills
    if not stage.has_gold_prompts:
        return dict.fromkeys(skills, 0.0)
    answers_per_step = NEW_SHARE * stage.rollout.prompts * stage.rollout.completions / len(skills)
    shares = {}
    for skill in skills:
        by_teachers = _learns_teachers(stage, sizes, skill)
        own_rows = 0.0 if stage.gold.answers == "teachers" else sizes.num_answered(skill)
        num_rows = sizes.num_rows(skill) if by_teachers else own_rows
        if stage.gold.share is not None or not num_rows:
            shares[skill] = float(stage.gold.share) if num_rows else 0.0
            continue
        new = min(NEW_PASSES * num_rows / answers_per_step / stage.steps, 1.0)  # of the steps
        shares[skill] = new * NEW_SHARE + (1 - new) * repeated_share(assumed.cost_ratio)
    return shares
