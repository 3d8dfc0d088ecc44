"""The quality of triplets as one page of HTML: no script, nothing fetched, every text escaped."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from .columns import TRIPLET_COLUMNS


_STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5d6b7a; --line: #dde3ea; --bar: #3f7fbf; --wash: #f5f7fa; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 2rem auto; padding: 0 1rem;
  max-width: 1400px; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 1rem 0 .3rem; color: var(--soft); } p { margin: .2rem 0 .6rem; color: var(--soft); }
.sides { display: grid; grid-template-columns: repeat(var(--files), minmax(0, 1fr)); gap: 1.5rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { text-align: left; color: var(--soft); font-weight: 600; }
td, th { padding: .25rem .5rem; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.edit { background: var(--wash); } .scroll { overflow-x: auto; } svg { max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); } .bad { color: #a3271f; }
"""
_NAMES = {
    "reference_caption": "reference",
    "conditioning_caption": "conditioning",
    "target_caption": "target",
    "names_source": "conditioning text names what goes",
    "names_target": "conditioning text names what comes",
    "source_in_reference": "reference holds what goes",
    "source_gone": "target lacks what goes",
    "target_in_target": "target holds what comes",
    "reference_target": "reference and target",
    "target_concatenation": "target and (reference + conditioning)",
    "target_conditioning": "target and conditioning",
    "moved_as_told": "(target - reference) and conditioning",
}


def report_page(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """
    The reports of one file, or of several side by side.

    Args:
        reports (`Mapping[str, Mapping]`): For each file's name what [`measure_triplets`] found.

    Returns:
        `str`: a whole HTML document.

    Raises:
        ValueError: there is no report.
    """
    if not reports:
        raise ValueError("`reports` is empty. Give at least one.")
    sections = (
        ("Overview", "Shares of all rows.", _overview),
        ("Rules", "How many triplets of which kind, and how many of them are consistent.", _rules),
        ("Lengths", "In words.", _lengths),
        ("Words", "The first word of the conditioning text, and the most frequent words but function words.", _words),
        ("How much stays", "Share of words that reference and target have in common.", _shared),
        ("Under the frozen encoder", "Cosines of texts drawn at random.", _similarities),
        ("Faults", "Rows that a filter would leave out, and rows with a benchmark's text.", _faults),
        ("To read", "Drawn at random.", lambda report: _triplets(report["sample"])),
        ("The worst by each measure", "Among the rows drawn at random.", _worst),
    )
    names = "".join(f"<div><h3>{escape(name)}</h3></div>" for name in reports)
    body = [f"<h1>Text triplets</h1><div class='sides'>{names}</div>"]
    for title, note, draw in sections:
        body.append(f"<h2>{escape(title)}</h2><p>{escape(note)}</p>{_sides(reports, draw)}")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Text triplets: {escape(', '.join(reports))}</title><style>{_STYLE}</style></head>"
        f"<body style='--files: {len(reports)}'>{''.join(body)}</body></html>\n"
    )


def _sides(reports: Mapping[str, Mapping[str, Any]], draw: Callable[[Mapping[str, Any]], str]) -> str:
    return "<div class='sides'>" + "".join(f"<div>{draw(report)}</div>" for report in reports.values()) + "</div>"


def _name(key: str) -> str:
    return _NAMES.get(key, key.replace("_", " "))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Numbers to the right; every text is escaped here."""
    lines = []
    for row in rows:
        cells = (
            f"<td class='number'>{cell:,}</td>"
            if isinstance(cell, int | float)
            else f"<td{' class=number' if str(cell).endswith(' %') else ''}>{escape(str(cell))}</td>"
            for cell in row
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f"<div class='scroll'><table><tr>{heads}</tr>{''.join(lines)}</table></div>"


def _bars(pairs: Sequence[Sequence[Any]], *, label: str) -> str:
    """A histogram as SVG."""
    if not pairs:
        return "<p>nothing</p>"
    width, height, foot = 460, 130, 18
    most = max(number for _, number in pairs) or 1
    step = width / len(pairs)
    parts = []
    for place, (value, number) in enumerate(pairs):
        tall = (height - foot - 12) * number / most
        parts.append(
            f"<rect x='{place * step + 0.5:.1f}' y='{height - foot - tall:.1f}' width='{max(step - 1, 0.5):.1f}' "
            f"height='{tall:.1f}' fill='#3f7fbf'><title>{escape(str(value))}: {number:,}</title></rect>"
        )
    for place in sorted({0, len(pairs) // 4, len(pairs) // 2, 3 * len(pairs) // 4, len(pairs) - 1}):
        value = escape(f"{pairs[place][0]:g}")
        parts.append(f"<text x='{(place + 0.5) * step:.1f}' y='{height - 4}' text-anchor='middle'>{value}</text>")
    return (
        f"<svg viewBox='-8 0 {width + 16} {height}' role='img' aria-label='{escape(label)}'><text x='0' y='10'>"
        f"{escape(label)}, most: {most:,}</text>{''.join(parts)}</svg>"
    )


def _overview(report: Mapping[str, Any]) -> str:
    faulty = sum(report["faults"].values())
    rows: list[Sequence[Any]] = [
        ("triplets", report["rows"]),
        ("with a fault", faulty),
        ("consistent", _percent(report["consistent"])),
        *((_name(name), _percent(share)) for name, share in report["shares"].items()),
        *((f"distinct {_name(name)} texts", _percent(share)) for name, share in report["distinct"].items()),
        ("distinct word pairs of conditioning texts", _percent(report["distinct_word_pairs"])),
        *((f"different words in {_name(name)} texts", number) for name, number in report["vocabulary"].items()),
    ]
    return _table(("", ""), rows)


def _rules(report: Mapping[str, Any]) -> str:
    total, good = max(1, sum(report["rules"].values())), report["consistent_by_rule"]
    rows = [(rule, number, _percent(number / total), _percent(good[rule])) for rule, number in report["rules"].items()]
    return _table(("rule", "triplets", "share", "consistent"), rows)


def _lengths(report: Mapping[str, Any]) -> str:
    rows = [
        (_name(name), one["mean"], one["median"], one["p90"], one["max"]) for name, one in report["lengths"].items()
    ]
    plots = []
    for name, one in report["lengths"].items():
        known = dict(one["histogram"])
        longest = min(one["max"], 40)
        pairs = [[value, known.get(value, 0)] for value in range(longest + 1)]
        plots.append(_bars(pairs, label=_name(name)))
    return _table(("", "mean", "median", "90 %", "longest"), rows) + "".join(plots)


def _words(report: Mapping[str, Any]) -> str:
    first = ", ".join(f"{word} {number:,}" for word, number in report["openings"].items())
    lines = [("first words", first)]
    for name, words in report["frequent_words"].items():
        lines.append((_name(name), ", ".join(f"{word} {number:,}" for word, number in words)))
    return _table(("", ""), lines)


def _shared(report: Mapping[str, Any]) -> str:
    return _bars(report["shared_words"], label="triplets by share of common words")


def _similarities(report: Mapping[str, Any]) -> str:
    if "similarity" not in report:
        return "<p>not measured: no encoder was given</p>"
    found = report["similarity"]
    rows = [(_name(name), one["mean"], one["p5"], one["p50"], one["p95"]) for name, one in found.items()]
    plots = "".join(_bars(one["histogram"], label=_name(name)) for name, one in found.items())
    return _table((f"{report['encoded']:,} triplets", "mean", "5 %", "median", "95 %"), rows) + plots


def _faults(report: Mapping[str, Any]) -> str:
    if not report["faults"] and not report["contaminated"]:
        return "<p>none</p>"
    rows = [(reason, number) for reason, number in report["faults"].items()]
    rows += [(f"holds a text of {source}", number) for source, number in report["contaminated"].items()]
    shown = [dict(row, value=reason) for reason, row in report["fault_examples"].items()]
    return _table(("fault", "rows"), rows) + "<h3>the first of each</h3>" + _triplets(shown)


def _triplets(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>none</p>"
    valued = any("value" in row for row in rows)
    lines = []
    for row in rows:
        texts = [row.get(column) for column in TRIPLET_COLUMNS]
        cells = [f"<td>{escape(_cut(texts[0]))}</td><td class='edit'>{escape(_cut(texts[1]))}</td>"
                 f"<td>{escape(_cut(texts[2]))}</td><td>{escape(str(row.get('rule') or ''))}</td>"]  # fmt: skip
        if valued:
            cells.append(f"<td class='number'>{escape(str(row.get('value', '')))}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(
        f"<th>{name}</th>" for name in ("reference", "conditioning", "target", "rule", *(["value"] * valued))
    )
    return f"<div class='scroll'><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _cut(text: Any) -> str:
    """A text that fits on a page; what is no text as Python shows it."""
    text = text if isinstance(text, str) else repr(text)
    return text if len(text) <= 400 else f"{text[:400]} ... ({len(text):,} characters)"


def _worst(report: Mapping[str, Any]) -> str:
    if not report["worst"]:
        return "<p>none</p>"
    parts = []
    for name, rows in report["worst"].items():
        measure, _, end = name.partition(", ")
        title = f"{_name(measure)}{': ' + end if end else ': not so'}"
        parts.append(f"<h3>{escape(title)}</h3>{_triplets(rows)}")
    return "".join(parts)
