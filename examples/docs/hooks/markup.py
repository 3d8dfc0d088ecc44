"""What pages and docstrings have in common: links to public names, and formulas as MathML, which needs no script."""

import re

import markdown
from latex2mathml.converter import convert
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

import rtd_hf


PUBLIC = frozenset(rtd_hf.__all__) - {"__version__"}
_REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\](?![\[(])")
_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)


def linked(text: str, members: frozenset[str] | None = None) -> str:
    """
    Makes the docstrings' references links: of ``[`CIREncoder`]`` and ``[`~CIREncoder.encode_queries`]``.

    What is not public stays code, and so do the names of other libraries. Blocks of code are left as they are.

    Args:
        text (`str`): Markdown.
        members (`frozenset[str]`, *optional*): The members that are documented, as `CIREncoder.encode_queries`; by
            default all are taken to be, and a link that leads nowhere fails in a strict build.

    Returns:
        `str`
    """

    def link(found: re.Match) -> str:
        name = found[2]
        owner, _, member = name.partition(".")
        known = owner in PUBLIC and (not member or members is None or name in members)
        return f"[`{name}`][rtd_hf.{name}]" if known else f"`{name}`"

    pieces, end = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [_REFERENCE.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, _REFERENCE.sub(link, text[end:])])


class _Formula(InlineProcessor):
    """LaTeX in the text as MathML."""

    def __init__(self, pattern: str, md: markdown.Markdown, display: str):
        super().__init__(pattern, md)
        self.compiled_re = re.compile(pattern, re.DOTALL)
        self.display = display

    def handleMatch(self, m: re.Match, data: str) -> tuple[str, int, int]:
        """Stashed, so that no other pattern touches it."""
        formula = convert(" ".join(m[1].split()), display=self.display)
        return self.md.htmlStash.store(formula), m.start(0), m.end(0)


class Mathematics(Extension):
    r"""`\\( ... \\)` in a line and `$$ ... $$` on lines of their own, as the docstrings of Hugging Face write them."""

    def extendMarkdown(self, md: markdown.Markdown) -> None:
        # Behind code (190), before backslashes lose their meaning (180).
        md.inlinePatterns.register(_Formula(r"\\{1,2}\((.+?)\\{1,2}\)", md, "inline"), "formula", 186)
        md.inlinePatterns.register(_Formula(r"\$\$(.+?)\$\$", md, "block"), "formula_block", 187)
