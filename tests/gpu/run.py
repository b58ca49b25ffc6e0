"""Check and time on one GPU what the tests check on a CPU: parity, memory, waits and updates. Some 10 minutes.

    python -m tests.gpu.run [--small] [--output FOLDER]

It writes `gpu.json` and `gpu.md`, a table with the card's name, and stops at the first thing that does not hold.
`--small` does the same with tiny models, also on a CPU, where seconds and peaks of memory say nothing of a card.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rld.trainer.trl_patches import patch_trl
from tests.gpu import fused_pass, model_sections, sizes
from tests.gpu.measure import free

SECTIONS = {
    "parity of the fused pass": fused_pass.parity,
    "memory of the fused pass": fused_pass.memory,
    "waits of the fused pass": fused_pass.waits,
    "shared rows": model_sections.shared_rows,
    "teacher scoring": model_sections.teacher_scoring,
    "update": model_sections.update,
}


def card(device: torch.device) -> str:
    """Return the name of what the sections run on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}"


def run(used: sizes.Sizes) -> dict[str, Any]:
    """Run all sections; return what each measured, and the card."""
    patch_trl()
    sections, started = {}, time.perf_counter()
    for name, section in SECTIONS.items():
        start = time.perf_counter()
        sections[name] = section(used) | {"section seconds": time.perf_counter() - start}
        print(f"{name}: {sections[name]['section seconds']:.1f} s", flush=True)
        free()
    return {
        "card": card(used.device),
        "torch": torch.__version__,
        "is_small": used.vocabulary < sizes.full().vocabulary,
        "seconds": time.perf_counter() - started,
        "sections": sections,
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as a table in Markdown."""
    small = ", small form" if result["is_small"] else ""
    lines = [f"Measured on: {result['card']}{small}, torch {result['torch']}", "", "| section | what | value |"]
    lines.append("|---|---|---|")
    for section, values in result["sections"].items():
        lines += [f"| {section} | {name} | {_text(value)} |" for name, value in _flat(values)]
    return "\n".join(lines) + "\n"


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += _flat(value, f"{before}{name}: ") if isinstance(value, dict) else [(before + name, value)]
    return rows


def _text(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("."))
    options = parser.parse_args()
    if not options.small and not torch.cuda.is_available():
        parser.error("there is no GPU here; --small runs on a CPU")
    warnings.simplefilter("ignore")
    result = run(sizes.small() if options.small else sizes.full())
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.output / "gpu.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
