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
from collections.abc import Callable, Mapping
from typing import Any

from rld.utils.sandbox_peer import BINARY, OPERATIONS, Peer, line_in

_SPACE = "answer"
"""`__name__` of the program and of its tests."""

_MESSAGE = 500
"""Characters of an exception's message in a report."""

_PLAIN = (int, float, str, bytes, tuple, list, dict, set, frozenset)


def _report(error: BaseException, line: int | None) -> dict[str, Any]:
    """Describe an exception: its class, its message, and the line of the program, or None, in which it was raised."""
    with contextlib.suppress(Exception):  # the program may have its own classes, and do anything when asked for a text
        message = str(error.msg if isinstance(error, SyntaxError) else error)[:_MESSAGE]
        return {"error": type(error).__name__, "message": message, "line": line}
    return {"error": type(error).__name__, "message": "", "line": line}


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
        peer.send({"report": _report(error, line_in("program", error))})
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

    If they do not, write the token and a report behind it, JSON with the keys of `_report` and `test`: the line of the
    tests.
    """
    output = os.dup(1)

    def write(report: Mapping[str, Any]) -> None:
        os.write(output, f"{task['token']}{json.dumps(report)}".encode())

    def call(function: Any, *arguments: Any, **keywords: Any) -> Any:
        if id(function) not in peer.objects:
            raise TypeError("the program may call the functions that it was given")
        return function(*arguments, **keywords)

    peer = Peer(source, sink, {"__call__": call})
    names = _Names(peer)
    _run(task["setup"], "setup", names)
    for name, value in list(names.items()):  # both processes need the same classes
        if name == task["entry_point"] or (isinstance(value, type) and value.__module__ == _SPACE):
            del names[name]
    message = peer.receive()
    if isinstance(message, dict):
        write(message["report"])
        raise EOFError("the program has ended")
    names.program = _program_names(task["tests"], set(message), task["entry_point"])
    try:
        _run(task["tests"], "tests", names)
    except BaseException as error:
        write({**_report(error, getattr(error, "program_line", None)), "test": line_in("tests", error)})
        raise
    os.write(output, task["token"].encode())
    os._exit(0)


def _program_names(tests: str, names: set[str], entry_point: str) -> frozenset[str]:
    """Return the program's names that tests use; those of builtins are Python's where there is any other."""
    import ast

    used = names & {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    own_names = {name for name in used if name == entry_point or not hasattr(builtins, name)}
    return frozenset(own_names or used)


if __name__ == "__main__":
    content = json.loads(sys.stdin.buffer.read())
    sys.stdin = io.StringIO()
    sys.set_int_max_str_digits(0)
    side = run_tests if "tests" in content else serve_program
    side(content, int(sys.argv[1]), int(sys.argv[2]))
