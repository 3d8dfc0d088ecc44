"""The plot of a study: R@10 and its seeds over what was varied."""

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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.6, 3.6 if study.unit else 0.9 + 0.42 * len(rows)))
    base = frozen[METRIC]["mean"]
    if study.unit:
        lines = study.lines or ("",)
        for line, colour in zip(lines, COLOURS, strict=False):
            own = [row for row in rows if row["setting"].startswith(line)]
            places = [float(row["setting"].rpartition(" ")[2]) for row in own]
            axis.plot(places, [row["metrics"][METRIC]["mean"] for row in own], color=colour, label=line or None)
            for place, row in zip(places, own, strict=True):
                seeds = row["metrics"][METRIC]["seeds"]
                axis.scatter([place] * len(seeds), seeds, color=colour, s=14, alpha=0.7)
        if study.logarithmic:
            axis.set_xscale("log")
            axis.set_xticks(places, [row["setting"] for row in own])
            axis.minorticks_off()
        axis.axhline(base, color="0.5", linestyle="--", linewidth=1, label="without training")
        axis.set(xlabel=study.unit, ylabel=f"{METRIC} (%)", ylim=(0, 102))
        axis.legend(frameon=False, fontsize=8)
    else:
        for place, row in enumerate(rows):
            metrics = row["metrics"][METRIC]
            axis.barh(place, metrics["mean"], color=COLOURS[0], alpha=0.55, height=0.6)
            axis.scatter(metrics["seeds"], [place] * len(metrics["seeds"]), color=COLOURS[0], s=14, zorder=3)
            axis.text(metrics["mean"] + 3, place, f"{metrics['mean']:.1f}", va="center", fontsize=8)
        axis.axvline(base, color="0.5", linestyle="--", linewidth=1)
        axis.set_yticks(range(len(rows)), [row["setting"] for row in rows])
        axis.invert_yaxis()
        axis.set(xlabel=f"{METRIC} (%), points are seeds; dashed: without training", xlim=(0, 108))
    axis.set_title(study.title, fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
