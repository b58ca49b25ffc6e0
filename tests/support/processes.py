"""Runs in processes of their own, alone or connected."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from rld.cli import main

FORK: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
"""Starts a process that has what a test has patched; threads of the test's own process may have left locks in it."""

FORK_SERVER: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
"""Starts a process that has imported rld and nothing else: no locks, threads or patches of the test's process."""
FORK_SERVER.set_forkserver_preload(["rld.cli", "rld.pipeline.train", "rld.pipeline.distill", "rld.pipeline.sft"])


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def rank_environment(rank: int, num_processes: int, port: int) -> dict[str, str]:
    """Return the variables by which a launcher connects the processes of this machine; none for a single process."""
    if num_processes == 1:
        return {}
    sizes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
    return {name: str(size) for name, size in sizes.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def train_quietly(arguments: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Train in one thread, and end this process with the exit code; all that is printed is added to a file."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= environment or {}
    torch.set_num_threads(1)
    sys.exit(main(["train", *arguments]))


def exit_codes(processes: Sequence[BaseProcess], seconds: float) -> list[int | None]:
    """Return the exit codes of processes, None for those that have not ended after so many seconds and are killed."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes
