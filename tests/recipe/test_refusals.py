"""Every refusal of options that do not go together names file, line and key of the option that is to be changed."""

from __future__ import annotations

import ast
import copy
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import rld
from rld.errors import RecipeError
from rld.recipe.cautions import unreachable_rule_cautions
from rld.recipe.reading import read_recipe
from rld.utils.options import OptionError

PACKAGE = Path(rld.__file__).parent

RECIPE = yaml.safe_load("""
name: refused
tokenizer: {characters: "abc:="}
models:
  big: {new: llama, config: {hidden_size: 64}}
  small: {new: llama, config: {hidden_size: 32}}
skills:
  copy: {generator: "./tasks.py:copy"}
  words: {file: rows.jsonl}
  topics: {file: rows.jsonl, kind: labelled, labels: {a: " a", b: " b"}}
  texts: {file: rows.jsonl, kind: plain_text}
stages:
  - {name: first, kind: sft, student: big, steps: 3, skills: [copy, words]}
  - name: main
    kind: distill
    student: small
    steps: 5
    skills: [copy, words]
    teachers: {t: {model: first}}
  - {name: merged, kind: merge, models: [first, main]}
  - {name: scored, kind: evaluate, model: main}
""")

GOLD = {"stages.main.rollout": {"completions": 4, "gold_completions": 4}, "stages.main.signals": {"response": {}}}
LABELS = {"stages.main.rollout": {"completions": "labels"}, "stages.main.skills": ["topics"]}
TEXTS = {
    "stages.main.skills": ["texts"],
    "stages.main.rollout": {"completions": 1, "gold_completions": 1},
    "stages.main.signals": {"response": {}},
}
OWN = {"stages.main.teachers.t": {"model": "student", "prompt": "{question} {answer}"}}
READING = {"model": "first", "prompt": "{question} {feedback}"}
EXPORT = {"name": "scored", "kind": "export", "model": "main", "format": "gguf"}
SERVED = {"stages.main.teachers.t": {"url": "http://localhost:1/v1", "top_k": 5}}

TOKENS = {"input_per_million_tokens": 1, "output_per_million_tokens": 2}

REFUSALS: list[tuple[str, dict[str, Any]]] = [
    # The key that is named, and the changes to the recipe.
    ("prompts.style", {"prompts": {"style": "chat"}, "skills.copy.prompts": {}, "skills.topics.prompts": {}}),
    ("skills.texts.prompts.style", {"skills.texts.prompts": {"style": "chat"}}),
    ("skills.words.prompts.style", {"skills.words.prompts": {"style": "chat"}}),
    ("skills.words.prompts.strip_thinking", {"skills.words.prompts": {"strip_thinking": True}}),
    ("prompts.system", {"prompts": {"system": "Be brief."}}),
    ("prices.apis.nobody", {"prices": {"currency": "EUR", "machine_per_hour": 1, "apis": {"nobody": TOKENS}}}),
    ("prompts.chat_template_kwargs", {"prompts": {"chat_template_kwargs": {"a": 1}}}),
    (
        "skills.words.kind",
        {
            "skills.copy": None,
            "skills.topics": None,
            "skills.texts": None,
            "skills.first": {"file": "rows.jsonl"},
            "skills.words": {"file": "rows.jsonl", "kind": "code_task"},
            "stages.first.skills": None,
            "stages.main.skills": None,
        },
    ),
    ("evaluation.0.tasks", {"evaluation": [{"kind": "lm_eval", "tasks": ["copy"]}]}),
    ("stages.main.trainer.beta", {"stages.main.trainer": {"beta": 0.1}}),
    ("trainer.beta", {"trainer": {"beta": 0.1}}),
    ("stages.main.teachers.t.served_model", {"stages.main.teachers.t": {"url": "http://h:1", "served_model": "m"}}),
    ("stages.main.trainer.use_vllm", {"stages.main.trainer": {"use_vllm": True}}),
    ("trainer.use_vllm", {"trainer": {"use_vllm": True}}),
    ("stages.main.rollout.completions", {"stages.main.rollout": {"completions": "labels"}}),
    (
        "stages.merged.models.1",
        {
            "stages.merged.models": ["first", "also"],
            "stages.scored": {"name": "also", "kind": "evaluate", "model": "main"},
        },
    ),
    ("skills.copy.held_out", {"skills.copy.held_out": 0.5}),
    ("skills.words.labels", {"skills.words.labels": {"a": "a", "b": "b"}}),
    ("skills.words.block", {"skills.words.block": 16}),
    ("skills.topics.labels", {"skills.topics.labels": {}}),
    ("skills.topics.synonyms", {"skills.topics.synonyms": {"c": [" d"]}}),
    ("skills.words.scores", {"skills.words.scores": ["solved", "solved"]}),
    ("skills.words.scores", {"skills.words.scores": ["rouge9"]}),
    ("skills.words.scores", {"skills.words.scores": ["accuracy"]}),
    ("skills.words.scores", {"skills.words.scores": ["pass_at_2"]}),
    ("skills.words.scores", {"skills.words.scores": ["rouge_l"]}),
    ("skills.words.samples", {"skills.words.samples": {"count": 2}}),
    ("skills.texts.scores", {"skills.texts.scores": ["perplexity"]}),
    ("stages.merged.weights", {"stages.merged.weights": [1.0]}),
    ("stages.merged.weights", {"stages.merged.weights": [-1.0, 2.0]}),
    ("stages.merged.method", {"stages.merged.method": "slerp", "stages.merged.models": ["first", "main", "big"]}),
    ("stages.merged.method", {"stages.merged.method": "task_arithmetic"}),
    (
        "stages.main.controller.policy.shape",
        {"stages.main.controller": {"kind": "schedule", "policy": {"start": 0.0, "end": 1.0, "shape": "exponential"}}},
    ),
    (
        "stages.main.signals.feature.loss.layers",
        {"stages.main.signals": {"feature": {"loss": {"kind": "relation", "layers": "learned"}}}},
    ),
    ("stages.main.rollout.prompts", {"stages.main.rollout": {"prompts": 100000, "completions": 100}}),
    ("stages.main.rollout.gold_completions", {"stages.main.rollout": {"completions": 4, "gold_completions": 5}}),
    ("stages.main.rollout.gold_completions", {"stages.main.rollout": {"gold_completions": 1, "refill": 1}}),
    ("stages.main.rollout.completions", {"stages.main.rollout": {"completions": 1}}),
    ("stages.main.rollout.refill", {"stages.main.rollout": {"completions": "labels", "refill": 1}}),
    ("stages.main.rollout.temperature", {"stages.main.rollout": {"completions": "labels", "temperature": 2.0}}),
    ("stages.main.steps", {"stages.main.steps": 10_000_000}),
    ("stages.main.signals.policy", GOLD | {"stages.main.signals": {"policy": {}}}),
    ("stages.main.rollout.refill", {"stages.main.rollout": {"refill": 1}, "stages.main.signals": {"response": {}}}),
    ("stages.main.cache", {"stages.main.cache": {"folder": "cache", "top_k": 4}}),
    (
        "stages.main.signals.gold.share",
        {"stages.main.signals": {"policy": {}, "gold": {"share": 0.5}}, "stages.main.rollout": {"gold_completions": 1}},
    ),
    (
        "stages.main.signals.gold.answers",
        {
            "stages.main.signals": {"policy": {}, "gold": {"answers": "teachers"}},
            "stages.main.rollout": {"gold_completions": 1},
        },
    ),
    (
        "stages.main.signals.gold.answers",
        {
            "stages.main.signals": {"policy": {}, "gold": {"answers": "teachers"}},
            "stages.main.teachers": {"itself": {"model": "student", "prompt": "{question}"}},
        },
    ),
    (
        "stages.main.rollout.refill",
        {"stages.main.signals": {"policy": {}, "gold": {}}, "stages.main.rollout": {"refill": 1}},
    ),
    (
        "stages.main.rollout.temperature",
        {
            "stages.main.signals": {"policy": {}, "gold": {}},
            "stages.main.rollout": {"gold_completions": 1, "temperature": 2.0},
        },
    ),
    ("stages.main.capacity", {"stages.main.capacity": {}, "stages.main.teachers": {}}),
    ("stages.main.capacity", GOLD | {"stages.main.capacity": {}}),
    ("stages.main.capacity", {"stages.main.capacity": {}, "stages.main.rollout": {"refill": 1}}),
    ("stages.main.capacity.act", {"stages.main.capacity": {"act": "soften"}, "stages.main.signals": {"policy": {}}}),
    ("stages.main.signals.response.calibration", {"stages.main.signals": {"response": {"calibration": "length"}}}),
    ("stages.main.capacity.act", LABELS | {"stages.main.capacity": {"act": "soften"}}),
    ("stages.main.distill_on", LABELS | {"stages.main.distill_on": "failed_completions"}),
    ("stages.main.rollout.completions", LABELS | {"stages.main.teachers": {}}),
    ("stages.main.teachers.t", SERVED | {"stages.main.signals": {"response": {}, "feature": {}}}),
    ("stages.main.signals.response.temperature", SERVED | {"stages.main.signals": {"response": {"temperature": 2.0}}}),
    (
        "stages.main.teachers.t.align",
        GOLD
        | {
            "stages.main.cache": {"folder": "cache", "top_k": 4},
            "stages.main.teachers.t": {"model": "first", "align": "vocabulary"},
        },
    ),
    ("stages.main.teachers.t.model", OWN | GOLD | {"stages.main.cache": {"folder": "cache", "top_k": 4}}),
    (
        "stages.main.teachers.t.prompt",
        OWN | LABELS | {"stages.main.signals": {"response": {"calibration": "content_free"}}},
    ),
    ("stages.scored.format", {"stages.scored": EXPORT | {"format": "zip"}}),
    ("stages.scored.precision", {"stages.scored": EXPORT | {"precision": "q3"}}),
    ("stages.main.teachers", OWN | TEXTS),
    ("stages.main.teachers.t.prompt", {"stages.main.teachers.t": READING} | LABELS),
    ("stages.main.teachers.t.probe_prompts", {"stages.main.teachers.t": {**READING, "probe_prompts": 1}}),
    (
        "stages.main.signals.gold.answers",
        {"stages.main.teachers.t": READING, "stages.main.signals": {"policy": {}, "gold": {"answers": "teachers"}}},
    ),
    ("stages.main.teachers.t.url", SERVED | {"stages.main.rollout": {"temperature": 2.0}}),
    ("stages.first.teacher", {"stages.first.skills": ["texts"], "stages.first.teacher": "big"}),
    ("stages.main.retain.skills", {"stages.main.retain": {"skills": ["texts"]}}),
    ("stages.main.signals.policy", TEXTS | {"stages.main.signals": {"policy": {}}, "stages.main.rollout": {}}),
    ("stages.main.rollout.completions", TEXTS | {"stages.main.rollout": {}}),
    ("stages.main.gate", TEXTS),
    ("stages.main.audit", TEXTS | {"stages.main.gate": "off", "stages.main.audit": {"use": "answers:exact_match"}}),
]


@pytest.fixture
def written(tmp_path):
    """Write the recipe with changes, and return its path and its values."""
    (tmp_path / "tasks.py").write_text('def copy(rng):\n    return "a", "a"\n')
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "a", "text": "a"}\n')

    def write(changes: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
        tree = copy.deepcopy(RECIPE)
        for name, value in changes.items():
            *parents, last = name.split(".")
            node: Any = tree
            for part in parents:
                node = node[part] if isinstance(node, dict) else item(node, part)
            if isinstance(node, list):
                node[node.index(item(node, last))] = copy.deepcopy(value)
            elif value is None:
                del node[last]
            else:
                node[last] = copy.deepcopy(value)
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return path, tree

    return write


def item(items: list[Any], part: str) -> Any:
    return items[int(part)] if part.isdecimal() else next(item for item in items if item["name"] == part)


def deepest_written(tree: Any, keys: list[str]) -> str:
    """Return how the line of the deepest of the keys begins that the recipe has."""
    beginning = ""
    for key in keys:
        if isinstance(tree, list):
            tree = item(tree, key)
            beginning = f"- {next(iter(tree))}:" if isinstance(tree, dict) else f"- {tree}"
        elif isinstance(tree, dict) and key in tree:
            tree, beginning = tree[key], f"{key}:"
        else:
            break
    return beginning


def refusal(path: Path) -> str:
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    return str(error.value)


def sites() -> dict[tuple[str, int], str]:
    """Return the calls that make an `OptionError`: file and each of their lines, and what names the call."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "OptionError":
                for line in range(node.lineno, (node.end_lineno or 0) + 1):
                    names[str(path), line] = f"{path.relative_to(PACKAGE)}:{node.lineno}"
    return names


def test_each_refusal_names_file_line_and_key(written, monkeypatch):
    made, where, init = set[str](), sites(), OptionError.__init__

    def noted(self: OptionError, message: str, *keys: Any) -> None:
        frame = sys._getframe(1)
        made.add(where[str(Path(inspect.getfile(frame)).resolve()), frame.f_lineno])
        init(self, message, *keys)

    monkeypatch.setattr(OptionError, "__init__", noted)
    find = importlib.util.find_spec
    without_rouge = lambda name, *rest: None if name == "rouge_score" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without_rouge)
    for key, changes in REFUSALS:
        path, tree = written(changes)
        lines = refusal(path).splitlines()
        named = [re.match(rf"{re.escape(str(path))}:(\d+): {re.escape(key)}: ", line) for line in lines]
        place = next(filter(None, named), None)
        assert place is not None, (key, lines)
        line = path.read_text().splitlines()[int(place[1]) - 1]
        begins = deepest_written(tree, key.split(".")).removeprefix("- ")
        assert line.strip().removeprefix("- ").startswith(begins), (key, line)
    assert sorted({*where.values()} - made) == []


def test_what_looks_at_a_whole_class_names_the_option():
    """A plain ValueError of such a validator would be told at the line of the class, the first one of the recipe."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any("model_validator" in ast.dump(d) for d in node.decorator_list):
                calls = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
                raised = {ast.unparse(call.func) for call in calls}
                assert raised <= {"OptionError"}, f"{path}: {node.name}"


FORMS = [
    ("stages.main.stop", {"score": 0.9}, "score should be a mapping, not 0.9; write score: {NAME: 0.9}"),
    ("stages.main.stop", {"plateau": 5}, "write plateau: {scorings: 5}, with the keys scorings, gain"),
    ("stages.main.curriculum", "fixed:Uniform", "write curriculum: {use: fixed:Uniform}"),
    ("rewards", ["answers:exact_match"], "write - {use: answers:exact_match}"),
    ("stages.main.target", "copy", "target should be a list, not 'copy'; write target: [copy]"),
    ("skills.words.scores", "solved", "write scores: [solved]"),
    ("stages.main.teachers", "first", "write teachers: {NAME: {model: first}}"),
    (
        "stages.main.signals",
        {"response": {"divergence": "forward"}},
        "write divergence: {kind: forward_kl}, of the kinds",
    ),
    (
        "stages.main.signals",
        {"feature": {"loss": {"kind": "cosine", "layers": "unifrm"}}},
        "layers cannot be 'unifrm'; did you mean 'uniform'?\n",
    ),
    (
        "stages.main.controller",
        {"kind": "gap", "decay": 0.5},
        "unknown key 'stages.main.controller.decay'; it is an option of kind: gradient_alignment",
    ),
]


@pytest.mark.parametrize(("key", "value", "told"), FORMS)
def test_what_should_be_a_mapping_or_a_list_is_told_its_form(written, key, value, told):
    path, _ = written({key: value})
    assert told in refusal(path) + "\n"


@pytest.mark.parametrize("place", ["prompts", "skills.words.prompts", ""])
def test_conversations_need_chats(written, place):
    path, _ = written({"skills.words.kind": "conversation"} | ({place: {"style": "plain"}} if place else {}))
    key = f"{place}.style" if place else "skills.words.kind"
    pattern = rf"{re.escape(str(path))}:\d+: {key}: rows of kind conversation need prompts: {{style: chat}}"
    assert re.search(pattern, refusal(path)) and f"{path}:1:" not in refusal(path)


def test_rules_that_the_steps_are_too_few_for_are_told_by_line(written):
    stage = {"steps": 20, "evaluate_every": 5, "capacity": {"window": 4}, "stop": {"plateau": {}, "score": {"copy": 1}}}
    path, _ = written({f"stages.main.{key}": value for key, value in stage.items()})
    places = [text.partition(": ")[2].split()[0] for text in unreachable_rule_cautions(read_recipe(path))]
    assert places == ["stages.main.stop.plateau", "stages.main.capacity.window"]
    enough = {"steps": 60, "evaluate_every": 5, "capacity": {"window": 4}, "stop": {"plateau": {}}}
    path, _ = written({f"stages.main.{key}": value for key, value in enough.items()})
    assert list(unreachable_rule_cautions(read_recipe(path))) == []
    late = {"steps": 5, "evaluate_every": 50, "stop": {"score": {"copy": 1}}}
    path, _ = written({f"stages.main.{key}": value for key, value in late.items()})
    (text,) = unreachable_rule_cautions(read_recipe(path))
    line = path.read_text().splitlines()[int(text.removeprefix(f"{path}:").partition(":")[0]) - 1]
    assert line.strip() == "score:" and "stages.main.stop.score can't end the stage early" in text
