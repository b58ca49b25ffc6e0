"""Let models answer prompts of the user: one, or a chat in the terminal, and two models side by side."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from rld.errors import CheckpointError, ModelError, UsageError
from rld.models.generation import complete, encoder_of, sample
from rld.models.prompting import PromptEncoder
from rld.models.self_check import context_length
from rld.pipeline.model_sources import StoredModel
from rld.recipe.prompts import Prompts
from rld.types import Answer
from rld.utils.console import SafeConsole
from rld.utils.control_characters import visible
from rld.utils.files import read_json
from rld.utils.messages import tell
from rld.utils.templates import filled


@dataclass(frozen=True)
class Writing:
    """How answers are written.

    Attributes:
        max_new_tokens: The most tokens of an answer.
        temperature: Divides the logits; 0: the likeliest token is taken.
    """

    max_new_tokens: int
    temperature: float


@dataclass(frozen=True)
class Speaker:
    """A model that answers, and what was said to it.

    Attributes:
        name: As the user has named it.
        model: The model, on its device.
        encoder: The encoder of its prompts.
        prompts: How a question is turned into a prompt.
        messages: Of a chat, those up to now.
    """

    name: str
    model: PreTrainedModel
    encoder: PromptEncoder
    prompts: Prompts
    messages: list[dict[str, str]] = field(default_factory=list)

    def answer(self, question: str, writing: Writing) -> Answer:
        """Return the answer to a question, and note both if this is a chat.

        Raises:
            ModelError: the prompt with an answer is longer than the model's context.
            NonFiniteError: the model's logits are NaN.
        """
        text = filled(self.prompts.template, {"question": question})
        if self.prompts.style == "plain":
            return self._write(text, writing)
        if self.prompts.system is not None and not self.messages:
            self.messages.append({"role": "system", "content": self.prompts.system})
        self.messages.append({"role": "user", "content": text})
        answer = self._write(self.messages, writing)
        self.messages.append({"role": "assistant", "content": answer.text})
        return answer

    def _write(self, prompt: Any, writing: Writing) -> Answer:
        ids, ends = self.encoder.encode(prompt), self.encoder.ends(not isinstance(prompt, str))
        tokenizer, size, limit = self.encoder.tokenizer, writing.max_new_tokens, context_length(self.model.config)
        if limit is not None and len(ids) + size > limit:
            text = f"the prompt has {len(ids)}, an answer up to {size}; lower --max-new-tokens, or shorten the prompt"
            raise ModelError(f"{self.name} reads at most {limit} tokens: {text}")
        if not writing.temperature:
            decode = self.encoder.decode
            return complete(self.model, tokenizer, [ids], ends=ends, max_new_tokens=size, decode=decode)[0]
        seed, heat = random.randrange(1 << 32), writing.temperature
        (tokens,) = sample(self.model, tokenizer, [ids], ends=ends, max_new_tokens=size, seed=seed, temperature=heat)
        is_complete = tokens[-1] in ends
        return Answer(self.encoder.decode([tokens[:-1] if is_complete else tokens])[0], is_complete)


def generate(places: Sequence[tuple[str, str, Path | None]], prompt: str | None, writing: Writing) -> int:
    """Print the answers of models to a prompt, to what stands on the standard input, or to each line of a terminal.

    Args:
        places: Of each model its name, its folder or hub id, and the recipe of its run, if it is of one.
        prompt: The prompt. None: the standard input has it.
        writing: How answers are written.

    Returns:
        The exit code.

    Raises:
        ModelError: a model cannot be loaded, or a prompt does not fit into its context.
        UsageError: there is no prompt.
    """
    speakers = [_load(*place) for place in places]
    for question in _questions() if prompt is None else [prompt]:
        answers = [speaker.answer(question, writing) for speaker in speakers]
        if len(speakers) == 1:
            print(visible(answers[0].text), flush=True)
        else:
            table = Table()
            for speaker in speakers:
                table.add_column(Text(speaker.name), overflow="fold")
            table.add_row(*(Text(answer.text) for answer in answers))
            SafeConsole(highlight=False).print(table)
        for speaker, answer in zip(speakers, answers, strict=True):
            if not answer.is_complete:
                size = writing.max_new_tokens
                tell(f"{speaker.name}: the answer was cut after {size} tokens; --max-new-tokens N allows more")
    return 0


def _load(name: str, place: str, recipe: Path | None) -> Speaker:
    """Return a model with the prompts of its run, or those of its tokenizer."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = StoredModel(place, {}, is_here=True).load({}, "auto")
    default = Prompts(style="plain" if tokenizer.chat_template is None else "chat")
    prompts = default if recipe is None else _prompts(recipe)
    encoder = encoder_of(model, tokenizer, prompts.chat_template_kwargs, prompts.strip_thinking)
    return Speaker(name, model.to(device), encoder, prompts)  # type: ignore[arg-type]  # of a decorated method


def _prompts(recipe: Path) -> Prompts:
    """Return the prompts of a run: those of its skill, if it has one alone, or else those that skills share.

    Raises:
        CheckpointError: the resolved recipe is damaged.
    """
    tree = read_json(recipe)
    skills = [*tree.get("skills", {}).values()]
    skill_prompts = skills[0].get("prompts") if len(skills) == 1 else None
    try:
        return Prompts.model_validate(skill_prompts or tree.get("prompts") or {})
    except ValidationError as error:
        raise CheckpointError(f"{recipe} is damaged: its prompts are none") from error


def _questions() -> Iterator[str]:
    """Yield the lines of a terminal as they are written, or all of another standard input as one question.

    Raises:
        UsageError: it is empty, or no text in UTF-8.
    """
    if sys.stdin.isatty():
        tell("write a line and press Enter; Ctrl-D ends")
        while line := _line():
            if line.strip():
                yield line.rstrip("\n")
        return
    try:
        text = sys.stdin.read()
    except UnicodeError as error:
        raise UsageError("the standard input is not in UTF-8") from error
    if not text.strip():
        raise UsageError("the standard input is empty; give a prompt behind the model, or write one into it")
    yield text.rstrip("\n")


def _line() -> str:
    print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()
