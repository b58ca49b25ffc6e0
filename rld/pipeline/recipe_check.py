"""What `rld check` does: it refuses what `rld train` would refuse, and shows what a run reads and learns from."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rld.data.listing import first_few
from rld.data.recipe_rows import skill_rows
from rld.data.skill_rows import SkillRows
from rld.pipeline.curriculum_loading import level_cautions
from rld.pipeline.gold_answers import NUM_JUDGED, may_answer, reason_without_gold, unpaid
from rld.pipeline.label_summary import LabelSummary, label_notes, label_summaries, model_encoders
from rld.pipeline.own_prompt_examples import OwnPromptExample, own_prompt_examples
from rld.pipeline.plain_recipe import absent_models, reason_to_ask_libraries
from rld.pipeline.skill_summary import SkillSummary, TextSummary, row_summary, text_summary
from rld.recipe import registry
from rld.recipe.cautions import (
    budget_cautions,
    gold_cautions,
    learning_rate_cautions,
    seconds_cautions,
    synonym_cautions,
    unreachable_rule_cautions,
    vllm_cautions,
)
from rld.recipe.cost import stage_costs
from rld.recipe.hardware import Cards
from rld.recipe.input_changes import Effect, input_changes
from rld.recipe.inputs import Inputs, InputsFile
from rld.recipe.machine import measured_here
from rld.recipe.prices import Prices
from rld.recipe.progress import run_progress
from rld.recipe.schema import Recipe
from rld.recipe.stages.distill import Distill
from rld.reporting.overview import label_table, overview, own_prompt_table, skill_tables
from rld.types import Row
from rld.utils.console import SafeConsole
from rld.utils.messages import is_main_process, tell
from rld.utils.user_calls import action

_CHARACTERS_PER_TOKEN = 4.0
"""Assumed of tokenizers that are not on this machine."""

_MOST_LINES = 3
"""Rows that a caution names."""


@dataclass(frozen=True)
class CheckResult:
    """What a check of a recipe that was not refused shows.

    Attributes:
        skills: The rows of each skill.
        cautions: What may be a mistake, one sentence each.
        labels: The labels of skills of labelled rows.
        own_prompts: A prompt of each teacher that reads others than the student, and skill.
        notes: What was checked and what was not, and how long it took.
    """

    skills: list[SkillSummary | TextSummary]
    cautions: list[str]
    notes: list[str]
    labels: list[LabelSummary]
    own_prompts: list[OwnPromptExample]


def check_recipe(recipe: Recipe, source: Path, deep: bool = False) -> CheckResult:
    """Check a recipe that was read.

    Args:
        recipe: The recipe.
        source: Its file.
        deep: Whether weights are loaded too, models answer a row per skill, and rewards see those answers.

    Raises:
        RldError: `rld train` would refuse it.
    """
    started, notes = time.perf_counter(), list[str]()
    absent = absent_models(recipe, source.parent)
    if absent:
        notes.append(f"not on this machine, and checked when `rld train` has them: {', '.join(absent)}")
    with warnings.catch_warnings(record=True) as row_warnings:
        warnings.simplefilter("always")
        sources = None if recipe.bad_rows == "skip" else skill_rows(recipe, source.parent)
    reason = "bad_rows: skip" if sources is None else reason_to_ask_libraries(recipe, source, sources)
    encoder: Any = None
    models: Any = None
    encoders: dict[str, Any] = {}
    if deep or reason is not None or sources is None:
        from rld.pipeline.deep_check import ask_libraries  # imports the libraries, which takes seconds

        run = ask_libraries(recipe, source, deep)
        sources, models = run.skill_rows, None if absent else run.models
        encoder = None if models is None else models.encoder(recipe.stages[0].origin)[0]
        encoders = model_encoders(recipe, run.models) if recipe.labels and not absent else {}
        notes.append(f"asked TRL, PEFT and transformers{'' if deep else f', because of {reason}'}")
    else:  # otherwise the rows are read again, and the warnings shown then
        for warning in row_warnings:
            warnings.warn(warning.message, stacklevel=2)
    characters_per_token = _CHARACTERS_PER_TOKEN if absent else 1.0  # a new model has a tokenizer of characters
    summaries = [
        text_summary(source, recipe.blocks[skill], encoder, characters_per_token)
        if skill in recipe.blocks
        else row_summary(source, recipe.label_words.get(skill), encoder, characters_per_token)
        for skill, source in sources.items()
    ]
    labels = label_summaries(recipe, sources, encoders)
    cautions = [
        *_cautions(recipe, source.parent, sources, summaries, labels=labels, encoder=encoder),
        *level_cautions(recipe, sources, source),
    ]
    notes.append(f"checked in {time.perf_counter() - started:.1f} s")
    return CheckResult(summaries, cautions, notes, labels, [*own_prompt_examples(recipe, sources, models)])


def show_check(
    recipe: Recipe,
    source: Path,
    result: CheckResult,
    folder: Path | None = None,
    cards: Cards | None = None,
    prices: Prices | None = None,
) -> None:
    """Print what a recipe does and costs, its rows, what may be a mistake, and how far the run in a folder is.

    Args:
        recipe: The recipe.
        source: Its file.
        result: What the check found.
        folder: The folder of a run. None: no run.
        cards: The GPUs whose time and memory are estimated. None: no time is.
        prices: What the machine with these GPUs costs. None: as the recipe says.
    """
    if not is_main_process():
        return
    console = SafeConsole(highlight=False)
    rows = {summary.skill: summary.lengths for summary in result.skills}
    console.print(overview(recipe, source.parent, rows, measured_here(cards), prices or recipe.prices))
    console.print(skill_tables(result.skills))
    if result.labels:
        console.print(label_table(result.labels))
    if result.own_prompts:
        console.print(own_prompt_table(result.own_prompts))
    for caution in result.cautions:
        tell(f"caution: {caution}")
    console.print("; ".join(result.notes), markup=False, soft_wrap=True)
    if folder is not None:
        _show_progress(recipe, source, folder)


def _show_progress(recipe: Recipe, source: Path, folder: Path) -> None:
    """Print which stages of the run in a folder are done, stale or to do, and what has changed since its start.

    Raises:
        CheckpointError: the folder holds no run, or the list of its inputs is damaged.
    """
    run = recipe.run_folder(folder)
    previous = InputsFile.read(run.inputs).inputs
    current = Inputs.of(recipe, source.parent, launch={}).with_known_models(previous)
    progress = run_progress(current, run)
    table = Table("stage", "state", title=Text(f"\nthe run in {folder}"), title_justify="left")
    for stage in progress:
        table.add_row(Text(stage.stage), Text(str(stage)))
    console = SafeConsole(highlight=False)
    console.print(table)
    for change in input_changes(previous, current, [stage.stage for stage in progress if stage.is_started]):
        consent = "; needs --accept-changes" if change.effect is Effect.NEEDS_CONSENT else ""
        console.print(f"changed: {change.text}{consent}", markup=False, soft_wrap=True)


def _cautions(
    recipe: Recipe,
    folder: Path,
    sources: Mapping[str, SkillRows],
    summaries: Sequence[SkillSummary | TextSummary],
    *,
    labels: Sequence[LabelSummary],
    encoder: Any,
) -> Iterator[str]:
    """Yield what may be a mistake, one sentence each."""
    yield from learning_rate_cautions(recipe)
    yield from seconds_cautions(recipe)
    lengths = {summary.skill: summary.lengths for summary in summaries}
    yield from budget_cautions(recipe, stage_costs(recipe, folder, lengths))
    yield from unreachable_rule_cautions(recipe)
    yield from vllm_cautions(recipe)
    yield from synonym_cautions(recipe)
    yield from gold_cautions(recipe)
    yield from label_notes(labels)
    yield from _repeated(recipe, [rows for rows in summaries if isinstance(rows, SkillSummary)])
    yield from _unpaid_gold_answers(recipe, folder, sources)
    yield from _without_gold(recipe, folder, sources, functools.partial(_gold_problem, encoder, recipe.max_new_tokens))


def _repeated(recipe: Recipe, summaries: list[SkillSummary]) -> Iterator[str]:
    for summary in summaries:
        num_repeated = summary.num_rows - summary.num_questions
        if recipe.skills[summary.skill].num_levels is None and num_repeated:
            yield f"skill '{summary.skill}': {num_repeated} of {summary.num_rows} rows repeat a question"
        if recipe.skills[summary.skill].num_levels is None and summary.num_contradicted:
            yield f"skill '{summary.skill}': {summary.num_contradicted} questions have several different gold answers"


def _gold_problem(encoder: Any, max_new_tokens: int, row: Row) -> str | None:
    """Return why the student cannot write a row's gold answer; None if it can.

    Without an encoder it can, as far as can be told: either no row is too long for a tokenizer of characters
    (`plain_recipe`), or the model whose tokenizer would tell is absent.
    """
    if not row["answer"]:
        return "some of its rows have no answer"
    if encoder is None:
        return None
    from rld.rollout.gold import gold_problem  # imports the libraries, which the encoder has imported

    return gold_problem(row, encoder, max_new_tokens)


def _without_gold(
    recipe: Recipe, folder: Path, sources: Mapping[str, SkillRows], problem: Callable[[Row], str | None]
) -> Iterator[str]:
    """Yield a sentence for each skill of which a stage learns no gold answer of a row, though its plan has some."""

    @functools.cache
    def reason_of(skill: str) -> str | None:
        has_none = not any(example.row["answer"] for example in sources[skill].examples())  # as its plan takes it
        return None if has_none else reason_without_gold(recipe, folder, sources[skill], problem)

    for stage in recipe.stages:
        if isinstance(stage, Distill) and stage.checks_gold_answers:
            for skill in stage.skills_in_use(recipe.skills):
                if not (reason := reason_of(skill)):
                    continue
                learnt = "no gold answer is learnt", "plan its FLOPs with signals.gold: null"
                if may_answer(recipe, folder, stage, skill):
                    learnt = "correct answers of teachers are learnt", "plan with signals.gold: {answers: teachers}"
                yield f"stage '{stage.name}', skill '{skill}': {learnt[0]}, for {reason}; {learnt[1]}"


def _unpaid_gold_answers(recipe: Recipe, folder: Path, sources: Mapping[str, SkillRows]) -> Iterator[str]:
    """Yield the skills whose gold answer the verifier does not accept: a model is then trained away from it."""
    spec = recipe.verifier_in_use
    if not registry.can_judge(spec.use, folder):
        return
    for skill, source in sources.items():
        if skill in recipe.blocks:
            continue
        examples = [example for example in source.examples() if example.row["answer"]][:NUM_JUDGED]
        try:
            pairs = unpaid(spec, examples, folder)
        except Exception as error:
            yield f"skill '{skill}': the verifier {spec.use} {action(error)} when it was asked about gold answers"
            continue
        if pairs:
            (_, row), reward = pairs[0]
            lines = first_few((example.place for example, _ in pairs), _MOST_LINES)
            yield (
                f"skill '{skill}': the verifier {spec.use} gives the gold answer {row['answer']!r:.60} {reward:g}; "
                f"of the first {len(examples)} gold answers {len(pairs)} are not correct for it ({lines})"
            )
