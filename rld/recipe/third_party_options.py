"""Read the options that the installed libraries accept from their source, without importing them.

TRL, transformers, PEFT and reasoning-gym take seconds to import, which is too slow for a recipe's check. Where a
library no longer has a class or name, the function returns None, the recipe's options are not checked, and the library
itself raises an error later; `tests/recipe/test_third_party_options.py` compares every result with the real classes.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

from rld.recipe import python_source

Fields = dict[str, ast.AnnAssign]

_TRAINING = [("transformers.training_args", "TrainingArguments"), ("trl.trainer.base_config", "_BaseConfig")]

_LORA = [("peft.config", "PeftConfigMixin"), ("peft.config", "PeftConfig"), ("peft.tuners.lora.config", "LoraConfig")]

_ENUMS = ["transformers.trainer_utils", "transformers.training_args"]

# Every transformers configuration also takes these arguments and converts them into its fields
_OLDER = ast.parse(
    """class Config:
    rope_theta: float
    rope_scaling: dict | None
    partial_rotary_factor: float
    torch_dtype: str | None
    attn_implementation: str | None
    num_labels: int
"""
)

_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    # TRL annotates a field as str where it also takes a bool, as in scale_rewards
    "str": (str, bool),
    "None": (type(None),),
    "dict": (dict,),
    "list": (list,),
}


@cache
def _tree(module: str) -> ast.Module | None:
    path = python_source.find(module)
    return None if path is None else python_source.parse(path)


@cache
def _definitions(module: str) -> dict[str, ast.stmt]:
    tree = _tree(module)
    return {} if tree is None else python_source.definitions(tree)


def _fields(classes: list[tuple[str, str]]) -> Fields | None:
    """Return the fields of `classes`, (module, class) pairs with base classes first; None if a class is missing."""
    all_fields: Fields = {}
    for module, name in classes:
        tree = _tree(module)
        class_fields = {} if tree is None else python_source.fields(tree, name)
        if not class_fields:
            return None
        all_fields |= class_fields
    return all_fields


@cache
def trainer_fields(module: str, name: str) -> Fields | None:
    """Return the fields of the TRL configuration of a stage's trainer, such as `SFTConfig`."""
    return _fields([*_TRAINING, (module, name)])


@cache
def lora_fields() -> Fields | None:
    """Return the fields of `peft.LoraConfig`."""
    return _fields(_LORA)


@cache
def model_types() -> dict[str, str] | None:
    """Return transformers' `model_type`s and their configuration classes."""
    node = _definitions("transformers.models.auto.auto_mappings").get("CONFIG_MAPPING_NAMES")
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
        return None
    return dict(ast.literal_eval(node.value.args[0]))


@cache
def model_fields(model_type: str) -> Fields | None:
    """Return the options of a transformers configuration, or None when its source does not show them all."""
    name, module = (model_types() or {}).get(model_type), f"transformers.models.{model_type}.configuration_{model_type}"
    tree = _tree(module)
    node = None if tree is None or name is None else python_source.class_of(tree, name)
    if node is None or [ast.unparse(base) for base in node.bases] != ["PreTrainedConfig"]:
        return None
    config_fields = _fields([("transformers.configuration_utils", "PreTrainedConfig"), (module, node.name)])
    return None if config_fields is None else python_source.fields(_OLDER, "Config") | _aliases(node) | config_fields


def _aliases(node: ast.ClassDef) -> Fields:
    """Return the other names of a configuration's options, such as hidden_size for GPT-2's n_embd."""
    lines = ["class Aliases:", "    pass"]
    for item in node.body:
        if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "attribute_map":
            lines += [f"    {name}: Any" for name in ast.literal_eval(item.value)]
    return python_source.fields(ast.parse("\n".join(lines)), "Aliases")


def model_defaults(model_type: str) -> dict[str, Any]:
    """Return the defaults of a transformers configuration that are constants in its source."""
    defaults = {}
    for name, node in (model_fields(model_type) or {}).items():
        if isinstance(node.value, ast.Constant):
            defaults[name] = node.value.value
    return defaults


@cache
def gym_tasks() -> dict[str, Path] | None:
    """Return reasoning-gym's tasks and the files that define them; None when it is not installed."""
    package = python_source.find("reasoning_gym")
    if package is None:
        return None
    tasks = {}
    for path in sorted(package.parent.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        constants = dict(re.findall(r'^(\w+) = "(\w+)"$', text, re.MULTILINE))
        for constant, literal in re.findall(r'^register_dataset\(\s*(?:(\w+)|"(\w+)")\s*,', text, re.MULTILINE):
            name = literal or constants.get(constant)
            if name is not None:
                tasks[name] = path
    return tasks or None


@cache
def gym_fields(task: str) -> Fields | None:
    """Return the configuration of a reasoning-gym task; None when its source does not show it."""
    path = (gym_tasks() or {}).get(task)
    if path is None:
        return None
    tree = python_source.parse(path)
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="register_dataset"), args=[_, _, ast.Name(id=config), *_]):
                return python_source.fields(tree, config) or None
    return None


def accepts(annotation: ast.expr, value: Any) -> bool:
    """Return whether an annotation allows a value; True for an annotation that is not understood."""
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return accepts(left, value) or accepts(right, value)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return value is None or accepts(inner, value)
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=members)):
            return any(accepts(member, value) for member in members)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            return value in _options(inner)
        case ast.Subscript(value=ast.Name(id="list" | "List"), slice=inner):
            return isinstance(value, list) and all(accepts(inner, item) for item in value)
        case ast.Subscript(value=ast.Name(id="dict" | "Dict")):
            return isinstance(value, dict)
        case ast.Constant(value=None):
            return value is None
        case ast.Name(id=name) if name in _TYPES:
            return isinstance(value, _TYPES[name]) and (not isinstance(value, bool) or bool in _TYPES[name])
    return True


def _options(node: ast.expr) -> list[Any]:
    elements = node.elts if isinstance(node, ast.Tuple) else [node]
    return [element.value for element in elements if isinstance(element, ast.Constant)]


def choices(field: ast.AnnAssign) -> list[str] | None:
    """Return the values of the transformers enumeration that annotates a field; None for any other annotation."""
    nodes = ast.walk(field.annotation)
    names = [node.id for node in nodes if isinstance(node, ast.Name) and node.id not in _TYPES]
    for module in _ENUMS:
        for name in names:
            node = _definitions(module).get(name)
            if isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["ExplicitEnum"]:
                values = [item.value for item in node.body if isinstance(item, ast.Assign)]
                return [str(value.value) for value in values if isinstance(value, ast.Constant)]
    return None
