"""What pages of HTML that show figures have in common: no script, nothing fetched, every text escaped."""

from collections.abc import Sequence
from html import escape
from typing import Any


STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5d6b7a; --line: #dde3ea; --bar: #3f7fbf; --wash: #f5f7fa; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 2rem auto; padding: 0 1rem;
  max-width: 1400px; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 1rem 0 .3rem; color: var(--soft); } p { margin: .2rem 0 .6rem; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { text-align: left; color: var(--soft); font-weight: 600; } th.number { text-align: right; white-space: nowrap; }
td, th { padding: .25rem .5rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { overflow-wrap: anywhere; } .few { max-width: 48rem; }
.scroll { overflow-x: auto; } svg { display: block; width: 100%; max-width: 30rem; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
"""


class Figure(str):
    """A figure as it is to be shown, such as `+1.5 [+0.2, +2.8]`: a table puts it to the right."""


def document(title: str, body: str, *, style: str = "", attributes: str = "", pictures: bool = False) -> str:
    """
    A whole page.

    Args:
        title (`str`): Escaped here.
        body (`str`): HTML.
        style (`str`, *optional*): CSS after that of all pages.
        attributes (`str`, *optional*): HTML attributes of the body.
        pictures (`bool`, *optional*, defaults to `False`): Whether pictures within the page may be shown.

    Returns:
        `str`: HTML in which a browser runs no script and fetches nothing, whatever stands in the body.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'" + ("; img-src data:" if pictures else "")
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body{f' {attributes}' if attributes else ''}>{body}</body></html>\n"
    )


def percent(share: float) -> str:
    """`0.5` as `50.0 %`."""
    return f"{100 * share:.1f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """
    A table with numbers to the right, under their heads.

    Args:
        head (`Sequence[str]`): The heads, escaped here.
        rows (`Sequence[Sequence]`): Integers, floats, [`Figure`] and other texts, escaped here.

    Returns:
        `str`: HTML.
    """
    lines = [f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows]
    columns = [[row[place] for row in rows if row[place] != ""] for place in range(len(head))]
    kinds = [" class='number'" if cells and all(map(_is_number, cells)) else "" for cells in columns]
    heads = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(head, kinds, strict=True))
    return f"<div class='scroll'><table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float | Figure) or str(cell).endswith(" %")


def _cell(cell: Any) -> str:
    if isinstance(cell, float):
        cell = f"{cell:,.3f}" if abs(cell) <= 1 else f"{cell:,.1f}"
        return f"<td class='number'>{cell}</td>"
    text = f"{cell:,}" if isinstance(cell, int) else escape(str(cell))
    return f"<td{' class=number' if _is_number(cell) else ''}>{text}</td>"
