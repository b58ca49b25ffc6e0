"""`RLDTrainer`: TRL's `GRPOTrainer` with teachers, more signals and a controller.

`GRPOHooks` says when TRL calls each step. Shapes: B completions of this process, A of all processes, T tokens.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather, is_peft_model
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from rld.controllers.gap import GapController
from rld.controllers.observation import Controller
from rld.controllers.runtime import ControllerRuntime
from rld.data.prompt_stream import PromptStream
from rld.errors import RecipeError
from rld.losses.feature_matching import FeatureProjections, attach_projections
from rld.models.decoding import contiguous_head_input
from rld.models.prefill import SharedPrefill
from rld.rollout.audit import RewardAudit
from rld.rollout.batch import RolloutBatch
from rld.rollout.gate import unverified
from rld.rollout.label_completions import add_labels
from rld.rollout.record import RolloutRecord, RolloutTotals
from rld.rollout.rewards import all_checked
from rld.rollout.teacher_scoring import teacher_infos
from rld.rollout.verifier import askable, training_rewards
from rld.teachers.ensemble import TeacherEnsemble
from rld.teachers.slot_base import StudentInterface
from rld.teachers.teacher import Teacher
from rld.trainer import vllm_rollouts
from rld.trainer.checkpoints import CheckpointedParts
from rld.trainer.first_answers import FirstAnswersCallback
from rld.trainer.gold_prompts import GoldPrompts, gold_controller, weigh_gold_prompts
from rld.trainer.gradient_probe import GradientProbe
from rld.trainer.grpo_hooks import GRPOHooks
from rld.trainer.joint_loss import JointLoss
from rld.trainer.micro_batch import MicroBatch, is_first_pass
from rld.trainer.prompt_order import prompt_stream
from rld.trainer.prompt_refill import PromptRefill
from rld.trainer.prompt_setup import shared_encoder
from rld.trainer.retention import RetentionCallback
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rollout_counting import count_attempts, count_update, rollout_tokens
from rld.trainer.rollout_events import RolloutEvents
from rld.trainer.running_averages import RunningAverages
from rld.trainer.scoring_setup import gate_of, require_labels, teacher_scoring
from rld.trainer.skill_names import trained_skills
from rld.trainer.start_checks import require_own_prompts, require_resumable, require_sound_student
from rld.trainer.student_forward import StudentInputs, add_signal_forward
from rld.trainer.timing import OptimizerTime, PhaseTimer, timed
from rld.trainer.transfer_probe import TransferProbe
from rld.types import Curriculum, Row
from rld.utils.flops import FlopMeter, forward_flops, training_flops


class RLDTrainer(GRPOHooks):
    """Train one student from several teachers, its own rewards, or both, with weights that a controller sets.

    Drops in for `GRPOTrainer`: every argument of that class means the same here. Without teachers it is that class.

    Args:
        model, reward_funcs, args, train_dataset: As in `GRPOTrainer`; `args` is an `RLDConfig`. A `skill` column in
            the training set labels the rows; without it all rows are one skill. `reward_funcs` may be left out when
            there are teachers.
        teachers: `Teacher`s, a `SelfTeacher`, loaded models, hub ids or folders. Other tokenizers than the student's
            need `align`.
        controller: Sets the weights of signals and teachers. None: `GapController()`.
        curriculum: Picks the skill and level of each next prompt from `train_dataset`'s columns `skill` and `level`.
            None: TRL's shuffled order.
        verifier: A reward that decides what is a success (1), and is not paid. None: the first reward.
        audit_reward: A reward that checks a share of the completions that the verifier gave 1 (`args.audit_share`).
            It also replaces the verifier in the gate and in retention.
        retain_dataset: Rows of skills that must not be forgotten, with a column `skill`; `args.retain` has the options.
        gold_rows: Rows with a gold `answer`, for `GradientAlignmentController` and `TargetedController`, which measure
            their gradient.
        target_rows: Rows of the target skills of a `TargetedController`, none of which are trained on.
        flop_meter: Counts the training's floating-point operations. None: a new one.
        **options: The other arguments of `GRPOTrainer`.

    Attributes:
        events: Events of the training, oldest first; a callback that writes them also removes them.
        totals: Rollouts and their tokens so far, over all processes.

    Raises:
        TeacherError: a teacher's tokenizer differs without `align`, or two teachers share a name.
        RewardError: while training, a reward that raises or returns something unusable.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: RLDConfig | None = None,
        train_dataset: Dataset | IterableDataset | PromptStream | None = None,
        *rest: Any,
        teachers: Sequence[Teacher | PreTrainedModel | str] = (),
        controller: Controller | None = None,
        curriculum: Curriculum | None = None,
        verifier: Any = None,
        audit_reward: Any = None,
        retain_dataset: Iterable[Row] | None = None,
        gold_rows: Sequence[Row] = (),
        target_rows: Sequence[Row] = (),
        flop_meter: FlopMeter | None = None,
        **options: Any,
    ) -> None:
        args = RLDConfig.for_model(model) if args is None else args
        if not isinstance(args, RLDConfig):
            raise TypeError(f"args should be an RLDConfig, not a {type(args).__name__}: it takes the same arguments")
        require_resumable(args)
        self.teachers = [t if isinstance(t, Teacher) else Teacher(t) for t in teachers]
        self._signals = args.active_signals(has_teachers=bool(self.teachers))
        self.stream = prompt_stream(args, train_dataset, curriculum)
        reward_funcs, self._success_rule = training_rewards(
            reward_funcs, verifier, self.teachers, users=(self.stream, audit_reward, retain_dataset)
        )
        self.num_own_verifiers = 0 if verifier is None else 1
        args = args.with_unpaid(self.num_own_verifiers, num_rewards=len(reward_funcs or ()))
        train_dataset = self.stream.dataset if self.stream is not None else train_dataset
        super().__init__(model, reward_funcs, args, train_dataset, *rest, **options)
        # What stands above is read by TRL's own __init__; what follows reads its model, tokenizer and accelerator.
        self.flop_meter = FlopMeter() if flop_meter is None else flop_meter
        self.skills = trained_skills(args.skills, self.stream, train_dataset, self.eval_dataset, self.teachers)
        self._build_student(train_dataset)
        self._build_records(controller or GapController())
        self._build_teachers()
        self._build_verification(audit_reward, retain_dataset)
        self._build_losses(gold_rows, target_rows)

    # -- building ------------------------------------------------------------------------------------------------------

    def _build_records(self, controller: Controller) -> None:
        self.totals, self.timer = RolloutTotals(), PhaseTimer()
        for callback in (OptimizerTime(self.timer), RolloutEvents(self), RunningAverages(self.teachers)):
            self.add_callback(callback)
        controller = gold_controller(self, controller)
        self.runtime = ControllerRuntime(controller, self.skills, teacher_infos(self.teachers), self._signals)
        self._refill = PromptRefill.for_trainer(self)
        has_gold = self.args.gold_completions or self.args.has_gold_prompts
        if has_gold and (self.tools or self.rollout_func is not None):
            raise RecipeError("gold answers take the place of completions that are generated without tools")

    def _build_student(self, rows: Any) -> None:
        self._student: PreTrainedModel = self.model.get_base_model() if is_peft_model(self.model) else self.model
        self._num_parameters = self._student.num_parameters()
        self._encoder, self._is_chat = shared_encoder(self, self._student, rows)
        if self.use_vllm:
            vllm_rollouts.adapt(self)
        require_sound_student(self._student, self._encoder, self.train_dataset, self.args)
        contiguous_head_input(self._student)  # beside an adapter its head is frozen
        self._prefill = SharedPrefill(self._student)
        require_labels(self)

    def _build_teachers(self) -> None:
        require_own_prompts(self)
        self._feature = self.args.feature_model() if "feature" in self._signals else None
        student = StudentInterface(self._student, self._encoder, self._feature, is_chat=self._is_chat)
        # Under FSDP a teacher is moved to its device only if that is asked for.
        prepare = functools.partial(self.accelerator.prepare_model, device_placement=True, evaluation_mode=True)
        self.ensemble = TeacherEnsemble(self.teachers, student, prepare)
        self._projections = FeatureProjections(self.ensemble.plans) if self._feature is not None else None
        if self._projections is not None:
            attach_projections(self._student, self._projections)
        add_signal_forward(self._student, self._projections)
        if self.ref_model is not None:
            add_signal_forward(self.accelerator.unwrap_model(self.ref_model), name="the reference model")

    def _build_verification(self, audit_reward: Any, retained: Iterable[Row] | None) -> None:
        verify = askable(all_checked(audit_reward, decides=True) or self.reward_funcs, lambda: self.state)
        self.audit = None if audit_reward is None else RewardAudit(verify, self.args.audit_share, self.args.seed)
        self.gate, self._gold_prompts = gate_of(self, verify), GoldPrompts.for_trainer(self, verify)
        self.answers = None if self._gold_prompts is None else self._gold_prompts.answers
        self.retention = None if retained is None else RetentionCallback(self, retained, verify)
        for callback in filter(None, (FirstAnswersCallback.for_trainer(self, verify), self.retention)):
            self.add_callback(callback)

    def _build_losses(self, gold_rows: Sequence[Row], target_rows: Sequence[Row]) -> None:
        args, runtime = self.args, self.runtime
        probe = GradientProbe.for_trainer(self, self._encoder, gold_rows)
        self._joint_loss = JointLoss(args, self.ensemble, runtime, feature=self._feature, gradient_probe=probe)
        self._transfer = TransferProbe.for_trainer(self, self._encoder, gold_rows=gold_rows, target_rows=target_rows)
        self._teacher_scoring = teacher_scoring(self)

    # -- rollouts ------------------------------------------------------------------------------------------------------

    def _begin_rollout(self, rows: Sequence[Row]) -> RolloutRecord:
        self._prefill.take_num_read()  # of answers since the last rollout
        is_training = bool(self.model.training)
        group_size = self.num_generations if is_training else self.num_generations_eval
        assert group_size is not None  # TRL sets it
        record = RolloutRecord(
            rows=rows,
            skills=self.skills,
            number=self.totals.rollouts,
            first_row=self.accelerator.process_index * len(rows),
            group_size=group_size,
            num_fixed=group_size if self.args.labels else self.args.gold_completions * is_training,
            is_training=is_training,
            rule=self._success_rule,
            labels=self.args.label_words,
        )
        return self._gold_prompts.with_gold_groups(record) if self._gold_prompts is not None and is_training else record

    def _receive_rewards(self, record: RolloutRecord, completions: Sequence[Any], ids: Sequence[list[int]]) -> None:
        if self.audit is not None and record.is_training:
            self.runtime.add_audit_counts(self.audit.count(record, completions, ids).reduced(self.accelerator))

    def _finish_rollout(self, batch: RolloutBatch, record: RolloutRecord) -> None:
        batch["skill_ids"] = record.skill_ids_B.to(self.accelerator.device)
        batch["signal_weights"] = self.runtime.signals_SG.to(self.accelerator.device)[batch["skill_ids"]]
        batch["prompt_numbers"] = batch["prompt_ids"].unique(dim=0, return_inverse=True)[1]
        if record.gold_groups:
            weigh_gold_prompts(batch, record, self.accelerator)
        if record.labels:
            add_labels(batch, record, self.accelerator)
        elif self.args.gold_weight and record.has_fixed:
            self._joint_loss.mark_gold(batch, record.is_fixed_B, self.accelerator)
        if record.is_training:
            self._count_rollout(batch, record)
        if self.teachers:
            self._score_with_teachers(batch, record)

    def _count_rollout(self, batch: RolloutBatch, record: RolloutRecord) -> None:
        """Count a rollout's tokens and attempts, and tell the controller and the curriculum of the attempts."""
        tokens = rollout_tokens(batch, record, self._prefill.take_num_read())
        sizes = torch.tensor(tokens, device=self.accelerator.device)
        generated, read, read_gold = self.accelerator.reduce(sizes, "sum").tolist()
        self.totals.rollouts += 1
        self.totals.tokens_generated += generated
        self.flop_meter.add("generation", forward_flops(self._num_parameters, generated + read))
        self.flop_meter.add_student("gold", forward_flops(self._num_parameters, read_gold))
        count_attempts(
            record,
            gather(batch["skill_ids"]),
            self.reward_weights,
            gather(batch["completion_mask"].sum(1)),
            runtime=self.runtime,
            stream=self.stream,
            totals=self.totals,
        )

    @timed("teachers")
    def _score_with_teachers(self, batch: RolloutBatch, record: RolloutRecord) -> None:
        report = self._teacher_scoring.score(batch, record, self.state.global_step)
        self.events += report.events
        self.totals.add_teachers(tokens=report.counts.tokens, prompts=report.counts.prompts)
        self.totals.tokens_saved += report.counts.tokens_saved
        for name, value in report.metrics.items():
            self._metrics["train"][name].append(value)

    # -- losses --------------------------------------------------------------------------------------------------------

    def _student_inputs(self, batch: RolloutBatch) -> StudentInputs | None:
        if not self.teachers:
            return None
        inputs = self._joint_loss.inputs(batch, self.progress(self.state.global_step))
        if not self._joint_loss.measures(self.model.training):
            return inputs
        return replace(inputs, measure=functools.partial(self._joint_loss.measure_gradients, batch, inputs))

    def _advantages(self, batch: RolloutBatch) -> Tensor:
        return self._joint_loss.advantages(batch, batch["log_pi"].detach(), self.model.training)

    def _finish_loss(self, policy_loss: Tensor, micro_batch: MicroBatch, model: nn.Module) -> Tensor:
        batch, student, training = micro_batch.batch, micro_batch.recorded, self.model.training
        loss = policy_loss
        if training:
            num_padding = student.result.num_padding or 0
            self._joint_loss.count(batch, student.num_computed, num_padding)
            self.loss_means.add("padding", torch.tensor(num_padding), torch.tensor(student.num_computed))
            if self.retention is not None:
                loss = self._with_replay(loss, self.retention, model)
        num_parts = self.current_gradient_accumulation_steps if training else None
        terms = self._joint_loss.terms(batch, student, training, is_first_pass=is_first_pass(self))
        for name, (total, values_BT, mask_BT, num_tokens) in terms.items():
            loss = loss + total / self._joint_loss.per_update(num_tokens, self.accelerator.num_processes, num_parts)
            self.loss_means.add(f"loss/{name}", (values_BT * mask_BT).sum(), mask_BT.sum())
        if terms or self.teachers:
            # TRL gives a micro-batch its share of the update's mean; its logs are averaged over micro-batches.
            self.loss_means.add("loss/policy", policy_loss.detach() * (num_parts or 1), torch.ones(()))
        return loss

    def _with_replay(self, loss: Tensor, retention: RetentionCallback, model: nn.Module) -> Tensor:
        replay = retention.loss_term(model, self.current_gradient_accumulation_steps)
        if replay is None:
            return loss
        self.loss_means.add("loss/reference", replay.divergence_sum, replay.num_tokens)
        return loss + replay.loss

    def _non_finite_terms(self) -> list[str]:
        return self.loss_means.non_finite() + self._joint_loss.non_finite_divergences()

    # -- updates -------------------------------------------------------------------------------------------------------

    @timed("controller")
    def _finish_update(self) -> dict[str, float]:
        statistics = self._joint_loss.take_statistics().reduced(self.accelerator)
        gradients, num_read = self._joint_loss.take_gradient_stats()
        if not (statistics.is_finite() or self.is_skipped):
            warnings.warn("measurements that are not finite are kept from the controller", stacklevel=2)
        statistics = statistics.finite()
        gradients = {skill: stats for skill, stats in gradients.items() if stats.is_finite()}
        transfer, num_probed = ({}, 0) if self._transfer is None else self._transfer.take()
        self.runtime.set_transfer(transfer)
        step, size = self.state.global_step + 1, self._num_parameters
        self.totals.tokens_trained += int((statistics.student_tokens - statistics.padding_tokens).item())
        probed = training_flops(size, num_probed) + forward_flops(size, num_read)
        count_update(self.flop_meter, size, statistics, probed, runtime=self.runtime)
        if self.args.labels:
            self.runtime.add_label_counts(*self._joint_loss.take_label_counts(self.accelerator))
        metrics, events = self.runtime.finish_update(statistics, step, self.progress(step), gradients)
        self.events += events + (unverified(self.teachers, self.gate) if step == 1 else [])
        if self.retention is not None:
            with self.timer.part("retention"):
                retention_metrics, events = self.retention.finish_update(step, is_tick=self.runtime.updates == 0)
            metrics, self.events = metrics | retention_metrics, self.events + events
        metrics |= {"flops": self.flop_meter.total} | self.totals.metrics()
        if self.stream is not None:
            self.events += self.stream.level_events(step)
            metrics |= self.stream.metrics()  # the shares of this update, as the weights are
            self.stream.allocate(self.runtime.weights.allocation)
        return metrics

    @property
    def _checkpointed_parts(self) -> CheckpointedParts:
        return CheckpointedParts(
            teachers=self.teachers,
            runtime=self.runtime,
            totals=self.totals,
            flop_meter=self.flop_meter,
            scoring=self._teacher_scoring,
            answers=self.answers,
            retention=self.retention,
            stream=self.stream,
            projections=self._projections,
        )
