"""Writes docs/recipe.md and docs/perturbations.md from the schema: `python -m tests.recipe_page`."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rld.recipe.cascade import Cascade
from rld.recipe.perturbations import ExperimentSpec
from rld.recipe.schema import Recipe
from rld.recipe.stages import AnyStage
from rld.recipe.stages.base import TrainingStage
from rld.utils.options import kinds_of

DOCS = Path(__file__).parent.parent / "docs"
PAGE, EXPERIMENT_PAGE = DOCS / "recipe.md", DOCS / "perturbations.md"

SMALL = """name: small
tokenizer: {characters: "abcdefghijlmnoprstuvxyz:="}   # one token per character, for models from random weights
max_new_tokens: 6

skills:
  reverse: {generator: rld.recipes.strings:reverse, levels: [{length: 3}, {length: 4}]}
  sort: {generator: rld.recipes.strings:sort, levels: [{length: 3}, {length: 4}]}

models:
  large: {new: llama, config: {hidden_size: 128, intermediate_size: 384, num_hidden_layers: 3, num_attention_heads: 4}}
  small: {new: llama, config: {hidden_size: 64, intermediate_size: 192, num_hidden_layers: 2, num_attention_heads: 4}}

stages:
  - {name: teacher, kind: sft, student: large, steps: 300}
  - {name: first_steps, kind: sft, student: small, steps: 60}
  - name: distill
    kind: distill
    student: first_steps
    teachers: {teacher: {model: teacher}}
    rollout: {prompts: 16, completions: 4}
    steps: 100
"""
"""A complete recipe; a test reads it."""


def _training_kinds() -> dict[str, type[TrainingStage]]:
    return {kind: stage for kind, stage in kinds_of(AnyStage).items() if issubclass(stage, TrainingStage)}


def _rates(weights: str) -> str:
    """The default learning rates of all kinds of stages, for what they train."""
    kinds = {kind: stage for kind, stage in _training_kinds().items() if stage.learning_rates is not None}
    rates = {kind: f"{getattr(stage.learning_rates, weights):g}" for kind, stage in kinds.items()}
    if len(set(rates.values())) == 1:
        return next(iter(rates.values()))
    return ", ".join(f"{rate} (`{kind}`)" for kind, rate in rates.items())


def _warmup() -> str:
    kinds = [item for item in _training_kinds().items() if item[1].max_warmup_steps]
    steps = ", ".join(f"{stage.max_warmup_steps} (`{kind}`)" for kind, stage in kinds)
    return f"{steps}, at most half of the steps"


SHORT_STAGE = "`learning_rate`: fewer than 100 steps of a model that an earlier stage trained"

SHORT_STAGE_RATES = (
    "at 0.002 the quickstart's student (seed 0) falls from 0.54 to 0.17 in 20 steps, and at 0.0001 to 0.46 in 60; it "
    "rises at 0.002 to 0.71 in 100 and to 0.97 in 200; at 5e-06 it stays within 0.01 of its start in 10, 20 and 60 "
    "steps (seeds 0 to 2)"
)

PRETRAINED_RATES = (
    "set in `docs/results/smollm2/sft.yaml` and in `qwen_to_smollm2`, for a student of 135 million parameters; a "
    "larger one may want less"
)

HEAD = f"""# Every key of a recipe

A recipe says what is to be learnt, from what, and in which stages. This one is complete:

```yaml
{SMALL.strip()}
```

`rld check small.yaml` shows what it will do and cost, `rld train small.yaml` runs it. Unknown keys, wrong types and
impossible combinations are reported all at once, with file and line, before anything is loaded. Any value can be set on
the command line, a stage by its name: `rld train small.yaml seed=1 stages.distill.steps=50 models.small=./folder`.
Files (`./my.py:name`, rows, folders) are found relative to the recipe. [What a run leaves](run_folder.md) is on a page
of its own, and so are [experiments on a controller](perturbations.md).

## What `rld check` looks at

`rld check` refuses what `rld train` would refuse before its first stage, with exit code 2, for both ask the same
functions. It opens the files of rows, draws rows from generators, builds models, adapters and optimisers without
weights, looks for the layers of the feature signal, compares rows with tokenizer, context and `max_new_tokens`, and
tries each curriculum and each reward on a row per skill. Then it shows an example per skill, the planned FLOPs by
account, and cautions: an unusual learning rate, repeated questions, a gold answer that the verifier rejects, a budget
that is used up before the first update.

That takes about half a second for a recipe of new models. TRL, PEFT and transformers are imported, which takes some
ten more, only where they may have something to say: for models and tokenizers on this machine, adapters, and options
beyond the usual ones; the last line names the first reason. Nothing is downloaded: models that are not on this machine
are named, and `rld train` checks them before its first stage. `rld check --deep` also loads the models, has them answer
a row per skill, and asks the rewards about those answers.

This page is written from the schema by `python -m tests.recipe_page`.

## In a recipe and in Python

What is the same has the same name, and TRL's names stay where a thing is TRL's:

| in a recipe | in Python |
|---|---|
| `signals: {{policy: {{}}, response: {{}}}}` | `RLDConfig(signals=["policy", "response"])` |
| `signals.policy`: `teacher_reward`, `teacher_reward_form` | `RLDConfig`: the same |
| `signals.response`: `divergence`, `combine_teachers`, `token_weights` | `RLDConfig`: the same |
| `signals.response`: `temperature`, `top_k` | `RLDConfig`: `response_temperature`, `response_top_k` |
| `signals.feature.loss` | `RLDConfig`: `feature` |
| `signals.gold`: `weight`, `share`, `answers` | `RLDConfig`: `gold_weight`, `gold_share`, `gold_answers` |
| `gate`, `distill_on` | `RLDConfig`: the same, with the same defaults |
| `rollout.gold_completions` | `RLDConfig`: `gold_completions` |
| `rollout`: `completions`, `temperature` | TRL's `num_generations`, `temperature` |
| `rollout.prompts` times `completions` | TRL's `per_device_train_batch_size`, over processes and accumulation steps |
| `max_new_tokens` | TRL's `max_completion_length` |
| `steps` | TRL's `max_steps` |
| `rewards`: `use` and `options`; `weight` | `RLDTrainer(reward_funcs=...)`; TRL's `reward_weights` |
| `verifier`: `use` and `options` | `RLDTrainer(verifier=...)` |
| `judge`: `use` and `options` | none: a script scores its models itself |
| `audit`: `use` and `options`; `share` | `RLDTrainer(audit_reward=...)`; `RLDConfig`: `audit_share` |
| `retain`; the rows of the skills in it | `RLDConfig`: `retain`; `RLDTrainer(retain_dataset=...)` |
| `controller: {{kind: gap}}` | `RLDTrainer(controller=GapController())` |
| `curriculum`: `use` and `options` | `RLDTrainer(curriculum=...)` |
| `teachers`: `model`, `from_pretrained`, `adapter`, `align`, `offload`, `chat_template` | `Teacher(...)`: the same |
| `teachers`: `url`, `top_k` and the other keys of a served teacher | `rld.remote_teacher(...)`: the same |
| `trainer` | all of TRL's other arguments of `RLDConfig`, with TRL's defaults |

## Optimiser defaults

What a stage's `trainer` and the recipe's `trainer` leave open is set so:

| option | default | why |
|---|---|---|
| `learning_rate`: random weights at the recipe's start | {_rates("new")} | the quickstart; the scenarios set 3e-3 |
| {SHORT_STAGE} | {_rates("pretrained")} | {SHORT_STAGE_RATES} |
| `learning_rate`: pre-trained weights | {_rates("pretrained")} | {PRETRAINED_RATES} |
| `learning_rate`: a LoRA adapter on them | {_rates("adapter")} | usual for adapters; not compared with others here |
| `lr_scheduler_type` | `cosine` | all shipped recipes |
| `warmup_steps` | {_warmup()} | all shipped recipes |
| `activation_checkpointing` | `false` | all shipped recipes; set `true` where memory is short |

The resolved recipe in a run's folder shows what each stage has got.
"""

EXPERIMENT_HEAD = """# Experiments on a controller

To see how a controller takes it when the world changes, a `distill` stage can change it while it trains:

```yaml
experiment:
  perturbations:
    - {at: 100, teacher: adder, becomes: ./worse}          # other weights; null: it leaves
    - {at: 100, reward: answers:exact_match, noise: 0.2}   # a fifth of its verdicts are turned round
    - {at: 200, reward: shape:brief, weight: 2.0}          # it starts to pay: give it weight 0 in `rewards`
    - {at: 150, joins: sort}                               # not asked before
    - {at: 300, leaves: add}
    - {at: 250, skill: sort, levels: [2]}                  # all its prompts are now of the third level
```

The controller is told of none of them. A resumed run makes those before its checkpoint again. What a teacher answered,
for the gate or to be learnt, is forgotten when it gets other weights, and of all teachers when the first reward
changes. Noise on that reward reaches the gate too, which asks it whether a teacher is correct. Each perturbation is an
event in `events.jsonl` and a mark in the report.
[The scenarios](scenarios.md) are made of them.

This page is written from the schema by `python -m tests.recipe_page`.
"""


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation mentions, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def shown(annotation: Any) -> str:
    """An annotation in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "anything"
    if origin is Annotated:
        return shown(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(shown(part) for part in arguments))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {shown(arguments[0])}"
    if origin is dict:
        return f"mapping of {shown(arguments[0])} to {shown(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        target = EXPERIMENT_PAGE.name if annotation is ExperimentSpec else ""
        return f"[{annotation.__name__}]({target}#{annotation.__name__.lower()})"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}[annotation.__name__]


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None or value in ({}, []):
        return {None: "null"}.get(value, "empty") if not isinstance(value, (dict, list)) else "empty"
    if isinstance(value, BaseModel):
        needs = any(field.is_required() for field in type(value).model_fields.values())
        return (
            "its defaults" if not needs and value == type(value)() else f"`{value.model_dump(exclude_defaults=True)}`"
        )
    if isinstance(value, list):
        return f"`{[v.model_dump(exclude_defaults=True) if isinstance(v, BaseModel) else v for v in value]}`"
    return f"`{value}`"


@cache
def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The text below each field of a class or of its base classes."""
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if base is BaseModel or not issubclass(base, BaseModel):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, text in pairwise(body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(value))):
                    texts[name] = value
    return texts


def section(model: type[BaseModel]) -> str:
    about = " ".join((model.__doc__ or "").split("\n\n")[0].split())
    lines = [f"## {model.__name__}", "", about, "", "| key | value | default | what it is |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        text = " ".join(docstrings(model).get(name, "").split()).replace("|", "\\|")
        lines.append(f"| `{field.alias or name}` | {shown(field.annotation)} | {default(field)} | {text} |")
    return "\n".join(lines)


def sections(first: list[type[BaseModel]], without: list[type[BaseModel]]) -> list[str]:
    """The sections of all models that those in `first` lead to, in this order."""
    queue, done = list(first), list[type[BaseModel]]()
    while queue:
        model = queue.pop(0)
        if model not in done and model not in without:
            done.append(model)
            queue += [found for field in model.model_fields.values() for found in models_in(field.annotation)]
    return [section(model) for model in done]


def page() -> str:
    """Recipes: the stages first, and what only experiments need on a page of its own."""
    first = [*kinds_of(AnyStage).values(), Cascade, Recipe]
    return "\n\n".join([HEAD.strip(), *sections(first, [ExperimentSpec])]) + "\n"


def experiment_page() -> str:
    return "\n\n".join([EXPERIMENT_HEAD.strip(), *sections([ExperimentSpec], [])]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    EXPERIMENT_PAGE.write_text(experiment_page())
