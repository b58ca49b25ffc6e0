"""reasoning-gym, the optional library of puzzles and of their verifiers."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from rld.errors import LibraryError

NEEDS = "needs the package reasoning-gym; install it with: pip install -e '.[puzzles]', in a clone of rld"


def is_installed() -> bool:
    """Return whether reasoning-gym can be imported; nothing is imported."""
    return importlib.util.find_spec("reasoning_gym") is not None


def reasoning_gym(user: str) -> ModuleType:
    """Import and return reasoning-gym, which takes a second, so only what has its tasks calls this.

    Args:
        user: What needs it, for the message.

    Raises:
        LibraryError: it is not installed, or lacks one of its own packages.
    """
    try:
        import reasoning_gym as library
    except ModuleNotFoundError as error:
        raise LibraryError(f"{user} {NEEDS} (there is no {error.name})") from error
    module: ModuleType = library
    return module
