"""Exceptions for mistakes that a user can correct: one class per kind of mistake.

Most also derive from the matching built-in exception, so a script may catch either. The command line
prints the message of an `RldError` without a traceback and exits with 2; anything else is a bug in `rld`.
"""

from __future__ import annotations


class RldError(Exception):
    """Base class of user errors; the message says what is wrong, where, and how to correct it."""

    exit_code = 2
    """With which the command line ends."""
    is_placed = False
    """Whether the message begins with where in a recipe the mistake is: file, line and key."""


class RecipeError(RldError, ValueError):
    """A recipe that cannot be used; one line per problem."""


class LibraryError(RldError, ValueError):
    """A name in a recipe that refers to no reward, curriculum, generator or recipe file."""


class DataError(RldError, ValueError):
    """Rows that cannot be read or drawn; names the skill or the file and the row."""


class RewardError(RldError, ValueError):
    """A reward that raised an exception or returned an invalid value; names the reward, the row and the completion."""


class CurriculumError(RldError, ValueError):
    """A curriculum that raised an exception or chose a task that does not exist."""


class ModelError(RldError, ValueError):
    """A model that cannot be trained, such as one whose logits are not those of its output head; names the model."""


class NonFiniteError(RldError, FloatingPointError):
    """A loss, gradient or weight that is not finite; names its cause and the update."""


class DivergedError(NonFiniteError):
    """A training that stopped because its numbers were no longer finite; its last checkpoint is sound."""

    exit_code = 3


class TeacherError(RldError, ValueError):
    """A teacher that cannot teach this student, such as one with another tokenizer."""


class TeacherDown(TeacherError):
    """A teacher on a server that has stopped answering."""


class CacheError(RldError, ValueError):
    """A cache of teachers' scores that is stale or damaged."""


class ControllerError(RldError, ValueError):
    """A controller whose weights are not numbers in [0, 1], or whose saved state does not fit."""


class CheckpointError(RldError, ValueError):
    """A checkpoint that is missing, incomplete or from another run."""


class AblationError(RldError, ValueError):
    """Arms that cannot be run; one line per mistake, each with its arm."""


class UsageError(RldError):
    """A command line that does not parse."""


class LaunchError(RldError, ValueError):
    """A launcher or an argument that asks for processes or a strategy that the training does not get."""


class SystemFailure(RldError):
    """Something that the machine lacks or refused in the middle of a command, such as space on its disk."""

    exit_code = 74  # EX_IOERR of sysexits.h


class UnlistedMetricWarning(UserWarning):
    """A metric was logged that `rld.reporting.metric_names` does not list; it is written under its name."""
