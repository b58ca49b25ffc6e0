"""Check options that are passed to a function or class that `use` names, or to a library."""

from __future__ import annotations

import ast
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rld.errors import LibraryError
from rld.recipe import python_source, registry, reserved_options, third_party_options, trl_rewards
from rld.recipe.document import Loc, RecipeProblem, value_text
from rld.recipe.names import RecipeNames, items
from rld.utils.suggestions import WORDS_OF_BOOLEANS, hint, nearest


def check_use(kind: registry.Kind, names: RecipeNames, loc: Loc, raw: Any, key: str = "use") -> Iterator[RecipeProblem]:
    """Check a mapping with the name of a function or class under `key`, and its `options`."""
    if not isinstance(raw, dict) or not isinstance(raw.get(key), str):
        return
    use, options = raw[key], raw.get("options", {})
    signature = yield from find_signature(kind, names, (*loc, key), use)
    if kind == "rewards" and signature is not None and registry.takes_model(signature.parameters):
        signature = replace(signature, parameters=tuple(name for name in signature.parameters if name != "tokenizer"))
        if isinstance(options, dict):
            yield from names.reference((*loc, "options", "model"), options.get("model"))
    own_reward = kind == "rewards" and ".py:" in use
    columns = f"; of a row, a reward gets {', '.join(reserved_options.COLUMNS_OF_REWARDS)} (all other columns)"
    yield from check_call(names, (*loc, "options"), options, use, signature, advice=columns if own_reward else "")


def find_signature(
    kind: registry.Kind, names: RecipeNames, loc: Loc, use: str
) -> Generator[RecipeProblem, None, python_source.Signature | None]:
    """Return the parameters of a function or class that rld does not pass itself; None if the source lacks them."""
    try:
        place = registry.locate(kind, use, names.folder)
    except LibraryError as error:
        yield names.problem(loc, f": {error}")
        return None
    signature = python_source.signature(
        python_source.parse(place.path), place.attribute, skip=0 if kind == "rewards" else 1
    )
    if signature is None or kind != "rewards":
        return signature
    if place.module == trl_rewards.MODULE:
        return trl_rewards.options_of(signature)
    # TRL passes every column of the rows to a reward by name, so it has **columns; options must be named parameters
    if "completions" not in signature.parameters and not signature.any_name:
        yield names.problem(loc, f": {use} is no reward, for it takes no argument called completions")
    elif not signature.any_name:
        fix = "end its arguments with **_, for it gets every column of the rows by name"
        yield names.problem(loc, f": {use} takes no other arguments; {fix}")
    parameters, required = (
        tuple(name for name in arguments if name not in reserved_options.GIVEN_TO_REWARDS)
        for arguments in (signature.parameters, signature.required)
    )
    return replace(signature, parameters=parameters, required=required, any_name=False)


def check_call(
    names: RecipeNames,
    loc: Loc,
    arguments: Any,
    use: str,
    signature: python_source.Signature | None,
    *,
    advice: str = "",
) -> Iterator[RecipeProblem]:
    """Check the keyword arguments for the function or class that `use` names.

    Args:
        advice: Text behind the problem of a required argument that is missing.
    """
    if signature is None or not isinstance(arguments, dict):
        return
    for key, value in arguments.items():
        annotation = signature.annotations.get(key)
        if key not in signature.parameters and not signature.any_name:
            correction = hint(str(key), signature.parameters) or f"; {use} takes no such option"
            yield RecipeProblem((*loc, key), f"unknown key '{names.label((*loc, key))}'{correction}")
        elif annotation is not None and not third_party_options.accepts(annotation, value):
            yield names.problem((*loc, key), f" should be {ast.unparse(annotation)}, not {value_text(value)}")
        elif key in signature.switches and isinstance(value, str) and value.lower() in WORDS_OF_BOOLEANS:
            yield names.problem((*loc, key), f" should be true or false, not {value_text(value)}")
    for key in signature.required:
        if key not in arguments:
            yield RecipeProblem(loc, f"'{names.label(loc)}.{key}' is required by {use}{advice}")


def check_options(
    names: RecipeNames,
    loc: Loc,
    options: Any,
    fields: third_party_options.Fields | None,
    reserved: Mapping[str, str] | None = None,
) -> Iterator[RecipeProblem]:
    """Check options that are passed to a library.

    Args:
        fields: The options that the library has. None: its source does not show them.
        reserved: Options that rld sets itself, with the advice on what to set instead.
    """
    for key, value in items(options) if isinstance(options, dict) else ():
        where, field_names = (*loc, key), fields or {}
        option = key if key in field_names else nearest(str(key), field_names)
        if option is not None and option in (reserved or {}):
            yield names.problem(where, f" is not yours to set: {(reserved or {})[option]}")
        elif fields is None:
            continue
        elif key not in fields:
            yield RecipeProblem(where, f"unknown key {names.label(where)!r}{hint(str(key), fields)}")
        elif not third_party_options.accepts(fields[key].annotation, value):
            yield names.problem(where, f" should be {ast.unparse(fields[key].annotation)}, not {value_text(value)}")
        elif (words := third_party_options.choices(fields[key])) is not None and value not in words:
            yield names.problem(where, f" cannot be {value_text(value)}{hint(str(value), words)}")
