"""The script for a GPU runs in its small form, so that it works on the day when there is a card."""

from __future__ import annotations

import json

import pytest
import torch

from tests.gpu import fused_pass, measure, run, sizes

CPU = torch.device("cpu")


def test_every_section_runs_and_is_in_both_files(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run", "--small", "--output", str(tmp_path)])
    run.main()
    result, page = json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()
    sections = result["sections"]
    assert list(sections) == list(run.SECTIONS)
    assert result["card"] in page
    assert [name for name in run.SECTIONS if f"| {name} |" not in page] == []
    assert sections["update"]["joint / TRL's three"] > 0
    memory = sections["memory of the fused pass"]
    # A CPU needs a copy of each head, which on a GPU is an error; the student's has its gradient in float32 too.
    assert memory["float32 tensors like a teacher's head"] == 2
    assert memory["float32 tensors like the student's head"] == 4


def test_the_watch_sees_logits_of_all_tokens_and_each_time_the_host_reads():
    case = fused_pass.Case(sizes.small(), num_tokens=80, vocabulary=90, dtype=torch.float32)
    with measure.Watch() as watch:
        case.plain(fused_pass.ForwardKL())
    assert watch.largest == (80, 90)
    ones = torch.ones(4)
    assert measure.num_waits(lambda: [ones.sum().item(), ones[ones > 0], bool(ones.any())], CPU) == 3


def test_a_full_run_asks_for_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        run.main()
    assert "--small" in capsys.readouterr().err
