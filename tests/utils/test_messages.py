"""One process of a distributed run prints messages and writes the run's folder, whichever launcher started it."""

from __future__ import annotations

import pytest

from rld.utils.messages import is_main_process


@pytest.mark.parametrize("name", ["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"])
def test_the_main_process_is_the_one_with_rank_0(monkeypatch, name):
    for other in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"):
        monkeypatch.delenv(other, raising=False)
    assert is_main_process()
    monkeypatch.setenv(name, "1")
    assert not is_main_process()
    monkeypatch.setenv(name, "0")
    assert is_main_process()
