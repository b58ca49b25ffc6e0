"""The loop: TRL's `GRPOTrainer` with teachers, more signals and a controller. All that touches TRL's internals.

What it hooks into, each with a contract test in `tests/trainer/test_trl_contract.py`:

- `_calculate_rewards`: keeps the gathered rewards, from which progress is counted.
- `_generate_single_turn`: puts gold answers in the place of some completions.
- `_generate_and_score_completions`: after the rollout, runs each needed teacher once over it and adds its states,
  batch first, to the returned dict, which TRL shuffles and splits into micro-batches.
- `_get_per_token_logps_and_entropies`: completions of one prompt share a row; for a loss, the student's forward gets
  the teachers' states, and the advantages what needs its log-probabilities.
- `_compute_loss`: adds the response and feature terms to the policy term.
- `_save_checkpoint`, `_load_optimizer_and_scheduler`: the state of controller, curriculum and projections.

Shapes: B completions, T completion tokens, K teachers, S skills.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather, is_peft_model
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from rld.controllers.gap import GapController
from rld.controllers.observation import Controller
from rld.controllers.runtime import ControllerRuntime
from rld.data.prompt_stream import PromptStream, skills_of
from rld.errors import CheckpointError, RecipeError
from rld.losses.feature_matching import FeatureProjections, attach_projections
from rld.models.generation import contiguous_head_input
from rld.models.prefill import SharedPrefill
from rld.models.prompting import PromptEncoder
from rld.rollout.audit import RewardAudit
from rld.rollout.batch import RolloutBatch, loss_mask
from rld.rollout.counts import group_counts, places, skill_ids
from rld.rollout.gate import TeacherGate, unverified
from rld.rollout.gold import gold_completions
from rld.rollout.rewards import all_checked
from rld.rollout.teacher_scoring import TeacherScoring, TeacherScoringOptions, teacher_infos
from rld.rollout.verifier import no_reward, successes, verifier
from rld.teachers.ensemble import TeacherEnsemble
from rld.teachers.slot_base import StudentInterface
from rld.teachers.teacher import Teacher
from rld.trainer.checkpoints import STATE, VERSION, read_state
from rld.trainer.gradient_probe import GradientProbe
from rld.trainer.joint_loss import JointLoss
from rld.trainer.retention import RetentionCallback
from rld.trainer.rld_config import RLDConfig
from rld.trainer.student_forward import RecordingStudent, add_signal_forward
from rld.trainer.timing import OptimizerTime, PhaseTimer, timed
from rld.trainer.trl_patches import shuffle_by_prompt, skip_unlabelled_positions
from rld.types import Curriculum, Event, Row, Signal
from rld.utils.files import write_json
from rld.utils.flops import FlopMeter, forward_flops, training_flops

_COUNTERS = ("num_generated", "num_scored", "num_saved", "_num_rollouts", "_step")


class RLDTrainer(GRPOTrainer):
    """Train one student from several teachers, its own rewards, or both, with weights that a controller sets.

    Drops in for `GRPOTrainer`: every argument of that class means the same here. Without teachers it is that class.

    Args:
        model, reward_funcs, args, train_dataset: As in `GRPOTrainer`; `args` is an `RLDConfig`. A `skill` column in
            the training set labels the rows; without it all rows are one skill. The first reward is the verifier:
            a completion that it gives 1 counts as a success. `reward_funcs` may be left out when there are teachers.
        teachers: `Teacher`s, loaded models, hub ids or folders. Other tokenizers than the student's need `align`.
        controller: Sets the weights of signals and teachers. None: `Gap()`.
        curriculum: Picks the skill and level of each next prompt from `train_dataset`'s columns `skill` and `level`.
            None: TRL's shuffled order.
        trusted: A reward that checks a share of what the verifier calls right (`args.audit_share`), and is asked in
            its place whether a teacher is right.
        retain_dataset: Rows of skills that must not be forgotten, with a column `skill`; how, `args.retain` says.
        probe_rows: Rows with a gold `answer`, for a controller that looks at them (`GradientAlignmentController`).
        flop_meter: Counts the training's floating-point operations. None: a new one, the attribute `flop_meter`.
        **options: The other arguments of `GRPOTrainer`.

    Raises:
        TeacherError: a teacher's tokenizer differs without `align`, or two teachers share a name.
        RewardError: while training, a reward that raises or returns something unusable.
    """

    args: RLDConfig
    model: Any  # a PreTrainedModel, or a PeftModel around one
    num_generations: int
    _recorded: RecordingStudent  # what the student said of the micro-batch at hand

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
        trusted: Any = None,
        retain_dataset: Iterable[Row] | None = None,
        probe_rows: Sequence[Row] = (),
        flop_meter: FlopMeter | None = None,
        **options: Any,
    ) -> None:
        if args is not None and not isinstance(args, RLDConfig):
            raise TypeError(f"args should be an RLDConfig, not a {type(args).__name__}: it takes the same arguments")
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = RLDConfig(f"{name.rstrip('/').split('/')[-1] or 'student'}-RLD")
        self.teachers = [t if isinstance(t, Teacher) else Teacher(t) for t in teachers]
        signals = args.active_signals(has_teachers=bool(self.teachers))
        reward_funcs = all_checked(reward_funcs or ([no_reward] if self.teachers else None))
        self.stream = args.stream(train_dataset, curriculum)
        train_dataset = self.stream.dataset if self.stream is not None else train_dataset
        skip_unlabelled_positions()
        shuffle_by_prompt()
        super().__init__(model, reward_funcs, args, train_dataset, *rest, **options)

        self.skills = args.skills or skills_of(self.stream, train_dataset)
        self.steering = ControllerRuntime(
            controller or GapController(), self.skills, teacher_infos(self.teachers), signals
        )
        self.stopwatch = PhaseTimer()
        self.add_callback(OptimizerTime(self.stopwatch))
        self.events: list[Event] = []
        """Controller events, oldest first; whoever writes them takes them out."""
        self.flop_meter = flop_meter if flop_meter is not None else FlopMeter()
        self.num_generated, self.num_scored, self.num_saved, self._num_rollouts, self._num_read = 0, 0, 0, 0, 0
        self._rewards, self._own_B2 = torch.zeros(0, 1), torch.zeros(0, 2)
        """Of the last rollout, over all processes: rewards; attempts and successes."""
        self._loss_inputs: RolloutBatch | None = None
        self._feature = args.feature_model() if "feature" in signals else None
        self._student: PreTrainedModel = self.model.get_base_model() if is_peft_model(self.model) else self.model
        self._num_parameters = self._student.num_parameters()
        self._encoder = PromptEncoder(self._tokenizer, cast(dict[str, Any], self.chat_template_kwargs))
        contiguous_head_input(self._student)  # beside an adapter its head is frozen
        self._prefill = SharedPrefill(self._student)
        self._set_up_teachers()
        verify = verifier(all_checked(trusted) or self.reward_funcs, lambda: self.state)
        self.audit = None if trusted is None else RewardAudit(verify, args.audit_share, args.seed)
        asked = self._encoder, verify, args.answer_length, self.accelerator
        again_at = args.temperature if self.steering.controller.required_measurements.resampled_answers else None
        self.gate = TeacherGate.of(self.teachers, *asked, again_at) if args.gate == "prompt" and self.teachers else None
        self.protection = None
        if retain_dataset is not None:
            rule = args.retention()
            self.protection = RetentionCallback(
                rule, retain_dataset, self.skills, self._student, *asked, args.seed, self.flop_meter
            )
            self.add_callback(self.protection)
        if args.gold and (self.use_vllm or self.tools or self.rollout_func is not None):
            raise RecipeError("gold answers take the place of completions that transformers generates without tools")
        probe = GradientProbe.for_controller(
            args, self.steering, self._student, encoder=self._encoder, rows=probe_rows, accelerator=self.accelerator
        )
        self._joint = JointLoss(args, self.panel, self.steering, feature=self._feature, gradient_probe=probe)
        self._scoring = TeacherScoring(
            self._scoring_options(signals), self.panel, self.steering, self.gate, self.accelerator, self.flop_meter
        )

    def _scoring_options(self, signals: Sequence[Signal]) -> TeacherScoringOptions:
        return TeacherScoringOptions(
            combination=self._joint.objective.combination,
            teacher_reward=self.args.teacher_reward,
            teach_on=self.args.teach_on,
            batch_size=self.args.per_device_train_batch_size,
            has_policy="policy" in signals,
        )

    def _set_up_teachers(self) -> None:
        prepare = partial(self.accelerator.prepare_model, evaluation_mode=True)
        student = StudentInterface(self._student, self._encoder, frozenset(self.eos_token_ids), self._feature)
        self.panel = TeacherEnsemble(self.teachers, student, prepare)
        self._projections = FeatureProjections(self.panel.plans) if self._feature is not None else None
        if self._projections is not None:
            attach_projections(self._student, self._projections)
        add_signal_forward(self._student, self._projections)
        if self.ref_model is not None:
            add_signal_forward(self.accelerator.unwrap_model(self.ref_model), name="the reference model")

    # -- roll out and score ------------------------------------------------------------------------------------------

    @timed("rewards")
    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        self._rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.audit is not None and self.model.training:
            size = len(inputs)
            first = self.accelerator.process_index * size
            paid_B = successes(self._rewards)[first : first + size] & ~self._gold_B(size)
            skills = paid_B, skill_ids(inputs, self.skills), len(self.skills)
            counts = self.audit.counts(inputs, completions, completion_ids_list, *skills, (self._num_rollouts, first))
            self.steering.add_audit_counts(counts.reduced(self.accelerator))
        return self._rewards

    @timed("generation")
    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if not self.args.gold or not self.model.training:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        own = (~self._gold_B(len(prompt_ids))).nonzero().squeeze(1).tolist()
        sampled = super()._generate_single_turn([prompt_ids[i] for i in own], *args, **kwargs)[0] if own else []
        completions = gold_completions(self._rows, self._tokenizer, self.args.max_completion_length)
        for i, ids in zip(own, sampled, strict=True):
            completions[i] = ids
        return completions, None

    def _gold_B(self, num_rows: int) -> Tensor:
        """Which of this process's rows are gold answers."""
        return places(num_rows, self.accelerator) % self.num_generations < self.args.gold

    @timed("rollout")
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows, self._num_read, self._prefill.num_read = inputs, 0, 0
        output = cast(RolloutBatch, super()._generate_and_score_completions(inputs))
        skills_B = skill_ids(inputs, self.skills).to(self.accelerator.device)
        output["skill_ids"] = skills_B
        output["signal_weights"] = self.steering.signals_SG.to(skills_B.device)[skills_B]
        output["prompt_numbers"] = output["prompt_ids"].unique(dim=0, return_inverse=True)[1]
        if self.model.training:
            self._observe_rollout(inputs, output)
        if self.teachers:
            self._score_with_teachers(inputs, output)
        return cast(dict[str, Any], output)

    def _observe_rollout(self, inputs: list[dict[str, Any]], output: RolloutBatch) -> None:
        self._num_rollouts += 1
        own_B = ~self._gold_B(len(inputs))  # gold answers are not generated
        self._num_read += self._prefill.num_read or int(output["prompt_mask"][own_B].sum())  # 0: sampled elsewhere
        sizes = output["completion_mask"][own_B].sum(), self._num_read
        generated, read = self.accelerator.reduce(own_B.new_tensor(sizes, dtype=torch.long), "sum").tolist()
        self.num_generated += generated
        self.flop_meter.add("generation", forward_flops(self._num_parameters, generated + read))
        skills = gather(output["skill_ids"])
        outcomes = group_counts(
            self._rewards, self.reward_weights, skills, self.num_generations, len(self.skills), self.args.gold
        )
        self._own_B2 = torch.stack([outcomes.attempted_B, outcomes.succeeded_B], dim=1)
        self.steering.add_attempt_counts(outcomes.counts)
        if self.stream is not None:
            levels = gather(torch.tensor([row.get("level", 0) for row in inputs], device=self.accelerator.device))
            self.stream.count(self.skills, skills, levels, outcomes.succeeded_B, outcomes.attempted_B)

    @timed("teachers")
    def _score_with_teachers(self, inputs: list[dict[str, Any]], output: RolloutBatch) -> None:
        """Run each needed teacher once over the completions and add what it says to `output`."""
        training = self.model.training
        group = self.num_generations if training else self.num_generations_eval
        assert group is not None  # TRL sets it
        with self.stopwatch.part("gate") if self.gate is not None else nullcontext():
            self._scoring.gate(inputs, output, self._own_B2 if training else None, group)
        with self.accelerator.autocast():
            self._scoring.score(inputs, output, self._rewards, self.temperature)
        self.events += self._scoring.drop(output, self.state.global_step)
        self._scoring.choose(output, self._rewards, group)
        if training and self.args.gold:
            self._scoring.silence(output, self._gold_B(len(inputs)))
        if training:
            scored, saved = self._scoring.cost(output)
            self.num_scored, self.num_saved = self.num_scored + scored, self.num_saved + saved

    # -- signals -----------------------------------------------------------------------------------------------------

    @timed("student")
    def _get_per_token_logps_and_entropies(
        self, model: Any, ids_BS: Tensor, attention_BS: Tensor, num_tokens: int, *args: Any, **kwargs: Any
    ) -> Any:
        inputs, signals = self._loss_inputs, None
        if inputs is not None and self.teachers:
            signals = self._joint.inputs(inputs, self.state.global_step / max(self.state.max_steps, 1))
        student = RecordingStudent(model, num_tokens, signals)
        result = super()._get_per_token_logps_and_entropies(student, ids_BS, attention_BS, num_tokens, *args, **kwargs)
        if inputs is None:  # old or reference log-probabilities of a rollout
            self._num_read += student.num_computed
            return result
        self._recorded = student
        inputs["log_pi"] = result[0]
        # TRL reads the advantages after this call, which is what lets them depend on the log-probabilities.
        inputs["advantages"] = self._joint.advantages(inputs, result[0].detach(), self.model.training)
        return result

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        inputs = dict(inputs)  # TRL may use the same rollout again, with its own advantages
        batch = self._loss_inputs = cast(RolloutBatch, inputs)
        try:
            policy: Tensor = super()._compute_loss(model, inputs)
        finally:
            self._loss_inputs = None
        loss, training = policy, self.model.training
        if training:
            self._joint.count(batch, self._recorded.num_computed)
            if self.protection is not None:
                loss = self.protection.added(loss, model, self.current_gradient_accumulation_steps, self._log_mean)
        if not self.teachers:
            return loss
        normaliser, mask_BT = self._num_taught(batch), loss_mask(batch)
        for signal, (total, gap_BT) in self._joint.terms(batch, self._recorded, training).items():
            loss = loss + total / normaliser
            self._log_mean(f"loss/{signal}", (gap_BT * mask_BT).sum(), mask_BT.sum())
        # TRL gives a micro-batch its share of the update's mean; its logs are averaged over micro-batches.
        parts = self.current_gradient_accumulation_steps if training else 1
        self._log_mean("loss/policy", policy.detach() * parts, torch.ones(()))
        return loss

    def _num_taught(self, batch: RolloutBatch) -> Tensor:
        """Tokens of the update on which a teacher speaks, over all processes, per process (TRL's way for DAPO)."""
        count: Tensor = batch["num_taught"].clamp(min=1.0) / self.accelerator.num_processes
        if self.model.training:
            assert self.args.steps_per_generation is not None  # TRL sets it
            count = count * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return count

    def _log_mean(self, name: str, total: Tensor, count: Tensor) -> None:
        sums = self.accelerator.reduce(torch.stack([total.float(), count.to(total.device).float()]), reduction="sum")
        self._metrics["train" if self.model.training else "eval"][name].append((sums[0] / sums[1].clamp(min=1)).item())

    # -- controller --------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        with self.stopwatch.part("student"):
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            for name, value in (self._after_update() | self.stopwatch.take()).items():
                self._metrics["train"][name].append(float(value))
            self.stopwatch.begin("optimizer")
        return loss

    @timed("controller")
    def _after_update(self) -> dict[str, float]:
        statistics = self._joint.take_statistics().reduced(self.accelerator)
        gradients, num_read = self._joint.take_gradient_stats()
        step = self.state.global_step + 1
        metrics, events = self.steering.finish_update(statistics, step, self.state.max_steps, gradients)
        self.events += events + (unverified(self.teachers, self.gate) if step == 1 else [])
        if self.protection is not None:
            with self.stopwatch.part("retention"):
                kept, events = self.protection.after_update(self.model, self.steering.updates == 0, step)
            metrics, self.events = metrics | kept, self.events + events
        self.flop_meter.add("student", training_flops(self._num_parameters, int(statistics.student_tokens.item())))
        self.flop_meter.add("student", forward_flops(self._num_parameters, num_read))
        metrics |= {"flops": self.flop_meter.total, "tokens/generated": self.num_generated}
        metrics |= {"tokens/scored": self.num_scored, "tokens/saved": self.num_saved}
        if self.stream is not None:
            self.events += self.stream.moves(step)
            metrics |= self.stream.curriculum.metrics()  # the shares of this update, as the weights are
            self.stream.allocate(self.steering.weights.allocation)
        return metrics

    # -- checkpoints -------------------------------------------------------------------------------------------------

    @timed("checkpoints")
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self._inside_rollout:
            torch.save(self._buffered_inputs, folder / f"rld_rollout_{self.accelerator.process_index}.pt")
        if self.gate is not None:
            self.gate.save(folder / f"rld_gate_{self.accelerator.process_index}.json")
        if self.protection is not None and self.args.should_save:
            self.protection.save(folder)
        if self._projections is not None and self.args.should_save:
            save_file(self._projections.state_dict(), folder / "rld_projections.safetensors")
        self.accelerator.wait_for_everyone()  # a checkpoint that is marked complete has every process's files
        if self.args.should_save:
            write_json(folder / STATE, self._rld_state())

    @property
    def _inside_rollout(self) -> bool:
        """Whether the next micro-batch comes from the rollout at hand."""
        assert self.args.steps_per_generation is not None  # TRL sets it
        return self._step % (self.args.steps_per_generation * self.num_iterations) != 0

    def _rld_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "version": VERSION,
            "steering": self.steering.state_dict(),
            "teachers": {teacher.name: teacher.fingerprint() for teacher in self.teachers},
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "flops": self.flop_meter.accounts,
        }
        if self.protection is not None:
            state["protection"] = self.protection.state_dict()
        if self.stream is not None:
            first_unused = (self._num_rollouts - self._inside_rollout) * self.args.prompts_per_rollout
            state["stream"] = self.stream.state_dict(first_unused)
        return state

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        state = read_state(folder, self.stream is not None, {t.name: t.fingerprint() for t in self.teachers})
        self.events += self.steering.load_state_dict(state["steering"])
        others = list(state["teachers"]) != [teacher.name for teacher in self.teachers]
        if others and (self._projections is not None or list(folder.glob("rld_rollout_*"))):
            raise CheckpointError(f"{folder}: teachers can't change inside a rollout, or with a feature signal")
        super()._load_optimizer_and_scheduler(checkpoint)
        for name in _COUNTERS:
            setattr(self, name, state["counters"][name])
        self.flop_meter.replace(state["flops"])
        if self.gate is not None:
            self.gate.load(folder / f"rld_gate_{self.accelerator.process_index}.json")
        if self.protection is not None:
            self.protection.load(folder, state.get("protection"))
        if self._inside_rollout:
            path = folder / f"rld_rollout_{self.accelerator.process_index}.pt"
            self._buffered_inputs = torch.load(path, map_location=self.accelerator.device)
        if self.stream is not None:
            self.stream.load_state_dict(state["stream"])
            self.stream.allocate(self.steering.weights.allocation)
        if self._projections is not None:
            self._projections.load_state_dict(load_file(folder / "rld_projections.safetensors"))
