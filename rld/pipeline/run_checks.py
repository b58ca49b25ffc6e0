"""What is checked before the first stage trains, by `rld train` and by `rld check`: one function for both."""

from __future__ import annotations

from rld.data.listing import first_and_number
from rld.errors import DataError
from rld.pipeline.plain_recipe import absent_models
from rld.pipeline.reward_probe import probe_judge
from rld.pipeline.run import RunContext
from rld.rollout.row_keys import require_equal_rows
from rld.trainer import vllm_rollouts


def require_runnable(run: RunContext, downloads: bool = True) -> None:
    """Check all that can be told of a run without weights: rows, options, models, curricula and rewards.

    All processes of a run take part.

    Args:
        run: The run.
        downloads: Whether tokenizers and configurations that are not on this machine are downloaded. Otherwise such
            models are left out, and rows are not checked if there is one.

    Raises:
        RldError: a stage would stop with a mistake of the user.
    """
    probe_judge(run)
    _require_gold_answers(run)
    for place, evaluator in run.evaluators.items():
        with run.recipe.mistakes_at(place):
            evaluator.require_possible()
    if downloads or not absent_models(run.recipe, run.source.parent):
        run.row_checks.require(run.skill_rows)
    _require_equal_rows(run)
    for stage in run.recipe.stages:
        with run.recipe.mistakes_at(run.recipe.place("stages", stage.name)):
            stage.dry_run(run)


def require_installed(run: RunContext) -> None:
    """Check what `rld train` needs on its machine, and `rld check` only tells of.

    Raises:
        RecipeError: vLLM is not installed, and a stage samples with it.
    """
    for stage in run.recipe.training_stages:
        if stage.trainer.get("use_vllm"):
            with run.mistakes_in(stage, "trainer"):
                vllm_rollouts.require_vllm()


def _require_gold_answers(run: RunContext) -> None:
    """Refuse a score that needs gold answers where a held-out row has none.

    Raises:
        DataError: a row has none.
    """
    for name, source in run.skill_rows.items():
        scores = run.recipe.skills[name].scores_of_gold_answers
        places = [place for place, row in source.placed_held_out() if scores and not row["answer"]]
        if places:
            with run.recipe.mistakes_at(run.recipe.place("skills", name, "scores")):
                raise DataError(
                    f"{scores[0]} needs gold answers, and the held-out row {first_and_number(places)} has none; hold "
                    "out rows that have them, by held_out: {file: ...}, or name other scores"
                )


def _require_equal_rows(run: RunContext) -> None:
    """Refuse generators whose rows differ between processes, held-out rows or others.

    Raises:
        DataError: those of one do.
    """
    if run.state.num_processes == 1:
        return
    for name, source in run.skill_rows.items():
        if source.num_rows is None:
            require_equal_rows(f"skill {name!r}", [row for _, row in source.examples()])
