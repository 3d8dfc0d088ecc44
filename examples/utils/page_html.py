"""How the page of `app.py` shows what was found: plain HTML, every text of a visitor or a file escaped."""

import html
from collections.abc import Callable, Sequence

from .page_search import DEPTH, Found, Reference, Side


_FOR, _AGAINST = "234, 138, 0", "37, 99, 235"  # red, green, blue of the words' marks
_STRONGEST = 0.6  # how opaque they become

CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container img { max-width: 100%; }
#title h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; font-weight: 700; }
#title p { margin: 0; color: var(--body-text-color-subdued); }
#reference figure { display: flex; gap: .9rem; align-items: center; margin: 0; min-height: 120px; }
#reference img { width: 120px; height: 120px; object-fit: contain; border-radius: 10px;
    background: var(--background-fill-secondary); }
#reference figcaption { overflow-wrap: anywhere; }
#reference small, .side small, #facts { color: var(--body-text-color-subdued); }
#message:not(:has(.note)) { display: none; }
.note { padding: .65rem .9rem; border-radius: 8px; border-left: 4px solid; margin: 0; overflow-wrap: anywhere; }
.note.error { border-color: #dc2626; background: rgba(220, 38, 38, .1); }
.note.hint { border-color: #d97706; background: rgba(217, 119, 6, .12); }
.side h2 { font-size: 1.15rem; font-weight: 700; margin: 0; }
.side > small { display: block; margin-bottom: .6rem; }
.hits { list-style: none; margin: .6rem 0 0; padding: 0; display: grid; gap: .6rem;
    grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); }
.hits li { margin: 0; min-width: 0; border: 1px solid var(--border-color-primary); border-radius: 10px;
    overflow: hidden; background: var(--background-fill-primary); }
.hits img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; margin: 0;
    background: var(--background-fill-secondary); }
.hits div { padding: .35rem .5rem .45rem; font-size: .82rem; line-height: 1.35; }
.hits .line { display: flex; justify-content: space-between; gap: .4rem; padding: 0; }
.hits .name { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
    color: var(--body-text-color-subdued); }
.hits .move { display: block; white-space: nowrap; }
.hits .up { color: #15803d; } .hits .down { color: #b91c1c; }
.dark .hits .up { color: #4ade80; } .dark .hits .down { color: #f87171; }
.words { display: flex; flex-wrap: wrap; gap: .3rem; margin: .35rem 0 0; }
.words span { padding: .15rem .45rem; border-radius: 6px; text-align: center; overflow-wrap: anywhere; }
.words b { display: block; font-weight: 400; font-size: .7rem; font-variant-numeric: tabular-nums; }
#legend { font-size: .85rem; margin: 0 0 .4rem; }
#legend i { display: inline-block; width: .9rem; height: .9rem; border-radius: 4px; vertical-align: -.1rem;
    margin: 0 .25rem 0 .1rem; }
#facts p { font-size: .85rem; margin: 0 0 .3rem; }
#tries h2 { font-size: 1rem; font-weight: 700; margin: .6rem 0 0; }
#examples { display: grid; gap: .5rem; padding: 0 12px;
    grid-template-columns: repeat(auto-fill, minmax(min(220px, 100%), 1fr)); }
#examples button { justify-content: flex-start; text-align: left; white-space: normal; font-weight: 400; }
#examples button img { width: 34px; height: 34px; border-radius: 6px; }
#pictures .grid-wrap { max-height: none; padding: 0; }
#pictures, #pictures .grid-wrap { min-height: 0 !important; height: auto !important; min-width: 0; }
#pictures .grid-container { grid-template-columns: repeat(6, minmax(0, 1fr)) !important; gap: .35rem;
    grid-template-rows: none !important; grid-auto-rows: auto !important; height: auto !important; padding: 0 12px; }
#pictures .thumbnail-item { aspect-ratio: 1; width: 100%; height: auto; min-width: 0; }
#pictures .caption-label { display: none; }
footer { display: none !important; }
@media (max-width: 700px) {
    .gradio-container { padding: 0 .2rem !important; }
    .row:has(> #question), .row:has(> .column .side) { flex-direction: column; }
    .gradio-container .column { min-width: 0 !important; width: 100%; }
    #title h1 { font-size: 1.35rem; }
    .hits { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .4rem; }
    .hits div { padding: .3rem .35rem .4rem; font-size: .78rem; }
}
"""


def safe(text: str) -> str:
    """A text for HTML; also `$` and braces, which templates of the page could read."""
    escaped = html.escape(str(text))
    return escaped.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;").replace("`", "&#96;")


def title(name: str, pictures: int) -> str:
    """The head of the page."""
    return (
        f"<h1>Search by a picture and a text</h1><p>Choose a picture, say what should be different: the same "
        f"{pictures:,} pictures are ranked by the text encoder as it was, and as RTD trained it "
        f"(<b>{safe(name)}</b>).</p>"
    )


def error(message: str) -> str:
    """What a visitor did wrong, and what to do."""
    return f'<p class="note error" role="alert">{safe(message)}</p>'


def hint(message: str) -> str:
    """What a visitor should know."""
    return f'<p class="note hint" role="status">{safe(message)}</p>'


def reference(chosen: Reference) -> str:
    """The picture that was chosen."""
    return (
        f'<figure><img src="{chosen.shown}" alt="The chosen picture: {safe(chosen.label)}">'
        f"<figcaption><b>{safe(chosen.label)}</b><br><small>is the reference</small></figcaption></figure>"
    )


def before(found: Found, shown: Callable[[str], str]) -> str:
    """What the original text encoder found, and where each picture stands after."""

    def now(name: str) -> str:
        rank = found.after.ranks.get(name)
        return f'<span class="move">now {rank or f"beyond {DEPTH}"}</span>'

    return _side(found.before, "Before RTD", "the original text encoder", "before", shown, now)


def after(found: Found, shown: Callable[[str], str]) -> str:
    """What the trained text encoder found, and where each picture stood before."""

    def move(name: str) -> str:
        return _move(found.before.ranks.get(name), found.after.ranks[name])

    return _side(found.after, "After RTD", "trained from texts alone", "after", shown, move)


def facts(found: Found, chosen: Reference, pictures: int) -> str:
    """How long each part took."""
    parts = {
        "reading the picture": chosen.milliseconds,
        f"query and {pictures:,} pictures before": found.before.milliseconds,
        "after": found.after.milliseconds,
        "words": found.words_milliseconds,
    }
    return "<p>Time: " + " · ".join(f"{name} {_duration(value)}" for name, value in parts.items()) + "</p>"


def legend() -> str:
    """What the marks of words mean."""
    return (
        f'<p id="legend"><i style="background: rgba({_FOR}, {_STRONGEST})"></i>speaks for the first result, '
        f'<i style="background: rgba({_AGAINST}, {_STRONGEST})"></i>speaks against it: the number is by how much its '
        f"score changes with the word, compared with the text without it (what must not be seen left aside).</p>"
    )


def _side(side: Side, name: str, what: str, key: str, shown: Callable, move: Callable) -> str:
    cards = "".join(
        f'<li data-id="{safe(hit.id)}" data-score="{hit.score:.6f}"><img src="{shown(hit.id)}" '
        f'alt="Result {place}: {safe(hit.id)}"><div><span class="line"><b>{place}</b><span>{hit.score:.3f}</span>'
        f'</span>{move(hit.id)}<span class="name" title="{safe(hit.id)}">{safe(hit.id)}</span></div></li>'
        for place, hit in enumerate(side.hits, 1)
    )
    empty = "" if side.hits else hint("There is nothing but the reference in this folder.")
    return (
        f'<section class="side" id="{key}"><h2>{name}</h2><small>{what}</small>{words(side.words)}'
        f'<ol class="hits" aria-label="Results: {name}">{cards}</ol>{empty}</section>'
    )


def words(effects: Sequence[tuple[str, float]]) -> str:
    """Words, each on a colour as strong as its effect among them, with the effect as a number."""
    largest = max((abs(effect) for _, effect in effects), default=0) or 1.0
    marks = "".join(
        f'<span style="background: rgba({_FOR if effect > 0 else _AGAINST}, '
        f'{_STRONGEST * abs(effect) / largest:.2f})">{safe(word)}<b>{effect:+.3f}</b></span>'
        for word, effect in effects
    )
    return f'<p class="words" aria-label="What each word adds to the score of the first result">{marks}</p>'


def _move(old: int | None, new: int) -> str:
    if old is None:
        return f'<span class="move up">▲ was beyond {DEPTH}</span>'
    if old == new:
        return '<span class="move">= as before</span>'
    way, sign = ("up", "▲") if new < old else ("down", "▼")
    said = f"<b>{sign} {abs(old - new)}</b> was {old}"
    return f'<span class="move {way}" title="Rank {old} before, {new} after">{said}</span>'


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"
