"""Answers at the command line: a prompt, a pipe, a chat in the terminal, two models, and the prompts of a run."""

from __future__ import annotations

import io
import json
import random
import sys

import pytest
import torch

import tests.support.tiny as tiny
from rld.cli import main
from rld.models.loading import load_model, load_tokenizer


class Terminal(io.StringIO):
    """A standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two models, of which the first has no chat template."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("plain", "chat")):
        tiny.model(seed=seed).save_pretrained(name)
        tokenizer = tiny.tokenizer()
        if name == "plain":
            tokenizer.chat_template = None
        tokenizer.save_pretrained(name)
    return tmp_path


def greedy(name: str, text: str, size: int) -> str:
    """What transformers itself writes behind a text."""
    model, tokenizer = load_model(name, {}), load_tokenizer(name)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=size, do_sample=False)
    return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))


def test_an_answer_is_what_transformers_writes(folder, capsys):
    assert main(["generate", "plain", "abc=", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out == greedy("plain", "abc=", 6) + "\n"


def test_a_prompt_comes_from_a_pipe_and_by_the_chat_template(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\n"))
    assert main(["generate", "chat", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == greedy("chat", "ab:=", 5) + "\n"


def test_a_chat_in_the_terminal_remembers_what_was_said(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal("ab\n\ncd\n"))
    assert main(["generate", "chat", "--max-new-tokens", "4"]) == 0
    first = greedy("chat", "ab:=", 4)
    assert capsys.readouterr().out == f"{first}\n{greedy('chat', f'ab:{first}:cd:=', 4)}\n"


def test_a_run_stands_for_its_student_and_has_its_prompts(folder, capsys):
    (folder / "run").mkdir()
    (folder / "plain").rename(folder / "run" / "student")
    recipe = {"prompts": {"template": "j{question}"}, "skills": {"a": {"prompts": {"template": "ab{question}="}}}}
    (folder / "run" / "recipe.json").write_text(json.dumps(recipe))
    assert main(["generate", "run", "c", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out == greedy("run/student", "abc=", 4) + "\n"


def test_two_models_stand_side_by_side(folder, capsys):
    assert main(["generate", "--compare", "plain", "chat", "ab", "--max-new-tokens", "4"]) == 0
    table = capsys.readouterr().out
    cells = "plain", "chat", greedy("plain", "ab", 4), greedy("chat", "ab:=", 4)
    assert [cell for cell in cells if cell not in table] == []
    assert main(["generate", "--compare", "plain", "chat", "ab", "cd"]) == 2


def test_control_characters_of_an_answer_do_not_reach_the_terminal(folder, capsys, monkeypatch):
    monkeypatch.setattr(random, "randrange", lambda end: 0)  # seeds the sampling, so that something is written
    tokenizer = json.loads((folder / "plain" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for letter in tiny.WORDS:  # whatever is written is an escape
        vocabulary[f"{letter}\x1b[2J"] = vocabulary.pop(letter)
    (folder / "plain" / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert main(["generate", "plain", "==", "--temperature", "1", "--max-new-tokens", "30"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[2J" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate"], "generate needs a model"),
        (["generate", "absent", "a"], "cannot load 'absent'"),
        (
            ["generate", "chat", "a", "--max-new-tokens", "64"],
            "the prompt has 3, an answer up to 64; lower --max-new-tokens",
        ),
        (["generate", "chat", "--temperature", "-1"], "invalid temperature (0 or above) value"),
        (["generate", "chat"], "the standard input is empty"),
    ],
)
def test_what_cannot_be_answered_is_refused(words, message, folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(words) == 2
    assert message in capsys.readouterr().err
