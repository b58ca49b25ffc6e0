"""Let models answer prompts of the user: one, or a chat in the terminal, and two models side by side."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from rld.errors import ModelError, UsageError
from rld.evaluation.predictors.label import label_distributions
from rld.models.decoding import require_no_nan
from rld.models.generation import complete, encoder_of, sample
from rld.models.prompting import PromptEncoder
from rld.models.self_check import context_length
from rld.pipeline.model_sources import StoredModel
from rld.recipe.prompts import Prompts
from rld.reporting.file_records import FileRecord
from rld.rollout.label_completions import label_tokens
from rld.types import Answer
from rld.utils.console import SafeConsole
from rld.utils.control_characters import visible
from rld.utils.files import read_json
from rld.utils.messages import one_line, tell
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


class QuestionFormat(NamedTuple):
    """How a question is put to a model, and what answers it.

    Attributes:
        prompts: How it is turned into a prompt.
        labels: The words of each label by its name, if one of them is the answer; empty: the model writes it.
    """

    prompts: Prompts
    labels: Mapping[str, str]


class SkillQuestions(FileRecord):
    """What a skill in `recipe.json` says of its questions."""

    prompts: Prompts | None = None
    labels: dict[str, str] = {}


class RecipeQuestions(FileRecord):
    """What `recipe.json` says of its questions."""

    prompts: Prompts = Prompts()
    skills: dict[str, SkillQuestions] = {}

    def question_format(self) -> QuestionFormat:
        """Return the format of the run's questions.

        Prompts are those of its skill, if it has one alone, or else those that skills share. It has the labels that all
        of its skills have.
        """
        skills = [*self.skills.values()]
        prompts = skills[0].prompts if len(skills) == 1 else None
        have_same = all(skill.labels == skills[0].labels for skill in skills)
        return QuestionFormat(prompts or self.prompts, skills[0].labels if skills and have_same else {})


@dataclass(frozen=True)
class Speaker:
    """A model that answers, and what was said to it.

    Attributes:
        name: As the user has named it.
        model: The model, on its device.
        encoder: The encoder of its prompts.
        question_format: How questions are put to it.
        messages: Of a chat, those up to now.
    """

    name: str
    model: PreTrainedModel
    encoder: PromptEncoder
    question_format: QuestionFormat
    messages: list[dict[str, str]] = field(default_factory=list)

    def answer(self, question: str, writing: Writing) -> Answer:
        """Return the answer to a question, and note both if it is written in a chat.

        Where labels answer, it has a line for each.

        Raises:
            ModelError: the prompt with an answer is longer than the model's context.
            NonFiniteError: the model's logits are NaN.
        """
        prompts, labels = self.question_format
        text = filled(prompts.template, {"question": question})
        if not self.messages and prompts.system is not None:
            self.messages.append({"role": "system", "content": prompts.system})
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = text if prompts.style == "plain" else messages
        if labels:
            return Answer(self._label_lines(prompt), is_complete=True)
        answer = self._write(prompt, writing)
        if prompts.style == "chat":
            self.messages[:] = [*messages, {"role": "assistant", "content": answer.text}]
        return answer

    def _label_lines(self, prompt: Any) -> str:
        """Return a line for each label, the likeliest first: its probability, its words, and its name if another."""
        labels = self.question_format.labels
        words, size = [*labels.values()], len(self.encoder.encode(prompt))
        longest = max(len(label_tokens(self.encoder, prompt, text, words)) for text in words)
        self._require_context(size + longest, f"the prompt has {size}, a label up to {longest}; shorten the prompt")
        ((probabilities, _),) = label_distributions(self.model, self.encoder, [prompt], [words])
        require_no_nan(self.model, torch.tensor(probabilities).isnan().any(), self.name)
        lines = []
        for probability, name in sorted(zip(probabilities, labels, strict=True), key=lambda pair: -pair[0]):
            text = one_line(labels[name])
            lines.append(f"{probability:.3f}  {text}" + ("" if one_line(name) == text else f" ({one_line(name)})"))
        return "\n".join(lines)

    def _require_context(self, num_tokens: int, counts: str) -> None:
        limit = context_length(self.model.config)
        if limit is not None and num_tokens > limit:
            raise ModelError(f"{self.name} reads at most {limit} tokens: {counts}")

    def _write(self, prompt: Any, writing: Writing) -> Answer:
        ids, ends = self.encoder.encode(prompt), self.encoder.ends(not isinstance(prompt, str))
        tokenizer, size = self.encoder.tokenizer, writing.max_new_tokens
        counts = f"the prompt has {len(ids)}, an answer up to {size}; lower --max-new-tokens, or shorten the prompt"
        self._require_context(len(ids) + size, counts)
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
        CheckpointError: the resolved recipe of a run is damaged.
        ModelError: a model cannot be loaded, or a prompt does not fit into its context.
        UsageError: there is no prompt.
    """
    transformers.utils.logging.disable_progress_bar()
    formats = _question_formats([(name, recipe) for name, _, recipe in places])
    speakers = [_load(name, place, formats[i]) for i, (name, place, _) in enumerate(places)]
    if writing.temperature and any(speaker.question_format.labels for speaker in speakers):
        tell("labels are not sampled, so --temperature does nothing to them")
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


def _question_formats(recipes: Sequence[tuple[str, Path | None]]) -> list[QuestionFormat | None]:
    """Return how questions are put to models, and tell what the user may not expect of it.

    Of two models of which one is of a run, both have its format, because only answers to the same prompt can be
    compared.

    Args:
        recipes: Of each model its name, and the recipe of its run, if it is of one.

    Returns:
        The format for each model; None: that of its tokenizer.

    Raises:
        CheckpointError: a resolved recipe is damaged.
    """
    formats = [None if recipe is None else _question_format(name, recipe) for name, recipe in recipes]
    run_formats, names = [item for item in formats if item is not None], [name for name, _ in recipes]
    if len(formats) == 2 and len(run_formats) == 1:
        run, other = names if formats[0] is not None else names[::-1]
        labels = ", and is asked for its labels" if run_formats[0].labels else ""
        tell(f"{other} reads the prompts of {run}, too{labels}")
        return [*run_formats, *run_formats]
    if len(run_formats) == 2 and run_formats[0] != run_formats[1]:
        tell(f"{names[0]} and {names[1]} are asked differently, each as the recipe of its run has it")
    return formats


def _question_format(name: str, recipe: Path) -> QuestionFormat:
    """Return how the recipe of a run has its questions, and tell where only a part of its skills has labels."""
    questions = RecipeQuestions.parse(recipe, read_json(recipe))
    question_format = questions.question_format()
    if not question_format.labels and any(skill.labels for skill in questions.skills.values()):
        tell(f"{name}: answers are written, because its skills do not all have the same labels")
    return question_format


def _load(name: str, place: str, question_format: QuestionFormat | None) -> Speaker:
    """Return a model to which questions are put in a format; None: as a chat if its tokenizer has a template."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = StoredModel(place, {}, is_here=True).load({}, "auto")
    if question_format is None:
        question_format = QuestionFormat(Prompts(style="plain" if tokenizer.chat_template is None else "chat"), {})
    prompts = question_format.prompts
    encoder = encoder_of(model, tokenizer, prompts.chat_template_kwargs, prompts.strip_thinking)
    return Speaker(name, model.to(device), encoder, question_format)  # type: ignore[arg-type]  # of a decorated method


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
