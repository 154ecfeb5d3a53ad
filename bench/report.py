"""One page of everything that was measured: ``python -m bench.report`` reads stored runs and writes HTML.

Nothing is measured here.  Each bench's JSON becomes a section: its question, when and on what it ran, its
targets with what was seen, its plots, and its rows.  The page needs no other file and no network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bench.contract import cell
from bench.headlines import measured_page, with_table
from bench.report_plots import plots_of
from bench.stored import RESULTS, Stored, load_results, origin, question

__all__ = ["main", "page"]

_ROOT = Path(__file__).parents[1]
_MOST_ROWS = 60

_STYLE = """
:root { color-scheme: light dark; --faint: #8888; --good: #18794e; --bad: #cd2b31; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 3rem; border-top: 1px solid var(--faint); padding-top: 1rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .15rem .6rem; text-align: left; border-bottom: 1px solid var(--faint); }
td.number { text-align: right; }
.met { color: var(--good); } .missed { color: var(--bad); font-weight: bold; }
.where { color: #888; } figure { margin: 1rem 0; background: #fff; color: #000; padding: .5rem; }
figure svg { max-width: 100%; height: auto; } .wide { overflow-x: auto; }
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE")
    parser.add_argument(
        "--write", action="store_true", help="also write the README's table and docs/measured.md"
    )
    options = parser.parse_args(argv)
    try:
        stored = load_results(options.results)
    except ValueError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    if not stored:
        print(f"report: no run is stored in {options.results}; make some with: make bench", file=sys.stderr)
        return 1
    if options.write:
        readme = _ROOT / "README.md"
        readme.write_text(with_table(readme.read_text(encoding="utf-8"), stored), encoding="utf-8")
        (_ROOT / "docs/measured.md").write_text(measured_page(stored), encoding="utf-8")
    options.out.write_text(page(stored), encoding="utf-8")
    missed = sum(not target["met"] for each in stored for target in each.document["targets"])
    total = sum(len(each.document["targets"]) for each in stored)
    print(f"{options.out}: {len(stored)} benches, {total - missed} of {total} targets met")
    return 0


def page(stored: Sequence[Stored]) -> str:
    """The whole HTML."""
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>Suture, measured</title><style>{_STYLE}</style>",
        "<h1>Suture, measured</h1>",
        "<p>Every figure comes from the command beside it, on the machine and day named there; how is in "
        "<code>bench/METHODOLOGY.md</code>. A missed target is a result.</p>",
        _overview(stored),
        *(part for each in stored for part in _section(each)),
        "</html>\n",
    ]
    return "\n".join(parts)


def _overview(stored: Sequence[Stored]) -> str:
    rows = []
    for each in stored:
        targets = each.document["targets"]
        met = sum(target["met"] for target in targets)
        style = "met" if met == len(targets) else "missed"
        rows.append(
            f'<tr><td><a href="#{escape(each.name)}">{escape(each.name)}</a></td>'
            f"<td>{escape(question(each.name))}</td>"
            f'<td class="{style}">{met} of {len(targets)}</td></tr>'
        )
    return f"<table><tr><th>bench<th>question<th>targets met</tr>{''.join(rows)}</table>"


def _section(stored: Stored) -> Iterator[str]:
    document = stored.document
    yield f'<h2 id="{escape(stored.name)}">{escape(stored.name)}</h2>'
    yield f"<p>{escape(question(stored.name))}</p>"
    command = f"<code>python -m bench.{escape(stored.name)}</code>"
    yield f'<p class="where">{command}: {escape(origin(document))}</p>'
    for problem in document.get("problems", ()):
        yield f'<p class="missed">not sound: {escape(problem)}</p>'
    if document["targets"]:
        yield _targets(document["targets"])
    for plot in plots_of(stored.name, document):
        yield f"<figure>{plot.svg}<figcaption>{escape(plot.caption)}</figcaption></figure>"
    yield _rows(document["rows"])


def _targets(targets: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f'<tr><td>{escape(target["name"])}</td><td class="number">{cell(target["value"])}</td>'
        f"<td>{'≤' if target['direction'] == 'at_most' else '≥'} {cell(target['target'])}</td>"
        f"<td>{escape(target['unit'])}</td>"
        f'<td class="{"met" if target["met"] else "missed"}">{"met" if target["met"] else "missed"}</td></tr>'
        for target in targets
    )
    return f"<table><tr><th>target<th>measured<th>wanted<th>unit<th></tr>{rows}</table>"


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(
        dict.fromkeys(
            key
            for row in rows
            for key, value in row.items()
            if value is None or not isinstance(value, list | dict)
        )
    )
    if not columns:
        return ""
    head = "".join(f"<th>{escape(column)}" for column in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="number">{cell(row.get(column))}</td>'
            if isinstance(row.get(column), int | float)
            else f"<td>{escape(cell(row.get(column)))}</td>"
            for column in columns
        )
        + "</tr>"
        for row in rows[:_MOST_ROWS]
    )
    more = f"<p>and {len(rows) - _MOST_ROWS} more in the JSON</p>" if len(rows) > _MOST_ROWS else ""
    table = f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
    return f"<details><summary>rows</summary>{table}{more}</details>"


if __name__ == "__main__":
    raise SystemExit(main())
