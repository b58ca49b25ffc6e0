"""Tokens as bytes, where two tokenizations meet, losses on that, and teachers who read a translation."""

from __future__ import annotations

import json
import math
import os
import random
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.errors import RecipeError, TeacherError
from rld.losses.cross_tokenizer import likelihood_divergence, sorted_difference
from rld.losses.features import Cosine
from rld.models.prompting import PromptEncoder
from rld.teachers.byte_alignment import END, ids_by_bytes, shared_vocabulary, spans, starts, token_bytes, valid_text
from rld.teachers.ensemble import TeacherEnsemble
from rld.teachers.slot_base import StudentInterface
from rld.teachers.teacher import Teacher
from rld.teachers.translation import CompletionTranslator, StudentVocabulary
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.types import Align
from tests.support.fleet import FLEET, Member

TEXTS = [
    "The answer is 12 + 345 = 357.\n",
    "  two spaces, a\ttab and\n\n    an indented line = x ** 2",
    "naïve café, Ünïcode, 漢字かな and 🙂🙃 👩‍👩‍👧",
    "<eos> </s> <|im_end|> are only text here, 0x41 and <0x41> too",
    "",
]
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def wrapped(backend: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left", **options
    )
    made.chat_template = CHAT
    return made


def byte_level(size: int) -> PreTrainedTokenizerFast:
    """As GPT-2's: byte-level BPE, trained on a few lines."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 2, trainer)
    return wrapped(backend)


def metaspace(prefix: bool) -> PreTrainedTokenizerFast:
    """As Gemma's, or with `prefix` as Llama 2's, which puts a space before a text; both fall back to bytes."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<pad>", "<eos>", "<unk>"], show_progress=False)
    backend.train_from_iterator(TEXTS[:2], trainer)
    learnt = json.loads(backend.to_str())["model"]
    vocabulary = {**learnt["vocab"], **{f"<0x{n:02X}>": len(learnt["vocab"]) + n for n in range(256)}}
    merges = [tuple(merge) for merge in learnt["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    return wrapped(backend, unk_token="<unk>")


def characters() -> PreTrainedTokenizerFast:
    """One token per character that the texts have."""
    characters = sorted(set("".join(TEXTS)) | set("The quick brown fox jumps over 13 lazy dogs."))
    backend = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate(["<pad>", "<eos>", "<unk>", *characters])}, "<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return wrapped(backend, unk_token="<unk>")


KINDS = {
    "small bpe": lambda: byte_level(270),
    "bpe": lambda: byte_level(400),
    "gemma's": lambda: metaspace(False),
    "llama's": lambda: metaspace(True),
    "characters": characters,
}
TOKENIZERS = {name: make() for name, make in KINDS.items()}
PAIRS = [(ours, theirs) for ours in TOKENIZERS for theirs in TOKENIZERS]


def spelt(tokenizer: Any, text: str) -> list[bytes]:
    table = token_bytes(tokenizer, [tokenizer.eos_token_id])
    return [table[i] for i in tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]]


def trimmed(pieces: list[bytes], text: str) -> list[bytes]:
    """Without the space that some put before a text."""
    spaced = b"".join(pieces) == b" " + text.encode()
    return [pieces[0].removeprefix(b" "), *pieces[1:]] if spaced else pieces


def ends_of(pieces: list[bytes]) -> list[int]:
    return list(accumulate(map(len, pieces)))


# -- tokens as bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_texts_tokens_spell_the_text(name, text):
    prefix = " " if name == "llama's" and text else ""
    assert b"".join(spelt(TOKENIZERS[name], text)) == (prefix + text).encode()


def test_special_tokens_spell_nothing_and_ends_an_end():
    tokenizer = byte_level(270)
    tokenizer.add_tokens(["<tool é>"])
    table = token_bytes(tokenizer, [tokenizer.eos_token_id])
    assert (table[tokenizer.pad_token_id], table[tokenizer.eos_token_id]) == (b"", END)
    assert table[tokenizer.convert_tokens_to_ids("<tool é>")] == "<tool é>".encode()
    assert table.count(END) == 1  # the byte 0xff has a token too, which ends nothing


def test_a_tokenizer_that_cannot_be_read_is_refused():
    backend = Tokenizer(models.WordPiece({"<pad>": 0, "<eos>": 1, "a": 2}, unk_token="<pad>"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(TeacherError, match="WordPiece"):
        token_bytes(wrapped(backend), [])


def test_a_tokenizer_that_changes_the_text_is_refused():
    tokenizer = byte_level(270)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(TeacherError, match=r"'low'.*keeps the text"):
        CompletionTranslator(
            "low", PromptEncoder(tokenizer), student=StudentVocabulary(tiny.encoder(), is_chat=False), is_chat=False
        )


@pytest.mark.parametrize("cut", range(1, 5))
def test_a_character_cut_short_is_left_out(cut):
    assert valid_text(b"ab" + "🙂".encode()[:cut]) == ("ab🙂" if cut == 4 else "ab")
    assert valid_text(b"ab" + END + b"cd") == "ab"


# -- alignment ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("text", TEXTS)
def test_spans_end_where_both_end_a_token(ours, theirs, text):
    a, b = (trimmed(spelt(TOKENIZERS[name], text), text) for name in (ours, theirs))
    of_a, of_b = spans(a, b)
    common = sorted((set(ends_of(a)) & set(ends_of(b))) - {0})
    for pieces, numbers in ((a, of_a), (b, of_b)):
        texts = [b"".join(p for p, n in zip(pieces, numbers, strict=True) if n == j) for j in range(len(common))]
        assert texts == [text.encode()[i:j] for i, j in zip([0, *common], common, strict=False)]
        assert all((n == -1) == (piece == b"") for piece, n in zip(pieces, numbers, strict=True))


def test_alignment_by_hand():
    ours, theirs = [b"12", b"", b"3", b" a", END], [b"1", b"23", b" ", b"a", END]
    assert spans(ours, theirs) == ([0, -1, 0, 1, 2], [0, 0, 1, 1, 2])
    assert starts(ours, theirs) == [0, -1, -1, 2, 4]


def test_nothing_is_aligned_behind_the_place_where_texts_part():
    assert spans([b"a", b"bc", b"d"], [b"a", b"b", b"xd"]) == ([0, -1, -1], [0, -1, -1])
    assert starts([b"a", b"b", b"c", b"d"], [b"a", b"b", b"x", b"d"]) == [0, 1, 2, -1]
    assert spans([b"a", END], [b"a"]) == ([0, -1], [0])
    assert spans([], [b"a"]) == ([], [-1])


@pytest.mark.parametrize("seed", range(20))
def test_alignment_of_random_cuts(seed):
    rng = random.Random(seed)
    data = bytes(rng.choice(b"abcd") for _ in range(rng.randrange(1, 40)))
    ours, theirs = _cut(rng, data), _cut(rng, data)
    of_ours, of_theirs = spans(ours, theirs)
    assert max(of_ours) == max(of_theirs) == len(set(ends_of(ours)) & set(ends_of(theirs)) - {0}) - 1
    assert spans(ours, ours)[0] == [j - 1 if p else -1 for p, j in zip(ours, accumulate(map(bool, ours)), strict=True)]
    for i, j in enumerate(starts(ours, theirs)):
        assert (j >= 0) == (bool(ours[i]) and _starts_at(theirs, len(b"".join(ours[:i]))) is not None)
        assert j == -1 or b"".join(ours[:i]) == b"".join(theirs[:j])


def _cut(rng: random.Random, data: bytes) -> list[bytes]:
    pieces = []
    while data:
        size = rng.randrange(0, 4)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def _starts_at(pieces: list[bytes], offset: int) -> int | None:
    return next((i for i, p in enumerate(pieces) if p and len(b"".join(pieces[:i])) == offset), None)


def test_shared_tokens_spell_the_same_and_ends_match_ends():
    student, teacher = shared_vocabulary({b"b": 1, END: 2, b"a": 3, b"c": 5}, {b"a": 0, b"x": 1, b"b": 2, END: 4})
    assert (student.tolist(), teacher.tolist()) == ([1, 2, 3], [2, 4, 0])
    assert [len(ids) for ids in shared_vocabulary({}, {b"a": 0})] == [0, 0]


@pytest.mark.parametrize("name", ["sentencepiece_bpe", "sentencepiece_unigram", "gemma", "phi3"])
def test_of_tokens_that_spell_the_same_the_one_counts_that_the_tokenizer_uses(name):
    """Byte tokens come first in SentencePiece's vocabularies, and stand for characters without a token alone."""
    tokenizer = FLEET[name].tokenizer()
    ids = ids_by_bytes(tokenizer, token_bytes(tokenizer, [tokenizer.eos_token_id]))
    for text in "0123456789aeiou+-.,!?' ":
        assert tokenizer.convert_ids_to_tokens(ids[text.encode()]) == text.replace(" ", "▁")
    assert tokenizer.convert_ids_to_tokens(ids[b"\t"]) == "<0x09>"
    assert tokenizer.convert_ids_to_tokens(ids[b"\xe6"]) == "<0xE6>"


def test_an_added_token_is_used_before_an_ordinary_one_that_spells_the_same():
    tokenizer = byte_level(260)
    tokenizer.add_tokens(["  ", "é"])  # spelt ĠĠ, which is not in the vocabulary, and Ã©, which is
    pieces = token_bytes(tokenizer, [])
    assert [tokenizer("é")["input_ids"]] == [[ids_by_bytes(tokenizer, pieces)["é".encode()]]]


# -- losses ------------------------------------------------------------------------------------------------------------

DOUBLES = torch.tensor([-1e-5, -0.01, -0.5, -3.0, -40.0], dtype=torch.float64)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_the_divergence_of_likelihoods_is_a_binary_kl(tau):
    ours, theirs = (x.flatten() for x in torch.meshgrid(DOUBLES, DOUBLES, indexing="ij"))
    p, q = (theirs / tau).exp(), (ours / tau).exp()
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    value = likelihood_divergence(ours, theirs, tau)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-14)
    assert (value[ours != theirs] > 0).all()
    assert (value[ours == theirs] == 0).all()
    single = likelihood_divergence(ours.float(), theirs.float(), tau)
    torch.testing.assert_close(single.double(), expected, rtol=1e-3, atol=2e-6)
    assert torch.autograd.gradcheck(
        lambda x: likelihood_divergence(x, theirs, tau), ours.clone().requires_grad_(), eps=1e-8, atol=1e-5, rtol=1e-3
    )


def test_the_divergence_of_likelihoods_at_the_edges():
    ours = torch.tensor([0.0, 0.0, -1e-9, -50.0, -3e4], requires_grad=True)
    value = likelihood_divergence(ours, torch.tensor([0.0, -1.0, -2.0, -float("inf"), -float("inf")]), 1.0)
    value.sum().backward()
    assert value.isfinite().all()
    assert ours.grad.isfinite().all()
    assert (value[0].item(), ours.grad[0].item()) == (0.0, 0.0)
    assert (value[1:3] > 1).all()
    assert (ours.grad[1:3] > 0).all()  # a sure student that is wrong is still pushed away


def test_sorted_difference():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 7, generator=generator, dtype=torch.float64).softmax(-1)
    b = torch.rand(3, 4, generator=generator, dtype=torch.float64).softmax(-1)
    expected = [
        sum(abs(x - y) for x, y in zip(sorted(p, reverse=True), [*sorted(q, reverse=True), 0, 0, 0], strict=True))
        for p, q in zip(a.tolist(), b.tolist(), strict=True)
    ]
    torch.testing.assert_close(sorted_difference(a, b), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(sorted_difference(b, a), sorted_difference(a, b))
    assert (sorted_difference(a, a[:, torch.randperm(7)]) == 0).all()
    assert torch.autograd.gradcheck(lambda x: sorted_difference(x, b), a.requires_grad_())


# -- teachers who read a translation -----------------------------------------------------------------------------------


def model(tokenizer: Any, seed: int, width: int = 32) -> LlamaForCausalLM:
    changes = {"max_position_embeddings": 2048, "tie_word_embeddings": False}
    return tiny.model(seed, width, vocabulary=len(tokenizer) + 3, **changes).eval()  # padded


STUDENT, TEACHER = TOKENIZERS["bpe"], TOKENIZERS["gemma's"]
PROMPTS = [[{"role": "user", "content": "12 + 345?"}], "The answer", [{"role": "user", "content": "漢"}], "naïve"]
ANSWERS = ["357.<eos>", " is 12 🙂 + 34", "", "café, Ünïcode and\n\n    an<eos>"]
TEMPERATURE = 0.8


def ensemble_of(*teachers: Teacher, student: Any = STUDENT) -> TeacherEnsemble:
    interface = StudentInterface(model(student, 0), PromptEncoder(student), Cosine(layers="uniform"))
    return TeacherEnsemble(teachers, interface, prepare=lambda model: model)


def rollout(student: Any = STUDENT, extra: int = 0) -> dict[str, Any]:
    """A rollout with `PROMPTS` and `ANSWERS`; the second is cut within its smiley, `extra` widens the padding."""
    prompts = [
        student(p)["input_ids"]
        if isinstance(p, str)
        else student.apply_chat_template(p, add_generation_prompt=True)["input_ids"]
        for p in PROMPTS
    ]
    answers = [student(answer)["input_ids"] for answer in ANSWERS]
    table = token_bytes(student, [1])
    text = [b"".join(table[i] for i in answers[1][:n]) for n in range(len(answers[1]))]
    answers[1] = answers[1][: next((n for n, t in enumerate(text) if t.endswith(b"\xf0")), len(text))]
    longest, width = max(map(len, prompts)) + extra, max(map(len, answers)) + extra
    made = {
        "prompt_ids": [[0] * (longest - len(p)) + p for p in prompts],
        "prompt_mask": [[0] * (longest - len(p)) + [1] * len(p) for p in prompts],
        "completion_ids": [a + [7] * (width - len(a)) for a in answers],
        "completion_mask": [[1] * len(a) + [0] * (width - len(a)) for a in answers],
    }
    return {name: torch.tensor(values) for name, values in made.items()}


def scored(made: TeacherEnsemble, inputs: dict[str, Any], rows: Any = None, prompts: Any = PROMPTS) -> dict[str, Any]:
    rows = torch.ones(len(prompts), len(made.slots), dtype=torch.bool) if rows is None else rows
    made.score(inputs, rows, prompts=prompts, temperature=TEMPERATURE, rows_per_forward=3)
    return inputs


def other(tokenizer: Any = TEACHER, **options: Any) -> Teacher:
    return Teacher(model(tokenizer, 1, 48), "other", tokenizer=tokenizer, **{"align": "likelihood", **options})


@pytest.mark.parametrize("name", ["gemma's", "llama's", "characters"])
def test_the_gathered_states_are_the_teachers_own(name):
    tokenizer = TOKENIZERS[name]
    teacher = other(tokenizer)
    made = ensemble_of(teacher)
    inputs = scored(made, rollout())
    table, ours = token_bytes(tokenizer, [1]), token_bytes(STUDENT, [1])
    (states,) = made.outputs(inputs)
    taught = 0
    for b, prompt in enumerate(PROMPTS):
        spoken = [ours[i] for i, m in zip(*_row(inputs, b), strict=True) if m]
        text = valid_text(b"".join(spoken))
        before, after = PromptEncoder(tokenizer).encode_with(prompt, text)
        theirs = trimmed([table[i] for i in after], text)
        if ANSWERS[b].endswith("<eos>"):
            after, theirs = [*after, 1], [*theirs, END]
        if not after:
            assert not inputs["teacher_tokens"][b].any()
            continue
        direct = teacher.model(input_ids=torch.tensor([before + after]), output_hidden_states=True)
        numbers = spans(spoken, theirs)
        for t, j in enumerate(starts(spoken, theirs)):
            assert bool(states.valid_BT[b, t]) == (j >= 0)
            if j >= 0:
                place = len(before) + j - 1
                expected = [hidden[0, place] for hidden in direct.hidden_states]
                torch.testing.assert_close(states.hidden_BTH[b, t], expected[-1], rtol=1e-4, atol=1e-4)
                for number, layer in enumerate(made.plans[0].teacher_keys):
                    layer_states = states.layers_BLTH[b, number, t]
                    torch.testing.assert_close(layer_states, expected[layer], rtol=1e-4, atol=1e-4)
                taught += 1
        assert states.spans_BT[b].tolist() == numbers[0] + [-1] * (states.spans_BT.shape[1] - len(spoken))
        log_p = (direct.logits[0] / TEMPERATURE).log_softmax(-1)
        each = [log_p[len(before) + j - 1, i].item() for j, i in enumerate(after)]
        sums = [sum(p for p, n in zip(each, numbers[1], strict=True) if n == j) for j in range(max(numbers[1]) + 1)]
        assert states.span_scores_BT[b, : len(sums)].tolist() == pytest.approx(sums, abs=1e-4)
        assert not states.span_scores_BT[b, len(sums) :].any()
        at_tokens = [sums[n] if n >= 0 else 0.0 for n in numbers[0]]
        scores = made.sampled_scores(inputs, TEMPERATURE)["teacher_scores"][b, 0, : len(spoken)]
        assert scores.tolist() == pytest.approx(at_tokens, abs=1e-4)
    assert taught > 10


def _row(inputs: dict[str, Any], b: int) -> tuple[list[int], list[int]]:
    return inputs["completion_ids"][b].tolist(), inputs["completion_mask"][b].tolist()


def test_padding_order_and_company_do_not_matter():
    made = ensemble_of(other())
    inputs, wide = scored(made, rollout()), rollout(extra=3)
    order = [2, 0, 3]
    wide = {name: values[order] for name, values in wide.items()}
    rows = torch.tensor([[True], [True], [False]])
    moved = scored(made, wide, rows, [PROMPTS[i] for i in order])
    size, (states, there) = inputs["completion_ids"].shape[1], (made.outputs(x)[0] for x in (inputs, moved))
    for b in (0, 1):
        spoken = states.valid_BT[order[b]]
        assert there.valid_BT[b, :size].tolist() == spoken.tolist()
        torch.testing.assert_close(there.hidden_BTH[b, :size][spoken], states.hidden_BTH[order[b]][spoken])
        torch.testing.assert_close(there.span_scores_BT[b, :size], states.span_scores_BT[order[b]])
        assert there.spans_BT[b, :size].tolist() == states.spans_BT[order[b]].tolist()
    assert not there.valid_BT[2].any()
    assert (there.spans_BT[2] == -1).all()


def test_the_same_tokenizer_aligned_is_the_plain_teacher():
    weights = model(STUDENT, 1, 48)
    made = ensemble_of(
        Teacher(weights, "plain", tokenizer=STUDENT), Teacher(weights, "aligned", tokenizer=STUDENT, align="vocabulary")
    )
    inputs = scored(made, rollout())
    plain, aligned = made.outputs(inputs)
    ends_well = torch.tensor([0, 2, 3])  # in row 1 the last character is cut, and not retold
    mask = inputs["completion_mask"][ends_well].bool()
    assert torch.equal(aligned.valid_BT[ends_well] & mask, mask)
    torch.testing.assert_close(aligned.hidden_BTH[ends_well][mask], plain.hidden_BTH[ends_well][mask])
    torch.testing.assert_close(aligned.layers_BLTH[0][:, mask[0]], plain.layers_BLTH[0][:, mask[0]])
    scores = made.sampled_scores(inputs, TEMPERATURE)["teacher_scores"][ends_well]
    torch.testing.assert_close(scores[:, 1][mask], scores[:, 0][mask])
    ours, theirs = aligned.shared_ids
    assert torch.equal(ours, theirs)
    assert 1 in ours
    assert 0 not in ours
    assert plain.shared_ids is None


def test_a_batch_without_any_text_has_no_opinion():
    made, inputs = ensemble_of(other()), rollout()
    inputs["completion_mask"].zero_()
    scored(made, inputs)
    (states,) = made.outputs(inputs)
    assert not states.valid_BT.any()
    assert states.hidden_BTH is states.spans_BT is None
    assert not made.sampled_scores(inputs, TEMPERATURE)["teacher_scores"].any()


def test_a_chat_needs_a_template_which_the_recipe_may_give():
    bare = metaspace(False)
    bare.chat_template = None
    with pytest.raises(TeacherError, match=r"'other': .* no chat template; .*chat_template"):
        scored(ensemble_of(other(bare)), rollout())
    given = scored(ensemble_of(other(bare, chat_template=CHAT)), rollout())
    torch.testing.assert_close(given["teacher_0_hidden"], scored(ensemble_of(other()), rollout())["teacher_0_hidden"])
    with pytest.raises(TeacherError, match=r"'other': the chat template of .* is no Jinja"):
        scored(ensemble_of(other(bare, chat_template="{% for")), rollout())


def test_the_end_is_the_one_that_closes_a_turn():
    def made(ends: list[int], template: str) -> CompletionTranslator:
        student = StudentVocabulary(PromptEncoder(STUDENT), is_chat=False)
        encoder = PromptEncoder(tokenizer, chat_template=template, model_ends=ends)
        return CompletionTranslator("t", encoder, student=student, is_chat=True)

    tokenizer = byte_level(300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    ids, mask = torch.tensor([[STUDENT("a")["input_ids"][0], 1, 9]]), torch.tensor([[1, 1, 0]])
    translation = made([1, turn], CHAT.replace("<eos>", "<turn>")).translate([""], ids, mask)
    assert translation.ids_BS[0, -1] == turn
    assert translation.starts_BT.tolist() == [[0, 1, -1]]
    assert made([1, turn], CHAT).translate([""], ids, mask).ids_BS[0, -1] == 1


def test_a_forged_end_is_text():
    student = StudentVocabulary(PromptEncoder(STUDENT), is_chat=False)
    ids = STUDENT("<eos>", split_special_tokens=True)["input_ids"]
    translation = CompletionTranslator("t", PromptEncoder(TEACHER), student=student, is_chat=False).translate(
        ["a"], torch.tensor([ids]), torch.ones(1, len(ids))
    )
    assert 1 not in translation.ids_BS[0]
    assert max(translation.student_spans_BT[0].tolist()) >= 0


def aligned_trainer(folder: Any, teacher: Teacher, **options: Any) -> RLDTrainer:
    arguments = tiny.rld_options(
        folder, max_steps=25, learning_rate=3e-3, signals=["policy", "response", "feature"], **options
    )
    return RLDTrainer(
        model(STUDENT, 0),
        lambda completions, **_: [float(len(text) % 2) for text in completions],
        RLDConfig(**{**arguments, "teacher_reward": 0.1}),
        Dataset.from_dict({"prompt": ["The answer is 12", "café 34, "] * 4}),
        processing_class=STUDENT,
        teachers=[teacher],
        controller=FixedController(policy=0.1, response=1.0, feature=0.1, balance_gradients=False),
    )


@pytest.mark.parametrize("align", get_args(Align))
def test_a_student_comes_closer_to_a_teacher_with_another_tokenizer(tmp_path, align):
    made = aligned_trainer(tmp_path, other(align=align), divergence="forward_kl")
    made.train()
    for name in ("loss/response", "loss/feature", "divergence/other"):
        values = [entry[name] for entry in made.state.log_history if name in entry]
        assert all(map(math.isfinite, values))
        assert sum(values[-8:]) < sum(values[:8])


def certain(member: Member, text: str) -> LlamaForCausalLM:
    """A model that says one token, whatever it reads, with a probability of 0.9999."""
    made = member.model()
    token = member.tokenizer().convert_tokens_to_ids(text)
    logit = math.log(0.9999 / 0.0001 * (made.config.vocab_size - 1))
    head = torch.zeros_like(made.lm_head.weight)
    head[token] = logit / made.config.hidden_size  # hidden states of ones
    made.config.tie_word_embeddings = False
    made.model.embed_tokens.weight = torch.nn.Parameter(torch.ones_like(head))
    made.lm_head.weight = torch.nn.Parameter(head)
    for name, weight in made.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data.zero_()
    return made


@pytest.mark.parametrize("name", ["gemma", "byte_level"])
def test_a_student_learns_the_token_that_a_teacher_with_another_vocabulary_says(name, tmp_path):
    member, student = FLEET[name], FLEET["bos"]
    teacher = Teacher(certain(member, "7"), "certain", tokenizer=member.tokenizer(), align="vocabulary")
    made = RLDTrainer(
        LlamaForCausalLM(student.model().config),
        args=RLDConfig(
            **tiny.rld_options(tmp_path, max_steps=60, max_completion_length=3, learning_rate=1e-2),
            signals=["response"],
            divergence="forward_kl",
        ),
        train_dataset=Dataset.from_dict({"prompt": ["What is 3 plus 4?", "A digit: "] * 8}),
        processing_class=student.tokenizer(),
        teachers=[teacher],
        controller=FixedController(),
    )
    made.train()
    tokenizer = student.tokenizer()
    with torch.no_grad():
        logits_V = made.model(**tokenizer("A digit: ", return_tensors="pt")).logits[0, -1]
    assert logits_V.softmax(-1)[tokenizer.convert_tokens_to_ids("7")] > 0.9


@pytest.mark.parametrize("align", get_args(Align))
def test_a_student_equal_to_an_aligned_teacher_is_left_alone(tmp_path, align):
    twin = Teacher(model(STUDENT, 0), "twin", tokenizer=STUDENT, align=align)
    made = aligned_trainer(tmp_path, twin)
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    batch = made._generate_and_score_completions([{"prompt": "The answer is 12"}] * 8)
    batch["signal_weights"] = torch.tensor([[0.0, 1.0, 0.0]] * 8)
    loss = made._compute_loss(made.model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-4)
    gradients = [p.grad.abs().max().item() for p in made.model.parameters() if p.grad is not None]
    assert max(gradients) < 3e-2  # of another model: 0.14. Ranked probabilities have a kink where they agree


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine_teachers": "agreement"}, "combine_teachers: agreement"),
        ({"token_weights": "top"}, "tokens: top needs distributions"),
    ],
)
def test_options_that_an_aligned_teacher_would_ignore_are_refused(tmp_path, options, message):
    plain = Teacher(model(STUDENT, 2), "plain", tokenizer=STUDENT)
    with pytest.raises(RecipeError, match=message):
        RLDTrainer(
            model(STUDENT, 0),
            args=RLDConfig(**tiny.rld_options(tmp_path, **options)),
            train_dataset=Dataset.from_dict({"prompt": ["The answer is 12"] * 8}),
            processing_class=STUDENT,
            teachers=[other(), plain],
            controller=FixedController(),
        )


def test_another_tokenizer_without_align_is_refused_with_the_fix():
    with pytest.raises(TeacherError, match="align: likelihood or align: vocabulary"):
        ensemble_of(other(align=None))
    with pytest.raises(TeacherError, match="did you mean 'vocabulary'"):
        ensemble_of(other(align="vocabluary"))


# -- real tokenizers ---------------------------------------------------------------------------------------------------

FOLDERS = [os.environ.get(name) for name in ("RLD_TEST_STUDENT", "RLD_TEST_TEACHER")]


@pytest.mark.skipif(not all(FOLDERS), reason="needs RLD_TEST_STUDENT and RLD_TEST_TEACHER: folders of two models")
def test_real_tokenizers():
    ours, theirs = (AutoTokenizer.from_pretrained(Path(str(folder))) for folder in FOLDERS)
    student = StudentVocabulary(PromptEncoder(ours), is_chat=True)
    translator = CompletionTranslator("real", PromptEncoder(theirs, chat_template=CHAT), student=student, is_chat=True)
    assert len(translator.vocabulary[0]) > 0.3 * min(len(ours), len(theirs))
    for text in TEXTS[:-1]:
        text_ids = ours(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = [*text_ids, ours.eos_token_id]
        translation = translator.translate(["x"], torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))
        assert (translation.student_spans_BT >= 0).all()
        assert (translation.teacher_spans_BU >= 0).all()
        assert (
            translation.student_spans_BT[0, -1]
            == translation.teacher_spans_BU[0, -1]
            == translation.student_spans_BT.max()
        )
        assert translation.starts_BT[0, 0] == 0
        assert translation.starts_BT[0, -1] == translation.num_tokens - 1
