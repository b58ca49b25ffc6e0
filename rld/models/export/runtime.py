"""What a runtime does with an exported model, and the process of its own that it runs in."""

from __future__ import annotations

import importlib
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import psutil

from rld.errors import ModelError
from rld.utils.interrupts import end_with_parent
from rld.utils.messages import one_line

TOP_K = 128
"""Likeliest tokens whose log-probabilities a runtime hands over: those of 50,000 take llama.cpp a second per token."""


class NextToken(NamedTuple):
    """What a runtime says of the token behind others, in nats.

    Attributes:
        logprob: The log-probability of the token that does follow.
        ids: The `TOP_K` likeliest tokens, or all of a smaller vocabulary, best first.
        logprobs: Their log-probabilities.
    """

    logprob: float
    ids: list[int]
    logprobs: list[float]


class Runtime(Protocol):
    """An exported model, loaded in its runtime."""

    def score(self, ids: list[int], num_scored: int) -> list[NextToken]:
        """Return what the model says of each of the last `num_scored` of some tokens, given those before it."""

    def generate(self, ids: list[int], max_new_tokens: int, ends: Collection[int]) -> list[int]:
        """Continue a prompt greedily, up to one of `ends`, which is returned too."""

    def seconds_per_token(self, ids: list[int], num_tokens: int) -> float:
        """Return the mean time of a token of `num_tokens` that are generated behind a prompt, whatever they are."""

    def render(self, question: str) -> str | None:
        """Return the prompt for a user's message by the chat template in the exported files; None as of `encode`."""

    def encode(self, text: str) -> list[int] | None:
        """Return the tokens of a text by the tokenizer in the exported files; None if the runtime cannot read it."""


class LoadCost(NamedTuple):
    """What it took to load a model.

    Attributes:
        seconds: Time.
        memory: Bytes by which the memory of the process has grown, weights that are mapped from a file included.
    """

    seconds: float
    memory: int


_runtime: Any = None
"""The runtime of this process, if it is one that `RuntimeProcess` has started."""


_NUM_TIMINGS = 5
"""Measurements of the time of a token, of which the least counts: other processes only ever add to it."""


def _load(kind: str, folder: Path, context: int, threads: int) -> LoadCost:
    global _runtime
    module = importlib.import_module(f"rld.models.export.{kind}")
    module.import_runtime()
    memory, started = psutil.Process().memory_info().rss, time.perf_counter()
    _runtime = module.open_runtime(folder, context, threads)
    _runtime.generate([0], 1, ())  # weights that are mapped from a file are read when they are first used
    return LoadCost(time.perf_counter() - started, psutil.Process().memory_info().rss - memory)


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_runtime, method)(*arguments)


class RuntimeProcess:
    """A `Runtime` in a process of its own, which can be measured alone and may crash alone; use it with `with`.

    Args:
        kind: The format, the name of a module of this package.
        folder: What its `write` has filled.
        context: Tokens of the longest sequence.
        threads: Threads that the runtime computes with.

    Raises:
        ModelError: the runtime refuses the files, or its process has crashed.
    """

    def __init__(self, kind: str, folder: Path, *, context: int, threads: int) -> None:
        self._name = f"{kind} file in {folder}"
        self.context = context
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent)
        try:
            self.load_cost: LoadCost = self._ask(_load, kind, folder, context, threads)
        except BaseException:
            self._pool.shutdown()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def score(self, ids: Sequence[int], num_scored: int) -> list[NextToken]:
        """See `Runtime.score`."""
        scores: list[NextToken] = self._ask(_call, "score", [*ids], num_scored)
        return scores

    def generate(self, ids: Sequence[int], max_new_tokens: int, ends: Collection[int]) -> list[int]:
        """See `Runtime.generate`."""
        tokens: list[int] = self._ask(_call, "generate", [*ids], max_new_tokens, [*ends])
        return tokens

    def seconds_per_token(self, ids: Sequence[int], num_tokens: int) -> float:
        """See `Runtime.seconds_per_token`; the least of several measurements."""
        return min(float(self._ask(_call, "seconds_per_token", [*ids], num_tokens)) for _ in range(_NUM_TIMINGS))

    def encode(self, text: str) -> list[int] | None:
        """See `Runtime.encode`."""
        ids: list[int] | None = self._ask(_call, "encode", text)
        return ids

    def render(self, question: str) -> str | None:
        """See `Runtime.render`."""
        prompt: str | None = self._ask(_call, "render", question)
        return prompt

    def _ask(self, function: Any, *arguments: Any) -> Any:
        try:
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise ModelError(f"the runtime has crashed on the {self._name}") from error
        except RuntimeError as error:  # by which runtimes refuse files and sequences
            raise ModelError(f"the runtime refuses the {self._name}: {one_line(error)}") from error
