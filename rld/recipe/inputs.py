"""What the numbers of a run depend on: its recipe, code, data, models, packages and processes, as fingerprints.

They stand in one file of the run's folder, `inputs.json`, so that `--resume` can tell what has changed since the start
(`input_changes.py`). Nothing is loaded or imported; of large files of weights only samples are read.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from rld.data.formats import hub
from rld.data.formats.files import row_files
from rld.errors import CheckpointError
from rld.recipe import registry, user_code
from rld.recipe.names import is_hub_id
from rld.recipe.schema import Recipe
from rld.recipe.skills import DatasetSkill
from rld.recipe.stage_inputs import FORMAT, MODEL_KEYS, Keys, StageInputs, digest, stage_inputs, values
from rld.recipe.stages.base import Stage
from rld.utils import files
from rld.utils.manifest import file_record
from rld.utils.secrets import masked_recipe

PACKAGES = (
    *("torch", "transformers", "trl", "accelerate", "peft", "tokenizers", "datasets", "numpy", "reasoning-gym", "rld"),
)
"""The packages whose versions are recorded."""

_MODEL_FILES = (".json", ".jinja", ".safetensors", ".bin", ".model", ".txt", ".py")

_OPTIONS = ("options", "trainer", "config", "from_pretrained")
"""Keys of a recipe below which keys have the meanings of other libraries."""

_FULLY_READ = 1 << 26
"""Bytes up to which a model's file is hashed as a whole; of a larger one 64 blocks are."""

_SAMPLE = 1 << 16
"""Bytes of such a block."""


class Inputs(BaseModel):
    """What the numbers of a run depend on.

    Attributes:
        recipe: The resolved recipe, with all overrides and defaults; secrets are masked.
        files: Hashes of the user's code and data, by their paths as the recipe writes them, and commits of data sets.
        models: Of each model by its name in the recipe: hashes of the files of a folder, by name; or the revision of a
            hub id. None: it was not on this machine yet.
        packages: Versions of installed packages.
        launch: Number of processes, strategy, device and precision; empty where no process was started.
        stages: Of each stage, which of these its result depends on.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    recipe: dict[str, Any]
    files: dict[str, str]
    models: dict[str, dict[str, str] | None]
    packages: dict[str, str]
    launch: dict[str, Any]
    stages: dict[str, StageInputs]

    @field_validator("recipe")
    @classmethod
    def _is_resolved(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        stages = recipe.get("stages")
        if not isinstance(recipe.get("models"), dict) or not isinstance(stages, list):
            raise ValueError("it has no models and stages")
        if not all(isinstance(stage, dict) and {"name", "kind"} <= stage.keys() for stage in stages):
            raise ValueError("a stage lacks its name or kind")
        return recipe

    @classmethod
    def of(cls, recipe: Recipe, folder: Path, launch: Mapping[str, Any]) -> Self:
        """Return the inputs of a run that is started now.

        Args:
            folder: The recipe's folder, to which its paths are relative.
        """
        resolved = recipe.model_dump(mode="json")
        texts = list(_texts(resolved))
        local_names = {*recipe.models, *(stage.name for stage in recipe.stages)}
        return cls(
            recipe=masked_recipe(resolved),
            files=dict(sorted([*_code(texts, folder), *_data(texts, folder), *_datasets(recipe, recipe.skills)])),
            models={name: model_fingerprint(name, folder) for name in _models(texts, local_names, folder)},
            packages={name: _version(name) for name in PACKAGES},
            launch=dict(launch),
            stages={stage.name: _of_stage(recipe, stage, texts, folder) for stage in recipe.stages},
        )

    def with_known_models(self, previous: Inputs) -> Inputs:
        """Return inputs in which a model that is not on this machine any more has its earlier fingerprint."""
        models = {name: previous.models.get(name) if print_ is None else print_ for name, print_ in self.models.items()}
        return self.model_copy(update={"models": models})

    def fingerprint(self, stage: str) -> str:
        """Return the hash of all that a stage's result depends on, that of earlier stages included."""
        needs = self.stages[stage]
        return digest(
            {
                "format": FORMAT,
                "seed": needs.seed,
                "recipe": list(values(self.recipe, needs)),
                "files": {name: self.files.get(name) for name in needs.files},
                "models": {name: self.models.get(name) for name in needs.models},
                "stages": {name: self.fingerprint(name) for name in needs.stages},
            }
        )


def _of_stage(recipe: Recipe, stage: Stage, texts: list[tuple[Keys, str]], folder: Path) -> StageInputs:
    """Return what a stage depends on; `texts` are those of the resolved recipe, with the keys that lead to them."""
    needs = stage_inputs(recipe, stage)
    names = [other.name for other in recipe.stages]

    def is_used(keys: Keys) -> bool:
        named_keys = (keys[0], names[keys[1]], *keys[2:]) if keys[0] == "stages" else keys
        return any(named_keys[: len(part)] == part for part in needs.parts)

    used = [(keys, text) for keys, text in texts if is_used(keys)]
    skills = recipe.skills if stage.makes_model else stage.skills_in_use(recipe.skills)
    files = dict.fromkeys([*_code(used, folder), *_data(used, folder), *_datasets(recipe, skills)])
    models = list(dict.fromkeys(_models(used, {*recipe.models, *names}, folder)))
    return needs.model_copy(update={"files": sorted({name for name, _ in files}), "models": models})


class AcceptedChanges(BaseModel):
    """Changes of a run's inputs with which it was resumed: from which update of which stage, and what has changed."""

    model_config = ConfigDict(frozen=True, strict=True)

    stage: str
    step: int
    time: str
    changes: list[str]

    def __str__(self) -> str:
        return f"From update {self.step} of stage {self.stage} on with other inputs: {'; '.join(self.changes)}."


class InputsFile(BaseModel):
    """The content of `inputs.json`: the inputs as they were last, and all earlier changes."""

    model_config = ConfigDict(frozen=True, strict=True)

    inputs: Inputs
    changes: list[AcceptedChanges] = []

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return what a run's file holds.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        try:
            return cls.model_validate(files.read_json(path))
        except ValidationError as error:
            key = ".".join(map(str, error.errors()[0]["loc"]))
            raise CheckpointError(f"{path} is damaged: {key} is not what rld writes") from error

    def write(self, path: Path) -> None:
        # not by write_json, which may find a short secret in a hash
        files.write_bytes(path, self.model_dump_json(indent=1).encode())


def _texts(value: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Yield every text of a resolved recipe with the keys that lead to it."""
    if isinstance(value, str):
        yield keys, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, (*keys, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*keys, index))


def _code(texts: list[tuple[tuple[Any, ...], str]], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the files that define rewards, curricula and generators, and the files beside them that they import."""
    for keys, text in texts:
        if not keys or keys[-1] not in ("use", "generator") or set(keys) & set(_OPTIONS):
            continue
        kind: registry.Kind = "generators" if keys[-1] == "generator" else "rewards"
        place = registry.locate("curricula" if "curriculum" in keys else kind, text, folder)
        if place.module is not None:
            yield place.module, _digest(place.path)
            continue
        name = text.rpartition(":")[0]
        yield name, _digest(place.path)
        for helper in user_code.sources(place.path):
            yield (Path(name).parent / helper.relative_to(place.path.resolve().parent)).as_posix(), _digest(helper)


def _data(texts: list[tuple[tuple[Any, ...], str]], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the files, the files of folders of rows and tasks, and the logs of the runs, that any text names."""
    for keys, text in texts:
        are_rows = keys[:1] == ("skills",) and keys[-1] == "file"
        if len(text) > 255 or "\n" in text or "\0" in text or keys[-1:] == ("use",):
            continue
        if not are_rows and not re.search(r"[./]", text):
            continue
        path = registry.find_path(text, folder)
        if are_rows and path is not None and path.is_dir():
            yield from ((f"{text}/{file.relative_to(path)}", _digest(file)) for file in row_files(path))
            continue
        if path is not None and path.is_dir() and keys[0] == "evaluation":  # tasks, the files that they include or run
            tasks = (file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix != ".pyc")
            yield from ((f"{text}/{file.relative_to(path)}", _digest(file)) for file in tasks)
            continue
        if path is not None and path.is_dir():
            path = path / "metrics.jsonl"
        if path is not None and path.is_file():
            yield text, _digest(path)


def _datasets(recipe: Recipe, skills: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the data sets of the hub, from which skills have their rows, with their commits."""
    for skill in map(recipe.skills.__getitem__, skills):
        if isinstance(skill, DatasetSkill):
            yield f"data set {skill.origin}", hub.commit(skill.source)


def _models(texts: list[tuple[tuple[Any, ...], str]], local_names: set[str], folder: Path) -> Iterator[str]:
    """Yield folders and hub ids of the models that a recipe names; `local_names` are its names of models and stages."""
    for keys, text in texts:
        names = [key for key in keys if isinstance(key, str)]
        is_model = len(names) > 1 and (names[-1] in MODEL_KEYS or (keys[0] == "models" and len(keys) == 2))
        if not is_model or (text in local_names and keys[0] != "models"):
            continue
        if is_hub_id(text) or _model_folder(text, folder) is not None:
            yield text


def _model_folder(name: str, folder: Path) -> Path | None:
    path = registry.find_path(name, folder)
    return path if path is not None and path.is_dir() else None


def model_fingerprint(name: str, folder: Path) -> dict[str, str] | None:
    """Return the fingerprint of a model by its name in a recipe, as in `Inputs.models`."""
    place = _model_folder(name, folder)
    if place is not None:
        names = [path for path in sorted(place.iterdir()) if path.suffix in _MODEL_FILES and path.is_file()]
        return {path.name: _digest(path, samples=True) for path in names if not path.name.startswith("rld_")}
    for config in ("config.json", "adapter_config.json"):
        path = registry.model_file(name, config, folder)
        if path is not None:
            return {"revision": path.parent.name}  # the cache of the hub has a folder per revision
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _digest(path: Path, samples: bool = False) -> str:
    status = path.stat()
    return _cached_digest(path, samples, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _cached_digest(path: Path, samples: bool, size: int, _modified: int) -> str:
    """Return the hash of a file, which `rld ablate` asks for once per run."""
    if not samples or size <= _FULLY_READ:
        return str(file_record(path)["sha256"])
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for index in range(64):
            file.seek(index * (size - _SAMPLE) // 63)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
