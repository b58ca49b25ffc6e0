"""`rld serve-teacher`: one teacher over HTTP, for students on other machines or in other processes.

`POST /score` takes scored sequences and returns top-k log-probabilities (`wire_format.py`). `POST /generate` takes
prompts of token ids and returns greedy answers (JSON). `GET /health` describes the teacher. `GET /metrics` counts
requests, tokens, batches and seconds in the text format of Prometheus. The model runs in one thread.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rld.errors import NonFiniteError, TeacherError
from rld.models.logprob_source import ScoredSequence, TopKLogprobs
from rld.teachers.http_client import SHOULD_RETRY, TOKEN, bearer_token
from rld.teachers.local import LocalLogprobs
from rld.teachers.server_limits import limited_server, listen
from rld.teachers.server_queue import GenerateTask, ScoreTask, TaskQueue, client_disconnected
from rld.teachers.teacher import Teacher
from rld.teachers.wire_format import pack_logprobs, unpack_sequences
from rld.types import Answer
from rld.utils.control_characters import visible

_MAX_TOKENS = 65_536
"""Tokens of a request: an answer with 64 named tokens takes 17 MB."""

_MAX_BODY = 1 << 20
"""Bytes of a request: four a token, and room to spare."""

_MAX_WAITING = 1 << 20
"""Tokens that wait for the model."""

_MAX_TOP_K = 255

_TEMPERATURES = (0.01, 100.0)
"""Least and greatest temperature. At the least, log-probabilities of tokens whose logits differ by 655 still fit into
half precision; at the greatest, all tokens are almost equally likely."""


class _GenerateRequest(BaseModel):
    model_config = ConfigDict(strict=True)

    prompts: list[list[int]] = Field(min_length=1, max_length=4096)
    max_new_tokens: int = Field(gt=0, le=_MAX_TOKENS)
    ends: list[Annotated[int, Field(ge=0, lt=1 << 31)]] = Field([], max_length=64)
    """Tokens that end an answer, beside those of the model."""


class _StatusCounter:
    """Middleware that counts responses by their status code.

    A middleware that is a function would hide from a request that its client has disconnected.
    """

    def __init__(self, app: ASGIApp, codes: Counter[int]) -> None:
        self.app, self.codes = app, codes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def count_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.codes[message["status"]] += 1
            await send(message)

        try:
            await self.app(scope, receive, count_and_send)
        except Exception:  # an outer layer makes a response of it
            self.codes[500] += 1
            raise


class _Routes:
    """What the server answers."""

    def __init__(self, source: LocalLogprobs, token: str | None, max_waiting: int) -> None:
        self.source, self.token = source, token
        self.queue = TaskQueue(source, max_waiting)
        self.codes: Counter[int] = Counter()

    def require_token(self, request: Request) -> None:
        header = request.headers.get("authorization", "")
        if self.token is not None and not hmac.compare_digest(header.encode(), f"Bearer {self.token}".encode()):
            raise HTTPException(401, "this server wants a bearer token", {"WWW-Authenticate": "Bearer"})

    async def health(self) -> dict[str, Any]:
        info = self.source.info()
        return {
            "model": self.source.name,
            "fingerprint": info.fingerprint,
            "tokenizer": self.source.profile.to_json(),
            "ends": sorted(info.ends),
            "num_parameters": info.num_parameters,
            "max_tokens": _MAX_TOKENS,
        }

    async def metrics(self) -> Response:
        queue = self.queue
        lines = [f'rld_requests_total{{code="{code}"}} {count}' for code, count in sorted(self.codes.items())]
        lines += [f"rld_tokens_total {queue.num_tokens}", f"rld_batches_total {queue.num_batches}"]
        lines += [f"rld_model_seconds_total {queue.seconds:.6f}", f"rld_waiting_tokens {queue.num_waiting}"]
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def score(self, request: Request) -> Response:
        sequences, task = _score_request(await _body(request), self.source)
        num_tokens = sum(len(sequence.ids) for sequence in sequences)
        logprobs = await self.queue.run(task, sequences, num_tokens=num_tokens, request=request)
        answer = TopKLogprobs.concatenated(logprobs)
        if not answer.is_valid():
            reason = f"{self.source.name} yields log-probabilities that are not finite; check its weights and --dtype"
            raise HTTPException(500, reason, {SHOULD_RETRY: "false"})
        data = pack_logprobs(answer, {"fingerprint": self.source.info().fingerprint})
        return Response(data, media_type="application/octet-stream")

    async def generate(self, request: Request) -> dict[str, Any]:
        try:
            content = _GenerateRequest.model_validate_json(await _body(request))
        except ValidationError as error:
            raise HTTPException(422, error.errors()[0]["msg"]) from error
        lengths = [len(ids) + content.max_new_tokens for ids in content.prompts]
        for ids, length in zip(content.prompts, lengths, strict=True):
            _require_readable(ids, length, self.source)
        if sum(lengths) > _MAX_TOKENS:
            raise HTTPException(413, f"a request may have {_MAX_TOKENS} tokens, those of the answers included")
        task = GenerateTask(content.max_new_tokens, tuple(content.ends))
        try:
            answers: list[Answer] = await self.queue.run(
                task, content.prompts, num_tokens=sum(lengths), request=request
            )
        except NonFiniteError as error:
            raise HTTPException(500, str(error), {SHOULD_RETRY: "false"}) from error
        return {
            "texts": [answer.text for answer in answers],
            "complete": [answer.is_complete for answer in answers],
            "fingerprint": self.source.info().fingerprint,
        }


def application(source: LocalLogprobs, token: str | None, max_waiting: int = _MAX_WAITING) -> FastAPI:
    """Return the ASGI application that serves a teacher.

    Args:
        source: The teacher.
        token: The bearer token that clients must send. None: anyone may ask.
        max_waiting: Tokens that may wait for the model; a request beyond them gets 503.
    """
    routes = _Routes(source, token, max_waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(routes.queue.work())
        yield
        worker.cancel()

    app = FastAPI(title="rld serve-teacher", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_StatusCounter, codes=routes.codes)
    guarded = [Depends(routes.require_token)]
    app.add_api_route("/health", routes.health)
    app.add_api_route("/metrics", routes.metrics, dependencies=guarded)
    app.add_api_route("/score", routes.score, methods=["POST"], dependencies=guarded)
    app.add_api_route("/generate", routes.generate, methods=["POST"], dependencies=guarded)
    return app


async def _body(request: Request) -> bytes:
    """Return the request's body, unless it is too large."""
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > _MAX_BODY:
                raise HTTPException(413, f"a request may have {_MAX_BODY} bytes")
    except ClientDisconnect as error:
        raise client_disconnected() from error
    return bytes(body)


def _score_request(body: bytes, source: LocalLogprobs) -> tuple[list[ScoredSequence], ScoreTask]:
    """Read and check the body of a request to `/score`."""
    try:
        sequences, metadata = unpack_sequences(body)
        task = ScoreTask(int(metadata.get("top_k", 64)), float(metadata.get("temperature", 1.0)))
    except ValueError as error:  # a PayloadError too
        raise HTTPException(422, str(error)) from error
    if not 1 <= task.top_k <= _MAX_TOP_K:
        raise HTTPException(422, f"top_k should be 1 to {_MAX_TOP_K}, not {task.top_k}")
    lowest, highest = _TEMPERATURES
    if not lowest <= task.temperature <= highest:  # nor is NaN
        raise HTTPException(422, f"the temperature should be {lowest:g} to {highest:g}, not {task.temperature:g}")
    if sum(len(sequence.ids) for sequence in sequences) > _MAX_TOKENS:
        raise HTTPException(413, f"a request may have {_MAX_TOKENS} tokens")
    for sequence in sequences:
        _require_readable(sequence.ids, len(sequence.ids), source)
    return sequences, task


def _require_readable(ids: Sequence[int], length: int, source: LocalLogprobs) -> None:
    if not ids or min(ids) < 0 or max(ids) >= source.num_tokens:
        raise HTTPException(422, f"token ids are 0 to {source.num_tokens - 1}, and there is at least one")
    if length > source.max_length:
        raise HTTPException(422, f"{source.name} reads {source.max_length} tokens, not {length}")


def serve(model: str, adapter: str | None, dtype: str, *, host: str, port: int) -> None:
    """Serve a model until the process is stopped.

    Args:
        model: A folder or hub id, with its tokenizer.
        adapter: A PEFT adapter on it.
        dtype: As `from_pretrained` takes it.
        host: The address to listen on; other than loopback only with a token in the environment variable `TOKEN`.
        port: The port to listen on; 0: any that is free.

    Raises:
        TeacherError: the model can't be loaded or served.
    """
    token = bearer_token()
    if token is None and host not in ("127.0.0.1", "localhost", "::1"):
        raise TeacherError(
            f"--host {host}: others could reach it; set a bearer token in the environment variable {TOKEN}"
        )
    teacher = Teacher(model, adapter=adapter, from_pretrained={"dtype": dtype})
    teacher.find_tokenizer()
    source = LocalLogprobs(teacher, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        listener = listen(host, port)
    except OSError as error:
        raise TeacherError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    address = f"[{host}]" if ":" in host else host
    facts = f"{source.name} ({source.info().fingerprint}) at http://{address}:{listener.getsockname()[1]}"
    print(visible(facts), flush=True)
    limited_server(application(source, token)).run(sockets=[listener])
