"""What runs in the sandbox: a program in one process, and its tests in another that calls it.

A program that shared a process with its tests could forge their result. So the tests have a process of their own, in a
sandbox of its own, and the program's names stand there for calls to the program's process (`sandbox_peer.py`).

`sandbox.py` passes this file's source, behind that of `sandbox_peer.py`, to the Python in the sandbox, so it imports
nothing else but the standard library.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rld.utils.sandbox_peer import BINARY, OPERATIONS, Peer, cleaned, line_in, report_of

_SPACE = "answer"
"""`__name__` of the program and of its tests."""

_TRACEBACK = 4000
"""Characters of a traceback: the program chooses the message in it, which may be as long as all that may be written."""

_PLAIN = (int, float, str, bytes, tuple, list, dict, set, frozenset)


def _write_traceback(*error: Any) -> None:
    """Write the traceback of an exception that ends the process: its start and its end if it is long."""
    import traceback

    text = "".join(traceback.format_exception(*error))
    half = _TRACEBACK // 2
    sys.stderr.write(text if len(text) <= _TRACEBACK else f"{text[:half]}...{text[-half:]}")


def _run(source: str, name: str, space: dict[str, Any]) -> None:
    exec(compile(source, name, "exec", dont_inherit=True), space)
    print(end="", flush=True)


def serve_program(task: Mapping[str, str], source: int, sink: int) -> None:
    """Run a program, tell its names, and do what its tests ask for."""
    space: dict[str, Any] = {"__name__": _SPACE}

    def plain(value: Any) -> Any:
        kind = next((kind for kind in _PLAIN if isinstance(value, kind)), None)
        return kind(value) if kind is not None else NotImplemented

    def call(function: Any, *arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **keywords)

    operations: dict[str, Callable[..., Any]] = {"__call__": call, "name": space.__getitem__, "plain": plain}
    peer = Peer(source, sink, {**OPERATIONS, **BINARY, **operations})
    try:
        _run(task["setup"], "setup", space)
        _run(task["program"], "program", space)
    except BaseException as error:
        peer.send({"report": report_of(error, line_in("program", error))})
        raise
    peer.send([name for name in space if isinstance(name, str)])
    with contextlib.suppress(EOFError):  # the tests have ended
        while True:
            peer.answer(peer.receive())
    os._exit(0)


class _Names(dict[str, Any]):
    """The tests' name space: what they define, and otherwise the program's names."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(__name__=_SPACE)
        self.peer = peer
        self.program: frozenset[str] = frozenset()

    def __missing__(self, name: str) -> Any:
        if name not in self.program:
            raise KeyError(name)
        return self.peer.ask("name", name)


def run_tests(task: Mapping[str, str], source: int, sink: int) -> None:
    """Run the tests of a program in the other process; write the token as the last thing if they pass.

    If they do not, write the mark and a report behind it, JSON with the keys of `report_of` and `test`: the line of the
    tests. The mark is not the token, so that no output, wherever it is cut off, ends with that.
    """
    output = os.dup(1)

    def write(report: Any) -> None:
        os.write(output, f"{task['mark']}{json.dumps(cleaned(report))}".encode())

    @contextlib.contextmanager
    def reported() -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            report = getattr(error, "program_report", None) or report_of(error, None)
            write({**cleaned(report), "test": line_in("tests", error)})
            raise

    def call(function: Any, *arguments: Any, **keywords: Any) -> Any:
        if id(function) not in peer.objects:
            raise TypeError("the program may call the functions that it was given")
        return function(*arguments, **keywords)

    peer = Peer(source, sink, {"__call__": call})
    names = _Names(peer)
    with reported():
        _run(task["setup"], "setup", names)
        used = _names_in(task["tests"])
    for name, value in list(names.items()):  # both processes need the same classes
        if name == task["entry_point"] or (isinstance(value, type) and value.__module__ == _SPACE):
            del names[name]
    message = peer.receive()
    if isinstance(message, dict):
        write({**cleaned(message.get("report")), "test": None})  # none has run, whatever the program says
        raise EOFError("the program has ended")
    names.program = _program_names(used & set(message), task["entry_point"])
    with reported():
        _run(task["tests"], "tests", names)
    os.write(output, task["token"].encode())
    os._exit(0)


def _names_in(tests: str) -> set[str]:
    """Return the names that tests use."""
    import ast

    return {node.id for node in ast.walk(ast.parse(tests, "tests")) if isinstance(node, ast.Name)}


def _program_names(used: set[str], entry_point: str) -> frozenset[str]:
    """Return which of the program's names, which tests use, are its own: a builtin's only where there is no other."""
    own_names = {name for name in used if name == entry_point or not hasattr(builtins, name)}
    return frozenset(own_names or used)


if __name__ == "__main__":
    content = json.loads(sys.stdin.buffer.read())
    sys.stdin = io.StringIO()
    sys.set_int_max_str_digits(0)
    sys.excepthook = _write_traceback
    side = run_tests if "tests" in content else serve_program
    side(content, int(sys.argv[1]), int(sys.argv[2]))
