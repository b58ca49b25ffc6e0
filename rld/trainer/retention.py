"""Skills that a student must not forget, while it trains: they are probed, and replayed as strongly as the probes ask.

`retention.py` has the rule, `replay.py` the loss; here they meet the model and the other processes. All processes see
the same counts, so they come to the same weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from rld.controllers.retention_rule import VERSION, Counts, RetentionRule
from rld.errors import CheckpointError, DataError, RecipeError
from rld.models import generation
from rld.models.heads import LMHead
from rld.models.prompting import PromptEncoder
from rld.rollout.verifier import Verify, ask, is_success
from rld.trainer.replay import ReplayBuffer, divergence, remember, share_of_part
from rld.types import DEFAULT_SKILL, Event, Row
from rld.utils.flops import FlopMeter, forward_flops
from rld.utils.suggestions import hint

FILE = "rld_replay.pt"

_TOGETHER = 16
"""Prompts that are sampled at once: with the noise of their number, whichever process it is that samples them."""


class RetentionCallback(TrainerCallback):
    """Protects skills while a trainer trains; it begins with the training, when the student is still what it was.

    Args:
        rule: How strongly.
        rows: Rows of the protected skills: of each the first are probed, the next replayed.
        trained: The skills that are trained.
        student: Without an adapter's wrapper.
        encoder: Encodes prompts for the student.
        verify: Tells right answers.
        max_new_tokens: Length of an answer.
        seed: Of the samples that are replayed.
        flop_meter: Counts the operations.

    Raises:
        RecipeError: no reward can be asked, or there is nothing to protect.
        DataError: a protected skill has too few rows.
    """

    def __init__(
        self,
        rule: RetentionRule,
        rows: Iterable[Row],
        trained: Sequence[str],
        student: PreTrainedModel,
        encoder: PromptEncoder,
        verify: Verify | None,
        max_new_tokens: int,
        accelerator: Accelerator,
        seed: int,
        flop_meter: FlopMeter,
    ) -> None:
        if verify is None:
            raise RecipeError(
                "retain: the first reward can't be asked whether an answer is right; put a verifier first"
            )
        self.rule, self.verify, self.student, self.encoder = rule, verify, student, encoder
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.accelerator = accelerator
        self.state: dict[str, Any] | None = None
        """The rule's; None before the training begins."""
        self._probes, self._replayed = _split(rule, rows, trained)
        self._memory: ReplayBuffer | None = None
        self._updates, self._part = 0, 0
        self._drift = torch.zeros(2, device=accelerator.device)
        """Sum of the divergence over replayed tokens since the last probe, and their number, over all processes."""
        self._flop_meter = flop_meter

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.state is not None:  # resumed
            return
        model = self.accelerator.unwrap_model(model)
        skills = [str(row.get("skill", DEFAULT_SKILL)) for row in self._replayed]
        prompts = [self.encoder.encode(row["prompt"]) for row in self._replayed]
        numbers = range(0, len(prompts), _TOGETHER)
        with self.accelerator.autocast():  # as the student is read when it replays
            mine = [
                (
                    first,
                    remember(
                        *(model, self.student, self.encoder.tokenizer),
                        *(skills[first : first + _TOGETHER], prompts[first : first + _TOGETHER]),
                        *(self.max_new_tokens, self.seed + first),
                    ),
                )
                for first in numbers[self.accelerator.process_index :: self.accelerator.num_processes]
            ]
        memories = [memory for _, some in sorted(gather_object(mine), key=lambda pair: pair[0]) for memory in some]
        self._memory = ReplayBuffer(memories, _frozen(self.student), self.rule.batch)
        self._count(2 * sum(memory.size for memory in memories))  # said once, and read once
        probed = self._probe(model)
        self.state = self.rule.start(probed)
        for skill, (right, asked) in probed.items():
            if not right:
                warnings.warn(
                    f"retain: the student has none of {asked} probes of skill {skill!r} right: nothing can be held",
                    stacklevel=2,
                )

    def _probe(self, model: Any) -> dict[str, Counts]:
        """Count the student's right answers per protected skill, over all processes."""
        texts = generation.generate(model, self.encoder, self._probes, max_new_tokens=self.max_new_tokens)
        ids = [self.encoder.encode_answer(text) for text in texts]
        self._count(self.encoder.count_tokens(self._probes, ids))
        share = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        credits = ask(self.verify, self._probes[share], texts[share], ids[share]) if self._probes[share] else []
        skills = list(dict.fromkeys(row["skill"] for row in self._probes))
        counts = torch.zeros(len(skills), device=self.accelerator.device)
        for row, credit in zip(self._probes[share], credits, strict=True):
            counts[skills.index(row["skill"])] += credit is not None and is_success(credit)
        totals: Tensor = self.accelerator.reduce(counts, reduction="sum")
        return {skill: (round(right), self.rule.probes) for skill, right in zip(skills, totals.tolist(), strict=True)}

    def _count(self, num_tokens: int, passes: int = 1) -> None:
        """Count forward passes over tokens of all processes."""
        self._flop_meter.add("retention", passes * forward_flops(self.student.num_parameters(), num_tokens))

    # -- one update --------------------------------------------------------------------------------------------------

    def added(
        self, loss: Tensor, model: nn.Module, num_parts: int, log_mean: Callable[[str, Tensor, Tensor], None]
    ) -> Tensor:
        """Add the replay's term to a micro-batch's loss; without a forward while nothing needs it.

        Args:
            loss: Of this process; an update's micro-batches are summed, and processes averaged.
            model: The student, wrapped for training.
            num_parts: Micro-batches of this update.
            log_mean: Logs a mean over all processes, from a name, a sum and a count.
        """
        assert self._memory is not None
        assert self.state is not None
        rows = self._memory.chosen(self._updates, self.rule.weights(self.state))
        if not rows:
            return loss
        index = self._part * self.accelerator.num_processes + self.accelerator.process_index
        self._part += 1
        mine = share_of_part(rows, index, num_parts * self.accelerator.num_processes)
        total, seen = divergence(model, self._memory.head, mine, self.accelerator.device)
        log_mean("loss/reference", *seen)
        if self.rule.budget is not None:
            self._drift += self.accelerator.reduce(seen, reduction="sum")
        term: Tensor = total * self.accelerator.num_processes
        return loss + term

    def after_update(self, model: Any, ticked: bool, step: int) -> tuple[dict[str, float], list[Event]]:
        """Go on to the next update; after a tick of the controller, probe if it is time.

        Returns:
            Metrics, and events.
        """
        assert self._memory is not None
        assert self.state is not None
        weights = self.rule.weights(self.state)
        self._count(sum(memory.size for memory, _ in self._memory.chosen(self._updates, weights)), passes=3)
        self._updates, self._part = self._updates + 1, 0
        metrics = {f"weight/reference/{skill}": weight for skill, weight in weights.items()}
        metrics["weight/reference"] = sum(weights.values()) / len(weights)
        events: list[Event] = []
        due = False
        if ticked:
            self.state, due = self.rule.tick(self.state)
        if due:
            probed = self._probe(self.accelerator.unwrap_model(model))
            for skill, (right, asked) in probed.items():
                if before := self.state["skills"][skill]["baseline"]:
                    metrics[f"retention/{skill}"] = right / asked / before
            total, count = self._drift.tolist()
            self.state, events = self.rule.step(self.state, probed, step, total / count if count else None)
            self._drift.zero_()
        return metrics, events

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the memories, as JSON."""
        return {"state": self.state, "updates": self._updates, "drift": self._drift.tolist()}

    def save(self, folder: Path) -> None:
        """Write the memories into a checkpoint."""
        assert self._memory is not None
        with_head = self._memory.head.weight is not LMHead.of(self.student).weight
        torch.save(self._memory.state_dict(with_head), folder / FILE)

    def load(self, folder: Path, saved: dict[str, Any] | None) -> None:
        """Go on from what `save` wrote and `state_dict` returned.

        Raises:
            CheckpointError: the checkpoint protects other skills.
        """
        skills = sorted(saved["state"]["skills"]) if saved else []
        mine = sorted({row["skill"] for row in self._probes})
        if saved is None or skills != mine:
            raise CheckpointError(f"{folder} was written with protected skills {skills}, this run has {mine}")
        if saved["state"]["version"] != VERSION:
            found = saved["state"]["version"]
            raise CheckpointError(f"{folder} has retention's state in version {found}, and this is version {VERSION}")
        self.state, self._updates = saved["state"], saved["updates"]
        self._drift = torch.tensor(saved["drift"], device=self.accelerator.device)
        kept = torch.load(folder / FILE, map_location="cpu")
        self._memory = ReplayBuffer.restored(kept, LMHead.of(self.student), self.rule.batch)


def _split(rule: RetentionRule, rows: Iterable[Row], trained: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """The rows to probe and those to replay, with their skills."""
    known: dict[str, list[Row]] = {}
    for row in rows:
        skill = str(row.get("skill", DEFAULT_SKILL))
        known.setdefault(skill, []).append({**row, "skill": skill})
    skills = rule.skills if rule.skills is not None else [skill for skill in known if skill not in trained]
    if not skills:
        raise RecipeError("retain: there is nothing to protect but skills that are trained; name some in its skills")
    probes, replayed = list[Row](), list[Row]()
    for skill in skills:
        if skill not in known:
            raise DataError(f"retain: there are no rows of skill {skill!r}{hint(skill, list(known))}")
        if len(known[skill]) <= rule.probes:
            raise DataError(
                f"retain: skill {skill!r} has {len(known[skill])} rows, of which {rule.probes} are for probes; "
                "give more, or lower its probes"
            )
        probes += known[skill][: rule.probes]
        replayed += known[skill][rule.probes : rule.probes + rule.prompts]
    return probes, replayed


def _frozen(student: PreTrainedModel) -> LMHead:
    """The student's output head as it is now; one that does not train needs no copy."""
    head = LMHead.of(student)
    if not head.weight.requires_grad:
        return head
    bias = None if head.bias is None else head.bias.detach().clone()
    return LMHead(head.weight.detach().clone(), bias, head.scale, head.softcap)
