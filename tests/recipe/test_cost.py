"""The predicted size and price of a run against models that are really built, and against arithmetic by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rld.recipe.cost import stage_costs
from rld.recipe.distill_cost import Assumptions, distill_flops
from rld.recipe.measurement_cost import first_answer_flops
from rld.recipe.schema import Recipe
from rld.recipe.shapes import Shape
from rld.recipe.sizes import Lengths, Sizes, config_of, parameters

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "head_dim": 24, "num_key_value_heads": None}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"attention_bias": True}),
        ("smollm3", {}),
        ("gemma", {}),
        ("gemma2", {}),
    ],
)
def test_parameters_are_counted_as_transformers_builds_them(kind, options):
    config = AutoConfig.for_model(kind, **SMALL, **options) if not options.keys() & SMALL.keys() else None
    config = config or AutoConfig.for_model(kind, **{**SMALL, **options})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert parameters({"model_type": kind, **SMALL, **options}) == model.num_parameters()
    assert parameters(config.to_dict()) == model.num_parameters()


def test_another_architecture_is_of_unknown_size():
    assert parameters({"model_type": "gpt2", "n_embd": 64}) is None


def recipe(**student):
    return Recipe.model_validate(
        {
            "name": "r",
            "tokenizer": {"characters": "ab"},
            "models": {"small": {"new": "llama", "config": {**SMALL, **student}}, "far": "nobody/nothing"},
            "skills": {"s": {"generator": "a.b:c"}},
            "max_new_tokens": 10,
            "stages": [
                {"name": "one", "kind": "sft", "student": "small", "steps": 2, "batch": 4},
                {
                    "name": "two",
                    "kind": "distill",
                    "student": "small",
                    "teachers": {"t": {"model": "one", "from_pretrained": {"dtype": "bfloat16"}}},
                    "signals": {"policy": {}, "response": {}, "gold": None},
                    "rollout": {"prompts": 3, "completions": 2},
                    "steps": 5,
                },
                {"name": "three", "kind": "sft", "student": "far", "steps": 2},
            ],
        }
    )


ROWS = {"s": Lengths(prompt=7.0, answer=5.0)}


def test_a_stages_cost_follows_from_sizes_and_tokens(tmp_path):
    size = parameters({"model_type": "llama", **SMALL})
    costs = stage_costs(recipe(), tmp_path, ROWS)
    assert costs["one"].flops == 6 * size * (2 * 4 * 12)
    assert costs["one"].bytes == 16 * size
    sampled = 5 * (3 * 7 + 3 * 2 * 5)  # five steps of three prompts, each read once, with two answers each
    read = 5 * (3 * 7 + 3 * 2 * 4)  # behind their last token nothing is predicted
    expected = {"generation": 2 * size * sampled, "student": 6 * size * read, "teachers": 2 * size * read}
    expected |= {"gate": 2 * size * 5 * 3 * 5, "answers": 0, "retention": 0}
    assert costs["two"].flops_by_account == expected
    assert costs["two"].bytes == 16 * size + 2 * size
    assert costs["two"].teachers == {"t": size}


def test_a_base_that_teachers_share_is_counted_once_in_memory(tmp_path):
    made = recipe().model_dump()
    spec = made["stages"][1]["teachers"]["t"]
    made["stages"][1]["teachers"] = {
        "t": spec | {"adapter": "a/t", "probe_prompts": 32},
        "u": spec | {"adapter": "a/u"},  # which the gate asks
        "v": spec | {"from_pretrained": {"dtype": "float32"}},
    }
    size = parameters({"model_type": "llama", **SMALL})
    cost = stage_costs(Recipe.model_validate(made), tmp_path, ROWS)["two"]
    assert cost.bytes == (16 + 2 + 4) * size
    assert cost.flops_by_account["answers"] == 2 * size * 32 * 12
    assert cost.flops_by_account["teachers"] == 2 * size * 5 * (3 * 7 + 3 * 2 * 4), "three teachers share the rows"


def test_gold_answers_are_not_generated_and_a_gate_that_is_off_asks_nothing(tmp_path):
    made = recipe().model_dump()
    made["stages"][1] |= {"gate": "off", "rollout": {"prompts": 3, "completions": 2, "gold_completions": 1}}
    size = parameters({"model_type": "llama", **SMALL})
    flops = stage_costs(Recipe.model_validate(made), tmp_path, ROWS)["two"].flops_by_account
    assert (flops["gate"], flops["generation"]) == (0, 2 * size * 5 * (3 * 7 + 3 * 5))
    assert flops["answers"] == 2 * size * 32 * 12, "without a gate the teacher is probed"


def test_a_teacher_is_probed_on_its_skills_where_no_gate_measures_it(tmp_path):
    made = recipe().model_dump()
    made["skills"]["other"] = made["skills"]["s"]
    made["stages"][1] |= {"skills": ["s", "other"], "controller": {"kind": "gap", "use_gate_counts": False}}
    made["stages"][1]["teachers"]["t"]["skills"] = ["other"]
    size = parameters({"model_type": "llama", **SMALL})
    rows = {**ROWS, "other": ROWS["s"]}
    flops = stage_costs(Recipe.model_validate(made), tmp_path, rows)["two"].flops_by_account
    assert flops["answers"] == 2 * size * 32 * 12 and flops["gate"] > 0


@pytest.mark.parametrize(
    ("verifier", "audit", "has_gate"),
    [("judge", None, False), ("judge", {"use": "./own.py:plain"}, True), ("plain", None, True)],
)
def test_a_teacher_is_probed_where_the_verifier_cannot_answer_the_gate(tmp_path, verifier, audit, has_gate):
    (tmp_path / "own.py").write_text(
        "def judge(completions, *, model, tokenizer, **columns): ...\ndef plain(completions, **columns): ...\n"
    )
    made = recipe().model_dump() | {"verifier": {"use": f"./own.py:{verifier}"}}
    made["stages"][1]["audit"] = audit
    size = parameters({"model_type": "llama", **SMALL})
    flops = stage_costs(Recipe.model_validate(made), tmp_path, ROWS)["two"].flops_by_account
    assert (flops["gate"] > 0) == has_gate
    assert flops["answers"] == (0 if has_gate else 2 * size * 32 * 12)


@pytest.mark.parametrize(
    ("num_rows", "longest", "share"),
    [
        (math.inf, 10, 31 / 32),
        (math.inf, 11, 31 / 32),
        (3.875, 10, 31 / 128 + 3 / 4 * 77 / 143),  # new for two of eight steps; then a completion costs 77 / 66
        (0, 10, 31 / 32),
    ],
)
def test_gold_answers_are_most_prompts_until_the_rows_repeat(tmp_path, num_rows, longest, share):
    """Per parameter a completion takes (2 * 17 + 6 * 15) / 2 operations, 2 * 15 / 2 of a teacher, a gold answer 66."""
    made = recipe().model_dump() | {"max_new_tokens": longest}
    made["stages"][1] |= {"signals": {"policy": {}, "response": {}}, "rollout": {"prompts": 8, "completions": 2}}
    made["stages"][1] |= {"steps": 8}  # each with 15 gold answers while they are new
    size = parameters({"model_type": "llama", **SMALL})
    rows = {"s": Lengths(prompt=7.0, answer=5.0, num_answered=num_rows)}
    cost = stage_costs(Recipe.model_validate(made), tmp_path, rows)["two"]
    completion = 5 if num_rows else longest  # without a gold answer none is known to be shorter
    assert cost.flops_by_account["generation"] == pytest.approx((1 - share) * 2 * size * 8 * 8 * (7 + 2 * completion))
    read_bytes = Shape.of({"model_type": "llama", **SMALL}).cache_bytes() * 16 * completion * (7 + completion / 2)
    assert cost.demand.read_bytes == pytest.approx((1 - share) * 8 * read_bytes), "what is sampled is read, no more"


@pytest.mark.parametrize(
    ("taught", "gold", "mean_share", "num_asked"),
    [
        (["s", "bare"], None, 31 / 32, 77.5),
        (["s"], None, 31 / 64, 0),
        (["s"], {"answers": "teachers"}, 31 / 64, 77.5),
        (["s"], {"answers": "either", "share": 0.5}, 1 / 4, 0),
        (["bare"], {"answers": "either", "share": 0.5}, 1 / 2, 40),
    ],
)
def test_answers_that_no_teacher_gives_to_rows_without_any_are_not_planned(
    tmp_path, taught, gold, mean_share, num_asked
):
    made = recipe().model_dump()
    made["skills"]["bare"] = made["skills"]["s"]
    signals = {"policy": {}, "response": {}} | ({} if gold is None else {"gold": gold})
    made["stages"][1] |= {"signals": signals, "rollout": {"prompts": 16, "completions": 2}, "skills": ["s", "bare"]}
    made["stages"][1]["teachers"]["t"]["skills"] = taught
    size = parameters({"model_type": "llama", **SMALL})
    rows = {"s": ROWS["s"], "bare": Lengths(prompt=7.0, answer=0.0, num_rows=math.inf, num_answered=0)}
    flops = stage_costs(Recipe.model_validate(made), tmp_path, rows)["two"].flops_by_account
    assert flops["generation"] == pytest.approx((1 - mean_share) * 2 * size * 5 * 16 * (7 + 2 * 7.5))
    length = 12 if "s" in taught and num_asked and gold else 17
    assert flops["answers"] == pytest.approx(len(taught) / 2 * 2 * size * num_asked * length)


def test_an_audit_judges_answers_of_teachers_where_the_verifier_cannot(tmp_path):
    (tmp_path / "own.py").write_text(
        "def judge(completions, *, model, tokenizer, **columns): ...\ndef plain(completions, **columns): ...\n"
    )
    made = recipe().model_dump() | {"verifier": {"use": "./own.py:judge"}}
    made["stages"][1] |= {"signals": {"policy": {}, "response": {}}}
    made["stages"][1]["teachers"]["t"]["probe_prompts"] = 0
    for audit in (None, {"use": "./own.py:plain"}):
        made["stages"][1]["audit"] = audit
        flops = stage_costs(Recipe.model_validate(made), tmp_path, {"s": ROWS["s"]._replace(num_answered=0)})["two"]
        assert (flops.flops_by_account["answers"] > 0) == (audit is not None)


@pytest.mark.parametrize(
    ("longest", "gold", "num_answered", "num_rows"),
    [
        (11, {}, math.inf, 8),
        (10, {}, math.inf, 0),  # no completion is more than twice as long as gold answers of five tokens
        (11, {"share": 0.5}, math.inf, 0),
        (11, {"answers": "teachers"}, math.inf, 0),
        (11, {}, 0, 0),
    ],
)
def test_a_student_whose_gold_answers_may_be_bare_answers_rows_first(tmp_path, longest, gold, num_answered, num_rows):
    made = recipe().model_dump() | {"max_new_tokens": longest}
    made["stages"][1] |= {"signals": {"policy": {}, "response": {}, "gold": gold}}
    size, made = parameters({"model_type": "llama", **SMALL}), Recipe.model_validate(made)
    rows = {"s": Lengths(prompt=7.0, answer=5.0, num_answered=num_answered)}
    sizes = Sizes(made.models, None, ["s"], longest, tmp_path, rows)
    stage = made.stages[1]
    assert first_answer_flops(stage, size, sizes, None, True) == 2 * size * num_rows * 12
    assert first_answer_flops(stage, size, sizes, 11.0, True) == 2 * size * num_rows * 18
    assert first_answer_flops(stage, size, sizes, 11.0, False) == 2 * size * 4 * num_rows * 18, "none is correct"


def test_rows_that_a_student_answers_first_are_planned_where_a_verifier_can_judge_them(tmp_path):
    made = recipe().model_dump() | {"max_new_tokens": 11}
    made["stages"][1] |= {"signals": {"policy": {}, "response": {}, "gold": {}}}
    size, made = parameters({"model_type": "llama", **SMALL}), Recipe.model_validate(made)
    flops = [
        distill_flops(made.stages[1], size, {}, Sizes(made.models, None, ["s"], 11, tmp_path, ROWS, can_judge=judge))
        for judge in (True, False)
    ]
    assert flops[0]["student"] - flops[1]["student"] == 2 * size * 8 * 12


@pytest.mark.parametrize(("num_rows", "num_asked", "num_most"), [(math.inf, 40, 320), (30, 30, 30)])
def test_teachers_write_answers_that_are_learnt_once_for_a_row(tmp_path, num_rows, num_asked, num_most):
    made = recipe().model_dump()
    gold = {"answers": "teachers", "share": 0.5}
    made["stages"][1] |= {"signals": {"policy": {}, "response": {}, "gold": gold}}
    made["stages"][1] |= {"rollout": {"prompts": 8, "completions": 2}}
    size = parameters({"model_type": "llama", **SMALL})
    made, rows = Recipe.model_validate(made), {"s": Lengths(prompt=7.0, answer=5.0, num_rows=num_rows)}
    flops = stage_costs(made, tmp_path, rows)["two"].flops_by_account
    assert flops["answers"] == 2 * size * num_asked * 12, "of five steps; a gate is in place of a probe"
    assert flops["student"] == 6 * size * 5 * (4 * (7 + 2 * 4) + 8 * 11)
    sizes = Sizes(made.models, None, ["s"], made.max_new_tokens, tmp_path, rows)
    most = distill_flops(made.stages[1], size, {"t": size}, sizes, Assumptions(completion=10.0, agrees=False))
    assert most["answers"] == 2 * size * num_most * 17, "the eighth row of each is answered correctly"
    assert most["student"] == 6 * size * 5 * (4 * (7 + 2 * 9) + 8 * 16)


def test_the_gate_asks_once_for_a_row_and_the_range_has_the_longest_completions(tmp_path):
    size = parameters({"model_type": "llama", **SMALL})
    rows = {"s": Lengths(prompt=7.0, answer=5.0, num_rows=4)}
    cost = stage_costs(recipe(), tmp_path, rows)["two"]
    assert cost.flops_by_account["gate"] == 2 * size * 4 * 5
    longest = (2 + 6 + 2) * size * 5 * 3 * 2 * (10 - 5)  # for student, its update and the teacher
    longest += 2 * size * 4 * (2 * 7 + 10)  # and the gate decodes each answer
    assert cost.flops_range == (cost.flops, cost.flops + longest)


def test_the_range_has_prompts_that_are_replaced_as_often_as_they_may_be(tmp_path):
    made = recipe().model_dump()
    size = parameters({"model_type": "llama", **SMALL})
    cost = stage_costs(Recipe.model_validate(made), tmp_path, ROWS)["two"]
    made["stages"][1]["rollout"]["refill"] = 3
    refilled = stage_costs(Recipe.model_validate(made), tmp_path, ROWS)["two"]
    sampled = 2 * size * 5 * 3 * (7 + 2 * 10)  # five steps of three prompts, each with two answers of ten tokens
    assert refilled.flops == cost.flops
    assert refilled.flops_range == (cost.flops_range[0], cost.flops_range[1] + 3 * sampled)


def test_a_document_is_read_in_whole_blocks_and_asks_for_no_answer(tmp_path):
    made = recipe().model_dump() | {"prompts": {}}
    made["skills"] = {"s": {"file": "a.txt", "kind": "plain_text", "block": 64, "held_out": 1}}
    signals = {"response": {}, "gold": None}
    made["stages"][1] |= {"signals": signals, "gate": "off", "controller": {"kind": "fixed"}}
    made["stages"][1] |= {"rollout": {"prompts": 4, "completions": 1, "gold_completions": 1}}
    size = parameters({"model_type": "llama", **SMALL})
    costs = stage_costs(Recipe.model_validate(made), tmp_path, {"s": Lengths(prompt=1.0, answer=50.0)})
    assert costs["one"].flops == 6 * size * (2 * 4 * 51), "and not of max_new_tokens"
    flops = costs["two"].flops_by_account
    assert (flops["teachers"], flops["answers"]) == (2 * size * 5 * 4 * 50, 0)


@pytest.mark.parametrize(("words", "num_read"), [(" fine", 3), (" badly", 4)])
def test_all_words_of_labels_are_read_but_for_their_last_token(tmp_path, words, num_read):
    """A gold answer of five tokens has an end, which is a part of a label if one begins another, as ` bad` does."""
    made = recipe().model_dump() | {"prompts": {}}
    labels = {"labels": {"a": words, "b": " bad"}, "synonyms": {"a": [" good", " nice"]}}
    made["skills"] = {"s": {"file": "a.csv", "kind": "labelled", **labels, "held_out": 1}}
    made["stages"][1] |= {"signals": {"response": {}, "gold": None}, "controller": {"kind": "fixed"}}
    made["stages"][1] |= {"rollout": {"prompts": 3, "completions": "labels"}}
    made["stages"][1]["teachers"]["t"]["probe_prompts"] = 6
    size = parameters({"model_type": "llama", **SMALL})
    for words_length in (None, 6.0):
        rows = {"s": ROWS["s"]._replace(label=words_length)}
        flops = stage_costs(Recipe.model_validate(made), tmp_path, rows)["two"].flops_by_account
        num_more = 0 if words_length is None else 6 - 4
        assert flops["teachers"] == 2 * size * 5 * 3 * (7 + 4 * (num_read + num_more))
        assert flops["answers"] == 2 * size * 6 * (7 + 2 * 5), "probes are by the labels' own words"


def test_a_teacher_whose_answers_are_learnt_is_counted(tmp_path):
    made = recipe().model_dump()
    made["stages"][0] |= {"teacher": "small", "num_rows": 5}
    size = parameters({"model_type": "llama", **SMALL})
    assert stage_costs(Recipe.model_validate(made), tmp_path, ROWS)["one"].flops == 6 * size * 96 + 2 * size * 5 * 12


def test_a_model_that_is_not_here_has_an_unknown_cost(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    costs = stage_costs(recipe(), tmp_path)
    assert (costs["three"].parameters, costs["three"].flops, costs["three"].bytes) == (None, None, None)


def test_a_folder_is_looked_up_beside_the_recipe(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert config_of("model", tmp_path) == {"model_type": "llama"}
