"""A real browser lays the report out: charts have their size, no text runs into another, nothing is reported wrong."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rld.reporting.report import write_report
from tests.support import made_up_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")

MEASURE = """
const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
const crosses = (a, b) => a[0] < b[2] - .5 && b[0] < a[2] - .5 && a[1] < b[3] - .5 && b[1] < a[3] - .5;
const charts = [...document.querySelectorAll("figure > svg")].map(svg => {
  const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, box(t)]);
  return {
    name: svg.getAttribute("aria-label"),
    box: box(svg),
    lines: [...svg.querySelectorAll(".bold")].map(box),
    colours: [...svg.querySelectorAll(".bold")].map(line => getComputedStyle(line).stroke),
    overlaps: texts.flatMap(([x, a], i) => texts.slice(i + 1).filter(([, b]) => crosses(a, b)).map(([y]) => [x, y])),
    outside: texts.filter(([, a]) => a[0] < box(svg)[0] - 1 || a[2] > box(svg)[2] + 1).map(([x]) => x),
    textHeight: Math.min(...texts.map(([, a]) => a[3] - a[1])),
  };
});
const result = {
  charts,
  width: innerWidth,
  scrollWidth: document.documentElement.scrollWidth,
  background: getComputedStyle(document.body).backgroundColor,
};
parent.document.querySelector("pre").textContent = JSON.stringify(result);
"""
NUM_CHARTS = 24


def browse(page: Path, folder: Path, *options: str) -> tuple[str, str]:
    """Open `page` and return its document as laid out, and what the browser logged."""
    assert BROWSER is not None
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    flags += " disable-component-update disable-sync enable-logging=stderr dump-dom"
    command = [BROWSER, *(f"--{flag}" for flag in flags.split()), f"--user-data-dir={folder / 'profile'}", *options]
    process = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return process.stdout, process.stderr


def console(log: str) -> list[str]:
    return [line for line in log.splitlines() if ":CONSOLE" in line]


def test_the_page_as_it_is_gives_the_browser_nothing_to_complain_of(tmp_path: Path) -> None:
    page = write_report(made_up_run.make(tmp_path / "run"))
    document, log = browse(page, tmp_path)
    assert document.count("<figure>") == NUM_CHARTS
    assert console(log) == []
    # Otherwise the lines above would prove nothing: its policy forbids scripts, and the browser says so.
    page.write_text(page.read_text().replace("</body>", "<script>document.title = 'ran'</script></body>"))
    document, log = browse(page, tmp_path)
    assert "<title>ran" not in document
    assert len(console(log)) == 1


@pytest.mark.parametrize(("width", "is_dark", "num_columns"), [(1280, False, 4), (1280, True, 4), (390, False, 1)])
def test_charts_are_laid_out(tmp_path: Path, width: int, is_dark: bool, num_columns: int) -> None:
    page = write_report(made_up_run.make(tmp_path / "run"))
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    text = html.escape(text.replace("</body>", f"<script>{MEASURE}</script></body>"))
    # In a frame, because a window is never as narrow as a phone.
    frame = tmp_path / "frame.html"
    frame.write_text(f'<pre></pre><iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{text}"></iframe>')
    scheme = ["--blink-settings=preferredColorScheme=0"] if is_dark else []
    document, log = browse(frame, tmp_path, *scheme)
    match = re.search("<pre>(.+?)</pre>", document)
    assert match, log
    measured: dict[str, Any] = json.loads(html.unescape(match[1]))
    assert measured["width"] == width
    assert measured["scrollWidth"] <= width, "the page scrolls sideways"
    red = int(re.findall(r"\d+", measured["background"])[0])
    assert red < 64 if is_dark else red > 192
    assert len(measured["charts"]) == NUM_CHARTS
    assert len({chart["box"][0] for chart in measured["charts"][5:9]}) == num_columns
    for chart in measured["charts"]:
        left, top, right, bottom = chart["box"]
        assert right - left > 200 and bottom - top > 120, chart["name"]
        assert left >= 0 and right <= width, chart["name"]
        assert chart["overlaps"] == [] and chart["outside"] == [], chart["name"]
        assert chart["textHeight"] >= 9, chart["name"]
        assert chart["lines"], chart["name"]
        widest = max(line[2] - line[0] for line in chart["lines"])
        assert widest > 0.7 * (right - left), f"{chart['name']}: its lines do not span the plot"
        assert "none" not in chart["colours"], chart["name"]
