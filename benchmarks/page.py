"""A report as one HTML page that stands alone: no script, and nothing asked of any server."""

import html

from benchmarks.chart import accuracy_chart, colour, measured_ap, turns_chart
from benchmarks.result import Report
from benchmarks.table import Table, facts, tables

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15em .9em .15em 0; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left }
table.facts td { text-align: left; white-space: normal }
.doubt { color: #b3261e } .grid { stroke: #ddd } svg text { font-size: 12px; fill: #333 }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em }
"""


def page(report: Report) -> str:
    """The whole document."""
    names = [one.name for one in report.results]
    title = html.escape(f"Latency of {', '.join(names)}")
    parts = [f"<h1>{title}</h1>"]
    parts += [f"<p class=doubt>{html.escape(line)}</p>" for line in report.doubts]
    for name, rows in tables(report).items():
        parts.append(f"<h2>{html.escape(name)}</h2>{_table(rows)}")
    if measured_ap(report.results):
        parts.append(f"<h2>AP against latency</h2>{accuracy_chart(report.results)}")
    parts.append(f"<h2>Turn by turn</h2>{turns_chart(report.results)}<p>{_key(names)}</p>")
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(fact)}</td></tr>"
        for name, fact in facts(report)
    )
    parts.append(f"<h2>How it was measured</h2><table class=facts>{rows}</table>")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def _table(rows: Table) -> str:
    kinds = ["th", *["td"] * (len(rows) - 1)]
    lines = (
        "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row)
        for kind, row in zip(kinds, rows, strict=True)
    )
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _key(names: list[str]) -> str:
    return "".join(
        f"<span class=key style='background: {colour(place)}'></span>{html.escape(name)}"
        for place, name in enumerate(names)
    )
