"""A secret that stands anywhere in a recipe, a command or the environment is in no file of the run and not printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from rld.ablation.ablate import ablate
from rld.cli import main
from rld.utils import secrets
from tests.support import tiny

RECIPE = """
name: secretive
max_new_tokens: 4
skills:
  copy: {generator: "./user.py:copy", levels: [{db_password: PLANTED-1}, {db_password: PLANTED-1}], held_out: 2}
models:
  student: {path: ./model, from_pretrained: {token: PLANTED-2}}
rewards:
  - {use: "./user.py:pay", options: {api_key: PLANTED-3, headers: {Authorization: "Bearer PLANTED-4"}}}
judge: {use: answers:exact_match}
stages:
  - {name: warm, kind: sft, student: student, steps: 1, batch: 2}
  - name: main
    kind: distill
    student: warm
    teachers: {guide: {model: ./model, from_pretrained: {token: PLANTED-5}, probe_prompts: 0}}
    gate: off
    curriculum: {use: "./user.py:Mine", options: {client_secret: PLANTED-6}}
    rollout: {prompts: 1, completions: 2}
    steps: 2
    checkpoint_every: 1
"""
USER = """
import os, warnings
def copy(rng, *, db_password):
    word = "".join(rng.choices("abcdefghij", k=3))
    return word + "=", word
def pay(completions, *, api_key, headers, **_):
    warnings.warn(f"asking with {api_key} and {headers} and {os.environ['MY_SERVICE_TOKEN']}")
    print("see http://user:PLANTED-8@host/")
    if os.environ.get("FAIL"):
        raise ConnectionError(f"401 for {api_key}, {headers}")
    return [float(i) for i, _ in enumerate(completions)]
class Mine:
    def __init__(self, levels, *, client_secret):
        self.levels, self.client_secret, self.seen = levels, client_secret, 0
    def next(self, rng):
        return "copy", min(self.seen, 1)
    def observe(self, task, successes, attempts):
        self.seen += attempts
    def state_dict(self):
        return {"seen": self.seen}
    def load_state_dict(self, state):
        self.seen = state["seen"]
    def metrics(self):
        return {"level/copy": float(min(self.seen, 1))}
"""
LONG = "hf_PLANTEDabcdefgh9"


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(secrets, "_secrets", set())


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    (tmp_path / "secretive.yaml").write_text(RECIPE)
    (tmp_path / "user.py").write_text(USER)
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setenv("MY_SERVICE_TOKEN", "PLANTED-7")
    return tmp_path / "secretive.yaml"


def places(folder: Path, *texts: str) -> list[str]:
    """Return the files, and the printed texts, that have a planted secret."""
    files = [str(path) for path in folder.rglob("*") if path.is_file() and b"PLANTED" in path.read_bytes()]
    return files + [text for text in texts if "PLANTED" in text]


def test_no_file_and_no_output_of_a_run_has_a_secret_and_it_resumes(recipe, tmp_path, capsys, monkeypatch):
    words = ["train", str(recipe), "models.student.from_pretrained.token=" + LONG, "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["rld", *words])
    monkeypatch.setenv("FAIL", "1")
    assert main(words) == 2
    assert "ConnectionError: 401 for ***" in (printed := capsys.readouterr()).err
    assert places(tmp_path / "run", *printed) == []
    monkeypatch.delenv("FAIL")
    words[2] = "models.student.from_pretrained.token=PLANTED-rotated"  # another token is no other recipe
    assert main([*words, "--resume"]) == 0
    assert places(tmp_path / "run", *capsys.readouterr()) == []
    assert '"command": "rld train' in (tmp_path / "run/summary.json").read_text()


def test_an_ablation_masks_the_overrides_of_its_arms(recipe, tmp_path, capsys):
    class Done:
        def __init__(self, job):
            self.code = main(["train", *job.arguments])

        def poll(self):
            return self.code

        wait, terminate = poll, poll

    arms = "one: steps=1 models.student.from_pretrained.token=PLANTED-9"
    folder = tmp_path / "ablation"
    assert ablate(recipe, ["stages.warm.steps=2"], arms, num_seeds=1, folder=folder, start=Done) == 0
    assert places(folder, *capsys.readouterr()) == []
    assert "token=***" in (folder / "ablation.json").read_text()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.main.teachers.guide={url: 'http://user:PLANTED@host:1'}", "RLD_TEACHER_TOKEN"),
        ("rewards.0.options.service=postgres://user:PLANTED@host/base", "password"),
        ("trainer.hub_token=PLANTED", "HF_TOKEN"),
        ("models.student.nothing.api_key=PLANTED", "unknown key"),
        ("models.student={path: ./model, token: PLANTED", "is not a YAML value"),
        ("stages.nothing.teachers.token=PLANTED", "there is no 'nothing'"),
    ],
)
def test_a_mistake_is_named_without_its_secret(recipe, capsys, override, expected):
    for command in ("check", "train"):
        assert main([command, str(recipe), override]) == 2
        printed = capsys.readouterr()
        assert expected in printed.err
        assert "PLANTED" not in printed.out + printed.err


def test_a_traceback_is_masked(tmp_path):
    code = (
        "from rld import cli\ndef fail(options): raise RuntimeError(options.overrides)\n"
        "cli._COMMANDS['check'] = fail\ncli.main(['check', 'quickstart', 'models.x.token=PLANTED'])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RuntimeError" in process.stderr and "PLANTED" not in process.stderr


@pytest.mark.parametrize("write", [str, repr, json.dumps, quote, quote_plus, lambda text: quote(text, safe="")])
def test_a_secret_is_masked_however_it_is_written(write):
    secret = "pa\\ss\"w/rd+é'42"
    secrets.remember_environment({"MY_TOKEN": secret})
    assert secrets.masked_text(f"{write(secret)}").strip("'\"") == secrets.MASK


def test_what_has_the_form_of_a_secret_is_masked():
    secrets.remember_environment({"DATABASE": "postgres://us:passw0rd@host/base", "OTHER": "db://a:postgres@host"})
    texts = [
        "connected as passw0rd",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
        "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----",
        "Authorization: Basic dXNlcjpwYXNzd29yZDE=",
        "https://host/file?X-Amz-Signature=abcdef1234",
        "https://host/file?sv=1&sig=abcdef1234",
    ]
    hidden = ("passw0rd", "dozjgNryP4J3jVmNHl0w5N", "MIIEvQIBADANBg", "dXNlcjpwYXNzd29yZDE", *["abcdef1234"] * 2)
    masked = [secrets.masked_text(text) for text in texts]
    assert all(secrets.MASK in text and part not in text for text, part in zip(masked, hidden, strict=True))
    for plain in ("postgres", "Basic understanding of tokens", "https://host/?design=oval", "eyJust.a.word"):
        assert secrets.masked_text(plain) == plain


def test_names_of_a_recipe_are_no_secrets():
    tree = {"skills": {"key": {"held_out": 3}, "secret": {"file": "x.csv"}}, "models": {"token": "./folder"}}
    assert secrets.masked_recipe(tree) == tree
    options = {"max_new_tokens": 3, "eos_token": "<eos>", "token_variable": "T", "token": True, "keys": ["a"]}
    assert secrets.masked_recipe(options) == options
    assert secrets.masked_recipe({"api_key": "x", "tokens": [1], "password": 5}) == {
        "api_key": "***", "tokens": [1], "password": "***"
    }  # fmt: skip


def test_ordinary_words_paths_and_settings_are_not_masked():
    secrets.remember_environment({"PWD": "/home/me/work", "CREDENTIALS_DIRECTORY": "/usr", "MY_TOKEN": "PLANTED-1"})
    words = "models.a.token=true rewards.0.options.answer_key=final_answer x.sort_key=length y.answer_token=<answer>"
    secrets.remember_arguments([*words.split(), "trainer.hub_token=null", "models.b.api_key=PLANTED-2"])
    text = "true null final_answer length <answer> /home/me/work/x /usr/bin"
    assert secrets.masked_text(f"{text} PLANTED-1 PLANTED-2") == f"{text} *** ***"
    ordinary = "a bearer certificate; models/hf_teacher1; sk-learn-model-checkpoint; http://host:8000/a; me@example.com"
    assert secrets.masked_text(ordinary) == ordinary
    options = {"answer_key": "answer", "sort_key": "length", "separator_token": "####", "auth_token": "abcd"}
    assert secrets.masked_recipe(options) == options | {"auth_token": "***"}


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_every_text_can_be_printed(encoding):
    code = (
        "import sys\nfrom rld.utils.streams import safe_streams\nfrom rich.console import Console\n"
        "with safe_streams():\n    print('\\udc80 é 漢')\n    Console().print('\\ud800 é')\n"
    )
    environment = {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert process.returncode == 0, process.stderr
    assert b"\\udc80" in process.stdout
