"""Loads pre-trained models and tokenizers; whatever the libraries behind it raise becomes one clear error.

A model is refused where weights that it needs are not in its files, because transformers would draw them at random.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import deepspeed

from rld.errors import ModelError
from rld.utils import secrets
from rld.utils.hub import use_caches_if_unreachable
from rld.utils.messages import one_line
from rld.utils.model_files import file_problem, model_folder_problem
from rld.utils.os_errors import is_system_failure

_HUB_OPTIONS = frozenset({"revision", "trust_remote_code", "subfolder", "token", "cache_dir", "local_files_only"})
"""Arguments of `from_pretrained` that a tokenizer and a configuration take as a model does."""

_DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("tekken.json", "tiktoken.model"),
)


@contextmanager
def loading_whole() -> Iterator[None]:
    """Let transformers build whole models; while there is a trainer with ZeRO-3, it would build parts of them."""
    reference = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        configuration = None if reference is None else reference()
        if configuration is not None:
            deepspeed.set_hf_deepspeed_config(configuration)


def load_model(place: str, options: Mapping[str, Any]) -> PreTrainedModel:
    """Return a causal language model with all of its weights.

    Args:
        place: A folder or a hub id.
        options: Arguments of `from_pretrained`. Code beside the weights runs only with `trust_remote_code`.

    Raises:
        ModelError: it cannot be loaded, or its files lack weights; the message names the place and the reason.
    """
    options = {"trust_remote_code": False, **options}
    _require_dtype(place, options.get("dtype", options.get("torch_dtype")))
    with _clear_errors(place, options):
        arguments = {**options, "ignore_mismatched_sizes": True, "output_loading_info": True}
        with loading_whole():
            loaded: Any = AutoModelForCausalLM.from_pretrained(place, **arguments)
        model: PreTrainedModel = loaded[0]
    _require_weights(place, loaded[1])
    return model


def load_config(place: str, options: Mapping[str, Any]) -> tuple[PretrainedConfig, list[int]]:
    """Return the configuration of a model, and the tokens that end its answers; the arguments are as in `load_model`.

    Raises:
        ModelError: it cannot be loaded.
    """
    hub = _hub_options(options)
    with _clear_errors(place, options):
        config: PretrainedConfig = AutoConfig.from_pretrained(place, **hub)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{place!r} has an encoder (is_encoder_decoder in its config.json); choose a decoder alone")
    try:
        ends: Any = GenerationConfig.from_pretrained(place, **hub).eos_token_id
    except OSError:  # it has no file for it, and transformers derives it from the configuration
        ends = getattr(config.get_text_config(), "eos_token_id", None)
    return config, [int(i) for i in (ends if isinstance(ends, list) else [ends]) if i is not None]


def load_skeleton(place: str, options: Mapping[str, Any]) -> PreTrainedModel:
    """Return a model without weights, on the meta device; the arguments are as in `load_model`.

    Raises:
        ModelError: its configuration cannot be used, or its files are broken.
    """
    config, _ = load_config(place, options)
    trust = _hub_options(options)["trust_remote_code"]
    with _clear_errors(place, options), torch.device("meta"), loading_whole():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    return model


def load_tokenizer(place: str, options: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, which pads on the left.

    Args:
        place: A folder or a hub id.
        options: Arguments of the model's `from_pretrained`; those that say where files are hold for the tokenizer.

    Raises:
        ModelError: it cannot be loaded.
    """
    hub = _hub_options(options or {})
    folder = Path(place) / hub.get("subfolder", "")
    may_lack_files = not folder.is_dir() or hub["trust_remote_code"]
    if not may_lack_files and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        fix = "copy the files of its tokenizer into the folder, such as tokenizer.json"
        raise ModelError(f"cannot load the tokenizer of {place!r}: there is none; {fix}")
    with _clear_errors(place, hub, "the tokenizer of ", file_problem):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, padding_side="left", **hub)
    return tokenizer


def require_end(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], place: str) -> None:
    """Give a tokenizer without a pad token an end token as one, and refuse a model that knows no end of an answer.

    Args:
        ends: The tokens that end an answer by the model's generation configuration.
        place: The folder or hub id, for the error.

    Raises:
        ModelError: neither the tokenizer nor the configuration has an end token.
    """
    if tokenizer.eos_token is None and not ends:
        fix = "set eos_token in its tokenizer_config.json, or eos_token_id in its generation_config.json"
        raise ModelError(f"{place!r} has no end token, so no answer of it would end; {fix}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(ends[0])


def _hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    hub = {name: value for name, value in options.items() if name in _HUB_OPTIONS}
    return {"trust_remote_code": False, **hub}  # without it transformers asks on the terminal


@contextmanager
def _clear_errors(
    place: str,
    options: Mapping[str, Any],
    part: str = "",
    folder_problem: Callable[[Path], str | None] = model_folder_problem,
) -> Iterator[None]:
    """Name the model and the cause in a line where a library cannot load it; its files are looked at first.

    Raises:
        ModelError: it cannot be loaded.
    """
    secrets.remember(options)
    folder = Path(place)
    problem = folder_problem(folder) if folder.is_dir() and "subfolder" not in options else None
    if problem is not None:
        raise ModelError(f"cannot load {part}{place!r}: {problem}")
    if not folder.is_dir():
        use_caches_if_unreachable()
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # each library behind it has exceptions of its own
        if is_system_failure(error):
            raise
        raise ModelError(f"cannot load {part}{place!r}: {_reason(place, error)}") from error


def refusal(error: Exception) -> str:
    """Return in one line why transformers refuses a configuration, without the function of it that found out."""
    is_wrapper = isinstance(error, StrictDataclassClassValidationError) and error.__cause__ is not None
    reason = error.__cause__ if is_wrapper else error
    return f"{type(reason).__name__}: {one_line(reason)}"


def _require_dtype(place: str, dtype: Any) -> None:
    if isinstance(dtype, str) and dtype.removeprefix("torch.") not in _DTYPES:
        raise ModelError(f"cannot load {place!r}: dtype cannot be {dtype!r}; choose from {', '.join(_DTYPES)}")


def _require_weights(place: str, info: Mapping[str, Any]) -> None:
    """Refuse a model whose files lack weights or have others, and tell of those that are not used."""
    missing, unused = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, shape, config_shape = mismatched[0]
        raise ModelError(
            f"cannot load {place!r}: its config.json does not describe its weights: {name} is {list(shape)} in its "
            f"files and {list(config_shape)} by config.json ({len(mismatched)} weights differ)"
        )
    if missing:
        others = f", but have {unused[0]}, which it does not know" if unused else ""
        raise ModelError(
            f"cannot load {place!r}: its files lack {len(missing)} of its weights, such as {missing[0]}{others}; they "
            "would be random. Is config.json that of these weights, and are they those of a causal language model?"
        )
    if unused:
        example = f"{len(unused)} weights of its files are not used, such as {unused[0]}"
        warnings.warn(f"{place}: {example}; is its config.json right?", stacklevel=3)


def _reason(place: str, error: Exception) -> str:
    text = one_line(secrets.masked_text(str(error)))
    if "trust_remote_code" in text:
        return (
            "it has code of its own, which rld runs only if you trust it: set trust_remote_code: true among the "
            "options of from_pretrained"
        )
    if "Weights only load failed" in text:  # with torch's advice to load it all the same
        return "a file of it holds more than weights, which could run code, and is refused; use safetensors"
    if "Unrecognized configuration class" in text:
        kind = text.partition("configuration_")[2].partition(".")[0] or "this"
        return f"a model of type {kind!r} is no causal language model"
    if "Repo id must" in text:
        return _no_folder(place)
    if "couldn't connect" in text or "offline" in text.lower():
        is_offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        why = "HF_HUB_OFFLINE is set" if is_offline else "the hub cannot be reached"
        if Path(place).parent != Path() and Path(place).parent.is_dir():
            return _no_folder(place)
        return f"it is no folder here and not in the cache, and {why}; download it with `hf download {place}`"
    if "recognize this architecture" in text or "model_type" in text:
        return f"{text.partition('. ')[0]}; transformers may be too old for it"
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _no_folder(place: str) -> str:
    """Return that a folder does not exist, and which ones are beside it."""
    parent = Path(place).parent
    folders = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else None
    if folders is None:
        return f"there is no such folder, nor {parent}"
    place = "the current folder" if parent == Path() else str(parent)
    return f"there is no such folder; {place} has {', '.join(folders[:8]) or 'no folders'}"
