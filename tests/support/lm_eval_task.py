"""A task for lm-eval beside a recipe: to choose between two letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TASK = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/own.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: ["a", "b"]
doc_to_target: label
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def write_lm_eval_task(folder: Path) -> list[dict[str, Any]]:
    """Write the task `own` into `folder/mine` and its eight rows into `folder/own.jsonl`; return the rows."""
    (folder / "mine").mkdir()
    (folder / "mine" / "own.yaml").write_text(_TASK.replace("FOLDER", str(folder)))
    rows = [{"q": f"{'abcd'[i % 4]}=", "label": i % 2} for i in range(8)]
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return rows
