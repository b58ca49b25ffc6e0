"""TRL's rewards by name: every one that it has, with what it expects of a row and of a completion."""

from __future__ import annotations

import sys

import pytest
import trl.rewards
from trl.trainer.utils import get_callable_name

from rld.errors import LibraryError, RecipeError
from rld.recipe import registry, trl_rewards
from rld.recipe.reading import read_recipe

PUBLIC = [name for names in trl.rewards._import_structure.values() for name in names]
OPTIONS = {
    "get_cosine_scaled_reward": {"max_len": 100},
    "get_soft_overlong_punishment": {"max_completion_len": 20, "soft_punish_cache": 10},
    "reasoning_accuracy_reward": {"reasoning_delimiters": ["</b>"]},
}
TEXTS = [r"<think>\boxed{2}</think> so </b> \boxed{4}", r"</b> \boxed{5}", "4"]
IDS = [[1, 2, 3], [1] * 15, [1] * 30]

RECIPE = """\
name: sums
models: {{student: some/model}}
skills: {{sum: {{reasoning_gym: chain_sum}}}}
rewards: [{{use: "{use}", options: {options}}}]
stages: [{{name: a, kind: distill, student: student, steps: 1, signals: {{policy: {{}}}}}}]
"""


@pytest.fixture
def check(tmp_path):
    def read(use, options="{}"):
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(use=use, options=options))
        try:
            read_recipe(tmp_path / "recipe.yaml")
        except RecipeError as error:
            return str(error)
        return ""

    return read


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("module", ["trl", "trl.rewards"])
def test_every_reward_of_trl_gives_what_it_gives_in_trl(name, module, tmp_path, check):
    options = OPTIONS.get(name, {})
    assert check(f"{module}:{name}", options) == ""
    function = registry.load("rewards", f"{module}:{name}", tmp_path)
    original = function(**options) if name.startswith("get_") else function
    messages = [[{"role": "assistant", "content": text}] for text in TEXTS]
    columns = {"prompts": ["p"] * 3, "completion_ids": IDS, "entry": [""] * 3, "trainer_state": object()}
    own = {} if name.startswith("get_") else options
    wanted = original(completions=messages, solution=["4"] * 3, **columns, **own)
    bound = trl_rewards.bound(function, options)
    assert bound(completions=TEXTS, answer=["4"] * 3, **columns) == wanted
    assert bound(completions=messages, answer=["4"] * 3, **columns) == wanted
    assert bound.__name__ == get_callable_name(original)


@pytest.mark.parametrize(
    ("use", "options", "expected"),
    [
        ("trl:acuracy_reward", "{}", "TRL has no reward 'acuracy_reward'; did you mean 'accuracy_reward'?"),
        ("trl:nonsense", "{}", "choose from accuracy_reward, "),
        ("trl:_CosineScaledReward", "{}", "TRL has no reward '_CosineScaledReward'"),
        ("trl:get_soft_overlong_punishment", "{}", "'rewards.0.options.max_completion_len' is required by trl:get"),
        ("trl:get_repetition_penalty_reward", "{ngram: 2}", "did you mean 'ngram_size'?"),
        ("trl:think_format_reward", "{solution: 1}", "trl:think_format_reward takes no such option"),
    ],
)
def test_a_name_or_an_option_that_trl_lacks_is_refused(check, use, options, expected):
    assert expected in check(use, options)


def test_options_that_trl_refuses_are_refused(tmp_path):
    function = registry.load("rewards", "trl:get_repetition_penalty_reward", tmp_path)
    with pytest.raises(LibraryError, match="trl:get_repetition_penalty_reward refuses its options: max_penalty 1"):
        trl_rewards.bound(function, {"max_penalty": 1})


def test_without_math_verify_the_rewards_that_need_it_are_refused(check, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    for use in ("answers:math_verify", "trl:accuracy_reward", "trl:reasoning_accuracy_reward"):
        assert f"{use} needs math-verify; install it with: pip install -e '.[math]'" in check(use)
    assert check("trl:think_format_reward") == check("answers:final_number") == ""
