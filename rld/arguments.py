"""The arguments of each command: names, types, defaults and help."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from rld.errors import UsageError
from rld.recipe.hardware import Cards
from rld.utils.control_characters import has_surrogate, visible
from rld.utils.files import user_path
from rld.utils.suggestions import hint


def _name(text: str) -> str:
    """Return what an argument names.

    Raises:
        ArgumentTypeError: nothing, as where a variable of the shell is not set; a path would read it as `.`.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; is a variable of the shell not set? (. is the current folder)")
    return text


def _folder(text: str) -> Path:
    return user_path(_name(text))


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)  # else `--arm A --arm B` is `--arms B`

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def parse(words: list[str], commands: Mapping[str, str]) -> argparse.Namespace:
    """Return the options of a command line, the command's name among them as `command`.

    Args:
        words: The arguments after `rld`.
        commands: What each command does, as a sentence.

    Raises:
        UsageError: the words are no command with its arguments.
    """
    for word in words:
        if has_surrogate(word):
            fix = "rename it, or the folder that it names"
            raise UsageError(f"{word!a} is not in UTF-8, and what writes models takes no other names; {fix}")
    if words and not words[0].startswith("-"):
        command = words[0]
        if command not in commands:
            raise UsageError(f"there is no command {command!r}{hint(command, commands)}")
        parser = _Parser(prog=f"rld {command}", description=commands[command])
        if command in _ADDERS:
            _ADDERS[command](parser)
        # Plain parsing cannot mix overrides and options, as in `train r.yaml seed=1 --output x stages.a.steps=2`.
        return parser.parse_intermixed_args(words[1:], argparse.Namespace(command=command))
    parser = _Parser(prog="rld", description="Distil and reinforce small language models.")
    parser.add_argument("--version", action=_Version, help="show program's version number and exit")
    group = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command, about in commands.items():
        group.add_parser(command, help=about.rstrip("."))
    return parser.parse_args(words or ["--help"])


class _Version(argparse.Action):
    """Prints the version, which takes reading the metadata of the package."""

    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print("rld", visible(version("rld")))
        except PackageNotFoundError:
            print("rld (run from its source, not installed)")
        parser.exit()


def _add_init(parser: argparse.ArgumentParser) -> None:
    rows = "a file or folder of rows or texts, or a data set of the hub"
    parser.add_argument("rows", metavar="FILE", type=_name, help=rows)
    model = "a folder or a hub id"
    parser.add_argument("--student", metavar="MODEL", type=_name, required=True, help=f"the model to train: {model}")
    teacher = f"a model that teaches it: {model}; may be given several times"
    parser.add_argument("--teacher", metavar="MODEL", type=_name, action="append", default=[], help=teacher)
    column = "may be given several times (default: by names and values)"
    question = f"a column of the question; {column}"
    parser.add_argument("--question", metavar="COLUMN", type=_name, action="append", default=[], help=question)
    answer = "the column of the answer or label (default: by names and values)"
    parser.add_argument("--answer", metavar="COLUMN", type=_name, help=answer)
    held_out = "rows of their own for scores (default: some of FILE)"
    parser.add_argument("--held-out", metavar="FILE", type=_name, help=held_out)
    minutes = "the time that the run may take on this machine (default: 30)"
    parser.add_argument("--minutes", metavar="N", type=_positive(float), default=30.0, help=minutes)
    output = "the file to write (default: recipe.yaml)"
    parser.add_argument("--output", metavar="RECIPE", type=_folder, default=Path("recipe.yaml"), help=output)


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("--output", metavar="DIR", type=_folder, help="the run's folder (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder")
    accept = "with --resume: continue although recipe, code, data, models or packages have changed"
    parser.add_argument("--accept-changes", action="store_true", help=accept)


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("--deep", action="store_true", help="also load the models and have them answer")
    parser.add_argument(
        "--card", metavar="8xH100", type=Cards.parse, help="also time and memory on GPUs; here: on this machine"
    )
    prices = "with --card: also what it costs, by a YAML file of prices (default: the recipe's prices)"
    parser.add_argument("--prices", metavar="FILE", type=_folder, help=prices)
    parser.add_argument("--output", metavar="DIR", type=_folder, help="also show how far the run in DIR is")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("--model", metavar="MODEL", type=_name, help="the model to score: a folder or a hub id")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    model = "a folder, a hub id, or the folder of a run, which stands for its student"
    parser.add_argument("model", metavar="MODEL", nargs="?", type=_name, help=f"the model: {model}")
    prompt = "the prompt (default: the standard input; in a terminal each line is one)"
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help=prompt)
    pair = "two models, whose answers stand side by side; of a run and another one both read the run's prompts"
    parser.add_argument("--compare", metavar=("A", "B"), nargs=2, type=_name, help=pair)
    length = "the most tokens of an answer (default: 256)"
    parser.add_argument("--max-new-tokens", metavar="N", type=_positive(int), default=256, help=length)
    heat = "sample at this temperature (default: 0, the likeliest tokens)"
    parser.add_argument("--temperature", metavar="T", type=_temperature, default=0.0, help=heat)


def _add_export(parser: argparse.ArgumentParser) -> None:
    from rld.recipe.exports import FORMATS

    parser.add_argument("model", metavar="MODEL", type=_name, help="the model to export: a folder or a hub id")
    parser.add_argument("--to", choices=list(FORMATS), required=True, help="the format")
    precisions = "; ".join(f"{name}: {', '.join(form.bits)}" for name, form in FORMATS.items())
    parser.add_argument("--precision", metavar="P", type=_name, help=f"{precisions} (default: the first)")
    recipe = "verify and score it on this recipe's held-out rows (default: that of the run, in whose folder MODEL is)"
    parser.add_argument("--recipe", metavar="RECIPE", type=_name, help=recipe)
    rows = "held-out rows of each skill, at most, that it is scored on (default: 64)"
    parser.add_argument("--max-rows", metavar="N", type=_positive(int), default=64, help=rows)
    folder = "the folder to write (default: exports/NAME-FORMAT-PRECISION)"
    parser.add_argument("--output", metavar="DIR", type=_folder, help=folder)


def _add_cache_teachers(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    folder = "the run's folder, with the results of finished stages (default: runs/NAME)"
    parser.add_argument("--output", metavar="DIR", type=_folder, help=folder)


def _add_report(parser: argparse.ArgumentParser) -> None:
    result = "the folder of a run or of an ablation"
    parser.add_argument("folder", metavar="DIR", type=_folder, help=result)
    other = "the folder of a second run, which is laid beside the first, in compared.html of this folder"
    parser.add_argument("other", metavar="OTHER", nargs="?", type=_folder, help=other)


def _add_cost(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=_folder, help="the folder of a finished run")
    prices = "a YAML file of prices (default: the recipe's; without them costs are hours of this machine)"
    parser.add_argument("--prices", metavar="FILE", type=_folder, help=prices)
    recipe = "the run's recipe, if it was moved: paths of models are relative to it"
    parser.add_argument("--recipe", metavar="RECIPE", type=_name, help=recipe)
    requests = "requests a day that are to be answered (default: 10000)"
    parser.add_argument("--requests-per-day", metavar="N", type=_positive(float), default=10_000, help=requests)
    batch = "requests that a busy machine answers at once, which is compared with one at a time (default: 16)"
    parser.add_argument("--batch", metavar="B", type=_positive(int), default=16, help=batch)


def _add_list(parser: argparse.ArgumentParser) -> None:
    from rld.recipe import catalogue  # imports the classes of all options, which takes a third of a second

    parser.add_argument("kind", metavar="KIND", nargs="?", help=", ".join(catalogue.KINDS))


def _add_copy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a shipped recipe, or a file for accelerate launch")
    parser.add_argument("to", metavar="DEST", nargs="?", type=_folder, default=Path(), help="a folder (default: here)")
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", type=_name, help="a recipe's file, or the name of one that ships")
    parser.add_argument(
        "overrides", metavar="key.path=value", nargs="*", default=[], help="such as stages.distill.steps=10"
    )


def _add_ablate(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    example = "'gap; mild: controller.kind=fixed controller.policy=0.3'"
    arms = f"what to compare: a YAML file of names and overrides, or a short form such as {example}"
    parser.add_argument("--arms", metavar="ARMS", type=_name, required=True, help=arms)
    parser.add_argument("--seeds", metavar="N", type=_positive(int), default=3, help="seeds per arm (default: 3)")
    parser.add_argument(
        "--output", metavar="DIR", type=_folder, help="the folder of the ablation (default: runs/NAME-ablation)"
    )
    parser.add_argument(
        "--jobs", metavar="J", type=_positive(int), default=1, help="runs at the same time (default: 1)"
    )
    budget = "end the compared stage of each run once it has spent this many FLOPs"
    parser.add_argument("--max-flops", metavar="X", type=_positive(float), help=budget)


def _add_serve_teacher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=_name, help="a folder or a hub id")
    parser.add_argument(
        "--adapter", metavar="DIR", type=_name, help="a PEFT adapter on the model: a folder or a hub id"
    )
    dtypes = ("auto", "float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="auto", help="type of the weights (default: as stored)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: reachable from this machine only)"
    )
    parser.add_argument("--port", type=_port, default=8000, help="port to listen on; 0: any free one (default: 8000)")


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def read_number(text: str) -> float:
        number = kind(text)
        if not 0 < number < math.inf:
            raise ValueError
        return number

    read_number.__name__ = f"positive {'whole number' if kind is int else 'number'}"  # argparse's message names it
    return read_number


def _temperature(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError
    return number


_temperature.__name__ = "temperature (0 or above)"  # argparse's message names it


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 1 << 16:
        raise ValueError
    return port


_port.__name__ = "port (0 to 65535)"  # argparse's message names it


_ADDERS = {
    "init": _add_init,
    "train": _add_train,
    "check": _add_check,
    "evaluate": _add_evaluate,
    "generate": _add_generate,
    "export": _add_export,
    "ablate": _add_ablate,
    "serve-teacher": _add_serve_teacher,
    "cache-teachers": _add_cache_teachers,
    "report": _add_report,
    "cost": _add_cost,
    "list": _add_list,
    "copy": _add_copy,
}
