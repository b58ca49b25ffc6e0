"""The shipped rewards."""

from __future__ import annotations

import importlib
import json
import random
import re
import sys
import time

import pytest
from rouge_score.rouge_scorer import RougeScorer

from rld.errors import RewardError
from rld.recipe import registry
from rld.utils.user_calls import UserCodeTimeout, user_code


def reward(name: str):
    file, function = name.split(":")
    return getattr(importlib.import_module(f"rld.rewards.{file}"), function)


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_every_reward_takes_chat_and_plain_completions():
    given = {"answer": ["4", "4"], "entry": ["", ""], "completion_ids": [[1], [1, 2]], "prompts": ["", ""]}
    for name in registry.names("rewards"):
        if name.startswith(("teachers:", "code:")):
            continue  # opinions, and programs in a sandbox, with tests of their own
        options = {"target": 1} if name == "shape:brief" else {}
        texts = [r"\boxed{4}", r"\boxed{5}"] if name == "answers:math_verify" else ["4", "5"]
        plain = reward(name)(completions=texts, **given, **options)
        assert plain == reward(name)(completions=list(map(chat, texts)), **given, **options)
        assert plain[0] == 1.0 > plain[1] >= 0.0


def test_exact_match():
    match = reward("answers:exact_match")
    texts = ["abc", " abc\n", "abcd", "ABC", "", "a bc"]
    assert match(texts, ["abc"] * 6) == [1, 1, 0, 0, 0, 0]
    assert match(texts, ["abc "] * 6, case=False) == [1, 1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "gold", "wanted"),
    [
        ("12", "12", 1),
        ("3 + 9 = 12.", "12", 1),
        ("12, no, 13", "12", 0),
        ("1,234.50 dollars", "1234.5", 1),
        ("-5", "-5", 1),
        ("9-5", "5", 1),
        ("x = -5", "5", 0),
        ("1,2", "2", 1),
        ("none", "5", 0),
        ("7", "#### 7", 1),
        ("7", "seven", None),
        ("version 2.5", ".5", 0),
        ("\u22125", "5", 0),
        ("\u22125", "-5", 1),
        ("3/2", "1/2", 0),
        ("3/2", "1.5", 1),
        (".5", "1/2", 1),
        ("-.25", "-1/4", 1),
        ("1 1/2 cups", "3/2", 1),
        ("\u00bd", "0.5", 1),
        ("1.5e3", "1500", 1),
        ("3 \\times 10^{8} m/s", "300000000", 1),
        ("3\u00d710\u2078", "3e8", 1),
        ("50%", "0.5", 1),
        ("50 %", "50", 1),
        ("5%", "0.5", 0),
        ("1\u202f234\u2009567", "1,234,567", 1),
        ("1'234", "1234", 1),
        ("-$5.00", "-5", 1),
        ("\uff11\uff12", "12", 1),
        (r"so \boxed{\frac{1}{2}}, as 7 shows", "0.5", 1),
        ("5 m\u00b2", "5", 1),
        ("7 kg CO2", "7", 1),
        ("on 1/2/2024", "2024", 1),
        ("3/0", "3", 0),
        ("1e999999999", "1", 0),
        ("9" * 5000, "9", 0),
        ("between 5\u201310", "10", 1),
    ],
)
def test_final_number(text, gold, wanted):
    assert reward("answers:final_number")([text], [gold]) == [wanted]


def test_math_verify_is_trls_accuracy_reward():
    from trl.rewards import accuracy_reward

    golds = [r"\frac{1}{3}", "0.5", "$x^2$", "no formula", "12"]
    texts = [
        r"so \boxed{\frac{2}{6}}",
        "The final answer is $1/2$.",
        r"\boxed{x \cdot x}",
        r"\boxed{1}",
        "12",
        "",
        r"\boxed{13} $12$",
        r"$\frac{1}",
    ]
    for gold in golds:
        values = reward("answers:math_verify")(texts, [gold] * len(texts))
        assert values == accuracy_reward([chat(text) for text in texts], [gold] * len(texts))
        assert set(values) <= {0.0, 1.0, None}
    assert reward("answers:math_verify")(texts[:3], golds[:3]) == [1.0, 1.0, 1.0]
    assert reward("answers:math_verify")(["1"], ["no formula"]) == [None]


def test_formulas_without_end_take_limited_time_and_leave_the_limit_of_the_call():
    tower, right = r"\boxed{" + "9^{" * 40 + "9" + "}" * 40 + "}", r"\boxed{12}"
    assert reward("answers:math_verify")([right], ["12"]) == [1.0]  # which imports what it needs
    start = time.monotonic()
    assert reward("answers:math_verify")([tower, tower, right], ["12"] * 3) == [0.0, 0.0, 1.0]
    assert time.monotonic() - start < 8
    towers = [tower + " " * i for i in range(9)]
    with pytest.raises(UserCodeTimeout), user_code(3):
        reward("answers:math_verify")(towers, ["12"] * len(towers))
    assert time.monotonic() - start < 10


def test_math_verify_names_the_package_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(RewardError, match=r"answers:math_verify needs math_verify; install it with: pip .*\[math\]"):
        reward("answers:math_verify")(["1"], ["1"])


def test_brief():
    brief = reward("shape:brief")
    scores = brief([""] * 4, [[], [0] * 10, [0] * 20, [0] * 40], target=10)
    assert scores == [1.0, 1.0, 0.5, 0.25]
    with pytest.raises(RewardError, match="target"):
        brief([""], [[]], target=0)


def test_composed_and_decomposed_characters_are_one_text():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert reward("answers:exact_match")([composed, decomposed], [decomposed, composed]) == [1, 1]
    assert reward("reasoning:exact_credit")([composed], [decomposed], [""]) == [1]


def credit(task: str, texts: list[str], seed: int = 0, **config) -> list[float]:
    import reasoning_gym

    made = reasoning_gym.create_dataset(task, seed=seed, size=1, **config)[0]
    texts = [text.replace("GOLD", made["answer"] or "") for text in texts]
    entry = json.dumps({"task": task, "config": config, **made}, default=str)
    return reward("reasoning:exact_credit")(texts, [made["answer"] or ""] * len(texts), [entry] * len(texts))


@pytest.mark.parametrize("task", ["chain_sum", "letter_counting", "spell_backward", "word_sorting"])
def test_partial_credit_is_none(task):
    """reasoning-gym itself gives these some credit for a text that merely has the gold answer in it."""
    for seed in range(5):
        assert credit(task, ["GOLD", " GOLD\n", "it is GOLD, I think", "GOLD GOLD", "", "no"], seed) == [
            1,
            1,
            0,
            0,
            0,
            0,
        ]


def test_a_verifier_that_believes_everything_is_not_believed():
    for seed in range(5):
        assert credit("game_of_life_halting", ["GOLD", "anything"], seed) == [1, 0]


def test_no_task_pays_for_an_answer_that_is_none():
    """Constants, empty and non-finite answers, the negated gold answer, and the gold answers of other puzzles."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    paid = []
    for task in sorted(set(DATASETS) - {"composite"}):
        puzzles = list(reasoning_gym.create_dataset(task, seed=1, size=4))
        golds = [puzzle["answer"] or "" for puzzle in puzzles]
        for puzzle, gold in zip(puzzles, golds, strict=True):
            texts = [
                *("", " ", "nan", "NaN", "inf", "-Infinity", "1e999", "0", "1", "24", "True", "None", "null"),
                *("[]", "[[]]", "{}", "()", "?", ".", "a", "nan+nanj", "x", "the answer"),
                *(f"-{gold}", f"\u2212{gold}", f"- {gold}", f"-({gold})", f"not {gold}", gold.lstrip("-")),
                *(other for other in golds if other != gold),
            ]
            entry = json.dumps({"task": task, "config": {}, **puzzle}, default=str)
            scores = reward("reasoning:exact_credit")(texts, [gold] * len(texts), [entry] * len(texts))
            paid += [(task, gold, text) for text, score in zip(texts, scores, strict=True) if score and text != gold]
    equal = {
        ("power_function", "1.0", "1"),
        ("coin_flip", "0.0", "0"),
        ("polynomial_equations", "0.0", "0"),
        ("polynomial_equations", "0.0", "-0.0"),
    }
    assert set(paid) - equal == set()


def test_no_correct_answer_has_a_beginning_that_is_rejected():
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    credit, rejected = reward("reasoning:exact_credit"), set()
    for task in sorted(set(DATASETS) - {"composite"}):
        for puzzle in reasoning_gym.create_dataset(task, seed=2, size=2):
            gold, entry = puzzle["answer"] or "", json.dumps({"task": task, "config": {}, **puzzle}, default=str)
            texts = [gold, f" {gold}\n", f"+{gold}", f"0{gold}", f"-0{gold[1:]}", f"{gold}.0", f"{gold}0", f"{gold}e0"]
            if re.fullmatch(r"-?\d+(\.\d+)?", gold):
                texts += [f"{float(gold):,.3f}", f"{float(gold):e}", f"{float(gold) * 1000:.3f}E-3", f"{float(gold):g}"]
            for text, score in zip(texts, credit(texts, [gold] * len(texts), [entry] * len(texts)), strict=True):
                begun = [text[:size] for size in range(len(text) + 1)] if score else ["?!", "the answer", f"{gold} no"]
                lost = credit.rejects_beginning(begun, [gold] * len(begun), [entry] * len(begun))
                assert not (score and any(lost)), (task, text)
                rejected |= {task} if any(lost) else set()
    assert {"chain_sum", "products", "decimal_chain_sum", "letter_counting", "gcd"} <= rejected
    assert not rejected & {"graph_color", "countdown", "puzzle24"}, "they have other answers than the gold one"


def test_a_puzzle_of_24_uses_the_numbers_that_were_given():
    import reasoning_gym

    numbers = reasoning_gym.create_dataset("puzzle24", seed=1, size=1)[0]["metadata"]["numbers"]
    assert numbers == [8, 5, 10, 6]
    assert credit("puzzle24", ["GOLD", "(8 - 5)*10 - 6", "9*3*8/9", "6*4*1*1"], seed=1) == [1, 1, 0, 0]


def test_a_verifier_that_cannot_read_an_answer_says_no():
    assert credit("prime_factorization", ["GOLD", "not a number"]) == [1, 0]


def test_other_correct_answers_than_the_gold_one_count():
    import reasoning_gym

    made = reasoning_gym.create_dataset("graph_color", seed=3, size=1)[0]
    assert made["answer"] is None
    right = json.dumps(made["metadata"]["possible_answer"])
    wrong = json.dumps(dict.fromkeys(made["metadata"]["possible_answer"], 1))
    assert credit("graph_color", [right, wrong], seed=3) == [1, 0]


def test_rows_without_an_entry_are_matched():
    assert reward("reasoning:exact_credit")([" a", "b"], ["a", "a"], ["", ""]) == [1.0, 0.0]


def test_the_string_puzzles_are_what_they_say():
    strings = importlib.import_module("rld.recipes.strings")
    wanted = {
        strings.reverse: ("rev", lambda word: word[::-1]),
        strings.sort: ("srt", lambda word: "".join(sorted(word))),
        strings.shift: ("nxt", lambda word: "".join("abcdefghija"["abcdefghij".index(c) + 1] for c in word)),
        strings.rotate: ("rot", lambda word: word[1:] + word[:1]),
    }
    for puzzle, (name, solve) in wanted.items():
        for seed in range(20):
            question, answer = puzzle(random.Random(seed), length=1 + seed % 5)
            word = question.removeprefix(f"{name}:").removesuffix("=")
            assert len(word) == 1 + seed % 5 and set(word) <= set("abcdefghij")
            assert answer == solve(word)


def test_words_are_compared_as_squads_script_does():
    texts = ["The  Cat!", "a cat sat", "cat cat", "", "dog"]
    golds = ["cat", "the cat sat down", "cat", "the", ""]
    assert reward("text:word_match")(texts, golds) == [1, 0, 0, 1, 0]
    assert reward("text:token_f1")(texts, golds) == pytest.approx([1, 0.8, 2 / 3, 1, 0])


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_that_of_rouge_score(kind):
    scorer = RougeScorer([kind], use_stemmer=True)
    generator = random.Random(0)
    words = ["the", "cat", "cats", "sat", "on", "a", "mat.", "Runs", "running", "not"]
    texts = [" ".join(generator.choices(words, k=generator.randint(0, 8))) for _ in range(60)]
    completions, golds = texts[:30], texts[30:]
    expected = [scorer.score(gold, text)[kind].fmeasure for text, gold in zip(completions, golds, strict=True)]
    assert reward("text:rouge")(completions, golds, kind=kind) == pytest.approx(expected)


def test_an_unknown_kind_of_rouge_is_refused():
    with pytest.raises(RewardError, match="'rouge3' is none of rouge1"):
        reward("text:rouge")(["a"], ["a"], kind="rouge3")
