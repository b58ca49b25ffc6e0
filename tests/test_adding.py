"""To add one thing, one file is written: every row of CONTRIBUTING's table, in one temporary copy of the repository.

Each row adds a dummy where the table says so, and nowhere else. The dummies are then used by one recipe and looked for
in what `rld list`, `rld check` and the recipe's page show, and in what the log and the report make of them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import made_up_run

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("rld", "rewards", "curricula", "recipes", "docs", "tests/recipe_page.py", "tests/run_folder_page.py")


class Written(NamedTuple):
    """One edit: a file, and the function from its text (that of a new file is empty) to its text with the dummy."""

    file: str
    edit: Callable[[str], str]


class Row(NamedTuple):
    """What is written to add one thing, and where it is found then."""

    written: list[Written]
    shown: dict[str, str]
    """Where (`list`, `check`, `help`, `page`, `log`, `report`, `python`) and the text that is found there."""


def appended(code: str) -> Callable[[str], str]:
    """Return the edit that adds code to the end of a file."""
    return lambda text: f"{text}\n\n{code}".lstrip()


def in_union(union: str, member: str, code: str) -> Callable[[str], str]:
    """Return the edit that puts a class before a union, and its name into the union."""

    def edit(text: str) -> str:
        before, after = text.split(f"{union} = Annotated[", 1)
        return f"{before}{code}\n\n{union} = Annotated[\n    {member} | {after.lstrip()}"

    return edit


def replaced(old: str, new: str) -> Callable[[str], str]:
    """Return the edit that replaces a text that occurs once."""

    def edit(text: str) -> str:
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
        return text.replace(old, new)

    return edit


def kind_of_loss(base: str, name: str) -> str:
    """Return a class of one of the unions in `losses/`."""
    return f'''class Dummy{name}({base}):
    """A dummy {name}."""

    kind: Literal["dummy_{name.lower()}"] = "dummy_{name.lower()}"
    strength: float = 1.0
    """How much of a dummy it is."""
'''


REWARD = '''"""Dummies."""


def flat(completions, *, height=0.5, **_):
    """Give every completion the same."""
    return [height] * len(completions)
'''
CURRICULUM = '''"""Dummies."""


class First:
    """Practise one skill."""

    def __init__(self, levels, *, start=0):
        self.levels, self.start = levels, start

    def next(self, rng):
        return min(self.levels), self.start

    def observe(self, task, successes, attempts):
        pass

    def metrics(self):
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
'''
CONTROLLER = '''class DummyController(FixedController):
    """A dummy of a controller."""

    kind: Literal["dummy"]  # type: ignore[assignment]
    calm: float = 1.0
    """How calm it is."""
'''
MODEL = '''class DummyModel(FrozenOptions):
    """A dummy of a model."""

    dummy: int
    """Its size."""
'''
TEACHER = '''class DummyTeacher(_Teacher):
    """A dummy of a teacher."""

    attic: str
    """Which attic it lives in."""

    @property
    def place(self):
        return f"in the attic {self.attic}"
'''
STAGE = '''"""The options of a `nap` stage."""

from __future__ import annotations

from typing import ClassVar, Literal

from rld.recipe.sizes import StageCost
from rld.recipe.stages.base import TrainingStage


class Nap(TrainingStage):
    """A dummy of a stage."""

    trainer_class: ClassVar[tuple[str, str]] = ("trl.trainer.sft_config", "SFTConfig")
    kind: Literal["nap"]

    def cost(self, sizes):
        return StageCost(sizes.parameters(self.student), {}, None, {})

    def describe(self, cost, skills):
        return [("rests", f"{self.student}, for {self.steps} steps")]
'''
RUNNER = '''"""The `nap` stage at work."""


def dry_run(context, stage):
    pass


def run(context, stage):
    print(f"{stage.name} rests")
'''
FORMAT = '''"""Pairs of lines: a question and its answer."""


def read(path):
    lines = path.read_text().splitlines()
    for i in range(0, len(lines), 2):
        yield i + 2, {"question": lines[i], "answer": lines[i + 1]}
'''
METRIC = '''"""An `evaluate` metric: a dummy."""

from rld.evaluation.metric import RowMean


class Length(RowMean):
    """The mean length of answers."""

    columns = {"predictions": "string", "references": "string"}

    def row_values(self, predictions, references):
        return [float(len(text)) for text in predictions]
'''
EVALUATOR_OPTIONS = '''class DummyEvaluator(FrozenOptions):
    """A dummy of an evaluator."""

    kind: Literal["coin"]
'''
EVALUATOR = '''"""Scores by a coin."""

from rld.evaluation.measured import MeasuredScore


def build(options, source, *, is_chat):
    return Coin()


class Coin:
    def require_possible(self):
        pass

    def evaluate(self, model, tokenizer):
        return {"coin": {"heads": MeasuredScore(0.5, 0.0, 1.0)}}
'''
EXPORTER = '''"""Models on paper."""


def require_exportable(model, tokenizer, precision):
    print(f"paper takes {precision}")
'''
COMMAND = '''def _dream(options: argparse.Namespace) -> int:
    """Do nothing at all."""
    return 0


_COMMANDS = {
    "dream": _dream,'''

ROWS = {
    "reward": Row(
        [Written("rewards/dummies.py", appended(REWARD))],
        {"list": "dummies:flat.* Give every completion the same", "check": "dummies:flat"},
    ),
    "curriculum": Row(
        [Written("curricula/dummies.py", appended(CURRICULUM))],
        {"list": "dummies:First.* Practise one skill", "check": "dummies:First"},
    ),
    "divergence": Row(
        [
            Written(
                "rld/losses/divergences.py",
                in_union("AnyDivergence", "DummyDivergence", kind_of_loss("_Divergence", "Divergence")),
            )
        ],
        {"list": "dummy_divergence", "check": "dummy_divergence", "page": "## DummyDivergence"},
    ),
    "combination": Row(
        [
            Written(
                "rld/losses/combination.py",
                in_union("AnyCombination", "DummyCombination", kind_of_loss("_Combination", "Combination")),
            )
        ],
        {"list": "dummy_combination", "page": "## DummyCombination"},
    ),
    "token weight": Row(
        [
            Written(
                "rld/losses/token_weights.py",
                in_union("AnyTokenWeights", "DummyTokens", kind_of_loss("_TokenWeights", "Tokens")),
            )
        ],
        {"list": "dummy_tokens", "page": "## DummyTokens"},
    ),
    "feature loss": Row(
        [
            Written(
                "rld/losses/features.py", in_union("AnyFeature", "DummyFeature", kind_of_loss("_Feature", "Feature"))
            )
        ],
        {"list": "dummy_feature", "check": "dummy_feature", "page": "## DummyFeature"},
    ),
    "controller": Row(
        [
            Written("rld/controllers/__init__.py", in_union("AnyController", "DummyController", CONTROLLER)),
            Written(
                "rld/controllers/__init__.py",
                replaced("from typing import Annotated, Any\n", "from typing import Annotated, Any, Literal\n"),
            ),
        ],
        {"list": "dummy .* A dummy of a controller", "check": "dummy", "page": "## DummyController"},
    ),
    "file format": Row(
        [
            Written("rld/data/formats/pairs.py", appended(FORMAT)),
            Written(
                "rld/data/formats/__init__.py",
                replaced("jsonl, parquet, text\n", "jsonl, pairs, parquet, text\n"),
            ),
            Written("rld/data/formats/__init__.py", replaced("] = {", '] = {\n    ".pairs": pairs.read,')),
        ],
        {"check": r"./rows.pairs", "python": "How many\\? one"},
    ),
    "score": Row(
        [
            Written("rld/evaluation/metrics/length.py", appended(METRIC)),
            Written(
                "rld/evaluation/scores.py",
                replaced(
                    '= {\n    "solved"',
                    '= {\n    "length": Score("mean length", "text", "length", _texts, is_share=False),\n    "solved"',
                ),
            ),
        ],
        {"python": "length 4.0"},
    ),
    "evaluator": Row(
        [
            Written("rld/recipe/evaluation.py", in_union("AnyEvaluator", "DummyEvaluator", EVALUATOR_OPTIONS)),
            Written("rld/evaluation/coin.py", appended(EVALUATOR)),
        ],
        {"page": "## DummyEvaluator", "python": "coin 0.5"},
    ),
    "export format": Row(
        [
            Written("rld/models/export/paper.py", appended(EXPORTER)),
            Written(
                "rld/recipe/exports.py",
                replaced("] = {\n", '] = {\n    "paper": ExportFormat("a letter", {"ink": 4}, (), "pip"),\n'),
            ),
        ],
        {"python": "paper takes ink"},
    ),
    "stage": Row(
        [
            Written("rld/recipe/stages/nap.py", appended(STAGE)),
            Written("rld/pipeline/nap.py", appended(RUNNER)),
            Written(
                "rld/recipe/stages/__init__.py",
                replaced(
                    "from rld.recipe.stages.sft", "from rld.recipe.stages.nap import Nap\nfrom rld.recipe.stages.sft"
                ),
            ),
            Written("rld/recipe/stages/__init__.py", replaced("Annotated[Sft | ", "Annotated[Nap | Sft | ")),
        ],
        {
            "list": "nap .* A dummy of a stage",
            "check": r"2. siesta: nap *\n *rests *tiny, for 7 steps",
            "page": "## Nap",
            "python": "siesta rests",
        },
    ),
    "way to make a model": Row(
        [
            Written("rld/recipe/models.py", in_union("AnyModel", 'Annotated[DummyModel, Tag("DummyModel")]', MODEL)),
            Written("rld/recipe/models.py", replaced("union_by_key(new=", "union_by_key(dummy=DummyModel, new=")),
        ],
        {"page": "## DummyModel"},
    ),
    "place where a teacher lives": Row(
        [
            Written(
                "rld/recipe/teachers.py",
                in_union("AnyTeacher", 'Annotated[DummyTeacher, Tag("DummyTeacher")]', TEACHER),
            ),
            Written("rld/recipe/teachers.py", replaced("union_by_key(url=", "union_by_key(attic=DummyTeacher, url=")),
        ],
        {"check": "in the attic upstairs", "page": "## DummyTeacher"},
    ),
    "metric of the log": Row(
        [
            Written(
                "rld/reporting/metric_names.py",
                replaced("METRICS = (", 'METRICS = (\n    Metric("dummy/<skill>", "", "how odd it is", "Oddity"),'),
            )
        ],
        {"log": "`dummy/<skill>` .* how odd it is"},
    ),
    "chart": Row(
        [
            Written(
                "rld/reporting/chart_groups.py",
                replaced('ChartStyle("Reward"),', 'ChartStyle("Oddity"), ChartStyle("Reward"),'),
            )
        ],
        {"report": ">Oddity<"},
    ),
    "command": Row([Written("rld/cli.py", replaced("_COMMANDS = {", COMMAND))], {"help": "dream .* Do nothing at all"}),
}
TASKS = '''def copy(rng, *, length):
    """Repeat a letter."""
    word = rng.choice("ab") * length
    return word, word
'''
RECIPE = """
name: dummies
tokenizer: {characters: "abHow mny?e"}
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 1}], held_out: 1, scores: [solved, length]}
  count: {file: ./rows.pairs, held_out: 0}
models:
  tiny: {new: llama, config: {hidden_size: 16, num_attention_heads: 2, num_key_value_heads: 2}}
  odd: {dummy: 3}
rewards: [{use: dummies:flat, options: {height: 0.25}}]
stages:
  - name: learn
    kind: distill
    student: tiny
    teachers: {one: {model: tiny}, two: {attic: upstairs}}
    signals:
      policy: {}
      response:
        divergence: {kind: dummy_divergence}
        combine_teachers: {kind: dummy_combination}
        token_weights: {kind: dummy_tokens}
      feature: {loss: {kind: dummy_feature}}
    controller: {kind: dummy, calm: 0.5, policy: 0.5}
    curriculum: {use: dummies:First, options: {start: 0}}
    steps: 1
  - {name: siesta, kind: nap, student: tiny, steps: 7}
"""
USED = """
from pathlib import Path
from rld.data.file_items import read_items
from rld.evaluation.evaluators import build_evaluator
from rld.evaluation.held_out import HeldOutEvaluator
from rld.evaluation.predictions import Prediction
from rld.models.prompting import PromptEncoder
from rld.pipeline.exporting import ExportPlan
from rld.recipe.evaluation import DummyEvaluator
from rld.recipe.reading import read_recipe
from rld.recipe.stages.export import Export
import tests.recipe_page as recipe, tests.run_folder_page as run_folder
recipe.PAGE.write_text(recipe.page())
run_folder.PAGE.write_text(run_folder.page(run_folder.PAGE.read_text()))
((item,),), = read_items(Path("rows.pairs"))
print(item.question, item.answer)
read_recipe(Path("dummies.yaml"), []).stages[1].run(None)
coin = build_evaluator(DummyEvaluator(kind="coin"), Path("dummies.yaml"), is_chat=False)
print("coin", coin.evaluate(None, None)["coin"]["heads"].value)
stage = Export(name="letter", kind="export", model="tiny", format="paper")
ExportPlan(None, PromptEncoder(None), stage.format, stage.precision_in_use, []).require_exportable()
(row,), (said,) = [{"skill": "copy", "answer": "a"}], [Prediction("four", 0.0, "four")]
skills = read_recipe(Path("dummies.yaml"), []).skills
print("length", HeldOutEvaluator([row], skills, None).evaluation([said]).measured["copy"]["length"].value)
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> dict[str, str]:
    """What the commands and the page show in a copy of the repository that has every dummy."""
    tree = tmp_path_factory.mktemp("repository")
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, tree / name)
    for row in ROWS.values():
        for file, edit in row.written:
            path = tree / file
            path.write_text(edit(path.read_text() if path.exists() else ""))
    (tree / "tasks.py").write_text(TASKS)
    (tree / "rows.pairs").write_text("How many?\none\n")
    (tree / "dummies.yaml").write_text(RECIPE)
    texts = {
        "list": output(tree, "-m", "rld", "list"),
        "check": output(tree, "-m", "rld", "check", "dummies.yaml"),
        "help": output(tree, "-m", "rld", "--help"),
    }
    texts["python"] = output(tree, "-c", USED)
    made_up_run.make(tree / "run", skills=["copy"], teachers=["one"])
    log = tree / "run" / "metrics.jsonl"
    log.write_text("".join(f'{{"dummy/copy": 1.0, {line[1:]}\n' for line in log.read_text().splitlines()))
    output(tree, "-m", "rld", "report", "run")
    files = {"page": "docs/recipe.md", "log": "docs/run_folder.md", "report": "run/report.html"}
    return texts | {where: (tree / file).read_text() for where, file in files.items()}


def output(tree: Path, *arguments: str) -> str:
    """Return what a Python process prints in the copied repository."""
    environment = os.environ | {"PYTHONPATH": str(tree), "COLUMNS": "250"}
    process = subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, f"{arguments}: {process.stdout}{process.stderr}"
    return process.stdout


@pytest.mark.parametrize("thing", ROWS)
def test_what_is_added_in_one_place_is_found_in_all_others(thing, shown):
    for where, text in ROWS[thing].shown.items():
        assert re.search(text, shown[where]), f"{where} does not show {text!r}"


def test_the_table_of_contributing_has_these_rows():
    table = (ROOT / "CONTRIBUTING.md").read_text()
    assert [thing for thing in ROWS if not re.search(rf"^\| an? {thing} \|", table, flags=re.MULTILINE)] == []
