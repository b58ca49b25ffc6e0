"""Write `summary.json`: the status, cost and finished stages of a run, updated after each stage."""

from __future__ import annotations

import shlex
import sys
import time
from typing import Any

from rld.pipeline.run import RunContext
from rld.recipe.inputs import InputsFile
from rld.utils import files
from rld.utils.secrets import masked_override
from rld.utils.versions import package_versions

_CONTINUES = ("--resume", "--accept-changes")
"""Words of a command line that continue a run, and start none."""


def command_line() -> str:
    """Return the command that makes the run of this process anew, with secrets masked."""
    words = [word for word in sys.argv[1:] if word not in _CONTINUES]
    return shlex.join(["rld", *map(masked_override, words)])


class SummaryWriter:
    """Writes `summary.json` from the records of the finished stages."""

    def __init__(self, run: RunContext) -> None:
        self.run = run
        changes = InputsFile.read(run.paths.inputs).changes
        self.constants = {
            "recipe": run.recipe.name,
            "recipe_file": str(run.source.absolute()),
            "seed": run.recipe.seed,
            "input_changes": [change.model_dump(mode="json") for change in changes],
            "command": command_line(),
            "launch": run.launch.model_dump(mode="json"),
            "versions": package_versions(),
            "heldout_rows": {
                skill: sum(row["skill"] == skill for row in run.evaluator.rows) for skill in run.recipe.skills
            },
        }

    def write(self, status: str) -> dict[str, Any]:
        """Write the file with the status, and return its content; processes other than the main one only return it."""
        records = [self.run.finished(stage.name) for stage in self.run.recipe.stages]
        stages = [record for record in records if record is not None]
        summary = self.constants | {
            "status": status,
            "seconds": round(time.monotonic() - self.run.started, 1),
            "report_seconds": round(self.run.page.seconds, 3),
            "flops": sum(record["flops"] for record in stages),
            "stages": stages,
        }
        if self.run.state.is_main_process:
            files.write_json(self.run.paths.summary, summary)
        return summary
