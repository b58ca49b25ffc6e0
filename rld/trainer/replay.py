"""What a student once said to prompts of skills that it must not forget, and how far it has moved from there.

The completions are sampled once, before the stage's first step, and kept with the last hidden states that they came
from and the output head of then. So the divergence from the student of then is exact over the whole vocabulary, and
costs no second model: one forward over the replayed prompts, in which the vocabulary is taken as the response signal
takes it. The states live in CPU memory.

Shapes: B replayed completions, T tokens, P prompt tokens, S = P + T, H width, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.losses.combination import Mixture
from rld.losses.divergences import ForwardKL
from rld.losses.objective import ResponseObjective
from rld.losses.response import ResponseSettings
from rld.losses.teacher_outputs import TeacherOutputs
from rld.models import generation
from rld.models.backbone import hidden_states
from rld.models.heads import LMHead
from rld.models.prompt_sharing import PromptSharingLayout
from rld.trainer.student_forward import RecordingStudent, StudentInputs
from rld.utils.tensors import pad_prompts_and_completions

_OBJECTIVE = ResponseObjective(ForwardKL(), Mixture(), temperature=1.0)

_UNLABELLED = -100


@dataclass(frozen=True)
class ReplayExample:
    """A completion that the student sampled, and the last hidden states that predicted its tokens, `[T, H]`."""

    skill: str
    prompt: list[int]
    completion: list[int]
    hidden_TH: Tensor

    @property
    def size(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion)


def remember(
    model: PreTrainedModel,
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    skills: Sequence[str],
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    seed: int,
) -> list[ReplayExample]:
    """Let a student answer prompts, a few at a time, and keep what it said and why.

    Args:
        model: The student, or the adapter around it.
        backbone: The student itself.
        skills: Of each prompt.
        prompts: Their token ids.
        seed: Of the samples.
    """
    completions = generation.sample(model, tokenizer, prompts, max_new_tokens=max_new_tokens, seed=seed)
    rows = list(zip(prompts, completions, strict=True))
    ids_BS, attention_BS, mask_BT = (x.to(backbone.device) for x in pad_prompts_and_completions(rows))
    training = backbone.training
    backbone.eval()
    hidden_BTH = hidden_states(
        backbone,
        ids_BS,
        attention_BS,
        num_tokens=mask_BT.shape[1],
        rows_per_forward=len(rows),
        layout=PromptSharingLayout.unshared(backbone),
    ).last_BTH
    backbone.train(training)
    kept = [hidden[: len(ids)].cpu() for hidden, ids in zip(hidden_BTH, completions, strict=True)]
    return [ReplayExample(*memory) for memory in zip(skills, prompts, completions, kept, strict=True)]


class ReplayBuffer:
    """Memories of the protected skills, replayed in turn."""

    def __init__(self, memories: Sequence[ReplayExample], head: LMHead, batch: int) -> None:
        self.head, self.batch = head, batch
        """The output head of then, and how many memories of a skill an update replays at most."""
        self.memories = list(memories)
        self._of: dict[str, list[ReplayExample]] = {}
        for memory in memories:
            self._of.setdefault(memory.skill, []).append(memory)

    def chosen(self, update: int, weights: Mapping[str, float]) -> list[tuple[ReplayExample, float]]:
        """What an update replays, over all processes, and how much each token counts: a skill's weight over all its
        tokens. Skills of weight 0 are left out."""
        rows = []
        for skill, weight in weights.items():
            known = self._of[skill]
            size = min(self.batch, len(known))
            turn = [known[(update * size + i) % len(known)] for i in range(size)] if weight > 0 else []
            num_tokens = sum(len(memory.completion) for memory in turn)
            rows += [(memory, weight / num_tokens) for memory in turn]
        return rows

    def state_dict(self, with_head: bool) -> dict[str, Any]:
        """What a checkpoint keeps; the head only where the student's own has changed since."""
        rows = [[memory.skill, memory.prompt, memory.completion, memory.hidden_TH] for memory in self.memories]
        return {"memories": rows, "head": (self.head.weight, self.head.bias) if with_head else None}

    @classmethod
    def restored(cls, state: dict[str, Any], head: LMHead, batch: int) -> ReplayBuffer:
        """Return what `state_dict` told of; `head` is the student's."""
        if state["head"] is not None:
            weight, bias = state["head"]
            head = LMHead(weight, bias, head.scale, head.softcap).to(head.weight.device)
        return cls([ReplayExample(*row) for row in state["memories"]], head, batch)


def share_of_part(
    rows: Sequence[tuple[ReplayExample, float]], index: int, parts: int
) -> list[tuple[ReplayExample, float]]:
    """The rows of one of the parts that an update is split into, as many for each: rows that count 0 fill up.

    Under DDP every process must run the same number of forwards.
    """
    mine = list(rows[index::parts])
    return mine if index < len(rows) % parts or len(rows) % parts == 0 else [*mine, (rows[0][0], 0.0)]


def divergence(
    model: nn.Module, head: LMHead, rows: Sequence[tuple[ReplayExample, float]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """How far a student is from what it was.

    Args:
        model: The student with its signal head, wrapped or not.
        head: The output head of then.
        rows: What is replayed, and how much each token counts.

    Returns:
        The divergence KL(then || now) in nats, summed with the tokens' weights `[]`, through which the gradient flows;
        and `[2]`, without it, its plain sum over the tokens that count, and their number.
    """
    said = [(memory.prompt, memory.completion) for memory, _ in rows]
    ids_BS, attention_BS, mask_BT = (x.to(device) for x in pad_prompts_and_completions(said))
    states = [memory.hidden_TH.to(device) for memory, _ in rows]
    hidden_BTH = nn.utils.rnn.pad_sequence(states, batch_first=True)
    then = TeacherOutputs(head.to(device), hidden_BTH, None, mask_BT.bool())
    weight_B = torch.tensor([weight for _, weight in rows], device=device)
    response = ResponseSettings(_OBJECTIVE, weight_B)
    shares_B1 = torch.ones(len(rows), 1, device=device)
    student = RecordingStudent(model, mask_BT.shape[1], StudentInputs(mask_BT, [then], shares_B1, response, None))
    labels_BS = torch.full_like(ids_BS, _UNLABELLED)  # no token's own likelihood is asked for
    student(input_ids=ids_BS, attention_mask=attention_BS, labels=labels_BS, fused_lm_head=True)
    total, divergence_BT = student.result.response_loss, student.result.target_divergence
    assert total is not None
    assert divergence_BT is not None
    counted_BT = mask_BT * (weight_B > 0)[:, None]
    return total, torch.stack([(divergence_BT * counted_BT).sum(), counted_BT.sum().float()])
