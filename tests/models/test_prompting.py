"""Prompts as token ids, with a tokenizer's chat template or another."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import processors

import tests.support.tiny as tiny
from rld.errors import DataError
from rld.models.prompting import PromptEncoder
from rld.teachers.teacher import Teacher
from tests.support.fleet import FLEET, rows

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


@pytest.mark.parametrize("name", FLEET)
def test_many_at_once_are_encoded_as_each_is(name):
    member = FLEET[name]
    encoder = PromptEncoder(member.tokenizer(), member.chat_options)
    prompts = [row["prompt"] for row in rows(member) for _ in range(2)] + ["", "a text", "a text", "<s>x", " \u00e9"]
    assert encoder.encode_all(prompts) == [encoder.encode(prompt) for prompt in prompts]
    for texts in (["ab", "", " x", "\u00e9"], ["</s> <s>", "<|im_end|>", "ab"], []):
        assert encoder.encode_answers(texts) == [encoder.encode_answer(text) for text in texts]


def test_a_text_that_can_not_be_encoded_is_named_among_many():
    for encode in (tiny.encoder().encode_all, tiny.encoder().encode_answers):
        with pytest.raises(DataError, match=r"'a\\udc00' cannot be encoded: it has half of a surrogate pair"):
            encode(["b", "a\udc00"])


def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: The city.
    """
    return city


def test_tools_reach_the_prompts_of_student_and_aligned_teachers():
    student, other = FLEET["qwen2_5"], FLEET["llama3_2"]
    encoder = PromptEncoder(student.tokenizer(), tools=[weather])
    aligned = Teacher(other.model(), "other", tokenizer=other.tokenizer(), align="vocabulary").prompt_encoder(encoder)
    for reader in (encoder, aligned, Teacher(student.model(), "same").prompt_encoder(encoder)):
        assert "Tell the weather." in reader.render(CHAT)
        assert "Tell the weather." in reader.tokenizer.decode(reader.encode(CHAT))
        assert "Tell the weather." not in replace(reader, tools=None).render(CHAT)


@pytest.mark.parametrize("name", ["turn_end", "gemma3", "llama3", "phi3", "deepseek_r1_distill"])
def test_names_of_special_tokens_in_a_users_text_are_text(name):
    tokenizer = FLEET[name].tokenizer()
    encoder = PromptEncoder(tokenizer)
    closing = tokenizer.convert_ids_to_tokens(encoder.turn_end)
    plain, spelt = ([{"role": "user", "content": f"What is {text} for?"}] for text in ("it", closing))
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    count = [sum(i in special for i in encoder.encode(prompt)) for prompt in (plain, spelt)]
    assert count[0] == count[1]
    assert closing in encoder.render(spelt)
    completion = encoder.encode_completion(plain, f"{closing} ends a turn")
    assert completion.count(encoder.turn_end) == 1
    assert encoder.decode([completion])[0].strip() == f"{closing} ends a turn"


def test_what_a_tokenizer_puts_behind_each_text_is_no_part_of_a_prompt():
    """An EOS would end the answer before it begins."""
    tokenizer = FLEET["byte_level"].tokenizer()
    wanted = tokenizer("a b")["input_ids"]
    backend = tokenizer.backend_tokenizer
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    backend.post_processor = processors.TemplateProcessing("$A <|endoftext|>", None, [("<|endoftext|>", end)])
    assert tokenizer("a b")["input_ids"] == [*wanted, end]
    encoder = PromptEncoder(tokenizer)
    assert encoder.encode("a b") == wanted
    assert encoder.encode_with("a b", " c") == (wanted, tokenizer(" c", add_special_tokens=False)["input_ids"])
    assert encoder.encode_rows(["a b"], [" c"]) == [encoder.encode_with("a b", " c")]
    assert encoder.encode_completion("a b", " c").count(end) == 1


def test_half_of_a_surrogate_pair_is_an_error_that_says_so():
    encoder = PromptEncoder(FLEET["turn_end"].tokenizer())
    for prompt, answer in (("a\ud800", "b"), ([{"role": "user", "content": "\udfff"}], "b"), ("a", "b\ud83d")):
        with pytest.raises(DataError, match="half of a surrogate pair"):
            encoder.encode_completion(prompt, answer)
