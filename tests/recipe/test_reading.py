"""A recipe is refused with every mistake at once, each with its place and, for a name, what was meant."""
# ruff: noqa: E501 - a line per mistake

from __future__ import annotations

import json

import pytest

from rld.controllers.gradient import GradientNoiseController
from rld.errors import RecipeError
from rld.recipe.models import NewModel
from rld.recipe.reading import read_recipe

TASKS = """
def reverse(rng, length, letters="abc"):
    return "ab", "ba"

def reward(completions, *, scale: float = 1.0, strict=False, **columns):
    return [scale for _ in completions]

def narrow(completions, answer):
    return [1.0 for _ in completions]

def eager(completions, gold, **_):
    return [1.0 for _ in completions]

class Mine:
    def __init__(self, levels, *, speed=1): ...
"""

GOOD = """\
name: good
tokenizer: {characters: "abc:="}
models:
  big: {new: llama, config: {hidden_size: 64}}
  small: {new: llama, config: {hidden_size: 32}}
skills:
  reverse:
    generator: ./tasks.py:reverse
    levels: [{length: 3}, {length: 4}]
  sum: {reasoning_gym: chain_sum, levels: [{min_terms: 2}]}
rewards:
  - {use: "./tasks.py:reward", options: {scale: 2}}
stages:
  - name: first
    kind: sft
    student: big
    steps: 3
    trainer: {learning_rate: 1e-3}
  - name: main
    kind: distill
    student: small
    teachers: {t: {model: first, skills: [reverse]}}
    curriculum: {use: "./tasks.py:Mine"}
    controller: {kind: gap, off_below: 0.25}
    steps: 5
"""


@pytest.fixture
def recipe(tmp_path):
    """Write GOOD with lines replaced, and return its path."""
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")

    def write(**changes):
        text = GOOD
        for old, new in changes.get("replace", {}).items():
            assert old in text, old
            text = text.replace(old, new, 1)
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def mistakes(path, *overrides):
    with pytest.raises(RecipeError) as error:
        read_recipe(path, overrides)
    return str(error.value).replace(f"{path}:", "").splitlines()


def test_a_good_recipe_is_read_with_its_types(recipe):
    made = read_recipe(recipe())
    assert isinstance(made.models["big"], NewModel)
    assert made.stages[0].trainer["learning_rate"] == 0.001  # YAML 1.1 makes text of 1e-3
    assert made.stages[1].controller.off_below == 0.25
    assert made.stages[1].teachers["t"].probe_prompts is None
    assert (
        read_recipe(recipe(), ["stages.main.teachers.t.adapter=adapter"]).stages[1].teachers["t"].adapter == "adapter"
    )


TOKENIZERS = {
    "ours": {"a": 0, "b": 1},
    "padded": {"a": 0, "b": 1, "<filler>": 2},
    "theirs": {"b": 0, "a": 1, "ab": 2},
}


def test_a_trainers_beta_asks_for_weights_in_a_file(recipe):
    trainer = "    steps: 5\n    trainer: {beta: 0.1}"
    expected = "26: stages.main.trainer.beta: it keeps the student near the weights that it begins with"
    assert mistakes(recipe(replace={"    steps: 5": trainer}))[0].startswith(expected)


def test_a_mistake_of_the_recipe_as_a_whole_has_a_sentence(recipe):
    path = recipe(replace={"levels: [{min_terms: 2}]}": "prompts: {template: 'T: {question}', strip_thinking: true}}"})
    assert mistakes(path) == [
        "10: skills.sum.prompts.strip_thinking: all skills share it; set it in the recipe's prompts"
    ]


def test_a_controllers_kind_alone_is_that_controller(recipe):
    path = recipe(replace={"{kind: gap, off_below: 0.25}": "gradient_noise"})
    assert read_recipe(path).stages[-1].controller == GradientNoiseController()
    assert read_recipe(path, ["stages.main.controller.decide_every=3"]).stages[
        -1
    ].controller == GradientNoiseController(decide_every=3)
    assert mistakes(path, "stages.main.controller=gpa") == [
        "command line (stages.main.controller=gpa): stages.main.controller.kind cannot be 'gpa'; did you mean 'gap'?"
    ]


def test_a_teacher_with_another_tokenizer_needs_align(recipe, tmp_path):
    for name in (*TOKENIZERS, "without"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    for name, vocabulary in TOKENIZERS.items():
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    path = recipe(replace={"small: {new: llama, config: {hidden_size: 32}}": "small: {path: ./ours}"})

    def said(*overrides):
        try:
            read_recipe(path, [f"stages.main.teachers.t.{text}" for text in overrides])
        except RecipeError as error:
            return str(error)
        return ""

    assert said("model=./padded") == said("model=./without") == said("model=nobody/nothing") == said() == ""
    mistake = said("model=./theirs")
    assert "stages.main.teachers.t: its tokenizer is not that of the student, small; set align: likelihood" in mistake
    assert said("model=./theirs", "align=vocabulary") == ""
    assert "did you mean 'vocabulary'?" in said("model=./theirs", "align=vocabluary")
    # a stage has the tokenizer of the model that it trains
    path.write_text(path.read_text().replace("student: big", "student: ./theirs"))
    assert "its tokenizer is not" in said("model=first")
    (tmp_path / "theirs" / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")
    assert "tokenizer.json is a Git LFS pointer" in said("model=first")


def test_all_mistakes_come_at_once_in_the_order_of_the_file(recipe):
    path = recipe(
        replace={
            "name: good": "name: good\nsede: 3",
            "student: big": "student: bgi",
            "kind: gap": "kind: gpa",
            "    steps: 5": "    steps: 0",
        }
    )
    assert mistakes(path) == [
        "2: unknown key 'sede'; did you mean 'seed'?",
        "17: stages.first.student: there is no model 'bgi'; did you mean 'big'?",
        "25: stages.main.controller.kind cannot be 'gpa'; did you mean 'gap'?",
        "26: stages.main.steps should be greater than 0, not 0",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # the schema
        ("steps: 3", "steps: three", "17: stages.first.steps should be a whole number, not 'three'"),
        ("steps: 3", "steps: true", "17: stages.first.steps should be a whole number, not True"),
        ("steps: 3", "steps:", "17: stages.first.steps has no value; {} stands for defaults, null for none"),
        ("    steps: 3\n", "", "14: 'stages.first.steps' is required"),
        ("kind: sft", "kind: stf", "15: stages.first.kind cannot be 'stf'; did you mean 'sft'?"),
        ("    kind: sft\n", "", "14: 'stages.first.kind' is required; choose from distill, evaluate, export, merge, prune, sft"),
        ("off_below: 0.25", "strt: 1, off_below: .nan", "24: stages.main.controller.off_below should be a finite number, not nan"),
        ("generator:", "generater:", "8: unknown key 'skills.reverse.generater'; did you mean 'generator'?"),
        ("  sum: {", "  s/m: {", "10: skills.s/m: its name should have only letters, digits, '_' and '-'"),
        ("new: llama, config", "foo: llama, bar", "models.big should be a hub id or a folder, or a mapping with the key"),
        ("kind: gap", "kind: fixed", "unknown key 'stages.main.controller.off_below'; it is an option of kind: gap"),
        # names within the recipe
        ("name: main", "name: first", "19: an earlier stage is called 'first' too; choose another name"),
        ("name: main", "name: big", "19: a stage and a model are both called 'big'; choose another name"),
        ("student: big", "student: main", "16: stages.first.student: stage 'main' has not run by then; refer to an earlier one"),
        ("student: big", "student: ./nowhere", "16: stages.first.student: there is no folder ./nowhere"),
        ("[reverse]", "[revers]", "22: stages.main.teachers.t.skills: 'revers' is no skill; did you mean 'reverse'?"),
        ("skills: [reverse]}", "adapter: ./tasks}", "22: stages.main.teachers.t.adapter: there is no adapter './tasks'; choose from adapter"),
        ("skills: [reverse]}", "adapter: adaptor}", "22: stages.main.teachers.t.adapter: there is no adapter 'adaptor'; did you mean 'adapter'?"),
        ("skills: [reverse]}", "adapter: tasks.py}", "22: stages.main.teachers.t.adapter: tasks.py is no PEFT adapter: it has no adapter_config.json"),
        ("skills: [reverse]}", "adaptor: a/b}", "22: unknown key 'stages.main.teachers.t.adaptor'; did you mean 'adapter'?"),
        ("skills: [reverse]}", "offload: true, from_pretrained: {device_map: auto}}", "22: stages.main.teachers.t.offload cannot be true: a model with device_map"),
        ("tokenizer:", "max_new_tokens: 3 #", "4: models.big is new and needs a tokenizer: set its tokenizer, or"),
        ("gap, off_below: 0.25", "fixed, teachers: {u: 1}", "no such teacher; choose from t"),
        ("    teachers: {t: {model: first, skills: [reverse]}}", "    signals: {feature: {}}", "needs teachers, and this stage has none"),
        ("    steps: 5", "    steps: 5\n    retain: {}", "26: stages.main.retain protects the skills that the stage does not train, and it trains all"),
        ("    steps: 5", "    steps: 5\n    retain: {skills: [revers]}", "26: stages.main.retain.skills: 'revers' is no skill; did you mean 'reverse'?"),
        ("    steps: 5", "    steps: 5\n    retain: {skills: [reverse, reverse]}", "26: stages.main.retain.skills: names 'reverse' twice"),
        ("    steps: 3", "    steps: 3\n    shares: {revers: 2}", "18: stages.first.shares.revers: 'revers' is no skill; did you mean 'reverse'?"),
        ("    steps: 3", "    steps: 3\n    skills: [sum]\n    shares: {reverse: 2}", "19: stages.first.shares.reverse: 'reverse' is no skill of this stage"),
        ('{use: "./tasks.py:Mine"}', "{options: {weights: {revers: 1, sum: 1}}}", "23: stages.main.curriculum.options: fixed:Uniform: weights should name the skills ['reverse', 'sum'], not ['revers', 'sum']"),
        ('{use: "./tasks.py:Mine"}', "{use: 'ladder:Ladder', options: {window: many}}", "23: stages.main.curriculum.options.window should be int, not 'many'"),
        ("    steps: 5", "    steps: 5\n    experiment: {perturbations: [{at: 1, skill: revers, levels: [1]}]}", "'revers' is no skill of this stage; did you mean 'reverse'?"),
        ("    steps: 5", "    steps: 5\n    experiment: {perturbations: [{at: 1, teacher: tt, becomes: null}]}", "'tt' is no teacher of this stage; did you mean 't'?"),
        ("rewards:", "prices: {currency: EUR, machine_per_hour: 1, watt: 2}\nrewards:", "11: unknown key 'prices.watt'; did you mean 'watts'?"),
        ("rewards:", "prices: {currency: EUR, machine_per_hour: 1, apis: {tt: {input_per_million_tokens: 1, output_per_million_tokens: 1}}}\nrewards:", "11: prices.apis.tt: no teacher is called 'tt'; did you mean 't'?"),
        # teachers that hand over their likeliest tokens
        ("{model: first,", "{url: 'ftp://x',", "22: stages.main.teachers.t.url should be an address that begins with http:// or https://, not 'ftp://x'"),
        ("{model: first,", "{skils: [],", "22: stages.main.teachers.t should be a mapping with one of the keys 'model' and 'url'"),
        ("{model: first,", "{url: 'http://h:1', offload: true,", "22: unknown key 'stages.main.teachers.t.offload'; choose from"),
        # files and the names in them
        ("    steps: 5", "    steps: 5\n    audit: {use: ./tasks.py:reword}", "26: stages.main.audit.use: ./tasks.py has no 'reword'; did you mean 'reward'?"),
        ("options: {scale: 2}", "options: {strict: no}", "12: rewards.0.options.strict should be true or false, not 'no'"),
        ("    steps: 5", "    steps: 5\n    audit: {use: ./tasks.py:reward, options: {scal: 2}}", "26: unknown key 'stages.main.audit.options.scal'; did you mean 'scale'?"),
        ("tasks.py:reverse", "task.py:reverse", "8: skills.reverse.generator: no file ./task.py beside the recipe; did you mean './tasks.py'?"),
        ("tasks.py:reverse", "tasks.py:revers", "8: skills.reverse.generator: ./tasks.py has no 'revers'; did you mean 'reverse'?"),
        ("{length: 4}", "{lenght: 4}", "9: unknown key 'skills.reverse.levels.1.lenght'; did you mean 'length'?"),
        ("{length: 4}", "{}", "9: 'skills.reverse.levels.1.length' is required by ./tasks.py:reverse"),
        ("scale: 2", "scal: 2", "12: unknown key 'rewards.0.options.scal'; did you mean 'scale'?"),
        ("tasks.py:reward", "tasks.py:reverse", "12: rewards.0.use: ./tasks.py:reverse is no reward"),
        ("tasks.py:reward", "tasks.py:narrow", "12: rewards.0.use: ./tasks.py:narrow takes no other arguments; end its arguments with **_"),
        ("tasks.py:reward", "tasks.py:eager", "12: 'rewards.0.options.gold' is required by ./tasks.py:eager; of a row, a reward gets question, answer, skill"),
        ("tasks.py:Mine", "tasks.py:Mien", "./tasks.py has no 'Mien'; did you mean 'Mine'?"),
        # the libraries
        ("chain_sum", "chain_sums", "10: skills.sum.reasoning_gym: reasoning-gym has no task 'chain_sums'; did you mean 'chain_sum'?"),
        ("min_terms", "min_term", "10: unknown key 'skills.sum.levels.0.min_term'; did you mean 'min_terms'?"),
        ("min_terms: 2", "min_terms: two", "10: skills.sum.levels.0.min_terms should be int, not 'two'"),
        ("min_terms: 2", "seed: 2", "skills.sum.levels.0.seed is not yours to set"),
        ("new: llama", "new: lama", "4: models.big.new cannot be 'lama'; did you mean 'llama'?"),
        ("hidden_size: 64", "hiden_size: 64", "4: unknown key 'models.big.config.hiden_size'; did you mean 'hidden_size'?"),
        ("learning_rate: 1e-3", "lerning_rate: 1", "18: unknown key 'stages.first.trainer.lerning_rate'; did you mean 'learning_rate'?"),
        ("learning_rate: 1e-3", "learning_rate: fast", "18: stages.first.trainer.learning_rate should be float, not 'fast'"),
        ("learning_rate: 1e-3", "lr_scheduler_type: cosin", "18: stages.first.trainer.lr_scheduler_type cannot be 'cosin'; did you mean 'cosine'?"),
        ("learning_rate: 1e-3", "max_steps: 9", "18: stages.first.trainer.max_steps is not yours to set: set the stage's steps instead"),
        ("learning_rate: 1e-3", "learning_rate: -1", "18: stages.first.trainer.learning_rate should be at least 0, not -1"),
        ("learning_rate: 1e-3", "adam_beta1: 2", "18: stages.first.trainer.adam_beta1 should be at least 0 and below 1, not 2"),
        ("steps: 5", "trainer: {num_iterations: 0}", "stages.main.trainer.num_iterations should be at least 1, not 0"),
        ("learning_rate: 1e-3", "report_to: neptune", "18: stages.first.trainer.report_to: neptune is not installed; install it, or leave it out"),
        ("learning_rate: 1e-3", "report_to: [none, wandbb]", "18: stages.first.trainer.report_to: there is no logger 'wandbb'; did you mean 'wandb'?"),
        ("trainer: {learning_rate: 1e-3}", "lora: {r: 0}", "18: stages.first.lora.r should be at least 1 and at most 65536, not 0"),
        # values that no machine holds
        ("steps: 3", "steps: 100000000", "17: stages.first.steps should be less than or equal to 10000000, not 100000000"),
        ("steps: 5", "steps: 5\n    rollout: {prompts: 1000000000}", "26: stages.main.rollout.prompts should be less than or equal to 100000"),
        ("steps: 5", "steps: 9000000\n    rollout: {prompts: 1000}", "25: stages.main.steps: times rollout.prompts it should be at most 10,000,000 prompts"),
        ("steps: 5", "steps: 5\n    rollout: {prompts: 99999, completions: 9999}", "26: stages.main.rollout.prompts: an update has at most 1,000,000 completions"),
        ("hidden_size: 64", "num_hidden_layers: 100000000", "4: models.big.config.num_hidden_layers should be at most 10,000"),
        ("hidden_size: 64", "hidden_size: 1000000000", "4: models.big.config: a model of"),
        ("scale: 2", f"scale: {'9' * 400}", "12: rewards.0.options.scale should be a number of at most 64 bits"),
        ("name: good", "name: good\nseed: 4294967296", "2: seed should be less than 2147483648, not 4294967296"),
        ("name: good", 'name: "\\ud800"', "1: name should be text, but has half of a character"),
        # the user's own functions
        ("scale: 2", "scale: two", "12: rewards.0.options.scale should be float, not 'two'"),
        ("kind: gap, off_below: 0.25", "kind: gap}\n    skills: [reverse, 1]\n    experiment: {perturbations: [{at: 1, joins: x}]", "25: stages.main.skills.1 should be text, not 1"),
        ("learning_rate: 1e-3", "save_only_model: true", "18: stages.first.trainer.save_only_model is not yours to set"),
        ("learning_rate: 1e-3", "logging_steps: 10", "18: stages.first.trainer.logging_steps is not yours to set"),
        ("learning_rate: 1e-3", "eos_token: x", "18: stages.first.trainer.eos_token is not yours to set"),
        ("trainer: {learning_rate: 1e-3}", "lora: {rank: 9}", "18: unknown key 'stages.first.lora.rank'"),
        ("steps: 5", "trainer: {sync_ref_model: true}", "stages.main.trainer.sync_ref_model is not yours to set: no checkpoint has"),
        ("steps: 5", "trainer: {num_generatons: 9}", "trainer.num_generatons is not yours to set: set rollout.completions instead"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_what_was_meant(recipe, old, new, expected):
    lines = mistakes(recipe(replace={old: new}))
    assert any(expected in line for line in lines), lines


def test_a_mistake_in_a_file_of_the_users_has_its_line(recipe, tmp_path):
    path = recipe()
    (tmp_path / "tasks.py").write_text("def reverse(rng:\n    pass\n")
    assert f"{tmp_path / 'tasks.py'}:1: not valid Python" in mistakes(path)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a recipe is a mapping"),
        ("- a", "a recipe is a mapping"),
        ("name: a\nname: b", "2: not valid YAML: 'name' is set twice"),
        ("name: a\n\tseed: 1", "indent by spaces, not by tabs"),
        (
            "name: a\nskills:\n  b: {}\n c: {}",
            "(in what begins on line 1); keys of one mapping begin in the same column",
        ),
        ("prompts: {template: {question} x}", "put quotation marks around a text that has braces"),
        ("name: 'a\nseed: 1", "a quotation mark or a bracket is not closed"),
        ("name: [a", "not valid YAML"),
        ("a: &a\n  b: *a", "not valid YAML: it contains itself"),
        ("name: \x00", "not valid YAML"),
        ("name: !!int abc", "1: not valid YAML: 'abc' is no int"),
        ("name: !!bool x", "1: not valid YAML: 'x' is no bool"),
        ("name: !!timestamp 2020-99-01", "1: not valid YAML: could not determine a constructor"),
        (f"seed: {'9' * 5000}", "1: not valid YAML: '9999999999999999999999999999999999999...' is no int"),
        (f"name: {'[' * 900}{']' * 900}", "1: not valid YAML: it is nested more than 64 deep"),
        ("\n".join(["a0: &a0 {}", *(f"a{i}: &a{i} {{x: *a{i - 1}}}" for i in range(1, 99))]), "nested more than"),
        (
            "\n".join(["a0: &a0 [1]", *(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]" for i in range(1, 20))]),
            "its aliases stand",
        ),
        (
            "\n".join(["a0: &a0 {}", *(f"a{i}: &a{i} {{<<: [{f'*a{i - 1},' * 9}]}}" for i in range(1, 20))]),
            "its aliases",
        ),
        ("<<: 5", "1: not valid YAML: expected a mapping"),
        ("name: a\n\tseed: 1", "2: not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, expected):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert expected in mistakes(path)[0]


def test_an_option_of_a_skill_beside_the_skill_is_told_where_it_belongs(recipe):
    refusals = mistakes(recipe(replace={"skills:": "skills:\n  held_out: 3"}))
    assert any("skills.held_out: 'held_out' is an option; indent it below the name" in line for line in refusals)


def test_a_byte_order_mark_is_skipped_and_utf_16_is_refused(recipe, tmp_path):
    path = recipe()
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_recipe(path).name == "good"
    path.write_text(path.read_text(encoding="utf-8-sig"), encoding="utf-16")
    assert mistakes(path) == [" is not text in UTF-8"]


def test_an_override_that_is_no_value_or_leads_nowhere_is_refused(recipe):
    assert "not a YAML value" in mistakes(recipe(), "skills=&a [*a]")[0]
    assert "there is no '²' in this list" in mistakes(recipe(), "stages.².steps=3")[0]
    assert "there is no '7' in this list, which has 2 (the first is 0)" in mistakes(recipe(), "stages.7.steps=3")[0]
    assert "there is no '9999" in mistakes(recipe(), f"stages.{'9' * 99}.steps=3")[0]
    assert "is not of the form key.path=value" in mistakes(recipe(), f"{'.'.join('a' * 900)}=3")[0]


def test_scalars_are_those_of_yaml_1_2(recipe):
    made = read_recipe(
        recipe(), ["tokenizer.characters=010", "rewards.0.options.scale=1_000", "models.big.config.hidden_act=off"]
    )
    assert made.tokenizer.characters == "010"
    assert made.rewards[0].options == {"scale": 1000}
    assert made.models["big"].config["hidden_act"] == "off"


def test_overrides_reach_items_of_lists_by_index_and_by_name(recipe):
    made = read_recipe(recipe(), ["stages.main.steps=7", "stages.0.steps=8", "stages.main.rollout.temperature=0.5"])
    assert [stage.steps for stage in made.stages] == [8, 7]
    assert made.stages[1].rollout.temperature == 0.5
    assert made.stages[1].rollout.prompts == 8


def test_an_override_replaces_what_the_file_says_with_all_that_is_under_it(recipe):
    made = read_recipe(recipe(), ["stages.main.controller={kind: fixed, feature: 0.0}"])
    assert made.stages[1].controller.kind == "fixed"


def test_overriding_one_use_of_a_yaml_anchor_leaves_the_other(recipe):
    path = recipe(replace={"{hidden_size: 64}": "&c {hidden_size: 64}", "{hidden_size: 32}": "*c"})
    made = read_recipe(path, ["models.big.config.hidden_size=16"])
    assert (made.models["big"].config, made.models["small"].config) == ({"hidden_size": 16}, {"hidden_size": 64})


def test_mistakes_on_the_command_line_are_named_after_those_in_the_file(recipe):
    path = recipe(replace={"name: good": "name: good\nsede: 3"})
    overrides = ["stages.man.steps=1", "steps", "seed=-1", "stages.main.rolout.prompts=3", "name.x=1"]
    assert mistakes(path, *overrides) == [
        "2: unknown key 'sede'; did you mean 'seed'?",
        "command line (name.x=1): there is nothing to set 'x' in: its parent is 'good'",
        "command line (seed=-1): seed should be greater than or equal to 0, not -1",
        "command line (stages.main.rolout.prompts=3): unknown key 'stages.main.rolout'; did you mean 'rollout'?",
        "command line (stages.man.steps=1): there is no 'man' in this list; did you mean 'main'?",
        "command line (steps): is not of the form key.path=value",
    ]


@pytest.mark.parametrize(("steps", "rate"), [(10, 5e-6), (99, 5e-6), (100, 2e-3)])
def test_a_short_stage_of_a_trained_student_does_not_learn_at_the_rate_of_random_weights(recipe, steps, rate):
    made = read_recipe(recipe(), ["stages.main.student=first", f"stages.main.steps={steps}"])
    assert made.stages[1].trainer["learning_rate"] == rate
    assert read_recipe(recipe(), [f"stages.main.steps={steps}"]).stages[1].trainer["learning_rate"] == 2e-3


@pytest.mark.parametrize(
    ("overrides", "signals"),
    [
        (["signals.gold=null"], {"policy", "response"}),
        (["signals={gold: {share: 0.5}}"], {"policy", "response", "gold"}),
        (["signals.gold=null", "teachers={}"], {"policy"}),
        (["signals={response: {}, gold: null}"], {"response"}),
    ],
)
def test_gold_answers_alone_do_not_replace_the_other_signals(tmp_path, overrides, signals):
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "good.yaml").write_text(GOOD)
    made = read_recipe(tmp_path / "good.yaml", [f"stages.main.{override}" for override in overrides])
    assert {name for name, signal in made.stages[-1].signals if signal is not None} == signals
