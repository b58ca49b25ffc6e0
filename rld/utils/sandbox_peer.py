"""The channel between a program and its tests, which run in processes of their own (`sandbox_sides.py`).

What crosses is JSON: plain values go as copies, anything else as a reference. Objects of the program are compared, and
calculated with, among themselves; against a value of the tests they count as the plain value that they extend, if any,
since an object that equals everything is no answer.

`sandbox.py` passes this file's source to the Python in the sandbox, so it imports nothing but the standard library.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import io
import json
import operator
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

_VALUES: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "builtins.complex": lambda value: (value.real, value.imag),
    "builtins.range": lambda value: (value.start, value.stop, value.step),
    "builtins.bytearray": lambda value: (bytes(value),),
    "collections.Counter": lambda value: (dict(value),),
    "collections.OrderedDict": lambda value: (list(value.items()),),
    "collections.defaultdict": lambda value: (None, dict(value)),
    "collections.deque": lambda value: (list(value), value.maxlen),
    "fractions.Fraction": lambda value: (value.numerator, value.denominator),
    "decimal.Decimal": lambda value: (str(value),),
    "datetime.date": lambda value: (value.year, value.month, value.day),
    "datetime.timedelta": lambda value: (value.days, value.seconds, value.microseconds),
    "datetime.datetime": lambda value: (*value.timetuple()[:6], value.microsecond),
}
"""Types of the standard library that go as copies, and the arguments that make an equal value."""

OPERATIONS: dict[str, Callable[..., Any]] = {
    **{"__len__": len, "__iter__": iter, "__next__": next, "__bool__": bool, "__str__": str, "__repr__": repr},
    **{"__hash__": hash, "__int__": int, "__float__": float, "__index__": operator.index, "__neg__": operator.neg},
    **{"__abs__": abs, "__dir__": dir, "__round__": round, "__reversed__": reversed, "__format__": format},
    **{"__getitem__": operator.getitem, "__setitem__": operator.setitem, "__delitem__": operator.delitem},
    **{"__getattr__": getattr, "__setattr__": setattr, "__delattr__": delattr},
    "__instancecheck__": lambda kind, value: isinstance(value, kind),
    "__enter__": lambda value: value.__enter__(),
    "__exit__": lambda value, *error: value.__exit__(None, None, None),
}
"""What the program is asked to do with one of its objects."""

_COMPARISONS = {f"__{name}__": getattr(operator, name) for name in ("eq", "lt", "le", "gt", "ge")}

_ARITHMETIC = {
    f"__{name.strip('_')}__": getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor")
}

BINARY = _COMPARISONS | _ARITHMETIC
"""What is done with two objects of the program, or with plain values."""

_NAME = 100
"""Characters of the name of an exception's class; a program may define a class with a name of any length."""

_MESSAGE = 500
"""Characters of an exception's message in a report."""

_LAST_LINE = 10**9
"""A number that no line of a source has."""


class Peer:
    """A process's end of the channel between the two.

    Args:
        source, sink: Descriptors to read from and to write to.
        operations: What the other process may ask for, by name.
    """

    def __init__(self, source: int, sink: int, operations: Mapping[str, Callable[..., Any]]) -> None:
        self.source, self.sink, self.operations = os.fdopen(source), os.fdopen(sink, "w"), operations
        self.objects: dict[int, Any] = {}
        self.references: dict[int, Any] = {}

    def send(self, message: Any) -> None:
        self.sink.write(json.dumps(message) + "\n")
        self.sink.flush()

    def receive(self) -> Any:
        line = self.source.readline()
        if not line:
            raise EOFError("the program has ended")
        return json.loads(line)

    def ask(self, operation: str, *arguments: Any, **keywords: Any) -> Any:
        """Return what the other process answers, or raise what it raises; calls of this one's functions are served."""
        self.send({"ask": operation, "arguments": self.encode(list(arguments)), "keywords": self.encode(keywords)})
        message = self.receive()
        while "ask" in message:
            self.answer(message)
            message = self.receive()
        sys.stdout.write(message["printed"])
        for place, content in message["changed"]:
            _replace(arguments[place], self.decode(content))
        if "raised" not in message:
            return self.decode(message["value"])
        error = self._error(message)
        if isinstance(error, StopIteration) and operation != "__next__":
            error = RuntimeError("the program raised StopIteration")  # which would end a loop of the tests
        error.program_report = message.get("report")  # type: ignore[attr-defined]
        raise error

    def answer(self, message: Any) -> None:
        """Do what the other process asks for."""
        printed, stdout = io.StringIO(), sys.stdout
        sys.stdout = printed
        arguments = []
        reply: dict[str, Any]
        try:
            arguments, keywords = self.decode(message["arguments"]), self.decode(message["keywords"])
            reply = {"value": self.encode(self.operations[message["ask"]](*arguments, **keywords))}
        except BaseException as error:
            reply = {"raised": self.encode(type(error)), "report": report_of(error, line_in("program", error))}
            with contextlib.suppress(Exception):  # there is no JSON of a list that contains itself
                reply["arguments"] = self.encode(list(error.args))
        sys.stdout = stdout
        places = [i for i, value in enumerate(arguments) if type(value) in (list, dict, set, bytearray)]
        now = [(i, self.encode(arguments[i])) for i in places]
        changed = [(i, content) for i, content in now if content != message["arguments"][i]]
        self.send({**reply, "printed": printed.getvalue(), "changed": changed})

    def encode(self, value: Any) -> Any:
        """Return a value as JSON: itself, a list, or an object with one key that says what it is."""
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if value is NotImplemented or value is Ellipsis:
            return {"constant": repr(value)}
        if kind is list:
            return [self.encode(item) for item in value]
        if kind in (tuple, set, frozenset):
            return {kind.__name__: [self.encode(item) for item in value]}
        if kind is dict:
            return {"dict": [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        if kind is bytes:
            return {"bytes": value.hex()}
        if kind is Reference:
            return {"yours": value._Reference__number}
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in _VALUES and getattr(value, "tzinfo", None) is None:
            return {"value": [name, self.encode(list(_VALUES[name](value)))]}
        return self._encode_reference(value)

    def _encode_reference(self, value: Any) -> Any:
        module, name = (value.__name__, "") if isinstance(value, ModuleType) else _place(value)
        if _is_shared(module, name, value):
            return {"global": [module, name]}
        self.objects[id(value)] = value
        if isinstance(value, type) and issubclass(value, BaseException):
            bases = [self.encode(base) for base in value.__bases__ if issubclass(base, BaseException)]
            return {"error": [id(value), value.__name__, bases]}
        return {"mine": id(value)}

    def decode(self, tree: Any) -> Any:
        """Return the value that JSON stands for: plain values, references, and what the standard library defines."""
        if isinstance(tree, list):
            return [self.decode(item) for item in tree]
        if not isinstance(tree, dict):
            return tree
        ((kind, content),) = tree.items()
        if kind in ("tuple", "set", "frozenset"):
            return getattr(builtins, kind)(self.decode(content))
        if kind == "value":
            module, _, name = content[0].rpartition(".")
            if content[0] not in _VALUES:
                raise ValueError(f"{content[0]} is no plain value")
            return getattr(importlib.import_module(module), name)(*self.decode(content[1]))
        decoders: dict[str, Callable[[Any], Any]] = {
            "dict": lambda items: {self.decode(key): self.decode(item) for key, item in items},
            "bytes": bytes.fromhex,
            "yours": self.objects.__getitem__,
            "mine": lambda number: self.references.setdefault(number, Reference(self, number)),
            "error": self._error_class,
            "constant": {"NotImplemented": NotImplemented, "Ellipsis": Ellipsis}.__getitem__,
            "global": _shared,
        }
        return decoders[kind](content)

    def _error_class(self, content: Any) -> Any:
        """Return a class of this process that stands for an exception of the program."""
        number, name, bases = content
        if number not in self.references:
            self.references[number] = type(name[:_NAME], tuple(map(self.decode, bases)), {})
        return self.references[number]

    def _error(self, message: Any) -> BaseException:
        """Return an exception of this process that stands for the one that the other has raised."""
        kind = self.decode(message["raised"])
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError("the program raised what is no exception")
        with contextlib.suppress(Exception):  # some classes take other arguments than `args`, as json.JSONDecodeError
            return kind(*self.decode(message["arguments"]))
        text = cleaned(message.get("report"))["message"]
        with contextlib.suppress(Exception):  # an ExceptionGroup can't be made without its __init__ either
            error: BaseException = kind.__new__(kind, text)
            return error
        for base in kind.__mro__:
            with contextlib.suppress(Exception):
                error = type(kind.__name__, (base,), {})(text)
                return error
        return BaseException(text)


class Reference:
    """An object of the other process, which is asked for all that is done with it."""

    __slots__ = ("__number", "__peer")

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_Reference__peer", peer)
        object.__setattr__(self, "_Reference__number", number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return _ask(self, "__call__", *arguments, **keywords)

    def __contains__(self, value: Any) -> bool:
        return any(item is value or item == value for item in iter(self))  # type: ignore[call-overload]


def report_of(error: BaseException, line: int | None) -> dict[str, Any]:
    """Describe an exception: its class, its message, and the line of the program, or None, in which it was raised."""
    message = ""
    with contextlib.suppress(BaseException):  # a class of the program may do anything when it is asked for a text
        message = str(error.msg if isinstance(error, SyntaxError) else error)
    return cleaned({"error": type(error).__name__, "message": message, "line": line})


def cleaned(report: Any) -> dict[str, Any]:
    """Return the fields of a report, in which the program may say anything, as short texts and as numbers or None."""
    fields: dict[str, Any] = {"error": "", "message": "", "line": None, "test": None}
    for key, value in report.items() if isinstance(report, dict) else ():
        if key in ("line", "test") and type(value) is int and 0 < value < _LAST_LINE:
            fields[key] = value
        elif key in ("error", "message") and type(value) is str:
            fields[key] = value[: _NAME if key == "error" else _MESSAGE]
    return fields


def line_in(source: str, error: BaseException) -> int | None:
    """Return the last line of a source, which was compiled under that name, in which an exception was raised."""
    frame, line = error.__traceback__, None
    while frame is not None:
        line = frame.tb_lineno if frame.tb_frame.f_code.co_filename == source else line
        frame = frame.tb_next
    return error.lineno if isinstance(error, SyntaxError) and error.filename == source else line


def _ask(reference: Any, operation: str, *arguments: Any, **keywords: Any) -> Any:
    return reference._Reference__peer.ask(operation, reference, *arguments, **keywords)


def _plain(value: Any) -> Any:
    """Return the plain value that an object of the program extends; `NotImplemented` if it extends none."""
    return _ask(value, "plain")


def _forward(name: str) -> Callable[..., Any]:
    return lambda self, *arguments: _ask(self, name, *arguments)


def _forward_binary(name: str, swap: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if type(other) is Reference:
            return _ask(self, name, other)
        value = _plain(self)
        if value is NotImplemented:
            return NotImplemented
        return BINARY[name](other, value) if swap else BINARY[name](value, other)

    return method


for _name in OPERATIONS:
    setattr(Reference, _name, _forward(_name))
for _name in BINARY:
    setattr(Reference, _name, _forward_binary(_name, swap=False))
for _name in _ARITHMETIC:
    setattr(Reference, f"__r{_name[2:]}", _forward_binary(_name, swap=True))


def _replace(target: Any, content: Any) -> None:
    """Give a list, dictionary, set or bytearray of the caller the content that the function called has left in it."""
    if type(target) is not type(content) or type(target) not in (list, dict, set, bytearray):
        raise TypeError("the program changed a value that can't be changed")
    target.clear()
    (target.update if isinstance(target, (dict, set)) else target.extend)(content)


def _place(value: Any) -> tuple[str, str]:
    """Return the module and the name of a class."""
    return (str(value.__module__), value.__qualname__) if isinstance(value, type) else ("", "")


def _is_shared(module: str, name: str, value: Any) -> bool:
    """Tell whether both processes have a module or a class: one of the standard library, whose objects are plain."""
    if module.partition(".")[0] not in sys.stdlib_module_names:
        return False
    if not name:
        return isinstance(value, ModuleType)
    is_plain = module == "builtins" or f"{module}.{name}" in _VALUES
    is_class = isinstance(value, type) and (is_plain or issubclass(value, BaseException))
    return is_class and getattr(sys.modules.get(module), name, None) is value


def _shared(place: Any) -> Any:
    """Return a module or a class that both processes have."""
    module, name = place
    owner: Any = importlib.import_module(module) if module.partition(".")[0] in sys.stdlib_module_names else None
    value = getattr(owner, name) if name else owner
    if not _is_shared(module, name, value):
        raise ValueError(f"{module}.{name} is no class of plain values")
    return value
