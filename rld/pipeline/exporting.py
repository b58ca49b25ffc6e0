"""Export a model: write it, verify in its runtime that it is the same model, and measure it there."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import ModelError
from rld.evaluation.held_out import Evaluation, HeldOutEvaluator
from rld.models.chat_template import RefusedConversation
from rld.models.export.exported_model import ExportedModel
from rld.models.export.runtime import RuntimeProcess
from rld.models.export.texts import PROSE, SPELLINGS
from rld.models.export.verification import MIN_TOKENS, verify
from rld.models.logprob_source import ScoredSequence
from rld.models.prompting import PromptEncoder
from rld.models.self_check import context_length
from rld.recipe.exports import FORMATS
from rld.reporting.exports import ExportRecord
from rld.types import Row
from rld.utils import files

_QUESTION = "What is 7 + 5?"
"""A user's message by which chat templates are compared."""

_LONGEST = 512
"""Tokens of the longest sequence that is compared."""

_CONTEXT = 1024
"""Tokens for which a runtime has memory when it is measured, where the model's context and the rows allow it."""

_TIMED = 16, 8
"""Tokens of the prompt, and tokens behind it, by which the time of a token is measured."""


class ExportPlan(NamedTuple):
    """What is exported, and how it is verified.

    Attributes:
        model: The model.
        encoder: The encoder of its prompts and answers.
        format: A name in `FORMATS`.
        precision: A precision of that format.
        rows: Held-out rows on whose gold answers it is verified; none: on `PROSE`.
    """

    model: PreTrainedModel
    encoder: PromptEncoder
    format: str
    precision: str
    rows: Sequence[Row]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.encoder.tokenizer

    def require_exportable(self) -> None:
        """Check that the format has all that the model and its tokenizer need.

        Raises:
            ModelError: it has not.
        """
        _module(self.format).require_exportable(self.model, self.tokenizer, self.precision)

    def export(self, folder: Path) -> ExportRecord:
        """Fill a folder with the exported model, verify it, and return how it compares and what it takes.

        Raises:
            ModelError: it cannot be exported, or what was exported is not the model.
        """
        self.require_exportable()
        _module(self.format).write(self.model, self.tokenizer, folder, self.precision)
        texts, sequences = self._sequences()
        context, cores = self._context(sequences), num_cores()
        ids, num_tokens = sequences[0].ids[: min(_TIMED[0], context // 2)], min(_TIMED[1], context // 2 - 1)
        with RuntimeProcess(self.format, folder, context=context, threads=cores) as process:
            verification = verify(self.model, process, sequences)
            verification.require_faithful(FORMATS[self.format].bits[self.precision])
            reads_text, load_cost = self._reads_text(process), process.load_cost
            seconds = {str(cores): process.seconds_per_token(ids, num_tokens)}
        if cores > 1:
            with RuntimeProcess(self.format, folder, context=context, threads=1) as process:
                seconds = {"1": process.seconds_per_token(ids, num_tokens), **seconds}
        return ExportRecord(
            format=self.format,
            precision=self.precision,
            runtime=f"{FORMATS[self.format].runtime} {version(FORMATS[self.format].runtime)}",
            bytes=sum(path.stat().st_size for path in folder.iterdir()),
            load_seconds=load_cost.seconds,
            memory=load_cost.memory,
            context=context,
            milliseconds={threads: 1000 * value for threads, value in seconds.items()},
            texts=texts,
            tokens=verification.num_tokens,
            agreement=verification.agreement,
            divergence=verification.divergence,
            perplexity=verification.perplexity,
            model_perplexity=verification.model_perplexity,
            reads_text=reads_text,
        )

    def score(self, folder: Path, evaluator: HeldOutEvaluator) -> Evaluation:
        """Return the scores of the exported model in a folder on the rows of an evaluator."""
        prompts = self.encoder.encode_all([row["prompt"] for row in evaluator.rows])
        longest = max(map(len, prompts), default=0) + evaluator.settings.max_new_tokens
        answers = self.encoder.encode_answers([row["answer"] for row in evaluator.rows])
        longest = max(longest, *(len(ids) + len(answer) + 1 for ids, answer in zip(prompts, answers, strict=True)), 1)
        context = min(longest, context_length(self.model.config) or longest)
        with RuntimeProcess(self.format, folder, context=context, threads=num_cores()) as process:
            return evaluator.evaluate(ExportedModel(process, self.encoder, self.model.num_parameters()), self.tokenizer)

    def _context(self, sequences: Sequence[ScoredSequence]) -> int:
        length = max(_CONTEXT, *(len(ids) for ids, _ in sequences))
        return min(length, context_length(self.model.config) or length)

    def _sequences(self) -> tuple[str, list[ScoredSequence]]:
        """Return what model and export read, and what that is, in words.

        It is the gold answers of rows; if they are too few tokens also the prompts; if those are too few also `PROSE`.
        """
        most = min(_LONGEST, context_length(self.model.config) or _LONGEST)
        answers, wholes = list[ScoredSequence](), list[ScoredSequence]()
        for row in _in_turns(self.rows):
            if sum(sequence.num_scored for sequence in answers) >= MIN_TOKENS:
                break
            prompt = self.encoder.encode_all([row["prompt"]])[0]
            ids = [*prompt, *self.encoder.encode_completion(row["prompt"], row["answer"])][:most]
            if len(prompt) < len(ids) > 1:
                answers.append(ScoredSequence(ids, len(ids) - max(1, len(prompt))))
                wholes.append(ScoredSequence(ids, len(ids) - 1))
        if sum(sequence.num_scored for sequence in answers) >= MIN_TOKENS:
            return "gold answers of held-out rows", answers
        if sum(sequence.num_scored for sequence in wholes) >= MIN_TOKENS:
            return "held-out rows", wholes
        prose = self.tokenizer(PROSE).input_ids
        pieces = [prose[i : i + most] for i in range(0, len(prose), most)]
        texts = "held-out rows and a page of prose and code" if wholes else "a page of prose and code"
        return texts, [*wholes, *(ScoredSequence(ids, len(ids) - 1) for ids in pieces if len(ids) > 1)]

    def _reads_text(self, process: RuntimeProcess) -> bool:
        """Return whether the runtime has the tokenizer, too.

        Raises:
            ModelError: it has another one.
        """
        for text in map(self._without_unknown, (PROSE, *SPELLINGS)):
            ids = process.encode(text)
            if ids is None:
                return False
            expected = self.tokenizer(text).input_ids
            if ids != expected:
                differing = (i for i, pair in enumerate(zip(ids, expected, strict=False)) if pair[0] != pair[1])
                i = next(differing, min(len(ids), len(expected)))
                raise ModelError(
                    f"the exported tokenizer spells {text[:40]!r} otherwise: from token {i + 1} on it has "
                    f"{ids[i : i + 3]} instead of {expected[i : i + 3]}"
                )
        self._require_template(process)
        return True

    def _without_unknown(self, text: str) -> str:
        """Return a text without the characters that the tokenizer lacks, which each runtime treats in its own way."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None or unknown not in self.tokenizer(text).input_ids:
            return text
        return "".join(character for character in text if unknown not in self.tokenizer(character).input_ids)

    def _require_template(self, process: RuntimeProcess) -> None:
        """Check that the runtime puts a user's message into the same prompt as the chat template of the tokenizer.

        Raises:
            ModelError: it does not.
        """
        if self.tokenizer.chat_template is None:
            return
        start = self.tokenizer.bos_token or ""  # which llama.cpp leaves to its tokenizer
        try:
            expected = PromptEncoder(self.tokenizer).render([{"role": "user", "content": _QUESTION}])
        except RefusedConversation:  # no prompt is like this one
            return
        prompt = process.render(_QUESTION)
        if prompt is not None and prompt.removeprefix(start) != expected.removeprefix(start):
            raise ModelError(f"the exported chat template makes {prompt!r} of a question, and the model's {expected!r}")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, as `files.replace_folder`; where the block ends with an error nothing is left."""
    with files.replace_folder(folder) as draft:
        try:
            yield draft
        except BaseException:
            files.remove_folder(draft)
            raise


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def first_rows(rows: Sequence[Row], most: int) -> list[Row]:
    """Return the first rows of each skill, in their order."""
    counts: dict[str, int] = {}
    selection = []
    for row in rows:
        counts[row["skill"]] = counts.get(row["skill"], 0) + 1
        selection += [row] if counts[row["skill"]] <= most else []
    return selection


def _in_turns(rows: Sequence[Row]) -> list[Row]:
    """Return rows so that those of all skills take turns."""
    by_skill: dict[str, list[Row]] = {}
    for row in rows:
        by_skill.setdefault(row["skill"], []).append(row)
    return [row for row in chain.from_iterable(zip_longest(*by_skill.values())) if row is not None]


def _module(name: str) -> Any:
    return importlib.import_module(f"rld.models.export.{name}")
