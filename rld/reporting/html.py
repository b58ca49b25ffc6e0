"""The style sheet of reports, light and dark, from a phone's width up; pages and tables.

The colours of lines were chosen by search: any two differ by at least 21 in CIELAB, for normal vision and under
simulated protanopia, deuteranopia and tritanopia, and their contrast to the background is at least 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rld.utils.control_characters import visible

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #fff; --line: #dfe3e8; --text: #1b2430; --soft: #5d6876; --plain: #1b2430;
  --good: #0a7a50; --bad: #b3261e; --busy: #8a5a00; --shade: #1b243059;
  --colour0: #2393fa; --colour1: #c23c01; --colour2: #0a8157; --colour3: #4d1fb5;
  --colour4: #812e1c; --colour5: #db5fa9;
  --colour6: #759646; --colour7: #9a39ae; --colour8: #5c4266;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101418; --card: #171c22; --line: #2b333d; --text: #e4e9ef; --soft: #97a3b1; --plain: #e4e9ef;
    --good: #4fd1a1; --bad: #ff8a80; --busy: #f0b95a; --shade: #000c;
    --colour0: #378bfe; --colour1: #e87019; --colour2: #66f7b2; --colour3: #f1c0ff;
    --colour4: #d5e945; --colour5: #d27496;
    --colour6: #83a05d; --colour7: #c37ecf; --colour8: #a7ec7c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1340px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { margin: 0; font-size: 28px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 44px 0 12px; font-size: 20px; line-height: 1.3; overflow-wrap: anywhere; }
h2 small, h3 small { margin-left: 8px; color: var(--soft); font-size: 13px; font-weight: 400; }
h3 { margin: 24px 0 8px; font-size: 15px; }
a { color: inherit; }
code, pre { font: 13px/1.5 ui-monospace, monospace; }
.title { display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: center; }
.pill { padding: 1px 10px; border: 1.5px solid; border-radius: 99px; font-size: 13px; font-weight: 600; }
.done { color: var(--good); } .failed, .killed { color: var(--bad); } .running, .stopped { color: var(--busy); }
.facts { display: flex; flex-wrap: wrap; gap: 4px 28px; margin: 14px 0 0; padding: 0; list-style: none; }
.facts span { color: var(--soft); }
.command { margin: 14px 0 0; padding: 9px 12px; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); white-space: pre-wrap; overflow-wrap: anywhere; }
.note { margin: 14px 0 0; padding: 9px 12px; border-left: 3px solid var(--busy); border-radius: 3px;
  background: var(--card); }
.verdict { margin: 16px 0 0; padding: 0; list-style: none; }
.verdict li { margin: 6px 0 0; padding: 7px 12px; border-left: 4px solid var(--soft); border-radius: 3px;
  background: var(--card); }
.verdict .good { border-color: var(--good); } .verdict .bad { border-color: var(--bad); }
.card { padding: 4px 0; border: 1px solid var(--line); border-radius: 10px; overflow: auto; width: fit-content;
  max-width: 100%; /* Shadows at the left and right edge; at the end of the table its own background covers them. */
  background: linear-gradient(to right, var(--card) 40%, transparent) local left / 48px 100% no-repeat,
    linear-gradient(to left, var(--card) 40%, transparent) local right / 48px 100% no-repeat,
    linear-gradient(to right, var(--shade), transparent) scroll left / 16px 100% no-repeat,
    linear-gradient(to left, var(--shade), transparent) scroll right / 16px 100% no-repeat, var(--card); }
.card.long { max-height: 460px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px; text-align: right; white-space: nowrap; }
th { color: var(--soft); font-size: 13px; font-weight: 500; vertical-align: bottom; }
th small { display: block; font-weight: 400; }
th.left, td.left { text-align: left; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); text-align: left; }
tbody tr { border-top: 1px solid var(--line); }
tr.mean td { font-weight: 600; border-top: 2px solid var(--line); }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 110px; max-width: 260px; vertical-align: top; }
td small { margin-left: 5px; color: var(--soft); }
.correct { color: var(--good); } .wrong { color: var(--bad); } .correct, .wrong { font-weight: 700; }
td.wide { white-space: normal; min-width: 240px; }
td.after { font-weight: 650; }
.up { color: var(--good); } .down { color: var(--bad); }
i { display: inline-block; width: 14px; height: 0; margin-right: 6px; border-top: 3px solid var(--colour);
  vertical-align: 4px; }
.dashed i { border-top-style: dashed; }
.dotted i { border-top-style: dotted; }
th.scale span { float: left; width: 24px; text-align: center; } th.scale span + span { float: right; }
.track { display: block; width: 170px; height: 18px; }
.track .rail { stroke: var(--line); stroke-width: 2; }
.track .way { stroke: var(--colour); stroke-width: 3; opacity: .45; }
.track circle { stroke: var(--colour); stroke-width: 2; fill: var(--card); }
.track circle.to { fill: var(--colour); }
.track .tick { stroke: var(--colour); stroke-width: 3; }
.charts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); }
.charts.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 232px), 1fr)); }
.beside { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
.beside figure { flex: 1 1 300px; max-width: 420px; }
figure { margin: 0; padding: 11px 11px 7px; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); display: flex; flex-direction: column; min-width: 0; }
figcaption { font-weight: 600; font-size: 14px; overflow-wrap: anywhere; }
figcaption span { margin-left: 10px; font-variant-numeric: tabular-nums; font-weight: 500; color: var(--soft); }
figcaption small { margin-left: 8px; color: var(--soft); font-weight: 400; }
figure ul { display: flex; flex-wrap: wrap; gap: 0 14px; margin: 2px 0 6px; padding: 0; list-style: none;
  font-size: 13px; color: var(--soft); }
figure li { overflow-wrap: anywhere; }
figure b { color: var(--text); font-weight: 600; font-variant-numeric: tabular-nums; }
figure > svg { display: block; width: 100%; height: auto; margin-top: auto; }
figure text { font: 11px system-ui, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.faint, .bold { fill: none; stroke: var(--colour); stroke-linejoin: round; stroke-linecap: round; }
.faint { opacity: .25; stroke-width: 1; } .bold { stroke-width: 2; }
.bold.dot { stroke-width: 5; }
.bold.dashed { stroke-dasharray: 5 4; }
.bold.dotted { stroke-dasharray: 1 4; }
.band { fill: var(--text); opacity: 0; } .band:hover { opacity: .09; }
.mark path { stroke: var(--soft); stroke-dasharray: 2 3; fill: none; }
.mark path + path { stroke: none; fill: var(--soft); }
.lost { margin: 4px 0 0; color: var(--bad); font-size: 13px; }
details { margin-top: 44px; } summary { cursor: pointer; color: var(--soft); }
details pre { padding: 12px; border: 1px solid var(--line); border-radius: 10px; background: var(--card);
  overflow-x: auto; }
footer { margin-top: 28px; color: var(--soft); font-size: 13px; }
.plain { --colour: var(--plain); }
@media (max-width: 600px) {
  main { padding: 20px 12px 40px; }
  th, td { padding: 5px 9px; }
  th:first-child, td:first-child { min-width: 6rem; max-width: 9rem; white-space: normal; overflow-wrap: anywhere; }
}
""" + "".join(f".colour{number} {{ --colour: var(--colour{number}); }}\n" for number in range(9))


def page(title: str, body: str, refresh: int | None = None) -> str:
    """Return a whole page in this style. Its security policy forbids all loading and all scripts.

    Control characters of its text, which turn lines around or which a terminal obeys, are shown as escapes.

    Args:
        title: Text.
        body: HTML.
        refresh: Seconds after which a browser reads the page anew. None: it does not.
    """
    refresh_tag = "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">'
    return visible(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'{refresh_tag}<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def table(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells, which are HTML; `heads` has the name and the CSS class of each column."""
    head = "".join(f'<th class="{css}">{name}</th>' for name, css in heads)
    body = "".join(
        "<tr>" + "".join(f'<td class="{css}">{cell}</td>' for cell, (_, css) in zip(row, heads, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def code_in(text: str) -> str:
    """Return a text as HTML; what is in backquotes becomes code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))


def scrolling(content: str, *, is_long: bool = False) -> str:
    """Put a table into a frame that scrolls where it is too narrow, and shows at its edges that it does.

    Args:
        content: HTML.
        is_long: Whether the frame is also limited in height.
    """
    return f'<div class="card{" long" if is_long else ""}" tabindex="0">{content}</div>'
