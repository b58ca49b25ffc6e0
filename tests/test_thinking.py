"""Rewards, gate, audit and scores read answers without their thinking part, where a run says so; else a notice."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from pydantic import ValidationError
from rld.rewards import text_of
from trl.rewards import think_format_reward

from rld.errors import RecipeError
from rld.models.prompting import PromptEncoder
from rld.models.row_checks import check_rows
from rld.models.thinking import Thinking
from rld.pipeline import sft as sft_stage
from rld.recipe import trl_rewards
from rld.recipe.schema import Recipe
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.types import Answer
from tests.support import scoring
from tests.support.fleet import FLEET, Member, PerfectModel, rendered, rows
from tests.support.real_tokenizers import byte_level

THOUGHT = "\n7, or 99? It is no 12.\n"
LENGTH = 96


def with_special_markers() -> Member:
    """A member whose markers of thinking are special tokens, which decoding leaves out."""
    member = FLEET["turn_end"]
    names = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "[THINK]", "[/THINK]"
    template = member.tokenizer().chat_template + "{# [THINK] [/THINK] #}"
    build = lambda: byte_level(*names, chat_template=template, eos_token=names[0], pad_token=names[0])  # noqa: E731
    return replace(member, name="special", build=build)


MEMBERS = {
    "qwen3": FLEET["qwen3_enable_thinking_true"],
    "qwen3_5, which opens the part": FLEET["qwen3_5_think_enable_thinking_true"],
    "qwen3 without thinking": FLEET["qwen3_enable_thinking_false"],
    "deepseek, which opens the part": FLEET["deepseek_r1_distill"],
    "special": with_special_markers(),
    "plain": FLEET["byte_level"],
}


def encoder(member: Member) -> PromptEncoder:
    return PromptEncoder(member.tokenizer(), member.chat_options, strip_thinking=True)


def thinker(member: Member, seed: int = 0, *, is_closed: bool = True) -> PerfectModel:
    """A model that thinks before it gives the gold answers, or never comes to an end of it."""
    model, tokenizer = member.model(seed), member.tokenizer()
    pair = encoder(member).thinking
    assert pair is not None
    model.answers = {}
    for row in rows(member):
        prompt = rendered(tokenizer, row["prompt"], member.chat_options)
        opening = "" if pair.opened_by(prompt) else pair.opening
        text = opening + THOUGHT + (f"{pair.closing}\n\n{row['answer']}" if is_closed else "")
        prompt_ids = tokenizer(prompt, add_special_tokens=not member.chat)["input_ids"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        model.answers[tuple(prompt_ids)] = [*ids, tokenizer.convert_tokens_to_ids(member.closes)]
    return model


def equal(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    return [float(text_of(text) == gold) for text, gold in zip(completions, answer, strict=True)]


def rolled_out(
    member: Member, model: PerfectModel, folder: Any, further: Any = (), **options: Any
) -> tuple[list[str], Any, RLDTrainer]:
    """Return the completions that the reward got, the rollout, and its trainer."""
    texts: list[str] = []

    def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts.extend(map(text_of, completions))
        return equal(completions, answer)

    options = {"strip_thinking": True, "chat_template_kwargs": dict(member.chat_options), **options}
    args = RLDConfig(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=2 * len(rows(member)),
        num_generations=2,
        max_completion_length=LENGTH,
        report_to="none",
        use_cpu=True,
        bf16=False,
        audit_share=1.0,
        **options,
    )
    trainer = RLDTrainer(
        model,
        [reward, *further],
        args,
        Dataset.from_list(rows(member)),
        processing_class=member.tokenizer(),
        teachers=[Teacher(thinker(member, 1), "teacher", tokenizer=member.tokenizer())],
        audit_reward=equal,
    )
    batch = trainer._generate_and_score_completions([row for row in rows(member) for _ in range(2)])
    return texts[: 2 * len(rows(member))], batch, trainer


@pytest.mark.parametrize("name", MEMBERS)
def test_rewards_gate_audit_and_scores_read_the_answer_alone(name, tmp_path):
    member = MEMBERS[name]
    model = thinker(member)
    texts, batch, trainer = rolled_out(member, model, tmp_path)
    assert all(member.same_text(*pair) for pair in zip(texts[::2], [r["answer"] for r in rows(member)], strict=True))
    assert (batch["teacher_weights"][::2, 0] > 0).float().mean() >= 0.75, "composed accents are not equal code points"
    assert trainer.runtime._window.audit.audited_S.sum() == trainer.runtime._window.audit.passed_S.sum() > 0
    evaluator = scoring.evaluator(rows(member), equal, LENGTH, member.chat_options, True)
    evaluation = evaluator.evaluate(model, member.tokenizer())
    assert evaluation.scores["all"] >= 0.75
    assert THOUGHT.strip() in evaluation.predictions[0].answer, "samples show the whole completion"


@pytest.mark.parametrize("name", MEMBERS)
def test_thinking_without_an_end_is_no_answer(name, tmp_path):
    member = MEMBERS[name]
    model = thinker(member, is_closed=False)
    if name in ("special", "deepseek, which opens the part"):
        assert set(rolled_out(member, model, tmp_path)[0]) == {""}
    evaluator = scoring.evaluator(rows(member), equal, LENGTH, member.chat_options, True)
    assert evaluator.evaluate(model, member.tokenizer()).scores == {"all": 0.0}


@pytest.mark.parametrize(
    ("completion", "is_open", "answer"),
    [
        ("12", False, "12"),
        (" 12 ", False, " 12 "),
        ("<think>a</think>\n\n12", False, "12"),
        ("a</think>12", True, "12"),
        ("12", True, ""),
        ("<think>12", False, ""),
        ("<think>a</think> no <think>b</think> 12", False, "12"),
        ("<think>a</think> 12 <think> or", False, "12"),
        ("<think>a</think>", False, ""),
    ],
)
def test_the_answer_is_behind_the_last_thinking_part(completion, is_open, answer):
    assert Thinking("<think>", "</think>").answer(completion, is_open) == answer


def test_a_question_about_a_marker_opens_nothing():
    member = FLEET["turn_end"]
    asked = [{"role": "user", "content": "What is <think>"}]
    assert encoder(member).answer(asked, "a marker") == "a marker"


@pytest.mark.parametrize("name", ["qwen3", "deepseek, which opens the part"])
def test_a_run_that_reads_thinking_parts_as_answers_says_so(name, tmp_path):
    member = MEMBERS[name]
    with pytest.warns(UserWarning, match="strip_thinking leaves them out"):
        rolled_out(member, thinker(member), tmp_path, strip_thinking=False)
    evaluator = scoring.evaluator(rows(member), equal, LENGTH, member.chat_options)
    with pytest.warns(UserWarning, match="strip_thinking leaves them out"):
        evaluator.evaluate(thinker(member), member.tokenizer())


def test_a_gold_answer_inside_a_thinking_part_is_refused():
    member = MEMBERS["deepseek, which opens the part"]
    findings = check_rows(encoder(member), rows(member), max_new_tokens=LENGTH, learns_answers=True)
    assert [(finding.kind, finding.hits_all) for finding in findings] == [("answer inside thinking", True)]
    assert check_rows(encoder(member), rows(member), max_new_tokens=LENGTH) == []


@pytest.mark.parametrize(
    ("teacher", "student", "text"),
    [
        ("deepseek, which opens the part", "qwen3", "<think>\na</think>\n\n12"),
        ("qwen3", "deepseek, which opens the part", "a</think>\n\n12"),
        ("deepseek, which opens the part", "special", "[THINK]\na[/THINK]\n\n12"),
    ],
)
def test_fine_tuning_on_a_thinking_teacher_learns_parts_as_the_students_template_has_them(teacher, student, text):
    member = MEMBERS[teacher]
    written = "a</think>\n\n12" if "opens" in teacher else "<think>\na</think>\n\n12"
    context: Any = SimpleNamespace(
        recipe=SimpleNamespace(skills={"all": SimpleNamespace(predicts="text")}),
        answer=lambda name, model, tokenizer, rows: [Answer(written, True)],
        encoder=lambda model, tokenizer: PromptEncoder(tokenizer, member.chat_options),
    )
    row = {"prompt": [{"role": "user", "content": "?"}], "skill": "all"}
    learnt = sft_stage._answers(context, "one", (None, member.tokenizer()), encoder(MEMBERS[student]), [row])
    assert learnt == [Answer(text, True)]


def test_markers_that_are_special_tokens_are_written_as_tokens():
    special = encoder(MEMBERS["special"])
    ids = special.encode_completion([{"role": "user", "content": "?"}], "[THINK]a[/THINK]12")
    assert special.tokenizer.convert_tokens_to_ids("[THINK]") in ids
    assert special.decode([ids]) == ["[THINK]a[/THINK]12"]


def test_what_all_skills_share_is_refused_in_one_of_them():
    tree: dict[str, Any] = {
        "name": "it",
        "prompts": {"style": "chat"},
        "stages": [{"name": "only", "kind": "sft", "student": "any", "steps": 1}],
    }
    for option in ({"strip_thinking": True}, {"chat_template_kwargs": {"enable_thinking": False}}):
        tree["skills"] = {"sum": {"file": "rows.jsonl", "prompts": {"style": "chat", **option}}}
        with pytest.raises(ValidationError, match="all skills share it; set it in the recipe's prompts") as error:
            Recipe.model_validate(tree)
        assert error.value.errors()[0]["ctx"]["error"].keys == ("skills", "sum", "prompts", next(iter(option)))
        Recipe.model_validate(tree | {"prompts": {"style": "chat", **option}})
    with pytest.raises(RecipeError, match="thinking_markers"):
        RLDConfig("out", strip_thinking=True, thinking_markers=["<think>"], use_cpu=True, bf16=False, report_to="none")


@pytest.mark.parametrize("strip_thinking", [True, False])
@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_5, which opens the part", "deepseek, which opens the part", "special"]
)
def test_a_reward_for_the_form_reads_whole_completions(name, strip_thinking, tmp_path):
    member, wholes, columns_of_others, paid = MEMBERS[name], [], [], []
    pair = encoder(member).thinking

    def form(completions: list[Any], whole_completions: list[Any], **_: Any) -> list[float]:
        wholes.extend(map(text_of, whole_completions))
        return [0.0] * len(completions)

    def trl_form(
        completions: list[Any], answer: list[str], whole_completions: list[Any], **columns: Any
    ) -> list[float]:
        batch = {"completions": completions, "answer": answer, "whole_completions": whole_completions}
        paid.extend(trl_rewards.bound(think_format_reward, {})(**batch, **columns))
        return [0.0] * len(completions)

    def other(completions: list[Any], **columns: Any) -> list[float]:
        columns_of_others.extend(columns)
        return [0.0] * len(completions)

    rolled_out(member, thinker(member), tmp_path, further=[form, trl_form, other], strip_thinking=strip_thinking)
    assert len(wholes) == 2 * len(rows(member))
    assert all(text.startswith(pair.opening) and pair.closing in text for text in wholes)
    assert set(paid) == {float(pair.opening == "<think>")}
    assert "whole_completions" not in columns_of_others
