"""A teacher's verdicts by drafts are those of the answers that it decodes token by token."""

from __future__ import annotations

import functools
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rld.rewards.answers import can_become, exact_match
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import tests.support.tiny as tiny
from rld.models import generation
from rld.models.decoding import end_tokens, go_on
from rld.models.prompting import PromptEncoder, is_chat
from rld.models.sampling import SeededSampling
from rld.rollout.rewards import Reward, all_checked
from rld.rollout.teacher_answers import TeacherAnswers
from rld.rollout.verifier import askable, is_success, verify_answers
from tests.support.fleet import FLEET, rows

LENGTH = 6
SAMPLING = SeededSampling(0, 0.7)


def model_of(tokenizer: Any) -> LlamaForCausalLM:
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    sizes = {"vocabulary": len(tokenizer), "max_position_embeddings": 512}
    return tiny.model(0, tie_word_embeddings=False, **sizes, **special).eval()


def verifier(reward: Any) -> Any:
    (checked,) = all_checked(reward, decides=True) or []
    verify = askable([checked], lambda: None)
    assert verify is not None
    return verify


def decoded(
    model: Any, encoder: PromptEncoder, asked_rows: Sequence[dict[str, Any]], sampling: Any = None
) -> list[str]:
    """The answers, decoded token by token from the prompts."""
    if sampling is None:
        return [a.text for a in generation.generate(model, encoder, asked_rows, max_new_tokens=LENGTH, alone=True)]
    prompts, ends = [encoder.encode(row["prompt"]) for row in asked_rows], encoder.ends(is_chat(asked_rows))
    options: dict[str, Any] = {"seed": sampling.seed, "temperature": sampling.temperature, "max_new_tokens": LENGTH}
    return encoder.decode(generation.sample(model, encoder.tokenizer, prompts, ends=ends, **options))


def wanted(encoder: PromptEncoder, asked_rows: Any, texts: Sequence[str], verify: Any) -> list[bool | None]:
    rewards = verify_answers(encoder, asked_rows, texts, verify).rewards
    return [None if reward is None else is_success(reward) for reward in rewards]


def answers_of(model: Any, encoder: PromptEncoder, asked_rows: Any, verify: Any, drafts: bool = True) -> TeacherAnswers:
    has_draft = [drafts] * len(asked_rows)
    return TeacherAnswers(model, encoder, asked_rows, has_draft, verify=verify, max_new_tokens=LENGTH, name="it")


def questions(asked_rows: list[dict[str, Any]], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Rows with gold answers that are asked_rows texts, or are like them, as a first token or as a whole."""
    made = []
    for i, (row, text) in enumerate(zip(asked_rows, texts, strict=True)):
        golds = text, f" {text.strip()}\n", text[: len(text) // 2], text + "x", text.swapcase(), row["answer"], ""
        made += [{**row, "answer": golds[(i + number) % len(golds)]} for number in (0, 1)]
    return made


def letters_in_common(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
    """A verifier of no fixed form, which has no say about some rows."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    pairs = zip(texts, answer, strict=True)
    return [None if len(gold) % 5 == 0 else float(bool(set(text) & set(gold))) for text, gold in pairs]


VERIFIERS = {
    "exact": exact_match,
    "any case": functools.partial(exact_match, case=False),
    "any value": Reward(exact_match, success_at=0.0),
    "letters": letters_in_common,
}


def require_verdicts_of_decoding(
    model: Any, encoder: PromptEncoder, asked_rows: list[dict[str, Any]], names: Any
) -> None:
    """Compare verdicts by drafts with those of decoding, greedily and sampled, for gold answers like either."""
    texts = decoded(model, encoder, asked_rows), decoded(model, encoder, asked_rows, SAMPLING)
    asked = [row for of in texts for row in questions(asked_rows, of)]
    answered = decoded(model, encoder, asked), decoded(model, encoder, asked, SAMPLING)
    for verify in (verifier(VERIFIERS[name]) for name in names):
        answers = answers_of(model, encoder, asked, verify)
        for sampling, of in zip((None, SAMPLING), answered, strict=True):
            verdicts = [verdict.is_correct for verdict in answers.verdicts(range(len(asked)), sampling)]
            assert verdicts == wanted(encoder, asked, of, verify)
            assert verify.rejects_beginning is None or {True, False} <= set(verdicts)


@pytest.mark.parametrize("name", [name for name in FLEET if "think" not in name])
def test_verdicts_are_those_of_decoding_with_every_tokenizer(name):
    member = FLEET[name]
    encoder = PromptEncoder(member.tokenizer(), member.chat_options)
    require_verdicts_of_decoding(model_of(encoder.tokenizer), encoder, rows(member), ["exact", "letters"])


def test_verdicts_are_those_of_decoding_with_every_verifier():
    asked_rows = [dict(row) for row in tiny.rows(12)]
    for seed in range(3):
        require_verdicts_of_decoding(tiny.model(seed=seed), tiny.encoder(), asked_rows, ["exact", "letters"])
    require_verdicts_of_decoding(tiny.model(seed=3), tiny.encoder(), asked_rows, ["any case"])


@pytest.mark.parametrize("variable", ["RLD_MODEL", "RLD_OTHER_MODEL"])
def test_verdicts_are_those_of_decoding_with_a_real_model(variable):
    folder = os.environ.get(variable)
    if folder is None:
        pytest.skip(f"{variable} names no folder of a model with a chat template")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(folder), model_ends=end_tokens(model))
    texts = ("What is 3 + 4?", "Spell cat backwards.", "Name the capital of France.", "What is 12 * 12?", "Say \u00e9.")
    asked_rows = [
        {"prompt": [{"role": "user", "content": f"{text} Answer with only the result."}], "answer": "7"}
        for text in texts
    ]
    require_verdicts_of_decoding(model, encoder, asked_rows, ["exact", "letters"])


def test_an_answer_that_is_the_gold_one_or_cannot_become_it_is_not_decoded(monkeypatch):
    model, encoder = tiny.model(), tiny.encoder()
    rows_and_texts = zip(map(dict, tiny.rows(16)), decoded(model, encoder, list(tiny.rows(16))), strict=True)
    asked = [{**row, "answer": text} for row, text in rows_and_texts if len(text) == LENGTH]  # without special tokens
    assert asked
    wrong = [{**row, "answer": "j" + row["answer"]} for row in asked if not row["answer"].startswith("j")]
    monkeypatch.setattr(model, "generate", None)
    answers = answers_of(model, encoder, asked + wrong, verifier(exact_match))
    verdicts = answers.verdicts(range(len(asked + wrong)))
    assert [verdict.is_correct for verdict in verdicts] == [True] * len(asked) + [False] * len(wrong)
    assert answers.num_tokens == sum(len(p) + len(g) for p, g in zip(answers._prompts, answers._golds, strict=True))
    with pytest.raises(TypeError, match="not callable"):
        answers_of(model, encoder, wrong, verifier(letters_in_common)).verdicts([0])


def test_no_draft_is_read_where_answers_begin_with_thinking():
    encoder = replace(tiny.encoder(), strip_thinking=("a", "b"))
    asked_rows = [dict(row) for row in tiny.rows(12)]
    answers = answers_of(tiny.model(), encoder, asked_rows, verifier(letters_in_common))
    assert answers.num_tokens == 0
    texts = decoded(tiny.model(), encoder, asked_rows)
    verdicts = [verdict.is_correct for verdict in answers.verdicts(range(len(asked_rows)))]
    assert verdicts == wanted(encoder, asked_rows, texts, verifier(letters_in_common))


def test_a_completion_goes_on_as_it_would_from_its_start():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in tiny.rows(6)]
    for sampling in (None, SAMPLING):
        options: dict[str, Any] = {"ends": [1, 5], "max_new_tokens": LENGTH, "sampling": sampling}
        whole = go_on(model, tokenizer, [(prompt, []) for prompt in prompts], **options)
        begun = [ids[: i % len(ids)] for i, (ids, _) in enumerate(whole)]
        assert go_on(model, tokenizer, list(zip(prompts, begun, strict=True)), **options) == whole


LETTERS = "aA1 \n\te\u0301\u0345\u0327\u00e9\u03b1\u1fb4\u00df\u1e9b\u017f\uac00\u1100\u1161\u11a8\u212a\u0130"
NASTY = st.text(alphabet=LETTERS, max_size=5)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(NASTY, NASTY, NASTY, st.booleans())
def test_no_text_that_is_correct_has_a_beginning_that_is_rejected(beginning, rest, gold, case):
    texts = [beginning + rest, gold]
    for text in texts:
        for form in ("NFC", "NFD"):
            golds = [unicodedata.normalize(form, text), text.swapcase(), f" {text}\n"]
            for correct in golds:
                if exact_match([text], [correct], case=case) == [1.0]:
                    assert all(can_become(correct, text[:size], case=case) for size in range(len(text) + 1))
    assert not can_become("ab", "b") and not can_become("\u00e9", "\u00e8x") and can_become("a", " \n")


def test_a_wrapped_reward_does_not_inherit_what_is_rejected():
    @functools.wraps(exact_match)
    def other(completions: list[Any], **options: Any) -> list[float]:
        return [1 - value for value in exact_match(completions, **options)]

    assert verifier(exact_match).rejects_beginning is not None
    assert verifier(functools.partial(exact_match, case=False)).rejects_beginning is not None
    assert verifier(other).rejects_beginning is None
    assert verifier(Reward(exact_match, success_at=0.0)).rejects_beginning is None
