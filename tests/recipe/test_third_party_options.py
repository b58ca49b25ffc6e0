"""What is read off the installed libraries' source is what their classes say when they are imported."""

from __future__ import annotations

import ast
import dataclasses

import pytest
import reasoning_gym  # noqa: F401 - registers its tasks
from peft import LoraConfig
from reasoning_gym.factory import DATASETS
from transformers import CONFIG_MAPPING
from transformers.trainer_utils import SchedulerType
from trl import GRPOConfig, SFTConfig

from rld.recipe import third_party_options
from rld.recipe.stages.distill import Distill
from rld.recipe.stages.sft import Sft


def names_of(config):
    return {field.name for field in dataclasses.fields(config) if field.init}


@pytest.mark.parametrize(("stage", "config"), [(Sft, SFTConfig), (Distill, GRPOConfig)])
def test_trainer_fields_are_those_of_trls_configuration(stage, config):
    assert set(third_party_options.trainer_fields(*stage.trainer_class)) == names_of(config)


def test_lora_fields_are_those_of_peft():
    fields = set(third_party_options.lora_fields())
    assert names_of(LoraConfig) == fields - {field.name for field in dataclasses.fields(LoraConfig) if not field.init}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma", "gpt2"])
def test_options_of_a_new_model_are_those_of_its_configuration(kind):
    config = CONFIG_MAPPING[kind]
    fields = third_party_options.model_fields(kind)
    assert names_of(config) <= set(fields)
    assert set(config.attribute_map) <= set(fields)
    defaults = third_party_options.model_defaults(kind)
    assert all(getattr(config(), name) == defaults[name] for name in ("vocab_size", "tie_word_embeddings"))


@pytest.mark.parametrize("kind", ["a./", "..", "", "a/b"])
def test_a_model_type_that_is_no_name_has_no_options(kind):
    assert third_party_options.model_fields(kind) is None


def test_reasoning_gym_tasks_and_their_options_are_those_that_it_registers():
    assert set(third_party_options.gym_tasks()) == set(DATASETS)
    for task, (_, config) in DATASETS.items():
        assert set(third_party_options.gym_fields(task)) == names_of(config), task


def test_words_of_an_enumeration_are_its_values():
    field = third_party_options.trainer_fields(*Sft.trainer_class)["lr_scheduler_type"]
    assert third_party_options.choices(field) == [member.value for member in SchedulerType]


@pytest.mark.parametrize(
    ("annotation", "accepted", "refused"),
    [
        ("int", [3], [3.0, True, "3", None]),
        ("float", [3, 3.5], [True, "3"]),
        ("bool", [True], [1, "yes"]),
        ("int | None", [3, None], ["3"]),
        ("Optional[int]", [3, None], ["3"]),
        ("Union[int, str]", [3, "a"], [None]),
        ("list[str] | None", [["a"], None], [[1], "a"]),
        ("dict[str, Any] | str", [{}, "a"], [3]),
        ("Literal['a', 'b']", ["a"], ["c"]),
        ("SomethingElse", [3, "a", None], []),
    ],
)
def test_a_field_accepts_what_its_annotation_says(annotation, accepted, refused):
    parsed = ast.parse(annotation, mode="eval").body
    assert all(third_party_options.accepts(parsed, value) for value in accepted)
    assert not any(third_party_options.accepts(parsed, value) for value in refused)
