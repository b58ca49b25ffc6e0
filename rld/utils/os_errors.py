"""Errors of the operating system: which of them are failures of the machine, and what to do about them."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

from rld.errors import SystemFailure, UsageError
from rld.utils.messages import one_line, tell_of_this_process
from rld.utils.streams import STANDARD_OUTPUT

_MACHINE = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EMFILE", "ENFILE", "ENOMEM", "EFBIG", "ESTALE", "ENODEV", "ENXIO")
    if hasattr(errno, name)
)
"""Errors that no other argument of the user mends."""

_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space of your quota",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "change its permissions, or choose another path",
    errno.EPERM: "change its permissions, or choose another path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a file is where a folder should be; choose another path",
    errno.EISDIR: "a folder is where a file should be; choose another path",
    errno.ENOENT: "it is not there, or no longer there",
    errno.ENOMEM: "free some memory, raise its limit (ulimit -v), or train on fewer tokens at once",
}

_CODE_IN_TEXT = re.compile(r"\bcode: (\d+)|\(os error (\d+)\)|\[Errno (\d+)\]")
"""How safetensors and other libraries in Rust and C write the number of an error."""

_WRITER_FAILED = ("PytorchStreamWriter failed", "unexpected pos", "iostream error", "No space left on device")
"""What torch's writer raises, as RuntimeError and without a reason, when a write fails."""

_NO_MEMORY = ("failed to map segment", "cannot allocate memory", "can't allocate memory", "out of memory")
"""What loaders of libraries and allocators of tensors write, in small letters, where there is no memory left."""

_CONNECTION_ERRORS = ("DistBackendError", "DistNetworkError", "DistStoreError")
"""Exceptions of torch.distributed, which is not imported here."""

_GLOO = re.compile(r"gloo/transport/|\[Gloo\]|Gloo connectFullMesh")
"""What gloo writes into a RuntimeError without a class of its own."""


def as_os_error(error: BaseException | None) -> OSError | None:
    """Return the error of the operating system that an exception is, wraps, or was raised from; None: there is none.

    An exception that was raised while an error of the operating system was handled, and not from it, is another
    mistake, unless the machine failed.
    """
    looked_at: set[int] = set()
    is_handled = False
    while error is not None and id(error) not in looked_at:
        looked_at.add(id(error))
        if isinstance(error, OSError):
            return error if not is_handled or error.errno in _MACHINE else None
        text = one_line(error)
        is_lack = isinstance(error, ImportError | RuntimeError) and any(part in text.lower() for part in _NO_MEMORY)
        if is_lack or isinstance(error, MemoryError):
            return OSError(errno.ENOMEM, f"there is not enough memory{': ' * bool(text)}{text:.200}")
        if type(error).__name__ == "SafetensorError" and (match := _CODE_IN_TEXT.search(text)):
            number = int(next(filter(None, match.groups())))
            return OSError(number, text)
        if isinstance(error, RuntimeError) and any(part in text for part in _WRITER_FAILED):
            return OSError(errno.EIO, "a file could not be written to its end; is the disk full?")
        is_handled = is_handled or error.__cause__ is None
        error = error.__cause__ or error.__context__
    return None


def is_lost_process(error: BaseException) -> bool:
    """Tell whether an exception is that of a process which no longer reaches another one of its run."""
    is_of_torch = any(kind.__name__ in _CONNECTION_ERRORS for kind in type(error).__mro__)
    return isinstance(error, RuntimeError) and (is_of_torch or _GLOO.search(str(error)) is not None)


def tell_failure(error: Exception) -> int:
    """Print to stderr what failed, of the machine or of a run's other processes, and return the exit code.

    Raises:
        Exception: `error`, if it is no such failure.
    """
    failure = error if isinstance(error, OSError) else as_os_error(error) if is_system_failure(error) else None
    if failure is not None:
        disk = fullest_disk(failure, Path(failure.filename)) if isinstance(failure.filename, str) else ""
        tell_of_this_process("; ".join(filter(None, [describe_os_error(failure), disk])))
        return SystemFailure.exit_code if is_system_failure(failure) else UsageError.exit_code
    if not is_lost_process(error):
        raise error
    reason = "another process of this run has ended, or can't be reached, so this one ends too"
    tell_of_this_process(f"{reason}; the same command with --resume goes on from the last checkpoint")
    return SystemFailure.exit_code


def is_system_failure(error: BaseException) -> bool:
    """Tell whether an exception is one that no other argument of the user mends, such as a full disk."""
    kinds = OSError | RuntimeError | MemoryError | ImportError
    os_error = as_os_error(error) if isinstance(error, kinds) else None
    return os_error is not None and os_error.errno in _MACHINE


def fullest_disk(error: OSError, *paths: Path) -> str:
    """Return which disk of some paths has the least space left, and how much; nothing where that did not cause it."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or error.filename == STANDARD_OUTPUT:
        return ""
    places = [next((place for place in (path, *path.parents) if place.exists()), Path("/")) for path in paths]
    path = min(places, key=lambda place: shutil.disk_usage(place).free).resolve()
    mount = next(place for place in (path, *path.parents) if place.is_mount())
    return f"the disk at {mount} has {shutil.disk_usage(mount).free / 2**20:,.1f} MiB left"


def describe_os_error(error: OSError) -> str:
    """Return what failed, at which path, and what to do, in one line."""
    reason = error.strerror or one_line(error) or type(error).__name__
    path = f": {error.filename}" if error.filename is not None else ""
    advice = _ADVICE.get(error.errno or 0)
    return f"{reason}{path}" + (f"; {advice}" if advice else "")
