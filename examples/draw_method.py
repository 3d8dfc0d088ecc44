"""Draws the figure of the method in the README.

python examples/draw_method.py --output examples/images/method.png
"""

# ci: --output {tmp}/method.png

import argparse
from pathlib import Path


FROZEN, TRAINED, TEXT, LOSS = "#dbe7f1", "#f6d9c3", "#f4f4f4", "#ffffff"
LINE, PULL = "#333333", "#b3420f"


def draw(path: Path) -> None:
    """Writes the figure: one triplet through the frozen encoder, the projection, and the encoder in training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    figure, axis = plt.subplots(figsize=(10.6, 4.9))
    axis.set(xlim=(0, 106), ylim=(0, 50))
    axis.axis("off")

    def box(x: float, y: float, width: float, height: float, text: str, colour: str, *, size: float = 9) -> None:
        shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.25,rounding_size=0.9", facecolor=colour)
        shape.set(edgecolor=LINE, linewidth=0.9)
        axis.add_patch(shape)
        axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, linespacing=1.35)

    def arrow(start, end, *, colour: str = LINE, bend: float = 0.0, style: str = "-|>", width: float = 1.1) -> None:
        axis.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle=style, mutation_scale=11, color=colour, linewidth=width,
                connectionstyle=f"arc3,rad={bend}", shrinkA=1, shrinkB=1,
            )
        )  # fmt: skip

    box(1, 42, 24, 6, "target caption\na brown cat on grass", TEXT)
    box(1, 31, 24, 6, "conditioning text\nchange the dog to a cat", TEXT)
    box(1, 2, 24, 6, "reference caption\na brown dog on grass", TEXT)

    box(67, 42, 14, 6, "text encoder\nas it was (frozen)", FROZEN)
    box(31, 31, 31, 6, "a photo of  $  that change the dog to a cat", TEXT)
    box(31, 23, 31, 6, "a photo of  $", TEXT)
    box(67, 23, 14, 14, "text encoder\nin training", TRAINED)
    box(31, 12, 31, 6, "projection of the embedding with noise\n(frozen)", FROZEN)
    box(31, 2, 31, 6, "text encoder as it was (frozen)", FROZEN)

    box(88, 42, 17, 6, "target's anchor", LOSS)
    box(88, 31, 17, 6, "composed query", LOSS)
    box(88, 23, 17, 6, "bare query", LOSS)
    box(88, 2, 17, 6, "reference's anchor", LOSS)

    arrow((25.5, 45), (66.5, 45))
    arrow((81.5, 45), (87.5, 45))
    arrow((25.5, 34), (30.5, 34))
    arrow((62.5, 34), (66.5, 34))
    arrow((62.5, 26), (66.5, 26))
    arrow((81.5, 34), (87.5, 34))
    arrow((81.5, 26), (87.5, 26))
    arrow((25.5, 5), (30.5, 5))
    arrow((62.5, 5), (87.5, 5))
    arrow((46.5, 8.5), (46.5, 11.5))
    arrow((46.5, 18.5), (46.5, 22.5))
    axis.text(47.6, 20.5, "pseudo-word, in place of both $", fontsize=8.5, style="italic", va="center")

    arrow((96.5, 37.5), (96.5, 41.5), colour=PULL, style="<|-|>", width=1.8)
    arrow((96.5, 8.5), (96.5, 22.5), colour=PULL, style="<|-|>", width=1.8)
    told = "pulled together;\nfrom all others of the\nbatch pushed apart"
    axis.text(95.4, 15.5, told, fontsize=8.5, color=PULL, ha="right", va="center")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draws the figure of the method in the README.")
    parser.add_argument("--output", default="examples/images/method.png", help="PNG file to write.")
    draw(Path(parser.parse_args().output))
