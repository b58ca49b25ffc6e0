"""The paths of a run's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rld.errors import UsageError
from rld.utils.files import Record, read_json, require_target
from rld.utils.messages import tell
from rld.utils.suggestions import hint

_STAGE_RECORD = "rld_stage.json"

ABLATION_RESULT = "ablation.json"
"""The name of the file with an ablation's result, in the folder that contains the folders of its runs."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, and the paths in it.

    Attributes:
        path: The folder.
        last_stage: The stage whose model is the run's student. None: for callers that do not need a
            stage's result, and for a run without one.
        without_model: The stages that make no model, and the folder that has the result of each.
    """

    path: Path
    last_stage: str | None = None
    without_model: Mapping[str, str] = field(default_factory=dict)

    @property
    def recipe(self) -> Path:
        """The resolved recipe, with all overrides and defaults."""
        return self.path / "recipe.json"

    @property
    def inputs(self) -> Path:
        """What the run's numbers depend on, as fingerprints, and how that has changed."""
        return self.path / "inputs.json"

    @property
    def summary(self) -> Path:
        """The file with the status and the results of the run so far."""
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """One JSON object per event."""
        return self.path / "events.jsonl"

    @property
    def samples(self) -> Path:
        """Answers to a few held-out rows, before and after each finished stage."""
        return self.path / "samples.jsonl"

    @property
    def report(self) -> Path:
        """The report as a page of HTML."""
        return self.path / "report.html"

    @property
    def comparison(self) -> Path:
        """The run beside the one with which `rld report` compared it last, as a page of HTML."""
        return self.path / "compared.html"

    @property
    def cost(self) -> Path:
        """What the run has cost, and when its student has paid for itself, as a page of HTML."""
        return self.path / "cost.html"

    @property
    def log(self) -> Path:
        """The printed output of a run that an ablation started."""
        return self.path / "train.log"

    @property
    def student(self) -> Path:
        """The model and record of the last stage."""
        return self.path / "student"

    @property
    def models(self) -> Path:
        """A folder with the models and records of all other stages that make one."""
        return self.path / "models"

    @property
    def evaluations(self) -> Path:
        """A folder with the records of stages that score a model."""
        return self.path / "evaluations"

    @property
    def exports(self) -> Path:
        """A folder with the exported models of stages, and their records."""
        return self.path / "exports"

    def stage_result(self, name: str) -> Path:
        """Return the folder with a stage's record, and its model if it makes one."""
        if name in self.without_model:
            return self.path / self.without_model[name] / name
        return self.student if name == self.last_stage else self.models / name

    def predictions(self, stage: str, scoring: str) -> Path:
        """Return the file with the predictions of one scoring: `before`, `after`, `teacher/NAME`, `step/NUMBER`."""
        return self.path / "predictions" / stage / f"{scoring}.jsonl"

    def checkpoints(self, name: str) -> Path:
        """Return the folder with the checkpoints of a stage that is not finished."""
        return self.path / "checkpoints" / name

    def find_recipe_file(self) -> Path:
        """Return the file that the recipe was read from, to whose folder its paths are relative.

        Where that folder is gone, as on another machine, this is told, and paths are relative to the run's folder.

        Raises:
            CheckpointError: the summary is missing or damaged.
        """
        place = Path(str(read_json(self.summary).get("recipe_file", self.recipe)))
        if place.parent.is_dir():
            return place
        note = f"the folder of its recipe, {place.parent}, is gone, so files that the recipe names are looked for here"
        tell(f"{self.path}: {note}; --recipe FILE names the recipe where it is now")
        return self.recipe

    def tensorboard(self, name: str) -> Path:
        """Return the folder with the logs of TensorBoard of a stage that sends it some."""
        return self.path / "tensorboard" / name

    def stage_record(self, name: str) -> Record | None:
        """Return the record of a finished stage, or None while the stage is not finished."""
        path = stage_record_path(self.stage_result(name))
        return read_json(path) if path.is_file() else None

    @property
    def leftovers(self) -> list[Path]:
        """Existing results, checkpoints and metrics of an earlier run, which a new run would overwrite."""
        paths = [self.student, self.models, self.evaluations, self.exports, self.path / "checkpoints", self.metrics]
        return [path for path in paths if path.exists()]

    def require_links(self) -> None:
        """Check that the links in the folder, such as to results on another disk, lead somewhere.

        Raises:
            UsageError: one does not.
        """
        for path in (*self.path.glob("*"), *self.path.glob("*/*")):
            require_target(path)

    def require_free(self) -> None:
        """Check that the folder holds no run.

        Raises:
            UsageError: it holds one.
        """
        if self.recipe.exists():
            raise UsageError(
                f"{self.path} holds a run already; add --resume to continue it, or choose another --output"
            )
        if self.leftovers:
            name = self.leftovers[0].name
            raise UsageError(f"{self.path} holds {name}, which belongs to no run; choose another --output")


def no_run(folder: Path, what: str = "no run") -> UsageError:
    """Return the error that a folder holds no run, with a folder beside it that does.

    Args:
        folder: The folder.
        what: What it does not hold.
    """
    names = RunFolder(folder).recipe.name, ABLATION_RESULT
    beside = [str(path.parent) for name in names for path in folder.parent.glob(f"*/{name}")]
    return UsageError(f"{folder} holds {what}{hint(str(folder), beside)}")


def stage_record_path(folder: Path) -> Path:
    """Return the path of a stage's record in the folder of its result."""
    return folder / _STAGE_RECORD


def model_name(place: str) -> str:
    """Return a name for a model: of a run's student that of the run."""
    path = Path(place).absolute()
    return path.parent.name if recipe_of_model(path) == path.parent / "recipe.json" else path.name


def recipe_of_model(model: Path) -> Path | None:
    """Return the recipe of the run whose student or other stage's model a folder is; None if it is none."""
    folders = [model.parent, *([model.parent.parent] if model.parent.name == "models" else [])]
    recipes = [RunFolder(folder).recipe for folder in folders] if model.is_dir() else []
    return next((path for path in recipes if path.is_file()), None)
