"""Teachers score a rollout: which ones may teach where, what each says about the completions, and what it costs.

Shapes: B completions of this process, A completions of all processes, T completion tokens, K teachers, S skills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor

from rld.controllers.observation import TeacherInfo
from rld.controllers.runtime import ControllerRuntime
from rld.errors import TeacherDown
from rld.losses.policy import mean_likelihood
from rld.models.drafts import Pair
from rld.rollout.attempt_rows import AttemptRows
from rld.rollout.batch import RolloutBatch, loss_mask, redistributed, response_mask, taught_share
from rld.rollout.counts import gate_counts
from rld.rollout.gate import TeacherGate
from rld.rollout.gate_questions import GateQuestions, GateVerdict, ScoringForwards
from rld.rollout.label_gate import LabelGate
from rld.rollout.label_scores import LabelScores, label_log_probabilities
from rld.rollout.record import RolloutRecord
from rld.rollout.scoring_options import TeacherScoringOptions
from rld.rollout.teacher_counting import TeacherCounting, TeacherCounts
from rld.teachers.ensemble import TeacherEnsemble, TeacherReading
from rld.teachers.teacher import Teacher
from rld.types import Event
from rld.utils.flops import FlopMeter


@dataclass(frozen=True)
class TeacherScoringReport:
    """What happened while teachers scored a rollout, over all processes.

    Attributes:
        events: Teachers that were dropped.
        counts: Tokens and prompts of the teachers; none in an evaluation.
        metrics: The weights that were used, and the share of verdicts that the gate assumed, under the names of
            `metrics.jsonl`.
    """

    events: list[Event] = field(default_factory=list)
    counts: TeacherCounts = field(default_factory=TeacherCounts)
    metrics: dict[str, float] = field(default_factory=dict)


def teacher_infos(teachers: Iterable[Teacher]) -> list[TeacherInfo]:
    """Return what a controller's runtime has to know of teachers."""
    return [TeacherInfo(str(t.name), None if t.skills is None else tuple(t.skills), dict(t.verified)) for t in teachers]


class TeacherScoring:
    """Runs the teachers that a rollout needs, and adds their outputs and weights to it.

    Args:
        options: The options.
        ensemble: The teachers.
        runtime: Has the controller's weights, and is told of the gate's counts and of changes of teachers.
        gate: Decides which teachers may teach on a prompt. None: all may.
        label_scores: Where completions are labels, adds the teachers' scores of them.
        accelerator: Sums and gathers over processes.
        flop_meter: Counts the operations of the teachers and of the gate.
        gate_time: Makes a context in which the gate runs, such as a timer.
    """

    def __init__(
        self,
        options: TeacherScoringOptions,
        ensemble: TeacherEnsemble,
        runtime: ControllerRuntime,
        *,
        gate: TeacherGate | LabelGate | None,
        accelerator: Accelerator,
        flop_meter: FlopMeter,
        label_scores: LabelScores | None = None,
        gate_time: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.options, self.ensemble, self.runtime = options, ensemble, runtime
        self.gate, self.accelerator, self._gate_time = gate, accelerator, gate_time
        self.counting = TeacherCounting(ensemble, runtime, accelerator, flop_meter)
        self.label_scores = label_scores
        self._dropouts: set[int] = set()
        ensemble.observers.append(self._update_teacher)

    def _update_teacher(self, k: int) -> None:
        """Describe the teachers to the runtime again, and let the gate forget teacher k, after it has changed."""
        self.runtime.set_teachers(teacher_infos(self.ensemble.teachers))
        if self.gate is not None:
            self.gate.forget(k)

    def score(self, batch: RolloutBatch, record: RolloutRecord, step: int) -> TeacherScoringReport:
        """Add to a rollout what its losses read of the teachers (the keys of `RolloutBatch` under "with teachers").

        Args:
            batch: This process's rollout.
            record: The same rollout's record, with its rewards; in training with its attempts and successes.
            step: The optimiser step, for events.

        Raises:
            TeacherDown: a teacher that is not optional does not answer, or none is left and there is no policy signal.
        """
        skills_B, combination = batch["skill_ids"], self.options.combination
        shares_SK = combination.shares(self.runtime.teachers_SK)
        needed_SK = self.runtime.teachers_needed(self.options.teacher_reward, shares_SK)
        needed_BK, weights_BK = needed_SK.to(skills_B.device)[skills_B], shares_SK.to(skills_B.device)[skills_B]
        self._begin(batch, record)
        is_own_B = ~record.is_gold_prompt_B.to(skills_B.device)
        needed_BK, may_teach_B = needed_BK & is_own_B[:, None], self._may_teach(record, skills_B.device) & is_own_B
        attempts = self._attempt_rows(record, may_teach_B)
        weights_BK = redistributed(weights_BK, attempts.is_complete_BK)
        # A combination that compares teachers does so on correct completions.
        is_scored_BK = (may_teach_B | combination.compares)[:, None] & attempts.is_complete_BK
        needed_BK, readings, verdict = self._run_gated(needed_BK, is_scored_BK, attempts, batch, record)
        if verdict is not None:
            weights_BK = redistributed(weights_BK, verdict.open_BK)
        self._add_sampled_scores(batch)
        events, is_up_K = self._drop_down(step)
        if events:
            needed_BK, weights_BK = needed_BK & is_up_K, redistributed(weights_BK, is_up_K.expand(weights_BK.shape))
            batch["teacher_tokens"] = batch["teacher_tokens"] & is_up_K[:, None]
        if self.label_scores is not None:
            weights_BK = self._over_labels(self.label_scores, batch, record, needed_BK, weights_BK)
        weights_BK = self._choose(weights_BK, batch, record) * may_teach_B[:, None]
        self._finish(batch, weights_BK, record)
        if not record.is_training:
            return TeacherScoringReport(events)
        self._count_computed(readings)
        counts = self.counting.counts(
            batch,
            record,
            needed_BK=needed_BK,
            possible_BK=is_own_B[:, None] & attempts.is_complete_BK,
            readings=readings,
            gate_tokens_K=[0] * len(readings) if verdict is None else verdict.tokens_K,
        )
        metrics = self.counting.used_weights(batch, is_own_B, record.skills) | attempts.metrics
        if verdict is not None and verdict.share_assumed is not None:
            metrics["gate/assumed"] = verdict.share_assumed
        return TeacherScoringReport(events, counts, metrics)

    # -- the steps, in their order -----------------------------------------------------------------------------------

    def _begin(self, batch: RolloutBatch, record: RolloutRecord) -> None:
        """Add which signals are computed, and the numbers of the prompts."""
        batch["response_on"] = torch.tensor(self.runtime.is_active("response"))
        batch["feature_on"] = torch.tensor(self.runtime.is_active("feature"))
        batch["group_ids"] = record.group_ids_B.to(batch["skill_ids"].device)

    def _attempt_rows(self, record: RolloutRecord, may_teach_B: Tensor) -> AttemptRows:
        """Return the rows of a rollout as each teacher reads them."""
        encoder = self.ensemble.slots[0].student.encoder
        return AttemptRows.of(self.ensemble.teachers, record, encoder, self.options.answer_length, may_teach_B)

    def _run_gated(
        self,
        needed_BK: Tensor,
        is_scored_BK: Tensor,
        attempts: AttemptRows,
        batch: RolloutBatch,
        record: RolloutRecord,
    ) -> tuple[Tensor, list[TeacherReading], GateVerdict | None]:
        """Run the teachers that the gate does not close, and take back what those say that it closes afterwards.

        Args:
            needed_BK: Which teachers would teach on which completions.
            is_scored_BK: Which completions each of them may score.
            attempts: The rows as each teacher reads them.
            batch: This process's rollout.
            record: Its record.

        Returns:
            Which teachers were run on which completions; what they read; and the gate's verdict, with the counts of all
            processes, None where there is no gate.
        """
        if not isinstance(self.gate, TeacherGate) or not record.is_training:
            needed_BK = needed_BK & is_scored_BK
            return needed_BK, self._run(needed_BK, batch, attempts, record, {}), None
        needed_BK = needed_BK & attempts.has_question_BK
        with self._gate_time():
            forwards = self._forwards(is_scored_BK.any(1), batch)
            questions = self.gate.ask(record.rows, needed_BK, forwards, rows_KB=attempts.questions_KB)
        run_BK = questions.open_BK & is_scored_BK
        readings = self._run(run_BK, batch, attempts, record, questions.drafts)
        with self._gate_time():
            states = {k: reading.draft_states for k, reading in enumerate(readings) if reading.draft_states}
            verdict = self._decide(self.gate, questions, states, needed_BK, batch["skill_ids"], record)
        self.ensemble.withdraw(cast(dict[str, Any], batch), verdict.open_BK)
        return run_BK, readings, verdict

    def _forwards(self, is_scored_B: Tensor, batch: RolloutBatch) -> ScoringForwards:
        """Describe the forwards of teachers to the gate."""
        device = self.accelerator.device.type
        with self.accelerator.autocast():
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        takes_drafts_K = [slot.takes_drafts(dtype) for slot in self.ensemble.slots]
        num_completion_B = batch["completion_mask"].sum(1) * is_scored_B
        return ScoringForwards(takes_drafts_K, batch["prompt_mask"].sum(1).tolist(), num_completion_B.tolist())

    def _decide(
        self,
        gate: TeacherGate,
        questions: GateQuestions,
        states: Mapping[int, Sequence[Tensor]],
        needed_BK: Tensor,
        skills_B: Tensor,
        record: RolloutRecord,
    ) -> GateVerdict:
        """Return the gate's verdict on this process's completions, with the counts of all processes; count it."""
        assert record.attempted_A is not None
        assert record.succeeded_A is not None
        verdict = gate.decide(questions, states)
        tokens_K = self.counting.computed("gate", verdict.tokens_K)
        needed_AK, has_answer_AK = gather(needed_BK), gather(verdict.has_answer_BK)
        assumed_AK = gather(verdict.assumed_BK)
        counts = gate_counts(
            verdict._replace(open_BK=gather(verdict.open_BK), assumed_BK=assumed_AK, has_answer_BK=has_answer_AK),
            needed_AK,
            gather(skills_B),
            attempted_A=record.attempted_A,
            succeeded_A=record.succeeded_A,
            group_size=record.group_size,
            skills=record.skills,
        )
        self.runtime.add_gate_counts(counts)
        num_assumed = int((needed_AK & assumed_AK)[:: record.group_size].sum())
        num_verdicts = num_assumed + int(counts.prompts_SK.sum())
        share_assumed = num_assumed / num_verdicts if num_verdicts else None
        return verdict._replace(tokens_K=tokens_K, share_assumed=share_assumed)

    def _may_teach(self, record: RolloutRecord, device: torch.device) -> Tensor:
        """Return which completions teachers may teach on, `[B]` bool: all, or those that the verifier fails."""
        if self.options.distill_on == "all":
            return torch.ones(len(record.rows), dtype=torch.bool, device=device)
        return ~record.share(record.is_correct_A)

    def _run(
        self,
        needed_BK: Tensor,
        batch: RolloutBatch,
        attempts: AttemptRows,
        record: RolloutRecord,
        drafts: Mapping[int, Sequence[Pair]],
    ) -> list[TeacherReading]:
        """Run each teacher on the completions that need it and on its drafts, and add its outputs to the batch."""
        outputs = cast(dict[str, Any], batch)  # the keys of a teacher's outputs have its number in them
        with self.accelerator.autocast():
            return self.ensemble.score(
                outputs,
                needed_BK,
                prompts=[row["prompt"] for row in record.rows],
                temperature=self.options.temperature,
                rows_per_forward=self.options.rows_per_forward,
                drafts=drafts,
                own_prompts=self.ensemble.own_prompts(attempts.rows_KB, needed_BK),
            )

    def _add_sampled_scores(self, batch: RolloutBatch) -> None:
        """Add the teachers' scores of the sampled tokens where something reads them."""
        if self.options.teacher_reward or self.options.combination.compares or self.label_scores is not None:
            outputs = cast(dict[str, Any], batch)
            with self.accelerator.autocast():
                outputs |= self.ensemble.sampled_scores(outputs, self.options.temperature)

    def _drop_down(self, step: int) -> tuple[list[Event], Tensor]:
        """Retire the teachers that have stopped answering on any process.

        Returns:
            An event for each, and which teachers still answer, `[K]` bool.

        Raises:
            TeacherDown: none is left, and there is nothing else to learn from.
        """
        teachers = self.ensemble.teachers
        down_K = self._sum(torch.tensor([float(teacher.is_down) for teacher in teachers])) > 0
        events = []
        for k in sorted(set(down_K.nonzero().flatten().tolist()) - self._dropouts):
            self._dropouts.add(k)
            self.ensemble.retire(k, is_down=True)
            about = "its server stopped answering", "it is optional, so the run goes on without it"
            events.append(Event(step, "teacher dropped", "all skills", str(teachers[k].name), *about))
        if events and down_K.all() and not self.options.has_policy:
            raise TeacherDown(
                f"teacher '{events[-1].about}' was the last that answered, and without the policy signal there is "
                "nothing else to learn from; go on from the last checkpoint when its server is back"
            )
        return events, ~down_K

    def _over_labels(
        self, scores: LabelScores, batch: RolloutBatch, record: RolloutRecord, needed_BK: Tensor, weights_BK: Tensor
    ) -> Tensor:
        """Add the teachers' scores of labels, and return the weights after a gate has judged them."""
        with self.accelerator.autocast():  # it reads prompts without content as the teachers read the rollout
            scores.add(batch, record, needed_BK)
        if not isinstance(self.gate, LabelGate) or not record.is_training:
            return weights_BK
        verdict = self.gate.judge(batch, record)
        batch["is_first_visit"] = verdict.is_first_visit_B
        return redistributed(weights_BK, verdict.factors_BK)

    def _choose(self, weights_BK: Tensor, batch: RolloutBatch, record: RolloutRecord) -> Tensor:
        """Return the weights after the combination has compared the teachers, if it does."""
        combination = self.options.combination
        if not combination.compares:
            return weights_BK
        if self.label_scores is None:
            is_correct_A = record.is_correct_A
            likelihood_BK = mean_likelihood(batch["teacher_scores"], batch["teacher_spans"], loss_mask(batch))
        else:
            is_correct_A = gather((batch["label_ids"] == batch["gold_ids"]) & (batch["gold_ids"] >= 0))
            likelihood_BK = label_log_probabilities(batch)
        weights_AK = combination.completion_weights(
            gather(weights_BK), gather(likelihood_BK), is_correct_A, record.group_size
        )
        return record.share(weights_AK)

    def _finish(self, batch: RolloutBatch, weights_BK: Tensor, record: RolloutRecord) -> None:
        """Add the weights and the number of tokens, or of prompts with labels, that are taught."""
        batch["teacher_weights"] = weights_BK
        batch["num_taught"] = self._sum((response_mask(batch) * (taught_share(batch) > 0)).sum())
        if record.num_fixed and "teacher_spans" in batch:
            # A teacher-scored reward is for what the student sampled, and it did not sample gold answers.
            batch["teacher_spans"][record.is_fixed_B.to(weights_BK.device)] = -1

    def _count_computed(self, readings: Sequence[TeacherReading]) -> None:
        """Count the operations of what went through teachers, but for drafts, which count for the gate."""
        num_drafted = [sum(map(len, reading.draft_states)) for reading in readings]
        num_blank = [0] * len(readings) if self.label_scores is None else self.label_scores.take_num_read()
        computed = zip(readings, num_drafted, num_blank, strict=True)
        self.counting.computed("teachers", [reading.computed - drafted + blank for reading, drafted, blank in computed])

    def _sum(self, value: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(value.to(self.accelerator.device), reduction="sum")
        return total
