"""Texts of others in a Markdown card: they are shown as they are, whatever signs they hold."""

import json
import re
from collections.abc import Sequence


# Control characters, what turns the direction of writing, and halves of pairs, which no file can hold.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Within a word an underscore is no markup, and escaped it would be hard to read.
_SIGNS = re.compile(r"([\\`*{}\[\]<>#|~&]|(?<![^\W_])_|_(?![^\W_]))")
_LIST_START = re.compile(r"^([-+](?=[\s-]|$)|\d+(?=[.)](?:\s|$)))")


def one_line(text: object) -> str:
    """A text as one line of visible characters."""
    return " ".join(_UNSEEN.sub(" ", str(text)).split())


def plain(text: object) -> str:
    """A text in a paragraph, an item or a table's cell, in which no sign is markup."""
    escaped = _SIGNS.sub(r"\\\1", one_line(text))
    found = _LIST_START.match(escaped)
    if found is None:
        return escaped
    # `-` and `+` begin an item of a list, and so do the dot and the bracket behind a number.
    return f"\\{escaped}" if not found[1].isdigit() else f"{found[1]}\\{escaped[found.end() :]}"


def code(text: object, *, in_table: bool = False) -> str:
    """A text as code within a line; a table reads its pipes even there, unless they are escaped."""
    line = one_line(text)
    if in_table:
        line = line.replace("|", "\\|")
    ticks = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    space = " " if not line or line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def block(text: str, language: str = "") -> str:
    """A text as a block of code, of which no line ends the block."""
    lines = _UNSEEN.sub(" ", text.replace("\r\n", "\n")).strip("\n")
    ticks = "`" * max(3, max((len(run) for run in re.findall("`+", lines)), default=0) + 1)
    return f"{ticks}{language}\n{lines}\n{ticks}"


def literal(text: object) -> str:
    """A text as a string of Python, in double quotes."""
    return json.dumps(one_line(text), ensure_ascii=False)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; figures are set to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
