"""The plots of studies: R@10, its seeds and its interval over what was varied."""

from collections.abc import Mapping, Sequence
from pathlib import Path


METRIC = "shapes_recall@10"
COLOURS = ("#0072b2", "#d55e00")  # told apart by all kinds of eyes


def plot_study(study, rows: Sequence[dict], frozen: Mapping[str, Mapping], path: str | Path) -> None:
    """Writes the plot of a study.

    Args:
        study ([`Study`]): What was varied.
        rows (`Sequence[dict]`): `setting` and `metrics` of each, as `summarise` gives them.
        frozen (`Mapping`): The metrics without training.
        path (`str` or `Path`): The PNG file to write.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(5.6, 3.6 if study.unit else 0.9 + 0.42 * len(rows)))
    _draw(axis, study, rows, frozen[METRIC]["mean"])
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_overview(studies: Sequence[tuple], path: str | Path) -> None:
    """Writes all studies in one picture, three in a line: bars first, then curves.

    Args:
        studies (`Sequence[tuple]`): `(study, rows, frozen)` of each, as for [`plot_study`].
        path (`str` or `Path`): The PNG file to write.
    """
    plt = _pyplot()
    studies = sorted(studies, key=lambda one: bool(one[0].unit))
    lines = -(-len(studies) // 3)
    figure = plt.figure(figsize=(15, 3.9 * lines), layout="constrained")
    # A figure for each line: the long labels of bars do not take the width of curves below them.
    for line, part in enumerate(figure.subfigures(lines, 1, squeeze=False)[:, 0]):
        for axis, one in zip(part.subplots(1, 3), studies[3 * line : 3 * line + 3], strict=False):
            study, rows, frozen = one
            _draw(axis, study, rows, frozen[METRIC]["mean"])
        for axis in part.axes[len(studies) - 3 * line :]:
            axis.remove()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _draw(axis, study, rows: Sequence[dict], base: float) -> None:
    if study.unit:
        _draw_lines(axis, study, rows)
        axis.axhline(base, color="0.5", linestyle="--", linewidth=1, label="without training")
        axis.set(xlabel=study.unit, ylabel=f"{METRIC} (%)", ylim=(0, 102))
        axis.legend(frameon=False, fontsize=8)
    else:
        _draw_bars(axis, rows)
        axis.axvline(base, color="0.5", linestyle="--", linewidth=1)
        axis.set_xlim(0, 112)
        axis.set_xlabel(f"{METRIC} (%); dashed: without training", fontsize=8)
    axis.set_title(study.title, fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_lines(axis, study, rows: Sequence[dict]) -> None:
    for line, colour in zip(study.lines or ("",), COLOURS, strict=False):
        own = [row for row in rows if row["setting"].startswith(line)]
        places = [float(row["setting"].rpartition(" ")[2]) for row in own]
        means = [row["metrics"][METRIC]["mean"] for row in own]
        bars = {"yerr": _interval(own), "capsize": 3, "elinewidth": 1}
        axis.errorbar(places, means, color=colour, label=line or None, **bars)
        for place, row in zip(places, own, strict=True):
            seeds = row["metrics"][METRIC]["seeds"]
            axis.scatter([place] * len(seeds), seeds, color=colour, s=14, alpha=0.7)
    if study.logarithmic:
        axis.set_xscale("log")
        small = min(places) < 1e-3
        axis.set_xticks(places, [f"{place:.0e}".replace("e-0", "e-") if small else f"{place:g}" for place in places])
        axis.minorticks_off()


def _draw_bars(axis, rows: Sequence[dict]) -> None:
    for place, row in enumerate(rows):
        metrics = row["metrics"][METRIC]
        bars = {"xerr": _interval([row]), "error_kw": {"capsize": 3, "elinewidth": 1}}
        axis.barh(place, metrics["mean"], color=COLOURS[0], alpha=0.55, height=0.6, **bars)
        axis.scatter(metrics["seeds"], [place] * len(metrics["seeds"]), color=COLOURS[0], s=14, zorder=3)
        end = metrics["mean"] + metrics["high"] - metrics["gain"]
        axis.text(end + 2, place, f"{metrics['mean']:.1f}", va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [row["setting"] for row in rows])
    axis.invert_yaxis()


def _interval(rows: Sequence[dict]) -> list[list[float]]:
    """How far the 95 % interval of the gain over no training reaches below and above it."""
    metrics = [row["metrics"][METRIC] for row in rows]
    return [[one["gain"] - one["low"] for one in metrics], [one["high"] - one["gain"] for one in metrics]]
