"""The parts of the code that make token ids of prompts and gold answers, or text of token ids: `READERS`.

Each is a function that takes a member of the fleet, lets a part of the code read or write the member's rows, and
asserts that this is what `fleet.expected` says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from rld.rewards import text_of
from rld.rewards.answers import exact_match
from rld.rewards.teachers import judge, likelihood
from torch.nn.utils.rnn import pad_sequence
from trl import SFTTrainer

from rld.models.prompting import PromptEncoder
from rld.pipeline import sft as sft_stage
from rld.pipeline.run import RunContext
from rld.recipe.reading import read_recipe
from rld.rollout.gold import gold_completions
from rld.teachers.byte_alignment import END
from rld.teachers.teacher import Teacher
from rld.teachers.translation import CompletionTranslator, StudentVocabulary
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.support import scoring
from tests.support.fleet import FLEET, Member, PerfectModel, expected, expected_rows, rows

LENGTH = 64
"""Tokens that an answer may have."""

QUESTION = "Is {completion} right for {question}? Answer with Yes or No."


def require_same_texts(member: Member, texts: list[str]) -> None:
    answers = [row["answer"] for row in rows(member)]
    assert len(texts) == len(answers)
    assert [(a, b) for a, b in zip(texts, answers, strict=True) if not member.same_text(a, b)] == []


def encoder(member: Member) -> PromptEncoder:
    """Return the encoder of a member's model."""
    tokenizer = member.tokenizer()
    ends: Any = tokenizer.convert_tokens_to_ids(list(member.ends))
    return PromptEncoder(tokenizer, member.chat_options, model_ends=ends)


# -- recipes ----------------------------------------------------------------------------------------------------------


class _Built(Exception):
    """An SFT trainer has been built."""


def run_context(member: Member, folder: Path) -> RunContext:
    """Return a run of a recipe whose models, rows and held-out rows are those of a member."""
    style = {"style": "chat", "chat_template_kwargs": dict(member.chat_options)} if member.chat else {}
    recipe = {
        "name": "fleet",
        "max_new_tokens": LENGTH,
        "prompts": style,
        "skills": {"all": {"file": "rows.jsonl", "held_out": 1}},
        "rewards": [{"use": "answers:exact_match"}],
        "stages": [
            {"name": "tuned", "kind": "sft", "student": "./student", "steps": 1, "batch": 8},
            {"name": "distilled", "kind": "distill", "student": "tuned", "steps": 1},
        ],
    }
    member.model().save_pretrained(folder / "student")
    member.tokenizer().save_pretrained(folder / "student")
    (folder / "rows.jsonl").write_text('{"question": "?", "answer": "!"}\n{"question": "??", "answer": "!"}\n')
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    context = RunContext(read_recipe(folder / "recipe.yaml"), folder / "recipe.yaml", folder / "run", False)
    context.skill_rows = {"all": SimpleNamespace(is_text=False, rows=lambda count, seed, gold: rows(member))}
    context.models.load = lambda reference: (member.model(), member.tokenizer())  # type: ignore[method-assign]
    return context


def sft(member: Member, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens that a stage `sft` learns are those of the gold answers, behind the prompts of the rollout.

    What a template puts behind the token that ends an answer is never generated, and may be learnt.
    """
    built = []

    class Trainer(SFTTrainer):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            built.append(self.train_dataset)
            raise _Built

    monkeypatch.setattr(sft_stage, "SFTTrainer", Trainer)
    context = run_context(member, folder)
    context.evaluator = replace(context.evaluator, rows=[])
    with pytest.raises(_Built):
        sft_stage.run(context, context.recipe.stages[0])
    learnt = []
    for row in built[0]:
        size = sum(label == -100 for label in row["labels"])
        learnt.append((row["input_ids"][:size], row["input_ids"][size:]))
    wanted = sorted(expected_rows(member))
    learnt = [(prompt_ids, ids[: len(w)]) for (prompt_ids, ids), (_, w) in zip(sorted(learnt), wanted, strict=True)]
    assert learnt == wanted


def held_out(member: Member, folder: Path) -> None:
    """Held-out scoring reads the prompts of the rollout, and the texts that it scores are the answers."""
    model = member.model()
    answers = run_context(member, folder).texts.answer(model, member.tokenizer(), rows(member))
    assert sorted(model.prompts) == sorted(prompt_ids for prompt_ids, _ in expected_rows(member))
    assert all(answer.is_complete for answer in answers)
    require_same_texts(member, [answer.text for answer in answers])


# -- rollouts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rollout:
    """What was read and written when all rows of a member were rolled out once, with a teacher behind a gate."""

    student: PerfectModel
    teacher: PerfectModel
    completions: list[str]
    """The completions that the reward got."""
    opened: list[bool]
    """Whether the gate let the teacher teach on each row."""


@functools.cache
def rollout_of(name: str, folder: Path) -> Rollout:
    """Roll out the rows of a member of the fleet."""
    member, rewarded = FLEET[name], list[str]()
    student, teacher = member.model(), member.model(1)

    def same_text(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [text_of(completion) for completion in completions]
        rewarded.extend(texts)
        return [float(member.same_text(*pair)) for pair in zip(texts, answer, strict=True)]

    num_rows = len(rows(member))
    args = RLDConfig(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=2 * num_rows,
        num_generations=2,
        max_completion_length=LENGTH,
        gate="per_prompt",
        chat_template_kwargs=dict(member.chat_options),
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = RLDTrainer(
        student,
        same_text,
        args,
        Dataset.from_list(rows(member)),
        processing_class=member.tokenizer(),
        teachers=[Teacher(teacher, "teacher", tokenizer=member.tokenizer())],
    )
    output = trainer._generate_and_score_completions([row for row in rows(member) for _ in range(2)])
    opened = (output["teacher_weights"][::2, 0] > 0).tolist()
    return Rollout(student, teacher, rewarded[: 2 * num_rows : 2], opened)


def rollout(member: Member, folder: Path) -> None:
    """A rollout reads the expected prompts, and the reward gets the answers' text."""
    rolled_out = rollout_of(member.name, folder)
    assert rolled_out.student.prompts[::2] == [prompt_ids for prompt_ids, _ in expected_rows(member)]
    require_same_texts(member, rolled_out.completions)


def gate(member: Member, folder: Path) -> None:
    """A teacher behind the gate reads the expected prompts, and its answers open the gate."""
    rolled_out = rollout_of(member.name, folder)
    expected = [prompt_ids for prompt_ids, _ in expected_rows(member)]
    read = rolled_out.teacher.prompts  # some again, with the first tokens of an answer
    assert all(any(ids[: len(prompt_ids)] == prompt_ids for prompt_ids in expected) for ids in read)
    assert all(prompt_ids in read for prompt_ids in expected)
    assert all(rolled_out.opened)


def gold(member: Member) -> None:
    """Gold completions are the answers as the tokenizer spells them behind the prompt, and what ends an answer."""
    completions = gold_completions(rows(member), encoder(member), LENGTH)
    assert completions == [completion_ids for _, completion_ids in expected_rows(member)]


def text(member: Member) -> None:
    """The text of a gold completion is the gold answer."""
    completions = [completion_ids for _, completion_ids in expected_rows(member)]
    require_same_texts(member, PromptEncoder(member.tokenizer()).decode(completions))


def score(member: Member) -> None:
    """Held-out scores and the exact reward pay in full for the text of every gold completion."""
    texts = PromptEncoder(member.tokenizer()).decode([completion_ids for _, completion_ids in expected_rows(member)])
    answers = [row["answer"] for row in rows(member)]
    assert exact_match(texts, answers) == [1.0] * len(texts)
    assert scoring.shares(rows(member), texts, exact_match, member.tokenizer()) == {"all": 1.0}


# -- aligned teachers -------------------------------------------------------------------------------------------------


def translator(member: Member, student: Member) -> CompletionTranslator:
    """Return what puts completions of `student` into the tokens of a teacher, `member`."""
    teacher = Teacher(member.model(), "teacher", tokenizer=member.tokenizer(), align="vocabulary")
    of_student = replace(encoder(student), chat_template_kwargs=member.chat_options)
    return CompletionTranslator(
        "teacher", teacher.prompt_encoder(of_student), student=vocabulary_of(student), is_chat=member.chat
    )


def vocabulary_of(student: Member) -> StudentVocabulary:
    return StudentVocabulary(encoder(student), student.chat)


def aligned_teacher(member: Member) -> None:
    """An aligned teacher reads a student's rollout as it reads its own prompts and answers."""
    student = FLEET["turn_end" if member.chat else "byte_level"]
    completions = [torch.tensor(expected(student, row)[1]) for row in rows(student)]
    ids_BT = pad_sequence(completions, batch_first=True)
    mask_BT = pad_sequence([torch.ones_like(ids) for ids in completions], batch_first=True)
    prompts = [row["prompt"] for row in rows(member)]
    translation = translator(member, student).translate(prompts, ids_BT, mask_BT)
    read = [ids[mask.bool()].tolist() for ids, mask in zip(translation.ids_BS, translation.attention_BS, strict=True)]
    assert read == [prompt_ids + completion_ids for prompt_ids, completion_ids in expected_rows(member)]


def aligned_student(member: Member) -> None:
    """The bytes of a student's gold completion, as an aligned teacher gets them, are the answer and an end."""
    vocabulary, wanted, spelt = vocabulary_of(member), [], []
    for row, (_, ids) in zip(rows(member), expected_rows(member), strict=True):
        data = b"".join(vocabulary.spell(ids, [1] * len(ids)))
        spelt.append((data.removesuffix(END).decode(), data[-1:]))
        wanted.append((row["answer"], END))
    assert [data[-1:] for _, data in spelt] == [END] * len(spelt)
    require_same_texts(member, [answer for answer, _ in spelt])


def vocabulary(member: Member) -> None:
    """A character of a student's is paired with the token that the teacher's tokenizer makes of it."""
    student = FLEET["byte_level"]
    pairs = dict(zip(*(ids.tolist() for ids in translator(member, student).vocabulary), strict=True))
    characters = "0123456789" + "aeiou" + "+-.,!?"
    ours: Any = student.tokenizer().convert_tokens_to_ids(list(characters))
    paired = member.tokenizer().convert_ids_to_tokens([pairs[i] for i in ours])
    assert "".join(paired) == characters


# -- rewards by a model -----------------------------------------------------------------------------------------------


def read_by(model: PerfectModel, use: Callable[[], Any]) -> list[list[int]]:
    """Return the token ids that a model's forwards read while `use` runs, without padding."""
    read: list[list[int]] = []

    def note(_module: Any, _args: Any, options: dict[str, Any]) -> None:
        pairs = zip(options["input_ids"], options["attention_mask"], strict=True)
        read.extend(ids[mask.bool()].tolist() for ids, mask in pairs)

    handle = model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    use()
    handle.remove()
    return read


def of_rows(member: Member) -> dict[str, Any]:
    """Return the prompts, gold answers as completions and answers of all rows, as TRL hands them to a reward."""
    answers = [row["answer"] for row in rows(member)]
    return {
        "prompts": [row["prompt"] for row in rows(member)],
        "completions": [[{"role": "assistant", "content": x}] if member.chat else x for x in answers],
        "answer": answers,
    }


def likelihood_reward(member: Member) -> None:
    """The reward by likelihood reads prompt and completion as the rollout does; it leaves out what ends an answer.

    Where a token reaches over the border of prompt and answer, it reads that token.
    """
    model, tokenizer = member.model(), member.tokenizer()
    wanted = [prompt_ids + completion_ids[:-1] for prompt_ids, completion_ids in expected_rows(member)]
    options = {"model": model, "tokenizer": tokenizer, "chat_template_kwargs": member.chat_options}
    if "merges" in member.traits:
        wanted = [tokenizer(row["prompt"] + row["answer"])["input_ids"] for row in rows(member)]
    assert read_by(model, lambda: likelihood(**of_rows(member), **options)) == wanted


def judge_reward(member: Member) -> None:
    """A judge reads what it is asked as a prompt of the rollout."""
    model, questions = member.model(), [f"number {i}" for i in range(len(rows(member)))]
    asked = [
        QUESTION.format(completion=row["answer"], question=question)
        for row, question in zip(rows(member), questions, strict=True)
    ]
    prompts = [[{"role": "user", "content": text}] if member.chat else text for text in asked]
    wanted = [expected(member, {"prompt": prompt, "answer": ""})[0] for prompt in prompts]
    options = {"model": model, "tokenizer": member.tokenizer(), "chat_template_kwargs": member.chat_options}
    assert read_by(model, lambda: judge(**of_rows(member), question=questions, template=QUESTION, **options)) == wanted


# -- all of them ------------------------------------------------------------------------------------------------------

READERS: dict[str, Callable[..., None]] = {
    "sft": sft,
    "held_out": held_out,
    "rollout": rollout,
    "gate": gate,
    "gold": gold,
    "text": text,
    "score": score,
    "aligned_teacher": aligned_teacher,
    "aligned_student": aligned_student,
    "vocabulary": vocabulary,
    "likelihood": likelihood_reward,
    "judge": judge_reward,
}
