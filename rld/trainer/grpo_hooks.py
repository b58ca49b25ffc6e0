"""Every method of TRL's `GRPOTrainer` that rld overrides, each with a test in `tests/trainer/test_trl_contract.py`.

`GRPOHooks` calls a step of `RLDTrainer` at each point of TRL's loop at which rld does something:

| TRL's method | step |
|---|---|
| `_set_signature_columns_if_needed` | keeps the columns that rld reads |
| `_generate_and_score_completions` | `_begin_rollout`, `PromptRefill.fill`, TRL's rollout, `_finish_rollout` |
| `_tokenize_prompts` | the encoder that all readers of prompts share takes TRL's place |
| `_generate_single_turn` | gold answers, or completions that `PromptRefill` sampled, take the place of TRL's |
| `_calculate_rewards` | `_receive_rewards` |
| `_log_completion_extra` | collects the feedback of rewards, which teachers may read |
| `_get_per_token_logps_and_entropies` | in a rollout, counts tokens; in a loss, `_loss_logprobs` |
| `_compute_loss` | `_begin_loss`, then TRL's policy loss, then `_finish_loss` |
| `training_step` | `_finish_update` after the last micro-batch of an update |
| `log` | adds the means of an evaluation's losses |
| `_save_checkpoint`, `_load_from_checkpoint`, `_load_optimizer_and_scheduler` | the state of `_checkpointed_parts` |

A `RolloutRecord` carries what the steps of one rollout share, a `MicroBatch` what those of one loss share.

Shapes: B completions, T completion tokens, S prompt and completion tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOTrainer

from rld.models.decoding import only_generation_config
from rld.models.prompting import PromptEncoder
from rld.rollout.batch import RolloutBatch
from rld.rollout.feedback import FEEDBACK, FeedbackLog
from rld.rollout.gold import gold_completions
from rld.rollout.label_completions import label_completions
from rld.rollout.record import RolloutRecord, RolloutTotals
from rld.rollout.reward_rows import without_gold_groups
from rld.rollout.reward_waits import limited_wait
from rld.rollout.verifier import answers_of, as_completions, require_scale
from rld.teachers.teacher import Teacher
from rld.trainer import vllm_rollouts
from rld.trainer.checkpoints import CheckpointedParts, load_rollout
from rld.trainer.finite_updates import FiniteUpdates
from rld.trainer.loss_means import LossMeans
from rld.trainer.micro_batch import MicroBatch
from rld.trainer.prompt_refill import PromptRefill, Samples
from rld.trainer.resumable import ResumableTrainer
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rollout_events import count_groups
from rld.trainer.sharding import whole_state
from rld.trainer.start_checks import require_prompts_fit
from rld.trainer.student_forward import RecordingStudent, StudentInputs
from rld.trainer.timing import PhaseTimer, timed
from rld.trainer.training_progress import TrainingProgress
from rld.trainer.trl_patches import patch_trl
from rld.trainer.whole_checkpoints import WholeCheckpoints
from rld.types import Row

_READ_COLUMNS = ("skill", "level", "question", "answer", "is_cut", "slot")
"""Columns that rld reads itself, and the one of a `PromptStream`; `remove_unused_columns` leaves them in."""


class GRPOHooks(FiniteUpdates, ResumableTrainer, TrainingProgress, GRPOTrainer, WholeCheckpoints):
    """`GRPOTrainer` that calls a step of its subclass at each point at which rld does something."""

    args: RLDConfig
    model: Any  # a PreTrainedModel, or a PeftModel around one
    num_generations: int
    timer: PhaseTimer
    _encoder: PromptEncoder
    _student: PreTrainedModel
    totals: RolloutTotals
    teachers: Sequence[Teacher]
    _refill: PromptRefill | None

    _rollout: RolloutRecord | None = None
    """The rollout in progress."""
    _micro_batch: MicroBatch | None = None
    """The micro-batch whose loss is in progress."""

    def __init__(self, model: str | PreTrainedModel, reward_funcs: Any, args: RLDConfig, *rest: Any, **options: Any):
        patch_trl()
        if args.use_vllm:
            vllm_rollouts.require_possible(model)
        super().__init__(model, reward_funcs, args, *rest, **options)

    # -- the steps -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _begin_rollout(self, rows: Sequence[Row]) -> RolloutRecord:
        """Return the record of a new rollout."""

    @abstractmethod
    def _receive_rewards(self, record: RolloutRecord, completions: Sequence[Any], ids: Sequence[list[int]]) -> None:
        """Use the rewards of a rollout, which are in the record; completions are this process's."""

    @abstractmethod
    def _finish_rollout(self, batch: RolloutBatch, record: RolloutRecord) -> None:
        """Add to a rollout what the losses need."""

    @abstractmethod
    def _student_inputs(self, batch: RolloutBatch) -> StudentInputs | None:
        """Return what the student's forward needs for the other signals; None without teachers."""

    @abstractmethod
    def _advantages(self, batch: RolloutBatch) -> Tensor:
        """Return the policy's advantages, once the student's log-probabilities are in the batch."""

    @abstractmethod
    def _finish_loss(self, policy_loss: Tensor, micro_batch: MicroBatch, model: nn.Module) -> Tensor:
        """Return a micro-batch's loss, given the policy's."""

    @abstractmethod
    def _finish_update(self) -> dict[str, float]:
        """Go on to the next update, and return the metrics of this one."""

    @property
    @abstractmethod
    def _checkpointed_parts(self) -> CheckpointedParts:
        """The parts whose state a checkpoint holds."""

    # -- rows --------------------------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        self._signature_columns: Any = [*columns, *(name for name in _READ_COLUMNS if name not in columns)]

    # -- rollouts ------------------------------------------------------------------------------------------------------

    @timed("rollout")
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        record = self._begin_rollout(inputs)
        if self._refill is not None and record.is_training:
            record = self._refill.fill(record, self.reward_weights, self._sample_rows)
        self._rollout = record
        try:
            batch: dict[str, Any] = super()._generate_and_score_completions(list(record.rows))
        finally:
            self._rollout = None
        self._finish_rollout(cast(RolloutBatch, batch), record)
        return batch

    def _sample_rows(self, rows: list[Row]) -> Samples:
        """Return completions of rows with their rewards, sampled as in a rollout; no step is called.

        TRL counts what it generates, and will count the completions that stay when it gets them for its rollout.
        """
        prompts = [row["prompt"] for row in rows]
        metrics, num_seen = self._metrics, self.state.num_input_tokens_seen
        self._metrics = {mode: defaultdict(list) for mode in metrics}
        try:
            prompt_ids, completion_ids, _, completions, *_ = self._generate(prompts)
        finally:
            self._metrics, self.state.num_input_tokens_seen = metrics, num_seen
        rewards_AR = self._calculate_rewards(rows, prompts, completions, completion_ids)
        return Samples(prompt_ids, completion_ids, rewards_AR, self._feedback.texts())

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        if self._is_vlm or self.environment_factories is not None:  # which have images, or tools of their own
            return super()._tokenize_prompts(prompts)
        return self._encoder.encode_all(prompts), None, {}

    @timed("generation")
    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        require_prompts_fit(self.model, prompt_ids, self.args)
        record = self._rollout
        if record is not None and record.refilled is not None:
            return record.refilled.completions, None
        if record is not None and record.labels:
            return label_completions(record, self._encoder, self.args.max_completion_length), None
        if record is None or not record.has_fixed:
            return self._sample(prompt_ids, *args, **kwargs)
        fixed = record.is_fixed_B.nonzero().squeeze(1).tolist()
        gold = gold_completions([*map(record.learnt_row, fixed)], self._encoder, self.args.max_completion_length)
        completions = dict(zip(fixed, gold, strict=True))
        if self.use_vllm:  # which samples whole groups, in all processes at once
            return vllm_rollouts.with_gold(self._sample(prompt_ids, *args, **kwargs), completions)
        indices = [i for i in range(len(prompt_ids)) if i not in completions]
        prompts = [prompt_ids[i] for i in indices]
        if not prompts and record.num_fixed < record.group_size and self.accelerator.num_processes > 1:
            prompts = prompt_ids[:1]  # not used; where weights are sharded all processes sample, or none
        completions |= zip(indices, self._sample(prompts, *args, **kwargs)[0] if prompts else [], strict=False)
        return [completions[i] for i in range(len(prompt_ids))], None

    def _sample(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """Return TRL's samples, which depend on the trainer's options and not on the model's generation options."""
        generate = super()._generate_single_turn
        if self.use_vllm:
            return vllm_rollouts.sample(lambda: generate(prompt_ids, *args, **kwargs), self.args)
        with only_generation_config(self._student, self.generation_config):
            try:
                return generate(prompt_ids, *args, **kwargs)
            except RuntimeError as error:
                if "probability tensor" not in str(error):
                    raise
                raise self._non_finite("the student's logits are not finite in a rollout") from error

    @timed("rewards")
    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        answers = answers_of(prompts, self._with_markers(completions, completion_ids_list), self._encoder)
        if not self.tools and self.environment_factories is None:  # with which a completion has several messages
            whole = as_completions(self._encoder.whole_completions(prompts, completion_ids_list), completions)
            inputs = [{**row, "whole_completions": text} for row, text in zip(inputs, whole, strict=True)]
        rewards_AR = None if self._rollout is None else self._rollout.rewards_AR
        if rewards_AR is None:  # otherwise prompts were replaced by what it is
            self._feedback.begin(len(prompts))
            with limited_wait(self.reward_funcs), without_gold_groups(self, self._rollout):
                rewards_AR = super()._calculate_rewards(inputs, prompts, answers, completion_ids_list)
        if self._rollout is not None:
            require_scale(self._rollout.rule, rewards_AR[:, 0].tolist())
            self._rollout.rewards_AR = rewards_AR
            self._rollout.note_texts(answers, self._feedback.texts())
            if self._rollout.is_training:
                count_groups(self.totals, self.reward_func_names, self._rollout)
            self._receive_rewards(self._rollout, answers, completion_ids_list)
            return self._rollout.compared_rewards_AR
        return rewards_AR

    @cached_property
    def _feedback(self) -> FeedbackLog:
        return FeedbackLog.of_prompts(teacher.prompt for teacher in self.teachers)

    def _log_completion_extra(self, column: str, values: list[Any]) -> None:
        merged = self._feedback.add(values) if column == FEEDBACK else None
        if merged is None:
            super()._log_completion_extra(column, values)
        else:  # several rewards may say something, and TRL's table has one text per completion
            self._pending_extra_logs[column] = merged

    def _with_markers(self, completions: Sequence[Any], ids: Sequence[list[int]]) -> Sequence[Any]:
        """Return completions with the markers of thinking parts, of which TRL leaves out those that are special."""
        if self._encoder.thinking is None or self.tools or self.environment_factories is not None:
            return completions
        return as_completions(self._encoder.decode(ids), completions)

    # -- losses --------------------------------------------------------------------------------------------------------

    @timed("student")
    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if self._micro_batch is None:
            return self._rollout_logprobs(*args, **kwargs)
        return self._loss_logprobs(self._micro_batch, *args, **kwargs)

    def _rollout_logprobs(
        self, model: Any, ids_BS: Tensor, attention_BS: Tensor, num_tokens: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Return old or reference log-probabilities of a rollout."""
        student = RecordingStudent(model, num_tokens)
        result = super()._get_per_token_logps_and_entropies(student, ids_BS, attention_BS, num_tokens, *args, **kwargs)
        if self._rollout is not None:
            self._rollout.reads.append((student.num_computed, student.num_padding))
        return result

    def _loss_logprobs(
        self,
        micro_batch: MicroBatch,
        model: Any,
        ids_BS: Tensor,
        attention_BS: Tensor,
        num_tokens: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Return log-probabilities for a loss, computed in one forward with the other signals."""
        batch = micro_batch.batch
        student = micro_batch.student = RecordingStudent(model, num_tokens, self._student_inputs(batch))
        result = super()._get_per_token_logps_and_entropies(student, ids_BS, attention_BS, num_tokens, *args, **kwargs)
        batch["log_pi"] = result[0]
        # TRL reads the advantages after this call, which is what lets them depend on the log-probabilities.
        batch["advantages"] = self._advantages(batch)
        return result

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        inputs = dict(inputs)  # TRL may use the same rollout again, with its own advantages
        micro_batch = self._micro_batch = MicroBatch(cast(RolloutBatch, inputs))
        try:
            policy_loss: Tensor = super()._compute_loss(model, inputs)
        finally:
            self._micro_batch = None
        return self._finish_loss(policy_loss, micro_batch, model)

    # -- updates -------------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        with self.timer.part("student"):
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            metrics = self._finish_update() | self.loss_means.take(self.accelerator) | self.timer.take()
            for name, value in metrics.items():
                self._metrics["train"][name].append(float(value))
            self.timer.begin("optimizer")
        return loss

    @cached_property
    def loss_means(self) -> LossMeans:
        """The means of the loss's terms, of the update or evaluation in progress."""
        return LossMeans()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not self.model.training:
            for name, value in self.loss_means.take(self.accelerator).items():
                self._metrics["eval"][name].append(value)
        super().log(logs, start_time)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    @property
    def _is_inside_rollout(self) -> bool:
        """Whether the next micro-batch comes from the present rollout."""
        return self._step % self.args.micro_batches_per_rollout != 0

    @timed("checkpoints")
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)

    def _complete_checkpoint(self, folder: Path) -> None:
        parts = self._checkpointed_parts
        parts.save(
            folder,
            self.accelerator,
            is_writer=self.args.should_save,
            projections={} if parts.projections is None else whole_state(self, parts.projections),
            progress={"micro_step": self._step, "skipped": self.num_skipped},
            rollout=self._buffered_inputs if self._is_inside_rollout else None,
            prompts_per_rollout=self.args.prompts_per_rollout,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._checkpointed_parts.restore_projections(Path(resume_from_checkpoint), self.accelerator.num_processes)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder, parts = Path(checkpoint), self._checkpointed_parts
        state = parts.read(folder, self.accelerator.num_processes)
        super()._load_optimizer_and_scheduler(checkpoint)
        self._step, self.num_skipped = state["micro_step"], state["skipped"]
        self.events += parts.restore(folder, state)
        if self._is_inside_rollout:
            self._buffered_inputs = load_rollout(folder, self.accelerator)
