"""GGUF, the format of llama.cpp (github.com/ggml-org/ggml, docs/gguf.md): Llama and Qwen2 with byte-level BPE or with a
token for each character.

Weights are written by the package gguf, and run by xllamacpp, llama.cpp with a Python interface. Its server answers one
token at a time here, because it drops tokens that are no whole characters from longer answers.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rld.errors import ModelError
from rld.models.export.gguf_tokenizer import tokenizer_problem, write_tokenizer
from rld.models.export.runtime import TOP_K, NextToken

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "model.gguf"

_ALL = 1 << 20
"""More tokens than a vocabulary has."""

_BLOCK = 32
"""Weights that Q8_0 and Q4_0 quantise together."""


# -- what can be exported ----------------------------------------------------------------------------------------------


def require_exportable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, precision: str) -> None:
    """Check that llama.cpp has all that a model and its tokenizer need.

    Raises:
        ModelError: it has not; the message names what.
    """
    config: Any = model.config
    problem = _model_problem(config) or tokenizer_problem(tokenizer)
    widths = config.hidden_size, config.intermediate_size
    if problem is None and precision.startswith("q") and any(width % _BLOCK for width in widths):
        problem = f"{precision} needs widths in multiples of {_BLOCK}, and its hidden_size and intermediate_size are "
        problem += f"{widths[0]} and {widths[1]}; take f16"
    if problem is not None:
        raise ModelError(f"cannot export to GGUF: {problem}")


def _model_problem(config: Any) -> str | None:
    rope = config.rope_parameters if hasattr(config, "rope_parameters") else {}
    required = {
        "model_type": (config.model_type, ("llama", "qwen2")),
        "rope_type": (rope.get("rope_type", "default"), ("default",)),
        "hidden_act": (getattr(config, "hidden_act", "silu"), ("silu",)),
        "attention_bias": (getattr(config, "attention_bias", False), (False,)),
        "mlp_bias": (getattr(config, "mlp_bias", False), (False,)),
        "use_sliding_window": (getattr(config, "use_sliding_window", False), (False,)),
    }
    for name, (value, possible) in required.items():
        if value not in possible:
            return f"its {name} is {value!r}, and rld writes {' and '.join(map(repr, possible))}; export it to onnx"
    return None


# -- the file ----------------------------------------------------------------------------------------------------------


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, precision: str) -> None:
    """Write a model as `model.gguf`.

    Vectors stay in float32. In a file of `q4_0` the token embeddings and the output head are in `q8_0`, as all
    logits depend on them.

    Args:
        precision: `f32`, `f16`, `q8_0` or `q4_0`.
    """
    import gguf

    config: Any = model.config
    architecture = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[config.model_type]
    writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[architecture])
    kinds = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
    writer.add_name(Path(config.name_or_path).name or "student")
    writer.add_file_type(gguf.LlamaFileType[kinds[precision]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_config(writer, config)
    write_tokenizer(writer, tokenizer, config.vocab_size, _ends(model))
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, weight in _weights(model):
        to = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if to is None:
            raise ModelError(f"cannot export to GGUF: llama.cpp has no weight {name} in {config.model_type}")
        is_vocabulary = to.startswith(("token_embd.", "output."))
        kind = "f32" if weight.ndim == 1 else "q8_0" if precision == "q4_0" and is_vocabulary else precision
        quantised = gguf.quants.quantize(weight, gguf.GGMLQuantizationType[kind.upper()])
        writer.add_tensor(to, quantised, raw_dtype=gguf.GGMLQuantizationType[kind.upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_config(writer: Any, config: Any) -> None:
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _ends(model: PreTrainedModel) -> list[int]:
    ends: Any = getattr(model.generation_config, "eos_token_id", None)
    return [] if ends is None else [*ends] if isinstance(ends, list) else [ends]


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weights in float32 by their names; a head that is tied to the embeddings is left out.

    llama.cpp turns neighbouring units of queries and keys of a Llama by one angle, and transformers those that are half
    a head apart, so their rows are put in another order.
    """
    config: Any = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = tensor.detach().float().cpu().numpy()
        num_heads = heads.get(name.split(".")[-2])
        if config.model_type == "llama" and num_heads is not None:
            weight = weight.reshape(num_heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
        yield name, weight


# -- the runtime -------------------------------------------------------------------------------------------------------


def import_runtime() -> None:
    """Import llama.cpp."""
    import xllamacpp  # noqa: F401


def open_runtime(folder: Path, context: int, threads: int) -> LlamaCpp:
    """Load `model.gguf` of a folder."""
    return LlamaCpp(folder / FILE, context, threads)


class LlamaCpp:
    """A GGUF file in llama.cpp; see `Runtime`. Its server is reachable from this machine only.

    Raises:
        RuntimeError: llama.cpp refuses the file or a sequence.
    """

    def __init__(self, path: Path, context: int, threads: int) -> None:
        import xllamacpp

        options = xllamacpp.CommonParams()
        options.model.path = str(path)
        options.n_ctx, options.n_parallel, options.n_gpu_layers = context, 1, 0
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
        options.warmup, options.verbosity = False, -1
        self._server = xllamacpp.Server(options)
        (self._letter, *_) = self.encode("a") or [0]

    def score(self, ids: list[int], num_scored: int) -> list[NextToken]:
        return [self._score(ids[:i], ids[i]) for i in range(len(ids) - num_scored, len(ids))]

    def _score(self, ids: list[int], following: int) -> NextToken:
        answer = self._ask(ids, following, TOP_K)
        if answer is None:  # the token is no whole character, which is not told: look for it among all
            answer = self._ask(ids, self._letter, _ALL)
            logprobs = {token["id"]: token["logprob"] for token in answer["top_logprobs"]}
            if following not in logprobs:
                raise RuntimeError(f"llama.cpp gives no probability of token {following}")
            logprob = logprobs[following]
        else:
            logprob = answer["logprob"]
        best = answer["top_logprobs"][:TOP_K]
        return NextToken(logprob, [token["id"] for token in best], [token["logprob"] for token in best])

    def generate(self, ids: list[int], max_new_tokens: int, ends: Collection[int]) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in ends):
            tokens.append(self._ask([*ids, *tokens], self._letter, 1)["top_logprobs"][0]["id"])
        return tokens

    def seconds_per_token(self, ids: list[int], num_tokens: int) -> float:
        answer = self._complete({"prompt": ids, "n_predict": num_tokens, "ignore_eos": True})
        return float(answer["timings"]["predicted_ms"]) / 1000 / int(answer["timings"]["predicted_n"])

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._post("tokenize", {"content": text, "add_special": True})["tokens"]
        return ids

    def render(self, question: str) -> str:
        return str(self._post("apply-template", {"messages": [{"role": "user", "content": question}]})["prompt"])

    def _post(self, path: str, content: dict[str, Any]) -> Any:
        """Ask the server what it tells over HTTP alone."""
        request = urllib.request.Request(f"{self._server.listening_address}/{path}", json.dumps(content).encode())
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode(errors="replace")) from error

    def _ask(self, ids: list[int], forced: int, num_likeliest: int) -> Any:
        """Return what the model says of a token that it is made to choose, and of the likeliest ones without that.

        None where the token is not a whole character.
        """
        choice = self._complete(
            {
                "prompt": ids,
                "n_predict": 1,
                "n_probs": num_likeliest,
                "logit_bias": [[forced, 1e9]],
                "cache_prompt": True,
            }
        )["choices"][0]
        return choice["logprobs"]["content"][0] if choice["logprobs"] else None

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._server.handle_completions({"temperature": 0, **request})
        if "error" in answer:
            raise RuntimeError(answer["error"]["message"])
        return answer
