"""The page of all studies: their tables, plots, and what they show."""

import json
from collections.abc import Mapping
from pathlib import Path

from .studies import STUDIES
from .tables import markdown
from .trials import cells, heading


HEAD = """# The paper's studies in the offline world

Each line is the mean over the seeds, in percent, of a training by `examples/recipes/trials.yaml` that differs
in the one thing named; the gain over no training has a 95 % interval by a paired bootstrap over the queries.
The world is small: 4 layers of a text encoder, a hundred words, drawn shapes. What holds in it need not hold
for a real CLIP, and the reverse. Where a line says "the paper", the figure is the paper's, of five benchmarks
with real pictures. Sources of triplets are compared by `examples/compare_triplets.py`, projections by
`examples/compare_projections.py` (see the README).

"""


def write_page(folder: str | Path) -> Path:
    """Writes `README.md` and `overview.png` into the folder of the studies' figures, of those studies that are there.

    Args:
        folder (`str` or `Path`): Holds `STUDY.json` and `STUDY.png` as `run_study.py` writes them.
    """
    from .study_plots import plot_overview

    folder = Path(folder)
    found = {}
    for name in STUDIES:
        file = folder / f"{name}.json"
        if file.is_file():
            found[name] = json.loads(file.read_text(encoding="utf-8"))
    plot_overview(
        [(STUDIES[name], one["rows"], one["frozen"]) for name, one in found.items()], folder / "overview.png"
    )
    sections = [_section(name, STUDIES[name], figures) for name, figures in found.items()]
    page = folder / "README.md"
    page.write_text(HEAD + "\n\n".join(sections) + "\n", encoding="utf-8")
    return page


def _section(name: str, study, figures: Mapping) -> str:
    rows = [heading("setting"), cells("no training", figures["frozen"])]
    rows += [cells(row["setting"], row["metrics"]) for row in figures["rows"]]
    versions = ", ".join(f"{library} {version}" for library, version in figures["versions"].items())
    seeds = ", ".join(map(str, figures["seeds"]))
    return "\n\n".join(
        part
        for part in (
            f"## {study.title}",
            f"The paper: {study.paper}" if study.paper else "",
            study.world,
            f"![{study.title}]({name}.png)",
            markdown(rows),
            f"`python examples/run_study.py --study {name} --seeds {len(figures['seeds'])}`: seeds {seeds}, "
            f"{versions}, {figures['machine']}.",
        )
        if part
    )
