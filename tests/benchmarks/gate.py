"""Time a teacher's verdicts by drafts against those of decoding, in turns, in one process.

    python -m tests.benchmarks.gate MODEL [--prompts 16] [--length 8] [--rounds 4] [--dtype bfloat16]

MODEL is a chat model that answers the four tasks of the recipe `qwen_to_smollm2`. Decoding answers each prompt
greedily, token by token, and those that are correct a second time by sampling, each from the start. The times are
those of the processor, so that other programs do not count. The first round warms up.

Then the states of the drafts: read before the model scores two completions of each prompt, or while it does, against
scoring alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import reasoning_gym
import torch
from rld.rewards.reasoning import exact_credit
from transformers import AutoModelForCausalLM, AutoTokenizer

from rld.models import generation
from rld.models.backbone import States, hidden_states
from rld.models.decoding import end_tokens
from rld.models.draft_rows import BatchWithDrafts
from rld.models.drafts import ReadDrafts
from rld.models.prompt_sharing import PromptSharingLayout
from rld.models.prompting import PromptEncoder
from rld.models.sampling import SeededSampling
from rld.rollout.rewards import checked
from rld.rollout.teacher_answers import TeacherAnswers
from rld.rollout.verifier import Verify, answer_and_verify, askable, is_success, verify_answers
from rld.utils.tensors import pad_prompts_and_completions

TASKS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "letter_counting": {"min_words": 2, "max_words": 4},
    "decimal_chain_sum": {
        **{"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        **{"min_decimal_places": 1, "max_decimal_places": 1},
    },
}
SAMPLING = SeededSampling(0, 1.0)

Judged = tuple[list[bool], list[bool], int]
"""Verdicts on greedy answers, on second answers to prompts whose first is correct, and the tokens read and written."""


def rows(num: int, seed: int) -> list[dict[str, Any]]:
    made = []
    for task, config in TASKS.items():
        for entry in reasoning_gym.create_dataset(task, seed=seed, size=num // len(TASKS), **config):
            text = f"{entry['question']}\nAnswer with only the final result."
            line = json.dumps({"task": task, "config": config, **entry}, default=str)
            made.append({"prompt": [{"role": "user", "content": text}], "answer": entry["answer"], "entry": line})
    return made


def decoded(model: Any, encoder: PromptEncoder, asked: list[dict[str, Any]], verify: Verify, length: int) -> Judged:
    first = answer_and_verify(model, encoder, asked, verify, max_new_tokens=length, alone=True)
    correct = [reward is not None and is_success(reward) for reward in first.rewards]
    again = [row for row, is_correct in zip(asked, correct, strict=True) if is_correct]
    prompts, ends = [encoder.encode(row["prompt"]) for row in again], encoder.ends(is_chat=True)
    options: dict[str, Any] = {"max_new_tokens": length, "seed": SAMPLING.seed, "temperature": SAMPLING.temperature}
    sampled = generation.sample(model, encoder.tokenizer, prompts, ends=ends, **options)
    second = verify_answers(encoder, again, encoder.decode(sampled), verify)
    again_correct = [reward is not None and is_success(reward) for reward in second.rewards]
    return correct, again_correct, first.num_tokens + second.num_tokens


def by_drafts(model: Any, encoder: PromptEncoder, asked: list[dict[str, Any]], verify: Verify, length: int) -> Judged:
    has_draft = [True] * len(asked)
    answers = TeacherAnswers(model, encoder, asked, has_draft, verify=verify, max_new_tokens=length, name="the teacher")
    correct = [bool(verdict.is_correct) for verdict in answers.verdicts(range(len(asked)))]
    second = answers.verdicts([i for i, is_correct in enumerate(correct) if is_correct], SAMPLING)
    return correct, [bool(verdict.is_correct) for verdict in second], answers.num_tokens


def timed(judge: Callable[..., Judged], *args: Any) -> tuple[float, Judged]:
    start = time.process_time()
    judged = judge(*args)
    return time.process_time() - start, judged


def draft_states(model: Any, encoder: PromptEncoder, asked: list[dict[str, Any]], length: int) -> list[float]:
    """Seconds of scoring two completions of each prompt alone, with drafts read before, and with drafts beside them."""
    pairs = [
        (ids, [*gold, encoder.required_end(row["prompt"])])
        for row, (ids, gold) in zip(
            asked, encoder.encode_rows([row["prompt"] for row in asked], [row["answer"] for row in asked]), strict=True
        )
    ]
    prompts, ends = [ids for ids, _ in pairs], encoder.ends(is_chat=True)
    options: dict[str, Any] = {"max_new_tokens": length, "seed": SAMPLING.seed, "temperature": SAMPLING.temperature}
    sampled = generation.sample(model, encoder.tokenizer, prompts, ends=ends, **options)
    completions = [(ids, ids_T) for (ids, gold), other in zip(pairs, sampled, strict=True) for ids_T in (gold, other)]
    ids_BS, attention_BS, mask_BT = pad_prompts_and_completions(completions)
    layout = PromptSharingLayout.of(model, "the teacher")

    def score(ids: Any, attention: Any, num_tokens: int) -> States:
        return hidden_states(model, ids, attention, num_tokens=num_tokens, rows_per_forward=len(ids), layout=layout)

    def first() -> list[Any]:
        states = ReadDrafts.alone(model, pairs)._states
        score(ids_BS, attention_BS, mask_BT.shape[1])
        return [*states]

    def later() -> list[Any]:
        both = BatchWithDrafts.of(ids_BS, attention_BS, mask_BT.shape[1], pairs)
        states = score(both.ids_NS, both.attention_NS, both.num_tokens)
        return both.apart(states, mask_BT.shape[1], [len(gold) for _, gold in pairs])[1]

    seconds, found = [], []
    for read in (lambda: score(ids_BS, attention_BS, mask_BT.shape[1]), first, later):
        start = time.process_time()
        found.append(read())
        seconds.append(time.process_time() - start)
    head = model.get_output_embeddings()
    tokens = [[head(states).argmax(-1).tolist() for states in of] for of in found[1:]]
    print(f"drafts whose likeliest tokens differ: {sum(a != b for a, b in zip(*tokens, strict=True))} of {len(pairs)}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    for name, default in {"prompts": 16, "length": 8, "rounds": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(options.model), model_ends=end_tokens(model))
    verify = askable([checked(exact_credit, "exact_credit", decides=True)], lambda: None)
    assert verify is not None
    ratios, num_other, num_asked = [], 0, 0
    for number in range(options.rounds + 1):
        args = model, encoder, rows(options.prompts, number), verify, options.length
        (slow, by_decoding), (fast, drafted) = timed(decoded, *args), timed(by_drafts, *args)
        if number == 0:
            continue
        ratios.append(fast / slow)
        num_asked += len(drafted[0])
        num_other += sum(one != other for one, other in zip(by_decoding[0], drafted[0], strict=True))
        print(
            f"decoding {slow:.1f} s, {by_decoding[2]} tokens; drafts {fast:.1f} s, {drafted[2]} tokens; "
            f"{sum(by_decoding[0])} of {len(by_decoding[0])} correct, second answers {sum(by_decoding[1])}; "
            f"second answers by drafts {sum(drafted[1])}"
        )
    print(f"drafts / decoding: {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"verdicts that differ: {num_other} of {num_asked}")
    for number in range(options.rounds + 1):
        alone, before, beside = draft_states(model, encoder, rows(options.prompts, number), options.length)
        if number:
            print(
                f"scoring {alone:.2f} s; with drafts read before {before:.2f} s, beside {beside:.2f} s; "
                f"{before / alone:.2f}, {beside / alone:.2f}"
            )


if __name__ == "__main__":
    main()
