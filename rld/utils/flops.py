"""Floating-point operations and bytes of a model.

Operations are counted as usual: 2 per parameter and token forwards, twice that backwards (Kaplan et al. 2020, section
2.1), without the quadratic part of attention.
"""

from __future__ import annotations

_FLOAT32 = 4

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def forward_flops(num_parameters: int, tokens: int) -> int:
    """Return the operations of a forward pass over `tokens` tokens."""
    return 2 * num_parameters * tokens


def training_flops(num_parameters: int, tokens: int) -> int:
    """Return the operations of a forward and a backward pass over `tokens` tokens."""
    return 3 * forward_flops(num_parameters, tokens)


def training_bytes(num_parameters: int) -> int:
    """Return the memory of weights, gradients and AdamW's two moments in float32."""
    return 4 * _FLOAT32 * num_parameters


def frozen_bytes(num_parameters: int, dtype: str = "float32") -> int:
    """Return the memory of weights that are only read, such as a teacher's."""
    return _BYTES.get(dtype, _FLOAT32) * num_parameters
