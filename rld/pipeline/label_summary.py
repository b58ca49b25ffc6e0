"""The labels of a recipe's skills as models spell them, which `rld check` shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rld.data.skill_rows import SkillRows
from rld.recipe.schema import Recipe
from rld.utils.label_words import begins_another

_END_OF_PROMPT = 10
"""Characters of a prompt in front of the words of a label."""


class LabelSummary(NamedTuple):
    """A label of a skill.

    Attributes:
        skill: The skill.
        label: Its name in the file.
        words: The words that say it.
        synonyms: Further words, which teachers are asked for.
        num_rows: Rows that have it.
        tokens: How models spell the words behind a prompt, by the name of the first model that spells them so.
        border: The end of a prompt with the words, if it is text and has no white space in front of them; otherwise "".
    """

    skill: str
    label: str
    words: str
    synonyms: Sequence[str]
    num_rows: int
    tokens: Mapping[str, list[str]]
    border: str


def label_summaries(
    recipe: Recipe, sources: Mapping[str, SkillRows], encoders: Mapping[str, Any]
) -> list[LabelSummary]:
    """Return the labels of all skills of labelled rows.

    Args:
        recipe: The recipe.
        sources: The rows of each skill.
        encoders: A `PromptEncoder` for each model that reads rows, by name; none where the libraries were not asked.
    """
    summaries = []
    for skill, labels in recipe.labels.items():
        rows = [row for _, row in sources[skill].examples()]
        answers = [row["answer"] for row in rows]
        for (label, words), synonyms in zip(labels.items(), recipe.label_words[skill].synonyms, strict=True):
            tokens = {name: _spelt(encoder, rows[0]["prompt"], words) for name, encoder in encoders.items()}
            border = _border(rows[0]["prompt"], words)
            summaries.append(LabelSummary(skill, label, words, synonyms, answers.count(words), tokens, border))
    return summaries


def _border(prompt: Any, words: str) -> str:
    is_joined = isinstance(prompt, str) and not prompt[-1:].isspace() and not words[:1].isspace()
    return prompt[-_END_OF_PROMPT:] + words if is_joined else ""


def _spelt(encoder: Any, prompt: Any, words: str) -> list[str]:
    return [str(text) for text in encoder.decode([[token] for token in encoder.encode_with(prompt, words)[1]])]


def model_encoders(recipe: Recipe, models: Any) -> dict[str, Any]:
    """Return an encoder for each model of the stages, by name; of models with the same tokenizer that of the first.

    Args:
        recipe: The recipe.
        models: A `pipeline.model_loading.ModelLoader`.
    """
    encoders: dict[str, Any] = {}
    for stage in recipe.stages:
        names = [(stage.origin, None), *((reader.model, reader.chat_template) for reader in stage.readers())]
        for name, chat_template in names:
            encoder = models.encoder(name, chat_template)[0]
            vocabulary = encoder.tokenizer.get_vocab()
            if all(other.tokenizer.get_vocab() != vocabulary for other in encoders.values()):
                encoders[recipe.origin(name)] = encoder
    return encoders


def label_notes(summaries: Sequence[LabelSummary]) -> Iterator[str]:
    """Yield what a user may not expect of labels, one sentence each; nothing where no model is known."""
    if not any(summary.tokens for summary in summaries):
        return
    for skill in dict.fromkeys(summary.skill for summary in summaries):
        labels = [summary for summary in summaries if summary.skill == skill]
        pair = begins_another([label.words for label in labels])
        if pair is not None:
            yield f"skill '{skill}': {pair[1]!r} begins with {pair[0]!r}, so the end of an answer is part of each label"
        texts = [text for label in labels for text in (label.words, *label.synonyms)]
        bare = [text for text in texts if not text[0].isspace()]
        if 0 < len(bare) < len(texts):
            yield f"skill '{skill}': the words {bare[0]!r} have no space in front, and others that say labels have one"
        elif bare and labels[0].border:
            border = labels[0].border
            fix = "begin the words of all labels with a space"
            yield f"skill '{skill}': no white space stands between prompt and label, as in {border!r}; {fix}"
        for model in labels[0].tokens:
            firsts: dict[str, list[str]] = {}
            for label in labels:
                firsts.setdefault(label.tokens[model][0], []).append(label.label)
            for token, names in firsts.items():
                if len(names) > 1:
                    listed = ", ".join(names)
                    yield f"skill '{skill}': for {model} the labels {listed} begin with the same token, {token!r}"
