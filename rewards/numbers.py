"""Numbers as people and models write them, read as exact fractions.

Read are signs (also U+2212 and its kin), decimals with or without a leading digit, exponents, fractions and mixed
numbers, powers, percentages, thousands with separators, digits of other scripts, and the LaTeX forms of these. A number
whose exponent or length is beyond any reasonable answer is not read, so that no text can cost memory or time.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

_MAX_DIGITS = 400
"""Digits, and powers of ten, beyond which a text is not read as a number."""

_MINUS_SIGNS = "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"
_GROUP_SPACES = "\u00a0\u2007\u2009\u202f"
_TRANSLATION = str.maketrans(
    {**dict.fromkeys(_MINUS_SIGNS, "-"), "\u2044": "/", "\u2215": "/", "\uff0e": ".", "\uff0c": ",", "\uff05": "%"}
)
_SUPERSCRIPTS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207a", "0123456789-+"
)
_SUPERSCRIPT_RUN = re.compile("(?<=\\d)[\u207b\u207a]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_LATEX = [
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r" \1/\2 "),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r" \1/\2 "),
    (re.compile(r"\\(?:times|cdot)\b|\u00d7"), "*"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,;:! ]|\\(?:text|mathrm|mbox)\b|\\left|\\right"), " "),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"\^\s*\{\s*([-+]?\d+)\s*\}"), r"^\1"),
]
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\w.])\.\d+)"
_NUMBER = re.compile(
    # A minus after a digit, a letter or a bracket is a subtraction, so it is no sign.
    r"(?:(?P<sign>(?<![\w)\]])[-+](?! )|(?:(?<=[=(])|(?<=[=(] ))[-+](?= ))\s?[$\u20ac\u00a3\u00a5]?)?"
    rf"(?<![A-Za-z_\\\d])(?P<number>{_UNSIGNED})"
    r"(?:"
    r"(?P<exponent>[eE][-+]?\d+(?![\w.]*\d)|\s?\*\s?10\s?(?:\^|\*\*)\s?\(?[-+]?\d+\)?)"
    r"|\s?(?:\^|\*\*)\s?(?P<power>[-+]?\d+)"
    rf"|\s?/\s?(?P<denominator>\d+(?:\.\d+)?)(?!\s?/)(?![\w.]*\d)"
    r"|\s(?P<mixed_numerator>\d+)\s?/\s?(?P<mixed_denominator>\d+)(?!\s?/)"
    r")?"
    r"\s?(?P<percent>%)?"
)


class Number(NamedTuple):
    """A number, and whether a percent sign stands behind it. `value` is what stands before the sign."""

    value: Fraction
    is_percent: bool

    def equals(self, other: Number) -> bool:
        """Tell whether two numbers are equal; where one alone has a percent sign, `50%` equals both 50 and 0.5."""
        if self.value == other.value:
            return True
        percent, plain = (self, other) if self.is_percent else (other, self)
        return self.is_percent != other.is_percent and percent.value / 100 == plain.value


def last_number(text: str) -> Number | None:
    """Return the last number of a text, or None. Where the text has a `\\boxed{...}`, only the last box is read."""
    boxed = _last_box(text)
    numbers = list(_NUMBER.finditer(_plain(text if boxed is None else boxed)))
    return _parse(numbers[-1]) if numbers else None


def numbers_in(text: str) -> list[Number]:
    """Return all numbers of a text, in their order."""
    numbers = (_parse(match) for match in _NUMBER.finditer(_plain(text)))
    return [number for number in numbers if number is not None]


def only_number(text: str) -> Number | None:
    """Return the number that a text consists of, or None where it has none or anything else in it."""
    plain = _plain(text).strip()
    match = _NUMBER.fullmatch(plain)
    return _parse(match) if match else None


def _last_box(text: str) -> str | None:
    """Return what the last `\\boxed{...}` of a text holds, braces balanced; None where there is none."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    first = text.index("{", start) + 1
    depth = 1
    for i in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[first:i]
    return text[first:]


def _plain(text: str) -> str:
    """Return the text with ASCII digits, signs and separators, and without LaTeX around numbers."""
    text = "".join(_ascii_digit(c) for c in text).translate(_TRANSLATION)
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^" + run[0].translate(_SUPERSCRIPTS), text)
    text = re.sub(rf"(?<=\d)[{_GROUP_SPACES}'\u2019_](?=\d{{3}}(?!\d))", "", text)
    text = re.sub(r"(?<![\d/])(\d+)/(\d+)/(\d+)(?![\d/])", r"\1 - \2 - \3", text)  # a date is no fraction
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def _ascii_digit(c: str) -> str:
    """Return a digit of any script as ASCII, and a character such as one half as ` 1/2`."""
    if c.isascii():
        return c
    if unicodedata.category(c) == "Nd":
        return str(unicodedata.decimal(c))
    if unicodedata.decomposition(c).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", c)
    return c


def _parse(match: re.Match[str]) -> Number | None:
    """Return the matched number; None where it is out of range or divides by zero."""
    if sum(map(str.isdigit, match[0])) > _MAX_DIGITS:
        return None
    value = Fraction(match["number"].replace(",", ""))
    if match["exponent"]:
        exponent = int(re.split(r"[eE^]|\*\*", match["exponent"])[-1].strip(" ()"))
        if abs(exponent) > _MAX_DIGITS:
            return None
        value *= Fraction(10) ** exponent
    elif match["power"]:
        exponent = int(match["power"])
        digits = len(str(value.numerator)) + len(str(value.denominator))
        if abs(exponent) * digits > _MAX_DIGITS or (value == 0 and exponent < 0):
            return None
        value **= exponent
    elif match["denominator"] or match["mixed_denominator"]:
        denominator = Fraction(match["denominator"] or match["mixed_denominator"])
        if denominator == 0:
            return None
        whole = value if match["mixed_denominator"] else Fraction(0)
        numerator = Fraction(match["mixed_numerator"]) if match["mixed_denominator"] else value
        value = whole + numerator / denominator
    return Number(-value if match["sign"] == "-" else value, match["percent"] is not None)
