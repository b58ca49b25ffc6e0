"""The stages of a proposal: gold answers first where there are some, then teachers and rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rld.proposal.lines import entry, two_digits
from rld.proposal.plan import Plan
from rld.recipe.stages.distill import Distill
from rld.recipe.stages.sft import Sft

_GOLD_SHARE = 0.4
"""Of the time of training, where a student learns gold answers before it has teachers."""

_NUM_COMPLETIONS = 4

_ADAPTER = {"r": 16, "lora_alpha": 32}


@dataclass(frozen=True)
class Teaching:
    """How the student learns.

    Attributes:
        kind: The kind of the rows.
        teachers: Names of the teachers.
        other_tokenizers: Those of them that have another tokenizer than the student.
        verifier: A reward that tells correct answers. None: there is none.
        samples: Whether the student tries answers, which the reward then judges.
    """

    kind: str
    teachers: list[str]
    other_tokenizers: list[str]
    verifier: str | None
    samples: bool

    @property
    def stages(self) -> dict[str, float]:
        """The share of the time of training that each stage has, by its name."""
        if not self.teachers:
            return {"gold": 1.0}
        if self.kind in ("labelled", "plain_text"):
            return {"distill": 1.0}
        return {"gold": _GOLD_SHARE, "distill": 1 - _GOLD_SHARE}

    def rows_per_step(self, stage: str, rows: int) -> int:
        """Return the rows, or prompts, of an update in which a stage reads about so many rows."""
        return max(2, rows // _NUM_COMPLETIONS) if stage == "distill" and self.samples else rows

    def parts(self, stage: str, plan: Plan) -> int:
        """Return in how many parts an update of a stage is computed: two rows are in each at least."""
        return max(1, min(plan.accumulation, self.rows_per_step(stage, plan.rows) // 2))


def stage_lines(teaching: Teaching, stage: str, plan: Plan) -> list[str]:
    """Return the lines of a stage."""
    head = [f"  - name: {stage}"]
    return head + (_sft(teaching, plan) if stage == "gold" else _distill(teaching, plan))


def _sft(teaching: Teaching, plan: Plan) -> list[str]:
    what = "every token of the texts is learnt" if teaching.kind == "plain_text" else "the gold answers of the file"
    return [
        *entry(4, "kind", "sft", what),
        *entry(4, "student", "student"),
        *_steps("gold", plan),
        *entry(4, "batch", plan.rows, "rows of an update"),
        *_trainer(Sft, teaching.parts("gold", plan), plan),
    ]


def _distill(teaching: Teaching, plan: Plan) -> list[str]:
    student = "gold" if "gold" in teaching.stages else "student"
    rows = teaching.rows_per_step("distill", plan.rows)
    lines = [*entry(4, "kind", "distill"), *entry(4, "student", student), "    teachers:"]
    for name in teaching.teachers:
        lines += _teacher(teaching, name, plan)
    response: dict[str, Any] = {"divergence": {"kind": "forward_kl"}}
    if teaching.kind == "labelled":
        response["calibration"] = "prior_matching"
        lines += entry(4, "signals", {"response": response, "gold": {"weight": 0.5}}, _LABELS)
        lines += entry(4, "rollout", {"prompts": rows, "completions": "labels"}, "nothing is sampled")
    elif teaching.samples:
        rollout = {"prompts": rows, "completions": _NUM_COMPLETIONS, "gold_completions": 1}
        lines += entry(
            4, "signals", {"policy": {}, "response": response}, "rewards and teachers; a controller weighs them"
        )
        lines += entry(4, "rollout", rollout, "three tries at each prompt, and its gold answer")
    else:
        why = "teachers teach on gold answers: there is no time for the student to try its own"
        if teaching.verifier is None:
            why = "teachers teach on gold answers: no reward can tell which others are correct"
        rollout = {"prompts": rows, "completions": 1, "gold_completions": 1}
        lines += entry(4, "signals", {"response": response, "gold": {"weight": 0.5}}, why)
        lines += entry(4, "gate", "off", "nothing else is asked of them") + entry(4, "controller", {"kind": "fixed"})
        lines += entry(4, "rollout", rollout)
    return [*lines, *_steps("distill", plan), *_trainer(Distill, teaching.parts("distill", plan), plan)]


_LABELS = (
    "the teachers' distribution over the labels, made even on the mean (leave calibration out if a label is rare), and "
    "the labels of the rows"
)


def _teacher(teaching: Teaching, name: str, plan: Plan) -> list[str]:
    spec, reasons = {"model": name}, list[str]()
    if name in teaching.other_tokenizers:
        spec["align"] = "likelihood" if teaching.kind == "labelled" else "vocabulary"
        reasons.append("its tokenizer is not the student's")
    options: dict[str, Any] = dict(spec)
    if plan.is_offloaded:
        options["offload"] = True
        reasons.append("GPU memory is short")
    if not teaching.samples and teaching.kind not in ("labelled", "plain_text"):
        options["probe_prompts"] = 0
        reasons.append("it is trusted")
    return entry(6, name, options, "; ".join(reasons))


def _steps(stage: str, plan: Plan) -> list[str]:
    steps = plan.steps.get(stage, 100)
    if stage not in plan.step_seconds:
        return entry(4, "steps", steps, "the size of a model is not known for its kind, so time was not planned")
    seconds = plan.step_seconds[stage]
    time = f"about {two_digits(steps * seconds / 60)} minutes, {two_digits(seconds)} s each"
    return entry(4, "steps", steps, f"{time}, by planned FLOPs and measured speed; three passes over the rows at most")


def _trainer(stage: Any, num_parts: int, plan: Plan) -> list[str]:
    rates, lines = stage.learning_rates, list[str]()
    if plan.has_adapter:
        lines += entry(4, "lora", _ADAPTER, "memory does not hold gradients and moments of all weights")
    rate = rates.adapter if plan.has_adapter else rates.pretrained
    options, why = {"learning_rate": rate}, "the usual rate for such weights; lower it if scores fall"
    if num_parts > 1:
        options["gradient_accumulation_steps"] = num_parts
        why += "; an update is computed in parts, for memory"
    return lines + entry(4, "trainer", options, why)
