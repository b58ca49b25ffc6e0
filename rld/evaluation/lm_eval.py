"""Scores on tasks of lm-evaluation-harness (the package lm-eval, version 0.4), which is imported when it is used."""

from __future__ import annotations

import functools
import logging
import math
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import RecipeError
from rld.evaluation.intervals import REACH
from rld.evaluation.measured import MeasuredScore, MeasuredScores
from rld.recipe import registry
from rld.recipe.evaluation import LmEval
from rld.utils.hub import use_caches_if_unreachable
from rld.utils.suggestions import nearest

_NUM_RESAMPLES = 100
"""Of metrics that are no means over rows, whose standard errors lm-eval computes by a bootstrap."""


def build(options: LmEval, source: Path, *, is_chat: bool) -> LmEvalEvaluator:
    """Return the evaluator that options describe; see `evaluators.build_evaluator`."""
    return LmEvalEvaluator(options, source, is_chat)


@dataclass(frozen=True)
class LmEvalEvaluator:
    """Scores models by lm-eval's `simple_evaluate`; each process scores all rows of its tasks.

    Attributes:
        options: The tasks.
        source: The recipe's file.
        is_chat: Whether questions are formatted with the model's chat template.
    """

    options: LmEval
    source: Path
    is_chat: bool

    def require_possible(self) -> None:
        """Check that lm-eval knows the tasks.

        Raises:
            RecipeError: it does not know one.
        """
        names = _task_names(self._tasks)
        for task in self.options.tasks:
            if task not in names:
                near = nearest(task, names)
                fix = f"; did you mean {near!r}?" if near is not None else ""
                folder = f" or in {self.options.include_path}" if self.options.include_path is not None else ""
                raise RecipeError(f"tasks: there is no task {task!r} in lm-eval{folder}{fix}")

    def evaluate(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> MeasuredScores:
        """Return the scores of each task; see `Evaluator`."""
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        use_caches_if_unreachable()
        with _restored(model):
            results = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.options.batch_size),
                tasks=list(self.options.tasks),
                task_manager=self._tasks,
                num_fewshot=self.options.num_fewshot,
                limit=self.options.limit,
                apply_chat_template=self.is_chat,
                bootstrap_iters=_NUM_RESAMPLES,
                log_samples=False,
            )
        return {task: self._scores(task, results) for task in self.options.tasks}

    def _scores(self, task: str, results: Mapping[str, Any]) -> Mapping[str, MeasuredScore]:
        """Return the scores of a task, a main one first.

        Raises:
            RecipeError: it has no main score.
        """
        values = results["results"].get(task, {})
        is_better = results["higher_is_better"].get(task, {})
        scores, main = dict[str, MeasuredScore](), list[str]()
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            name = metric if filtered == "none" else f"{metric} ({filtered})"
            error = values.get(f"{metric}_stderr,{filtered}")
            spread = REACH * error if isinstance(error, (int, float)) and math.isfinite(error) else 0.0
            low, high = float(value - spread), float(value + spread)
            if is_better.get(metric) and 0 <= value <= 1:
                main.append(name)
                low, high = max(low, 0.0), min(high, 1.0)
            if math.isfinite(value):
                scores[name] = MeasuredScore(float(value), low, high)
        if not main:
            raise RecipeError(
                f"tasks: {task} has no score that is between 0 and 1 and better where it is larger, by which models "
                f"could be compared; it has {', '.join(scores) or 'none'}"
            )
        return {name: scores[name] for name in [main[0], *(name for name in scores if name != main[0])]}

    @functools.cached_property
    def _tasks(self) -> Any:
        """The tasks that lm-eval knows; its own, which are many, only where a task is none of the user's."""
        from lm_eval.tasks import TaskManager

        path = self.options.include_path
        if path is not None:
            folder = registry.find_path(path, self.source.parent)
            assert folder is not None  # the recipe was checked
            manager = TaskManager(include_path=str(folder), include_defaults=False)
            if set(self.options.tasks) <= _task_names(manager):
                return manager
            return TaskManager(include_path=str(folder))
        return TaskManager()


def _task_names(manager: Any) -> set[str]:
    """Return the names of tasks, and of groups that have scores of their own."""
    return {*manager.all_subtasks, *manager.all_groups}


@contextmanager
def _restored(model: PreTrainedModel) -> Iterator[None]:
    """Restore a model's mode and the random states, which lm-eval sets.

    It returns scores to the first process of a machine alone, which it knows by `LOCAL_RANK`; here all need them.
    """
    training, states = model.training, (random.getstate(), np.random.get_state())
    local_rank = os.environ.pop("LOCAL_RANK", None)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        model.train(training)
        if local_rank is not None:
            os.environ["LOCAL_RANK"] = local_rank
        random.setstate(states[0])
        np.random.set_state(states[1])
