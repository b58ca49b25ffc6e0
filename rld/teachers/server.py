"""`rld serve-teacher`: one teacher over HTTP, for students on other machines or in other processes.

`POST /score` takes passages and gives shortlists (`payload.py`), `POST /answer` takes prompts of token ids and gives
greedy answers (JSON), `GET /health` tells what is served, `GET /metrics` counts in Prometheus' text format. One thread
at a time runs the model; what waits for it is scored together, whoever asked.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rld.errors import TeacherError
from rld.models.logprob_source import ScoredSequence, TopKLogprobs
from rld.teachers.http_client import TOKEN, bearer_token
from rld.teachers.local import LocalLogprobs
from rld.teachers.teacher import Teacher
from rld.teachers.wire_format import pack_shortlist, unpack_passages

_MAX_TOKENS = 65_536
"""Of a request: an answer with 64 likeliest tokens takes 17 MB."""

_MAX_BODY = 1 << 20
"""Bytes of a request: four a token, and room to spare."""

_MAX_WAITING = 1 << 20
"""Tokens that wait for the model."""

_MAX_TOP_K = 255

_GATHER = 0.002
"""Seconds that the first of a batch waits for company."""


class _Question(BaseModel):
    prompts: list[list[int]] = Field(min_length=1, max_length=4096)
    max_new_tokens: int = Field(gt=0, le=_MAX_TOKENS)


@dataclass(frozen=True)
class _Score:
    """Work that requests ask for; what is equal can be done together."""

    top_k: int
    temperature: float

    def __call__(self, hosted: LocalLogprobs, passages: Sequence[ScoredSequence]) -> list[TopKLogprobs]:
        return hosted.score(passages, self.temperature, self.top_k)


@dataclass(frozen=True)
class _Answer:
    max_new_tokens: int

    def __call__(self, hosted: LocalLogprobs, prompts: Sequence[list[int]]) -> list[str]:
        return hosted.answer(prompts, self.max_new_tokens)


@dataclass(eq=False)
class _Job:
    """One request's share of the work."""

    work: _Score | _Answer
    items: Sequence[Any]
    size: int
    """Tokens."""
    is_unwanted: Callable[[], Awaitable[bool]]
    """Whether the client has gone."""
    done: asyncio.Future[list[Any]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, error: Exception) -> None:
        """Raise `error` where the result is waited for, unless that was cancelled."""
        if not self.done.done():
            self.done.set_exception(error)


class _Queue:
    """Jobs that wait for the model, at most `limit` tokens of them."""

    def __init__(self, hosted: LocalLogprobs, limit: int) -> None:
        self.hosted, self.limit = hosted, limit
        self.waiting: list[_Job] = []
        self.batches, self.tokens, self.seconds = 0, 0, 0.0
        self._filled = asyncio.Event()

    @property
    def size(self) -> int:
        """Tokens that wait."""
        return sum(job.size for job in self.waiting)

    async def do(self, work: _Score | _Answer, items: Sequence[Any], size: int, request: Request) -> list[Any]:
        """Have `work` done on items of `size` tokens together, for a request.

        Raises:
            HTTPException: 503, too much is waiting already; 499, nobody waits for the answer any more.
        """
        if self.waiting and self.size + size > self.limit:
            raise HTTPException(503, "too much is waiting for the model; try again later", {"Retry-After": "1"})
        job = _Job(work, items, size, request.is_disconnected)
        self.waiting.append(job)
        self._filled.set()
        return await job.done

    async def run(self) -> None:
        """Do jobs until cancelled."""
        while True:
            await self._filled.wait()
            await asyncio.sleep(_GATHER)
            await self._drop_unwanted()
            if not self.waiting:
                continue
            jobs, start = self._next(), time.monotonic()
            items = [item for job in jobs for item in job.items]
            try:
                results: list[Any] = await asyncio.to_thread(jobs[0].work, self.hosted, items)
            except Exception as error:  # it belongs to these requests, which raise it; the next batch may do better
                for job in jobs:
                    job.fail(error)
                continue
            self.batches, self.seconds = self.batches + 1, self.seconds + time.monotonic() - start
            for job in jobs:
                self.tokens += job.size
                if not job.done.done():
                    job.done.set_result(results[: len(job.items)])
                results = results[len(job.items) :]

    async def _drop_unwanted(self) -> None:
        """Take jobs off the queue whose clients have gone, or the model would work for nobody."""
        for job in list(self.waiting):
            if job.done.done() or await job.is_unwanted():
                self.waiting.remove(job)
                job.fail(_gone())
        if not self.waiting:
            self._filled.clear()

    def _next(self) -> list[_Job]:
        """Take the oldest job off the queue, and those like it that fit into its batch."""
        chosen, size = self.waiting[:1], self.waiting[0].size
        for job in self.waiting[1:]:
            if job.work == chosen[0].work and size + job.size <= self.hosted.batch:
                chosen.append(job)
                size += job.size
        self.waiting = [job for job in self.waiting if job not in chosen]
        if not self.waiting:
            self._filled.clear()
        return chosen


class _Counting:
    """Counts responses by their code. (A middleware that is a function would hide from a request that its client has
    gone.)"""

    def __init__(self, app: ASGIApp, codes: Counter[int]) -> None:
        self.app, self.codes = app, codes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.codes[message["status"]] += 1
            await send(message)

        try:
            await self.app(scope, receive, note)
        except Exception:  # the answer to it is made further out
            self.codes[500] += 1
            raise


def application(hosted: LocalLogprobs, token: str | None, max_waiting: int = _MAX_WAITING) -> FastAPI:
    """Return the ASGI application that serves a teacher.

    Args:
        token: The bearer token that clients must send. None: anyone may ask.
        max_waiting: Tokens that may wait for the model; what comes on top gets 503.
    """
    queue, fingerprint = _Queue(hosted, max_waiting), hosted.about().fingerprint
    codes: Counter[int] = Counter()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(queue.run())
        yield
        worker.cancel()

    def guard(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if token is not None and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "this server wants a bearer token", {"WWW-Authenticate": "Bearer"})

    app = FastAPI(title="rld serve-teacher", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Counting, codes=codes)
    guarded = [Depends(guard)]

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "model": hosted.name,
            "fingerprint": fingerprint,
            "vocabulary": hosted.vocabulary,
            "ends": sorted(hosted.about().ends),
            "num_parameters": hosted.about().num_parameters,
            "max_tokens": _MAX_TOKENS,
        }

    @app.get("/metrics", dependencies=guarded)
    async def metrics() -> Response:
        lines = [f'rld_requests_total{{code="{code}"}} {count}' for code, count in sorted(codes.items())]
        lines += [f"rld_tokens_total {queue.tokens}", f"rld_batches_total {queue.batches}"]
        lines += [f"rld_model_seconds_total {queue.seconds:.6f}", f"rld_waiting_tokens {queue.size}"]
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    @app.post("/score", dependencies=guarded)
    async def score(request: Request) -> Response:
        passages, work = _asked(await _body(request), hosted)
        said = await queue.do(work, passages, sum(len(passage.ids) for passage in passages), request)
        packed = pack_shortlist(TopKLogprobs.concatenated(said), {"fingerprint": fingerprint})
        return Response(packed, media_type="application/octet-stream")

    @app.post("/answer", dependencies=guarded)
    async def answer(request: Request) -> dict[str, Any]:
        try:
            asked = _Question.model_validate_json(await _body(request))
        except ValidationError as error:
            raise HTTPException(422, error.errors()[0]["msg"]) from error
        for ids in asked.prompts:
            _require_readable(ids, len(ids) + asked.max_new_tokens, hosted)
        size = sum(len(ids) + asked.max_new_tokens for ids in asked.prompts)
        if size > _MAX_TOKENS:
            raise HTTPException(413, f"a request may have {_MAX_TOKENS} tokens, those of the answers included")
        texts = await queue.do(_Answer(asked.max_new_tokens), asked.prompts, size, request)
        return {"texts": texts, "fingerprint": fingerprint}

    return app


async def _body(request: Request) -> bytes:
    """The request's body, as long as it is not too large."""
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > _MAX_BODY:
                raise HTTPException(413, f"a request may have {_MAX_BODY} bytes")
    except ClientDisconnect as error:
        raise _gone() from error
    return bytes(body)


def _gone() -> HTTPException:
    return HTTPException(499, "the client has gone")


def _asked(body: bytes, hosted: LocalLogprobs) -> tuple[list[ScoredSequence], _Score]:
    """What a request to `/score` wants."""
    try:
        passages, about = unpack_passages(body)
        work = _Score(int(about.get("top_k", 64)), float(about.get("temperature", 1.0)))
    except ValueError as error:  # a PayloadError too
        raise HTTPException(422, str(error)) from error
    if not (1 <= work.top_k <= _MAX_TOP_K and 0 < work.temperature < math.inf):
        raise HTTPException(422, f"top_k should be 1 to {_MAX_TOP_K}, and the temperature above 0")
    if sum(len(passage.ids) for passage in passages) > _MAX_TOKENS:
        raise HTTPException(413, f"a request may have {_MAX_TOKENS} tokens")
    for passage in passages:
        _require_readable(passage.ids, len(passage.ids), hosted)
    return passages, work


def _require_readable(ids: Sequence[int], length: int, hosted: LocalLogprobs) -> None:
    if not ids or min(ids) < 0 or max(ids) >= hosted.num_tokens:
        raise HTTPException(422, f"token ids are 0 to {hosted.num_tokens - 1}, and there is at least one")
    if length > hosted.max_length:
        raise HTTPException(422, f"{hosted.name} reads {hosted.max_length} tokens, not {length}")


def serve(model: str, adapter: str | None, dtype: str, host: str, port: int) -> None:
    """Serve a model until the process is told to stop.

    Args:
        model: A folder or hub id, with its tokenizer.
        adapter: A PEFT adapter on it.
        dtype: As `from_pretrained` takes it.
        host: The address to listen on; other than loopback only with a token in the environment variable `TOKEN`.
        port: 0: any that is free.

    Raises:
        TeacherError: the model can't be served, or not there.
    """
    token = bearer_token()
    if token is None and host not in ("127.0.0.1", "localhost", "::1"):
        raise TeacherError(
            f"--host {host}: others could reach it; set a bearer token in the environment variable {TOKEN}"
        )
    teacher = Teacher(model, adapter=adapter, init={"dtype": dtype})
    teacher.find_tokenizer()
    hosted = LocalLogprobs(teacher, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise TeacherError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    where = f"[{host}]" if ":" in host else host
    print(f"{hosted.name} ({hosted.about().fingerprint}) at http://{where}:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(application(hosted, token), log_level="warning", lifespan="on")
    uvicorn.Server(config).run(sockets=[listener])
