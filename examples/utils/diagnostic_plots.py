"""Pictures of diagnoses: histograms, noise against the modality gap, what changed texts cost, which layers moved."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .plots import _pyplot


# Of Okabe and Ito, told apart by all kinds of colour vision; shades differ too, for print in grey.
BEFORE, AFTER, THIRD = "#56B4E9", "#D55E00", "#009E73"
_PANELS = {
    "query_to_caption": "composed query and target caption",
    "query_to_image": "composed query and target picture",
    "query_to_reference": "composed query and reference picture",
}
_FIGURES = {
    "frechet": ("Fréchet distance / spread of pictures", "lower is closer"),
    "separability": ("ROC area of a linear classifier", "0.5: cannot be told apart"),
    "pair_cosine": ("mean cosine of both words", "higher is closer"),
}


def plot_diagnoses(found: Mapping[str, Any], folder: Path) -> list[str]:
    """A PNG for each diagnosis that has one.

    Args:
        found (`Mapping`): As `diagnose.py` writes it into `diagnostics.json`.
        folder (`Path`): Where to.

    Returns:
        `list[str]`: Their names.
    """
    written = []

    def path(kind: str, name: str) -> Path:
        safe = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
        written.append(f"{kind}_{safe}.png" if safe else f"{kind}.png")
        return folder / written[-1]

    for name, one in found.get("discrepancy", {}).items():
        plot_discrepancy(one["series"], path("discrepancy", name), title=name)
    for name, one in found.get("alignment", {}).items():
        plot_alignment(name, one, path("alignment", name))
    for name, one in found.get("gap", {}).items():
        plot_gap(one, path("gap", name), title=name)
    for name, one in found.get("perturbations", {}).items():
        plot_perturbations(one["series"], path("perturbations", name), title=name)
    if "layers" in found:
        plot_layers(found["layers"]["series"], path("layers", ""))
    return written


def plot_discrepancy(series: Mapping[str, Mapping], path: str | Path, *, title: str) -> None:
    """Histograms of the cosines before and after, with their means.

    Args:
        series (`Mapping`): Those of [`TaskDiscrepancy`] `before` and `after`.
        path (`str` or `Path`): The PNG file to write.
        title (`str`): Of the benchmark.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(4.3 * len(_PANELS), 3.4), sharey=True)
    edges = series["before"]["edges"]
    bounds = []
    for axis, (name, label) in zip(axes, _PANELS.items(), strict=True):
        for side, colour, filled in (("before", BEFORE, True), ("after", AFTER, False)):
            counts = series[side]["counts"][name]
            total = max(1, sum(counts))
            bounds += [place for place, count in enumerate(counts) if count]
            shares = [100 * count / total for count in counts]
            axis.stairs(shares, edges, color=colour, fill=filled, linewidth=1.8, label=side)
        axis.set(xlabel="cosine", title=label)
        axis.title.set_fontsize(10)
    for axis in axes:
        axis.set_xlim(edges[min(bounds)], edges[max(bounds) + 1])
    axes[0].set_ylabel("share of queries (%)")
    axes[0].legend(frameon=False, loc="upper left")
    _finish(figure, axes, path, f"Task discrepancy on {title}")


def plot_alignment(name: str, found: Mapping[str, Mapping], path: str | Path) -> None:
    """Cosines of captions and pictures and plain retrieval, before and after, with the change and its interval.

    Args:
        name (`str`): Prefix of the metrics.
        found (`Mapping`): `before`, `after` and `change`.
        path (`str` or `Path`): The PNG file to write.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.6))
    cosines = {"image_alignment": "caption and\nits picture", "caption_similarity": "caption and\nits frozen self"}
    recalls = {f"text_to_image_recall@{k}": f"R@{k}" for k in (1, 5, 10)}
    for axis, kinds, unit, digits in ((axes[0], cosines, "mean cosine", 2), (axes[1], recalls, "captions (%)", 1)):
        for place, key in enumerate(kinds):
            metric = f"{name}_{key}"
            first, then, change = (found[part][metric] for part in ("before", "after", "change"))
            axis.bar(place - 0.2, first, 0.38, color=BEFORE, label="before" if not place else None)
            axis.bar(place + 0.2, then, 0.38, color=AFTER, label="after" if not place else None)
            # The interval is of the change, and hence drawn at the end of what changed.
            ends = [[max(0, change["change"] - change["low"])], [max(0, change["high"] - change["change"])]]
            axis.errorbar(place + 0.2, then, yerr=ends, color="black", capsize=3, linewidth=1)
            axis.annotate(
                f"{change['change']:+.{digits}f}",
                (place + 0.2, then + ends[1][0]),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axis.set_xticks(range(len(kinds)), list(kinds.values()))
        axis.set_ylabel(unit)
        axis.set_ylim(0, 1.18 if kinds is cosines else 118)
    axes[1].set_title("caption to picture", fontsize=10)
    axes[0].set_title("held-out captions", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="upper right", ncols=2, fontsize=9)
    _finish(figure, axes, path, f"Anchor alignment on {name}", grid="y")


def plot_gap(found: Mapping[str, Any], path: str | Path, *, title: str) -> None:
    """How far the words of pictures lie from those of captions, over the scale of each kind of noise.

    Args:
        found (`Mapping`): `metrics` and `series` of [`modality_gap`].
        path (`str` or `Path`): The PNG file to write.
        title (`str`): Of the data.
    """
    plt = _pyplot()
    rows = found["series"]["rows"]
    none = next(row for row in rows if row["kind"] == "none")
    kinds = list(dict.fromkeys(row["kind"] for row in rows if row["kind"] != "none"))
    figure, axes = plt.subplots(1, len(_FIGURES), figsize=(4.3 * len(_FIGURES), 3.5))
    for axis, (key, (label, note)) in zip(axes, _FIGURES.items(), strict=True):
        for kind, colour, mark in zip(kinds, (AFTER, BEFORE, THIRD), ("o", "s", "^"), strict=False):
            line = [none, *(row for row in rows if row["kind"] == kind)]
            points = [row["scale"] for row in line], [row[key] for row in line]
            axis.plot(*points, marker=mark, markersize=4, color=colour, label=_plain(kind).replace("_", " "))
        axis.set(xlabel="scale of the noise (0: none)", ylabel=label)
        axis.set_title(note, fontsize=10)
    axes[0].set_ylim(bottom=0)
    axes[1].axhline(0.5, color="grey", linestyle=":")
    axes[0].legend(frameon=False, fontsize=8)
    _finish(figure, axes, path, f"Words of pictures and of captions with noise, {title}")


def plot_perturbations(series: Mapping[str, Mapping], path: str | Path, *, title: str) -> None:
    """What each change of texts costs, before and after, with its interval; grouped by what it asks.

    Args:
        series (`Mapping`): Those of [`QueryPerturbations`] `before` and `after`.
        path (`str` or `Path`): The PNG file to write.
        title (`str`): Of the benchmark.
    """
    plt = _pyplot()
    groups = list(dict.fromkeys(row["group"] for row in series["after"]["rows"]))
    titles = {
        "composition": "composition: another text, another result",
        "robustness": "robustness: the less is lost, the better",
    }
    numbers = [sum(row["group"] == group for row in series["after"]["rows"]) for group in groups]
    figure, axes = plt.subplots(
        1,
        len(groups),
        figsize=(max(9.0, 1.6 + 0.78 * sum(numbers)), 4.2),
        width_ratios=numbers,
        sharey=True,
        squeeze=False,
    )
    for axis, group in zip(axes[0], groups, strict=True):
        for side, colour, shift in (("before", BEFORE, -0.2), ("after", AFTER, 0.2)):
            rows = [row for row in series[side]["rows"] if row["group"] == group]
            places = [place + shift for place in range(len(rows))]
            label = f"{side} (unchanged: R@{series[side]['k']} {series[side]['unchanged']:.1f})"
            losses = [row["loss"] for row in rows]
            ends = [
                [max(0, row["loss"] - row["low"]) for row in rows],
                [max(0, row["high"] - row["loss"]) for row in rows],
            ]
            axis.bar(places, losses, 0.38, color=colour, label=label)
            axis.errorbar(places, losses, yerr=ends, color="black", capsize=2, linewidth=0.9, linestyle="none")
        axis.set_xticks(range(len(rows)), [_plain(row["change"]) for row in rows], rotation=40, ha="right")
        axis.set_title(titles.get(group, _plain(group)), fontsize=10, loc="left")
        axis.axhline(0, color="black", linewidth=0.8)
    axes[0][0].set_ylabel(f"points of R@{series['after']['k']} lost")
    low, high = axes[0][0].get_ylim()
    axes[0][0].set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    axes[0][-1].legend(frameon=False, loc="upper left", ncols=2, fontsize=9)
    number = series["after"]["queries"]
    _finish(figure, axes[0], path, f"Changed texts on {title}, {number} queries, 95 % intervals", grid="y")


def plot_layers(series: Mapping[str, Any], path: str | Path) -> None:
    """A heat map of how far the weights of each layer went, and how alike its states are.

    Args:
        series (`Mapping`): That of [`layer_changes`].
        path (`str` or `Path`): The PNG file to write.
    """
    plt = _pyplot()
    order = ("embeddings", "attention", "mlp", "norms", "projection", "other")
    kinds = [kind for kind in order if any(row["kind"] == kind for row in series["weights"])]
    names = ["embeddings", *map(str, range(series["layers"])), "after"]
    grid = [[float("nan")] * len(kinds) for _ in names]
    for row in series["weights"]:
        grid[row["layer"] + 1][kinds.index(row["kind"])] = 100 * row["change"]
    states = series.get("states", [])
    height = 1.8 + 0.34 * len(names)
    figure, axes = plt.subplots(
        1, 2 if states else 1, figsize=(8.8 if states else 5.2, height), width_ratios=[1.5, 1][: 1 + bool(states)],
        squeeze=False,
    )  # fmt: skip
    most = max(value for line in grid for value in line if value == value)
    image = axes[0][0].imshow(grid, cmap="cividis", aspect="auto", vmin=0)
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            if value == value:
                dark = value < 0.6 * most
                axes[0][0].text(
                    x, y, f"{value:.2g}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
                )
    axes[0][0].set_xticks(range(len(kinds)), kinds, rotation=25, ha="right")
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].set(ylabel="layer")
    axes[0][0].set_title("change of the weights (% of their norm)", fontsize=10)
    figure.colorbar(image, ax=axes[0][0])
    if states:
        axis, places = axes[0][1], [row["layer"] + 1 for row in states]
        axis.plot([row["cka"] for row in states], places, marker="o", color=AFTER, label="linear CKA")
        axis.plot([row["cosine"] for row in states], places, marker="s", color=BEFORE, label="cosine")
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel="1: as before the training")
        axis.set_title("states of texts", fontsize=10)
        axis.set_xlim(right=1.02)
        axis.legend(frameon=False, fontsize=8, loc="lower left")
        _trim([axis])
    figure.suptitle("Which layers moved", fontsize=12)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plain(text: str) -> str:
    """A text in which matplotlib sees no formula."""
    return str(text)[:80].replace("$", r"\$")


def _trim(axes: Sequence, *, grid: str = "both") -> None:
    for axis in axes:
        axis.grid(alpha=0.3, axis=grid)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)


def _finish(figure, axes: Sequence, path: str | Path, title: str, *, grid: str = "both") -> None:
    _trim(axes, grid=grid)
    figure.suptitle(_plain(title), fontsize=12)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    _pyplot().close(figure)
