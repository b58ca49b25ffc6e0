"""Standard output and error that are closed, or whose reader has gone, end no command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rld.cli import main
from rld.utils.streams import SafeStream

ROOT = Path(__file__).parents[2]


def shell(line: str) -> subprocess.CompletedProcess[str]:
    command = line.replace("rld", f"{sys.executable} -m rld")
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_a_reader_that_has_gone_ends_no_command() -> None:
    for line in ("rld check quickstart | head -1", "rld list | true"):
        process = shell(line)
        assert (process.returncode, process.stderr) == (0, ""), line


def test_closed_streams_end_no_command() -> None:
    assert shell("rld list >&-").stderr == ""
    assert "quickstart" in shell("rld list 2>&-").stdout
    assert shell("rld list 2>&- >&-").returncode == 0


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals")
def test_a_closed_terminal_ends_no_command() -> None:
    terminal, end = os.openpty()
    with open(end, "w") as file:
        stream = SafeStream(file)
        os.close(terminal)
        for _ in range(2):
            assert stream.write("text\n") == 5
            stream.flush()


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["copy", "quickstart", "~/recipes", "--force"]) == 0
    assert main(["check", "~/recipes/quickstart.yaml"]) == 0
    assert main(["report", "~/recipes"]) == 2
    assert str(tmp_path / "recipes") in capsys.readouterr().err
