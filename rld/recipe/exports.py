"""The formats that models are exported to: what each can hold, and which packages it needs.

To add one, add it here and write the module of its name in `rld/models/export/`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import NamedTuple


class ExportFormat(NamedTuple):
    """A format of files for another runtime.

    Attributes:
        about: What it is, in a few words.
        bits: The bits of a weight in each precision, the default precision first.
        packages: What is imported to write it and to verify it.
        runtime: The package that loads and runs it, as it is installed.
    """

    about: str
    bits: Mapping[str, int]
    packages: tuple[str, ...]
    runtime: str

    @property
    def missing_package(self) -> str | None:
        """The first package that is not installed; None if all are."""
        return next((name for name in self.packages if importlib.util.find_spec(name) is None), None)


FORMATS: dict[str, ExportFormat] = {
    "gguf": ExportFormat(
        "one file for llama.cpp", {"f16": 16, "f32": 32, "q8_0": 8, "q4_0": 4}, ("gguf", "xllamacpp"), "xllamacpp"
    ),
    "onnx": ExportFormat(
        "a folder for onnxruntime-genai",
        {"f32": 32, "int8": 8, "int4": 4},
        ("onnx", "onnxscript", "onnxruntime_genai"),
        "onnxruntime-genai",
    ),
}
"""The formats by name."""


def install_hint(package: str) -> str:
    """Return what to do about a package that is not installed."""
    return f"it needs the package {package}; install it with: pip install -e '.[export]', in a clone of rld"
