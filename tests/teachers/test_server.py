"""Teachers on a server, by the real server process on loopback and a real client."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import math
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import TrainerCallback

import tests.support.tiny as tiny
from rld.cli import main
from rld.controllers.baselines import FixedController
from rld.errors import TeacherDown, TeacherError
from rld.models.heads import LMHead
from rld.models.logprob_source import ScoredSequence, TopKLogprobs
from rld.teachers import http_client, server_limits
from rld.teachers.http_client import TOKEN, HttpClient
from rld.teachers.local import LocalLogprobs
from rld.teachers.remote import remote_teacher
from rld.teachers.server import application
from rld.teachers.server_limits import limited_server, listen
from rld.teachers.teacher import Teacher
from rld.teachers.wire_format import pack_sequences
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.support.processes import FORK_SERVER, exit_codes, run_quietly, train_quietly

CPU = torch.device("cpu")
SEQUENCES = [ScoredSequence([5 + (3 * i + j) % 10 for j in range(4 + i % 5)], 1 + i % 3) for i in range(24)]
STUDENT = tiny.tokenizer()


class Server:
    """`rld serve-teacher` in a process of its own."""

    def __init__(self, model: Path, port: int = 0, token: str | None = None, patch: str = "") -> None:
        """Start it; `patch` is code that runs before."""
        command = ["serve-teacher", str(model), "--port", str(port), "--dtype", "float32"]
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            log.touch()
            self.process = FORK_SERVER.Process(target=serve, args=(patch, command, log, {TOKEN: token or ""}))
            self.process.start()
            deadline, match = time.monotonic() + 60, None
            while match is None and self.process.is_alive() and time.monotonic() < deadline:
                time.sleep(0.02)
                match = re.search(r"\((\w+)\) at (http://127\.0\.0\.1:(\d+))", log.read_text())
            assert match, f"it said {log.read_text()!r}"
        self.fingerprint, self.url, self.port = match[1], match[2], int(match[3])

    def send(self, how: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self.process.pid, how)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.send(how)
        self.process.join(20)


def serve(patch: str, command: list[str], log: Path, environment: dict[str, str]) -> None:
    exec(patch, {})
    run_quietly(command, log, environment)


@contextlib.contextmanager
def serving(model: Path, **options: Any) -> Iterator[Server]:
    started = Server(model, **options)
    try:
        yield started
    finally:
        started.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("served")
    for seed, name in enumerate(("one", "two")):
        tiny.model(seed=seed + 1).save_pretrained(made / name)
        STUDENT.save_pretrained(made / name)
    return made


@pytest.fixture(scope="module")
def one(folders) -> Iterator[Server]:
    with serving(folders / "one") as started:
        yield started


def hosted(folder: Path, top_k: int = 4) -> LocalLogprobs:
    teacher = Teacher(str(folder), from_pretrained={"dtype": "float32"})
    teacher.find_tokenizer()
    return LocalLogprobs(teacher, CPU, top_k)


def met(url: str, **options: Any) -> Any:
    source = remote_teacher(url, "far", **{"top_k": 4, "timeout_seconds": 2.0, **options})
    source.connect(STUDENT)
    return source


def refused(why: str) -> Any:
    return pytest.raises(TeacherError, match=re.escape(why))


def require_equal(theirs: list[TopKLogprobs], ours: list[TopKLogprobs]) -> None:
    for there, here in zip(theirs, ours, strict=True):
        assert torch.equal(there.ids, here.ids)
        torch.testing.assert_close(there.log_p.float(), here.log_p, rtol=2**-10, atol=1e-4)
        torch.testing.assert_close(there.tail.float(), here.tail, rtol=2**-10, atol=1e-4)
        torch.testing.assert_close(there.sampled, here.sampled, rtol=1e-5, atol=1e-5)


# -- scores ------------------------------------------------------------------------------------------------------------


def test_it_says_what_the_model_says_here(one, folders):
    far, near = met(one.url), hosted(folders / "one")
    require_equal(far.score(SEQUENCES, 0.8), near.score(SEQUENCES, 0.8))
    prompts = [[5, 6, 4], [7, 8, 9, 4]]
    assert far.generate(prompts, 5) == near.generate(prompts, 5)
    many = [[5 + i % 10, 5 + i // 10 % 10] * (30 if i % 3 else 1) for i in range(5000)]  # no request may have so many
    assert far.generate(many, 1) == near.generate(many, 1)
    assert far.info() == near.info()
    assert far.info().fingerprint == one.fingerprint


def test_many_at_once_are_batched_and_get_what_each_would_alone(one, folders):
    far, near = met(one.url), hosted(folders / "one")
    asked = [SEQUENCES[i % 24 : i % 24 + 1 + i % 3] for i in range(64)]
    before = metrics(one)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda sequences: far.score(sequences, 1.0), asked))
    after = metrics(one)
    for sequences, answer in zip(asked, answers, strict=True):
        require_equal(answer, near.score(sequences, 1.0))
    assert after["rld_tokens_total"] - before["rld_tokens_total"] == sum(len(p.ids) for row in asked for p in row)
    assert after["rld_batches_total"] - before["rld_batches_total"] < 64
    assert after['rld_requests_total{code="200"}'] - before['rld_requests_total{code="200"}'] >= 64
    assert after["rld_waiting_tokens"] == 0


def metrics(server: Server) -> dict[str, float]:
    return counts(httpx2.get(f"{server.url}/metrics").text)


def counts(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines())}


def trained(folder: Path, teachers: list[Teacher], callbacks: Any = (), **changes: Any) -> RLDTrainer:
    options = {"signals": ["policy", "response"], "teacher_reward": 0.1, "max_steps": 3, **changes}
    made = RLDTrainer(
        tiny.model(seed=0),
        [tiny.letters],
        RLDConfig(**tiny.rld_options(folder, **options)),
        tiny.rows(),
        processing_class=STUDENT,
        teachers=teachers,
        controller=FixedController(),
        callbacks=list(callbacks),
    )
    torch.manual_seed(0)
    made.train()
    return made


def losses(made: RLDTrainer) -> list[float]:
    return [entry[key] for entry in made.state.log_history for key in ("loss/policy", "loss/response") if key in entry]


def test_training_from_it_is_training_from_the_model_here(one, folders, tmp_path):
    """With as many likeliest tokens as there are, up to half precision; two teachers, one of them here."""

    def run(first: Teacher, name: str) -> RLDTrainer:
        second = Teacher(str(folders / "two"), "near", skills=["first"])
        return trained(tmp_path / name, [first, second])

    far = run(Teacher(remote_teacher(one.url, top_k=15), "far", skills=["first", "second"]), "far")
    near = run(Teacher(str(folders / "one"), "far", skills=["first", "second"]), "near")
    assert losses(far) == pytest.approx(losses(near), rel=2e-3, abs=2e-4)
    for there, here in zip(far.model.parameters(), near.model.parameters(), strict=True):
        assert (there - here).norm() < 0.02 * (here - 0).norm()


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_another_model_or_tokenizer_is_refused(one, tmp_path):
    with pytest.raises(TeacherError, match=f"other weights .fingerprint {one.fingerprint}, not abc"):
        met(one.url, fingerprint="abc")
    other = tiny.tokenizer()
    other.backend_tokenizer.model = type(other.backend_tokenizer.model)({"<unk>": 0, "b": 1, "a": 2}, unk_token="<unk>")
    with pytest.raises(TeacherError, match="its tokenizer is not the student's"):
        remote_teacher(one.url).connect(other)
    with pytest.raises(TeacherError, match="it has no /nothing/health"):
        met(one.url + "/nothing")


def test_features_are_refused(one, tmp_path):
    with pytest.raises(TeacherError, match="not hidden states, so it can't teach features"):
        trained(tmp_path, [Teacher(remote_teacher(one.url), "far")], signals=["feature"], teacher_reward=0.0)


def test_it_refuses_what_it_cannot_read(one):
    def post(content: bytes, path: str = "score") -> tuple[int, str]:
        response = httpx2.post(f"{one.url}/{path}", content=content)
        return response.status_code, response.json()["detail"]

    about = {"top_k": "4", "temperature": "1.0"}
    assert post(b"garbage" * 100)[0] == 422
    assert post(b"garbage", "generate")[0] == 422
    assert post(pack_sequences([ScoredSequence([5, 99], 1)], about)) == (
        422,
        "token ids are 0 to 14, and there is at least one",
    )
    assert post(pack_sequences([ScoredSequence([5, -1], 1)], about))[0] == 422
    assert post(pack_sequences([ScoredSequence([5] * 65, 1)], about)) == (422, "one reads 64 tokens, not 65")
    for wrong in ("0", "256", "many"):
        assert post(pack_sequences([ScoredSequence([5, 6], 1)], about | {"top_k": wrong}))[0] == 422
    for wrong in ("nan", "inf", "0", "1e-320", "0.009", "101"):
        code, reason = post(pack_sequences([ScoredSequence([5, 6], 1)], about | {"temperature": wrong}))
        assert (code, reason[:37]) == (422, "the temperature should be 0.01 to 100")
    assert post(b'{"prompts": [[5.0, true]], "max_new_tokens": 1}', "generate")[0] == 422
    for end in (-5, 1 << 70):
        content = {"prompts": [[5]], "max_new_tokens": 1, "ends": [end]}
        assert post(json.dumps(content).encode(), "generate")[0] == 422
    for deep in (b"[" * 900_000, b'{"prompts":' * 80_000):
        assert post(deep, "generate")[0] == 422
        assert post(len(deep).to_bytes(8, "little") + deep)[0] == 422
    assert post(pack_sequences([ScoredSequence([5, 6], 1)], about | {"top_k": "9" * 100_000}))[0] == 422
    assert post(bytes(2 << 20)) == (413, "a request may have 1048576 bytes")
    assert post(pack_sequences([ScoredSequence([5] * 60, 1)] * 1200, about)) == (413, "a request may have 65536 tokens")
    long = {"prompts": [[5] * 60] * 1100, "max_new_tokens": 4}
    assert post(json.dumps(long).encode(), "generate") == (
        413,
        "a request may have 65536 tokens, those of the answers included",
    )
    assert httpx2.get(f"{one.url}/health").status_code == 200


class Counted(LocalLogprobs):
    """Counts the sequences that it is run on; fails when there are three."""

    num = 0

    def score(self, sequences: Any, *asked: Any, **options: Any) -> list[TopKLogprobs]:
        self.num += len(sequences)
        if len(sequences) == 3:
            raise RuntimeError("out of memory")
        return super().score(sequences, *asked, **options)


@pytest.mark.parametrize("whole", [True, False], ids=["waits", "still asks"])
def test_nothing_is_done_for_a_client_that_has_gone(folders, whole):
    near = Counted(hosted(folders / "one").teacher, CPU, 4)
    body = pack_sequences(SEQUENCES[4:5], {"top_k": "4"})
    messages = [{"type": "http.request", "body": body, "more_body": not whole}]
    scope = {"type": "http", "method": "POST", "path": "/score", "headers": [], "query_string": b"", "root_path": ""}

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        pass

    async def ask() -> dict[str, float]:
        app = application(near, None)
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)
            return await told(app)

    assert asyncio.run(ask())['rld_requests_total{code="499"}'] == 1
    assert near.num == 0


def test_a_request_that_is_cancelled_stops_no_other(folders):
    near = Counted(hosted(folders / "one").teacher, CPU, 4)

    async def ask() -> int:
        app = application(near, None)
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            body = pack_sequences(SEQUENCES[4:5], {"top_k": "4"})
            for _ in range(5):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(client.post("/score", content=body), 0.003)
            return (await asyncio.wait_for(client.post("/score", content=body), 20)).status_code

    assert asyncio.run(ask()) == 200


def test_a_failure_is_counted_and_the_next_request_answered(folders):
    near = Counted(hosted(folders / "one").teacher, CPU, 4)

    async def ask() -> tuple[list[int], dict[str, float]]:
        app = application(near, None)
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            bodies = [pack_sequences(SEQUENCES[:n], {"top_k": "4"}) for n in (3, 2)]
            codes = [(await client.post("/score", content=body)).status_code for body in bodies]
            return codes, await told(app)

    codes, counted = asyncio.run(ask())
    assert codes == [500, 200]
    assert counted['rld_requests_total{code="500"}'] == 1


async def told(app: Any) -> dict[str, float]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://x") as client:
        return counts((await client.get("/metrics")).text)


def test_more_than_fits_into_the_queue_is_sent_away(folders):
    async def codes() -> list[int]:
        app = application(hosted(folders / "one"), None, max_waiting=10)
        body = pack_sequences(SEQUENCES[4:5], {"top_k": "4"})  # 8 tokens: one waits, the next does not fit
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            answers = await asyncio.gather(*(client.post("/score", content=body) for _ in range(6)))
        assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 503)
        return [answer.status_code for answer in answers]

    statuses = asyncio.run(codes())
    assert statuses.count(200) >= 1
    assert statuses.count(503) >= 1
    assert set(statuses) == {200, 503}


def test_it_wants_the_token_and_keeps_to_this_machine_without_one(folders, monkeypatch, capsys):
    with serving(folders / "one", token="secret") as guarded:
        monkeypatch.delenv(TOKEN, raising=False)
        assert httpx2.get(f"{guarded.url}/health").status_code == 200
        assert httpx2.get(f"{guarded.url}/metrics").status_code == 401
        with pytest.raises(TeacherError, match=f"bearer token; there is none in the environment variable {TOKEN}"):
            met(guarded.url)
        monkeypatch.setenv(TOKEN, "wrong")
        with pytest.raises(TeacherError, match="bearer token; the one in the environment variable"):
            met(guarded.url)
        for unfit in ("a\nb", "sécret"):
            monkeypatch.setenv("MINE", unfit)
            with pytest.raises(TeacherError, match="environment variable MINE should be printable ASCII"):
                met(guarded.url, token_variable="MINE")
        monkeypatch.setenv("MINE", "secret\n")
        assert met(guarded.url, token_variable="MINE").info().fingerprint == guarded.fingerprint
    monkeypatch.delenv(TOKEN)
    assert main(["serve-teacher", str(folders / "one"), "--host", "0.0.0.0"]) == 2
    assert "set a bearer token in the environment variable RLD_TEACHER_TOKEN" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "rld.teachers.server")
    assert main(["serve-teacher", "any"]) == 2
    assert (
        capsys.readouterr().err
        == "rld: serve-teacher needs fastapi; install it with: pip install -e '.[serve]', in a clone of rld\n"
    )


# -- limits ------------------------------------------------------------------------------------------------------------

HALF_SENT = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1234"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@contextlib.contextmanager
def limited(source: LocalLogprobs, buffer: int = 1 << 16) -> Iterator[str]:
    """Serve in a thread of this process, where a test can change the limits; the system holds `buffer` bytes back."""
    listener, server = listen("127.0.0.1", 0), limited_server(application(source, None))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def connected(url: str, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10)
    connection.sendall(data)
    return connection


def answer(connection: socket.socket) -> str:
    """Return the first line that comes until the server closes the connection."""
    with connection, connection.makefile("rb") as stream:
        return stream.read().partition(b"\r\n")[0].decode()


def test_a_client_that_does_not_finish_its_request_is_disconnected(folders, monkeypatch):
    for name in ("_HEADER_SECONDS", "_BODY_SECONDS"):
        monkeypatch.setattr(server_limits, name, 0.3)
    monkeypatch.setattr(server_limits, "_IDLE_SECONDS", 1)
    with limited(hosted(folders / "one")) as url:
        early = HEALTH.replace(b"x", b"x\r\nContent-Length: 9")
        unanswered = [connected(url, data) for data in (b"", HEALTH[:20], HALF_SENT)]
        answered = [connected(url, data) for data in (HEALTH, HEALTH + HEALTH[:20], HEALTH + HALF_SENT, early)]
        assert {answer(connection) for connection in unanswered} == {"HTTP/1.1 408 Request Timeout"}
        assert {answer(connection) for connection in answered} == {"HTTP/1.1 200 OK"}
        with httpx2.Client() as client:  # the limits are each request's, not the connection's
            for _ in range(4):
                time.sleep(0.2)
                assert client.get(f"{url}/health").status_code == 200


def test_connections_are_limited_and_those_that_are_open_stay_usable(folders, monkeypatch):
    monkeypatch.setattr(server_limits, "_MAX_CONNECTIONS", 3)
    with limited(hosted(folders / "one")) as url, httpx2.Client() as client:
        assert client.get(f"{url}/health").status_code == 200
        silent = [connected(url), connected(url)]
        assert answer(connected(url)) == "HTTP/1.1 503 Service Unavailable"
        assert client.get(f"{url}/health").status_code == 200
        for connection in silent:
            connection.close()
        assert met(url).info().fingerprint


def test_a_client_that_does_not_read_its_answers_is_disconnected(folders, monkeypatch):
    monkeypatch.setattr(server_limits, "_ANSWER_SECONDS", 0.3)
    with limited(hosted(folders / "one"), buffer=4096) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while True:
                connection.sendall(HEALTH)
        assert httpx2.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"Content-Length: 99999999999999", 413),
        (b"Content-Length: " + b"9" * 40_000, 400),
        (b"Content-Length: -5", 400),
        (b"Transfer-Encoding: chunked", 413),
        (b"X: " + b"a" * (1 << 20), 400),
        (b"X: a\r\n" * 100_000 + b"Y: b", 400),
    ],
    ids=["long", "more digits", "negative", "chunks", "long header", "many headers"],
)
def test_what_is_too_long_is_refused_before_it_is_read(folders, head, code, monkeypatch):
    monkeypatch.setattr(server_limits, "_BODY_SECONDS", 1.0)
    chunk = b"10000\r\n" + b"a" * 65_536 + b"\r\n"
    with limited(hosted(folders / "one")) as url:
        connection = connected(url)
        with contextlib.suppress(OSError):  # it is closed while we send
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n" + chunk * 20)
        with contextlib.suppress(ConnectionResetError):
            assert f" {code} " in answer(connection)
        assert httpx2.get(f"{url}/health").status_code == 200


def test_accepted_connections_send_small_packets_at_once():
    with listen("127.0.0.1", 0) as listener, connected(f":{listener.getsockname()[1]}"), listener.accept()[0] as peer:
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_sigterm_ends_it_whatever_its_clients_and_its_model_do(folders):
    patch = """
import time
from rld.teachers import local, server_limits
server_limits._SHUTDOWN_SECONDS = 1
local.LocalLogprobs.generate = lambda *_: time.sleep(60)
"""
    body = b'{"prompts": [[5]], "max_new_tokens": 1}'
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with serving(folders / "one", patch=patch) as going, contextlib.ExitStack() as stack:
        for data in (b"", HALF_SENT, head + body):
            stack.enter_context(connected(going.url, data))
        httpx2.get(f"{going.url}/health")
        start = time.monotonic()
        going.stop(signal.SIGTERM)
        assert time.monotonic() - start < 10


def test_a_model_that_yields_nan_is_refused_at_once(folders):
    near = hosted(folders / "one")
    with torch.no_grad():
        LMHead.of(near.model).weight[3] = math.nan
    with limited(near) as url:
        why = f"teacher 'far' at {url}: it refuses with 500: one yields log-probabilities that are not finite"
        with refused(why) as caught:
            met(url, timeout_seconds=60)
        unmet = remote_teacher(url, "far", top_k=4, timeout_seconds=60)
        with refused("teacher 'one' generates from logits that are NaN: its weight"):
            unmet.generate([[5, 6]], 2)
    assert not isinstance(caught.value, TeacherDown)


# -- a server that goes away -------------------------------------------------------------------------------------------


class Kill(TrainerCallback):
    def __init__(self, server: Server, at: int) -> None:
        self.server, self.at = server, at

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.at:
            self.server.stop(signal.SIGKILL)


def test_an_optional_teacher_that_is_killed_is_dropped_with_an_event(folders, tmp_path):
    with serving(folders / "one") as going:
        far = Teacher(remote_teacher(going.url, timeout_seconds=1.0), "far", skills=["first", "second"], optional=True)
        near = Teacher(str(folders / "two"), "near", skills=["first"])
        made = trained(tmp_path, [far, near], [Kill(going, 2)], max_steps=6)
    (event,) = [event for event in made.events if event.kind == "teacher dropped"]
    assert (event.about, event.step) == ("far", 2)
    assert made.state.global_step == 6
    assert made.runtime.teachers_SK.tolist() == [[0.0, 1.0], [0.0, 0.0]]  # skills: first, second
    assert all(torch.isfinite(torch.tensor(losses(made))))


class Failing(LocalLogprobs):
    """Scores twice, and is down after that."""

    num = 0

    def score(self, *asked: Any, **options: Any) -> list[TopKLogprobs]:
        self.num += 1
        if self.num > 2:
            raise TeacherDown("no answer")
        return super().score(*asked, **options)


def test_an_optional_teacher_that_nothing_can_replace_stops_the_run(tmp_path):
    near = Teacher(tiny.model(seed=1), "near", tokenizer=STUDENT)
    far = Teacher(Failing(near, CPU), "far", optional=True)
    with pytest.raises(TeacherDown, match="'far' was the last that answered, and without the policy signal"):
        trained(tmp_path, [far], signals=["response"], teacher_reward=0.0, gate="off", max_steps=6)


def test_a_stage_whose_only_teacher_is_optional_and_down_does_not_start(folders, tmp_path, capsys):
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "two").symlink_to(folders / "two")
    recipe = RECIPE.replace("URL", "http://127.0.0.1:9").replace(
        "timeout_seconds: 1", "timeout_seconds: 0.2, optional: true"
    )
    (tmp_path / "r.yaml").write_text(recipe)
    with pytest.warns(UserWarning, match="it is optional"):
        assert main(["train", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "run")]) == 2
    assert "rld: stage 'main' has no teacher left: its only ones, far, are optional" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "told"), [(("--port", "99999"), "port (0 to 65535)"), (("--dtype", "foo"), "bfloat16")]
)
def test_an_option_of_serve_teacher_that_makes_no_sense_is_named(option, told, capsys):
    assert main(["serve-teacher", "any", *option]) == 2
    output = capsys.readouterr().err
    assert option[1] in output
    assert told in output


@pytest.mark.parametrize("url", ["http://h:port", "http://[::1"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(TeacherError, match="is no URL of a teacher"):
        remote_teacher(url)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ALL_PROXY", "gopher://user:secret@h:1", "the address of a proxy is none"),
        ("ALL_PROXY", "http://user:se/cret@h:1", "the address of a proxy is none"),
        ("ALL_PROXY", "socks5://h:1", "a SOCKS proxy needs the package socksio"),
        ("SSL_CERT_FILE", "/not/there.pem", "certificates can't be read: No such file or directory"),
        ("SSL_CERT_FILE", __file__, "certificates can't be read"),
    ],
)
def test_proxies_and_certificates_that_cannot_be_used_are_named_without_their_values(monkeypatch, name, value, reason):
    for variable in http_client._CONNECTION_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    if "socks" in value:
        monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv(name, value)
    client = HttpClient("https://127.0.0.1:9", "far", timeout_seconds=1, token_variable=TOKEN)
    with pytest.raises(TeacherError) as error:
        client.call("GET", "https://127.0.0.1:9/health")
    message = f"teacher 'far' at https://127.0.0.1:9: no connection can be made with {name} of the environment: "
    assert str(error.value).startswith(message + reason)
    assert "cret" not in str(error.value)


RECIPE = """\
name: served
skills: {reverse: {generator: ./tasks.py:reverse, levels: [{length: 2}], held_out: 2}}
rewards: [{use: ./tasks.py:kill}]
max_new_tokens: 4
stages:
  - {name: main, kind: distill, student: ./two, steps: 6, checkpoint_every: 1, gate: per_prompt,
     signals: {policy: {}, response: {}, gold: null}, rollout: {prompts: 2, completions: 2},
     teachers: {far: {url: URL, timeout_seconds: 1, probe_prompts: 2}}, trainer: {learning_rate: 1.0e-3}}
"""

TASKS = """\
import os, pathlib, signal

def reverse(rng, *, length):
    word = "".join(rng.choices("abc", k=length))
    return word, word[::-1]

def kill(completions, **_):
    folder = pathlib.Path(__file__).parent
    if (folder / "victim").exists() and list(folder.glob("run/checkpoints/main/checkpoint-2/rld_files.json")):
        os.kill(*map(int, (folder / "victim").read_text().split()))
        (folder / "is_hit").touch()
    return [1.0] * len(completions)
"""


@pytest.fixture
def served(folders, tmp_path) -> Iterator[tuple[Server, list[str]]]:
    """A teacher's server, and the command of a run with that teacher alone, which may get a signal in a rollout."""
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "two").symlink_to(folders / "two")
    with serving(folders / "one") as going:
        (tmp_path / "r.yaml").write_text(RECIPE.replace("URL", going.url))
        yield going, ["train", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "run")]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_run_whose_only_teacher_dies_or_hangs_stops_and_goes_on_when_it_is_back(
    served, folders, tmp_path, monkeypatch, capsys, how
):
    """Through the command line, with probes and the gate asked over the wire."""
    going, command = served
    monkeypatch.setattr(http_client, "_READ_TIMEOUT", 1.5)  # of a server that takes a call and does not answer
    assert main(["check", command[1]]) == 0
    assert f"far: at {going.url}" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "victim").write_text(f"{going.process.pid} {how}")
    assert main(command) == 2
    output = capsys.readouterr().err
    problem = "ConnectError" if how == signal.SIGKILL else "ReadTimeout"
    assert f"rld: teacher 'far' at {going.url}: no answer for 1 s; the last try ended with {problem}" in output
    (tmp_path / "victim").unlink()
    assert list((tmp_path / "run" / "checkpoints" / "main").iterdir())
    is_back = contextlib.nullcontext() if how == signal.SIGSTOP else serving(folders / "one", port=going.port)
    going.send(signal.SIGCONT)
    with is_back:
        assert main([*command, "--resume"]) == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps))[-1] == 6


def test_sigterm_ends_a_run_that_waits_for_a_server_that_hangs(served, tmp_path):
    going, command = served
    (tmp_path / "victim").write_text(f"{going.process.pid} {signal.SIGSTOP}")
    log = tmp_path / "log"
    process = FORK_SERVER.Process(target=train_quietly, args=(command[1:], log))
    process.start()
    deadline = time.monotonic() + 120
    while not (tmp_path / "is_hit").exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # now it waits
    process.terminate()
    start = time.monotonic()
    assert exit_codes([process], 20.0) == [143], log.read_text()
    assert time.monotonic() - start < 10
    assert "Traceback" not in log.read_text()


# -- others ------------------------------------------------------------------------------------------------------------


class _Dialect(http.server.BaseHTTPRequestHandler):
    """What vLLM answers, from a model here."""

    hosted: LocalLogprobs
    broken = ""
    wrong = None
    fewer = 0
    max_logprobs = 1000
    models: tuple[str, ...] = ("the-model",)
    most = 0
    """Prompts that it was asked at once, at most."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._say({"object": "list", "data": [{"id": name} for name in self.models]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            self._say({"tokens": STUDENT.encode(asked["prompt"], add_special_tokens=asked["add_special_tokens"])})
            return
        scores = "prompt_logprobs" in asked
        assert (self.path, asked["model"], asked["temperature"]) == ("/v1/completions", "the-model", float(scores))
        # Otherwise vLLM takes them from the model's generation_config.json.
        assert (asked["top_p"], asked["top_k"], asked["min_p"], asked["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
        if scores and asked["prompt_logprobs"] > self.max_logprobs:
            counts = f"of {asked['prompt_logprobs']}, which is greater than max allowed: {self.max_logprobs}"
            self._say({"error": {"message": f"Requested prompt logprobs {counts}", "code": 400}}, status=400)
            return
        if self.broken:
            self._say({"choices": [{"index": 0, "text": "", "prompt_logprobs": None}] * len(asked["prompt"])})
            return
        type(self).most = max(self.most, len(asked["prompt"]))
        choices = [self._choice(i, ids, asked) for i, ids in enumerate(asked["prompt"])]
        self._say({"choices": choices[::-1]})

    def _choice(self, index: int, ids: list[int], asked: dict[str, Any]) -> dict[str, Any]:
        (answer,) = self.hosted.generate([ids], asked["max_tokens"])
        if "prompt_logprobs" not in asked:
            return {"index": index, "text": answer.text, "finish_reason": "stop" if answer.is_complete else "length"}
        (said,) = self.hosted.score([ScoredSequence(ids, len(ids) - 1)], 1.0, asked["prompt_logprobs"] - self.fewer)
        told: list[Any] = [None]
        for t, token in enumerate(ids[1:]):
            named = zip(said.ids[t].tolist(), said.log_p[t].tolist(), strict=True)
            named = [(i, self.wrong or value) for i, value in named]
            one = {str(i): {"logprob": value, "rank": 1, "decoded_token": "x"} for i, value in named}
            told.append({str(token): {"logprob": said.sampled[t].item(), "rank": 9, "decoded_token": "x"}} | one)
        return {"index": index, "text": answer.text, "prompt_logprobs": told}

    def _say(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def speaking(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))  # how often it looks for its end
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            listening.shutdown()
            thread.join()


def test_an_openai_compatible_endpoint_gives_the_same(folders):
    near = hosted(folders / "one")
    handler = type("Good", (_Dialect,), {"hosted": near})
    with speaking(handler) as url:
        far = met(f"{url}/v1")
        require_equal(far.score(SEQUENCES, 1.0), near.score(SEQUENCES, 1.0))
        assert far.generate([[5, 6, 4], [7, 4]], 5) == near.generate([[5, 6, 4], [7, 4]], 5)
        many = [[5 + i % 10, 4] for i in range(150)]
        assert far.generate(many, 1) == near.generate(many, 1)
        assert handler.most == 64
        with pytest.raises(TeacherError, match=r"scores at temperature 1, not 0\.8"):
            far.score(SEQUENCES, 0.8)
    few = type("Few", (_Dialect,), {"hosted": near, "fewer": 1})
    with speaking(few) as url, refused("fewer than 4 prompt_logprobs; start it with --max-logprobs 4"):
        met(f"{url}/v1")
    for wrong in (math.nan, 0.5, -0.5):  # -0.5: logits, which sum to more than 1
        with speaking(type("Wrong", (_Dialect,), {"hosted": near, "wrong": wrong})) as url, refused("no log-prob"):
            met(f"{url}/v1")
    with (
        speaking(type("Broken", (_Dialect,), {"hosted": near, "broken": "yes"})) as url,
        pytest.raises(TeacherError, match="its answer has no prompt_logprobs"),
    ):
        met(f"{url}/v1")


def test_the_model_of_an_endpoint_and_its_limit_are_checked_at_the_start(folders):
    near = hosted(folders / "one")
    two = type("Two", (_Dialect,), {"hosted": near, "models": ("a-base", "the-model")})
    with speaking(two) as url:
        assert met(f"{url}/v1", served_model="the-model").generate([[5, 4]], 2) == near.generate([[5, 4]], 2)
        with refused("it serves several models; set served_model to one of a-base, the-model"):
            met(f"{url}/v1")
        with refused("it does not serve another; set served_model to one of a-base, the-model"):
            met(f"{url}/v1", served_model="another")
    with speaking(type("None", (_Dialect,), {"hosted": near, "models": ()})) as url, refused("it lists no models"):
        met(f"{url}/v1")
    with (
        speaking(type("Limit", (_Dialect,), {"hosted": near, "max_logprobs": 3})) as url,
        refused("max allowed: 3; start it with --max-logprobs 4, or set a lower top_k"),
    ):
        met(f"{url}/v1")


class _Garbage(http.server.BaseHTTPRequestHandler):
    """A server that answers, in turn: not at all, full, and with what is no answer."""

    answers: list[Any] = []

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        code, headers, data = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if code:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    do_POST = do_GET


class _Late(_Garbage):
    """Breaks off after a while, once."""

    def do_GET(self) -> None:
        if len(self.answers) > 1:
            time.sleep(0.6)
        super().do_GET()

    do_POST = do_GET


def test_patience_counts_from_the_first_failure(one):
    """A call that failed after longer than that is made again."""
    health = httpx2.get(f"{one.url}/health").content
    with speaking(type("L", (_Late,), {"answers": [(0, {}, b""), (200, {}, health)]})) as url:
        assert HttpClient(url, "far", timeout_seconds=0.5, token_variable=TOKEN).call("GET", f"{url}/health") == health


def test_garbage_is_refused_and_trouble_is_waited_out(one, folders):
    health = httpx2.get(f"{one.url}/health").content
    troubles: list[Any] = [(0, {}, b""), (503, {"retry-after": "0"}, b""), (429, {}, b"{}"), (500, {}, b"oops")]
    with speaking(
        type("G", (_Garbage,), {"answers": [(200, {}, health), *troubles, (200, {}, b"garbage" * 9)]})
    ) as url:
        with pytest.raises(TeacherError, match="holds no log-probabilities of the request") as caught:
            met(url, timeout_seconds=20)
        assert not isinstance(caught.value, TeacherDown)
    with speaking(type("H", (_Garbage,), {"answers": [(200, {}, b"<html>")]})) as url, refused("is no JSON"):
        met(url)
    packed = (200, {"content-encoding": "gzip"}, b"no gzip")
    with speaking(type("P", (_Garbage,), {"answers": [packed]})) as url, refused("its answer to /health can't be read"):
        met(url)
    with (
        speaking(type("F", (_Garbage,), {"answers": [(503, {"retry-after": "120"}, b'{"detail": "full"}')]})) as url,
        refused("for 0.5 s; the last try ended with 503 full"),
    ):
        met(url, timeout_seconds=0.5)


def test_a_model_that_is_not_there_is_one_line(capsys):
    assert main(["serve-teacher", "./nosuch"]) == 2
    assert capsys.readouterr().err == "rld: teacher 'nosuch': there is no folder ./nosuch\n"
