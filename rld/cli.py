"""The command line: what `rld` and its commands take.

A mistake of the user's ends with exit code 2 and one line per mistake on stderr; anything else that goes wrong is a
bug of `rld`'s and shows its traceback. What takes seconds to import is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rld.errors import LibraryError, RecipeError, RldError, UsageError
from rld.recipe import catalogue, registry
from rld.recipe.reading import read_recipe
from rld.reporting.overview import overview
from rld.utils.run_folder import RunFolder
from rld.utils.suggestions import hint


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows `rld`. None: the process's own.

    Returns:
        The exit code: 0; 2 for the user's mistake; 130 when stopped with Ctrl-C.
    """
    try:
        options = _parse(sys.argv[1:] if arguments is None else list(arguments))
        code: int = _COMMANDS[options.command](options)
        return code
    except RldError as error:
        # Every process of a distributed run finds the same mistake in the recipe; one of them says so.
        if _is_main() or not isinstance(error, (RecipeError, LibraryError, UsageError)):
            for line in str(error).splitlines():
                print(f"rld: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser, commands = _parsers()
    if arguments and not arguments[0].startswith("-"):
        command = arguments[0]
        if command not in commands:
            raise UsageError(f"there is no command {command!r}{hint(command, commands)}")
        # Subparsers cannot mix overrides and options, as in `train r.yaml seed=1 --output x stages.a.steps=2`.
        return commands[command].parse_intermixed_args(arguments[1:], argparse.Namespace(command=command))
    return parser.parse_args(arguments or ["--help"])


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="rld", description="Distil and reinforce small language models.")
    parser.add_argument("--version", action="version", version=f"rld {_version()}")
    group = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands: dict[str, _Parser] = {}
    for name, function in _COMMANDS.items():
        about = (function.__doc__ or "").strip().rstrip(".")
        commands[name] = group.add_parser(name, help=about, description=about + ".")
    for name in ("train", "check", "cache-teachers"):
        _add_recipe(commands[name])
    commands["train"].add_argument("--output", metavar="DIR", type=Path, help="the run's folder (default: runs/NAME)")
    commands["train"].add_argument("--resume", action="store_true", help="go on where the run in that folder stopped")
    commands["evaluate"].add_argument("model", metavar="MODEL", help="a folder or a hub id")
    _add_recipe(commands["evaluate"])
    _add_ablation(commands["ablate"])
    folder = "the run's folder, with the results of stages that are done (default: runs/NAME)"
    commands["cache-teachers"].add_argument("--output", metavar="DIR", type=Path, help=folder)
    _add_serving(commands["serve-teacher"])
    commands["report"].add_argument("run", metavar="RUN", type=Path, help="a run's folder")
    commands["list"].add_argument("kind", metavar="KIND", nargs="?", help=", ".join(catalogue.KINDS))
    commands["copy"].add_argument("name", metavar="NAME", help="a shipped recipe")
    commands["copy"].add_argument(
        "to", metavar="DEST", nargs="?", type=Path, default=Path(), help="a folder (default: here)"
    )
    commands["copy"].add_argument("--force", action="store_true", help="overwrite files that are there")
    return parser, commands


def _version() -> str:
    try:
        return version("rld")
    except PackageNotFoundError:
        return "(run from its source, not installed)"


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's file, or the name of one that ships")
    parser.add_argument(
        "overrides", metavar="key.path=value", nargs="*", default=[], help="such as stages.distill.steps=10"
    )


def _add_ablation(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    example = "'gap; mild: controller.kind=fixed controller.policy=0.3', or a file with one a line"
    parser.add_argument("--arms", metavar="ARMS", required=True, help=f"what to compare, such as {example}")
    parser.add_argument("--seeds", metavar="N", type=_positive(int), default=3, help="seeds per arm (default: 3)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where to (default: runs/NAME-ablation)")
    parser.add_argument("--jobs", metavar="J", type=_positive(int), default=1, help="runs at a time (default: 1)")
    parser.add_argument("--flops", metavar="X", type=_positive(float), help="stop each arm once it has spent as much")


def _add_serving(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id")
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT adapter on the model: a folder or a hub id")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="auto", help="of its weights (default: as they were stored)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=_port, default=8000, help="0: any that is free (default: 8000)")


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def read_number(text: str) -> float:
        number = kind(text)
        if not 0 < number < math.inf:
            raise ValueError
        return number

    read_number.__name__ = f"positive {'whole number' if kind is int else 'number'}"  # argparse's message names it
    return read_number


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 1 << 16:
        raise ValueError
    return port


_port.__name__ = "port (0 to 65535)"  # argparse's message names it


def _is_main() -> bool:
    """Tell whether this process is the one that speaks for all of a distributed run."""
    return os.environ.get("RANK", "0") == "0"


def _train(options: argparse.Namespace) -> int:
    """Run all the stages of a recipe."""
    source = registry.find_recipe(options.recipe)
    recipe = read_recipe(source, options.overrides)
    output: Path = options.output or Path("runs") / recipe.name
    if _is_main() and not options.resume:
        require_free(output)
    _share_the_cores()
    from rld.pipeline.train import train

    return train(recipe, source, output, options.resume)


def _share_the_cores() -> None:
    """Let waiting threads sleep; said before torch is imported, which reads it once.

    By default they spin, and two runs side by side on the same cores were measured to be ten times slower for it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def require_free(output: Path) -> None:
    """Refuse a folder that holds a run already.

    Raises:
        UsageError: it does, or it is a file.
    """
    folder = RunFolder(output)
    if folder.recipe.exists():
        raise UsageError(f"{output} holds a run already; add --resume to go on with it, or choose another --output")
    if folder.leftovers:
        raise UsageError(f"{output} holds {folder.leftovers[0].name}, which is no run's; choose another --output")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is a file; give a folder")


def _check(options: argparse.Namespace) -> int:
    """Validate a recipe without loading anything, and show what it will do and cost."""
    source = registry.find_recipe(options.recipe)
    recipe = read_recipe(source, options.overrides)
    if _is_main():
        Console(highlight=False).print(overview(recipe, source.parent))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    """Score a model on the held-out rows of a recipe."""
    source = registry.find_recipe(options.recipe)
    recipe = read_recipe(source, options.overrides)
    _share_the_cores()
    from rld.pipeline.train import evaluate

    return evaluate(options.model, recipe, source)


def _ablate(options: argparse.Namespace) -> int:
    """Train variants of a recipe from the same start with several seeds, and compare them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("rld ablate starts its own processes; run it without accelerate launch, and see --jobs")
    source = registry.find_recipe(options.recipe)
    from rld.ablation.ablate import ablate

    return ablate(
        source, options.overrides, options.arms, options.seeds, options.output, options.jobs, max_flops=options.flops
    )


def _cache_teachers(options: argparse.Namespace) -> int:
    """Score the gold answers that a recipe trains on once, before it trains."""
    source = registry.find_recipe(options.recipe)
    recipe = read_recipe(source, options.overrides)
    _share_the_cores()
    from rld.pipeline.train import cache_teachers

    return cache_teachers(recipe, source, options.output or Path("runs") / recipe.name)


def _serve_teacher(options: argparse.Namespace) -> int:
    """Serve a model over HTTP as a teacher of students elsewhere."""
    _share_the_cores()
    try:
        from rld.teachers.server import serve
    except ModuleNotFoundError as error:
        if error.name in ("fastapi", "uvicorn"):
            raise UsageError(
                f"serve-teacher needs {error.name}; install it with: pip install -e '.[serve]', in a clone of rld"
            ) from error
        raise
    serve(options.model, options.adapter, options.dtype, options.host, options.port)
    return 0


def _report(options: argparse.Namespace) -> int:
    """Draw the report of a run again."""
    run: Path = options.run
    if not RunFolder(run).recipe.is_file():
        beside = [str(path) for path in run.parent.glob("*") if RunFolder(path).recipe.is_file()]
        raise UsageError(f"{run} holds no run{hint(str(run), beside)}")
    from rld.reporting.report import write_report

    print(write_report(run))
    return 0


def _list(options: argparse.Namespace) -> int:
    """List what ships."""
    if options.kind is not None and options.kind not in catalogue.KINDS:
        raise UsageError(f"nothing of kind {options.kind!r} ships{hint(options.kind, catalogue.KINDS)}")
    table = Table("kind", Column("name", overflow="fold"), "what it is")  # names are there to be copied
    for kind in [options.kind] if options.kind else catalogue.KINDS:
        for name, about in catalogue.names(kind).items():
            table.add_row(kind, Text(name), Text(about))
    Console(highlight=False).print(table)
    return 0


def _copy(options: argparse.Namespace) -> int:
    """Copy a shipped recipe and the files that it names, to make it your own."""
    for path in catalogue.copy(options.name, options.to, options.force):
        print(path)
    return 0


_COMMANDS = {
    "train": _train,
    "check": _check,
    "evaluate": _evaluate,
    "ablate": _ablate,
    "serve-teacher": _serve_teacher,
    "cache-teachers": _cache_teachers,
    "report": _report,
    "list": _list,
    "copy": _copy,
}
