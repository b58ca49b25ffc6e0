"""A process tries once whether the hub can be reached, and reads the caches alone where it cannot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import datasets
import pytest
from huggingface_hub import close_session, constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from rld.data.formats import hub
from rld.data.formats.hub import HubRows
from rld.errors import DataError, ModelError
from rld.models.loading import load_tokenizer
from rld.utils.hub import use_caches_if_unreachable


@pytest.fixture
def online(monkeypatch) -> Iterator[None]:
    """Both libraries may ask the hub, which is at a port where nobody listens."""
    for settings in (constants, datasets.config):
        monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    caches = use_caches_if_unreachable, hub.commit
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


@pytest.mark.usefixtures("online")
def test_without_a_hub_nothing_waits_for_it_and_that_is_told_once(capsys, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waited {seconds} s to try again"))
    with pytest.raises(DataError, match=r"owner/sums.*; it is not in the cache of this machine either"):
        hub.commit(HubRows("owner/sums", None, "train", None))
    with pytest.raises(ModelError, match="not in the cache, and the hub cannot be reached"):
        load_tokenizer("owner/none")
    assert datasets.config.HF_HUB_OFFLINE
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("owner/none", "config.json")
    told = [line for line in capsys.readouterr().err.splitlines() if "cannot be reached" in line]
    assert len(told) == 1 and "http://127.0.0.1:1 cannot be reached" in told[0] and "in the caches" in told[0]


@pytest.mark.usefixtures("online")
def test_a_hub_that_answers_anything_is_asked_once(monkeypatch, capsys):
    asked = list[str]()

    class Busy(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        use_caches_if_unreachable()
        use_caches_if_unreachable()
        server.shutdown()
    assert len(asked) == 1 and not constants.HF_HUB_OFFLINE and not capsys.readouterr().err


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("variable", "address", "reason"),
    [
        ("HTTPS_PROXY", "socks5://127.0.0.1:1", "SOCKS"),
        ("HTTPS_PROXY", "ftp://127.0.0.1:1", "Unknown scheme"),
        ("ENDPOINT", "http://mirror:8080:1", "Invalid port"),
        ("ENDPOINT", "http://me:password@127.0.0.1:1", "refused"),
    ],
)
def test_an_address_that_cannot_be_used_is_told_by_each_process(monkeypatch, capsys, variable, address, reason):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv(variable, address)
    monkeypatch.setattr(constants, "ENDPOINT", address if variable == "ENDPOINT" else "https://127.0.0.1:1")
    close_session()
    try:
        use_caches_if_unreachable()
    finally:
        close_session()
    told = capsys.readouterr().err
    assert constants.HF_HUB_OFFLINE and "cannot be reached" in told and reason in told
    assert "password" not in told
