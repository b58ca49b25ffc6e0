"""Run `rld train` again and again in processes of its own, a few at a time, each once those that it needs are done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

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
            # In a session of its own: a terminal's Ctrl-C would reach it twice, which is less polite than once.
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    return start


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
    with _listening() as signals:
        try:
            while waiting or working:
                if len(signals) > num_stops:
                    num_stops = len(signals)
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
                    job.prepare()
                    working[job] = start(job), time.monotonic()
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
    log = job.folder / LOG
    lines = log.read_text(errors="replace").splitlines()[-_NUM_TOLD:] if log.is_file() else []
    return "\n".join([f"{job.title}: failed with exit code {code}; the end of {log}:", *(f"  {x}" for x in lines)])


@contextmanager
def _listening() -> Iterator[list[int]]:
    """Collect the signals that ask to stop; a second one reaches those at work again, which then stop at once."""
    caught = list[int]()

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        print("rld: stopping after this step, the same command goes on; once more stops at once", file=sys.stderr)

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
    before = [signal.signal(number, note) for number in numbers]
    try:
        yield caught
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
