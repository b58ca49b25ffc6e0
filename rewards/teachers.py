"""Rewards by a frozen model: the likelihood of a completion, and the model's judgement of it.

Both give the model text, so it may have any tokenizer. Neither verifies, so they go after the verifier, with a weight.
In a recipe `model` is a name in `models`, a stage before the first `distill`, a hub id or a folder. In Python it is a
loaded model, together with its `tokenizer`, or a hub id or folder, which is loaded once per process.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import ModelError, RewardError
from rld.models.heads import LMHead, log_probabilities
from rld.models.loading import load_model, load_tokenizer
from rld.models.prompting import PromptEncoder
from rld.utils.templates import filled
from rld.utils.tensors import pad_right

from . import text_of

_ROWS = 8
"""Rows of one forward."""
_MEMORY = 0.99
"""Share of their past that the statistics of a skill keep with each call that has the skill."""
_MIN_SPREAD = 1e-4
"""Nats; smaller differences between completions are rounding."""


def likelihood(
    prompts: list[Any],
    completions: list[Any],
    skill: list[str] | None = None,
    trainer_state: Any = None,
    *,
    model: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    bound: float = 3.0,
    **_: Any,
) -> list[float | None]:
    """Return the likelihood of a completion: its mean log-probability per token, in standard deviations of the skill.

    `clamp((x - m) / s, -bound, bound)`, with x the mean over the completion's tokens of `log p(token | what is
    before)`, the prompt in the model's own chat template if it is a conversation. m and s are the running mean and
    standard deviation of x on the skill, over all processes, with these completions; earlier ones lose weight by a
    factor of 0.99 a call. They are kept in the trainer's state, and so in its checkpoints. An empty completion gets
    None. The end of a turn is not scored: text does not tell a completion that ended from one that was cut off.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        chat_template_kwargs: Further arguments of its chat template. In a recipe, those in `prompts` if there are none.
        bound: Largest reward, in standard deviations, above 0.
    """
    if bound <= 0:
        raise RewardError(f"teachers:likelihood: bound should be above 0, not {bound}")
    scorer, tokenizer = _opened(model, tokenizer)
    encoder = PromptEncoder(tokenizer, chat_template_kwargs or {})
    scores = _mean_log_probabilities(scorer, encoder, prompts, completions)
    skills = [""] * len(scores) if skill is None else [str(name) for name in skill]
    # The part of a trainer's state that stores the state of others, so that a resumed run has it.
    states = {} if trainer_state is None else trainer_state.stateful_callbacks
    statistics = states.setdefault(f"likelihood by {scorer.config._name_or_path}", {})
    _update(statistics, _on_all_processes(list(zip(skills, scores, strict=True))))
    return [
        None if score is None else _standardised(score, statistics[name], bound)
        for name, score in zip(skills, scores, strict=True)
    ]


def judge(
    prompts: list[Any],
    completions: list[Any],
    question: list[str] | None = None,
    answer: list[str] | None = None,
    *,
    model: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    template: str,
    yes: str = "Yes",
    no: str = "No",
    **_: Any,
) -> list[float]:
    """Return the probability that a model answers a question about a completion with yes rather than no, in [0, 1].

    It is the sigmoid of the log-odds, `logit(yes) - logit(no)`, of the next token after `template`, which is a user's
    message if the model has a chat template, and plain text otherwise.

    Args:
        model: The judge.
        tokenizer: Its tokenizer.
        chat_template_kwargs: Further arguments of its chat template. In a recipe, those in `prompts` if there are none.
        template: The text that the judge reads, with {completion}, and optionally {question} and {answer}. The question
            is the row's, or else the prompt's last message.
        yes: The verdict for a good completion; one token. A model without a chat template may need " Yes".
        no: The verdict for a bad one; one token.
    """
    if "{completion}" not in template:
        raise RewardError("teachers:judge: template should contain {completion}, or all completions are judged alike")
    if "{answer}" in template and answer is None:
        raise RewardError("teachers:judge: template has {answer}, but the rows have no column called answer")
    judge_model, tokenizer = _opened(model, tokenizer)
    verdicts = [_token(tokenizer, "yes", yes), _token(tokenizer, "no", no)]
    if verdicts[0] == verdicts[1]:
        raise RewardError(f"teachers:judge: yes and no are the same token of the judge: {yes!r} and {no!r}")
    questions = [_question(prompt) for prompt in prompts] if question is None else question
    answers = [""] * len(completions) if answer is None else answer
    texts = [
        filled(template, {"question": text, "completion": _harmless(tokenizer, text_of(completion)), "answer": gold})
        for text, completion, gold in zip(questions, completions, answers, strict=True)
    ]
    encoder = PromptEncoder(tokenizer, chat_template_kwargs or {})
    head = LMHead.of(judge_model).for_tokens(verdicts)
    last = [
        states_TH[-1] for states_TH in _hidden_states(judge_model, [_question_ids(encoder, text) for text in texts])
    ]
    logits_B2 = head.with_float32_logits().logits(torch.stack(last)).double()
    probabilities: list[float] = torch.sigmoid(logits_B2[:, 0] - logits_B2[:, 1]).tolist()
    return probabilities


# -- models and text --------------------------------------------------------------------------------------------------


def _opened(
    model: str | PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(model, str):
        return _loaded(model)
    if tokenizer is None:
        raise RewardError("a loaded model needs its tokenizer: pass tokenizer=... too")
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return base, tokenizer


@functools.cache
def _loaded(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        model, tokenizer = load_model(name, {"dtype": "auto"}), load_tokenizer(name)
    except ModelError as error:
        raise RewardError(str(error)) from error
    return model.to(PartialState().device).eval().requires_grad_(False), tokenizer


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Run a model without gradients and dropout, and restore its mode."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _hidden_states(model: PreTrainedModel, rows: Sequence[list[int]]) -> Iterator[Tensor]:
    """Yield the last hidden states of each row of tokens, `[its length, H]`."""
    device: Any = model.get_input_embeddings().weight.device
    for start in range(0, len(rows), _ROWS):
        batch = rows[start : start + _ROWS]
        # Padding comes last, where no token attends to it, so that positions are right.
        ids_BS, attention_BS = (tensor.to(device) for tensor in pad_right(batch))
        with _evaluating(model):
            states = model.base_model(input_ids=ids_BS, attention_mask=attention_BS, use_cache=False).last_hidden_state
        yield from (states_SH[: len(row)] for states_SH, row in zip(states, batch, strict=True))


# -- likelihood -------------------------------------------------------------------------------------------------------


def _mean_log_probabilities(
    model: PreTrainedModel, encoder: PromptEncoder, prompts: list[Any], completions: list[Any]
) -> list[float | None]:
    """Return the mean log-probability per token, in nats; None for a completion without a token to score."""
    encoded = [_encoded(encoder, prompt, text_of(text)) for prompt, text in zip(prompts, completions, strict=True)]
    scored = [i for i, (ids, first) in enumerate(encoded) if first < len(ids)]
    means: list[float | None] = [None] * len(encoded)
    head = LMHead.of(model)
    for i, states_TH in zip(scored, _hidden_states(model, [encoded[i][0] for i in scored]), strict=True):
        ids, first = encoded[i]
        targets_1T = torch.tensor([ids[first:]], device=states_TH.device)
        log_p_1T = log_probabilities(head, states_TH[None, first - 1 : -1], targets_1T, temperature=1.0)
        means[i] = log_p_1T.double().mean().item()
    return means


def _encoded(encoder: PromptEncoder, prompt: Any, completion: str) -> tuple[list[int], int]:
    """Return the tokens of prompt and completion, and the index of the first one to score.

    They are encoded together, as one text; a token across the border belongs to the completion.
    """
    tokenizer = encoder.tokenizer
    if encoder.spells_special_tokens(prompt):
        prompt_ids, ids = encoder.encode_with(prompt, _harmless(tokenizer, completion))
        return prompt_ids + ids, max(len(prompt_ids), 1)
    if not tokenizer.is_fast:
        raise RewardError("the model's tokenizer cannot tell which text a token stands for; it needs a fast one")
    before = encoder.render(prompt)
    encoded = tokenizer(
        before + _harmless(tokenizer, completion),
        add_special_tokens=isinstance(prompt, str),
        return_offsets_mapping=True,
    )
    inside = [i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > len(before)]
    last = inside[-1] if inside else -1
    return encoded["input_ids"][: last + 1], max(inside[0], 1) if inside else 0


def _on_all_processes(rows: list[tuple[str, float | None]]) -> list[tuple[str, float | None]]:
    if not torch.distributed.is_initialized():
        return rows
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]


def _update(statistics: dict[str, list[float]], rows: list[tuple[str, float | None]]) -> None:
    """Add scores to the statistics of their skills: weight, mean and variance (Chan et al. 1979, with fading)."""
    for name in dict.fromkeys(name for name, _ in rows):
        scores = [score for of_skill, score in rows if of_skill == name and score is not None]
        if not scores:
            continue
        mean = math.fsum(scores) / len(scores)
        variance = math.fsum((score - mean) ** 2 for score in scores) / len(scores)
        weight, old_mean, old_variance = statistics.get(name, (0.0, 0.0, 0.0))
        weight *= _MEMORY
        share = len(scores) / (weight + len(scores))
        between = share * (1 - share) * (mean - old_mean) ** 2
        merged = share * variance + (1 - share) * old_variance + between
        statistics[name] = [weight + len(scores), old_mean + share * (mean - old_mean), merged]


def _standardised(score: float, statistics: list[float], bound: float) -> float:
    _, mean, variance = statistics
    spread = max(math.sqrt(variance), _MIN_SPREAD)
    return min(max((score - mean) / spread, -bound), bound)


# -- judge ------------------------------------------------------------------------------------------------------------


def _token(tokenizer: PreTrainedTokenizerBase, option: str, word: str) -> int:
    ids = tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        tokens = tokenizer.convert_ids_to_tokens(ids)
        raise RewardError(f"teachers:judge: {option} should be one token of the judge, but {word!r} is {tokens}")
    return int(ids[0])


def _question(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _harmless(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a text without names of special tokens, by which a completion could end its turn and add a verdict."""
    for name in tokenizer.all_special_tokens:
        text = text.replace(name, " ")
    return text


def _question_ids(encoder: PromptEncoder, text: str) -> list[int]:
    return encoder.encode(text if encoder.tokenizer.chat_template is None else [{"role": "user", "content": text}])
