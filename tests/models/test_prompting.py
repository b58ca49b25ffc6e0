"""Prompts as token ids, with a tokenizer's chat template or another."""

from __future__ import annotations

import tests.support.tiny as tiny
from rld.models.prompting import PromptEncoder

CHAT = [{"role": "user", "content": "ab"}]


def test_a_template_of_the_encoder_replaces_that_of_the_tokenizer():
    """And options of the template reach it."""
    template = "{{ messages[0]['content'] }}{{ mark }}"
    encoder = PromptEncoder(tiny.tokenizer(), {"mark": "="}, template)
    assert tiny.encoder().encode(CHAT) == tiny.encoder().encode("ab:=")
    assert encoder.encode(CHAT) == encoder.encode("ab=")


def test_prompts_and_answers_are_counted():
    encoder = tiny.encoder()
    answer = encoder.encode_answer("cd")
    assert encoder.count_tokens([{"prompt": "ab="}, {"prompt": CHAT}], [answer, []]) == 3 + 4 + 2
    assert encoder.decode([[*answer, 1]]) == ["cd"]
