"""Runs as one page of HTML: figures with intervals, curves, wins and losses, diagnoses, recipes, circumstances."""

import base64
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from rtd_hf.pages import Figure, document, table

from .diagnosing import shown
from .report_page_curves import panel
from .report_page_gallery import Gallery
from .report_page_runs import Run, as_text


_STYLE = """
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: .8rem 0; } a { color: #1f5f9f; }
figure { margin: 0; min-width: 0; break-inside: avoid; } figcaption { font-weight: 600; font-size: .92rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); gap: 1.2rem; }
.plot { max-width: 70rem; margin: .8rem 0; } .plot img { display: block; max-width: 100%; height: auto; }
.legend { list-style: none; margin: .3rem 0 0; padding: 0; font-size: .84rem; } .legend span { color: var(--soft); }
svg.key { display: inline-block; width: 1.5rem; height: .5rem; margin-right: .4rem; }
.query { display: grid; grid-template-columns: 4.6rem minmax(8rem, 1fr) repeat(2, minmax(15rem, 2fr)); gap: .3rem 1rem;
  align-items: center; border-bottom: 1px solid var(--line); padding: .5rem 0; break-inside: avoid; }
.query img { display: block; width: 100%; max-width: 4.4rem; aspect-ratio: 1;
  object-fit: contain; background: #f5f7fa; }
.query b { overflow-wrap: anywhere; font-weight: 500; }
.query small, .query i { color: var(--soft); font-style: normal; }
.found { display: grid; grid-template-columns: repeat(5, 1fr); gap: .25rem; } .found small { grid-column: 1 / -1; }
.found span { border: 3px solid transparent; max-width: 4.8rem; } .found img { max-width: none; }
.found .hit { border-color: #009E73; }
td { overflow-wrap: break-word; } summary { cursor: pointer; color: #1f5f9f; } details { margin: .6rem 0; }
.note { color: var(--ink); } .facts td:first-child { white-space: nowrap; color: var(--soft); }
@media screen and (max-width: 50rem) {
  body { margin: 1rem auto; } td, th { padding: .25rem .35rem; } .facts td:first-child { white-space: normal; }
  .query { grid-template-columns: 4.6rem minmax(0, 1fr); } .query .found { grid-column: 1 / -1; }
  .scroll td:first-child, .scroll th:first-child { position: sticky; left: 0; background: #fff; }
  .scroll td:first-child { max-width: 9.5rem; overflow-wrap: anywhere; }
  .scroll td:not(.number):not(:first-child) { min-width: 7.5rem; } .facts td { overflow-wrap: anywhere; }
  .plot { overflow-x: auto; } .plot img { max-width: none; }
}
@media print {
  body { margin: 0; max-width: none; font-size: 11px; padding: 0; } nav { display: none; }
  h2, h3 { break-after: avoid; } tr { break-inside: avoid; } .scroll { overflow: visible; } table { font-size: 10px; }
  .panels { grid-template-columns: 1fr 1fr; } details::details-content { display: block; content-visibility: visible; }
  .query { grid-template-columns: 3rem minmax(5rem, 1fr) repeat(2, minmax(10rem, 2fr)); }
}
"""


def runs_page(runs: Sequence[Run], galleries: Mapping[str, tuple[list[Gallery], str]]) -> str:
    """
    The page.

    Args:
        runs (`Sequence[Run]`): The runs.
        galleries (`Mapping[str, tuple[list[Gallery], str]]`): By the run's name its galleries, and why there are none.

    Returns:
        `str`: A whole HTML document without a script, which fetches nothing.

    Raises:
        ValueError: There are no runs, or what a run says of its diagnoses is damaged.
    """
    if not runs:
        raise ValueError("`runs` is empty. Give at least one.")
    sections = {
        "Runs": _overview(runs),
        "Composed retrieval": _retrieval(runs),
        "Plain retrieval": _plain(runs),
        "Learning curves": _curves(runs),
        "Wins and losses": _galleries(runs, galleries),
        "Diagnoses": _diagnoses(runs),
        "Recipes": _recipes(runs),
        "Data, machine and cost": _facts(runs),
    }
    sections = {title: body for title, body in sections.items() if body}
    links = "".join(f"<a href='#s{number}'>{title}</a>" for number, title in enumerate(sections))
    name = ", ".join(run.name for run in runs)
    head = (
        f"<h1>{escape(name)}</h1><p>Percentages; intervals are of 95 % and of the same queries before and after.</p>"
    )
    parts = [
        f"<section><h2 id='s{number}'>{title}</h2>{body}</section>"
        for number, (title, body) in enumerate(sections.items())
    ]
    return document(name, f"{head}<nav>{links}</nav>{''.join(parts)}", style=_STYLE, pictures=True)


def _interval(gain: Mapping[str, float] | None) -> Figure:
    return Figure(f"{gain['gain']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]" if gain else "")


def _figure(values: Mapping[str, float], key: str, digits: int = 1) -> Figure:
    return Figure(f"{values[key]:.{digits}f}" if key in values else "")


def _headline(run: Run) -> str | None:
    """The metric that stands for a run: the first recall@10, or the first one."""
    tens = [key for key in run.after if key.endswith("_recall@10")]
    return next(iter(tens or run.after), None)


def _overview(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        key, facts = _headline(run), run.facts.get("run", {})
        figures = [_figure(run.before, key or ""), _figure(run.after, key or ""), _interval(run.gain.get(key or ""))]
        trained = facts.get("adapters", "").removeprefix("none, ")
        seconds = run.facts.get("cost", {}).get("seconds", "")
        about = [Figure(facts.get("steps", "")), Figure(facts.get("seed", "")), Figure(seconds)]
        rows.append([run.name, trained, *about, key or "", *figures])
    heads = ("run", "trained", "steps", "seed", "seconds", "metric", "before", "after", "gain [95 % interval]")
    return table(heads, rows)


def _groups(keys: Sequence[str]) -> dict[str, list[str]]:
    """Metrics by benchmark: what stands before the kind of metric."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        stem = key.partition("@")[0]
        for kind in ("_text_to_image_recall", "_image_to_text_recall", "_recall_subset", "_recall_reverse", "_recall"):
            if stem.endswith(kind):
                break
        else:
            kind = "_map" if stem.endswith("_map") else ""
        groups.setdefault(stem.removesuffix(kind), []).append(key)
    return groups


def _retrieval(runs: Sequence[Run]) -> str:
    keys = list(dict.fromkeys(key for run in runs for key in run.after))
    if not keys:
        return "<p>No figures.</p>"
    parts = []
    for name, own in _groups(keys).items():
        if len(runs) == 1:
            run = runs[0]
            ways = [way for way, figures in run.baselines.items() if any(key in figures for key in own)]
            rows = [
                [
                    key.removeprefix(f"{name}_"),
                    *(_figure(figures, key) for figures in (run.before, run.after)),
                    _interval(run.gain.get(key)),
                    *(_figure(run.baselines[way], key) for way in ways),
                ]
                for key in own
            ]
            parts.append((name, table(("", "before", "after", "gain [95 % interval]", *ways), rows)))
            continue
        heads = ["", *(f"{run.name}: {what}" for run in runs for what in ("after", "gain [95 % interval]"))]
        rows = []
        for key in own:
            cells = [cell for run in runs for cell in (_figure(run.after, key), _interval(run.gain.get(key)))]
            rows.append([key.removeprefix(f"{name}_"), *cells])
        parts.append((name, table(heads, rows)))
    return "".join(f"<h3>{escape(name)}</h3>{body}" for name, body in parts)


def _plain(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        if not run.kept:
            continue
        rows = [
            [
                key,
                _figure(run.kept["before"], key),
                _figure(run.kept["after"], key),
                _interval(run.kept["change"].get(key)),
            ]
            for key in run.kept["after"]
        ]
        head = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
        parts.append(head + table(("", "before", "after", "change [95 % interval]"), rows))
    return "".join(parts)


def _curves(runs: Sequence[Run]) -> str:
    panels: dict[tuple[str, str], dict[str, list]] = {}
    for run in runs:
        before = f"{run.name}: " if len(runs) > 1 else ""
        for part, prefix in (("training", ""), ("evaluation", "eval_")):
            columns = run.curve.get(part, {"step": []})
            for key, values in columns.items():
                place = _panel_of(key.removeprefix(prefix), part)
                if key == "step" or place is None:
                    continue
                points = [(x, y) for x, y in zip(columns["step"], values, strict=True) if y is not None]
                title, unit, label = place
                panels.setdefault((title, unit), {})[f"{before}{label}"] = points
    drawn = [panel(lines, title=title, unit=unit) for (title, unit), lines in panels.items()]
    return f"<div class='panels'>{''.join(drawn)}</div>" if any(drawn) else "<p>No curve was kept.</p>"


def _panel_of(key: str, part: str) -> tuple[str, str, str] | None:
    """Title, unit and label of a logged value; none for what is not drawn."""
    if key == "loss":
        return "Loss", "contrastive loss", "training" if part == "training" else "held-back triplets"
    if part == "training" or "@" in key and not key.endswith(("recall@10", "_text_to_image_recall@1")):
        return None
    if key.endswith("_text_to_image_recall@1"):
        return (
            "Recall at each evaluation",
            "%",
            f"{key.removesuffix('_text_to_image_recall@1')}: caption to picture, R@1",
        )
    if key.endswith("recall@10"):
        return None if "_text_to_image_" in key else ("Recall at each evaluation", "%", key)
    cosines = ("_similarity", "_alignment", "_query_to_caption", "_query_to_image", "_query_to_reference", "_margin")
    return ("Cosines at each evaluation", "mean cosine", key.replace("_", " ")) if key.endswith(cosines) else None


def _galleries(runs: Sequence[Run], galleries: Mapping[str, tuple[list[Gallery], str]]) -> str:
    parts = []
    for run in runs:
        found, reason = galleries.get(run.name, ([], "not asked for"))
        if len(runs) > 1 or not found:
            parts.append(f"<h3>{escape(run.name)}</h3>")
        if not found:
            parts.append(f"<p class='note'>No pictures of this run: {escape(reason)}.</p>")
        for one in found:
            parts.append(f"<h3>{escape(one.title)}</h3><p>{escape(one.told)} Green frames are targets.</p>")
            for title, queries in (("Rose the most", one.wins), ("Fell the most", one.losses)):
                lines = "".join(map(_query, queries)) or "<p>None.</p>"
                parts.append(f"<h3>{title}</h3>{lines}")
    return "".join(parts)


def _query(line: Mapping) -> str:
    sides = []
    for side in ("before", "after"):
        pictures = "".join(
            f"<span{' class=hit' if hit else ''}><img src='{uri}' alt='{'target' if hit else 'picture'}'></span>"
            for uri, hit in line[f"found_{side}"]
        )
        sides.append(f"<div class='found'><small>{side}: rank {line[side]:,}</small>{pictures}</div>")
    return (
        f"<div class='query'><div><img src='{line['reference']}' alt='reference'></div>"
        f"<div><b>{escape(line['text'])}</b><br><small>rank {line['before']:,} to {line['after']:,}</small></div>"
        f"{''.join(sides)}</div>"
    )


def _diagnoses(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        before, after = (run.diagnosed.get(side, {}) for side in ("before", "after"))
        own = []
        for kind in after:
            rows = [[key, *(_figure(one.get(kind, {}), key, 3) for one in (before, after))] for key in after[kind]]
            own.append(f"<h3>{escape(kind)}, at the training</h3>{table(('', 'before', 'after'), rows)}")
        own.append(_diagnosed(run))
        head = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 and any(own) else ""
        parts.append(head + "".join(own))
    return "".join(parts) or "<p>None were made: <code>examples/diagnose.py --model RUN</code> makes them.</p>"


def _diagnosed(run: Run) -> str:
    """Tables, sentences and plots; plots are drawn anew, for whatever lies in the folder is not shown."""
    if not run.diagnoses:
        return ""
    from .diagnostic_plots import plot_diagnoses

    parts = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            plots = plot_diagnoses(run.diagnoses, Path(folder))
            for one, plot in zip(shown(run.diagnoses), plots, strict=True):
                body = [[row[0], *map(_as_figure, row[1:])] for row in one.rows[1:]]
                told = "".join(f"<p class='note'>{escape(line)}</p>" for line in one.told)
                parts.append(f"<h3>{escape(one.title)}</h3>{told}{table(one.rows[0], body)}")
                parts.append(_plot(Path(folder) / plot, one.title))
    except (KeyError, TypeError, AttributeError, IndexError, StopIteration, OverflowError) as error:
        raise ValueError(
            f"The diagnostics.json of {run.folder} is damaged ({type(error).__name__}: {error}). Make it again."
        ) from error
    return "".join(parts)


def _as_figure(cell: str) -> str:
    return Figure(cell) if cell[:1].isdigit() or cell[:1] in ("+", "-") else cell


def _plot(path: Path, title: str) -> str:
    content = path.read_bytes()
    width = int.from_bytes(content[16:20], "big")  # where PNG has it
    data, label = base64.b64encode(content).decode(), escape(title, quote=True)
    picture = f"<img width='{round(0.72 * width)}' src='data:image/png;base64,{data}' alt='{label}'>"
    return f"<figure class='plot'>{picture}</figure>"


def _recipes(runs: Sequence[Run]) -> str:
    recipes = {run.name: {str(key): as_text(value) for key, value in run.recipe.items()} for run in runs if run.recipe}
    if not recipes:
        return ""
    parts, keys = [], list(dict.fromkeys(key for recipe in recipes.values() for key in recipe))
    rows = {key: [recipe.get(key, "(its default)") for recipe in recipes.values()] for key in keys}
    if len(recipes) > 1:
        differing = [[key, *cells] for key, cells in rows.items() if len({*cells}) > 1]
        shared = "differ in nothing." if not differing else f"differ in {len(differing)} of {len(keys)} arguments:"
        parts.append(f"<p class='note'>The recipes {shared}</p>")
        parts.append(table(("argument", *recipes), differing) if differing else "")
    whole = table(("argument", *recipes), [[key, *cells] for key, cells in rows.items()])
    parts.append(f"<details><summary>All arguments</summary>{whole}</details>")
    return "".join(parts)


def _facts(runs: Sequence[Run]) -> str:
    keys = list(dict.fromkeys((part, key) for run in runs for part in run.facts for key in run.facts[part]))
    rows = [[f"{part}: {key}", *(run.facts.get(part, {}).get(key, "") for run in runs)] for part, key in keys]
    return f"<div class='facts'>{table(('', *(run.name for run in runs)), rows)}</div>" if rows else ""
