"""Keeps secrets out of what a run writes and prints: tokens, keys, passwords, and addresses with a password.

Two things identify a secret: the name it stands under, such as `token` or `api_key`, and its form, such as `hf_...`. A
value that once stood under such a name, in a recipe, an override or the environment, is masked wherever it occurs
later, such as in the message of an exception.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

MASK = "***"
"""Stands in place of a secret."""

_ALWAYS = frozenset(
    {
        *("secret", "secrets", "password", "passwords", "passwd", "passphrase", "pwd", "credential", "credentials"),
        *("authorization", "apikey", "cookie", "cookies"),
    }
)
"""Words that make a name that of a secret wherever they stand in it."""

_LAST = frozenset({"token", "key", "pat", "auth"})
"""Words that make a name that of a secret at its end."""

_PLURAL = frozenset({"tokens", "keys"})
"""The same behind one of `_SECRET_KINDS`: `tokens` alone are those of a text."""

_SECRET_KINDS = frozenset({"api", "access", "auth", "bearer", "secret", "private", "hub", "hf"})
"""Words before `key` and `keys` that leave no doubt: a `sort_key` or an `answer_key` is seldom a secret."""

_TEXT_TOKENS = frozenset(
    {
        *("bos", "eos", "pad", "unk", "sep", "cls", "mask", "image", "video", "audio", "vision", "boi", "eoi", "im"),
        *("start", "end", "stop", "fake", "think", "special", "prefix", "suffix", "middle", "decoder", "forced"),
        *("additional", "extra", "per", "new", "max", "num", "next", "first", "last"),
    }
)
"""Words before `token` that make it a token of a text."""

_PLACES = frozenset(
    {
        *("variable", "env", "environment", "file", "path", "dir", "directory", "folder", "host", "port", "sock"),
        *("name", "id", "ids", "length", "count", "type", "jar", "helper"),
    }
)
"""Words at the end of a name that make it that of a place, such as `token_variable`."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

_FORMS = re.compile(
    r"\bhf_(?=[a-z0-9]*[A-Z])(?=[A-Za-z]*[0-9])[A-Za-z0-9]{10,}|\bhf_[A-Za-z0-9]{20,}"
    r"|\b(?:sk|pk|rk)-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}"
    r"|\bxox[abprs]-[\w-]{10,}|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}"
    r"|(?<=://)[^\s/?#@\"']+@(?=[^\s/])"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}|(?<=PRIVATE KEY-----)[^-]+"
    r"|(?<=Basic )(?=[A-Za-z+/]*[0-9])[A-Za-z0-9+/]{10,}={0,2}"
    r"|(?<=[Bb]earer )(?=[A-Za-z_-]*[0-9.~+/=])[\w.~+/=-]{8,}(?<!\.)"
)
"""Tokens of well-known services, the part of an address before `@`, signed tokens, private keys, headers' tokens."""

_QUERY = re.compile(r"(?<=[?&])([\w.-]+)=([^&\s\"'#]+)")

_SIGNATURES = frozenset({"sig", "signature"})
"""Words at the end of a name in an address's query that make its value a permission to whoever has it."""

_SETTING = re.compile(r"([\w.-]+)[\"']?\s*[:=]\s*[\"']?([^\s\"',;{}]+)")
"""A name and its value in an override, in either of the forms `name=value` and `{name: value}`."""

_SHORTEST = 6
"""Characters of a value that is masked wherever it occurs; shorter ones occur in ordinary text."""

_SHORTEST_UNNAMED = 8
"""The same for values whose name may also be that of something else: `..._key`, and variables of the environment."""

_SETTINGS = frozenset(
    {"true", "false", "none", "null", "auto", "default", "required", "optional", "disabled", "enabled"}
)
"""Values, in lower case, that say whether there is a secret and are none."""

_ORDINARY = re.compile(r"[A-Za-z\s_./:-]*")
"""Values that are ordinary words, such as the name of a column."""

_TOKEN_OF_TEXT = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\W*")
"""Values that are tokens of a text, such as `<answer>` or `####`."""

_USER_NAMES = ("models", "skills", "teachers")
"""Mappings of a recipe whose keys are names that its user chose."""

_secrets: set[str] = set()
"""The values to mask in this process."""


def is_secret_name(name: Any) -> bool:
    """Tell whether a name is that of a secret, such as `token`, `hub_token`, `api_key`, `x-api-key` or `clientSecret`.

    >>> is_secret_name("hf_token"), is_secret_name("eos_token"), is_secret_name("token_variable")
    (True, False, False)
    """
    words = _words(str(name))
    while words and words[-1].isdecimal():
        words.pop()
    if not words or words[-1] in _PLACES:
        return False
    if _ALWAYS & set(words):
        return True
    before = set(words[:-1])
    if words[-1] in _PLURAL:
        return bool(before & _SECRET_KINDS)
    return words[-1] in _LAST and not (words[-1] == "token" and before & _TEXT_TOKENS)


def has_credentials(text: str) -> bool:
    """Tell whether a text is an address with a user, a password or a token in it."""
    try:
        parts = urlsplit(text.strip())
        has_user = bool(parts.scheme) and "@" in parts.netloc
        names = [name for name, _ in parse_qsl(parts.query)] if parts.netloc else []
        return has_user or any(map(is_secret_name, names))
    except ValueError:
        return False


def _password(text: str) -> str | None:
    """Return the password in an address, if there is one."""
    return urlsplit(text).password if has_credentials(text) else None


def remember(tree: Any) -> None:
    """Remember the secrets in a tree of mappings and lists, so that they are masked from now on."""
    for value in _secret_values(tree):
        if len(value) >= _SHORTEST:
            words = [word for word in value.split()[1:] if len(word) >= _SHORTEST_UNNAMED]
            _secrets.update(*map(_spellings, [value, *words]))


def remember_environment(environment: Mapping[str, str] | None = None) -> None:
    """Remember the values of environment variables that are called like secrets, and passwords in their addresses.

    The shell's `PWD`, and folders and files such as that of systemd's `CREDENTIALS_DIRECTORY`, are no secrets.
    """
    for name, value in (os.environ if environment is None else environment).items():
        text = value.strip()
        is_place = name == "PWD" or (os.path.isabs(text) and os.path.exists(text))
        if is_secret_name(name) and len(text) >= _SHORTEST_UNNAMED and not is_place and _may_be_secret(text, name):
            _secrets.update(_spellings(text))
        elif (password := _password(text)) and not _ORDINARY.fullmatch(password):
            remember_value(password)


def remember_arguments(arguments: Iterable[str]) -> None:
    """Remember the secrets in the words of a command line, such as `models.x.from_pretrained.token=...`."""
    for argument in arguments:
        remember({"argument": argument})
        for path, value in _SETTING.findall(argument):
            remember({path.rpartition(".")[2].lstrip("-"): value})


def remember_value(text: str) -> None:
    """Remember one secret."""
    if len(text) >= _SHORTEST:
        _secrets.update(_spellings(text))


def masked_text(text: str) -> str:
    """Return a text in which secrets are masked, by their form or because they are remembered."""
    for secret in sorted(_secrets, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, MASK)
    text = _FORMS.sub(lambda match: MASK + ("@" if match.group().endswith("@") else ""), text)
    return _QUERY.sub(lambda match: f"{match[1]}={MASK}" if _is_secret_in_query(match[1]) else match[0], text)


def _is_secret_in_query(name: str) -> bool:
    return is_secret_name(name) or bool(_SIGNATURES & set(_words(name)[-1:]))


def _spellings(value: str) -> set[str]:
    """Return a secret as it stands in texts, in source code, in JSON and in addresses."""
    quoted = {quote(value), quote(value, safe=""), quote_plus(value), unquote(value)}
    literals = {repr(value)[1:-1], json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    return {value, *literals, *(text for text in quoted if len(text) >= _SHORTEST)}


def masked_strings(tree: Any) -> Any:
    """Return a copy of a tree of mappings, lists and plain values in whose texts secrets are masked."""
    if isinstance(tree, Mapping):
        return {key: masked_strings(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [masked_strings(value) for value in tree]
    return masked_text(tree) if isinstance(tree, str) else tree


def masked_recipe(tree: Any) -> Any:
    """Return a copy of a recipe in which secrets are masked, by their names too."""
    return masked_strings(_masked_by_name(tree))


def without_masked(tree: Any) -> Any:
    """Return a copy of a masked recipe without its secrets, so that another token makes no other recipe of it."""
    if isinstance(tree, Mapping):
        return {key: without_masked(value) for key, value in tree.items() if value != MASK}
    return [without_masked(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


def masked_override(argument: str) -> str:
    """Return a word of a command line, such as `models.x.from_pretrained.token=...`, with its secret masked."""
    path, equals, _ = argument.partition("=")
    is_secret = equals and is_secret_name(path.rpartition(".")[2].lstrip("-"))
    return f"{path}={MASK}" if is_secret else masked_text(argument)


def _masked_by_name(tree: Any, name: str | None = None, has_user_keys: bool = False) -> Any:
    if isinstance(tree, Mapping):
        return {
            key: _masked_by_name(value, _secret_name(key, name, has_user_keys), key in _USER_NAMES)
            for key, value in tree.items()
        }
    if isinstance(tree, (list, tuple)):
        return [_masked_by_name(value, name) for value in tree]
    return MASK if name is not None and _may_be_secret(tree, name) else tree


def _secret_values(tree: Any, name: str | None = None, has_user_keys: bool = False) -> Iterator[str]:
    """Yield the values that stand under the name of a secret, and the users in addresses."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _secret_values(value, _secret_name(key, name, has_user_keys), key in _USER_NAMES)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _secret_values(value, name)
    elif name is not None and _may_be_secret(tree, name):
        yield str(tree)
    elif isinstance(tree, str) and has_credentials(tree):
        user = urlsplit(tree.strip()).netloc.rpartition("@")[0]
        yield from (part for part in (user, user.partition(":")[2]) if part)


def _secret_name(key: Any, name: str | None, is_user_key: bool) -> str | None:
    """Return the name of a secret that a key's value stands under: the key, or that of a mapping around it."""
    return str(key) if not is_user_key and is_secret_name(key) else name


def _may_be_secret(value: Any, name: str) -> bool:
    """Tell whether a value under the name of a secret may be one."""
    if isinstance(value, str):
        words = _words(name.rstrip("0123456789"))
        is_clear = bool(_ALWAYS & set(words) or _SECRET_KINDS & set(words[:-1]))
        if not is_clear and _TOKEN_OF_TEXT.fullmatch(value):
            return False
        if not is_clear and words[-1:] == ["key"] and (len(value) < _SHORTEST_UNNAMED or _ORDINARY.fullmatch(value)):
            return False
        return value not in ("", MASK) and value.lower() not in _SETTINGS
    return isinstance(value, int) and not isinstance(value, bool) and bool(_ALWAYS & set(_words(name)))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]
