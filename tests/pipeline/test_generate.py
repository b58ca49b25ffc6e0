"""Answers at the command line: a prompt, a pipe, a chat in the terminal, two models, and the prompts of a run."""

from __future__ import annotations

import io
import json
import random
import shutil
import sys

import pytest
import torch
from transformers.utils import logging

import tests.support.tiny as tiny
from rld.cli import main
from rld.models.loading import load_model, load_tokenizer
from rld.models.prompting import PromptEncoder
from tests.support.label_reference import label_scores


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


def run(folder, name: str, model: str, recipe: dict) -> None:
    """Lay out the folder of a finished run whose student is one of the two models."""
    (folder / name).mkdir()
    shutil.copytree(folder / model, folder / name / "student")
    (folder / name / "recipe.json").write_text(json.dumps(recipe))


def label_lines(model: str, prompt: object, labels: dict[str, str]) -> list[str]:
    """The lines of labels that are answers, each with its probability by the reference."""
    loaded, encoder = load_model(model, {}), PromptEncoder(load_tokenizer(model))
    p = label_scores(loaded, encoder, prompt, [*labels.values()], with_end=False).softmax(-1).tolist()
    pairs = sorted(zip(p, labels.items(), strict=True), reverse=True)
    return [f"{value:.3f}  {words}" + ("" if words == name else f" ({name})") for value, (name, words) in pairs]


def greedy(name: str, text: str, size: int) -> str:
    """What transformers itself writes behind a text."""
    model, tokenizer = load_model(name, {}), load_tokenizer(name)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=size, do_sample=False)
    return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))


def test_an_answer_is_what_transformers_writes(folder, capsys):
    assert main(["generate", "plain", "abc=", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out == greedy("plain", "abc=", 6) + "\n"


@pytest.fixture
def loading_bars():
    """The bars of transformers, which show by default; commands turn them off for their whole process."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield
    if not was_enabled:
        logging.disable_progress_bar()


def test_loading_shows_no_bars(folder, capsys, loading_bars):
    load_model("plain", {})
    assert "Loading weights" in capsys.readouterr().err
    assert main(["generate", "plain", "abc=", "--max-new-tokens", "6"]) == 0
    assert "Loading weights" not in capsys.readouterr().err


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
    recipe = {"prompts": {"template": "j{question}"}, "skills": {"a": {"prompts": {"template": "ab{question}="}}}}
    run(folder, "run", "plain", recipe)
    assert main(["generate", "run", "c", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out == greedy("run/student", "abc=", 4) + "\n"


def test_two_models_stand_side_by_side(folder, capsys):
    assert main(["generate", "--compare", "plain", "chat", "ab", "--max-new-tokens", "4"]) == 0
    table = capsys.readouterr().out
    cells = "plain", "chat", greedy("plain", "ab", 4), greedy("chat", "ab:=", 4)
    assert [cell for cell in cells if cell not in table] == []
    assert main(["generate", "--compare", "plain", "chat", "ab", "cd"]) == 2


LABELS = {"1": "a", "2": "bc", "j": "j"}
SKILL = {"prompts": {"template": "ab{question}="}, "kind": "labelled", "labels": LABELS}


def test_a_run_of_labels_is_asked_for_the_probability_of_each(folder, capsys):
    run(folder, "run", "plain", {"skills": {"topics": SKILL}})
    expected = label_lines("plain", "abc=", LABELS)
    assert main(["generate", "run", "c", "--temperature", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == expected
    assert float(expected[0].split()[0]) > float(expected[-1].split()[0])
    assert "cut" not in err
    assert "--temperature does nothing" in err


def test_each_line_of_a_terminal_is_asked_for_its_label_alone(folder, capsys, monkeypatch):
    run(folder, "run", "chat", {"skills": {"topics": {**SKILL, "prompts": {"style": "chat", "system": "ef"}}}})
    monkeypatch.setattr(sys, "stdin", Terminal("c\nd\n"))
    assert main(["generate", "run"]) == 0
    system = {"role": "system", "content": "ef"}
    prompts = [[system, {"role": "user", "content": text}] for text in "cd"]
    assert capsys.readouterr().out.splitlines() == [
        line for prompt in prompts for line in label_lines("chat", prompt, LABELS)
    ]


def test_only_labels_that_all_skills_have_are_read(folder, capsys):
    prompts = {"template": "j{question}"}
    same, other = dict(SKILL), {**SKILL, "labels": {"a": "a", "b": "b"}}
    run(folder, "same", "plain", {"prompts": prompts, "skills": {"a": SKILL, "b": same}})
    run(folder, "mixed", "plain", {"prompts": prompts, "skills": {"a": SKILL, "b": other}})
    assert main(["generate", "same", "c"]) == 0
    assert capsys.readouterr().out.splitlines() == label_lines("plain", "jc", LABELS)
    assert main(["generate", "mixed", "c", "--max-new-tokens", "4"]) == 0
    out, err = capsys.readouterr()
    assert out == greedy("plain", "jc", 4) + "\n"
    assert "mixed: answers are written, because its skills do not all have the same labels" in err


@pytest.mark.parametrize("names", [("chat", "run"), ("run", "chat")])
@pytest.mark.parametrize("skill", [SKILL, {"prompts": SKILL["prompts"]}], ids=["labels", "texts"])
def test_a_model_beside_a_run_reads_the_prompts_of_the_run(names, skill, folder, capsys):
    run(folder, "run", "plain", {"skills": {"topics": skill}})
    assert main(["generate", "--compare", *names, "c", "--max-new-tokens", "4"]) == 0
    table, err = capsys.readouterr()
    assert "chat reads the prompts of run, too" in err
    assert ("asked for its labels" in err) == ("labels" in skill)
    for model in ("plain", "chat"):
        lines = label_lines(model, "abc=", LABELS) if "labels" in skill else [greedy(model, "abc=", 4)]
        assert [line for line in lines if line not in table] == []


def test_two_runs_keep_their_prompts_and_differing_ones_are_told(folder, capsys):
    for name, template in (("one", "ab{question}="), ("same", "ab{question}="), ("other", "j{question}")):
        run(folder, name, "plain", {"prompts": {"template": template}})
    assert main(["generate", "--compare", "one", "other", "c", "--max-new-tokens", "4"]) == 0
    table, err = capsys.readouterr()
    assert [text for text in (greedy("plain", "abc=", 4), greedy("plain", "jc", 4)) if text not in table] == []
    assert "one and other are asked differently" in err
    for pair in (["one", "same"], ["one", "one"]):
        assert main(["generate", "--compare", *pair, "c", "--max-new-tokens", "1"]) == 0
        assert "asked" not in capsys.readouterr().err


def test_a_prompt_that_a_label_does_not_fit_behind_and_a_damaged_recipe_are_refused(folder, capsys):
    run(folder, "run", "plain", {"skills": {"topics": SKILL}})
    assert main(["generate", "run", "c" * 80]) == 2
    assert "the prompt has 83, a label up to 2; shorten the prompt" in capsys.readouterr().err
    run(folder, "damaged", "plain", {"skills": ["topics"]})
    assert main(["generate", "damaged", "c"]) == 2
    assert "recipe.json is not what rld writes: skills" in capsys.readouterr().err


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
