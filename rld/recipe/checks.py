"""What only a look at the whole recipe and at what it names can tell.

Works on the recipe's tree as written, so that it finds mistakes in a recipe whose other parts the schema refuses;
values of a wrong type are the schema's business and are passed over. Nothing is imported, loaded or run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rld.data.formats import FORMATS
from rld.errors import LibraryError
from rld.recipe import python_source, registry, reserved_options, third_party_options
from rld.recipe.document import Loc, RecipeDocument, RecipeProblem, shown
from rld.recipe.tokenizer_files import same_tokenizer
from rld.types import SIGNALS
from rld.utils.suggestions import hint, nearest

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def problems(document: RecipeDocument) -> Iterator[RecipeProblem]:
    """Yield every mistake in how a recipe's parts fit together and in what they name."""
    checker = _Checker(document)
    match document.tree:
        case {"tokenizer": dict(), "prompts": {"style": "chat"}}:
            where = ("prompts", "style")
            yield RecipeProblem(where, "prompts.style cannot be chat: a tokenizer of characters has no chat template")
    for key, model in _items(document.tree.get("models")):
        yield from checker.model(("models", key), model)
    for key, skill in _items(document.tree.get("skills")):
        yield from checker.skill(("skills", key), skill)
    for i, reward in _items(document.tree.get("rewards")):
        yield from checker.reward(("rewards", i), reward)
    for i, stage in _items(document.tree.get("stages")):
        if isinstance(stage, dict):
            yield from checker.stage(("stages", i), stage)


class _Checker:
    """What a recipe's parts may refer to, mistakes elsewhere or not, and one method per kind of part."""

    def __init__(self, document: RecipeDocument) -> None:
        self.label = document.label
        self.folder = document.path.parent
        self.models = _keys(document.tree.get("models"))
        self.skills = _keys(document.tree.get("skills"))
        self.num_levels = {
            name: len(skill.get("levels", [{}]))
            for name, skill in _items(document.tree.get("skills"))
            if isinstance(skill, dict) and "rows" not in skill and isinstance(skill.get("levels", []), list)
        }
        rewards = document.tree.get("rewards", [{"use": "answers:exact_match"}])
        self.rewards = [str(reward.get("use")) for _, reward in _items(rewards) if isinstance(reward, dict)]
        self.tokenizer = document.tree.get("tokenizer")
        stages = [stage if isinstance(stage, dict) else {} for _, stage in _items(document.tree.get("stages"))]
        self.stages = [stage.get("name") for stage in stages]
        self.models_given = dict(_items(document.tree.get("models")))
        self.trained = [stage.get("model", stage.get("student")) for stage in stages]
        distills = [i for i, stage in enumerate(stages) if stage.get("run") == "distill"]
        self.first_use_of_rewards = min(distills, default=len(stages))

    # -- models ------------------------------------------------------------------------------------------------------

    def model(self, loc: Loc, model: Any) -> Iterator[RecipeProblem]:
        match model:
            case str(name):
                yield from self.weights(loc, name, [])
            case {"new": str(kind), **rest}:
                if self.tokenizer is None:
                    yield RecipeProblem(
                        loc, f"{self.label(loc)} is new and needs a tokenizer: set tokenizer.characters"
                    )
                types = third_party_options.model_types()
                if types is not None and kind not in types:
                    yield RecipeProblem((*loc, "new"), f"{self.label(loc)}.new cannot be {kind!r}{hint(kind, types)}")
                yield from self.options(
                    (*loc, "config"), rest.get("config"), third_party_options.model_fields(kind), {}
                )
            case {"path": str(name)}:
                yield from self.weights((*loc, "path"), name, [])

    def weights(self, loc: Loc, name: str, known: list[str]) -> Iterator[RecipeProblem]:
        """Check a name that leads to weights: one of `known`, a folder or a hub id."""
        place = registry.find_path(name, self.folder)
        if name in known or (place is not None and place.is_dir()):
            return
        if place is not None:
            yield RecipeProblem(loc, f"{self.label(loc)}: {name} is a file; give the folder of a model")
        elif name.startswith((".", "/", "~")) or name.count("/") > 1:
            yield RecipeProblem(loc, f"{self.label(loc)}: there is no folder {name}")
        elif not _HUB_ID.fullmatch(name):
            near = hint(name, known) or "; give a name in models, an earlier stage, a hub id (owner/name) or a folder"
            yield RecipeProblem(loc, f"{self.label(loc)}: there is no model {name!r}{near}")

    def reference(self, loc: Loc, name: Any, index: int) -> Iterator[RecipeProblem]:
        """Check the model that the stage at `index` refers to."""
        if not isinstance(name, str):
            return
        if name in self.stages[index:] and name not in self.models + self.stages[:index]:
            yield RecipeProblem(loc, f"{self.label(loc)}: stage {name!r} has not run by then; refer to an earlier one")
        else:
            yield from self.weights(loc, name, self.models + [s for s in self.stages[:index] if isinstance(s, str)])

    def tokenizers(self, loc: Loc, teacher: Mapping[Any, Any], student: Any) -> Iterator[RecipeProblem]:
        """Check that a teacher reads the student's tokens, where the files of both are on this machine."""
        ours, theirs = self.tokenizer_file(student), self.tokenizer_file(teacher.get("model"))
        if teacher.get("align") is not None or ours is None or theirs is None:
            return
        try:
            same = same_tokenizer(ours, theirs)
        except LibraryError as error:
            yield RecipeProblem(loc, f"{self.label(loc)}: {error}")
            return
        if not same:
            fix = "set align: likelihood or align: vocabulary here, or choose a teacher of the student's family"
            yield RecipeProblem(loc, f"{self.label(loc)}: its tokenizer is not that of the student, {student}; {fix}")

    def tokenizer_file(self, name: Any) -> Path | None:
        """Return where the tokenizer of the model that `name` refers to is stored; a stage has that of its model."""
        for stage, trained in reversed(list(zip(self.stages, self.trained, strict=True))):
            name = trained if name == stage else name
        match self.models_given.get(name, name) if isinstance(name, str) else None:
            case str(path) | {"path": str(path)}:
                if registry.find_path(path, self.folder) is not None or _HUB_ID.fullmatch(path):
                    return registry.model_file(path, "tokenizer.json", self.folder)
        return None

    # -- skills, rewards, curricula ----------------------------------------------------------------------------------

    def skill(self, loc: Loc, skill: Any) -> Iterator[RecipeProblem]:
        match skill:
            case {"generator": str(use), **rest}:
                levels = _items(rest.get("levels", [{}]))
                signature = yield from self.signature("generators", (*loc, "generator"), use)
                for i, level in levels:
                    yield from self.call((*loc, "levels", i), level, use, signature)
            case {"reasoning_gym": str(task), **rest}:
                tasks = third_party_options.gym_tasks()
                if tasks is not None and task not in tasks:
                    where = (*loc, "reasoning_gym")
                    yield RecipeProblem(
                        where, f"{self.label(where)}: reasoning-gym has no task {task!r}{hint(task, tasks)}"
                    )
                for i, level in _items(rest.get("levels")):
                    yield from self.options(
                        (*loc, "levels", i), level, third_party_options.gym_fields(task), reserved_options.GYM
                    )
            case {"rows": str(name)}:
                place, where = registry.find_path(name, self.folder), (*loc, "rows")
                if place is None or not place.is_file():
                    beside = [path.name for path in self.folder.iterdir() if path.suffix in FORMATS]
                    yield RecipeProblem(where, f"{self.label(where)}: there is no file {name}{hint(name, beside)}")
                elif place.suffix not in FORMATS:
                    suffixes = " or ".join(FORMATS)
                    yield RecipeProblem(where, f"{self.label(where)}: rows come from {suffixes} files, not {name}")

    def curriculum(self, loc: Loc, part: Any) -> Iterator[RecipeProblem]:
        if isinstance(part, dict) and isinstance(part.get("use"), str):
            signature = yield from self.signature("curricula", (*loc, "use"), part["use"])
            yield from self.call((*loc, "options"), part.get("options", {}), part["use"], signature)

    def reward(self, loc: Loc, part: Any, key: str = "use") -> Iterator[RecipeProblem]:
        """Check a reward, which `key` names, and its options."""
        if not isinstance(part, dict) or not isinstance(part.get(key), str):
            return
        signature = yield from self.signature("rewards", (*loc, key), part[key])
        options, where = part.get("options", {}), (*loc, "options")
        if signature is not None and registry.takes_model(signature.named):
            signature = replace(signature, named=tuple(name for name in signature.named if name != "tokenizer"))
            if isinstance(options, dict):
                yield from self.reference((*where, "model"), options.get("model"), self.first_use_of_rewards)
        yield from self.call(where, options, part[key], signature)

    def signature(
        self, kind: registry.Kind, loc: Loc, use: str
    ) -> Generator[RecipeProblem, None, python_source.Signature | None]:
        """Return what a named function or class can be given beyond what rld gives it, if its source shows it."""
        try:
            place = registry.locate(kind, use, self.folder)
        except LibraryError as error:
            yield RecipeProblem(loc, f"{self.label(loc)}: {error}")
            return None
        found = python_source.signature(
            python_source.parse(place.path), place.attribute, skip=0 if kind == "rewards" else 1
        )
        if found is None or kind != "rewards":
            return found
        if "completions" not in found.named and not found.any_name:
            yield RecipeProblem(
                loc, f"{self.label(loc)}: {use} is no reward, for it takes no argument called completions"
            )
        # TRL hands a reward every column of the rows by name, so it takes **columns, and options must be spelt out
        named, required = (
            tuple(name for name in names if name not in reserved_options.GIVEN_TO_REWARDS)
            for names in (found.named, found.required)
        )
        return python_source.Signature(named, required, any_name=False)

    def call(
        self, loc: Loc, given: Any, use: str, signature: python_source.Signature | None
    ) -> Iterator[RecipeProblem]:
        """Check the arguments `given` by name to what `use` names."""
        if signature is None or not isinstance(given, dict):
            return
        for key in given:
            if key not in signature.named and not signature.any_name:
                takes = hint(str(key), signature.named) or f"; {use} takes no such option"
                yield RecipeProblem((*loc, key), f"unknown key '{self.label((*loc, key))}'{takes}")
        for key in signature.required:
            if key not in given:
                yield RecipeProblem(loc, f"'{self.label(loc)}.{key}' is required by {use}")

    def options(
        self, loc: Loc, given: Any, fields: third_party_options.Fields | None, owned: Mapping[str, str]
    ) -> Iterator[RecipeProblem]:
        """Check options that are passed on to a library."""
        for key, value in _items(given) if isinstance(given, dict) else ():
            where, known = (*loc, key), fields or {}
            meant = key if key in known else nearest(str(key), known)
            if meant is not None and meant in owned:
                yield RecipeProblem(where, f"{self.label(where)} is not yours to set: {owned[meant]}")
            elif fields is None:
                continue
            elif key not in fields:
                yield RecipeProblem(where, f"unknown key {self.label(where)!r}{hint(str(key), fields)}")
            elif not third_party_options.accepts(fields[key], value):
                kind = ast.unparse(fields[key].annotation)
                yield RecipeProblem(where, f"{self.label(where)} should be {kind}, not {shown(value)}")
            elif (words := third_party_options.choices(fields[key])) is not None and value not in words:
                yield RecipeProblem(where, f"{self.label(where)} cannot be {shown(value)}{hint(str(value), words)}")

    # -- stages ------------------------------------------------------------------------------------------------------

    def stage(self, loc: Loc, stage: Mapping[Any, Any]) -> Iterator[RecipeProblem]:
        index, name = loc[1], stage.get("name")
        if isinstance(name, str) and name in self.stages[:index]:
            yield RecipeProblem((*loc, "name"), f"an earlier stage is called {name!r} too; choose another name")
        if isinstance(name, str) and name in self.models:
            yield RecipeProblem((*loc, "name"), f"a stage and a model are both called {name!r}; choose another name")
        yield from self.skill_names((*loc, "skills"), stage.get("skills"), self.skills)
        yield from self.options((*loc, "lora"), stage.get("lora"), third_party_options.lora_fields(), {})
        run = stage.get("run")
        if run in ("sft", "distill"):
            owned = reserved_options.TRAINER | reserved_options.BY_STAGE[run]
            yield from self.options(
                (*loc, "trainer"), stage.get("trainer"), third_party_options.trainer_fields(run), owned
            )
            student = "model" if run == "sft" else "student"
            yield from self.reference((*loc, student), stage.get(student), index)
        if run == "sft":
            yield from self.reference((*loc, "teacher"), stage.get("teacher"), index)
            for name in _keys(stage.get("shares")):
                if name not in self.skills:
                    where = (*loc, "shares", name)
                    yield RecipeProblem(where, f"{self.label(where)}: {name!r} is no skill{hint(name, self.skills)}")
        if run == "distill":
            yield from self.curriculum((*loc, "curriculum"), stage.get("curriculum"))
            yield from self.teachers(loc, stage)
            yield from self.retention((*loc, "retain"), stage.get("retain"), stage.get("skills"))
            yield from self.reward((*loc, "audit"), stage.get("audit"), "reward")

    def retention(self, loc: Loc, part: Any, trained: Any) -> Iterator[RecipeProblem]:
        """Check that there are skills to protect."""
        if not isinstance(part, dict):
            return
        yield from self.skill_names((*loc, "skills"), part.get("skills"), self.skills)
        if part.get("skills") is None and not (isinstance(trained, list) and set(self.skills) - set(map(str, trained))):
            what = "protects the skills that the stage does not train, and it trains all"
            yield RecipeProblem(
                loc, f"{self.label(loc)} {what}; name those to protect in {self.label((*loc, 'skills'))}"
            )

    def skill_names(self, loc: Loc, given: Any, known: list[str]) -> Iterator[RecipeProblem]:
        if given == []:
            yield RecipeProblem(loc, f"{self.label(loc)} names no skill; leave it out to mean all")
        for i, name in enumerate(given if isinstance(given, list) else ()):
            if isinstance(name, str) and name not in known:
                where = f"{self.label(loc)}: {name!r} is no skill"
                yield RecipeProblem(
                    (*loc, i),
                    where + (" of this stage" if name in self.skills else hint(name, known)),
                )

    def teachers(self, loc: Loc, stage: Mapping[Any, Any]) -> Iterator[RecipeProblem]:
        teachers = _keys(stage.get("teachers"))
        chosen = stage.get("skills")
        trained = chosen if isinstance(chosen, list) else self.skills
        for name, teacher in _items(stage.get("teachers")):
            where = (*loc, "teachers", name)
            if isinstance(name, str) and not _NAME.fullmatch(name):
                yield RecipeProblem(where, f"{self.label(where)}: a name has only letters, digits, '_' and '-'")
            if isinstance(teacher, dict):
                yield from self.reference((*where, "model"), teacher.get("model"), loc[1])
                yield from self.adapter((*where, "adapter"), teacher.get("adapter"))
                yield from self.skill_names((*where, "skills"), teacher.get("skills"), trained)
                yield from self.tokenizers(where, teacher, stage.get("student"))
                match teacher:
                    case {"offload": True, "init": {"device_map": _} | {"quantization_config": _}}:
                        text = "a model with device_map or quantization_config stays where it was loaded"
                        yield RecipeProblem(
                            (*where, "offload"), f"{self.label((*where, 'offload'))} cannot be true: {text}"
                        )
        yield from self.signals((*loc, "signals"), stage.get("signals"), teachers)
        yield from self.controller((*loc, "controller"), stage.get("controller"), teachers, trained)
        for i, change in _items(stage.get("changes")):
            if isinstance(change, dict):
                yield from self.change((*loc, "changes", i), change, stage, trained)

    def controller(self, loc: Loc, part: Any, teachers: list[str], skills: list[str]) -> Iterator[RecipeProblem]:
        """Check the names of teachers and skills in a controller's weights."""
        given = part if isinstance(part, dict) else {}
        for name, weight in _items(given.get("teachers")):
            where = (*loc, "teachers", name)
            if name not in teachers:
                yield RecipeProblem(where, f"{self.label(where)}: no such teacher{hint(str(name), teachers)}")
            yield from self.every_skill(where, weight, skills)
        for signal in SIGNALS:
            match given.get(signal):
                case {"start": start, "end": end}:
                    yield from self.every_skill((*loc, signal, "start"), start, skills)
                    yield from self.every_skill((*loc, signal, "end"), end, skills)
                case value:
                    yield from self.every_skill((*loc, signal), value, skills)

    def every_skill(self, loc: Loc, values: Any, skills: list[str]) -> Iterator[RecipeProblem]:
        """Check a value per skill: it names all of the stage's skills and no other."""
        if not isinstance(values, dict):
            return
        for name in _keys(values):
            if name not in skills:
                yield RecipeProblem(
                    (*loc, name), f"{self.label(loc)}: {name!r} is no skill of this stage{hint(name, skills)}"
                )
        for skill in skills:
            if isinstance(skill, str) and skill not in values:
                yield RecipeProblem(loc, f"{self.label(loc)} has no value for skill {skill!r}")

    # -- changes on purpose ------------------------------------------------------------------------------------------

    def change(
        self, loc: Loc, change: Mapping[Any, Any], stage: Mapping[Any, Any], skills: list[str]
    ) -> Iterator[RecipeProblem]:
        """Check when a change comes, and the names in it."""
        at, steps = change.get("at"), stage.get("steps")
        if isinstance(at, int) and isinstance(steps, int) and at >= steps:
            yield RecipeProblem(
                (*loc, "at"), f"{self.label((*loc, 'at'))} is {at}, but the stage ends after {steps} steps"
            )
        for key, known, what in (
            *(("teacher", _keys(stage.get("teachers")), "teacher of this stage"), ("reward", self.rewards, "reward")),
            *((key, skills, "skill of this stage") for key in ("joins", "leaves", "skill")),
        ):
            name, where = change.get(key), (*loc, key)
            if isinstance(name, str) and name not in known:
                yield RecipeProblem(where, f"{self.label(where)}: {name!r} is no {what}{hint(name, known)}")
        becomes, where = change.get("becomes"), (*loc, "becomes")
        if "teacher" in change:
            yield from self.reference(where, becomes, loc[1])
            spec = dict(_items(stage.get("teachers"))).get(str(change["teacher"]))
            is_served = isinstance(spec, dict) and "url" in spec
            if becomes is not None and (is_served or stage.get("cache") is not None):
                what = "on a server" if is_served else "with a cache"
                yield RecipeProblem(
                    where, f"{self.label(where)}: a teacher {what} can't become another; null lets it leave"
                )
            match stage.get("signals"):
                case {"feature": dict()} if becomes is not None:
                    yield RecipeProblem(where, f"{self.label(where)}: a teacher can't change with a feature signal")
        elif "reward" in change and isinstance(becomes, str):
            signature = yield from self.signature("rewards", where, becomes)
            yield from self.call((*loc, "options"), change.get("options", {}), becomes, signature)
        match change:
            case {"skill": str(name), "levels": list(levels)} if name in self.num_levels:
                for i, level in enumerate(levels):
                    if isinstance(level, int) and level >= self.num_levels[name]:
                        where, last = (*loc, "levels", i), self.num_levels[name] - 1
                        yield RecipeProblem(
                            where, f"{self.label(where)} is {level}, but the last level of {name!r} is {last}"
                        )

    def adapter(self, loc: Loc, name: Any) -> Iterator[RecipeProblem]:
        if not isinstance(name, str):
            return
        place = registry.find_path(name, self.folder)
        if place is None and (name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name)):
            beside = [path.parent.name for path in self.folder.glob("*/adapter_config.json")]
            near = hint(name.removeprefix("./"), beside) or "; give the folder or hub id (owner/name) of a PEFT adapter"
            yield RecipeProblem(loc, f"{self.label(loc)}: there is no adapter {name!r}{near}")
        elif place is not None and not (place / "adapter_config.json").is_file():
            yield RecipeProblem(loc, f"{self.label(loc)}: {name} is no PEFT adapter: it has no adapter_config.json")

    def signals(self, loc: Loc, signals: Any, teachers: list[str]) -> Iterator[RecipeProblem]:
        given = {name: signal for name, signal in _items(signals) if signal is not None}
        if isinstance(signals, dict) and not given:
            yield RecipeProblem(loc, f"{self.label(loc)}: no signal takes part; name policy, response or feature")
        needy = [name for name in ("response", "feature") if name in given]
        match given.get("policy"):
            case {"teacher_reward": int() | float() as weight} if weight > 0:
                needy.append("policy.teacher_reward")
        for name in needy if not teachers else ():
            where = (*loc, *name.split("."))
            yield RecipeProblem(where, f"{self.label(where)} needs teachers, and this stage has none")


def _keys(value: Any) -> list[str]:
    return [key for key in value if isinstance(key, str)] if isinstance(value, dict) else []


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
