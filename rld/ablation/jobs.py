"""Run `rld train` again and again in processes of its own, a few at a time, each once those that it needs are done."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rld.utils.interrupts import StopRequest, stop_on_signals
from rld.utils.run_folder import RunFolder

_NUM_TOLD = 6


@dataclass(frozen=True)
class Job:
    """One run of a recipe.

    Attributes:
        title: What to call it.
        folder: The run's.
        arguments: Those of `rld train`.
        needs: A job that must be done before.
        prepare: Makes the folder ready.
    """

    title: str
    folder: Path
    arguments: tuple[str, ...]
    needs: Job | None
    prepare: Callable[[], None]


class Process(Protocol):
    """What is asked of a process at work."""

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def wait(self) -> int: ...


Start = Callable[[Job], Process]


def starter(at_once: int) -> Start:
    """Return what starts a job as a process, with its share of the cores; what it prints goes to its log.

    Importing takes longer than a small run trains. So on Linux one process imports everything and does nothing else,
    and each job is a copy of it; elsewhere such copies are not safe, and each job imports anew.
    """
    given = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // at_once, 1)), "OMP_WAIT_POLICY": "PASSIVE"}
    given["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a process that asked CUDA itself for GPUs has no usable copies
    for name, value in given.items():
        os.environ.setdefault(name, value)
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["rld.pipeline.train"])

    def start(job: Job) -> Process:
        process = context.Process(target=_train, args=(job.arguments, RunFolder(job.folder).log))
        process.start()
        return _Started(process)

    return start


class _Started:
    """A job's process."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self) -> int:
        self._process.join()
        code = self._process.exitcode
        assert code is not None  # it has ended
        return code


def _train(arguments: Sequence[str], log: Path) -> None:
    """Be `python -m rld train`, in a session of its own: a terminal's Ctrl-C would reach it twice, which is less polite
    than once."""
    if hasattr(os, "setsid"):
        os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["rld", "train", *arguments]
    runpy.run_module("rld", run_name="__main__", alter_sys=True)


def run(jobs: Sequence[Job], at_once: int, start: Start, tell: Callable[[str], None]) -> list[Job]:
    """Run jobs in their order, up to `at_once` at the same time, and say how each ends.

    Returns:
        The jobs that failed, those whose needs failed included; the others are done.

    Raises:
        KeyboardInterrupt: the user stopped it, and those at work have stopped after their step, with a checkpoint.
    """
    waiting, failed = list(jobs), list[Job]()
    working: dict[Job, tuple[Process, float]] = {}
    num_stops = 0
    message = "stopping after this step, the same command goes on; once more stops at once"
    with stop_on_signals(StopRequest(message, second_raises=False), ("SIGINT", "SIGTERM", "SIGHUP")) as stop:
        try:
            while waiting or working:
                if len(stop.signals) > num_stops:
                    num_stops = len(stop.signals)
                    waiting.clear()
                    _terminate(process for process, _ in working.values())
                for job in [job for job, (process, _) in working.items() if process.poll() is not None]:
                    process, began = working.pop(job)
                    left = f"{len(waiting) + len(working)} to go"
                    if process.wait() and not num_stops:
                        failed.append(job)
                        tell(_failure(job, process.wait()))
                    elif not num_stops:
                        tell(f"{job.title}: done in {time.monotonic() - began:.0f} s; {left}")
                for job in [job for job in waiting if job.needs in failed]:
                    waiting.remove(job)
                    failed.append(job)
                    tell(f"{job.title}: not run, because {job.needs.title if job.needs else ''} failed")
                ready = [job for job in waiting if job.needs not in waiting and job.needs not in working]
                for job in ready[: at_once - len(working)]:
                    waiting.remove(job)
                    try:
                        job.prepare()
                        working[job] = start(job), time.monotonic()
                    except OSError as error:  # such as a full disk; the others go on
                        failed.append(job)
                        tell(f"{job.title}: not started: {error}")
                time.sleep(0.05)
        finally:
            _terminate(process for process, _ in working.values())
    if num_stops:
        raise KeyboardInterrupt
    return failed


def _terminate(processes: Iterable[Process]) -> None:
    for process in processes:
        process.terminate()


def _failure(job: Job, code: int) -> str:
    log = RunFolder(job.folder).log
    lines = log.read_text(errors="replace").splitlines()[-_NUM_TOLD:] if log.is_file() else []
    return "\n".join([f"{job.title}: failed with exit code {code}; the end of {log}:", *(f"  {x}" for x in lines)])
