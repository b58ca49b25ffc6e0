"""What is wrong with the files of a model's folder, without loading it: from their names, headers and sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LFS_POINTER = b"version https://git-lfs"

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_ADAPTER = "adapter_config.json"

_JSON = frozenset(
    {
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
        *("special_tokens_map.json", "added_tokens.json", "chat_template.json", _ADAPTER),
    }
)
"""Files in JSON that transformers and PEFT read, beside the indices of weights; others may lie in a model's folder."""

_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What a configuration calls the number of its layers."""

_MAX_HEADER = 100_000_000
"""Bytes of the header of a safetensors file, as the library limits them."""


def model_folder_problem(folder: Path) -> str | None:
    """Return what is wrong with the folder of a model with weights, None where nothing shows.

    Raises:
        OSError: a file cannot be read.
    """
    if not (folder / "config.json").is_file():
        if (folder / _ADAPTER).is_file():
            return "it is a PEFT adapter; give the model that it is for"
        return "it has no config.json"
    if not any((folder / name).is_file() for name in _WEIGHTS) and not any(folder.glob("*.safetensors")):
        return f"it has no weights, such as {_WEIGHTS[0]}"
    return file_problem(folder) or _depth_problem(folder)


def adapter_folder_problem(folder: Path) -> str | None:
    """Return what is wrong with the folder of an adapter, None where nothing shows."""
    if not (folder / _ADAPTER).is_file():
        return f"it has no {_ADAPTER}"
    return file_problem(folder)


def file_problem(folder: Path) -> str | None:
    """Return what is wrong with the files that a folder has, None where nothing shows."""
    return next(_problems(folder), None)


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder that loading reads: of weights in two formats, those in safetensors alone."""
    shards = {name for index in folder.glob("*.safetensors.index.json") for name in _shards(index)}
    weights = {path.name for path in folder.glob("*model.safetensors")} | shards
    patterns = ["*.index.json", "*.model", "merges.txt", "vocab.txt", *([] if weights else ["*model*.bin"])]
    names = {path.name for pattern in patterns for path in folder.glob(pattern)} | weights | _JSON
    return [folder / name for name in sorted(names)]


def _shards(index: Path) -> list[str]:
    """Return the files that an index of weights names; none where it is damaged."""
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        return sorted(set(map(str, weight_map.values())))
    except (ValueError, LookupError, TypeError, AttributeError):
        return []


def _problems(folder: Path) -> Iterator[str]:
    for path in _files(folder):
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(len(_LFS_POINTER))
            if start == _LFS_POINTER:
                yield f"{path.name} is a Git LFS pointer and not the file itself; run `git lfs pull` in the folder"
            elif path.suffix == ".json":
                yield from _json_problems(path)
            elif path.suffix == ".safetensors":
                yield from _safetensors_problems(path)


def _json_problems(path: Path) -> Iterator[str]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"{path.name} is not valid JSON ({error}); copy it again"
        return
    if not isinstance(content, dict) and path.name in ("config.json", "tokenizer.json", _ADAPTER):
        yield f"{path.name} holds no object"
    elif path.name.endswith(".index.json"):
        shards = _shards(path)
        missing = [shard for shard in shards if not (path.parent / shard).is_file()]
        if missing:
            yield f"{len(missing)} of {len(shards)} files of weights are missing, such as {missing[0]}"


def _depth_problem(folder: Path) -> str | None:
    """Return that a configuration has more layers than its files have weights: building them would take minutes."""
    config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text_config = config.get("text_config")
    sizes = text_config if isinstance(text_config, dict) else config
    depth = next((sizes[name] for name in _DEPTHS if name in sizes), 0)
    weights = [path for path in _files(folder) if path.suffix == ".safetensors" and path.is_file()]
    num_weights = sum(len(_header(path)) for path in weights)
    if not weights or not isinstance(depth, int) or depth <= num_weights:
        return None
    return (
        f"its config.json does not describe its weights: it has {depth:,} layers, and its files have {num_weights:,} "
        "weights"
    )


def _header(path: Path) -> dict[str, Any]:
    """Return the header of a sound safetensors file: each tensor's entry by its name."""
    with path.open("rb") as file:
        entries: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: entry for name, entry in entries.items() if name != "__metadata__"}


def _safetensors_problems(path: Path) -> Iterator[str]:
    """A safetensors file is 8 bytes with the length of the header, the header in JSON, and the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            yield f"{path.name} is cut off or no safetensors file ({size} bytes); copy it again"
            return
        try:
            header: Any = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError):
            yield f"{path.name} has a damaged header; copy it again"
            return
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        yield f"{path.name} has {size} bytes and should have {expected}: it is cut off or damaged; copy it again"
