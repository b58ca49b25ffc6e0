"""Requests that wait for the model of a teacher server: requests of the same kind are run in one batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import HTTPException, Request

from rld.models.logprob_source import ScoredSequence, TopKLogprobs
from rld.teachers.local import LocalLogprobs
from rld.types import Answer

_BATCH_DELAY = 0.002
"""Seconds that the first request of a batch waits for others."""


@dataclass(frozen=True)
class ScoreTask:
    """Scoring sequences; equal tasks can be done in one batch."""

    top_k: int
    temperature: float

    def __call__(self, source: LocalLogprobs, sequences: Sequence[ScoredSequence]) -> list[TopKLogprobs]:
        return source.score(sequences, self.temperature, self.top_k)


@dataclass(frozen=True)
class GenerateTask:
    """Answering prompts; equal tasks can be done in one batch."""

    max_new_tokens: int
    ends: tuple[int, ...]

    def __call__(self, source: LocalLogprobs, prompts: Sequence[list[int]]) -> list[Answer]:
        return source.generate(prompts, self.max_new_tokens, self.ends)


@dataclass(eq=False)
class _Job:
    """One request."""

    task: ScoreTask | GenerateTask
    items: Sequence[Any]
    num_tokens: int
    is_abandoned: Callable[[], Awaitable[bool]]
    """Tells whether the client has disconnected."""
    result: asyncio.Future[list[Any]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, error: Exception) -> None:
        """Raise `error` where the result is awaited, unless that was cancelled."""
        if not self.result.done():
            self.result.set_exception(error)


class TaskQueue:
    """Requests that wait for the model.

    Args:
        source: The model.
        max_waiting: Tokens that may wait.

    Attributes:
        num_batches, num_tokens, seconds: What the model has done so far, and how long it took.
    """

    def __init__(self, source: LocalLogprobs, max_waiting: int) -> None:
        self.source, self.max_waiting = source, max_waiting
        self.num_batches, self.num_tokens, self.seconds = 0, 0, 0.0
        self._jobs: list[_Job] = []
        self._has_jobs = asyncio.Event()

    @property
    def num_waiting(self) -> int:
        """Tokens that wait."""
        return sum(job.num_tokens for job in self._jobs)

    async def run(
        self, task: ScoreTask | GenerateTask, items: Sequence[Any], *, num_tokens: int, request: Request
    ) -> Any:
        """Return the result of a task on items of `num_tokens` tokens together, one entry per item.

        Raises:
            HTTPException: 503, too much is waiting already; 499, the client has disconnected.
        """
        if self._jobs and self.num_waiting + num_tokens > self.max_waiting:
            raise HTTPException(503, "too much is waiting for the model; try again later", {"Retry-After": "1"})
        job = _Job(task, items, num_tokens, request.is_disconnected)
        self._jobs.append(job)
        self._has_jobs.set()
        return await job.result

    async def work(self) -> None:
        """Do what is waiting, until cancelled."""
        while True:
            await self._has_jobs.wait()
            await asyncio.sleep(_BATCH_DELAY)
            await self._drop_abandoned()
            if self._jobs:
                await self._do(self._next_batch())

    async def _do(self, jobs: Sequence[_Job]) -> None:
        start = time.monotonic()
        items = [item for job in jobs for item in job.items]
        try:
            results: list[Any] = await asyncio.to_thread(jobs[0].task, self.source, items)
        except Exception as error:  # these requests raise it; the next batch may succeed
            for job in jobs:
                job.fail(error)
            return
        self.num_batches, self.seconds = self.num_batches + 1, self.seconds + time.monotonic() - start
        for job in jobs:
            self.num_tokens += job.num_tokens
            if not job.result.done():
                job.result.set_result(results[: len(job.items)])
            results = results[len(job.items) :]

    async def _drop_abandoned(self) -> None:
        """Drop the requests of clients that have disconnected."""
        for job in list(self._jobs):
            if job.result.done() or await job.is_abandoned():
                self._jobs.remove(job)
                job.fail(client_disconnected())
        self._update_event()

    def _next_batch(self) -> list[_Job]:
        """Take the oldest request off the queue, and others with the same task that fit into its batch."""
        batch, num_tokens = self._jobs[:1], self._jobs[0].num_tokens
        for job in self._jobs[1:]:
            if job.task == batch[0].task and num_tokens + job.num_tokens <= self.source.batch:
                batch.append(job)
                num_tokens += job.num_tokens
        self._jobs = [job for job in self._jobs if job not in batch]
        self._update_event()
        return batch

    def _update_event(self) -> None:
        if not self._jobs:
            self._has_jobs.clear()


def client_disconnected() -> HTTPException:
    """Return the error of a request whose client no longer waits for the answer."""
    return HTTPException(499, "the client has disconnected")
