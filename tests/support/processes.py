"""Runs in processes of their own, alone or connected."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rld.cli import main

CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")  # nothing is imported again


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
    """Train, and end this process with the exit code; all that is printed is added to a file."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= environment or {}
    sys.exit(main(["train", *arguments]))
