"""Training on distributions over labels: the loss, its update, teachers of other tokenizers, the gate, calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

import tests.support.labels_one_and_two as runs
import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.errors import DataError, RecipeError, TeacherError
from rld.models.prompting import PromptEncoder
from rld.rollout.label_gate import LabelGate
from rld.rollout.label_scores import predicted_labels
from rld.teachers.self_teacher import SelfTeacher
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.utils.flops import forward_flops
from tests.support.fleet import FLEET
from tests.support.label_reference import label_scores
from tests.trainer.test_processes import launch


def rollout(made: RLDTrainer, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A rollout of one prompt per row, each with all labels."""
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    rows = [made.train_dataset[i] for i in range(8)] if rows is None else rows
    return made._generate_and_score_completions([row for row in rows for _ in range(made.num_generations)])


def mean_scores(model: Any, prompt: str, words: list[str], synonyms: list[list[str]] | None) -> Tensor:
    """The mean over the words of each label and its synonyms, `[L]`."""
    texts = [[own, *more] for own, more in zip(words, synonyms or [[]] * len(words), strict=True)]
    return torch.stack([label_scores(model, tiny.encoder(), prompt, some).mean() for some in texts])


SYNONYMS = {"first": [["cde", "e"], [], ["ff"]], "second": [[], ["b"]]}


@pytest.mark.parametrize(("synonyms", "size"), [({}, 24), (SYNONYMS, 48)])
def test_the_update_is_that_of_the_formula_in_float64(tmp_path, synonyms, size):
    """Teachers are asked for the synonyms of a label too, and the student is not."""
    made = runs.trainer(tmp_path, response=0.8, synonyms=synonyms, per_device_train_batch_size=size)
    made.model.double()
    batch = rollout(made)
    made._compute_loss(made.model, batch).backward()
    gradient = torch.cat([p.grad.flatten() for p in made.model.parameters()])
    plain, one, two = tiny.model().double(), tiny.model(seed=1, width=48), tiny.model(seed=2)
    response, gold, num_gold, encoder = 0.0, 0.0, 0, tiny.encoder()
    for i in range(8):
        row = made.train_dataset[i]
        words = runs.LABELS[row["skill"]]
        log_s_L = label_scores(plain, encoder, row["prompt"], words).log_softmax(-1)
        more = synonyms.get(row["skill"], [])
        p_L = mean_scores(one, row["prompt"], words, more).softmax(-1)
        if row["skill"] == "first":
            p_L = (p_L + mean_scores(two, row["prompt"], words, more).softmax(-1)) / 2
        p_L = p_L.detach()
        response = response + (p_L * (p_L.log() - log_s_L)).sum()
        if row["answer"]:
            num_gold += 1
            gold = gold - log_s_L[words.index(row["answer"])]
    (0.8 * response / 8 + 0.7 * gold / num_gold).backward()
    expected = torch.cat([p.grad.flatten() for p in plain.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_accumulation_does_not_change_the_update(tmp_path):
    calibrated = {"label_calibration": "prior_matching"}
    whole, quarters = (runs.trained(tmp_path / str(parts), num_parts=parts, **calibrated) for parts in (1, 4))
    torch.testing.assert_close(whole, quarters, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(whole, runs.trained(tmp_path / "without", gold_weight=0.0), atol=1e-4)


def test_a_rollout_that_is_learnt_from_twice_is_counted_once(tmp_path):
    counts = []
    for num_iterations in (1, 2):
        options = {"num_iterations": num_iterations, "max_steps": 2 * num_iterations, "learning_rate": 1e-12}
        made = runs.trainer(tmp_path / str(num_iterations), **options)
        made.runtime.controller = FixedController(decide_every=100)
        made.train()
        window = made.runtime._window
        counts.append((made.totals.rollouts, window.gate.prompts_SK.tolist(), window.attempts.attempts_S.tolist()))
    assert counts[0] == counts[1]
    assert counts[0][0] == 2 and min(counts[0][2]) > 0


def test_with_a_gate_a_row_counts_as_long_as_its_label_was_not_learnt(tmp_path):
    """What a student says of a label that it was taught would switch its teachers off."""
    options: dict[str, Any] = {"gate": "per_prompt", "save_strategy": "steps", "save_steps": 4}
    made, rest = (runs.trainer(tmp_path, max_steps=steps, **options) for steps in (4, 8))
    for trainer in (made, rest):
        trainer.runtime.controller = FixedController(decide_every=100)
    made.train()
    window = made.runtime._window
    known = {(row["skill"], row["prompt"]) for row in runs.rows() if row["answer"]}
    assert window.attempts.attempts_S.sum() == len(known)  # 4 updates of 8 prompts read 16 rows twice
    assert window.gate.prompts_SK[:, 0].sum() == len(known)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert rest.runtime._window.attempts.attempts_S.sum() == len(known)


def test_one_process_and_two_give_the_same_update(tmp_path):
    launch(tmp_path, 2, module="labels_one_and_two")
    one = runs.trained(tmp_path / "one", gate="per_prompt", label_calibration="prior_matching")
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), one, rtol=1e-4, atol=1e-6)


def test_the_student_learns_the_distribution_of_its_teacher_and_what_it_predicts_is_counted(tmp_path):
    made = runs.trainer(tmp_path, max_steps=60, optim="adamw_torch", gold_weight=0.0)
    made.train()
    logs = [entry for entry in made.state.log_history if "loss/response" in entry]
    assert logs[-1]["loss/response"] < 0.05 * logs[0]["loss/response"]
    progress = [entry["progress/first"] for entry in logs if "progress/first" in entry]
    assert progress and all(0 <= value <= 1 for value in progress)
    assert logs[-1]["tokens/generated"] == 0


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    options: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 12}  # within one epoch
    options |= {
        "gate": "per_prompt",
        "label_calibration": "prior_matching",
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
    }
    whole = runs.trainer(tmp_path, **options)
    whole.train()
    rest = runs.trainer(tmp_path, **options)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(whole.gate._predictions_KSL, rest.gate._predictions_KSL)


# -- teachers of other tokenizers --------------------------------------------------------------------------------------

WORDS_OF_TWO = ["a", "bcd"]
OWN = "e{question}f="
WORDS = [" Yes", " No", " the answer"]


def other_tokenizer_trainer(folder: Any, align: str, words: list[str], **options: Any) -> RLDTrainer:
    student, teacher = FLEET["byte_level"], FLEET["sentencepiece_bpe"]
    prompts = [f"Question: Is {i} even? Answer:" for i in range(4)]
    args = {"labels": {"all": words}, "per_device_train_batch_size": 4 * len(words), "max_completion_length": 16}
    return RLDTrainer(
        student.model(),
        args=RLDConfig(**tiny.rld_options(folder, **(args | options))),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=student.tokenizer(),
        teachers=[Teacher(teacher.model(seed=3), name="other", tokenizer=teacher.tokenizer(), align=align)],
    )


@pytest.mark.parametrize("align", ["likelihood", "vocabulary"])
@pytest.mark.parametrize("words", [WORDS, [" Answer", " Answer with No"]], ids=["plain", "one begins another"])
def test_a_teacher_with_another_tokenizer_has_its_own_distribution(tmp_path, align, words):
    made = other_tokenizer_trainer(tmp_path, align, words)
    batch = rollout(made, [made.train_dataset[i] for i in range(4)])
    member = FLEET["sentencepiece_bpe"]
    encoder = PromptEncoder(member.tokenizer())
    log_p_PL = batch["teacher_label_scores"].view(4, len(words)).log_softmax(-1).double()
    for i in range(4):
        prompt = made.train_dataset[i]["prompt"]
        scores_L = label_scores(member.model(seed=3), encoder, prompt, words, with_end=len(words) == 2)
        torch.testing.assert_close(log_p_PL[i], scores_L.log_softmax(-1), rtol=1e-4, atol=1e-5)
    made._compute_loss(made.model, batch).backward()


def test_a_teacher_that_cannot_say_a_label_is_named(tmp_path):
    rows = Dataset.from_list([{"prompt": "ab="}] * 4)
    args = RLDConfig(**tiny.rld_options(tmp_path, labels={"all": ["a", "j"]}, per_device_train_batch_size=8))
    teacher = Teacher(tiny.model(seed=1, vocabulary=14), name="small", tokenizer=tiny.tokenizer())
    made = RLDTrainer(tiny.model(), None, args, rows, processing_class=tiny.tokenizer(), teachers=[teacher])
    with pytest.raises(Exception, match="teacher 'small': it has no probability of the label 'j' as a whole"):
        rollout(made, [rows[0]])


# -- the gate ----------------------------------------------------------------------------------------------------------


class Oracle:
    """Replaces a teacher's scores by those of a script: the label that each prompt's first letter says."""

    def __init__(self, made: RLDTrainer) -> None:
        scoring = made._teacher_scoring
        add = scoring.label_scores.add

        def add_scripted(batch: Any, record: Any, needed_BK: Tensor) -> None:
            add(batch, record, needed_BK)
            for b, row in enumerate(record.rows):
                label = "abc".index(row["prompt"][0])
                batch["teacher_label_scores"][b] = 0.0 if int(record.label_ids_B[b]) == label else -5.0

        scoring.label_scores.add = add_scripted


def gated(folder: Any) -> RLDTrainer:
    args = RLDConfig(
        **tiny.options(folder, labels={"all": ["a", "b", "c"]}, per_device_train_batch_size=24, save_strategy="no")
    )
    made = RLDTrainer(
        tiny.model(),
        None,
        args,
        Dataset.from_list([{"prompt": "ab=", "answer": ""}] * 8),
        processing_class=tiny.tokenizer(),
        teachers=[Teacher(tiny.model(seed=1), name="one", tokenizer=tiny.tokenizer())],
    )
    Oracle(made)
    return made


def weights(batch: dict[str, Any]) -> list[float]:
    return batch["teacher_weights"][::3, 0].tolist()


def test_the_gate_opens_by_the_gold_label_or_by_how_often_the_prediction_was_right(tmp_path):
    made = gated(tmp_path)
    row = {"prompt": "a:=", "answer": ""}
    gold = [row | {"answer": "a"}, row | {"answer": "b"}, row | {"prompt": "b:=", "answer": "c"}, row]
    assert weights(rollout(made, gold)) == [1, 0, 0, 1]  # `a` was right on one of two
    unknown = [row, row | {"prompt": "b:="}, row | {"prompt": "c:="}]
    wrong = [row | {"prompt": f"b{letter}:=", "answer": "c"} for letter in "abcdefgh"]
    for _ in range(2):  # a row counts once
        rollout(made, wrong[:7])
    assert weights(rollout(made, unknown)) == [1, 1, 1]  # 8 rows, all wrong, are not enough
    rollout(made, wrong[7:])
    assert weights(rollout(made, unknown)) == [1, 0, 1]  # `c` was never predicted
    rollout(made, [row | {"prompt": "bi:=", "answer": "b"}])
    assert weights(rollout(made, unknown)) == [1, 1, 1]
    path = tmp_path / "gate.json"
    made.gate.save(path)
    other = LabelGate(made.teachers, {"all": ["a", "b", "c"]}, made.accelerator)
    other.load(path)
    assert torch.equal(other._predictions_KSL, made.gate._predictions_KSL)
    assert torch.equal(other._correct_KSL, made.gate._correct_KSL)


def test_a_teacher_that_has_changed_is_counted_anew_and_no_other_one(tmp_path):
    """What the student has learnt, it has learnt; gold rows that a resumed gate has counted are not counted again."""
    made = runs.trainer(tmp_path, gate="per_prompt")
    rows = [row | {"skill": "first", "answer": runs.LABELS["first"][0]} for row in made.train_dataset][:4]
    assert rollout(made, rows)["is_first_visit"].all()
    first = made.gate._predictions_KSL.sum((1, 2)).tolist()
    assert first[0] == first[1] == len({row["prompt"] for row in rows})
    made.gate.forget(0)
    made.gate.save(tmp_path / "gate.json")
    made.gate.load(tmp_path / "gate.json")
    for _ in range(2):
        assert not rollout(made, rows)["is_first_visit"].any()
        assert made.gate._predictions_KSL.sum((1, 2)).tolist() == first


def test_teachers_share_the_weight_by_the_squared_precision_of_the_label_that_each_predicts(tmp_path):
    made = runs.trainer(tmp_path, gate="per_prompt")
    words = runs.LABELS["first"]
    rows = [row | {"skill": "first"} for row in made.train_dataset]
    unknown = rollout(made, [row | {"answer": ""} for row in rows])
    predictions_BK = predicted_labels(unknown["teacher_label_scores"], unknown)[::3]
    odds = [{label: [0, 0] for label in range(3)} for _ in range(2)]
    prompts = {str(row["prompt"]): i for i, row in enumerate(rows)}
    for i in prompts.values():
        rollout(made, [rows[i] | {"answer": words[i % 3]}])
        for k in range(2):
            counts = odds[k][int(predictions_BK[i, k])]
            counts[0], counts[1] = counts[0] + (predictions_BK[i, k] == i % 3).item(), counts[1] + 1
    weights_BK = rollout(made, [row | {"answer": ""} for row in rows])["teacher_weights"][::3]
    for i, predicted in enumerate(predictions_BK.tolist()):
        right = [odds[k][label] for k, label in enumerate(predicted)]
        one, two = (((r + 1) / (n + 2)) ** 2 for r, n in right)
        assert weights_BK[i].tolist() == pytest.approx([one / (one + two), two / (one + two)], rel=1e-5)
    assert len({tuple(row) for row in weights_BK.tolist()}) > 1


def test_a_prompt_on_which_no_teacher_may_teach_adds_nothing(tmp_path):
    made = gated(tmp_path)
    row = {"prompt": "a:=", "answer": "b"}
    batch = rollout(made, [row])
    assert batch["num_taught"] == 0
    assert made._compute_loss(made.model, batch) == 0


def test_the_best_teacher_is_that_with_the_greatest_probability_of_the_gold_label(tmp_path):
    made = runs.trainer(tmp_path, combine_teachers="best_of", gate="off")
    words, encoder = runs.LABELS["first"], tiny.encoder()
    gold = [made.train_dataset[i] | {"skill": "first", "answer": text} for i in range(3) for text in words]
    batch = rollout(made, gold)
    models, best = (tiny.model(seed=1, width=48), tiny.model(seed=2)), []
    for row in gold:
        log_p = [label_scores(model, encoder, row["prompt"], words).log_softmax(-1) for model in models]
        best.append(int(torch.stack(log_p)[:, words.index(row["answer"])].argmax()))
    assert set(best) == {0, 1}
    assert batch["teacher_weights"][::3].tolist() == [[float(k == i) for k in range(2)] for i in best]
    unknown = rollout(made, [row | {"answer": ""} for row in gold])
    assert set(unknown["teacher_weights"].flatten().tolist()) == {0.5}


# -- calibration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calibration", "synonyms"), [("length", None), ("content_free", None), ("content_free", [["e"], [], ["dd", "fe"]])]
)
def test_calibration_corrects_the_teacher(tmp_path, calibration, synonyms):
    words, blank = ["a", "bcd", "cd"], ["::=", "=:="]
    num_words = 6 if synonyms else 3
    args = RLDConfig(
        **tiny.rld_options(
            tmp_path,
            labels={"all": words},
            synonyms={"all": synonyms} if synonyms else None,
            per_device_train_batch_size=2 * num_words,
            label_calibration=calibration,
            content_free_prompts={"all": blank},
        )
    )
    teacher = tiny.model(seed=1, width=48)
    made = RLDTrainer(
        tiny.model(),
        None,
        args,
        Dataset.from_list([{"prompt": "ab="}, {"prompt": "cd="}]),
        processing_class=tiny.tokenizer(),
        teachers=[Teacher(teacher, name="one", tokenizer=tiny.tokenizer())],
    )
    read = list[int]()
    score = made.ensemble.score

    def counted(*args, **options):
        counts = score(*args, **options)
        read.extend(count.computed for count in counts)
        return counts

    made.ensemble.score = counted
    batch = rollout(made, [made.train_dataset[i] for i in range(2)])
    assert len(read) == (2 if calibration == "content_free" else 1)  # the prompts without content are read once
    assert made.flop_meter.accounts["teachers"] == forward_flops(teacher.num_parameters(), sum(read))
    log_p_PL = batch["teacher_label_scores"].view(2, num_words)[:, :3].log_softmax(-1).double()
    prior_L = sum(mean_scores(teacher, prompt, words, synonyms).softmax(-1) for prompt in blank) / 2
    for i in range(2):
        scores_L = mean_scores(teacher, made.train_dataset[i]["prompt"], words, synonyms)
        if calibration == "length":
            expected_L = (scores_L * 2 / torch.tensor([1, 3, 2])).log_softmax(-1)
        else:
            expected_L = (scores_L.softmax(-1) / prior_L).log().log_softmax(-1)
        torch.testing.assert_close(log_p_PL[i], expected_L, rtol=1e-4, atol=1e-5)


def test_prior_matching_makes_the_mean_of_the_rows_so_far_uniform(tmp_path):
    made = runs.trainer(tmp_path, label_calibration="prior_matching", gate="off")
    one, encoder = tiny.model(seed=1, width=48), tiny.encoder()
    so_far = {skill: torch.full((len(words), len(words)), 1 / len(words)) for skill, words in runs.LABELS.items()}
    for part in (range(8), range(8, 16)):
        rows = [made.train_dataset[i] for i in part]
        scores_BK = rollout(made, rows)["teacher_label_scores"]
        raw = [label_scores(one, encoder, row["prompt"], runs.LABELS[row["skill"]]).log_softmax(-1) for row in rows]
        for skill, words in runs.LABELS.items():
            at = [i for i, row in enumerate(rows) if row["skill"] == skill]
            corrected_PL = torch.stack([scores_BK[3 * i : 3 * i + len(words), 0] for i in at]).log_softmax(-1)
            log_p_PL = torch.stack([raw[i] for i in at]).log_softmax(-1)
            prior_PL = (log_p_PL - corrected_PL).softmax(-1)  # the same on every row
            torch.testing.assert_close(prior_PL, prior_PL[:1].expand_as(prior_PL), rtol=1e-3, atol=1e-5)
            so_far[skill] = torch.cat([so_far[skill], log_p_PL.exp()])
            even_PL = so_far[skill] / prior_PL[0]
            even_L = (even_PL / even_PL.sum(1, keepdim=True)).mean(0)
            torch.testing.assert_close(even_L, torch.full_like(even_L, 1 / len(words)), rtol=1e-3, atol=1e-4)
    priors = made._teacher_scoring.label_scores.priors
    assert min(priors.log_prior("first", k).std() for k in range(2)) > 0.1
    for observer in made.ensemble.observers:
        observer(0)
    assert priors.log_prior("first", 0).std() == pytest.approx(0, abs=1e-6) and priors.log_prior("first", 1).std() > 0.1


def test_prompts_without_content_are_read_in_the_precision_of_the_rollout(tmp_path):
    blank = {skill: ["::="] for skill in runs.LABELS}
    made = runs.trainer(tmp_path, label_calibration="content_free", content_free_prompts=blank, bf16=True)
    score, is_autocast = made.ensemble.score, list[bool]()

    def observed(*args: Any, **options: Any) -> Any:
        is_autocast.append(torch.is_autocast_enabled("cpu"))
        return score(*args, **options)

    made.ensemble.score = observed
    rollout(made)
    assert is_autocast == [True] * 4  # the rollout, and three pairs of a skill and a teacher


# -- a teacher's own prompt --------------------------------------------------------------------------------------------


def with_own_prompt(folder: Path, teacher: Teacher | None = None, **options: Any) -> RLDTrainer:
    rows = Dataset.from_list([{"prompt": "ab="}, {"prompt": "cd="}])
    sizes = {"labels": {"all": WORDS_OF_TWO}, "per_device_train_batch_size": 4}
    return RLDTrainer(
        tiny.model(),
        None,
        RLDConfig(**tiny.rld_options(folder, **sizes, **options)),
        rows,
        processing_class=tiny.tokenizer(),
        teachers=[teacher or Teacher(tiny.model(seed=1), name="one", tokenizer=tiny.tokenizer(), prompt=OWN)],
    )


@pytest.mark.parametrize(("teacher", "seed"), [(None, 1), (SelfTeacher(OWN), 0)])
def test_a_teacher_scores_the_labels_behind_its_own_prompt(tmp_path, teacher, seed):
    made = with_own_prompt(tmp_path, teacher)
    batch = rollout(made, [made.train_dataset[i] for i in range(2)])
    for i, prompt in enumerate(["eab=f=", "ecd=f="]):
        expected_L = label_scores(tiny.model(seed=seed), tiny.encoder(), prompt, WORDS_OF_TWO)
        torch.testing.assert_close(
            batch["teacher_label_scores"][2 * i : 2 * i + 2, 0].double(), expected_L, rtol=1e-4, atol=1e-5
        )


def test_prompts_without_content_are_not_a_teachers_own(tmp_path):
    with pytest.raises(TeacherError, match=r"one.*label_calibration: content_free, whose prompts are the student's"):
        with_own_prompt(tmp_path, label_calibration="content_free", content_free_prompts={"all": ["::="]})


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signals": ["policy", "response"]}, "signals: where completions are labels it should be response alone"),
        ({"temperature": 0.7}, "temperature: where completions are labels it should be 1"),
        ({"gold_completions": 1}, "gold_completions: where completions are labels"),
        ({"distill_on": "failed_completions"}, "distill_on: where"),
        (
            {"per_device_train_batch_size": 8},
            "all words of a prompt's labels are in one micro-batch, and 8 is no multiple of 3",
        ),
        ({"synonyms": {"all": [[], [], ["d"]]}}, "and 9 is no multiple of 4"),
        ({"synonyms": {"other": [["d"]]}}, "synonyms: the skill 'other' has no labels"),
        ({"synonyms": {"all": [["d"]]}}, "skill 'all': there should be a list for each of the 3 labels, not 1"),
        ({"synonyms": {"all": [["d"], [" b"], []]}}, "skill 'all': the words ' b' are there twice"),
        ({"synonyms": {"all": [["ce"], [], []]}}, "'ce' and 'c' are of two labels, and one begins with the other"),
        ({"labels": {"all": ["a"]}}, "needs two different labels"),
        ({"labels": {"all": ["a", " a"]}}, "needs two different labels"),
        ({"label_calibration": "median"}, "label_calibration: 'median'"),
        ({"label_calibration": "content_free"}, "content_free_prompts: skill .all. has none"),
    ],
)
def test_options_that_need_samples_are_refused(tmp_path, options, message):
    valid = {"labels": {"all": ["a", "b", "c"]}, "per_device_train_batch_size": 9}
    with pytest.raises(RecipeError, match=message):
        RLDConfig(**tiny.rld_options(tmp_path, **(valid | options)))


def test_a_label_that_is_the_number_0_is_a_label(tmp_path):
    labels = {"first": ["0", "1"], "second": ["0", "1"]}
    record = runs.trainer(tmp_path, labels=labels)._begin_rollout(
        [{"prompt": "ab=", "answer": answer, "skill": "first"} for answer in (0, 1, None, "")]
    )
    assert record.gold_ids_B.tolist() == [0, 1, -1, -1]


def test_an_evaluation_has_all_labels_of_a_prompt_in_one_batch(tmp_path):
    made = runs.trainer(tmp_path, per_device_eval_batch_size=8)  # and the prompts have three labels
    with pytest.raises(DataError, match="let per_device_eval_batch_size be a multiple of 3"):
        made.evaluate(made.train_dataset)


def test_skills_and_answers_without_a_label_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"labels: they name the skills \['first'\], and rows have"):
        runs.trainer(tmp_path, labels={"first": ["a", "b", "c"]})
    made = runs.trainer(tmp_path)
    with pytest.raises(DataError, match="labels: the answer 'x' is none of"):
        rollout(made, [{"prompt": "ab=", "answer": "x", "skill": "first"}])
    with pytest.raises(DataError, match="labels: its answer 'k' is"):
        rollout(
            runs.trainer(tmp_path, labels=runs.LABELS | {"second": ["k", "a"]}), [{"prompt": "ab=", "skill": "second"}]
        )
