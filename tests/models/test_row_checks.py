"""Rows that a model cannot read as a whole, or whose gold answer it cannot write, are named before training."""

from __future__ import annotations

from typing import Any

import pytest

import tests.support.tiny as tiny
from rld.models.prompting import PromptEncoder
from rld.models.row_checks import check_prompts, check_rows
from tests.support.fleet import FLEET, expected_rows, rows


def kinds(*checked: dict[str, Any], encoder: PromptEncoder | None = None, **options: Any) -> list[tuple[str, Any]]:
    findings = check_rows(encoder or tiny.encoder(), checked, **{"max_new_tokens": 4, **options})
    return [(finding.kind, finding.rows) for finding in findings]


def row(prompt: Any = "ab=", answer: str = "ba", **columns: Any) -> dict[str, Any]:
    return {"prompt": prompt, "answer": answer, **columns}


@pytest.mark.parametrize("name", FLEET)
def test_rows_of_real_shaped_tokenizers_have_no_problem(name):
    member = FLEET[name]
    encoder = PromptEncoder(member.tokenizer(), member.chat_options, model_ends=[1])
    for learns in (False, True):
        options = {"learns_answers": learns, "context_length": 512, "verify": None}
        findings = check_rows(encoder, rows(member), max_new_tokens=64, **options)
        others = [f for f in findings if not (f.kind == "answer cannot be written" and "nfkc" in member.traits)]
        assert [finding.described() for finding in others] == []
    texts = [r["answer"] for r in rows(member)]
    assert encoder.encode_rows([r["prompt"] for r in rows(member)], texts) == [
        (prompt_ids, completion_ids[:-1]) for prompt_ids, completion_ids in expected_rows(member)
    ]


def test_each_problem_is_named_with_its_rows():
    chat = [{"role": "system", "content": ""}, {"role": "user", "content": " "}]
    assert kinds(row(), row(" "), row(chat)) == [("no question", (1, 2))]
    assert kinds(row(), row(answer=""), row(answer="", entry="{}")) == [("no answer", (1, 2))]
    assert kinds(row(answer=""), verify=lambda rows, texts: [False] * len(texts)) == []
    assert kinds(row(answer=""), row(answer="", entry="{}"), learns_answers=True) == [("no answer", (0, 1))]
    assert kinds(row("a\ud800"), row(answer="\udc00")) == [("no text", (0, 1))]
    assert kinds(row("az="), row()) == [("unknown characters", (0,))]
    assert kinds(row(answer="abcde"), row(answer="abcd")) == [("answer too long", (0,))]
    assert kinds(row(answer="abcd"), row(answer="abc"), learns_answers=True) == [("answer too long", (0,))]
    assert kinds(row(answer="bz"), row()) == [("answer cannot be written", (0,))]
    assert kinds(row(), row("aaaaa="), context_length=8) == [("prompt too long", (1,))]
    assert kinds(row(), row("aaaaa="), context_length=8, learns_answers=True) == [("prompt too long", (1,))]
    assert kinds(row("aaaa="), context_length=8, learns_answers=True) == [], "the gold answer is short enough"


def test_a_verifier_that_accepts_what_can_be_written_settles_doubts():
    """A gold answer may be a whole solution, of which the verifier reads the result alone."""
    upper = row(answer="B"), row(answer="cdefg")

    def accepts(rows: Any, texts: Any) -> list[bool]:
        return [text == "cdef" for text in texts]

    assert kinds(*upper, verify=accepts) == [("answer cannot be written", (0,))]
    result_behind = row(answer="bbbbcdef"), row(answer="bbbbcde")
    assert kinds(*result_behind, verify=accepts) == [("answer too long", (1,))], "a model may write the result alone"
    assert kinds(*upper, verify=accepts, learns_answers=True) == [
        ("answer cannot be written", (0,)),
        ("answer too long", (1,)),
    ]


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}=", "dropped by the template"),
        ("{{ messages[0]['content'] }}=", "dropped by the template"),
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}",
            "refused by the template",
        ),
    ],
)
def test_messages_that_the_template_drops_or_refuses(template, kind):
    encoder = PromptEncoder(tiny.tokenizer(), chat_template=template)
    chat = [{"role": "system", "content": "cd"}, {"role": "user", "content": "ab"}]
    assert kinds(row(chat), encoder=encoder) == [(kind, (0,))]
    assert [f.kind for f in check_prompts(encoder, [row(chat)], max_new_tokens=4)] == [kind]


def test_a_finding_names_the_first_rows_by_their_labels():
    findings = check_rows(tiny.encoder(), [row(answer="abcdef")] * 8 + [row()], max_new_tokens=4)
    described = findings[0].described([f"data.jsonl:{i}" for i in range(1, 10)])
    assert described.startswith("8 of 9 rows (data.jsonl:1, data.jsonl:2, ")
    assert "data.jsonl:6" not in described
    assert "data.jsonl:1 has the answer 'abcdef', of 7 tokens with its end, and 4 are allowed" in described
    assert not findings[0].hits_all
