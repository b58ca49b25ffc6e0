"""What each command prints, and that a user's mistake is one line and exit code 2, never a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from rld import cli
from rld.errors import CheckpointError, RewardError
from rld.recipe import catalogue, registry
from rld.utils.messages import warnings_as_lines
from tests.support import made_up_run

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """\
# Learn to count
name: count
models:
  student: {new: llama, config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4}}
tokenizer: {characters: "0123456789="}
skills:
  count: {generator: "./tasks.py:count"}
  rows: {file: ./rows.csv, held_out: 1}
rewards: [{use: "./tasks.py:right"}]
stages:
  - {name: warm, kind: sft, student: student, steps: 10}
  - name: main
    kind: distill
    student: warm
    teachers: {guide: {model: warm}}
    curriculum: {use: "./tasks.py:Even"}
    steps: 20
"""
FOLDERS = [
    *([name, "count.yaml", "--output"] for name in ("train", "check", "cache-teachers")),
    ["ablate", "count.yaml", "--arms", "gap", "--output"],
    ["evaluate", "count.yaml", "--model"],
    ["serve-teacher", "some/model", "--adapter"],
    ["serve-teacher"],
    ["report"],
    ["copy", "count"],
    ["train"],
]
TASKS = """\
def count(rng):
    number = rng.randrange(10_000)
    return f"{number}=", str(number)

def right(completions, answer, **columns):
    return [float(a == b) for a, b in zip(completions, answer)]

class Even:
    def __init__(self, levels):
        self.levels = levels

    def next(self, rng):
        return rng.choice(sorted(self.levels)), 0

    def observe(self, task, successes, attempts): ...
    def state_dict(self):
        return {}
    def load_state_dict(self, state): ...
    def metrics(self):
        return {}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "count.yaml").write_text(RECIPE)
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "rows.csv").write_text("question,answer\n1,2\n2,3\n3,4\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def run(capsys, *arguments):
    code = cli.main(arguments)
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (("steps: 20", "steps: many"), "stages.main.steps should be a whole number, not 'many'"),
        (("student: warm", "student: wram"), "there is no model 'wram'; did you mean 'warm'?"),
        (("tasks.py:count", "tasks.py:cuont"), "./tasks.py has no 'cuont'; did you mean 'count'?"),
        (("skills:", "skils:"), "unknown key 'skils'; did you mean 'skills'?"),
        (("name: count", "name: [count"), "not valid YAML"),
    ],
)
def test_a_broken_recipe_ends_a_real_process_with_2_and_no_traceback(folder, broken, expected):
    (folder / "count.yaml").write_text(RECIPE.replace(*broken))
    command = [sys.executable, "-m", "rld", "train", str(folder / "count.yaml"), "--output", str(folder / "run")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2
    assert expected in process.stderr
    assert all(line.startswith(f"rld: {folder / 'count.yaml'}:") for line in process.stderr.splitlines())
    assert not (folder / "run").exists()


def test_check_shows_models_signals_and_costs(folder, capsys):
    code, out, err = run(capsys, "check", "count.yaml", "seed=7", "stages.main.steps=130")
    assert (code, err) == (0, "")
    for words in (
        "seed 7",
        "guide: warm, 21.",
        "policy, response (jsd)",
        "gap, every 5",
        "130 steps of 8 prompts x 8",
        "FLOPs",
    ):
        assert words in out


def test_check_shows_what_guards_a_stage_and_what_that_costs(capsys):
    recipe = "scenarios/s6_forgotten_skill"
    audit = "stages.distill.audit={use: answers:exact_match, share: 0.25}"
    code, out, _ = run(capsys, "check", recipe, audit)
    assert code == 0
    text = " ".join(out.split())
    for words in (
        "answers:exact_match x 1",
        "per prompt, by the teacher's own answer",
        "answers:exact_match checks 25% of the successes",
        "sort, following: 0.03 below the start at most; 32 probe prompts each, 32 completions replayed a step",
    ):
        assert words in text
    assert re.search(r"retention [\d.]+G", text)
    _, out, _ = run(capsys, "check", recipe, "stages.distill.retain=null")
    assert "retention" not in out


def test_check_says_when_a_size_is_unknown(folder, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    code, out, _ = run(capsys, "check", "count.yaml", "models.student=nobody/nothing")
    assert code == 0
    assert "unknown" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian", "count.yaml"], "there is no command 'trian'; did you mean 'train'?"),
        (["train"], "the following arguments are required: RECIPE"),
        (["check", "cuont.yaml"], "no recipe at cuont.yaml; did you mean 'count.yaml'?"),
        (["check", "count.yaml", "--outptu", "x"], "unrecognized arguments: --outptu"),
        (["ablate", "count.yaml", "--arm", "a", "--arm", "b"], "required: --arms"),
        (["check", "count.yaml", "sed=1"], "command line (sed=1): unknown key 'sed'; did you mean 'seed'?"),
        (["list", "reward"], "nothing of kind 'reward' ships; did you mean 'rewards'?"),
        (["copy", "nothing-like-it"], "no recipe called 'nothing-like-it' ships"),
        (["report", "nowhere"], "nowhere holds no run and no finished ablation"),
        (["evaluate", "count.yaml"], "evaluate needs a model; write rld evaluate RECIPE --model MODEL"),
        (["evaluate", "count.yaml", "quickstart"], "count.yaml and quickstart are both recipes"),
        *(([*words, ""], "it is empty; is a variable of the shell not set?") for words in FOLDERS),
        (["check", "/dev/null"], "/dev/null is no regular file; save the recipe in a file"),
        (["evaluate", "some/model", "cuont.yaml"], "no recipe at cuont.yaml; did you mean 'count.yaml'?"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(folder, capsys, arguments, expected):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert expected in err
    assert [line[:5] for line in err.splitlines()] == ["rld: "]


def test_train_hands_over_the_recipe_with_overrides_wherever_they_stand(folder, capsys, monkeypatch):
    seen = pipeline(monkeypatch)
    assert run(capsys, "train", "count.yaml", "seed=3", "--output", "here", "stages.warm.steps=4", "--resume")[0] == 0
    (recipe, source, output, resume, _) = seen[0]
    assert (recipe.seed, recipe.stages[0].steps, source, output, resume) == (
        3,
        4,
        Path("count.yaml"),
        Path("here"),
        True,
    )
    run(capsys, "train", "count.yaml")
    assert seen[1][2:] == (Path("runs/count"), False, False)


def test_train_does_not_overwrite_a_run(folder, capsys, monkeypatch):
    seen = pipeline(monkeypatch)
    (folder / "runs" / "count").mkdir(parents=True)
    assert run(capsys, "train", "count.yaml")[0] == 0
    (folder / "runs" / "count" / "recipe.json").write_text("{}")
    code, _, err = run(capsys, "train", "count.yaml")
    assert code == 2
    assert "runs/count holds a run already; add --resume" in err
    assert run(capsys, "train", "count.yaml", "--resume")[0] == 0
    assert len(seen) == 2


def test_a_mistake_found_by_all_processes_is_told_by_one_and_another_by_whoever_finds_it(folder, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run(capsys, "check", "cuont.yaml") == (2, "", "")
    assert run(capsys, "check", "count.yaml") == (0, "", "")
    pipeline(monkeypatch, RewardError("reward 'x' raised"))
    assert run(capsys, "train", "count.yaml") == (2, "", "rld: reward 'x' raised\n")


def test_an_error_of_several_lines_is_several_lines_and_ctrl_c_is_130(folder, capsys, monkeypatch):
    pipeline(monkeypatch, CheckpointError("one\ntwo"))
    assert run(capsys, "train", "count.yaml") == (2, "", "rld: one\nrld: two\n")
    pipeline(monkeypatch, KeyboardInterrupt())
    assert run(capsys, "train", "count.yaml")[0] == 130


def test_a_bug_keeps_its_traceback(folder, monkeypatch):
    pipeline(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "count.yaml"])


def test_list_names_every_kind(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys, "list")
    assert code == 0
    for kind in catalogue.KINDS:
        for name in catalogue.names(kind):
            assert name in out
    assert "stages" not in run(capsys, "list", "controllers")[1]


def test_copy_takes_the_files_that_a_recipe_names_and_overwrites_only_by_force(folder, capsys, monkeypatch):
    monkeypatch.setattr(registry, "folder", lambda kind: folder)
    code, out, _ = run(capsys, "copy", "count", "mine")
    assert code == 0
    assert out.split() == ["mine/count.yaml", "mine/tasks.py", "mine/rows.csv"]
    assert run(capsys, "check", "mine/count.yaml")[0] == 0
    (folder / "mine" / "count.yaml").write_text("changed")
    (folder / "mine" / "rows.csv").unlink()
    code, _, err = run(capsys, "copy", "count", "mine")
    assert code == 2
    assert "mine/count.yaml, mine/tasks.py exists already; add --force" in err
    assert not (folder / "mine" / "rows.csv").exists()
    assert run(capsys, "copy", "count", "mine", "--force")[0] == 0
    assert (folder / "mine" / "count.yaml").read_text() == RECIPE


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["count.yaml", "--model", "some/model", "seed=3"], 3),
        (["count.yaml", "seed=3", "--model", "some/model"], 3),
        (["some/model", "count.yaml", "seed=3"], 3),
        (["count.yaml", "some/model"], 0),
    ],
)
def test_evaluate_takes_recipe_and_model_in_either_order(folder, capsys, monkeypatch, arguments, overrides):
    calls = []
    fake(monkeypatch, "rld.pipeline.train", evaluate=lambda *arguments: calls.append(arguments) or 0)
    assert run(capsys, "evaluate", *arguments)[0] == 0
    ((model, recipe, source),) = calls
    assert (model, source, recipe.seed) == ("some/model", Path("count.yaml"), overrides)


def test_report_draws_a_runs_page_again_and_prints_its_verdict(folder, capsys):
    made_up_run.make(folder / "run")
    code, out, err = run(capsys, "report", "run")
    assert (code, err) == (0, "")
    assert "The student answers 92% of the held-out rows correctly, 15% before stage `main` (means" in out
    assert out.endswith("report: run/report.html\n")
    assert (folder / "run" / "report.html").is_file()


def pipeline(monkeypatch, error=None):
    """Put a pipeline in place that notes what it is asked to train, or raises."""
    seen = []

    def train(*arguments):
        seen.append(arguments)
        if error is not None:
            raise error
        return 0

    fake(monkeypatch, "rld.pipeline.train", train=train)
    return seen


def fake(monkeypatch, name, **attributes):
    module = type(sys)(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


def test_a_warning_is_one_line_of_text():
    with warnings_as_lines():
        text = warnings.formatwarning(UserWarning("the rows are few"), UserWarning, "somewhere.py", 3, "code")
    assert text == "warning: the rows are few\n"
