"""Data sets of the hub, from the cache of a machine without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import yaml

from rld.data.file_items import read_items
from rld.data.formats import hub
from rld.data.formats.hub import HubRows
from rld.data.recipe_rows import skill_rows
from rld.data.row_kinds import RowReader
from rld.errors import DataError
from rld.recipe.inputs import Inputs
from rld.recipe.reading import read_recipe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = HubRows("owner/sums", None, "train", None)
READER = RowReader(columns={"question": "sum", "answer": "result"})
RECIPE = {
    "name": "r",
    "models": {"small": {"new": "llama", "config": {"hidden_size": 16, "num_attention_heads": 2}}},
    "tokenizer": {"characters": "0123456789+"},
    "max_new_tokens": 3,
    "skills": {
        "sums": {
            "dataset": "owner/sums",
            "columns": {"question": "sum", "answer": "result"},
            "held_out": {"split": "test"},
        }
    },
    "stages": [{"name": "s", "kind": "sft", "student": "small", "steps": 1}],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache as `datasets.load_dataset` leaves it behind."""
    folder = tmp_path_factory.mktemp("cache")
    files = {}
    for split, numbers in {"train": range(8), "test": range(8, 10)}.items():
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(json.dumps({"sum": f"{i}+1", "result": i + 1}) for i in numbers))
    datasets.load_dataset("json", data_files=files, cache_dir=str(folder / "built"))
    (built,) = (path.parent for path in (folder / "built").rglob("dataset_info.json"))
    shutil.copytree(built, folder / "owner___sums" / "default" / "0.0.0" / COMMIT)
    for split in files:
        arrow = folder / "owner___sums" / "default" / "0.0.0" / COMMIT / f"json-{split}.arrow"
        arrow.rename(arrow.with_name(f"sums-{split}.arrow"))
    return folder


@pytest.fixture
def offline(cache, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    hub.commit.cache_clear()
    yield
    hub.commit.cache_clear()


@pytest.mark.usefixtures("offline")
def test_rows_and_held_out_rows_are_read_from_the_cache_and_the_commit_is_noted(tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    recipe = read_recipe(tmp_path / "r.yaml")
    rows = skill_rows(recipe, tmp_path)["sums"]
    assert [(row["prompt"], row["answer"]) for row in rows.held_out()] == [("8+1", "9"), ("9+1", "10")]
    assert {row["prompt"] for row in rows.rows(60, seed=0)} == {f"{i}+1" for i in range(8)}
    assert Inputs.of(recipe, tmp_path, {}).files["data set owner/sums, train"] == COMMIT
    ((items,),) = read_items(ROWS._replace(split="train[:3]", revision=COMMIT), reader=READER)
    assert [item.place for item in items] == ["sums:1", "sums:2", "sums:3"]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS._replace(dataset="owner/none"), "owner/none.*; it is not in the cache of this machine either"),
        (ROWS._replace(split="tst"), 'Unknown split "tst". Should be one of'),
        (ROWS._replace(name="odd"), "for config 'odd'"),
        (ROWS._replace(revision="f" * 40), f"has commit {COMMIT}, and nothing says that it is revision fff"),
        (ROWS._replace(revision="v2"), "nothing says that it is revision v2; load that once with a network"),
    ],
)
def test_what_the_cache_lacks_is_refused_by_name(rows, message):
    with pytest.raises(DataError, match=message):
        read_items(rows, reader=READER)


def test_check_opens_the_data_set_and_names_a_path_that_is_no_id(tmp_path, cache):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}

    def check(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rld", "check", str(tmp_path / "r.yaml"), *overrides]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    checked = check()
    assert checked.returncode == 0, checked.stderr
    assert "owner/sums, train" in checked.stdout and "0+1" in checked.stdout
    for override, message in {
        "skills.sums.columns={question: sum, answer: reslt}": "'reslt' as answer, of held-out rows too; did you",
        "skills.sums.held_out={splitt: test}": "'skills.sums.held_out.split' is required",
        "skills.sums.dataset=r.yaml": "'r.yaml' is no id of the hub (owner/name); files have the key `file`",
    }.items():
        refused = check(override)
        assert refused.returncode == 2 and message in refused.stderr
