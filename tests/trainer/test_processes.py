"""One process and two come to the same student and the same controller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.processes import run_modules


def launch(folder: Path, num_processes: int, *arguments: str, module: str = "one_and_two") -> None:
    command = [str(folder), str(num_processes), *arguments]
    run_modules(f"tests.support.{module}", command, num_processes, log=folder / "log")


def found(folder: Path, controller: str) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Weights and states: of one process, and of the two."""
    names = [f"{controller}_{name}" for name in ("1_0", "2_0", "2_1")]
    return [torch.load(folder / f"{name}.pt") for name in names], [
        json.loads((folder / f"{name}.json").read_text()) for name in names
    ]


def test_one_process_and_two_give_the_same_update(tmp_path):
    launch(tmp_path, 1)
    launch(tmp_path, 2)
    for controller in ("gap", "gradient_noise", "gradient_alignment"):
        (one, *two), states = found(tmp_path, controller)
        for weights in two:
            torch.testing.assert_close(weights, one, rtol=1e-4, atol=1e-6)
        assert states[1] == states[2]
        spent = [state["retention"]["state"].pop("budget")["weight"] for state in states]
        assert spent[1] == pytest.approx(spent[0], rel=1e-4)  # by a divergence of 1e-3, in float32
        assert 0.01 < spent[0] < 0.012  # by the divergence over all processes: neither end is cut off
        assert states[1]["retention"] == states[0]["retention"]
        assert states[1]["totals"] == states[0]["totals"]
        for account, parts in states[0]["flops"].items():
            assert states[1]["flops"][account] == pytest.approx(parts)
        assert states[0]["flops"]["gate"].keys() == states[0]["totals"]["prompts_by_teacher"].keys() == {"one", "two"}
        assert {state["runtime"]["ticks"] for state in states} == {2}
        skills = [state["runtime"]["state"]["skills"] for state in states]
        for name in ("first", "second"):
            if controller == "gap":
                logs = [{s: entry["log_weight"] for s, entry in x[name]["signals"].items()} for x in skills]
            else:
                logs = [x[name]["log_weights"] for x in skills]
                assert len({round(log, 3) for log in logs[0].values()}) > 1, "they began alike, and have moved"
            assert logs[1] == pytest.approx(logs[0], rel=1e-4)
        if controller == "gap":
            assert (
                skills[0]["first"]["reward_precision"]
                == skills[1]["first"]["reward_precision"]
                != {"alpha": 2.0, "beta": 0.2}
            )
            assert skills[1]["first"]["student_accuracy"] == skills[0]["first"]["student_accuracy"]


def test_a_stop_that_reaches_one_process_stops_both_at_the_same_step(tmp_path):
    launch(tmp_path, 2, "1")
    assert [(tmp_path / f"steps_{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    assert (tmp_path / "run" / "checkpoint-2" / "rld_state.json").is_file()


def test_two_processes_resume_inside_a_rollout(tmp_path):
    launch(tmp_path, 2, module="resumed_in_rollout")
