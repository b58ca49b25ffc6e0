"""Draw `docs/results/report/*.json`: each scenario's mean held-out score against compute, one line per arm.

Arms that were not run again are those of `docs/results/earlier`.

    python -m tests.benchmarks.scenario_curves docs/results/scenarios.svg

needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
ARMS = {"gap": "C0", "fixed-.5": "C1", "sequential": "C2", "distil": "C3", "policy": "C7"}
SHOWN = {"gap": "gap", "fixed-.5": "fixed, policy 0.5", "distil": "distillation alone", "policy": "policy alone (GRPO)"}


def curve(run: dict[str, Any], at: np.ndarray) -> np.ndarray:
    """A run's mean score over skills, at shares of what it spent."""
    spent = np.array([point["flops"] for point in run["curve"]])
    scores = [fmean(point["scores"].values()) for point in run["curve"]]
    return np.interp(at, spent, scores)


def main(output: Path) -> None:
    results = ROOT / "docs" / "results"
    paths = sorted((results / "report").glob("s*.json"))
    figure, axes = plt.subplots(2, 4, figsize=(13, 6), sharey=True)
    for path, ax in zip(paths, axes.flat, strict=True):
        now, earlier = (json.loads((results / name / path.name).read_text())["runs"] for name in ("report", "earlier"))
        for arm, colour in ARMS.items():
            runs = [run for run in now if run["arm"] == arm] or [run for run in earlier if run["arm"] == arm]
            at = np.linspace(0, min(run["curve"][-1]["flops"] for run in runs), 60)
            curves = np.stack([curve(run, at) for run in runs])
            middle, error = curves.mean(0), curves.std(0, ddof=1) / len(runs) ** 0.5
            ax.plot(at / 1e9, middle, colour, label=SHOWN.get(arm, arm), linewidth=2.2 if arm == "gap" else 1.3)
            ax.fill_between(at / 1e9, middle - error, middle + error, color=colour, alpha=0.15, linewidth=0)
        ax.set_title(f"{path.stem}, {len(runs)} seeds", fontsize=9)
        ax.tick_params(labelsize=8)
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel("GFLOP of student and teachers", fontsize=9)
    figure.supylabel("held-out score, mean ± standard error", fontsize=9)
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
