"""How far a step on each skill would also lower the loss on the target skills: the agreement of their gradients.

Measured only for a controller that requires it, in the last update before a tick, on gold answers of training rows.

Shapes: N answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import PreTrainedModel

from rld.controllers.runtime import ControllerRuntime
from rld.controllers.target import TRANSFER_ROWS
from rld.errors import RecipeError
from rld.models.heads import LMHead
from rld.models.hidden_states import capture_states, depth
from rld.models.prompt_sharing import PromptSharingLayout
from rld.models.prompting import PromptEncoder
from rld.models.self_check import evaluating
from rld.rollout.gold import first_gold_rows, gold_texts
from rld.types import Row
from rld.utils.tensors import pad_prompts_and_completions

Text = tuple[list[int], list[int]]
"""Token ids of a prompt and of its gold answer."""


class TransferProbe:
    """Measures the cosine between the gradient of each skill's gold answers and that of the target's.

    The gradients are those of the mean negative log-likelihood per token with respect to all weights that train. Every
    process measures all rows and gets the same cosines. Two gradients of the size of the weights are held.

    Args:
        student: The student without wrappers.
        runtime: Says in which update to measure.
        texts: The texts of each skill.
        target: The texts of the target skills.
        rows_per_forward: Texts that are read at a time.
        num_processes: All of which measure.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        runtime: ControllerRuntime,
        texts: Mapping[str, Sequence[Text]],
        target: Sequence[Text],
        rows_per_forward: int,
        *,
        num_processes: int,
    ) -> None:
        self.student, self.runtime, self.texts, self.target = student, runtime, texts, target
        self.rows_per_forward = rows_per_forward
        pairs = [*target, *(text for of_skill in texts.values() for text in of_skill)]
        self.num_tokens = num_processes * sum(len(prompt) + len(answer) for prompt, answer in pairs)
        """Tokens of a measurement, over all processes."""

    @classmethod
    def for_trainer(
        cls, trainer: Any, encoder: PromptEncoder, *, gold_rows: Iterable[Row], target_rows: Iterable[Row]
    ) -> TransferProbe | None:
        """Return the probe of an `RLDTrainer`; None if its controller requires none.

        Args:
            trainer: The trainer.
            encoder: The student's.
            gold_rows: Rows with gold answers; of each skill that is trained the first ones are measured that the
                student can write.
            target_rows: Rows of the target skills, which should not be trained on: what is memorised has no gradient.

        Raises:
            RecipeError: weights are not whole on this process, or the student can write no gold answer of a skill.
        """
        runtime: ControllerRuntime = trainer.runtime
        targets = runtime.controller.required_measurements.target
        if not targets:
            return None
        if trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise RecipeError("target: gradients are measured on whole weights, and FSDP or DeepSpeed shards them")
        longest, texts = trainer.args.max_completion_length, dict[str, dict[str, list[Text]]]()
        for name, rows, skills in (("gold_rows", gold_rows, runtime.skills), ("target_rows", target_rows, targets)):
            usable = first_gold_rows(rows, skills, TRANSFER_ROWS, encoder, longest)
            if missing := [skill for skill in skills if skill not in usable]:
                raise RecipeError(
                    f"target: no row of {name} has skill {missing[0]!r} and a gold answer that the student can write"
                )
            texts[name] = {skill: gold_texts(usable[skill], encoder) for skill in skills}
        return cls(
            trainer._student,
            runtime,
            texts["gold_rows"],
            [text for of_skill in texts["target_rows"].values() for text in of_skill],
            trainer.args.per_device_train_batch_size,
            num_processes=trainer.accelerator.num_processes,
        )

    def take(self) -> tuple[dict[str, float], int]:
        """Return each skill's cosine and `num_tokens`, which were read and learnt from; nothing but before a tick."""
        if not self.runtime.measures_gradients:
            return {}, 0
        with evaluating(self.student):
            target = self._gradient(self.target)
            cosines = {skill: _cosine(self._gradient(texts), target) for skill, texts in self.texts.items()}
        return cosines, self.num_tokens

    def _gradient(self, texts: Sequence[Text]) -> list[Tensor]:
        """Return the gradient of the texts' mean negative log-likelihood, one tensor per weight that trains."""
        weights = [weight for weight in self.student.parameters() if weight.requires_grad]
        total = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        num_tokens = sum(len(answer) for _, answer in texts)
        for first in range(0, len(texts), self.rows_per_forward):
            with torch.enable_grad():
                loss = _negative_log_likelihood(self.student, texts[first : first + self.rows_per_forward]) / num_tokens
                parts = torch.autograd.grad(loss, weights, allow_unused=True)
            for sum_, part in zip(total, parts, strict=True):
                if part is not None:
                    sum_ += part
        return total


def _negative_log_likelihood(student: PreTrainedModel, texts: Sequence[Text]) -> Tensor:
    """Return the sum over the tokens of the answers, in nats, with a gradient to all weights."""
    ids_BS, attention_BS, mask_BT = (x.to(student.device) for x in pad_prompts_and_completions(texts))
    answers_BT, num_columns = mask_BT.bool(), mask_BT.shape[1]
    rows = PromptSharingLayout.unshared(student).rows(ids_BS, attention_BS, num_columns)
    with capture_states(student, (), rows.restore) as states:
        student.base_model(**rows.inputs, use_cache=False)
    hidden_NH = states[depth(student)][answers_BT]
    logits_NV = LMHead.of(student).logits(hidden_NH)
    return torch.nn.functional.cross_entropy(logits_NV, ids_BS[:, -num_columns:][answers_BT], reduction="sum")


def _cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the cosine of two gradients; 0 if one is 0."""

    def product(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
        return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))

    length = math.sqrt(product(first, first) * product(second, second))
    return product(first, second) / length if length > 0 else 0.0
