"""Run `rld train` many times, a few at a time, each in a process of its own and after the job that it needs."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rld.utils.interrupts import StopRequest, end_with_parent, stop_on_signals
from rld.utils.run_folder import RunFolder

PRELOADED = "rld.pipeline.train"
"""The module that imports all that a run needs."""

_NUM_LINES = 6
"""Lines of its log that are shown of a job that failed."""

_SECONDS_PER_LOOK = 0.05
"""How often processes are asked whether they have ended."""

_STOP_MESSAGE = "stopping after this step; the same command continues from there; a second Ctrl-C stops at once"


@dataclass(frozen=True)
class Job:
    """One run of a recipe.

    Attributes:
        title: Its name in messages.
        folder: The run's folder.
        arguments: The arguments of `rld train`.
        needs: The job that must succeed before this one starts. None: it needs no other.
        prepare: Called before it starts; creates the folder.
    """

    title: str
    folder: Path
    arguments: tuple[str, ...]
    needs: Job | None
    prepare: Callable[[], None]


class Process(Protocol):
    """A process as `run_jobs` uses it; `poll` returns the exit code, or None while it runs."""

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def wait(self) -> int: ...


Start = Callable[[Job], Process]


def process_starter(num_parallel: int) -> Start:
    """Return a function that starts a job as a process, with its share of the cores; its output goes to its log.

    Importing takes longer than a small run trains. So on Linux one process imports everything once, and each job is a
    fork of it. Elsewhere forks are not safe, and each job imports for itself.
    """
    environment = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // num_parallel, 1)), "OMP_WAIT_POLICY": "PASSIVE"}
    environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a process that has initialised CUDA cannot be forked
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload([PRELOADED])

    def start(job: Job) -> Process:
        process = context.Process(target=_train, args=(job.arguments, RunFolder(job.folder).log))
        process.start()
        return _StartedProcess(process)

    return start


class _StartedProcess:
    """A process of `multiprocessing` with the methods of `Process`."""

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
    """Do what `python -m rld train` does, in a session of its own, so that a terminal's Ctrl-C does not reach it.

    `run_jobs` passes the request on; a second signal would stop the run at once instead of after its step. A run ends
    with the ablation, even with one that was killed.
    """
    end_with_parent()
    if hasattr(os, "setsid"):
        os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["rld", "train", *arguments]
    runpy.run_module("rld", run_name="__main__", alter_sys=True)


def run_jobs(jobs: Sequence[Job], num_parallel: int, start: Start, tell: Callable[[str], None]) -> list[Job]:
    """Run jobs in their order, up to `num_parallel` at the same time, and report how each ends.

    Args:
        start: Starts a job.
        tell: Prints a message for the user.

    Returns:
        The jobs that failed, and those that need one that failed; all others succeeded.

    Raises:
        KeyboardInterrupt: the user stopped it; runs that had started have written a checkpoint.
    """
    queue = _JobQueue(jobs, num_parallel, start, tell)
    num_requests = 0
    with stop_on_signals(StopRequest(_STOP_MESSAGE, second_raises=False)) as stop:
        try:
            while not queue.is_empty:
                if len(stop.signals) > num_requests:
                    num_requests = len(stop.signals)
                    queue.stop()
                queue.collect()
                queue.start_ready()
                time.sleep(_SECONDS_PER_LOOK)
        finally:
            queue.stop()
    if num_requests:
        raise KeyboardInterrupt
    return queue.failures


class _JobQueue:
    """Jobs that wait, that run, and that failed."""

    def __init__(self, jobs: Sequence[Job], num_parallel: int, start: Start, tell: Callable[[str], None]) -> None:
        self.num_parallel, self.start, self.tell = num_parallel, start, tell
        self.waiting, self.failures = list(jobs), list[Job]()
        self.running: dict[Job, tuple[Process, float]] = {}
        """With the time at which each started."""
        self.is_stopped = False

    @property
    def is_empty(self) -> bool:
        return not self.waiting and not self.running

    def stop(self) -> None:
        """Ask all running processes to stop, and start no others."""
        self.is_stopped = True
        self.waiting.clear()
        for process, _ in self.running.values():
            process.terminate()

    def collect(self) -> None:
        """Report the processes that have ended, and give up the jobs that need a job that failed."""
        ended = [job for job, (process, _) in self.running.items() if process.poll() is not None]
        for job in ended:
            process, started = self.running.pop(job)
            code = process.wait()
            if self.is_stopped:
                continue
            if code:
                self._fail(job, _end_of_log(job, code))
            else:
                seconds, num_left = time.monotonic() - started, len(self.waiting) + len(self.running)
                self.tell(f"{job.title}: finished in {seconds:.0f} s; {num_left} runs left")
        for job in list(self.waiting):
            if job.needs is not None and job.needs in self.failures:
                self.waiting.remove(job)
                self._fail(job, f"{job.title}: not run, because {job.needs.title} failed")

    def start_ready(self) -> None:
        """Start waiting jobs whose needs are met, as many as may run."""
        ready = [job for job in self.waiting if job.needs not in self.waiting and job.needs not in self.running]
        for job in ready[: self.num_parallel - len(self.running)]:
            self.waiting.remove(job)
            try:
                job.prepare()
                self.running[job] = self.start(job), time.monotonic()
            except OSError as error:  # such as a full disk; the other jobs go on
                self._fail(job, f"{job.title}: not started: {error}")

    def _fail(self, job: Job, message: str) -> None:
        self.failures.append(job)
        self.tell(message)


def _end_of_log(job: Job, code: int) -> str:
    log = RunFolder(job.folder).log
    lines = log.read_text(errors="replace").splitlines()[-_NUM_LINES:] if log.is_file() else []
    return "\n".join([f"{job.title}: failed with exit code {code}; the end of {log}:", *(f"  {x}" for x in lines)])
