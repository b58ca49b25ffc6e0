"""The order of a training's prompts: a curriculum's, or TRL's own."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from rld.data.prompt_stream import PromptStream
from rld.errors import DataError
from rld.trainer.rld_config import RLDConfig
from rld.types import Curriculum


def prompt_stream(args: RLDConfig, rows: Any, curriculum: Curriculum | None) -> PromptStream | None:
    """Return the prompts in the order that a curriculum picks them, and make the arguments fit.

    Args:
        args: Its number of steps is set where only epochs are, and its shuffling is switched off.
        rows: The training set: a data set, or a `PromptStream`.
        curriculum: Picks skill and level. None: a `PromptStream` has its own.

    Returns:
        None where there is no curriculum, so that rows come in TRL's order.

    Raises:
        DataError: a curriculum without a data set of rows, or with workers.
    """
    if curriculum is not None:
        if not isinstance(rows, Dataset):
            raise DataError("a curriculum picks rows by skill and level, so train_dataset must be a Dataset")
        args.max_steps = args.num_updates(len(rows))
        rows = PromptStream.over(rows, curriculum, args.seed, args.num_prompts())
    if not isinstance(rows, PromptStream):
        return None
    if args.dataloader_num_workers:
        raise DataError("a curriculum needs dataloader_num_workers=0: a worker's copy of it would learn nothing")
    rows.prompts_per_update = args.prompts_per_rollout
    args.shuffle_dataset = False  # the curriculum orders the prompts
    return rows
