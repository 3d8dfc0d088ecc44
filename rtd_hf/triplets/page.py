"""The quality of triplets as one page of HTML: no script, nothing fetched, every text escaped."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ..pages import document, percent, table
from .columns import TRIPLET_COLUMNS


_STYLE = """
.sides { display: grid; grid-template-columns: repeat(var(--files), minmax(22rem, 1fr)); gap: 1.5rem;
  overflow-x: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: .6rem; }
.side { min-width: 0; } .file { font-weight: 600; overflow-wrap: anywhere; color: var(--ink); }
td.edit { background: var(--wash); }
@media (max-width: 50rem) {
  body { margin: 1rem auto; } .sides { grid-template-columns: minmax(0, 1fr); }
  .triplets thead { display: none; } .triplets tr { display: block; border-bottom: 1px solid var(--line); }
  .triplets td { display: flex; gap: .6rem; border: 0; padding: .1rem .5rem; text-align: left; white-space: normal; }
  .triplets td::before { content: attr(data-label); flex: 0 0 6.5rem; color: var(--soft); }
}
"""
_NAMES = {
    "reference_caption": "reference",
    "conditioning_caption": "conditioning",
    "target_caption": "target",
    "says_edit": "conditioning text names what goes or comes",
    "names_source": "conditioning text names what goes",
    "names_target": "conditioning text names what comes",
    "source_in_reference": "reference holds what goes",
    "source_gone": "target lacks what goes",
    "target_in_target": "target holds what comes",
    "reference_target": "reference and target",
    "target_concatenation": "target and (reference + conditioning)",
    "target_conditioning": "target and conditioning",
    "moved_as_told": "(target - reference) and conditioning",
    "change_named": "share of the changed words in the conditioning text",
    "common_words": "share of words that reference and target have in common",
}
_MEANING = (
    "Shares of all rows. Consistent: by their words, the conditioning text says the edit, the reference holds what "
    "goes, the target lacks it and holds what comes; paraphrases count as inconsistent. Weighed by use: as many as if "
    "all were used equally often."
)


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
        ("Rules", "How many triplets of which kind, and how many of them are consistent.", _rules),
        ("Lengths", "In words; plots end at 40.", _lengths),
        ("Words", "The first word of the conditioning text, and the most frequent words but function words.", _words),
        ("How much stays", "Share of words that reference and target have in common.", _shared),
        ("Under the frozen encoder", "Cosines of the texts of triplets drawn at random.", _similarities),
        ("Faults", "Rows that a filter would leave out, and rows with a benchmark's text.", _faults),
        ("To read", "Drawn at random.", lambda report: _triplets(report["sample"])),
        ("The worst by each measure", "Among the rows drawn at random.", _worst),
    )
    body = [f"<h1>Text triplets</h1><h2>Overview</h2><p>{escape(_MEANING)}</p>{_overview(reports)}"]
    for title, note, draw in sections:
        body.append(f"<h2>{escape(title)}</h2><p>{escape(note)}</p>{_sides(reports, draw)}")
    title = f"Text triplets: {', '.join(reports)}"
    return document(title, "".join(body), style=_STYLE, attributes=f"style='--files: {len(reports)}'")


def _sides(reports: Mapping[str, Mapping[str, Any]], draw: Callable[[Mapping[str, Any]], str]) -> str:
    heads = [f"<div class='file'>{escape(name)}</div>" if len(reports) > 1 else "" for name in reports]
    sides = (f"<div class='side'>{head}{draw(one)}</div>" for head, one in zip(heads, reports.values(), strict=True))
    return f"<div class='sides'>{''.join(sides)}</div>"


def _name(key: str) -> str:
    return _NAMES.get(key, key.replace("_", " "))


def _bars(pairs: Sequence[Sequence[Any]], *, label: str, edges: bool = False) -> str:
    """A histogram as SVG; values are those of the bars, or of their left edges."""
    if not pairs:
        return "<p>nothing</p>"
    width, height, foot = 460, 130, 18
    most = max(number for _, number in pairs) or 1
    step = width / len(pairs)
    parts = []
    for place, (value, number) in enumerate(pairs):
        tall = (height - foot - 16) * number / most
        parts.append(
            f"<rect x='{place * step + 0.5:.1f}' y='{height - foot - tall:.1f}' width='{max(step - 1, 0.5):.1f}' "
            f"height='{tall:.1f}' fill='#3f7fbf'><title>{escape(str(value))}: {number:,}</title></rect>"
        )
    last = len(pairs) if edges else len(pairs) - 1
    for place in sorted({*(len(pairs) * quarter // 4 for quarter in range(4)), last}):
        value = pairs[place][0] if place < len(pairs) else 2 * pairs[-1][0] - pairs[-2][0]
        left = (place + 0.5 * (not edges)) * step
        parts.append(f"<text x='{left:.1f}' y='{height - 4}' text-anchor='middle'>{escape(f'{value:g}')}</text>")
    return (
        f"<svg viewBox='-8 0 {width + 16} {height}' role='img' aria-label='{escape(label)}'><text x='0' y='10'>"
        f"{escape(label)}, most: {most:,}</text>{''.join(parts)}</svg>"
    )


def _overview(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each measure and one column for each file."""
    columns = [dict(_summary(report)) for report in reports.values()]
    names = list(dict.fromkeys(name for column in columns for name in column))
    heads = ("", *(reports if len(reports) > 1 else [next(iter(reports))]))
    rows = [(name, *(column.get(name, "") for column in columns)) for name in names]
    return f"<div class='{'few' if len(reports) < 3 else 'many'}'>{table(heads, rows)}</div>"


def _summary(report: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "triplets", report["rows"]
    yield "with a fault", sum(report["faults"].values())
    yield "consistent", percent(report["consistent"])
    for name in ("change_named", "common_words"):
        yield _name(name), percent(report[name])
    for name, share in report["shares"].items():
        yield _name(name), percent(share)
    for name, share in report["distinct"].items():
        yield f"distinct {_name(name)} texts", percent(share)
    yield "distinct word pairs of conditioning texts", percent(report["distinct_word_pairs"])
    yield "kinds of rules, weighed by use", float(report["effective"]["rules"])
    yield "first words of conditioning texts, weighed by use", float(report["effective"]["openings"])
    for name, number in report["vocabulary"].items():
        yield f"different words in {_name(name)} texts", number
    for name, share in report["words_once"].items():
        yield f"words used once in {_name(name)} texts", percent(share)
    for name, one in report.get("similarity", {}).items():
        yield f"mean cosine of {_name(name)}", one["mean"]


def _rules(report: Mapping[str, Any]) -> str:
    total, good = max(1, sum(report["rules"].values())), report["consistent_by_rule"]
    rows = [(rule, number, percent(number / total), percent(good[rule])) for rule, number in report["rules"].items()]
    return table(("rule", "triplets", "share", "consistent"), rows)


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
    return table(("", "mean", "median", "90 %", "longest"), rows) + _plots(plots)


def _plots(plots: Sequence[str]) -> str:
    return f"<div class='plots'>{''.join(plots)}</div>"


def _words(report: Mapping[str, Any]) -> str:
    first = ", ".join(f"{word} {number:,}" for word, number in report["openings"].items())
    lines = [("first words", first)]
    for name, words in report["frequent_words"].items():
        lines.append((_name(name), ", ".join(f"{word} {number:,}" for word, number in words)))
    return table(("", ""), lines)


def _shared(report: Mapping[str, Any]) -> str:
    return _bars(report["shared_words"], label="triplets by share of common words")


def _similarities(report: Mapping[str, Any]) -> str:
    if "similarity" not in report:
        return "<p>not measured: no encoder was given</p>"
    found = report["similarity"]
    rows = [(_name(name), one["mean"], one["p5"], one["p50"], one["p95"]) for name, one in found.items()]
    plots = [_bars(one["histogram"], label=_name(name), edges=True) for name, one in found.items()]
    encoder = f"<p>{report['encoded']:,} triplets, encoder: {escape(str(report.get('encoder', 'not named')))}</p>"
    return encoder + table(("cosine of", "mean", "5 %", "median", "95 %"), rows) + _plots(plots)


def _faults(report: Mapping[str, Any]) -> str:
    if not report["faults"] and not report["contaminated"]:
        return "<p>none</p>"
    rows = [(reason, number) for reason, number in report["faults"].items()]
    rows += [(f"holds a text of {source}", number) for source, number in report["contaminated"].items()]
    shown = [dict(row, value=reason) for reason, row in report["fault_examples"].items()]
    return table(("fault", "rows"), rows) + "<h3>the first of each</h3>" + _triplets(shown)


def _triplets(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>none</p>"
    names = (
        "reference",
        "conditioning",
        "target",
        "rule",
        *(["value"] if any("value" in row for row in rows) else []),
    )
    lines = []
    for row in rows:
        texts = [
            *(_cut(row.get(column)) for column in TRIPLET_COLUMNS),
            str(row.get("rule") or ""),
            row.get("value", ""),
        ]
        cells = (
            f"<td class='{kind}' data-label='{name}'>{escape(str(text))}</td>"
            for name, kind, text in zip(names, ("text", "text edit", "text", "rule", "number"), texts, strict=False)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        f"<div class='scroll'><table class='triplets'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


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
        title = f"{_name(measure)}: {end or 'fails'}"
        parts.append(f"<h3>{escape(title)}</h3>{_triplets(rows)}")
    return "".join(parts)
