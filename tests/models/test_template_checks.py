"""Arguments that a chat template never reads are refused; texts that surprise are told."""

from __future__ import annotations

import contextlib

import pytest

import tests.support.tiny as tiny
from rld.errors import RecipeError
from rld.models import chat_template
from rld.models.prompting import PromptEncoder
from rld.models.template_checks import notices, require_options_read
from rld.models.tokenizer_profile import special_tokens
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.support.fleet import FLEET, rows


@pytest.mark.parametrize("name", [name for name, member in FLEET.items() if member.chat])
def test_arguments_of_public_templates_are_read(name):
    member = FLEET[name]
    require_options_read(PromptEncoder(member.tokenizer(), member.chat_options))
    with pytest.raises(RecipeError, match=r"kwargs\.enable_thinkin: the chat template of .* never reads it"):
        require_options_read(PromptEncoder(member.tokenizer(), {"enable_thinkin": False}))
    with pytest.raises(RecipeError, match="rld sets it itself"):
        require_options_read(PromptEncoder(member.tokenizer(), {"tokenize": True}))


def test_the_error_names_the_argument_that_was_meant():
    qwen = FLEET["qwen3_enable_thinking_true"].tokenizer()
    with pytest.raises(RecipeError, match="enable_thinking"):
        require_options_read(PromptEncoder(qwen, {"enable_thinkin": False}))


@pytest.mark.parametrize("value", ["off", "no", "False", "on", 0])
def test_what_means_a_boolean_and_is_another_to_the_template_is_refused(value):
    qwen = FLEET["qwen3_enable_thinking_true"].tokenizer()
    with pytest.raises(RecipeError, match=f"enable_thinking should be true or false, not {value!r}"):
        require_options_read(PromptEncoder(qwen, {"enable_thinking": value}))


@pytest.mark.parametrize(
    "template",
    [
        "{% macro more() %}{{ more() }}{% endmacro %}{{ more() }}",
        "{{ " + "(" * 3_000 + "1" + ")" * 3_000 + " }}",
        "{% if messages[0].role != 'system' %}{{ 1 + 'a' }}{% endif %}",
    ],
)
def test_a_template_that_fails_is_refused_wherever_it_is_rendered(template):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    encoder = PromptEncoder(tokenizer, {"option": 1})
    with pytest.raises(RecipeError, match="refuses a conversation of user"):
        encoder.render([{"role": "user", "content": "a"}])
    with pytest.raises(RecipeError, match="never reads it") if len(template) < 100 else contextlib.nullcontext():
        require_options_read(encoder)
    assert special_tokens(tokenizer) == {1: "<eos>"}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "did not return within"),
        ("{% set size = 10 ** 18 %}{{ 'a' * size }}", "writes more than there is memory for"),
        ("{% set size = 10 ** 8 %}{{ 'a' * size }}", "writes 100,000,000 characters"),
    ],
)
def test_a_template_without_end_is_named(template, message, monkeypatch):
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.5)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(RecipeError, match=f"the chat template of .* {message}"):
        PromptEncoder(tokenizer).render([{"role": "user", "content": "?"}])


def test_a_text_or_number_that_a_template_reads_as_such_is_not():
    qwen = FLEET["qwen3_enable_thinking_true"].tokenizer()
    template = "{% if thinking == 'off' %}{{ budget }}{% endif %}" + qwen.chat_template
    require_options_read(PromptEncoder(qwen, {"thinking": "off", "budget": 0}, chat_template=template))


def test_a_trainer_refuses_arguments_that_its_template_never_reads(tmp_path):
    args = RLDConfig(**tiny.rld_options(tmp_path, chat_template_kwargs={"enable_thinkin": False}))
    with pytest.raises(RecipeError, match="enable_thinkin"):
        RLDTrainer(tiny.model(), tiny.letters, args, tiny.rows(chat=True), processing_class=tiny.tokenizer())


NOTICES = {
    "opens an answer by": {"deepseek_r1_distill", "deepseekv3"},
    "between prompt and answer": {"qwen3_enable_thinking_true", "qwen3_5_think_enable_thinking_true"},
    "prints the date": set[str](),
    "joins with the answer": {"merges_over_the_border"},
}


def test_texts_that_surprise_are_told():
    members = {
        text: {
            name
            for name, member in FLEET.items()
            if any(
                text in notice
                for notice in notices(PromptEncoder(member.tokenizer(), member.chat_options), rows(member))
            )
        }
        for text in NOTICES
    }
    assert members == NOTICES


def test_a_date_and_a_space_at_the_end_are_told():
    llama = FLEET["llama3_2"]
    dated = list(notices(PromptEncoder(llama.tokenizer()), rows(llama)))
    assert any("prints the date: it is 26 July 2024" in notice for notice in dated)
    spaced = [{"prompt": "Question: is it so? Answer: ", "answer": "Yes, it is!"}]
    (notice,) = notices(PromptEncoder(FLEET["byte_level"].tokenizer()), spaced)
    assert "let the prompt end without white space" in notice
