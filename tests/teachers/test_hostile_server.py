"""What a teacher server may send instead of an answer: too much, too slowly, and values that cannot be."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import math
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

import pytest
import torch

import tests.support.tiny as tiny
from rld.cli import main
from rld.errors import TeacherDown, TeacherError
from rld.models.logprob_source import LogprobSource, ScoredSequence, TopKLogprobs
from rld.models.tokenizer_profile import TokenizerProfile
from rld.teachers import http_client
from rld.teachers.remote import remote_teacher
from rld.teachers.server_answers import (
    AnswerError,
    read_answers,
    read_completions,
    read_health,
    read_models,
    read_prompt_logprobs,
)
from rld.teachers.wire_format import max_logprob_bytes, pack_logprobs
from tests.teachers.test_server import RECIPE, TASKS, speaking

STUDENT = tiny.tokenizer()
PROFILE = TokenizerProfile.of(STUDENT).to_json()
HEALTH = {"fingerprint": "f", "ends": [1], "num_parameters": 5, "max_tokens": 9, "tokenizer": PROFILE}
HEAD = b"HTTP/1.1 200 OK\r\n"
NO_SERVER = "what answers there is no rld serve-teacher"


def answer(content: bytes, status: bytes = b"200 OK", *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(content), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + content


def health(**changes: Any) -> bytes:
    return answer(json.dumps(HEALTH | changes).encode())


@contextlib.contextmanager
def hostile(parts: Callable[[str], Iterable[bytes]], pause: float = 0.0) -> Iterator[LogprobSource]:
    """Yield a teacher whose server sends these parts to a request for a path, until the client has gone."""

    class Handler(http.server.BaseHTTPRequestHandler):
        num_sent = 0

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.close_connection = True
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            with contextlib.suppress(ConnectionError):
                for part in parts(self.path):
                    self.wfile.write(part)
                    time.sleep(pause)

        do_POST = do_GET

    with speaking(Handler) as url:
        yield remote_teacher(url, "far", top_k=4, timeout_seconds=0.1)


def refused(why: str) -> Any:
    return pytest.raises(TeacherError, match=re.escape(why))


# -- values ------------------------------------------------------------------------------------------------------------

NO_JSON = {
    "deep": (b"[" * 200_000, "its answer to /health is no JSON: nested too deep"),
    "digits": (b'{"max_tokens": ' + b"9" * 6000 + b"}", "its answer to /health is no JSON: number out of range"),
    "empty": (b"", "its answer to /health is no JSON: EOF"),
    "half a character": (b'"\\ud800"', "its answer to /health is no JSON: "),
    "list": (b"[]", NO_SERVER),
}


NUMBERS: list[Any] = [math.inf, -math.inf, math.nan, -1, 10**4000, True, "5", 0.5, None, [], {}]


@pytest.mark.parametrize("field", ["max_tokens", "num_parameters", "ends", "fingerprint", "tokenizer"])
def test_a_value_that_cannot_be_is_refused(field):
    read_health(HEALTH)
    for value in ["", *NUMBERS] if field == "fingerprint" else NUMBERS:
        if (field, value) != ("fingerprint", "5"):
            with pytest.raises(AnswerError, match=NO_SERVER):
                read_health(HEALTH | {field: [value] if field == "ends" else value})
    with hostile(lambda _: [health(**{field: math.inf})]) as far, refused(NO_SERVER):
        far.connect(STUDENT)


@pytest.mark.parametrize(("content", "why"), NO_JSON.values(), ids=list(NO_JSON))
def test_what_is_no_answer_is_refused(content, why):
    with hostile(lambda _: [answer(content)]) as far, refused(why):
        far.connect(STUDENT)


@pytest.mark.parametrize(
    "changes",
    [
        {"probes": PROFILE["probes"][1:]},
        {"probes": [[math.inf]] * len(PROFILE["probes"])},
        {"added": {"a": math.nan}},
        {"added": {"a": -1}},
        {"added": ["a"]},
        {"vocabulary": 7},
    ],
)
def test_a_tokenizer_that_cannot_be_is_refused(changes):
    with pytest.raises(AnswerError, match=NO_SERVER):
        read_health(HEALTH | {"tokenizer": PROFILE | changes})


def scores(num_tokens: int, num_named: int) -> TopKLogprobs:
    log_p_NV = torch.full((num_tokens, 15), -math.log(15))
    return TopKLogprobs.of(log_p_NV, torch.zeros(num_tokens, dtype=torch.long), num_named)


def test_scores_that_cannot_be_are_refused():
    none = scores(3, 1)
    none = TopKLogprobs(none.ids[:, :0], none.log_p[:, :0], none.tail, none.sampled)
    huge = TopKLogprobs(torch.full((3, 1), 1 << 23), *scores(3, 1).tensors()[1:])
    sequence = ScoredSequence([5, 6, 7, 8], 3)
    for wrong in (scores(3, 5), scores(2, 4), scores(4, 4), none):
        data = pack_logprobs(wrong, {"fingerprint": "f"})
        with hostile(lambda _, data=data: [answer(data)]) as far, refused("its answer holds no log-probabilities"):
            far._max_tokens = 9
            far.score([sequence], 1.0)
    for good in (scores(3, 4), scores(3, 2), huge):
        assert len(pack_logprobs(good, {"fingerprint": "f" * 256})) <= max_logprob_bytes(3, good.ids.shape[1])


def test_answers_that_name_more_or_fewer_tokens_than_at_first_are_refused():
    answers = [answer(pack_logprobs(scores(3, num), {"fingerprint": "f"})) for num in (3, 3, 4)]
    with hostile(lambda _: [answers.pop(0)]) as far:
        far._max_tokens = 9
        for _ in range(2):
            far.score([ScoredSequence([5, 6, 7, 8], 3)], 1.0)
        with refused("it names 4 tokens at each place, not 3"):
            far.score([ScoredSequence([5, 6, 7, 8], 3)], 1.0)


def test_what_cannot_be_a_completion_is_refused():
    good = {"choices": [{"index": 1, "text": "b"}, {"index": 0, "text": "a", "finish_reason": "stop"}]}
    assert [choice.text for choice in read_completions(good, 2)] == ["a", "b"]
    for wrong in ([{"index": 0}, {"index": 0}], [{"index": math.inf}, {}], [{"text": 5}, {}], [{}, 5], [{}], {}, None):
        with pytest.raises(AnswerError, match="holds no completions"):
            read_completions({"choices": wrong}, 2)
    for texts, complete in (("a", [True]), ([5], [True]), (["a"], [1]), (["a"], [])):
        with pytest.raises(AnswerError, match="holds no answers"):
            read_answers({"texts": texts, "complete": complete, "fingerprint": "f"}, 1)
    for models in ([], [{"id": 5}], [5], {}):
        with pytest.raises(AnswerError, match="lists no models"):
            read_models({"data": models})


def test_prompt_logprobs_that_cannot_be_are_refused():
    sequence, good = ScoredSequence([5, 6, 7], 2), {"logprob": -1.0}
    read_prompt_logprobs([None, {"6": good}, {"7": good}], sequence, 1, 1)
    for wrong in (10**400, "x", None, [1], {}):
        with pytest.raises(AnswerError, match="has no prompt_logprobs"):
            read_prompt_logprobs([None, {"6": {"logprob": wrong}}, {"7": good}], sequence, 1, 1)
    for key in ("-1", "9" * 5000, str(1 << 40), "x"):
        with pytest.raises(AnswerError, match="has no prompt_logprobs"):
            read_prompt_logprobs([None, {"6": good, key: good}, {"7": good}], sequence, 2, 2)
    for wrong in (None, 5, "abc", {}, [], [{}, {}], [5, 5], [[], []]):
        with pytest.raises(AnswerError, match="has no prompt_logprobs"):
            read_prompt_logprobs(wrong, sequence, 1, 1)


# -- length ------------------------------------------------------------------------------------------------------------

MIB = b"a" * (1 << 20)
ENDLESS = {
    "with a length": [HEAD + b"Content-Length: %d\r\n\r\n" % 10**11, *[MIB] * 64],
    "in chunks": [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"100000\r\n" + MIB + b"\r\n"] * 64],
    "until it closes": [HEAD + b"\r\n", *[MIB] * 64],
    "as an error": [b"HTTP/1.1 503 Full\r\n\r\n", *[MIB] * 64],
    "compressed": [answer(gzip.compress(gzip.compress(MIB * 64)), b"200 OK", b"Content-Encoding: gzip, gzip")],
}


@pytest.mark.parametrize("parts", ENDLESS.values(), ids=list(ENDLESS))
def test_an_answer_without_end_is_refused(parts):
    num_sent: list[int] = []

    def counted(_: str) -> Iterator[bytes]:
        for part in parts:
            num_sent.append(len(part))
            yield part

    with hostile(counted) as far, refused("its answer to /health can't be read: it has more than 8,388,608 bytes"):
        far.connect(STUDENT)
    assert sum(num_sent) < 24 << 20


def test_scores_are_limited_by_what_was_asked_for():
    with hostile(lambda _: repeat(HEAD + b"\r\n" + MIB, 9)) as far:
        far._max_tokens = 9
        with refused(f"its answer to /score can't be read: it has more than {max_logprob_bytes(3, 4):,} bytes"):
            far.score([ScoredSequence([5, 6, 7, 8], 3)], 1.0)


# -- time --------------------------------------------------------------------------------------------------------------

SLOW = {
    "headers": (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
    "other headers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body": (HEAD + b"Content-Length: 1000000\r\n\r\n", b" "),
    "a body until it closes": (HEAD + b"\r\n", b" "),
}


@pytest.mark.parametrize(("head", "more"), SLOW.values(), ids=list(SLOW))
def test_a_server_that_sends_slowly_is_down(head, more, monkeypatch):
    monkeypatch.setattr(http_client, "_READ_TIMEOUT", 0.15)
    start = time.monotonic()
    with hostile(lambda _: [head, *repeat(more, 100)], pause=0.03) as far:
        why = "no answer for 0.1 s; the last try ended with ReadTimeout: no complete answer in 0.3 s"
        with pytest.raises(TeacherDown, match=re.escape(why)):
            far.connect(STUDENT)
        assert time.monotonic() - start < 2


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (answer(b"[" * 200_000), "its answer to /health is no JSON: nested too deep"),
        (health(max_tokens=math.inf), NO_SERVER),
        (answer(b'{"error": "\\u001b[31mno"}', b"400 Bad"), r"it refuses with 400: \x1b[31mno"),
        (answer(b"", b"400 \xc2\x9b31m"), "it refuses with 400: "),
    ],
    ids=["deep", "infinite", "colour", "colour in the reason"],
)
def test_a_run_ends_with_one_line(content, why, tmp_path, capsys):
    (tmp_path / "tasks.py").write_text(TASKS)
    tiny.model(seed=1).save_pretrained(tmp_path / "two")
    STUDENT.save_pretrained(tmp_path / "two")
    with hostile(lambda _: [content]) as far:
        (tmp_path / "r.yaml").write_text(RECIPE.replace("URL", far.url))
        assert main(["train", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "run")]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "teacher 'far'" in line)
    assert line.startswith("rld: ")
    assert why in line
    assert line.isprintable()
