"""The rewards that TRL ships, as `trl:name`.

TRL's rewards take chat messages and a column `solution`. A recipe's rows have their gold answer in the column `answer`,
and a prompt of style `plain` has texts as completions, so both are converted. A function that makes a reward, such as
`get_soft_overlong_punishment`, is called with the recipe's options.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rld.errors import LibraryError
from rld.recipe import python_source
from rld.utils.suggestions import hint

MODULE = "trl.rewards"

_READ_THINKING = ("think_format_reward", "reasoning_accuracy_reward")
"""Those that look for the markers of thinking parts, which `strip_thinking` and templates that open one take away."""


def names_module(module: str) -> bool:
    """Return whether the part of a name before the colon refers to TRL's rewards."""
    return module in ("trl", MODULE)


def locate(attribute: str) -> Path:
    """Return the file that defines one of TRL's rewards; nothing is imported.

    Raises:
        LibraryError: there is no such reward.
    """
    files = _files()
    if attribute not in files:
        raise LibraryError(f"TRL has no reward {attribute!r}{hint(attribute, files)}")
    return files[attribute]


def needs_math_verify(path: Path) -> bool:
    """Return whether the rewards in one of TRL's files use math-verify."""
    return path.stem == "accuracy_rewards" and path in _files().values()


@functools.cache
def _files() -> dict[str, Path]:
    package = python_source.find(MODULE)
    if package is None:
        return {}
    return {
        name: path
        for path in sorted(package.parent.glob("*_rewards.py"))
        for name, node in python_source.definitions(python_source.parse(path)).items()
        if isinstance(node, python_source.DEFINITIONS) and not name.startswith("_")
    }


def options_of(signature: python_source.Signature) -> python_source.Signature:
    """Return the parameters that are options of a reward with a given signature."""
    if _makes_a_reward(signature.parameters):
        return signature
    parameters, required = (
        tuple(name for name in arguments if name not in ("completions", "completion_ids", "solution", "log_extra"))
        for arguments in (signature.parameters, signature.required)
    )
    return replace(signature, parameters=parameters, required=required, any_name=False)


def bound(reward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Return a reward with its options; one of TRL's also takes the rows and completions of a recipe.

    Raises:
        LibraryError: TRL refuses the options.
    """
    if not (getattr(reward, "__module__", None) or "").startswith(f"{MODULE}."):
        return functools.partial(reward, **options)
    if not _makes_a_reward(inspect.signature(reward).parameters):
        return _converted(reward, options)
    try:
        return _converted(reward(**options), {})
    except (TypeError, ValueError) as error:
        raise LibraryError(f"trl:{reward.__name__} refuses its options: {error}") from error


def _makes_a_reward(arguments: Iterable[str]) -> bool:
    return not {"completions", "completion_ids"} & set(arguments)


def _converted(reward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    def converted(
        completions: list[Any], answer: list[str], whole_completions: list[Any] | None = None, **columns: Any
    ) -> Any:
        texts = whole_completions if whole_completions and reward.__name__ in _READ_THINKING else completions
        messages = [[{"role": "assistant", "content": c}] if isinstance(c, str) else c for c in texts]
        return reward(**columns | options | {"completions": messages, "solution": answer})

    converted.__name__ = reward.__name__
    return converted
