"""Answers of one model in the form in which another one would write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rld.models.prompting import PromptEncoder
from rld.types import Answer


def taken_over(
    answers: Sequence[Answer],
    prompts: Sequence[Any],
    *,
    writer: PromptEncoder,
    writer_prompts: Sequence[Any],
    learner: PromptEncoder,
) -> list[Answer]:
    """Return answers with thinking parts as the learner's template has them, without white space around them.

    The template of one may open a thinking part in the prompt where that of the other leaves it to the completion.

    Args:
        answers: The writer's.
        prompts: What the learner reads in front of each.
        writer: The encoder of the model that wrote them.
        writer_prompts: What that one read.
        learner: The encoder of the model that is to learn them.
    """
    if writer.template_thinking is not None:
        triples = zip(answers, prompts, writer_prompts, strict=True)
        answers = [_rewritten(*triple, writer, learner) for triple in triples]
    return [answer._replace(text=answer.text.strip()) for answer in answers]


def _rewritten(
    answer: Answer, prompt: Any, writer_prompt: Any, writer: PromptEncoder, learner: PromptEncoder
) -> Answer:
    writer_markers = writer.template_thinking
    assert writer_markers is not None
    markers = learner.template_thinking or writer_markers
    text = writer_markers.whole(answer.text, writer_markers.opened_by(writer.render(writer_prompt)))
    text = text.replace(writer_markers.opening, markers.opening).replace(writer_markers.closing, markers.closing)
    return answer._replace(text=markers.behind(text, markers.opened_by(learner.render(prompt))))
