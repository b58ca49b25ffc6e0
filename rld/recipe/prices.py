"""What a machine, energy and the tokens of an API cost: a file of its own, for prices change when a recipe does not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from rld.recipe.document import RecipeDocument, RecipeProblem
from rld.utils.options import FrozenOptions

_SECONDS_PER_HOUR = 3600.0

Amount = Annotated[float, Field(ge=0, le=1e12)]


class ApiPrice(FrozenOptions):
    """What the provider of an API asks."""

    input_per_million_tokens: Amount
    """For a million tokens that the model reads."""
    output_per_million_tokens: Amount
    """For a million tokens that it writes."""


class Prices(FrozenOptions):
    """What things cost, all in one currency."""

    currency: str
    """The name of the currency, such as EUR."""
    machine_per_hour: Amount
    """For an hour of this machine, busy or idle; it trains the student and serves it."""
    watts: Amount = 0.0
    """Power that it draws while it serves, and while it trains where GPUs do not count their energy themselves. 0:
    energy is part of the price of the machine."""
    per_kilowatt_hour: Amount = 0.0
    """For a kilowatt-hour of energy."""
    utilisation: float = Field(0.5, gt=0, le=1)
    """Share of the time for which a machine that serves has requests to answer."""
    apis: dict[str, ApiPrice] = {}
    """Teachers that are served by an API, by name. The others are served by this machine."""
    data: Amount = 0.0
    """For the training rows, once."""
    fixed: Amount = 0.0
    """For all else that is paid once, such as the time of those who train."""
    tolerance: float = Field(0.02, ge=0, le=1)
    """How far the student's score may be below that of a teacher whose place it takes."""
    fallback_share: float | None = Field(None, ge=0, le=1)
    """Share of the requests that a teacher answers after a student whose score is further below. None: the share of
    held-out rows that the student does not answer correctly, which takes a verifier of answers; a score that is no
    such share, such as token_f1, does not tell it."""

    @property
    def training_second(self) -> float:
        """The price of a second of training, in which the machine is never idle."""
        return (self.machine_per_hour + self.energy_per_hour) / _SECONDS_PER_HOUR

    @property
    def serving_second(self) -> float:
        """The price of a second in which the machine answers requests, with the idle time that it takes."""
        return (self.machine_per_hour / self.utilisation + self.energy_per_hour) / _SECONDS_PER_HOUR

    @property
    def energy_per_hour(self) -> float:
        """The price of the energy of an hour in which the machine computes."""
        return self.watts / 1000 * self.per_kilowatt_hour

    def machine_seconds(self, seconds: float) -> float:
        """Return the price of so many seconds of the machine, without energy."""
        return self.machine_per_hour * seconds / _SECONDS_PER_HOUR

    def kilowatt_hours(self, seconds: float, watts: float | None = None) -> float:
        """Return the energy of so many seconds of computing, at the stated power unless another one was measured."""
        return (self.watts if watts is None else watts) / 1000 * seconds / _SECONDS_PER_HOUR

    def scaled(self, *, utilisation: float = 1.0, machine: float = 1.0, apis: float = 1.0) -> Prices:
        """Return these prices with some multiplied by a factor; a utilisation is 1 at most."""
        by_name = {
            name: ApiPrice(
                input_per_million_tokens=apis * price.input_per_million_tokens,
                output_per_million_tokens=apis * price.output_per_million_tokens,
            )
            for name, price in self.apis.items()
        }
        changes = {
            "utilisation": min(utilisation * self.utilisation, 1.0),
            "machine_per_hour": machine * self.machine_per_hour,
            "per_kilowatt_hour": machine * self.per_kilowatt_hour,
            "apis": by_name,
        }
        return self.model_copy(update=changes)


MACHINE_TIME = Prices(currency="hours", machine_per_hour=1.0)
"""The prices where none are stated: costs are hours of this machine."""


def read_prices(path: Path) -> Prices:
    """Read a YAML file of prices.

    Raises:
        RecipeError: it cannot be used; one line per mistake, with its file and line.
    """
    document = RecipeDocument(path)
    problems = list(document.problems)
    try:
        return Prices.model_validate(document.tree)
    except ValidationError as error:
        places = [problem.loc for problem in problems]
        problems += [
            RecipeProblem(
                mistake["loc"], f"{document.label(mistake['loc'])}: {_words(mistake['type'], mistake['msg'])}"
            )
            for mistake in error.errors(include_url=False)
            if mistake["loc"] not in places
        ]
        raise document.report(problems) from error


def _words(kind: str, message: str) -> str:
    keys = ", ".join(Prices.model_fields)
    return {"extra_forbidden": f"unknown key; a file of prices has {keys}", "missing": "is required"}.get(kind, message)
