"""ONNX for onnxruntime-genai, written by that package's builder: all architectures and tokenizers that it takes.

The builder takes transformers' own files, and its model has a cache of keys and values.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import math
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rld.errors import ModelError
from rld.models.export.runtime import TOP_K, NextToken
from rld.utils.messages import one_line

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_HEAD_STEP = 16
"""Units of a head come in multiples of it in the runtime's attention on a CPU."""


_TOKENIZERS = ("BPE", "Unigram")
"""Kinds of tokenizers that the runtime reads. One of whole words it refuses at times, and at times spells at random."""


def require_exportable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, precision: str) -> None:
    """Check that the runtime can hold a model; that the builder takes its architecture shows when it is asked.

    Raises:
        ModelError: it cannot.
    """
    scaling: Any = getattr(model.config, "rope_parameters", None) or {}
    if scaling.get("rope_type", "default") not in ("default", "llama3"):
        kind = scaling["rope_type"]
        raise ModelError(f"cannot export to ONNX: its rope_type is {kind!r}, and rld writes 'default' and 'llama3'")
    size = _head_size(model.config)
    if size % _HEAD_STEP and model.config.model_type not in ("llama", "qwen2"):  # others may norm each head
        raise ModelError(
            f"cannot export to ONNX: its heads have {size} units, and onnxruntime-genai takes multiples of {_HEAD_STEP}"
        )


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, precision: str) -> None:
    """Write a model as `model.onnx` with its weights, `genai_config.json` and the files of its tokenizer.

    Args:
        precision: `f32`, or `int8` or `int4`, in which weights are quantised but for the token embeddings.

    Raises:
        ModelError: the builder does not take the model.
    """
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    source, cache = folder / "source", folder / "cache"
    with _quiet():
        _with_wide_heads(model).save_pretrained(source)
    tokenizer.save_pretrained(source)
    arguments = {"f32": "fp32"}.get(precision, precision), "cpu", str(cache)
    extra_options = ["hf_token=false"]
    if precision == "int8":  # in which the head is quantised and embeddings cannot be, so that they share nothing
        extra_options.append("shared_embeddings=false")
    try:
        with _quiet():
            options = parse_extra_options("", str(source), str(folder), *arguments, extra_options)
            create_model("", str(source), str(folder), *arguments, **options)
    except (NotImplementedError, AttributeError, KeyError, ValueError) as error:  # by which it refuses models
        reason = one_line(error) or type(error).__name__
        raise ModelError(f"cannot export to ONNX: onnxruntime-genai's builder refuses the model: {reason}") from error
    for path in (source, cache):
        shutil.rmtree(path, ignore_errors=True)
    tokenizer.save_pretrained(folder)  # the builder's is of the class that transformers takes for the architecture


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _with_wide_heads(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model with heads of a size that the runtime takes, which computes what the model computes.

    Zeros are put behind each half of the queries and keys of a head, because a unit is turned with that half a head
    away, and behind its values. Unit i of d is turned by the angle `theta ** (-2 i / d)` per position: `theta` becomes
    `theta ** (D / d)` with D units. Queries grow by `sqrt(D / d)`, as attention divides by the root of the size.
    """
    import torch

    old = _head_size(model.config)
    new = -(-old // _HEAD_STEP) * _HEAD_STEP
    if new == old:
        return model
    config: Any = copy.deepcopy(model.config)
    config.head_dim = new
    config.rope_parameters = {
        **config.rope_parameters,
        "rope_theta": config.rope_parameters["rope_theta"] ** (new / old),
    }
    with torch.device("meta"):
        wide = type(model)(config)
    weights = {name: _widened(name, weight, old, new) for name, weight in model.state_dict().items()}
    wide.load_state_dict(weights, assign=True)
    wide.tie_weights()
    wide.generation_config = model.generation_config
    return wide


def _widened(name: str, weight: Tensor, old: int, new: int) -> Tensor:
    """Return a weight of a model with heads of `new` units instead of `old`."""
    from torch.nn.functional import pad

    part = next((part for part in ("q_proj", "k_proj", "v_proj", "o_proj") if f".{part}." in name), None)
    if part is None:
        return weight
    weight = weight.detach().float()
    rows = weight.T if part == "o_proj" else weight.reshape(len(weight), -1)  # heads are the columns of o_proj
    num_parts = 2 if part in ("q_proj", "k_proj") else 1
    parts = rows.reshape(-1, old // num_parts, rows.shape[1])
    wide = pad(parts, (0, 0, 0, (new - old) // num_parts)).reshape(-1, rows.shape[1])
    if part == "q_proj":
        wide = wide * math.sqrt(new / old)
    return wide.T.contiguous() if part == "o_proj" else wide.reshape(-1, *weight.shape[1:])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the builder's lines of each layer from the terminal."""
    logger = logging.getLogger("onnxruntime.quantization")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def import_runtime() -> None:
    """Import onnxruntime-genai."""
    import onnxruntime_genai  # noqa: F401


def open_runtime(folder: Path, context: int, threads: int) -> OnnxRuntime:
    """Load the model of a folder."""
    return OnnxRuntime(folder, context, threads)


class OnnxRuntime:
    """A folder with an ONNX model in onnxruntime-genai; see `Runtime`.

    Raises:
        RuntimeError: it refuses the files or a sequence.
    """

    def __init__(self, folder: Path, context: int, threads: int) -> None:
        import onnxruntime_genai as og

        config = og.Config(str(folder))
        session = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._context = context
        self._model = og.Model(config)
        path = folder / "tokenizer.json"
        kind = json.loads(path.read_text(encoding="utf-8"))["model"]["type"] if path.is_file() else None
        self._tokenizer = og.Tokenizer(self._model) if kind in _TOKENIZERS else None

    def score(self, ids: list[int], num_scored: int) -> list[NextToken]:
        """Read the first half at once and the rest token by token, as they are when an answer is generated."""
        generator, start = self._generator(), len(ids) - num_scored
        size = max(start, len(ids) // 2)
        logits = [*_read(generator, ids[:size])[start - 1 :]]
        logits += [_read(generator, [token])[-1] for token in ids[size:-1]]
        return [_next_token(row, token) for row, token in zip(logits, ids[start:], strict=True)]

    def generate(self, ids: list[int], max_new_tokens: int, ends: Collection[int]) -> list[int]:
        generator, tokens, unread = self._generator(), list[int](), ids
        while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in ends):
            tokens.append(int(_read(generator, unread)[-1].argmax()))
            unread = tokens[-1:]
        return tokens

    def seconds_per_token(self, ids: list[int], num_tokens: int) -> float:
        generator = self._generator()
        _read(generator, ids)
        started = time.perf_counter()
        for _ in range(num_tokens):
            _read(generator, ids[-1:])
        return (time.perf_counter() - started) / num_tokens

    def encode(self, text: str) -> list[int] | None:
        return None if self._tokenizer is None else [int(i) for i in self._tokenizer.encode(text)]

    def render(self, question: str) -> str | None:
        if self._tokenizer is None:
            return None
        messages = json.dumps([{"role": "user", "content": question}])
        return str(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True))

    def _generator(self) -> Any:
        import onnxruntime_genai as og

        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self._context, do_sample=False)
        return og.Generator(self._model, parameters)


def _read(generator: Any, ids: list[int]) -> np.ndarray:
    """Have a model read tokens behind those that it has read, and return the logits behind each of them, `[T, V]`."""
    import numpy as np

    generator.append_tokens(np.array(ids, np.int32))
    logits: np.ndarray = generator.get_output("logits")[0]
    return logits


def _next_token(logits_V: np.ndarray, following: int) -> NextToken:
    import numpy as np

    logits_V = logits_V.astype(np.float64)
    logprobs_V = logits_V - logits_V.max()
    logprobs_V -= np.log(np.exp(logprobs_V).sum())
    best = np.argsort(-logprobs_V, kind="stable")[:TOP_K]
    return NextToken(float(logprobs_V[following]), best.tolist(), logprobs_V[best].tolist())
