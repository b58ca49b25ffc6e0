"""The character tokenizer."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rld.errors import DataError


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
