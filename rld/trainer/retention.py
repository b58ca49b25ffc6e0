"""Retention: skills that a student must not forget are probed while it trains, and replayed as strongly as needed.

`controllers/retention_rule.py` has the rule that sets each skill's weight, `replay.py` the loss; here they meet the
model and the other processes. All processes see the same counts, so they come to the same weights.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from rld.controllers.retention_rule import VERSION, Counts, RetentionRule
from rld.errors import CheckpointError, DataError, RecipeError
from rld.models.heads import LMHead
from rld.models.prompting import PromptEncoder, is_chat
from rld.rollout.verifier import Verify, answer_and_verify, is_success
from rld.trainer.replay import ReplayBuffer, ReplayExample, replay_divergence, sample_examples, share_of_part
from rld.trainer.rld_config import RLDConfig
from rld.trainer.sharding import is_sharded, whole_student
from rld.types import Event, Row, skill_of
from rld.utils.flops import FlopMeter, forward_flops
from rld.utils.suggestions import hint

FILE = "rld_replay.pt"

_PROMPTS_PER_SAMPLING = 16
"""Prompts that are sampled together. Their random numbers depend on the first one's number, whichever process samples
them."""


class ReplayTerm(NamedTuple):
    """The replay's part of a micro-batch's loss."""

    loss: Tensor
    """`[]`, to be added to this process's loss; an update's micro-batches are summed, and processes averaged."""
    divergence_sum: Tensor
    """`[]`, the divergence from the student of the start in nats, summed over this process's tokens."""
    num_tokens: Tensor
    """`[]`, the number of these tokens."""


class RetentionCallback(TrainerCallback):
    """Protects skills while a trainer trains, from the student's state at the start of the training.

    Args:
        trainer: The `RLDTrainer`: its student, its skills, and arguments that have the rule's options, the greatest
            length of an answer and the seed. Skills that are trained are protected only if the rule names them.
        rows: Rows of the protected skills: of each skill the first are probed, the next replayed.
        verify: Judges the answers to probes.

    Raises:
        RecipeError: no reward can be asked, or there is nothing to protect.
        DataError: a protected skill has too few rows.
    """

    def __init__(self, trainer: Any, rows: Iterable[Row], verify: Verify | None) -> None:
        if verify is None:
            raise RecipeError(
                "retain: the first reward can't be asked whether an answer is correct; put a verifier first"
            )
        args: RLDConfig = trainer.args
        self.rule, self.max_new_tokens, self.seed = args.retention(), args.answer_length, args.seed
        self.verify = verify
        self.student: PreTrainedModel = trainer._student
        self.encoder: PromptEncoder = trainer._encoder
        self.accelerator: Accelerator = trainer.accelerator
        self._whole_student = functools.partial(whole_student, trainer)
        self._num_parameters = self.student.num_parameters()  # before the processes share them
        self._flop_meter: FlopMeter = trainer.flop_meter
        self.state: dict[str, Any] | None = None
        """The rule's state; None before the training begins."""
        self._probes, self._replayed_rows = _split(self.rule, rows, trainer.skills)
        self._buffer: ReplayBuffer | None = None
        self._num_updates, self._num_parts = 0, 0
        """Updates so far, and micro-batches of the present one."""
        self._divergence = torch.zeros(2, device=self.accelerator.device)
        """Sum of the divergence over replayed tokens since the last probe, and their number, over all processes."""

    # -- the start -----------------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.state is not None:  # resumed
            return
        with self._whole_student() as model:
            examples = self._sample(model)
            self._buffer = ReplayBuffer(examples, self._present_head(), self.rule.batch)
            self._count(2 * sum(example.size for example in examples))  # each is sampled once, and read once
            counts = self._probe(model)
        self.state = self.rule.start(counts)
        for skill, (correct, total) in counts.items():
            if not correct:
                warnings.warn(
                    f"retain: the student answers none of {total} probes of skill {skill!r} correctly: there is "
                    "nothing to protect",
                    stacklevel=2,
                )

    def _sample(self, model: Any) -> list[ReplayExample]:
        """Return completions of all replayed rows, on every process; each process samples a share of them."""
        skills = [row["skill"] for row in self._replayed_rows]
        prompts = self.encoder.encode_all([row["prompt"] for row in self._replayed_rows])
        starts = range(0, len(prompts), _PROMPTS_PER_SAMPLING)
        samples: list[tuple[int, list[ReplayExample]]] = []
        with self.accelerator.autocast():  # as when the student is replayed
            for start in starts[self.accelerator.process_index :: self.accelerator.num_processes]:
                part = slice(start, start + _PROMPTS_PER_SAMPLING)
                examples = sample_examples(
                    model,
                    self.student,
                    self.encoder.tokenizer,
                    skills=skills[part],
                    prompts=prompts[part],
                    max_new_tokens=self.max_new_tokens,
                    seed=self.seed + start,
                    ends=self.encoder.ends(is_chat(self._replayed_rows)),
                )
                samples.append((start, examples))
        gathered = sorted(gather_object(samples), key=lambda pair: pair[0])
        return [example for _, examples in gathered for example in examples]

    def _probe(self, model: Any) -> dict[str, Counts]:
        """Return the student's correct answers and the probes of each protected skill."""
        answers = answer_and_verify(model, self.encoder, self._probes, self.verify, max_new_tokens=self.max_new_tokens)
        self._count(answers.num_tokens)
        correct = dict.fromkeys((row["skill"] for row in self._probes), 0)
        for row, reward in zip(self._probes, answers.rewards, strict=True):
            correct[row["skill"]] += reward is not None and is_success(reward)
        return {skill: (number, self.rule.probe_prompts) for skill, number in correct.items()}

    def _count(self, num_tokens: int, passes: int = 1) -> None:
        """Count forward passes over tokens of all processes."""
        self._flop_meter.add("retention", passes * forward_flops(self._num_parameters, num_tokens))

    # -- one update ----------------------------------------------------------------------------------------------------

    def loss_term(self, model: nn.Module, num_parts: int) -> ReplayTerm | None:
        """Return the replay's part of a micro-batch's loss; None, without a forward, while no skill has weight.

        Args:
            model: The student, wrapped for training.
            num_parts: Micro-batches of this update.
        """
        assert self._buffer is not None
        assert self.state is not None
        examples = self._buffer.select(self._num_updates, self.rule.weights(self.state))
        if not examples:
            return None
        index = self._num_parts * self.accelerator.num_processes + self.accelerator.process_index
        self._num_parts += 1
        part = share_of_part(examples, index, num_parts * self.accelerator.num_processes)
        loss, sums = replay_divergence(model, self._buffer.head, part, self.accelerator.device)
        if self.rule.budget is not None:
            total = self.accelerator.reduce(sums, reduction="sum")  # not finite in an update that is skipped
            self._divergence += torch.where(total.isfinite().all(), total, 0)
        return ReplayTerm(loss * self.accelerator.num_processes, sums[0], sums[1])

    def finish_update(self, step: int, *, is_tick: bool) -> tuple[dict[str, float], list[Event]]:
        """Go on to the next update; after a tick of the controller, probe if it is time.

        Returns:
            Metrics, and events.
        """
        assert self._buffer is not None
        assert self.state is not None
        weights = self.rule.weights(self.state)
        replayed = self._buffer.select(self._num_updates, weights)
        self._count(sum(example.size for example, _ in replayed), passes=3)  # a forward and a backward pass
        self._num_updates, self._num_parts = self._num_updates + 1, 0
        metrics = {f"weight/reference/{skill}": weight for skill, weight in weights.items()}
        metrics["weight/reference"] = sum(weights.values()) / len(weights)
        is_due = False
        if is_tick:
            self.state, is_due = self.rule.tick(self.state)
        if not is_due:
            return metrics, []
        with self._whole_student() as model:
            counts = self._probe(model)
        for skill, (correct, total) in counts.items():
            if baseline := self.state["skills"][skill]["baseline"]:
                metrics[f"retention/{skill}"] = correct / total / baseline
        divergence, num_tokens = self._divergence.tolist()
        self.state, events = self.rule.step(self.state, counts, step, divergence / num_tokens if num_tokens else None)
        self._divergence.zero_()
        return metrics, events

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the examples, as JSON."""
        return {"state": self.state, "updates": self._num_updates, "divergence": self._divergence.tolist()}

    def save(self, folder: Path) -> None:
        """Write the examples into a checkpoint."""
        assert self._buffer is not None
        with_head = self.student.get_output_embeddings().weight.requires_grad
        torch.save(self._buffer.state_dict(with_head), folder / FILE)

    def load(self, folder: Path, state: dict[str, Any] | None) -> None:
        """Restore what `save` wrote and `state_dict` returned.

        Raises:
            CheckpointError: the checkpoint protects other skills, or is of another version.
        """
        saved_skills = sorted(state["state"]["skills"]) if state else []
        skills = sorted({row["skill"] for row in self._probes})
        if state is None or saved_skills != skills:
            raise CheckpointError(f"{folder} was written with protected skills {saved_skills}, this run has {skills}")
        version = state["state"]["version"]
        if version != VERSION:
            raise CheckpointError(f"{folder} has retention's state in version {version}, and this is version {VERSION}")
        self.state, self._num_updates = state["state"], state["updates"]
        self._divergence = torch.tensor(state["divergence"], device=self.accelerator.device)
        examples = torch.load(folder / FILE, map_location="cpu", weights_only=True)
        with self._whole_student():
            self._buffer = ReplayBuffer.restored(examples, self._present_head(), self.rule.batch)

    def _present_head(self) -> LMHead:
        """Return the student's output head as it is now; one that is whole and does not train needs no copy."""
        output, head = self.student.get_output_embeddings(), LMHead.of(self.student)
        if not (output.weight.requires_grad or is_sharded(self.student)):
            return head
        bias = None if head.bias is None else head.bias.detach().clone()
        return LMHead(head.weight.detach().clone(), bias, head.scale, head.softcap)


def _split(rule: RetentionRule, rows: Iterable[Row], trained_skills: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """Return the rows to probe and those to replay, each with its skill."""
    rows_of: dict[str, list[Row]] = {}
    for row in rows:
        skill = skill_of(row)
        rows_of.setdefault(skill, []).append({**row, "skill": skill})
    skills = rule.skills if rule.skills is not None else [skill for skill in rows_of if skill not in trained_skills]
    if not skills:
        raise RecipeError("retain: there is nothing to protect but skills that are trained; name some in its skills")
    probes, replayed = list[Row](), list[Row]()
    for skill in skills:
        if skill not in rows_of:
            raise DataError(f"retain: there are no rows of skill {skill!r}{hint(skill, list(rows_of))}")
        if len(rows_of[skill]) <= rule.probe_prompts:
            raise DataError(
                f"retain: skill {skill!r} has {len(rows_of[skill])} rows, of which {rule.probe_prompts} are for "
                "probes; give more, or lower its probe_prompts"
            )
        probes += rows_of[skill][: rule.probe_prompts]
        replayed += rows_of[skill][rule.probe_prompts : rule.probe_prompts + rule.prompts]
    return probes, replayed
