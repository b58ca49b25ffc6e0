"""The teachers of one trainer: they score a rollout once, and hand each micro-batch what its loss reads.

Each teacher is one `TeacherSlot`. Those that run elsewhere are asked all at the same time, while those of this process
run one after another.

Shapes: B completions, T completion tokens, K teachers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import TeacherError
from rld.losses.feature_matching import FeaturePlan
from rld.losses.teacher_outputs import TeacherOutputs, teacher_key
from rld.models.drafts import Pair
from rld.teachers.output_checks import require_finite_outputs
from rld.teachers.own_prompts import OwnPrompts
from rld.teachers.self_teacher import SelfTeacher
from rld.teachers.slot_base import PrepareModel, SlotResult, StudentInterface, TeacherBatch, TeacherSlot
from rld.teachers.slots import AlignedSlot, LogprobSlot, SameTokenizerSlot
from rld.teachers.teacher import Teacher, share_base_models
from rld.types import Row
from rld.utils.interrupts import Waiting


class TeacherReading(NamedTuple):
    """What one teacher of this process read in a rollout."""

    extra_B: Tensor
    """Tokens by which its own prompt is longer than the student's, of each completion, read or not."""
    computed: int = 0
    """Tokens that went through the teacher."""
    cached: int = 0
    """Tokens whose log-probabilities came from a cache."""
    draft_states: Sequence[Tensor] = ()
    """For each draft the last hidden states `[tokens, H]` that predict its tokens."""


class TeacherEnsemble:
    """The teachers of one trainer, ready to score rollouts.

    What it adds to a rollout is batch first and survives TRL's shuffling and splitting into micro-batches.

    Args:
        teachers: The teachers.
        student: What they need to know of the student.
        prepare: Prepares a model of this process: moves it to its device and wraps it for evaluation.

    Attributes:
        observers: Functions that are called with a teacher's number after the teacher has changed.

    Raises:
        TeacherError: two teachers share a name, or one can't teach this student.
    """

    def __init__(self, teachers: Sequence[Teacher], student: StudentInterface, prepare: PrepareModel) -> None:
        _require_names(teachers)
        _require_other_weights(teachers, student.model)
        for teacher in teachers:
            if isinstance(teacher, SelfTeacher):
                teacher.bind(student.model, student.encoder.tokenizer)
        share_base_models(teachers)
        for teacher in teachers:
            teacher.require_same_tokenizer(student.encoder.tokenizer, student.encoder.chat_template_kwargs)
        self.slots = [_slot_kind(teacher)(k, teacher, student, prepare=prepare) for k, teacher in enumerate(teachers)]
        self.observers: list[Callable[[int], None]] = []

    @property
    def teachers(self) -> list[Teacher]:
        """The teachers, in their order."""
        return [slot.teacher for slot in self.slots]

    @property
    def plans(self) -> list[FeaturePlan]:
        """The states of each teacher that features are compared at; none without a feature signal."""
        return [slot.plan for slot in self.slots if slot.plan is not None]

    # -- changes of a teacher ------------------------------------------------------------------------------------------

    def retire(self, k: int, *, is_down: bool = False) -> None:
        """Let teacher k teach nothing from now on.

        Args:
            k: Its number.
            is_down: Whether that is because it no longer answers.
        """
        teacher = self.slots[k].teacher
        teacher.skills, teacher.is_down = (), teacher.is_down or is_down
        self._notify(k)

    def swap(self, k: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let teacher k use the weights of another model from now on.

        Raises:
            TeacherError: the tokenizer is another one, the teacher has no model of its own, or features are compared.
        """
        self.slots[k].swap(model, tokenizer)
        self._notify(k)

    def _notify(self, k: int) -> None:
        for observer in self.observers:
            observer(k)

    # -- rollouts ------------------------------------------------------------------------------------------------------

    def own_prompts(self, rows_KB: Sequence[Sequence[Row]], rows_BK: Tensor) -> dict[int, OwnPrompts]:
        """Return the prompts of the teachers that read others than the student, by the teacher's number.

        Args:
            rows_KB: By teacher, the row of each completion as it reads it.
            rows_BK: The rows that need each teacher.

        Raises:
            TeacherError: a row that needs such a teacher lacks what its prompt shows.
        """
        return {
            slot.index: OwnPrompts.of(slot.teacher, rows_KB[slot.index], rows_BK[:, slot.index], slot.student.encoder)
            for slot in self.slots
            if slot.teacher.prompt is not None
        }

    @torch.no_grad()
    def score(
        self,
        rollout: dict[str, Any],
        rows_BK: Tensor,
        *,
        prompts: Sequence[Any],
        temperature: float,
        rows_per_forward: int,
        drafts: Mapping[int, Sequence[Pair]] = MappingProxyType({}),
        own_prompts: Mapping[int, OwnPrompts] = MappingProxyType({}),
    ) -> list[TeacherReading]:
        """Run each teacher once over the rows that need it, and add its outputs to `rollout`.

        Args:
            rollout: TRL's: prompts and completions in the student's tokens. Added are `teacher_tokens` `[B, K, T]`,
                where each teacher has a distribution, and for each k that was run its `TeacherTensor`s.
            rows_BK: The rows that need each teacher.
            prompts: The rows' prompts: text or messages.
            temperature: Temperature of top-k log-probabilities and of the scores of spans.
            rows_per_forward: Completions per forward, about.
            drafts: By the number of a teacher that takes drafts, those that it reads beside the completions: prompts
                and drafts in its tokens. It reads none where no completion has a token for it.
            own_prompts: By the number of a teacher, the prompts that it reads in place of the student's.
        """
        num_rows, num_tokens = rollout["completion_ids"].shape
        tokens_BKT = torch.zeros(num_rows, len(self.slots), num_tokens, dtype=torch.bool)
        rollout["teacher_tokens"] = tokens_BKT.to(rollout["completion_ids"].device)
        batches: dict[int, tuple[Tensor, TeacherBatch]] = {}
        for slot in self.slots:
            rows_R = slot.scorable_rows(rollout, rows_BK[:, slot.index]).nonzero().squeeze(1)
            if len(rows_R):
                batch = _batch(rollout, rows_R, prompts, temperature=temperature, rows_per_forward=rows_per_forward)
                if slot.index in own_prompts:
                    batch = own_prompts[slot.index].in_place(batch, rows_R)
                batches[slot.index] = rows_R, replace(batch, drafts=drafts.get(slot.index, ()))
        prompt_mask_BP = rollout["prompt_mask"]
        readings = [TeacherReading(prompt_mask_BP.new_zeros(num_rows))] * len(self.slots)
        for k, prompts_of in own_prompts.items():
            readings[k] = TeacherReading(prompts_of.extra_B(prompt_mask_BP))
        for k, result in self._run({k: batch for k, (_, batch) in batches.items()}).items():
            rows_R, batch = batches[k]
            require_finite_outputs(self.slots[k], batch, result)
            _add(rollout, k, rows_R, result)
            computed, cached, draft_states = result.num_computed, result.num_cached, result.draft_states
            readings[k] = readings[k]._replace(computed=computed, cached=cached, draft_states=draft_states)
        return readings

    def withdraw(self, rollout: dict[str, Any], open_BK: Tensor) -> None:
        """Take back what teachers said about completions that they may not teach on: nothing is said there."""
        rollout["teacher_tokens"] = rollout["teacher_tokens"] & open_BK[..., None]
        for slot in self.slots:
            if (key := teacher_key(slot.index, "spans")) in rollout:
                rollout[key] = rollout[key].masked_fill(~open_BK[:, slot.index, None], -1)

    def _run(self, batches: Mapping[int, TeacherBatch]) -> dict[int, SlotResult]:
        """Run the teachers that have a batch; those without a result are left out."""
        slots = [slot for slot in self.slots if slot.index in batches]
        remote = [slot for slot in slots if slot.is_remote]
        futures = {slot.index: _run_in_thread(slot, batches[slot.index]) for slot in remote}
        # One after another: models of this process may share weights, which have one adapter and place at a time.
        results = {slot.index: slot.run(batches[slot.index]) for slot in slots if not slot.is_remote}
        with Waiting():
            results |= {k: future.result() for k, future in futures.items()}
        return {k: result for k, result in sorted(results.items()) if result is not None}

    def sampled_scores(self, rollout: Mapping[str, Any], temperature: float) -> dict[str, Tensor]:
        """Score the tokens that the student sampled with each teacher.

        Returns:
            `teacher_scores` `[B, K, T]`, the log-probability in nats of the span that each token lies in, which for a
            teacher with the student's tokenizer is the token itself; and `teacher_spans` `[B, K, T]`, the number of
            that span, -1 where the teacher has no distribution.
        """
        tokens_BKT = rollout["teacher_tokens"]
        scores_BKT = torch.zeros(tokens_BKT.shape, device=tokens_BKT.device)
        spans_BKT = torch.zeros_like(tokens_BKT, dtype=torch.long)
        for slot in self.slots:
            spans_BKT[:, slot.index] = slot.sampled_spans(rollout)
            scores_BT = slot.sampled_scores(rollout, temperature)
            if scores_BT is not None:
                scores_BKT[:, slot.index] = scores_BT
        return {"teacher_scores": scores_BKT.masked_fill(spans_BKT < 0, 0.0), "teacher_spans": spans_BKT}

    def outputs(self, batch: Mapping[str, Any]) -> list[TeacherOutputs]:
        """Return what the loss of a micro-batch reads of each teacher."""
        return [slot.outputs(batch) for slot in self.slots]


def _run_in_thread(slot: TeacherSlot, batch: TeacherBatch) -> Future[SlotResult | None]:
    """Run a teacher in a thread that the process does not wait for when it ends."""
    future = Future[SlotResult | None]()

    def run() -> None:
        try:
            future.set_result(slot.run(batch))
        except BaseException as error:  # raised again where the result is taken
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _slot_kind(teacher: Teacher) -> type[TeacherSlot]:
    if teacher.source is not None:
        return LogprobSlot
    return AlignedSlot if teacher.align is not None else SameTokenizerSlot


def _require_names(teachers: Sequence[Teacher]) -> None:
    names = [teacher.name for teacher in teachers]
    if len(set(names)) < len(names):
        raise TeacherError(f"two teachers share a name: {names}; give them names with Teacher(model, name=...)")


def _require_other_weights(teachers: Sequence[Teacher], student: PreTrainedModel) -> None:
    """Refuse the student's own model as a teacher, which is frozen."""
    student_weights = {id(weight) for weight in student.parameters()}
    for teacher in teachers:
        model = teacher.model if teacher.source is None else teacher.source.model
        if teacher.is_student or not isinstance(model, nn.Module):
            continue
        if any(id(weight) in student_weights for weight in model.parameters()):
            raise TeacherError(
                f"teacher '{teacher.name}' has the weights of the student itself, which would be frozen; pass a copy: "
                "Teacher(copy.deepcopy(model), tokenizer=...), or the path that the student was loaded from; to let "
                "the student teach itself by another prompt, pass SelfTeacher(prompt=...)"
            )


def _batch(
    rollout: Mapping[str, Any], rows_R: Tensor, prompts: Sequence[Any], *, temperature: float, rows_per_forward: int
) -> TeacherBatch:
    """Cut a rollout to the rows that one teacher scores."""
    return TeacherBatch(
        prompts=[prompts[i] for i in rows_R.tolist()],
        prompt_ids_RP=rollout["prompt_ids"][rows_R],
        prompt_mask_RP=rollout["prompt_mask"][rows_R],
        completion_ids_RT=rollout["completion_ids"][rows_R],
        completion_mask_RT=rollout["completion_mask"][rows_R],
        temperature=temperature,
        rows_per_forward=rows_per_forward,
    )


def _add(rollout: dict[str, Any], k: int, rows_R: Tensor, result: SlotResult) -> None:
    """Add a teacher's tensors to a rollout, with zeros in the rows that it was not run on, and no span there."""
    num_rows = len(rollout["completion_ids"])
    rollout["teacher_tokens"][rows_R, k] = result.tokens_RT
    for name, values in result.tensors.items():
        rollout[teacher_key(k, name)] = _at_rows(values, rows_R, num_rows, fill=-1 if name == "spans" else 0)


def _at_rows(values: Tensor, rows_R: Tensor, num_rows: int, *, fill: int) -> Tensor:
    """Return a tensor of `num_rows` rows with `values` at `rows_R`, on their device: a model may end on another."""
    values = values.to(rows_R.device)
    if len(rows_R) == num_rows:
        return values
    return values.new_full((num_rows, *values.shape[1:]), fill).index_copy_(0, rows_R, values)
