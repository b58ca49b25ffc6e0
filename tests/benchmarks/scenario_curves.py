"""Draw `docs/results/scenario_curves.csv`: each scenario's mean held-out score against compute, one line per arm.

    python -m tests.benchmarks.scenario_curves docs/results/scenarios.svg

needs matplotlib.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
ARMS = {"gap": "C0", "fixed-.5": "C1", "sequential": "C2", "distil": "C3", "policy": "C7"}
LABELS = {"fixed-.5": "fixed, policy 0.5", "distil": "distillation alone", "policy": "policy alone (GRPO)"}


def read() -> dict[str, dict[str, np.ndarray]]:
    """Return compute in FLOPs, mean score and its standard error, `[num_points, 3]`, by scenario and arm."""
    curves: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    with (ROOT / "docs" / "results" / "scenario_curves.csv").open() as file:
        for row in csv.DictReader(file):
            point = [float(row[column]) for column in ("compute_flops", "mean", "standard_error")]
            curves[row["scenario"]][row["arm"]].append(point)
    return {name: {arm: np.array(points) for arm, points in arms.items()} for name, arms in curves.items()}


def main(output: Path) -> None:
    plt.rcParams["svg.fonttype"] = "none"
    plt.rcParams["svg.hashsalt"] = "scenarios"
    figure, axes = plt.subplots(2, 4, figsize=(13, 6), sharey=True)
    for (name, arms), ax in zip(read().items(), axes.flat, strict=True):
        for arm, colour in ARMS.items():
            flops, mean, error = arms[arm].T
            ax.plot(flops / 1e9, mean, colour, label=LABELS.get(arm, arm), linewidth=2.2 if arm == "gap" else 1.3)
            ax.fill_between(flops / 1e9, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
        ax.set_title(name, fontsize=9)
        ax.tick_params(labelsize=8)
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel("GFLOP of student and teachers", fontsize=9)
    figure.supylabel("held-out score, mean of eight seeds ± standard error", fontsize=9)
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
