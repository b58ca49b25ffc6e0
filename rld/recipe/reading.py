"""Read a recipe, apply the command line's overrides, and report all of its mistakes in one error.

`document.py` records the line of each value, `schema.py` defines the allowed values, `checks.py` checks that the parts
are consistent; this module turns pydantic's errors into sentences and adds the `file:line` of every mistake.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rld.recipe import checks
from rld.recipe.document import Loc, RecipeDocument, RecipeProblem, value_at, value_text
from rld.recipe.schema import Recipe
from rld.utils.options import OptionError
from rld.utils.run_folder import RunFolder
from rld.utils.suggestions import hint, nearest

_WORDS = {
    "dict_type": "should be a mapping",
    "model_type": "should be a mapping",
    "model_attributes_type": "should be a mapping",
    "list_type": "should be a list",
    "string_type": "should be text",
    "bool_type": "should be true or false",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "string_pattern_mismatch": "should have only letters, digits, '_' and '-'",
}


_MISSPELT = "; did you mean "


def read_recipe(path: str | Path, overrides: Sequence[str] = (), folder: Path | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        path: The recipe's file.
        overrides: Such as `stages.distill.rollout.temperature=0.7`: the keys that lead to a value, joined by dots,
            an item of a list by its index or its `name`; then the value in YAML.
        folder: The folder that its paths are relative to. None: the file's.

    Raises:
        RecipeError: the recipe cannot be used; one line per mistake, with its file and line.
    """
    document = RecipeDocument(Path(path), overrides, folder)
    problems = [*document.problems, *checks.problems(document)]
    try:
        recipe = Recipe.model_validate(document.tree, strict=True)
    except ValidationError as error:
        problem_locs = {problem.loc for problem in document.problems}
        problems += [problem for problem in _sentences(error, document) if problem.loc not in problem_locs]
    if problems:
        raise document.report(problems)
    return recipe.read_from(document)


def read_recipe_of_run(run: RunFolder) -> tuple[Recipe, Path]:
    """Return the resolved recipe of a run, and the file to whose folder its paths are relative.

    Raises:
        CheckpointError: the run's summary is missing or damaged.
        RecipeError: the recipe cannot be used now, for example because a file that it names is gone.
    """
    source = run.find_recipe_file()
    return read_recipe(run.recipe, folder=source.parent), source


def _sentences(error: ValidationError, document: RecipeDocument) -> list[RecipeProblem]:
    """Return one problem per location; pydantic reports one error for each member of an untagged union."""
    sentences: dict[Loc, list[str]] = {}
    for details in error.errors(include_url=False):
        loc = _loc(details, document.tree)
        label = document.label(loc)
        text = _sentence(details, label)
        if loc in sentences and _MISSPELT in sentences[loc][0]:
            continue  # a word that is nearly right is no mapping either
        if loc in sentences and _MISSPELT not in text:
            sentences[loc].append(text.removeprefix(f"{label} "))
        else:
            sentences[loc] = [text]
    parents = {loc[:length] for loc in sentences for length in range(len(loc))}
    return [
        RecipeProblem(loc, ", or ".join(dict.fromkeys(texts))) for loc, texts in sentences.items() if loc not in parents
    ]


def _loc(error: Any, tree: Any) -> Loc:
    """Return an error's location in the recipe, without the names of union members that pydantic inserts."""
    loc: Loc = ()
    *parents, last = error["loc"] or ("",)  # of the recipe as a whole
    for part in parents:
        if _has(value_at(tree, loc), part):
            loc = (*loc, part)
    if _has(value_at(tree, loc), last) or error["type"] in ("missing", "extra_forbidden") or last == "[key]":
        loc = (*loc, last)
    reason = error.get("ctx", {}).get("error")
    loc = (*loc, *reason.keys) if isinstance(reason, OptionError) else loc
    return (*loc, error["ctx"]["discriminator"].strip("'")) if error["type"] == "union_tag_invalid" else loc


def _has(value: Any, key: Any) -> bool:
    return key in value if isinstance(value, dict) else isinstance(value, list) and key in range(len(value))


def _sentence(error: Any, label: str) -> str:
    loc, kind, value, context = error["loc"], error["type"], error.get("input"), error.get("ctx", {})
    match kind:
        case "extra_forbidden":
            kinds = [kind for kind, fields in _fields_of_kinds(loc[:-1]).items() if loc[-1] in fields]
            place = f"; it is an option of kind: {' or '.join(kinds)}" if kinds else ""
            return f"unknown key {label!r}{place or hint(str(loc[-1]), _fields(loc[:-1]))}"
        case "missing":
            return f"{label!r} is required"
        case "union_tag_invalid":
            return f"{label} cannot be {context['tag']!r}{hint(str(context['tag']), _kinds(loc))}"
        case "union_tag_not_found":
            return f"{label + '.' + context['discriminator'].strip(chr(39))!r} is required{hint('', _kinds(loc))}"
        case "literal_error":
            choices = re.findall(r"'([^']+)'", context["expected"])
            return f"{label} cannot be {value_text(value)}{hint(str(value), choices)}"
        case "too_short" | "string_too_short":
            return f"{label} should not be empty"
        case "string_pattern_mismatch" if "http" in context["pattern"]:
            return f"{label} should be an address that begins with http:// or https://, not {value_text(value)}"
        case "invalid_key":
            return f"{label}: a key should be text"
        case "unknown_kind" if loc and loc[-1] in _fields_of_members(loc):
            return f"{label}: {str(loc[-1])!r} is an option; indent it below the name to which it belongs"
        case "unknown_kind" | "value_error":
            colon = ":" if kind == "value_error" and label else ""
            return f"{label}{colon} {error['msg'].removeprefix('Value error, ')}".lstrip()
    requirement = _WORDS.get(kind) or error["msg"].replace("Input should be", "should be", 1)
    if loc[-1] == "[key]":
        return f"{label.removesuffix('.[key]')}: its name {requirement}"
    return f"{label} {requirement}, not {value_text(value)}{_form(loc, value)}"


def _fields(loc: Loc) -> list[str]:
    """Return the keys that the schema allows at `loc`."""
    return list(_schema(loc).get("properties", {}))


def _fields_of_kinds(loc: Loc) -> dict[str, list[str]]:
    """Return the keys of each kind that the union has of which `loc` is a member."""
    mapping = _kinds(loc[:-1]) if loc else {}
    return {kind: list(_definition(ref).get("properties", {})) for kind, ref in mapping.items()}


def _fields_of_members(loc: Loc) -> set[str]:
    """Return the keys of all members of the union at `loc`."""
    node = _schema(loc)
    references = [member["$ref"] for member in node.get("oneOf", node.get("anyOf", [])) if "$ref" in member]
    return {field for reference in references for field in _definition(reference).get("properties", {})}


def _form(loc: Loc, value: Any) -> str:
    """Return a line with the form of the mapping or list at `loc`, with the value in it if it fits; else ""."""
    node, key = _schema(loc), "-" if isinstance(loc[-1], int) else f"{loc[-1]}:"
    if node.get("type") == "array" and isinstance(value, (str, int, float)):
        return f"; write {key} [{value}]"
    tags = list(_kinds(loc))
    fields = node.get("properties", {})
    if tags:
        kind = nearest(value, tags) if isinstance(value, str) else None
        return f"; write {key} {{kind: {kind or tags[0]}}}, of the kinds {', '.join(tags)}"
    if fields:
        name = next(iter(node.get("required", fields)))
        return f"; write {key} {{{name}: {_example(fields[name], value)}}}, with the keys {', '.join(fields)}"
    if "additionalProperties" in node and node.get("type") == "object":
        inner = node["additionalProperties"]
        return f"; write {key} {{NAME: {_example(inner if isinstance(inner, dict) else {}, value)}}}"
    return ""


def _example(node: dict[str, Any], value: Any) -> Any:
    """Return a value for a field: that given if its type fits, else a mapping of what it requires, or the default."""
    types: dict[str, Any] = {"number": (int, float), "integer": int, "string": str, "boolean": bool}
    options = [node, *node.get("anyOf", []), *node.get("oneOf", [])]
    if any(isinstance(value, types[option["type"]]) for option in options if option.get("type") in types):
        return value
    for option in options:
        if "$ref" in option:
            inner = _definition(option["$ref"])
            required = [f"{name}: {_example(inner['properties'][name], value)}" for name in inner.get("required", [])]
            return f"{{{', '.join(required)}}}"
    if isinstance(node.get("default"), (int, float, str)):
        return node["default"]
    return next((option["type"].upper() for option in options if "type" in option), "VALUE")


def _kinds(loc: Loc) -> dict[str, str]:
    """Return the kinds that the union at `loc` has, each with the reference to its definition."""
    mapping: dict[str, str] = _schema(loc).get("discriminator", {}).get("mapping", {})
    return mapping


@cache
def _root_schema() -> dict[str, Any]:
    return Recipe.model_json_schema()


def _definition(reference: str) -> dict[str, Any]:
    """Return the definition of the schema to which a reference such as `#/$defs/Sft` leads."""
    node: dict[str, Any] = _root_schema()["$defs"][reference.rsplit("/", 1)[-1]]
    return node


def _schema(loc: Loc) -> dict[str, Any]:
    """Return the recipe's JSON schema at `loc`, a pydantic location that includes the names of union members."""
    node = _root_schema()
    for part in loc:
        if "oneOf" in node:
            members = {ref["$ref"].rsplit("/", 1)[-1]: ref for ref in node["oneOf"] if "$ref" in ref}
            members |= {tag: {"$ref": ref} for tag, ref in node.get("discriminator", {}).get("mapping", {}).items()}
            node = members.get(part, {})
        elif isinstance(part, int):
            node = node.get("items", {})
        else:
            by_pattern: dict[str, Any] = next(iter(node.get("patternProperties", {}).values()), {})
            node = node.get("properties", {}).get(part) or node.get("additionalProperties") or by_pattern
            node = next((option for option in node.get("anyOf", []) if option.get("type") != "null"), node)
        if "$ref" in node:
            node = _definition(node["$ref"])
    return node
