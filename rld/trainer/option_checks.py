"""Checks of the options of `RLDConfig`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rld.errors import RecipeError


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse an option that is none of its choices.

    Raises:
        RecipeError: it is none of them.
    """
    if value not in choices:
        raise RecipeError(f"{name}: {value!r} is none of {', '.join(choices)}")


def require(name: str, value: float, is_valid: bool, condition: str) -> None:
    """Refuse a number that does not meet a condition.

    Raises:
        RecipeError: it does not.
    """
    if not is_valid:
        raise RecipeError(f"{name} should be {condition}, not {value}")


def require_gold_options(args: Any) -> None:
    """Refuse options of an `RLDConfig` by which gold answers, or others in their place, cannot be learnt.

    Raises:
        RecipeError: one of them cannot be used with the others.
    """
    is_possible = 0 <= args.gold_completions <= (args.num_generations or 0)
    require("gold_completions", args.gold_completions, is_possible, "at least 0 and at most num_generations")
    require("refill", args.refill, args.refill >= 0, "at least 0")
    if args.refill and args.gold_completions:
        raise RecipeError("refill: it samples all completions of a prompt anew; leave out gold_completions")
    if args.gold_completions == args.num_generations and (args.signals is None or "policy" in args.signals):
        raise RecipeError("with gold answers alone there are no attempts to reinforce: leave policy out of signals")
    require("gold_weight", args.gold_weight, args.gold_weight >= 0, "at least 0")
    if args.gold_weight and args.temperature != 1:
        raise RecipeError("gold_weight needs log-probabilities at temperature 1; set temperature to 1")
    if args.has_gold_prompts and args.refill:
        raise RecipeError("refill: it samples all completions of a prompt anew; leave gold_weight out")
    require_choice("gold_answers", args.gold_answers, ("rows", "teachers", "either"))
    if args.gold_answers != "rows" and not args.has_gold_prompts:
        raise RecipeError("gold_answers: leave it out without gold_weight, and with gold_completions and labels")
    if args.gold_share is not None:
        require("gold_share", args.gold_share, 0 < args.gold_share <= 1, "above 0 and at most 1")
        condition = "left out without gold_weight, and with gold_completions and labels"
        require("gold_share", args.gold_share, args.has_gold_prompts, condition)
