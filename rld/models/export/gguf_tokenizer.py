"""The tokenizer in a GGUF file: byte-level BPE, or a token for each of some ASCII characters."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers.pre_tokenizers import ByteLevel

from rld.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPLITS: dict[tuple[str, ...], str] = {
    ("bytes, words",): "gpt-2",
    ("digits", "bytes, words"): "smollm",
    (rf"{_ENDINGS}|{_LETTERS}|\p{{N}}|{_OTHERS}", "bytes"): "qwen2",
    (rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}|{_OTHERS}", "bytes"): "llama-bpe",
}
"""llama.cpp's name for each way to split a text before its bytes are merged; see `_splits`."""

_CHARACTER = r"[\s\S]"
"""How `character_tokenizer` splits a text."""

_UNUSED_MERGE = "\u0100 \u0100"
"""llama.cpp reads no BPE without merges. This one is of two zero bytes, which no tokenizer of characters has."""


def tokenizer_problem(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return what llama.cpp lacks of a tokenizer, in words; None if nothing."""
    definition = _definition(tokenizer)
    kind = definition["model"]["type"]
    if kind != "BPE" or definition["model"].get("byte_fallback") or "ByteLevel" not in str(definition["pre_tokenizer"]):
        name = f"a tokenizer of {len(tokenizer)} whole words" if kind == "WordLevel" else f"one of {kind}"
        needs = "a byte-level BPE tokenizer, or one of ASCII characters"
        return f"llama.cpp needs {needs}, and this is {name}; export it to onnx"
    if tuple(_splits(definition)) not in _SPLITS:
        return f"llama.cpp is not known to split texts as its tokenizer does: {_splits(definition)}; export it to onnx"
    return None


def write_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, size: int, ends: list[int]) -> None:
    """Write vocabulary, merges, special tokens and chat template.

    Args:
        size: Rows of the embeddings; those without a token get unused names.
        ends: Tokens that end an answer by the model's generation configuration.
    """
    import gguf

    definition, added = _definition(tokenizer), tokenizer.added_tokens_decoder
    vocabulary = {i: token for token, i in definition["model"]["vocab"].items()}
    vocabulary |= {i: token.content for i, token in added.items()}
    types = [gguf.TokenType.NORMAL if i in vocabulary else gguf.TokenType.UNUSED for i in range(size)]
    for i, token in added.items():
        types[i] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in definition["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_SPLITS[tuple(_splits(definition))])
    writer.add_token_list([vocabulary.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    first: Any = tokenizer("a").input_ids[0]
    has_bos = tokenizer.bos_token_id is not None
    writer.add_add_bos_token(has_bos and first == tokenizer.bos_token_id)
    writer.add_add_eos_token(False)  # an answer follows
    for token_id, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if token_id is not None:
            add(token_id)
    end_ids = list(dict.fromkeys(i for i in (tokenizer.eos_token_id, *ends) if i is not None))
    adders = writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id
    if len(end_ids) > len(adders):
        raise ModelError(f"cannot export to GGUF: {len(end_ids)} tokens end its answers, and llama.cpp knows 3 kinds")
    for token_id, add in zip(end_ids, adders, strict=False):
        add(token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _definition(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what `tokenizer.json` says of a tokenizer; one of ASCII characters is a BPE without merges."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("cannot export to GGUF: its tokenizer has no tokenizer.json; save it as a fast one")
    definition: dict[str, Any] = json.loads(backend.to_str())
    added = {token["content"] for token in definition["added_tokens"]}
    if definition["model"]["type"] != "WordLevel" or _splits(definition) != [_CHARACTER]:
        return definition
    vocabulary = definition["model"]["vocab"]
    if not all(token.isascii() for token in vocabulary.keys() - added):
        return definition
    split = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    names = {token if token in added else _in_bytes(token): i for token, i in vocabulary.items()}
    model = {"type": "BPE", "vocab": names, "merges": [_UNUSED_MERGE]}
    return {**definition, "pre_tokenizer": split, "model": model}


def _in_bytes(character: str) -> str:
    """Return the name of an ASCII character in byte-level vocabularies, in which ` ` is `Ġ`."""
    [(name, _)] = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(character)
    return str(name)


def _splits(definition: dict[str, Any]) -> list[str]:
    """Return how a tokenizer splits a text, step by step: a regular expression, or what it is called here."""
    top = definition.get("pre_tokenizer") or {"type": "nothing"}
    steps = top["pretokenizers"] if top["type"] == "Sequence" else [top]
    return [_split(step) for step in steps]


def _split(step: dict[str, Any]) -> str:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(words)}:
            return "bytes, words" if words else "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern
    return json.dumps(step)
