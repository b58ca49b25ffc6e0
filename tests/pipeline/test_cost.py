"""The command `rld cost`, and the page on it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from rld.cli import main
from rld.errors import ModelError
from rld.models.throughput import Load, Throughput, measure_throughput
from rld.recipe.prices import Prices, read_prices
from rld.utils import files
from tests.support import tiny
from tests.support.runs import recipe, whole

__all__ = ["recipe", "whole"]

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}], held_out: 4}
models:
  large: {new: llama, config: {hidden_size: 64, intermediate_size: 64, num_hidden_layers: 4, num_attention_heads: 2}}
  tiny: {new: llama, config: {hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}
stages:
  - {name: teach, kind: sft, student: large, steps: 2, batch: 8}
  - name: learn
    kind: distill
    student: tiny
    teachers: {big: {model: teach}, itself: {model: student, prompt: "{question}"}}
    gate: "off"
    signals: {response: {divergence: {kind: forward_kl}}}
    controller: {kind: fixed}
    rollout: {prompts: 2, completions: 2}
    steps: 1
"""


@pytest.fixture
def speed_by_size(monkeypatch):
    """Models whose speed goes by their parameters, however busy the machine is."""

    def measure(loads, batch: int, device) -> list[Throughput]:
        sizes = [load.model.num_parameters() for load in loads]
        return [Throughput([size * 1e-9 / 4] * 3, [size * 1e-9] * 3, 4 * size) for size in sizes]

    monkeypatch.setattr("rld.pipeline.cost.measure_throughput", measure)


def set_scores(run: Path, student: float, teacher: float, name: str = "solved") -> None:
    """Let the last stages of a run have scored student and teacher so, with a main score of this name."""
    summary = files.read_json(run / "summary.json")
    for stage in summary["stages"][1:]:
        stage["after"] = {"copy": student}
        stage["scorings"]["after"] = {"copy": {name: {"value": student, "low": student, "high": student}}}
        for record in stage["teachers"].values():
            record["scores"] = {"copy": teacher}
    files.write_json(run / "summary.json", summary)


def like_the_student(run: Path) -> Path:
    """Let the teacher `big` of a run have answered as the student did, and return the folder of predictions."""
    predictions = run / "predictions" / "learn"
    shutil.copy(predictions / "after.jsonl", predictions / "teacher" / "big.jsonl")
    return predictions


def test_a_run_says_what_it_cost_and_when_it_pays(whole, speed_by_size, tmp_path, capsys):
    whole = shutil.copytree(whole, tmp_path / "run")
    set_scores(whole, 0.75, 0.75)
    like_the_student(whole)
    assert main(["cost", str(whole), "--batch", "2"]) == 0
    shown, told = capsys.readouterr()
    assert "What the stages cost" in shown and "Against big, 2 requests at once: pays after" in shown
    assert re.search(r"days\. The student scores 0\.750, big 0\.750 \(solved\)\.$", shown, flags=re.MULTILINE)
    assert "the main scores of the skills that are compared: solved of copy." in shown
    assert "teacher itself is the student itself" in told
    page = (whole / "cost.html").read_text()
    assert page.count("<figure>") == 2 and "Assumptions" in page
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: EUR\nmachine_per_hour: 1\nwatt: 3\napis: {bigger: {input_per_million_tokens: -1}}\n")
    assert main(["cost", str(whole), "--prices", str(prices)]) == 2
    told = capsys.readouterr().err
    assert f"{prices}:3: watt: unknown key" in told and "apis.bigger.output_per_million_tokens: is required" in told
    prices.write_text(
        "currency: EUR\nmachine_per_hour: 1\n"
        "apis: {bigger: {input_per_million_tokens: 1, output_per_million_tokens: 1}}\n"
    )
    assert main(["cost", str(whole), "--prices", str(prices)]) == 2
    assert "no teacher is called 'bigger'; did you mean 'big'" in capsys.readouterr().err
    prices.write_text(prices.read_text().replace("bigger", "big"))
    assert main(["cost", str(whole), "--prices", str(prices), "--batch", "1"]) == 0
    assert "big is an API: 1 EUR a million tokens read" in capsys.readouterr().out


def test_a_teacher_on_a_server_costs_what_its_api_asks(whole, speed_by_size, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    set_scores(run, 0.75, 0.75)
    recipe = files.read_json(run / "recipe.json")
    recipe["stages"][1]["teachers"] = {"big": {"url": "http://127.0.0.1:1"}}
    files.write_json(run / "recipe.json", recipe)
    assert main(["cost", str(run)]) == 0
    shown, told = capsys.readouterr()
    assert "teacher big is on a server, whose price is not known; add apis.big" in told
    assert "there is no break-even" in shown
    prices = tmp_path / "prices.yaml"
    prices.write_text(
        "currency: EUR\nmachine_per_hour: 0\nfixed: 30\ntolerance: 1\n"
        "apis: {big: {input_per_million_tokens: 200000, output_per_million_tokens: 0}}\n"
    )
    assert main(["cost", str(run), "--prices", str(prices), "--batch", "1"]) == 0
    (record,) = [stage for stage in files.read_json(run / "summary.json")["stages"] if stage["name"] == "learn"]
    num_read = record["teaching"]["big"]["tokens"]
    assert 0 < num_read < record["teacher_tokens"]["scored"], "the other teacher is no API"
    requests = (30 + 0.2 * num_read) / (0.2 * 5)  # each prompt has five tokens
    shown, told = capsys.readouterr()
    assert f"pays after {requests:.3g} requests" in shown and "caution" not in told
    summary = files.read_json(run / "summary.json")
    del summary["stages"][1]["teaching"]
    files.write_json(run / "summary.json", summary)
    assert main(["cost", str(run), "--prices", str(prices), "--batch", "1"]) == 0
    shown, told = capsys.readouterr()
    assert "pays after 30 requests" in shown
    assert "caution: stage learn has no record of the tokens that teacher big read" in told
    assert "no record of the tokens that teacher big read" in (run / "cost.html").read_text()


def test_a_score_that_is_no_share_of_answers_asks_for_the_share_that_falls_back(whole, speed_by_size, tmp_path, capsys):
    """The judge calls no answer correct, but the skill goes by token_f1: 0.5 against 0.9."""
    run, prices = shutil.copytree(whole, tmp_path / "run"), tmp_path / "prices.yaml"
    set_scores(run, 0.5, 0.9, "token_f1")
    like_the_student(run)
    assert main(["cost", str(run), "--batch", "1"]) == 0
    shown = capsys.readouterr().out
    assert (
        "Against big, one request at a time: set fallback_share in the prices: copy's score token_f1 is no share of "
        "correct answers, and the student is 40.0 points behind." in shown
    )
    page = (run / "cost.html").read_text()
    assert "<figure>" not in page and page.count(">- (no fallback_share)</td>") == 2
    prices.write_text("currency: EUR\nmachine_per_hour: 1\nfallback_share: 0.25\n")
    assert main(["cost", str(run), "--prices", str(prices), "--batch", "1"]) == 0
    assert "big 0.900 (token_f1), so 25% of the requests fall back." in capsys.readouterr().out
    set_scores(run, 0.89, 0.9, "token_f1")
    assert main(["cost", str(run), "--batch", "1"]) == 0
    assert "The student scores 0.890, big 0.900 (token_f1)." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["word_match", "pass_at_1"])
def test_the_share_that_falls_back_is_what_the_main_score_leaves(whole, speed_by_size, tmp_path, capsys, name):
    """The score counts 0.7 of the student's answers, whatever the judge of the stored answers says of them."""
    run = shutil.copytree(whole, tmp_path / "run")
    set_scores(run, 0.7, 0.9, name)
    like_the_student(run)
    assert main(["cost", str(run), "--batch", "1"]) == 0
    assert f"big 0.900 ({name}), so 30% of the requests fall back." in capsys.readouterr().out


def with_a_further_stage(run: Path, teachers: dict[str, object]) -> None:
    """Let a stage `more` have followed `learn`, with the same results but teachers of its own, measured as `big`."""
    predictions, more = like_the_student(run), run / "predictions" / "more"
    shutil.copytree(predictions, more)
    shutil.copytree(run / "student", run / "models" / "learn")
    recipe, summary = files.read_json(run / "recipe.json"), files.read_json(run / "summary.json")
    learn, result = recipe["stages"][1], summary["stages"][1]
    recipe["stages"].append({**learn, "name": "more", "student": "learn", "teachers": teachers})
    records = dict.fromkeys(teachers, result["teachers"]["big"])
    summary["stages"].append({**result, "name": "more", "teachers": records})
    for name in teachers:
        if name != "big":
            shutil.copy(predictions / "teacher" / "big.jsonl", more / "teacher" / f"{name}.jsonl")
    files.write_json(run / "recipe.json", recipe)
    files.write_json(run / "summary.json", summary)
    set_scores(run, 0.75, 0.75)


def test_teachers_of_every_stage_on_the_way_are_compared_each_once(whole, speed_by_size, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    with_a_further_stage(run, {"late": {"model": "teach"}, "big": {"model": "teach"}})
    assert main(["cost", str(run), "--batch", "1"]) == 0
    verdicts = re.findall(r"^- Against (.*), one request at a time: pays", capsys.readouterr().out, flags=re.MULTILINE)
    assert verdicts == ["big", "late"]


def test_teachers_of_one_name_are_told_apart_by_their_stage(whole, speed_by_size, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    with_a_further_stage(run, {"big": {"model": "large"}})
    assert main(["cost", str(run), "--batch", "1"]) == 0
    verdicts = re.findall(r"^- Against (.*), one request at a time: pays", capsys.readouterr().out, flags=re.MULTILINE)
    assert verdicts == ["big of learn", "big of more"]


def test_a_model_whose_answers_are_learnt_is_a_teacher_too(whole, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    recipe = files.read_json(run / "recipe.json")
    learn = {"name": "learn", "kind": "sft", "student": "tiny", "teacher": "teach", "steps": 1}
    files.write_json(run / "recipe.json", recipe | {"stages": [recipe["stages"][0], learn]})
    assert main(["cost", str(run), "--batch", "1"]) == 0
    assert "Against teach, one request at a time: " in capsys.readouterr().out
    learn["teacher"] = "some/model"
    files.write_json(run / "recipe.json", recipe | {"stages": [recipe["stages"][0], learn]})
    assert main(["cost", str(run), "--batch", "1"]) == 0
    assert "teacher some/model was not scored on held-out rows" in capsys.readouterr().err


def test_a_run_without_teachers_has_costs_and_no_break_even(whole, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    for name in ("recipe.json", "summary.json"):
        content = files.read_json(run / name)
        files.write_json(run / name, content | {"stages": content["stages"][:1]})
    assert main(["cost", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "No teacher could be served in the student's place" in shown and "Costs are hours of this machine" in shown
    prices = {"currency": "EUR", "machine_per_hour": 3.0, "watts": 200.0}
    files.write_json(run / "recipe.json", files.read_json(run / "recipe.json") | {"prices": prices})
    assert main(["cost", str(run)]) == 0
    assert "An hour of this machine costs 3 EUR" in capsys.readouterr().out
    assert 'href="cost.html"' in (run / "report.html").read_text()
    assert main(["cost", str(tmp_path)]) == 2
    assert "holds no run; rld train RECIPE makes one" in capsys.readouterr().err
    files.write_json(run / "summary.json", content | {"stages": []})
    assert main(["cost", str(run)]) == 2
    assert "is not finished: stage teach is to do" in capsys.readouterr().err


def test_the_page_on_costs_shows_prices_and_computes_what_it_says(tmp_path, capsys):
    text = (Path(__file__).parents[2] / "docs" / "cost.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "prices.yaml").write_text(block)
    prices = read_prices(tmp_path / "prices.yaml")
    assert re.findall(r"^(\w+):", block, flags=re.MULTILINE) == list(Prices.model_fields)
    changed = {"currency", "machine_per_hour", "watts", "per_kilowatt_hour", "apis"}
    defaults = Prices(currency="EUR", machine_per_hour=0.4)
    assert {key for key, value in prices if value != getattr(defaults, key)} <= changed
    (script,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(script, {})
    assert capsys.readouterr().out.strip() == script.rpartition("# ")[2].strip()


def test_each_of_five_measurements_is_kept_and_more_rows_take_more_memory():
    load, cpu = Load(tiny.model(), 4, 8), torch.device("cpu")
    (alone,), (together,) = measure_throughput([load], 1, cpu), measure_throughput([load], 16, cpu)
    assert [len(alone.prefill_seconds), len(alone.decode_seconds)] == [5, 5]
    assert 0 < alone.num_bytes < together.num_bytes


def test_models_are_measured_in_turn_and_not_one_after_the_other(monkeypatch):
    """Two models, one measurement that is not counted and five that are: each round asks both."""
    first, second = tiny.model(), tiny.model()
    order = []
    for name, model in (("first", first), ("second", second)):
        generate = model.generate
        monkeypatch.setattr(
            model, "generate", lambda name=name, ask=generate, **options: order.append(name) or ask(**options)
        )
    results = measure_throughput([Load(first, 4, 8), Load(second, 2, 9)], 1, torch.device("cpu"))
    assert order == ["first", "second"] * 6
    assert [len(result.decode_seconds) for result in results] == [5, 5]


def test_a_context_without_room_for_an_answer_is_refused():
    model = tiny.model()
    model.config.max_position_embeddings = 2
    with pytest.raises(ModelError, match="a context of 2 tokens has no room"):
        measure_throughput([Load(model, 4, 8)], 1, torch.device("cpu"))
