"""Runs in processes of their own, alone or connected."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed.run
from accelerate.commands.launch import launch_command, launch_command_parser

from rld.cli import main
from rld.recipe.registry import files
from tests.support.cpu_sharding import shard_on_cpu

FORK: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
"""Starts a process that has what a test has patched; threads of the test's own process may have left locks in it."""


class _ServedProcess(ForkServerProcess):
    """Has the environment of the process that starts it; the server's is that of the first test which started it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._environment = dict(os.environ)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class _ServerContext(ForkServerContext):
    Process: Any = _ServedProcess


FORK_SERVER: Any = _ServerContext() if sys.platform == "linux" else multiprocessing.get_context("spawn")
"""Starts a process that has imported rld and nothing else: no locks, threads or patches of the test's process."""
FORK_SERVER.set_forkserver_preload(["rld.cli", "rld.pipeline.train", "rld.pipeline.distill", "rld.pipeline.sft"])


SECONDS_OF_A_MODULE = 600.0
"""Seconds in which the processes of a module have to end."""

SECONDS_AFTER_A_FAILURE = 20.0
"""Seconds in which connected processes have to end after the first of them has failed."""


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


def sharing_environment(name: str, *options: str) -> dict[str, str]:
    """Return the variables by which `accelerate launch` tells two CPU processes how to share a training.

    Args:
        name: A shipped file, such as `accelerate/fsdp2`.
        options: Others of the launcher, which take the place of the file's.
    """
    sizes = ["--num_processes", "2", "--main_process_port", str(free_port()), "--mixed_precision", "no"]
    words = ["--config_file", str(files("accelerate")[name]), *sizes, *options, "script.py"]
    variables: dict[str, str] = {}
    with patch.object(torch.distributed.run, "run", lambda _: variables.update(os.environ)):
        launch_command(launch_command_parser().parse_args(words))
    own = {key: value for key, value in variables.items() if key.startswith(("ACCELERATE_", "FSDP_"))}
    return own | {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def train_quietly(arguments: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Train in one thread, and end this process with the exit code; all that is printed is added to a file."""
    run_quietly(["train", *arguments], log, environment)


def run_quietly(command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a command of rld as `train_quietly` does."""
    _begin(log, environment or {})
    sys.exit(main(command))


def run_module(name: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """Do in one thread what `python -m NAME ARGUMENTS` does; all that is printed is added to a file."""
    _begin(log, environment)
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__")


def _begin(log: Path, environment: Mapping[str, str]) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= environment
    torch.set_num_threads(1)
    shard_on_cpu()


def started(target: Callable[..., None], arguments: Iterable[tuple[Any, ...]]) -> list[BaseProcess]:
    """Start a process for each tuple of arguments of a function, and return them."""
    processes = [FORK_SERVER.Process(target=target, args=each) for each in arguments]
    for process in processes:
        process.start()
    return processes


def run_modules(
    name: str, arguments: Sequence[str], num_processes: int, *, log: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Run a module in so many connected processes, which end within a few minutes and without an error.

    Args:
        name: The module's.
        arguments: Its command line.
        num_processes: 1: it is not connected.
        log: The file to which all processes add what they print.
        environment: Variables that they have beside those that connect them.
    """
    port, common = free_port(), environment or {}
    variables = [
        {**common, **rank_environment(rank, num_processes, port), "CUDA_VISIBLE_DEVICES": ""}
        for rank in range(num_processes)
    ]
    codes = exit_codes(started(run_module, [(name, arguments, log, own) for own in variables]), SECONDS_OF_A_MODULE)
    assert codes == [0] * num_processes, f"{codes}: {log.read_text()[-5000:]}"


def exit_codes(
    processes: Sequence[BaseProcess], seconds: float, after_failure: float = SECONDS_AFTER_A_FAILURE
) -> list[int | None]:
    """Return the exit codes of processes, None for those that have not ended in time and are killed.

    Args:
        processes: Those that have been started.
        seconds: The time that they have.
        after_failure: The time that the others have when one has failed: they may wait for it in vain.
    """
    deadline, has_failed = time.monotonic() + seconds, False
    while running := [process.sentinel for process in processes if process.exitcode is None]:
        if not has_failed and any(process.exitcode for process in processes):
            deadline, has_failed = min(deadline, time.monotonic() + after_failure), True
        if not connection.wait(running, max(0.0, deadline - time.monotonic())):
            break
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes
