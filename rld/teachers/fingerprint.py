"""A hash by which two copies of a model are known to be one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from rld.models.adapters import own_weights

_NOT_HASHED = frozenset(
    {
        *("transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "auto_map"),
        *("base_model_name_or_path", "revision", "inference_mode", "peft_version", "runtime_config"),  # of adapters
    }
)
"""Entries of a configuration that differ between copies of one model."""

_SAMPLES_PER_WEIGHT = 64
"""Values of each weight that a fingerprint is computed from."""


def fingerprint(model: PreTrainedModel, adapter_name: str | None) -> str:
    """Return a hash of the configuration and of samples of the weights, those of the adapter included.

    Entries of the configuration that differ between copies of one model are left out: paths, storage and special
    tokens.

    Args:
        model: The model.
        adapter_name: The adapter in it that counts. None: none does.
    """
    digest = hashlib.sha256(_hashed_entries(model.config.to_dict()))
    if adapter_name is not None:  # its configuration has the scale of its weights
        adapted: Any = model
        config = adapted.peft_config[adapter_name].to_dict()
        entries = {key: sorted(v) if isinstance(v, set) else v for key, v in config.items()}
        digest.update(_hashed_entries(entries))
    for name, weight in own_weights(model, adapter_name):
        values = weight.detach().flatten()
        step = max(1, values.numel() // _SAMPLES_PER_WEIGHT)
        sample = values[::step][:_SAMPLES_PER_WEIGHT].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _hashed_entries(config: Mapping[str, Any]) -> bytes:
    """Return the entries of a configuration that a fingerprint is computed from, as JSON."""
    return json.dumps(_without_origin(config), sort_keys=True, default=str).encode()


def _without_origin(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    entries = {str(key): value for key, value in config.items() if str(key) not in _NOT_HASHED}
    names = [name for name in entries if not name.startswith("_") and not name.endswith("token_id")]
    return {name: _without_origin(entries[name]) for name in names}
