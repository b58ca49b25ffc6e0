"""The source distribution and the wheel: what is in them, and a run of the wheel outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("rld", "rewards", "curricula", "recipes")
TESTED = ("tests", "docs", ".ci", "README.md", "CONTRIBUTING.md", "SECURITY.md", "constraints.txt", "pyproject.toml")
"""What the tests read, beside the sources."""

BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""
"""Builds as pip does, but by the installed setuptools: without a network."""

SHORT = [f"stages.{name}.steps=1" for name in ("order", "letters", "first_steps", "distill")]
FEW_ROWS = [f"skills.{skill}.held_out=2" for skill in ("reverse", "sort", "shift", "rotate")]


class Distributions(NamedTuple):
    """The unpacked source distribution, and the folder in which the wheel that was built from it is installed."""

    source: Path
    site: Path


def run(command: list[str], cwd: Path, **environment: str) -> str:
    process = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def files(folder: Path, *names: str) -> set[str]:
    """Return the files in some files and folders of a folder, but those that Python compiled."""
    paths = [
        path for name in names for path in ((folder / name).rglob("*") if (folder / name).is_dir() else [folder / name])
    ]
    return {path.relative_to(folder).as_posix() for path in paths if path.is_file() and path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    folder = tmp_path_factory.mktemp("distributions")
    tree = folder / "tree"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "runs", "*.egg-info", "*cache*", ".hypothesis")
    shutil.copytree(
        ROOT, tree, ignore=lambda path, names: ignored(path, names) if Path(path) == ROOT else {"__pycache__"}
    )
    run([sys.executable, "-c", BUILD, "build_sdist", str(folder)], tree)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    run([sys.executable, "-c", BUILD, "build_wheel", str(folder)], source)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return Distributions(source, folder / "site")


def test_every_file_of_the_sources_is_in_both(distributions):
    own = files(ROOT, *SOURCES)
    assert own - files(distributions.source, *SOURCES) == set()
    installed = {path if path.startswith("rld/") else f"rld/{path}" for path in own}
    assert installed == files(distributions.site, "rld")
    assert {path.name.partition("-")[0] for path in distributions.site.iterdir()} == {"rld"}  # no generic name


def test_the_tests_are_in_the_source_distribution(distributions):
    assert files(ROOT, *TESTED) - files(distributions.source, *TESTED) == set()


def test_the_wheel_trains_the_quickstart_in_a_folder_outside_the_repository(distributions, tmp_path):
    entry_points = next(distributions.site.glob("*.dist-info/entry_points.txt")).read_text()
    assert "rld = rld.cli:main" in entry_points
    script = "import sys; from rld.cli import main; assert rld.__file__.startswith(sys.argv.pop(1)); sys.exit(main())"
    command = [sys.executable, "-c", f"import rld; {script}", str(distributions.site)]
    environment = {"PYTHONPATH": str(distributions.site)}
    assert "quickstart" in run([*command, "list"], tmp_path, **environment)
    assert "distill" in run([*command, "check", "quickstart"], tmp_path, **environment)
    run([*command, "train", "quickstart", *SHORT, *FEW_ROWS], tmp_path, **environment)
    assert {"report.html", "summary.json", "student"} <= {
        path.name for path in (tmp_path / "runs/quickstart").iterdir()
    }
