"""One process and two come to the same student and the same controller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def launch(folder: Path, num_processes: int, *arguments: str) -> None:
    # Accelerate's own launcher starts several CPU processes through MPI only; torchrun needs none.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = [str(HERE / "one_and_two.py"), str(folder), str(num_processes), *arguments]
    done = subprocess.run(command + script, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def test_one_process_and_two_give_the_same_update(tmp_path):
    launch(tmp_path, 1)
    launch(tmp_path, 2)
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    for weights in two:
        torch.testing.assert_close(weights, one, rtol=1e-4, atol=1e-6)
    states = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1_0", "2_0", "2_1")]
    assert states[1] == states[2]
    assert states[1]["protection"] == states[0]["protection"]
    assert states[1]["counters"] == pytest.approx(states[0]["counters"])
    states = [state["steering"] for state in states]
    assert states[0]["ticks"] == 2
    paid = [state["state"]["skills"]["first"]["paid"] for state in states]
    assert paid[0] == paid[1] != [2.0, 0.2]
    assert states[1]["state"]["skills"]["first"]["student"] == states[0]["state"]["skills"]["first"]["student"]
    for name in ("first", "second"):
        logs = [{s: entry["log"] for s, entry in x["state"]["skills"][name]["signals"].items()} for x in states]
        assert logs[1] == pytest.approx(logs[0], rel=1e-4)


def test_a_stop_that_reaches_one_process_stops_both_at_the_same_step(tmp_path):
    launch(tmp_path, 2, "1")
    assert [(tmp_path / f"steps_{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    assert (tmp_path / "run" / "checkpoint-2" / "rld_state.json").is_file()
