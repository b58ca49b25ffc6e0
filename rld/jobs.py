"""Run `rld train` again and again in processes of its own, a few at a time, each once those that it needs are done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol

LOG = "train.log"
"""What a job printed, in its run's folder."""
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
    """Return what starts a job as a process, with its share of the cores; what it prints goes to its log."""
    threads = str(max((os.cpu_count() or 1) // at_once, 1))
    environment = {"OMP_NUM_THREADS": threads} | os.environ

    def start(job: Job) -> Process:
        command = [sys.executable, "-m", "rld", "train", *job.arguments]
        with (job.folder / LOG).open("ab") as log:
            # In a session of its own, Ctrl-C reaches it through `run` alone: a second signal would be less polite.
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    return start


def run(jobs: Sequence[Job], at_once: int, start: Start, tell: Callable[[str], None]) -> list[Job]:
    """Run jobs in their order, up to `at_once` at the same time, and say how each ends.

    Stopped by a signal, it asks those at work to stop after their step, with a checkpoint, and waits for them.

    Returns:
        The jobs that failed, those whose needs failed included; the others are done.
    """
    waiting, failed = list(jobs), list[Job]()
    working: dict[int, tuple[Job, Process, float]] = {}
    with _stoppable():
        try:
            while waiting or working:
                for i in [i for i, (_, process, _) in working.items() if process.poll() is not None]:
                    job, process, began = working.pop(i)
                    code = process.wait()
                    left = f"{len(waiting) + len(working)} to go"
                    if code:
                        failed.append(job)
                        tell(_failure(job, code))
                    else:
                        tell(f"{job.title}: done in {time.monotonic() - began:.0f} s; {left}")
                for job in [job for job in waiting if job.needs in failed]:
                    waiting.remove(job)
                    failed.append(job)
                    tell(f"{job.title}: not run, because {job.needs.title if job.needs else ''} failed")
                busy = [*waiting, *(job for job, _, _ in working.values())]
                ready = [job for job in waiting if job.needs not in busy]
                for job in ready[: at_once - len(working)]:
                    waiting.remove(job)
                    job.prepare()
                    working[id(job)] = job, start(job), time.monotonic()
                time.sleep(0.05)
        except KeyboardInterrupt:
            for _, process, _ in working.values():
                process.terminate()
            for _, process, _ in working.values():
                process.wait()
            raise
    return failed


def _failure(job: Job, code: int) -> str:
    log = job.folder / LOG
    lines = log.read_text(errors="replace").splitlines()[-_NUM_TOLD:] if log.is_file() else []
    return "\n".join([f"{job.title}: failed with exit code {code}; the end of {log}:", *(f"  {x}" for x in lines)])


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and a terminal that is gone stop like Ctrl-C."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
