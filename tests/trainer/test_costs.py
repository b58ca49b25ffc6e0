"""Operations, tokens and prompts are counted for the teacher and the part of the student's work that they are for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from rld.curricula.fixed import Uniform

import tests.support.gold_prompts_one_and_two as runs
import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.models.prompt_sharing import PromptSharingLayout
from rld.rollout.batch import gold_tokens
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.utils.flops import forward_flops
from tests.support.gold_prompts_one_and_two import Recorded


def count_reads(model: Any, read: list[int], *, learns: bool = False) -> None:
    """Note the tokens of each forward of a model's backbone, with a gradient or without one."""

    def note(_model: Any, _: Any, options: Any) -> None:
        if torch.is_grad_enabled() == learns:
            read.append(options["input_ids"].numel())

    model.model.register_forward_pre_hook(note, with_kwargs=True)


def test_operations_are_those_that_each_model_computed(tmp_path):
    """Of two teachers one is off; an update has two micro-batches, and half of the prompts have gold answers."""
    student, models = tiny.model(tie_word_embeddings=False), {"on": tiny.model(seed=1, width=48), "off": tiny.model(2)}
    teachers = [Teacher(model, name, tokenizer=tiny.tokenizer()) for name, model in models.items()]
    sizes = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "max_steps": 3}
    made = Recorded(
        student,
        tiny.letters,
        RLDConfig(**tiny.rld_options(tmp_path, **sizes, gold_weight=0.7, gold_share=0.5)),
        tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=teachers,
        controller=FixedController(balance_gradients=False, teachers={"on": 1.0, "off": 0.0}),
        curriculum=Uniform({"first": 1, "second": 1}),
    )
    read, learnt, gold = {name: list[int]() for name in models}, list[int](), list[float]()
    for name, model in models.items():
        count_reads(model, read[name])
    count_reads(student, learnt, learns=True)
    count = made._joint_loss.count

    def counted(batch: Any, num_computed: int, num_padding: int) -> None:
        rows: dict[bool, set[str]] = {True: set(), False: set()}
        sizes = {True: 0, False: 0}
        for i, is_gold in enumerate(batch["is_gold"].tolist()):
            rows[is_gold].add(str(batch["prompt_ids"][i].tolist()))
            sizes[is_gold] += int(batch["completion_mask"][i].sum()) - 1
        sizes[True] += 3 * len(rows[True] - rows[False])  # all prompts have three tokens
        gold.append(round(num_computed * sizes[True] / (num_computed - num_padding)))
        count(batch, num_computed, num_padding)

    made._joint_loss.count = counted  # type: ignore[method-assign]
    made.train()
    parts = made.flop_meter.parts
    expected = {name: 2 * model.num_parameters() * sum(read[name]) for name, model in models.items()}
    assert parts["teachers"] == expected
    assert expected["on"] > expected["off"] > 0, "one that is off is measured now and then"
    num_all, num_gold, size = sum(learnt), sum(gold), student.num_parameters()
    assert len(gold) == 6 and 0 < num_gold < num_all
    sampled = sum(made.flop_meter.accounts[name] for name in ("generation", "gate", "teachers"))
    assert made.flop_meter.by_source == (sampled + 6 * size * (num_all - num_gold), 6 * size * num_gold)
    assert parts["student"] == {"updates": 6 * size * (num_all - num_gold), "gold": 6 * size * num_gold, "probes": 0}
    num_groups = sum(8 - len(record.gold_groups) for record in made.records)
    assert made.totals.prompts_by_teacher == {"on": num_groups, "off": 0}


def test_old_and_reference_log_probabilities_of_gold_answers_are_no_cost_of_completions(tmp_path):
    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    plain, made = runs.trainer(tmp_path), runs.trainer(tmp_path, beta=0.1, num_iterations=2, peft_config=adapter)
    read, reads, log_probabilities = list[int](), list[int](), made._rollout_logprobs
    count_reads(made._student, read)

    def counted(*args: Any, **options: Any) -> Any:
        read.clear()
        result = log_probabilities(*args, **options)
        reads.append(sum(read))
        return result

    made._rollout_logprobs = counted  # type: ignore[method-assign]
    batches = [first_rollout(trainer) for trainer in (plain, made)]
    (record,), batch = made.records, batches[1]
    assert torch.equal(batches[0]["completion_ids"], batch["completion_ids"]), "an adapter changes nothing yet"
    num_read = reads[1]  # for the reference's; the first forward, for old ones, also tries whether rows share prompts
    assert [count for count, _ in record.reads] == [num_read] * 2
    is_gold_B = batch["is_gold"]
    by_gold, by_others = ({str(ids) for ids in batch["prompt_ids"][rows].tolist()} for rows in (is_gold_B, ~is_gold_B))
    num_gold = int((batch["completion_mask"].sum(1) - 1)[is_gold_B].sum()) + 3 * len(by_gold - by_others)
    num_gold = 2 * round(num_gold * num_read / (num_read - record.reads[0][1]))
    before, after = (
        [flops / forward_flops(trainer._num_parameters, 1) for flops in trainer.flop_meter.by_source]
        for trainer in (plain, made)
    )
    assert before[1] == 0 and after[1] == num_gold > 0
    assert after[0] - before[0] == 2 * num_read - num_gold > 0


def first_rollout(trainer: Any) -> Any:
    """Sample a rollout of four completions of each prompt, after the same random numbers."""
    torch.manual_seed(0)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions([trainer.stream.dataset[i // 4] for i in range(32)])


@pytest.mark.parametrize("is_shared", [True, False])
def test_gold_answers_cost_the_tokens_that_the_student_would_not_read_without_them(is_shared):
    """Four completions of one prompt, and two gold answers of two others; prompts that are shared are read once."""
    layout = replace(PromptSharingLayout.of(tiny.model(), "the student"), shared=is_shared)
    prompts_BP = torch.tensor([2, 2, 2, 2, 3, 4])[:, None].expand(6, 10)
    ids_BS = torch.cat([prompts_BP, torch.full((6, 5), 6)], dim=1)
    batch: Any = {
        "is_gold": torch.arange(6) >= 4,
        "prompt_numbers": prompts_BP[:, 0],
        "prompt_mask": torch.ones(6, 10),
        "completion_mask": torch.ones(6, 5),
    }
    rows = [layout.rows(ids, torch.ones_like(ids), 5) for ids in (ids_BS, ids_BS[:4])]
    num_read, num_without = (one.num_computed - one.num_padding for one in rows)
    assert gold_tokens(batch, num_read, 0) == num_read - num_without == 28
    assert gold_tokens(batch, 2 * num_read, num_read) == 56, "padding is shared in proportion"
