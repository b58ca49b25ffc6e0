"""The commands of `rld`, each of which checks its arguments and calls the function that does the work.

A mistake of the user ends with exit code 2 and one line per mistake on stderr; any other error is a bug of `rld` and
shows its traceback. Each command imports what it alone needs, for the classes of a recipe take a third of a second.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rld.arguments import parse
from rld.errors import LaunchError, LibraryError, RecipeError, RldError, UsageError
from rld.recipe import registry
from rld.utils import secrets
from rld.utils.control_characters import visible
from rld.utils.files import user_path
from rld.utils.interrupts import end_with_parent
from rld.utils.messages import is_main_process, tell, tell_of_this_process, warnings_as_lines
from rld.utils.os_errors import tell_failure
from rld.utils.run_folder import ABLATION_RESULT, RunFolder, model_name, no_run, recipe_of_model
from rld.utils.streams import safe_streams
from rld.utils.suggestions import hint
from rld.utils.user_calls import exit_refused


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The arguments after `rld`. None: those of the process.

    Returns:
        The exit code: 0; 2 for a mistake of the user; 3 where losses or gradients were not finite; 74 where the machine
        failed, such as its disk; 130 when stopped with Ctrl-C, 143 by SIGTERM, 129 by SIGHUP; 1 where runs of an
        ablation failed.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    secrets.remember_environment()
    secrets.remember_arguments(words)
    with safe_streams(), warnings_as_lines():
        return _run(words)


def _run(words: list[str]) -> int:
    """Run one command, and report a user's mistake."""
    try:
        about = {name: (function.__doc__ or "").strip() for name, function in _COMMANDS.items()}
        options = parse(words, about)
        with exit_refused():
            code: int = _COMMANDS[options.command](options)
        sys.stdout.flush()
        return code
    except RldError as error:
        # All processes of a distributed run find the same mistake in the recipe; one of them reports it.
        if is_main_process() or not isinstance(error, (RecipeError, LibraryError, UsageError, LaunchError)):
            for line in str(error).split("\n"):
                tell_of_this_process(line)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return tell_failure(error)


def _train(options: argparse.Namespace) -> int:
    """Run all the stages of a recipe."""
    from rld.recipe.reading import read_recipe
    from rld.utils.folder_lock import locked

    source = registry.find_recipe(options.recipe)
    recipe = read_recipe(source, options.overrides)
    output: Path = options.output or Path("runs") / recipe.name
    if options.accept_changes and not options.resume:
        raise UsageError("--accept-changes is for a run that is continued; add --resume")
    if "LOCAL_RANK" in os.environ:  # a launcher that is killed does not end its processes
        end_with_parent()
    with locked(output) if is_main_process() else nullcontext():
        if is_main_process():
            RunFolder(output).require_links()
            if not options.resume:
                RunFolder(output).require_free()
        _share_the_cores()
        from rld.pipeline.train import train

        return train(recipe, source, output, options.resume, options.accept_changes)


def _share_the_cores() -> None:
    """Let waiting threads sleep, for two runs that spin are ten times slower; to be called before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _check(options: argparse.Namespace) -> int:
    """Check a recipe and its data without training, and show what it will do and cost."""
    source = registry.find_recipe(options.recipe)
    _share_the_cores()
    from rld.pipeline.recipe_check import check_recipe, show_check
    from rld.recipe.prices import read_prices
    from rld.recipe.reading import read_recipe

    if options.prices is not None and options.card is None:
        raise UsageError("--prices are for the time on GPUs; add --card, or see rld cost for a run that is finished")
    prices = None if options.prices is None else read_prices(options.prices)
    recipe = read_recipe(source, options.overrides)
    show_check(recipe, source, check_recipe(recipe, source, options.deep), options.output, options.card, prices)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    """Score a model on the held-out rows of a recipe."""
    source, model, overrides = _recipe_and_model(options)
    from rld.recipe.reading import read_recipe

    recipe = read_recipe(source, overrides)
    _share_the_cores()
    from rld.pipeline.train import evaluate

    return evaluate(model, recipe, source)


def _recipe_and_model(options: argparse.Namespace) -> tuple[Path, str, list[str]]:
    """Return the recipe's file, the model and the overrides that `rld evaluate` was given.

    Without --model the first two words are the recipe and the model, in either order.
    """
    words = [options.recipe, *options.overrides]
    if options.model is not None:
        return registry.find_recipe(options.recipe), options.model, options.overrides
    if len(words) < 2 or "=" in words[1]:
        raise UsageError("evaluate needs a model; write rld evaluate RECIPE --model MODEL")
    are_recipes = [_is_recipe(word) for word in words[:2]]
    if all(are_recipes):
        raise UsageError(f"{words[0]} and {words[1]} are both recipes; write rld evaluate RECIPE --model MODEL")
    recipe, model = words[:2] if are_recipes[0] else (words[1], words[0])
    return registry.find_recipe(recipe), model, words[2:]


def _is_recipe(name: str) -> bool:
    try:
        registry.find_recipe(name)
    except LibraryError:
        return False
    return True


def _generate(options: argparse.Namespace) -> int:
    """Let a model answer a prompt, or two models side by side."""
    words = [word for word in (options.model, options.prompt) if word is not None]
    names = options.compare or words[:1]
    prompts = words if options.compare else words[1:]
    if not names:
        raise UsageError("generate needs a model; write rld generate MODEL PROMPT")
    if len(prompts) > 1:
        raise UsageError("--compare names both models; write rld generate --compare A B PROMPT")
    places = [_answering_model(name) for name in names]
    _share_the_cores()
    from rld.pipeline.generate import Writing, generate

    return generate(places, prompts[0] if prompts else None, Writing(options.max_new_tokens, options.temperature))


def _answering_model(name: str) -> tuple[str, str, Path | None]:
    """Return the name of a model, its folder or hub id, and the recipe of its run; a run's folder is its student."""
    folder = user_path(name)
    if RunFolder(folder).recipe.is_file():
        if not RunFolder(folder).student.is_dir():
            raise UsageError(f"the run in {folder} has no student yet; finish it: rld train RECIPE --resume")
        return name, str(RunFolder(folder).student), RunFolder(folder).recipe
    return name, str(folder) if folder.is_dir() else name, recipe_of_model(folder.absolute())


def _export(options: argparse.Namespace) -> int:
    """Write a model in a format of another runtime, and verify and measure it there."""
    from rld.recipe.exports import FORMATS, install_hint
    from rld.recipe.reading import read_recipe, read_recipe_of_run
    from rld.recipe.stages.export import Export

    form = FORMATS[options.to]
    precision = options.precision or next(iter(form.bits))
    if precision not in form.bits:
        raise UsageError(f"{options.to} has no precision {precision!r}{hint(precision, form.bits)}")
    if form.missing_package is not None:
        raise UsageError(f"export to {options.to}: {install_hint(form.missing_package)}")
    output: Path = options.output or Path("exports") / f"{model_name(options.model)}-{options.to}-{precision}"
    if output.exists():
        raise UsageError(f"{output} exists; remove it, or choose another --output")
    recipe, source, resolved = None, Path(), recipe_of_model(Path(options.model))
    if options.recipe is not None:
        source = registry.find_recipe(options.recipe)
        recipe = read_recipe(source)
    elif resolved is not None:
        try:
            recipe, source = read_recipe_of_run(RunFolder(resolved.parent))
        except RldError as error:
            tell(f"not scored: {str(error).splitlines()[0]}; add --recipe to verify and score it on held-out rows")
    stage = Export(
        name="export",
        kind="export",
        model=options.model,
        format=options.to,
        precision=precision,
        max_rows=options.max_rows,
    )
    _share_the_cores()
    from rld.pipeline.train import export

    return export(stage, output, recipe, source)


def _ablate(options: argparse.Namespace) -> int:
    """Train variants of a recipe from the same start with several seeds, and compare them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("rld ablate starts its own processes; run it without accelerate launch, and see --jobs")
    source = registry.find_recipe(options.recipe)
    from rld.ablation.ablate import ablate

    return ablate(
        source,
        options.overrides,
        options.arms,
        num_seeds=options.seeds,
        folder=options.output,
        num_parallel=options.jobs,
        max_flops=options.max_flops,
    )


def _cache_teachers(options: argparse.Namespace) -> int:
    """Let teachers score the gold answers that a recipe trains on, once, before it trains."""
    from rld.recipe.reading import read_recipe

    source = registry.find_recipe(options.recipe)
    recipe = read_recipe(source, options.overrides)
    _share_the_cores()
    from rld.pipeline.train import cache_teachers

    return cache_teachers(recipe, source, options.output or Path("runs") / recipe.name)


def _serve_teacher(options: argparse.Namespace) -> int:
    """Serve a model over HTTP as a teacher for students on other machines."""
    _share_the_cores()
    try:
        from rld.teachers.server import serve
    except ModuleNotFoundError as error:
        if error.name in ("fastapi", "uvicorn"):
            raise UsageError(
                f"serve-teacher needs {error.name}; install it with: pip install -e '.[serve]', in a clone of rld"
            ) from error
        raise
    serve(options.model, options.adapter, options.dtype, host=options.host, port=options.port)
    return 0


def _report(options: argparse.Namespace) -> int:
    """Draw the report of a run or of an ablation again, or lay a second run beside a run, and print what it says."""
    folder, other = options.folder, options.other
    if other is not None:
        from rld.reporting.comparison_page import show_comparison

        show_comparison(folder, other)
    elif RunFolder(folder).recipe.is_file():
        from rld.reporting.report import show_report

        show_report(folder)
    elif (folder / ABLATION_RESULT).is_file():
        from rld.ablation.ablate import show_result
        from rld.ablation.outcomes import read_result

        show_result(read_result(folder), folder)
    else:
        raise no_run(folder, "no run and no finished ablation")
    return 0


def _cost(options: argparse.Namespace) -> int:
    """Say what a run has cost, and after how many requests its student has paid for itself."""
    from rld.recipe.prices import read_prices

    prices = None if options.prices is None else read_prices(options.prices)
    _share_the_cores()
    from rld.pipeline.cost import cost

    source = None if options.recipe is None else registry.find_recipe(options.recipe)
    return cost(options.run, source, prices, options.requests_per_day, options.batch)


def _list(options: argparse.Namespace) -> int:
    """List what ships."""
    from rich.table import Column, Table
    from rich.text import Text

    from rld.recipe import catalogue
    from rld.utils.console import SafeConsole

    if options.kind is not None and options.kind not in catalogue.KINDS:
        raise UsageError(f"nothing of kind {options.kind!r} ships{hint(options.kind, catalogue.KINDS)}")
    table = Table("kind", Column("name", overflow="fold"), "what it is")  # names are there to be copied
    for kind in [options.kind] if options.kind else catalogue.KINDS:
        for name, about in catalogue.names(kind).items():
            table.add_row(kind, Text(name), Text(about))
    SafeConsole(highlight=False).print(table)
    return 0


def _copy(options: argparse.Namespace) -> int:
    """Copy a shipped recipe and the files that it names, to make it your own."""
    from rld.recipe import catalogue

    for path in catalogue.copy(options.name, options.to, options.force):
        print(visible(str(path)))
    return 0


def _init(options: argparse.Namespace) -> int:
    """Write a recipe for a data file, a student and teachers, and check it."""
    _share_the_cores()
    from rld.proposal.propose import propose

    settings = {name: getattr(options, name) for name in ("question", "answer", "held_out", "minutes", "output")}
    propose(options.rows, options.student, options.teacher, **settings)
    from rld.pipeline.recipe_check import check_recipe, show_check
    from rld.recipe.reading import read_recipe

    recipe = read_recipe(options.output)
    show_check(recipe, options.output, check_recipe(recipe, options.output))
    tell(f"{options.output} is written; read its comments, then: rld train {options.output}")
    return 0


_COMMANDS = {
    "init": _init,
    "train": _train,
    "check": _check,
    "evaluate": _evaluate,
    "generate": _generate,
    "export": _export,
    "ablate": _ablate,
    "serve-teacher": _serve_teacher,
    "cache-teachers": _cache_teachers,
    "report": _report,
    "cost": _cost,
    "list": _list,
    "copy": _copy,
}
