"""Short messages for the user, beside a command's output."""

from __future__ import annotations

import os
import sys


def tell(text: str) -> None:
    """Print a line to stderr; of a distributed run, the main process alone prints it."""
    if is_main_process():
        print(f"rld: {text}", file=sys.stderr, flush=True)


def is_main_process() -> bool:
    """Tell whether this is the process of a distributed run that prints messages."""
    return os.environ.get("RANK", "0") == "0"
