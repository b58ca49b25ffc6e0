"""Kill runs at random moments, and look at what `--resume` makes of them: `python -m tests.kills --moments 50`.

A run has every kind of stage. It is killed and resumed at random moments until it ends, by one process, and by two
under DDP or FSDP2, of which one alone is killed: the other one has to end by itself. Then it has to be as a run that
was never killed: the same weights, log and files. Whatever is killed, a run never goes back behind its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

import rld.pipeline.train  # noqa: F401 - so that a fork need not import it
from rld.recipe.reading import read_recipe
from rld.trainer import checkpoints
from rld.utils import files
from tests.support.processes import (
    exit_codes,
    free_port,
    rank_environment,
    sharing_environment,
    started,
    train_quietly,
)
from tests.support.runs import COPY_TASKS, single_thread, written

SECONDS_OF_A_RUN = 600.0
"""Seconds in which a run that is not killed has to end."""

SECONDS_TO_END = 60.0
"""Seconds in which a process has to end by itself once another one of its run was killed."""

WAYS = {"alone": (1, None), "DDP": (2, None), "FSDP2": (2, "accelerate/fsdp2")}
"""Ways to run: the number of processes, and the launcher's file of how they share the training."""

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}, {length: 3}], held_out: 4}
  constant: {generator: ./tasks.py:constant, levels: [{length: 9}], held_out: 4}
models:
  tiny: {new: llama, config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}}
trainer: {learning_rate: 1e-2}
stages:
  - {name: taught, kind: sft, student: tiny, steps: 6, batch: 8, checkpoint_every: 2}
  - name: distilled
    kind: distill
    student: tiny
    teachers: {taught: {model: taught, probe_prompts: 2}}
    signals: {policy: {}, response: {}, feature: {}}
    curriculum: {use: ladder:Ladder}
    rollout: {prompts: 2, completions: 4}
    trainer: {num_iterations: 2}
    steps: 8
    checkpoint_every: 3
    evaluate_every: 2
  - {name: mean, kind: merge, models: [taught, distilled]}
  - {name: scores, kind: evaluate, model: mean}
  - {name: cut, kind: prune, model: mean, layers: 1, intermediate_size: 16, calibration_rows: 4}
  - {name: last, kind: sft, student: cut, steps: 4, batch: 8, checkpoint_every: 2}
"""


class Kill(NamedTuple):
    """What happened at one moment."""

    seconds: float
    place: str
    was_killed: bool
    """Otherwise the run had ended before that moment."""
    problems: list[str]


class Run:
    """A run in a folder, of one process or of several.

    Args:
        recipe: The path of the recipe.
        folder: Where it writes.
        way: A name of `WAYS`.
    """

    def __init__(self, recipe: Path, folder: Path, way: str) -> None:
        self.recipe, self.folder = recipe, folder
        self.num_processes, file = WAYS[way]
        self.environment = {} if file is None else sharing_environment(file)
        self.log = folder.with_suffix(".log")
        self.processes: list[Any] = []
        self._log_size = 0

    def start(self) -> None:
        """Start it, or go on with it."""
        self.log.touch()
        self._log_size = len(self.log.read_text())
        port = free_port()
        arguments = [str(self.recipe), "--output", str(self.folder), "--resume"]
        environments = [
            self.environment | rank_environment(i, self.num_processes, port) for i in range(self.num_processes)
        ]
        self.processes = started(train_quietly, [(arguments, self.log, environment) for environment in environments])

    def kill(self, rank: int) -> None:
        """Kill one process; before the processes have met, the others get SIGTERM, as from any launcher."""
        have_met = f"{self.num_processes} processes (" in self.log.read_text()[self._log_size :]
        for i, process in enumerate(self.processes):
            if process.exitcode is None and (i == rank or not have_met):
                os.kill(process.pid, signal.SIGKILL if i == rank else signal.SIGTERM)

    def wait(self, seconds: float) -> list[int | None]:
        """Return the processes' exit codes, None for those that have not ended after so many seconds and are killed."""
        processes, self.processes = self.processes, []
        return exit_codes(processes, seconds, after_failure=seconds)

    @property
    def seconds(self) -> float:
        """The processor's seconds that its first process has had."""
        try:
            times = psutil.Process(self.processes[0].pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    @property
    def position(self) -> tuple[int, int]:
        """How far the run is kept, come what may: its finished stages, and the step of the last checkpoint."""
        stages = [stage.name for stage in read_recipe(self.recipe).stages]
        places = [*self.folder.glob("models/*"), *self.folder.glob("evaluations/*"), self.folder / "student"]
        finished = sum((path / "rld_stage.json").is_file() for path in places if path.suffix != ".draft")
        latest = [checkpoints.latest(self.folder / "checkpoints" / stage) for stage in stages[finished : finished + 1]]
        return finished, max((checkpoints.step(path) for path in latest if path is not None), default=0)

    def contents(self) -> dict[str, Any]:
        """Return what it leaves, without times."""
        paths = [*self.folder.rglob("model.safetensors"), *self.folder.rglob("predictions/**/*.jsonl")]
        result: dict[str, Any] = {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}
        for name in ("metrics.jsonl", "events.jsonl"):
            lines = files.read_jsonl(self.folder / name).records
            result[name] = [{k: v for k, v in line.items() if not k.startswith(("seconds", "time/"))} for line in lines]
        stages = files.read_json(self.folder / "summary.json")["stages"]
        result["stages"] = [{k: v for k, v in stage.items() if k != "seconds"} for stage in stages]
        result["files"] = sorted(path.name for path in self.folder.iterdir()) + sorted(self.folder.rglob("*.draft"))
        return result


def whole_run(recipe: Path, folder: Path, way: str) -> tuple[Run, float]:
    """Return a run that is not killed, and the seconds of its first process's own work.

    By the clock a run takes longer than the one before it if the machine is busier.
    """
    run, seconds = Run(recipe, folder, way), 0.0
    run.start()
    deadline = time.monotonic() + SECONDS_OF_A_RUN
    while run.processes[0].exitcode is None and time.monotonic() < deadline:
        seconds = max(seconds, run.seconds)
        time.sleep(0.01)
    codes = run.wait(SECONDS_TO_END)
    assert codes == [0] * run.num_processes, f"{codes}: {run.log.read_text()[-2000:]}"
    return run, seconds


def killed_run(run: Run, whole: Run, seconds: float, rng: random.Random) -> Iterator[Kill]:
    """Kill and resume a run at random moments until it has ended, and yield what is wrong at each.

    Args:
        run: The run.
        whole: The same, uninterrupted.
        seconds: How long that one's first process worked.
    """
    before = run.position
    while True:
        run.start()
        moment, rank, problems = rng.uniform(0.0, seconds), rng.randrange(run.num_processes), []
        deadline = time.monotonic() + SECONDS_OF_A_RUN
        while run.seconds < moment and any(process.exitcode is None for process in run.processes):
            if time.monotonic() > deadline:
                problems.append(f"it neither ended nor worked on: {run.log.read_text()[-1500:]}")
                break
            time.sleep(0.005)
        has_ended = all(process.exitcode is not None for process in run.processes)
        if not has_ended:
            run.kill(rank)
        codes = run.wait(SECONDS_TO_END)
        others = [code for i, code in enumerate(codes) if has_ended or i != rank]
        if None in others:
            problems.append(f"a process did not end within {SECONDS_TO_END:g} s after process {rank} was killed")
        if has_ended and codes != [0] * run.num_processes:
            problems.append(f"it ended with {codes}: {run.log.read_text()[-1500:]}")
        if "Traceback" in run.log.read_text():
            problems.append(f"a traceback: {run.log.read_text()[-1500:]}")
            run.log.unlink()
        if run.position < before:
            problems.append(f"it went back from {before} to {run.position}")
        before = run.position
        if has_ended and not problems:
            expected, left = whole.contents(), run.contents()
            problems += [f"{name} is another one" for name in expected if left.get(name) != expected[name]]
        what = "it had ended before" if has_ended else f"process {rank} killed"
        yield Kill(moment, f"{what}, {before[0]} stages and {before[1]} updates are kept", not has_ended, problems)
        if has_ended:
            return


def kills(folder: Path, num_moments: int, *, seed: int, way: str, recipe_text: str = RECIPE) -> Iterator[Kill]:
    """Yield at least so many kills of runs of one way, over as many runs as that takes."""
    recipe, rng = written(folder, recipe_text, COPY_TASKS), random.Random(f"{seed}:{way}")
    with single_thread():
        whole, seconds = whole_run(recipe, folder / f"whole-{way}", way)
        num_kills = num_runs = 0
        while num_kills < num_moments:
            run, num_runs = Run(recipe, folder / f"run-{way}-{num_runs}", way), num_runs + 1
            for kill in killed_run(run, whole, seconds, rng):
                num_kills += kill.was_killed
                yield kill


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="kills, a third of them in each way (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--way", choices=WAYS, help="run only in this way (default: in all)")
    return parser.parse_args()


if __name__ == "__main__":
    options = _parsed()
    ways = [options.way] if options.way else list(WAYS)
    num_wrong, num_moments = 0, options.moments // len(ways)
    with tempfile.TemporaryDirectory() as name:
        for way in ways:
            for number, kill in enumerate(kills(Path(name), num_moments, seed=options.seed, way=way), 1):
                num_wrong += bool(kill.problems)
                verdict = "; ".join(kill.problems) or "as it should be"
                print(f"{way}, {number}: after {kill.seconds:.2f} s, {kill.place}: {verdict}", flush=True)
    print(f"{num_wrong} moments went wrong")
    sys.exit(num_wrong > 0)
