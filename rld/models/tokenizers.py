"""The character tokenizer."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rld.errors import DataError
from rld.types import Row


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per character, and `<pad>`, `<eos>` and `<unk>`.

    Raises:
        DataError: a character occurs twice.
    """
    repeated = [character for i, character in enumerate(characters) if character in characters[:i]]
    if repeated:
        raise DataError(f"tokenizer.characters has {repeated[0]!r} twice")
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def require_known(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row]) -> None:
    """Check that a character tokenizer has all characters of the rows' prompts and answers.

    Raises:
        DataError: it lacks some. The message names them, and a skill and text that has one.
    """
    vocabulary = set(tokenizer.get_vocab())
    for row in rows:
        text = f"{row['prompt']}{row['answer']}"
        missing = sorted(set(text) - vocabulary)
        if missing:
            raise DataError(
                f"tokenizer.characters lacks {''.join(missing)!r}, which skill {row['skill']!r} has in {text!r:.80}"
            )
