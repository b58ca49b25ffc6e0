"""Recipes of labelled rows: what `rld check` shows and refuses, and what a run trains and scores."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from rld.cli import main
from rld.errors import RecipeError
from rld.pipeline import sft
from rld.pipeline.recipe_check import check_recipe
from rld.recipe.reading import read_recipe
from tests.support.fleet import FLEET
from tests.support.runs import one_thread  # noqa: F401

TREE: dict[str, Any] = {
    "name": "labels",
    "tokenizer": {"characters": "abcdefghijklmnopqrstuvwxyz :ABCDEFG"},
    "max_new_tokens": 8,
    "prompts": {"template": "{question}:"},
    "skills": {
        "topics": {
            "kind": "labelled",
            "file": "news.csv",
            "columns": {"question": "title", "answer": "label"},
            "labels": {"A": " apple", "B": " bean", "C": " corn"},
            "held_out": {"file": "test.csv"},
        }
    },
    "models": {
        "small": {
            "new": "llama",
            "config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 64,
            },
        }
    },
    "trainer": {"use_cpu": True, "bf16": False},
    "stages": [
        {"name": "teacher", "kind": "sft", "student": "small", "steps": 25, "batch": 12},
        {
            "name": "labels",
            "kind": "distill",
            "student": "small",
            "teachers": {"teacher": {"model": "teacher", "probe_prompts": 6}},
            "signals": {"response": {"divergence": {"kind": "forward_kl"}}, "gold": {"weight": 0.5}},
            "rollout": {"prompts": 4, "completions": "labels"},
            "steps": 12,
            "trainer": {"gradient_accumulation_steps": 2},
        },
    ],
}


def written(folder: Path, *, name: str = "labels.yaml", **stage: Any) -> Path:
    titles = [f"{'abc'[i % 3]} {word} {'abc'[i % 3]}" for i, word in enumerate(["sun", "rain", "snow", "wind"] * 6)]
    labels = ["ABC"[i % 3] if i % 4 else "" for i in range(24)]
    rows = [f"{label},{title} {i // 4 * 'x'}" for i, (label, title) in enumerate(zip(labels, titles, strict=True))]
    (folder / "news.csv").write_text("label,title\n" + "\n".join(rows) + "\n")
    (folder / "test.csv").write_text(
        "label,title\n" + "".join(f"{'ABC'[i % 3]},{'abc'[i % 3]} fog {i * 'y'}\n" for i in range(6))
    )
    tree = {**TREE, "stages": [TREE["stages"][0], {**TREE["stages"][1], **stage}]}
    (folder / name).write_text(yaml.safe_dump(tree))
    return folder / name


def test_a_run_learns_labels_and_scores_them(tmp_path, capsys):
    path = written(tmp_path)
    assert main(["check", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "4 prompts x their labels" in shown
    assert "by the gold label" in shown
    assert "tokens of small" in shown and "' apple'" in shown
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 0
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss/response"] for entry in metrics if "loss/response" in entry]
    assert len(losses) == 12 and losses[-1] < losses[0]
    assert any("loss/gold" in entry for entry in metrics)
    assert any("progress/topics" in entry for entry in metrics)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 <= summary["stages"][-1]["after"]["topics"] <= 1


def test_teachers_are_asked_for_the_synonyms_of_a_recipe(tmp_path, capsys):
    path, losses = written(tmp_path, steps=1), []
    tree = yaml.safe_load(path.read_text())
    tree["stages"][0] |= {"steps": 1}
    for name, synonyms in (("with", {"A": [" fruit"], "C": [" ear", " grain"]}), ("without", {})):
        tree["skills"]["topics"]["synonyms"] = synonyms
        path.write_text(yaml.safe_dump(tree))
        assert main(["check", str(path)]) == 0
        assert ("' apple', ' fruit'" in capsys.readouterr().out) == bool(synonyms)
        assert main(["train", str(path), "--output", str(tmp_path / name)]) == 0
        entries = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses += [entry["loss/response"] for entry in entries if "loss/response" in entry]
    assert len(set(losses)) == 2


@pytest.mark.parametrize(("synonyms", "length"), [({}, 16 / 3), ({"A": [" fruits"], "C": [" ear"]}, 27 / 5)])
@pytest.mark.parametrize("deep", [False, True])
def test_a_plan_has_the_mean_length_of_all_words_of_labels(tmp_path, synonyms, length, deep):
    path = written(tmp_path)
    tree = yaml.safe_load(path.read_text())
    tree["skills"]["topics"]["synonyms"] = synonyms
    path.write_text(yaml.safe_dump(tree))
    (summary,) = check_recipe(read_recipe(path), path, deep).skills
    assert summary.lengths.label == pytest.approx(length), "a token is a character"


def test_a_teachers_labels_are_learnt_by_fine_tuning_where_they_are_right_or_none_is_known(tmp_path, monkeypatch):
    path = written(tmp_path)
    tree = yaml.safe_load(path.read_text())
    tree["stages"][1] = {
        "name": "hard",
        "kind": "sft",
        "student": "small",
        "teacher": "teacher",
        "steps": 2,
    }
    path.write_text(yaml.safe_dump(tree))
    encode, learnt = sft._encoded, []

    def noted(encoder: Any, prompts: Any, answers: Any, **options: Any) -> Any:
        learnt.extend(zip(prompts, answers, strict=True))
        return encode(encoder, prompts, answers, **options)

    monkeypatch.setattr(sft, "_encoded", noted)
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "student" / "config.json").is_file()
    words = {"A": " apple", "B": " bean", "C": " corn"}
    rows = [line.split(",") for line in (tmp_path / "news.csv").read_text().splitlines()[1:]]
    gold = {f"{title}:": words[label] for label, title in rows if label}
    hard = learnt[25 * 12 :]  # behind those of the teacher
    assert any(prompt not in gold and answer.text in words.values() for prompt, answer in hard)
    assert all(gold.get(prompt, answer.text) == answer.text for prompt, answer in hard)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"signals": {"policy": {}, "response": {}}},
            "signals.policy: rollout.completions: labels goes without it: there are no samples to reinforce",
        ),
        ({"signals": {"response": {}, "feature": {}}}, "signals.feature: rollout.completions: labels goes without it"),
        ({"signals": {"response": {"token_weights": {"kind": "entropy"}}}}, "token_weights"),
        ({"distill_on": "failed_completions"}, "distill_on: rollout.completions: labels goes without it"),
        ({"cache": {"folder": "cache"}}, r"labels\.yaml:\d+: .*\.cache: rollout.completions: labels goes without it"),
        ({"teachers": {}}, "set teachers and signals.response"),
        (
            {"rollout": {"prompts": 4, "completions": "labels", "temperature": 0.5}},
            "rollout.temperature: with completions: labels nothing is sampled",
        ),
        (
            {"rollout": {"prompts": 4, "completions": "labels", "gold_completions": 1}},
            "rollout.gold_completions: with completions: labels nothing is sampled",
        ),
        ({"rollout": {"prompts": 4, "completions": "label"}}, "completions"),
        (
            {"signals": {"response": {"calibration": "length"}}, "rollout": {"prompts": 4, "completions": 4}},
            "signals.response.calibration: it is that of labels",
        ),
    ],
)
def test_what_needs_samples_is_refused_with_the_reason(tmp_path, stage, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(written(tmp_path, **stage))


def test_every_skill_of_the_stage_has_labels(tmp_path):
    path = written(tmp_path)
    tree = yaml.safe_load(path.read_text())
    tree["skills"]["other"] = {"generator": "rld.recipes.strings:reverse", "levels": [{"length": 2}]}
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(RecipeError, match="skill 'other' has no labels; give it kind: labelled"):
        read_recipe(path)


def test_prompts_that_cannot_be_split_are_refused_before_the_first_stage(tmp_path, capsys):
    path = written(
        tmp_path, rollout={"prompts": 3, "completions": "labels"}, trainer={"gradient_accumulation_steps": 9}
    )
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 2
    assert "let rollout.prompts be a multiple of processes times accumulation steps" in capsys.readouterr().err


def test_a_row_without_a_label_has_no_gold_answer_that_completions_could_be(tmp_path, capsys):
    path = written(tmp_path, signals={"policy": {}, "gold": {}}, rollout={"prompts": 4, "completions": 4})
    assert main(["check", str(path)]) == 2
    text = capsys.readouterr().err
    assert "6 of 33 rows" in text and "news.csv:2 has an empty answer" in text


def test_what_a_user_may_not_expect_of_labels_is_said(tmp_path, capsys):
    path = written(tmp_path)
    tree = yaml.safe_load(path.read_text())
    tree["skills"]["topics"]["labels"] = {"A": " be", "B": " bean", "C": "corn"}
    path.write_text(yaml.safe_dump(tree))
    assert main(["check", str(path)]) == 0
    output = capsys.readouterr()
    text = " ".join((output.out + output.err).split())
    assert "' bean' begins with ' be', so the end of an answer is part of each label" in text
    assert "the words 'corn' have no space in front, and others that say labels have one" in text
    assert "for small the labels A, B begin with the same token, ' '" in text
    tree["skills"]["topics"]["labels"] = {"A": "apple", "B": "bean", "C": "corn"}
    path.write_text(yaml.safe_dump(tree))
    assert main(["check", str(path)]) == 0
    output = capsys.readouterr()
    text = " ".join((output.out + output.err).split())
    assert re.search(r"no white space stands between prompt and label, as in '[^']*:apple'", text)


def test_synonyms_that_teachers_are_not_asked_for_as_the_words_are_told(tmp_path, capsys):
    path = written(tmp_path)
    tree = yaml.safe_load(path.read_text())
    tree["skills"]["topics"]["synonyms"] = {"A": [" fruit", "pear"]}
    path.write_text(yaml.safe_dump(tree))
    assert main(["check", str(path)]) == 0
    text = " ".join(capsys.readouterr().err.split())
    assert "the words 'pear' have no space in front, and others that say labels have one" in text
    assert "no effect" not in text
    tree["stages"] = tree["stages"][:1]
    path.write_text(yaml.safe_dump(tree))
    assert main(["check", str(path)]) == 0
    text = " ".join(capsys.readouterr().err.split())
    assert re.search(r"labels\.yaml:\d+: skills\.topics\.synonyms has no effect: .* rollout\.completions: labels", text)


# -- docs/labels.md ----------------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs" / "labels.md"


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """A folder with the models that the page names, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("small", "large")):
        torch.manual_seed(seed)
        LlamaForCausalLM(FLEET["byte_level"].model().config).save_pretrained(tmp_path / name)
        FLEET["byte_level"].tokenizer().save_pretrained(tmp_path / name)
    return tmp_path


def test_the_recipe_of_the_page_trains(models):
    labels = ["World", "Sports", "Sci/Tech", ""]
    for name, count in (("news.csv", 12), ("test.csv", 3)):
        rows = [f"{labels[i % 4]},{name} {i},Text." for i in range(count)]
        (models / name).write_text("label,title,text\n" + "\n".join(rows) + "\n")
    for name, count in (("questions.csv", 20), ("questions_test.csv", 10)):
        rows = [f"{i % 10 + 1},{name} {i},Text." for i in range(count)]
        (models / name).write_text("class,title,text\n" + "\n".join(rows) + "\n")
    recipe, untrained, ten = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    head = "name: page\nmodels: {small: ./small, large: ./large}\nmax_new_tokens: 16\ntrainer: {bf16: false}\n"
    prompts = recipe.split("skills:")[0]
    for name, text in (("trained", recipe), ("untrained", prompts + untrained), ("ten", prompts + ten)):
        (models / f"{name}.yaml").write_text(head + text)
        assert main(["check", f"{name}.yaml"]) == 0
        assert main(["train", f"{name}.yaml", "--output", name]) == 0
        last = json.loads(Path(f"{name}/metrics.jsonl").read_text().splitlines()[-1])
        assert "loss/response" in last
    confusion = json.loads(Path("ten/summary.json").read_text())["stages"][0]["confusion"]["questions"]
    assert " Society" in confusion["labels"] and [sum(counts) for counts in confusion["counts"]] == [1] * 10


def test_the_script_of_the_page_trains(models):
    (script,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    options = 'RLDConfig("run", bf16=False, use_cpu=True, report_to="none", save_strategy="no", '
    scope: dict[str, Any] = {}
    exec(script.replace('RLDConfig("run", ', options), scope)
    trainer = scope["trainer"]
    assert trainer.state.global_step == 2 and trainer.num_generations == 2
    assert any("loss/gold" in entry for entry in trainer.state.log_history)
