"""A griffe extension: docstrings in the form of Hugging Face's doc-builder become Markdown, with links and options.

The public names, which the package imports on first use and no static reader sees, become members of the package.
"""

import re
import sys
from pathlib import Path

import griffe


sys.path.insert(0, str(Path(__file__).parent))
from collect import facts  # noqa: E402
from markup import linked  # noqa: E402

import rtd_hf  # noqa: E402


SECTIONS = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Class attributes": "Class attributes",
    "Raises": "Raises",
    "Returns": "Returns",
    "Yields": "Yields",
    "Example": "Example",
}
_HEADING = re.compile(rf"({'|'.join(SECTIONS)}):")
_NAME = r"`?\*{0,2}[\w.]+`?"
_ITEM = re.compile(rf"(?P<names>{_NAME}(?:, {_NAME})*)(?: \((?P<type>.+?)\))?:(?: (?P<text>.*))?$")


def markdown_of(docstring: str) -> str:
    """
    A doc-builder docstring as Markdown: its lists of arguments, attributes and errors become definition lists.

    Args:
        docstring (`str`): Without its indentation.

    Returns:
        `str`
    """
    lines, out, position = docstring.splitlines(), [], 0
    while position < len(lines):
        heading = _HEADING.fullmatch(lines[position])
        if not heading:
            out.append(lines[position])
            position += 1
            continue
        position += 1
        body = []
        while position < len(lines) and (not lines[position].strip() or lines[position].startswith("    ")):
            body.append(lines[position][4:])
            position += 1
        out += ["", f"**{SECTIONS[heading[1]]}**", "", *_section(heading[1], body), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip("\n")


def _section(name: str, body: list[str]) -> list[str]:
    if name in ("Returns", "Yields", "Example"):
        return body
    out: list[str] = []
    for line in _joined(body):
        if item := _ITEM.match(line):
            names = ", ".join(f"`{part.strip('`')}`" for part in item["names"].split(", "))
            out += ["", names + (f" ({item['type']})" if item["type"] else ""), f":   {item['text'] or ''}"]
        else:
            out.append(line)
    return out


def _joined(body: list[str]) -> list[str]:
    """Lines with an entry's type on its first line, and the beginning of its text, where these stand on the next."""
    out: list[str] = []
    for line in body:
        if out and line.startswith(" ") and re.match(r"[\w*.]+(, [\w*.]+)* \([^)]*$|[\w*][^:]*:$", out[-1]):
            out[-1] += " " + line.strip()
        else:
            out.append(line)
    return out


class DocBuilderDocstrings(griffe.Extension):
    """Rewrites the docstrings of the package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """Enters the public names, adds what only a running package tells, and rewrites every docstring."""
        for name, module in rtd_hf._MODULES.items():
            pkg.set_member(name, griffe.Alias(name, f"rtd_hf.{module}.{name}"))
        targets = {name: pkg[name].final_target for name in rtd_hf._MODULES}
        for name, target in targets.items():
            _add(target, [*_options(facts()["options"].get(name, ())), *_names(facts()["registries"].get(name, ()))])
        members = frozenset(
            f"{name}.{member}"
            for name, target in targets.items()
            if target.is_class
            for member, value in target.all_members.items()
            if not member.startswith("_") and value.has_docstring
        )
        _rewrite(pkg, members, set())


def _rewrite(parent: griffe.Object, members: frozenset[str], seen: set[str]) -> None:
    for value in parent.members.values():
        if value.is_alias or value.path in seen:
            continue
        seen.add(value.path)
        if value.docstring:
            value.docstring.value = linked(markdown_of(value.docstring.value), members)
        _rewrite(value, members, seen)


def _add(target: griffe.Object, lines: list[str]) -> None:
    if lines and target.docstring:
        target.docstring.value += "\n\n" + "\n".join(lines)
    elif lines:
        target.docstring = griffe.Docstring("\n".join(lines), parent=target)


def _options(rows: list[list[str]]) -> list[str]:
    lines = ["**Options**"] if rows else []
    for name, kind, default, told in rows:
        shown = f", defaults to `{default}`" if default else ""
        lines += ["", f"`{name}` (`{kind}`, *optional*{shown})", f":   {told}"]
    return lines


def _names(names: list[str]) -> list[str]:
    return ["It holds " + ", ".join(f"`{name}`" for name in names) + "."] if names else []
