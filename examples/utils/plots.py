"""Pictures of a run: the learning curve, and what was retrieved before and after."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def plot_curves(curve: Mapping[str, Mapping[str, list]], path: str | Path) -> None:
    """Loss, recall and the alignment of held-out captions over the steps of a run, as far as they were measured.

    Args:
        curve (`Mapping`): As `learning_curve` gives it.
        path (`str` or `Path`): The PNG file to write.
    """
    plt = _pyplot()
    train, held_out = curve["training"], curve["evaluation"]
    losses = {"training triplets": _points(train, "loss"), "held-back triplets": _points(held_out, "eval_loss")}
    recalls, cosines = {}, {}
    for key in held_out:
        name, ending = key.removeprefix("eval_"), key.rpartition("_")[2]
        plain = name.endswith("_text_to_image_recall@1")  # of ten, an encoder that is any good finds nearly all
        if plain or (ending == "recall@10" and "_text_to_image_" not in name):
            recalls[_recall_name(name)] = _points(held_out, key)
        for suffix, words in (("_image_alignment", "and its picture"), ("_caption_similarity", "and its frozen self")):
            if name.endswith(suffix):
                cosines[f"{_spoken(name.removesuffix(suffix))}: caption {words}"] = _points(held_out, key)
    panels = [("Loss", "contrastive loss", losses)]
    panels += [("Recall at each evaluation", "queries answered (%)", recalls)] if recalls else []
    panels += [("Held-out captions", "mean cosine", cosines)] if cosines else []
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.6), squeeze=False)
    for axis, (title, unit, lines) in zip(axes[0], panels, strict=True):
        for label, points in lines.items():
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axis.set(xlabel="step", ylabel=unit, title=title)
        if title.startswith("Recall"):
            axis.set_ylim(0, 103)
        elif title.startswith("Held-out"):
            axis.set_ylim(top=1.02)
        if axis.lines:
            axis.legend(frameon=False, fontsize=8, loc="lower right" if title.startswith("Recall") else "best")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _points(columns: Mapping[str, list], key: str) -> list[tuple[int, float]]:
    steps, values = columns["step"], columns.get(key, [])
    return [(step, value) for step, value in zip(steps, values, strict=bool(values)) if value is not None]


def _recall_name(name: str) -> str:
    if name.endswith("_text_to_image_recall@1"):
        return f"{_spoken(name.removesuffix('_text_to_image_recall@1'))}: caption to picture, R@1"
    return f"{_spoken(name.removesuffix('_recall@10'))}: composed queries, R@10"


def _spoken(name: str) -> str:
    return name.removesuffix("_captions").replace("_", " ")


def plot_retrieval(benchmark, rows: Sequence[int], before: list, after: list, path: str | Path) -> None:
    """For a few queries: the reference, the text, the top five before and after, hits framed in green.

    Args:
        benchmark ([`CIRBenchmark`]): The benchmark the queries belong to.
        rows (`Sequence[int]`): Which of its queries.
        before (`list[list[str]]`): Per query the ids of the best five images before.
        after (`list[list[str]]`): The same after.
        path (`str` or `Path`): The PNG file to write.
    """
    from textwrap import fill

    from matplotlib.patches import Rectangle

    plt = _pyplot()
    shown = len(before[0])
    widths = [1, 1.9, *[1] * shown, 0.25, *[1] * shown]
    figure, axes = plt.subplots(
        len(rows), len(widths), figsize=(1.05 * sum(widths), 1.12 * len(rows) + 0.5), width_ratios=widths
    )
    for axis in axes.flat:
        axis.axis("off")
    for line, row in enumerate(rows):
        query = benchmark.queries[row]
        axes[line, 0].imshow(benchmark.load_image(query.reference))
        axes[line, 1].text(0.06, 0.5, fill(" and ".join(query.texts), 22), va="center", ha="left", fontsize=9)
        axes[line, 1].set(xlim=(0, widths[1]), ylim=(0, 1), aspect="equal")  # as high as a picture
        for first, ids in ((2, before[line]), (3 + shown, after[line])):
            for column, image_id in enumerate(ids):
                axis = axes[line, first + column]
                image = benchmark.load_image(image_id)
                axis.imshow(image)
                if image_id in query.targets:
                    width, height = image.size
                    frame = Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor="#10b030", linewidth=5)
                    axis.add_patch(frame)
    axes[0, 0].set_title("reference", fontsize=10)
    axes[0, 1].set_title("text", fontsize=10)
    axes[0, 2 + shown // 2].set_title("top five before", fontsize=10)
    axes[0, 3 + shown + shown // 2].set_title("top five after RTD", fontsize=10)
    figure.tight_layout(pad=0.3, h_pad=0.35, w_pad=0.25)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_interpolation(points: Sequence[dict], path: str | Path, *, gained: str, kept: str) -> None:
    """Composed retrieval against what was kept, for encoders between the frozen and the trained one.

    Args:
        points (`Sequence[dict]`): `alpha` and the two metrics in percent, in the order of alpha.
        path (`str` or `Path`): The PNG file to write.
        gained (`str`): The metric of composed retrieval.
        kept (`str`): The metric of plain retrieval.
    """
    plt = _pyplot()
    figure, (curve, over) = plt.subplots(1, 2, figsize=(10, 4))
    alphas = [point["alpha"] for point in points]
    across, up = [point[kept] for point in points], [point[gained] for point in points]
    curve.plot(across, up, color="tab:blue", linewidth=1, zorder=1)
    marks = curve.scatter(across, up, c=alphas, cmap="viridis", zorder=2)
    figure.colorbar(marks, ax=curve, label="share of the trained weights (alpha)")
    for point, label in ((points[0], "frozen"), (points[-1], "trained")):
        curve.annotate(label, (point[kept], point[gained]), xytext=(-10, -16), textcoords="offset points", fontsize=9)
    curve.margins(x=0.18, y=0.12)
    curve.set(xlabel=f"{kept} (%)", ylabel=f"{gained} (%)", title="What is gained against what is kept")
    for values, label, colour in ((up, gained, "tab:green"), (across, kept, "tab:orange")):
        over.plot(alphas, [value - values[0] for value in values], marker="o", markersize=3, label=label, color=colour)
    over.axhline(0, color="grey", linewidth=0.8)
    over.set(
        xlabel="share of the trained weights (alpha)", ylabel="change in points", title="Change from the frozen one"
    )
    over.legend(frameon=False, fontsize=8)
    for axis in (curve, over):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
