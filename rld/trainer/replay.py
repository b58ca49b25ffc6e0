"""Replay: how far a student has moved from its state at the start, on skills that it must not forget.

Completions are sampled once, before the first update, and kept with the last hidden states that predicted them and with
the output head of that time. The divergence from the student of the start is therefore exact over the whole vocabulary
and costs no second model: one forward over the replayed completions, in which the vocabulary is processed as for the
response signal. The states are kept in CPU memory.

Shapes: B replayed completions, T completion tokens, S prompt and completion tokens, H width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
from rld.models.self_check import evaluating
from rld.trainer.student_forward import RecordingStudent, StudentInputs
from rld.utils.tensors import pad_prompts_and_completions

_OBJECTIVE = ResponseObjective(ForwardKL(), Mixture(), temperature=1.0)

_UNLABELLED = -100
"""The label of a token whose log-probability is not needed, as transformers has it."""


@dataclass(frozen=True)
class ReplayExample:
    """A completion that the student sampled at the start."""

    skill: str
    prompt: list[int]
    """Token ids."""
    completion: list[int]
    """Token ids."""
    hidden_TH: Tensor
    """The last hidden states that predicted the completion's tokens."""

    @property
    def size(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion)


WeightedExample = tuple[ReplayExample, float]
"""An example, and the weight of each of its tokens in the loss."""


def sample_examples(
    model: PreTrainedModel,
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    skills: Sequence[str],
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    seed: int,
    ends: Collection[int] = (),
) -> list[ReplayExample]:
    """Sample a completion of each prompt, and read the hidden states that predict its tokens.

    Args:
        model: The student, or the adapter around it.
        backbone: The student without the adapter's wrapper.
        tokenizer: The student's.
        skills: The skill of each prompt.
        prompts: Token ids.
        max_new_tokens: Greatest length of a completion.
        seed: Seed of the samples.
        ends: Tokens that end a completion, beside those of the tokenizer and of the model.
    """
    completions = generation.sample(model, tokenizer, prompts, ends=ends, max_new_tokens=max_new_tokens, seed=seed)
    rows = list(zip(prompts, completions, strict=True))
    ids_BS, attention_BS, mask_BT = (x.to(backbone.device) for x in pad_prompts_and_completions(rows))
    with evaluating(backbone):
        hidden_BTH = hidden_states(
            backbone,
            ids_BS,
            attention_BS,
            num_tokens=mask_BT.shape[1],
            rows_per_forward=len(rows),
            layout=PromptSharingLayout.unshared(backbone),
        ).last_BTH
    return [
        ReplayExample(skill, prompt, completion, hidden_TH[: len(completion)].cpu())
        for skill, prompt, completion, hidden_TH in zip(skills, prompts, completions, hidden_BTH, strict=True)
    ]


class ReplayBuffer:
    """Examples of the protected skills, replayed in turn.

    Args:
        examples: The examples.
        head: The student's output head at the start.
        batch: Examples of a skill that an update replays at most.
    """

    def __init__(self, examples: Sequence[ReplayExample], head: LMHead, batch: int) -> None:
        self.examples, self.head, self.batch = list(examples), head, batch
        self._examples_of: dict[str, list[ReplayExample]] = {}
        for example in examples:
            self._examples_of.setdefault(example.skill, []).append(example)

    def select(self, update: int, weights: Mapping[str, float]) -> list[WeightedExample]:
        """Return the examples that an update replays, over all processes.

        Args:
            update: The number of the update, from 0.
            weights: The weight of each skill, which its tokens share. A skill of weight 0 is left out.
        """
        selected: list[WeightedExample] = []
        for skill, weight in weights.items():
            if weight <= 0:
                continue
            examples = self._examples_of[skill]
            size = min(self.batch, len(examples))
            turn = [examples[(update * size + i) % len(examples)] for i in range(size)]
            num_tokens = sum(len(example.completion) for example in turn)
            selected += [(example, weight / num_tokens) for example in turn]
        return selected

    def state_dict(self, with_head: bool) -> dict[str, Any]:
        """Return what a checkpoint holds; the head is needed only where the student's own has changed since."""
        rows = [[example.skill, example.prompt, example.completion, example.hidden_TH] for example in self.examples]
        return {"examples": rows, "head": (self.head.weight, self.head.bias) if with_head else None}

    @classmethod
    def restored(cls, state: dict[str, Any], head: LMHead, batch: int) -> ReplayBuffer:
        """Return the buffer of which `state_dict` returned the state; `head` is the student's present one."""
        if state["head"] is not None:
            weight, bias = state["head"]
            head = LMHead(weight, bias, head.scale, head.softcap).to(head.weight.device)
        return cls([ReplayExample(*row) for row in state["examples"]], head, batch)


def share_of_part(examples: Sequence[WeightedExample], index: int, num_parts: int) -> list[WeightedExample]:
    """Return the examples of one of the parts that an update is split into.

    All parts have the same number of examples, because under DDP every process must run the same number of forwards;
    examples of weight 0 fill them up.
    """
    part = list(examples[index::num_parts])
    is_full = len(examples) % num_parts == 0 or index < len(examples) % num_parts
    return part if is_full else [*part, (examples[0][0], 0.0)]


def replay_divergence(
    model: nn.Module, head: LMHead, examples: Sequence[WeightedExample], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Compute the divergence of a student from its state at the start.

    Args:
        model: The student with its signal forward, wrapped or not.
        head: The output head of the start.
        examples: The examples, with the weight of their tokens.
        device: The student's.

    Returns:
        The divergence KL(start || now) in nats, summed with the tokens' weights, `[]`, through which the gradient
        flows; and without gradient `[2]`, its unweighted sum over the tokens whose weight is not 0, and their number.
    """
    texts = [(example.prompt, example.completion) for example, _ in examples]
    ids_BS, attention_BS, mask_BT = (x.to(device) for x in pad_prompts_and_completions(texts))
    states = [example.hidden_TH.to(device) for example, _ in examples]
    hidden_BTH = nn.utils.rnn.pad_sequence(states, batch_first=True)
    start = TeacherOutputs(head.to(device), hidden_BTH, None, mask_BT.bool())
    weight_B = torch.tensor([weight for _, weight in examples], device=device)
    response = ResponseSettings(_OBJECTIVE, weight_B)
    shares_B1 = torch.ones(len(examples), 1, device=device)
    student = RecordingStudent(model, mask_BT.shape[1], StudentInputs(mask_BT, [start], shares_B1, response, None))
    labels_BS = torch.full_like(ids_BS, _UNLABELLED)
    student(input_ids=ids_BS, attention_mask=attention_BS, labels=labels_BS, fused_lm_head=True)
    loss, divergence_BT = student.result.response_loss, student.result.target_divergence
    assert loss is not None
    assert divergence_BT is not None
    counted_BT = mask_BT * (weight_B > 0)[:, None]
    return loss, torch.stack([(divergence_BT * counted_BT).sum(), counted_BT.sum().float()])
