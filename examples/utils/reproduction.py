"""The rows of the paper's main tables: what each needs, whether it is there, and what is known to compare it with.

    python -m utils.reproduction list|check|compare BACKBONE PROJECTION

`examples/reproduce_paper.sh` calls it. Figures are in percent and second-hand, read in texts about the papers.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from utils.arguments import one_screen_errors, read_recipe


EXAMPLES = Path(__file__).resolve().parents[1]
BACKBONES = ("b32", "l14", "g14")
PROJECTIONS = ("pic2word", "searle", "lincir", "context_i2w", "fti4cir")
BENCHMARKS = ("fashioniq", "genecis", "cirr", "circo", "coco")

# Files that the authors of a projection published, and what is to be known of them.
_PUBLISHED_FILES = {
    ("l14", "pic2word"): (
        "navervision/zeroshot-cir-models:pic2word_large.pt",
        "a copy by LinCIR's authors for their demo, not the paper's; the authors' own link is reported dead",
    ),
    ("b32", "searle"): ("SEARLE_ViT-B32.pt", "from github.com/miccunifi/SEARLE/releases/download/weights"),
    ("l14", "searle"): ("SEARLE_ViT-L14.pt", "from github.com/miccunifi/SEARLE/releases/download/weights"),
    ("l14", "lincir"): ("navervision/zeroshot-cir-models:lincir_large.pt", "the demo's, not the paper's"),
    ("l14", "context_i2w"): ("context_i2w.pt", "from the link in github.com/Pter61/context-i2w"),
    ("l14", "fti4cir"): ("FTI4CIR_model.pth", "from the link in github.com/ZiChao111/FTI4CIR"),
}
_NEEDS_SURROGATE = ("context_i2w", "fti4cir")

_CIRR = ("cirr_recall@1", "cirr_recall@5", "cirr_recall@10")
_CIRCO = ("circo_map@5", "circo_map@10", "circo_map@25", "circo_map@50")
_FASHIONIQ = ("fashioniq_recall@10", "fashioniq_recall@50")
# Of the projections as published, without RTD: FashionIQ val; CIRR test1 and CIRCO test, which their servers score.
_WITHOUT_RTD = {
    ("b32", "pic2word"): {"genecis_recall@1": 11.13},
    ("b32", "searle"): {
        **dict(zip(_FASHIONIQ, (22.89, 42.53), strict=True)),
        **dict(zip(_CIRR, (24.00, 53.42, 66.82), strict=True)),
        **dict(zip(_CIRCO, (9.35, 9.94, 11.13, 11.84), strict=True)),
        "genecis_recall@1": 12.19,
    },
    ("b32", "lincir"): {"genecis_recall@1": 12.23},
    ("l14", "pic2word"): {
        **dict(zip(_FASHIONIQ, (24.70, 43.70), strict=True)),
        **dict(zip(_CIRR, (23.90, 51.70, 65.30), strict=True)),
        "circo_map@5": 8.72,
        "genecis_recall@1": 11.16,
    },
    ("l14", "searle"): {
        **dict(zip(_FASHIONIQ, (25.56, 46.23), strict=True)),
        **dict(zip(_CIRR, (24.24, 52.48, 66.29), strict=True)),
        **dict(zip(_CIRCO, (11.68, 12.73, 14.33, 15.12), strict=True)),
        "genecis_recall@1": 12.26,
    },
    ("l14", "lincir"): {
        **dict(zip(_FASHIONIQ, (26.28, 46.49), strict=True)),
        **dict(zip(_CIRR, (25.04, 53.25, 66.68), strict=True)),
        **dict(zip(_CIRCO, (12.59, 13.58, 15.00, 15.85), strict=True)),
        "genecis_recall@1": 12.19,
    },
    ("l14", "context_i2w"): {
        **dict(zip(_FASHIONIQ, (27.80, 48.90), strict=True)),
        **dict(zip(_CIRR, (25.60, 55.10, 68.50), strict=True)),
    },
    ("l14", "fti4cir"): {
        **dict(zip(_FASHIONIQ, (29.39, 50.88), strict=True)),
        **dict(zip(_CIRR, (25.90, 55.61, 67.66), strict=True)),
        **dict(zip(_CIRCO, (15.05, 16.32, 18.06, 19.05), strict=True)),
    },
    ("g14", "lincir"): {
        **dict(zip(_FASHIONIQ, (45.11, 65.69), strict=True)),
        **dict(zip(_CIRR, (35.25, 64.72, 76.05), strict=True)),
        **dict(zip(_CIRCO, (19.71, 21.01, 23.13, 24.18), strict=True)),
        "fashioniq_average": 55.40,
    },
}
# With RTD next to nothing is known: one mean, FashionIQ's as LinCIR's in the same place is (45.11 + 65.69) / 2.
_WITH_RTD = {("g14", "lincir"): {"fashioniq_average": 56.74}}
# The split that the published figures are of, where it is another than the one that is measured here.
_SERVERS = {"cirr": "test1", "circo": "test"}


@dataclass(frozen=True)
class Row:
    """A row of the tables, and where its things are.

    Args:
        backbone (`str`): One of `BACKBONES`.
        projection (`str`): One of `PROJECTIONS`.
    """

    backbone: str
    projection: str

    def __post_init__(self):
        if self.backbone not in BACKBONES or self.projection not in PROJECTIONS:
            raise ValueError(
                f"There is no row `{self.backbone} {self.projection}`: the first must be one of "
                f"{', '.join(BACKBONES)}, the second one of {', '.join(PROJECTIONS)}."
            )

    @property
    def name(self) -> str:
        return f"{self.backbone} {self.projection}"

    @property
    def recipe(self) -> Path:
        """Its recipe."""
        return EXAMPLES / "recipes" / f"reproduce_{self.backbone}_{self.projection}.yaml"

    @property
    def facts(self) -> dict:
        """What its recipe says, and what it includes."""
        return read_recipe(self.recipe)

    @property
    def clip_model(self) -> str:
        """`CLIP`, or the recipe's."""
        return os.environ.get("CLIP") or self.facts["clip_model"]

    @property
    def projection_folder(self) -> Path:
        """Where the converted projection is to be: in `PROJECTIONS`, by its name in the recipe."""
        return Path(os.environ.get("PROJECTIONS", "projections")) / Path(self.facts["projection"]).name

    @property
    def triplets(self) -> str:
        """`TRIPLETS`, or the recipe's."""
        return os.environ.get("TRIPLETS") or self.facts["triplets"]

    @property
    def output_dir(self) -> Path:
        """Where it is trained to, below `OUTPUT`."""
        return Path(os.environ.get("OUTPUT", "outputs/reproduce")) / f"{self.backbone}_{self.projection}"

    @property
    def template(self) -> str:
        """The template that the recipe puts in the place of the projection's own; empty where it does not."""
        return self.facts.get("prompt_template", "")

    def benchmark(self, name: str) -> Path:
        """The folder of a benchmark, in `BENCHMARKS`."""
        return Path(os.environ.get("BENCHMARKS", "data")) / name

    def how_to_get_the_projection(self) -> list[str]:
        """Command lines, and remarks behind `#`."""
        base, folder = self.facts["clip_model"], self.projection_folder
        published = _PUBLISHED_FILES.get((self.backbone, self.projection))
        if published is None:
            config = f"examples/recipes/projection_{self.projection}_l14.yaml"
            return [
                "# none is published for this backbone; with pictures and captions (LinCIR: captions) this fits one",
                f"python examples/train_projection.py --config {config} --clip_model {base} --output_dir {folder}",
            ]
        file, remark = published
        raw = f"{folder}-raw" if self.projection in _NEEDS_SURROGATE else f"{folder}"
        lines = [
            f"# {file}: {remark}",
            f"python examples/convert_projection.py --checkpoint {file} --base_model {base} "
            f"--projection_type {self.projection} --output_dir {raw}",
        ]
        if self.projection in _NEEDS_SURROGATE:
            contexts = f" --contexts {self.triplets}" if self.projection == "context_i2w" else ""
            lines.append(
                f"python examples/teach_surrogate.py --projection {raw} --clip_model {base} --data PICTURES{contexts} "
                f"--output_dir {folder}"
            )
        return lines


def supply(row: Row) -> str:
    """What a user must supply for a row, in words."""
    lines = [f"{row.name}: {row.recipe.relative_to(EXAMPLES.parent)}", f"  CLIP        {row.clip_model}"]
    if not Path(row.clip_model).exists():
        lines.append("              from the Hub, or a folder of it in CLIP")
    lines += [f"  projection  {row.projection_folder} (folder in PROJECTIONS)"]
    lines += [f"              {line}" for line in row.how_to_get_the_projection()]
    lines += [
        f"  triplets    {row.triplets} (TRIPLETS): reference_caption, conditioning_caption, target_caption",
        "              the authors' LLM_triplets.json, or examples/generate_triplets.py",
        f"  benchmarks  {', '.join(str(row.benchmark(name)) for name in BENCHMARKS)} (in BENCHMARKS)",
        f"  result      {row.output_dir} (OUTPUT)",
    ]
    known = _WITHOUT_RTD.get((row.backbone, row.projection), {})
    ours = _WITH_RTD.get((row.backbone, row.projection), {})
    lines.append(f"  to compare  {len(known)} published figures without RTD, {len(ours)} with RTD; second-hand")
    if row.projection in _NEEDS_SURROGATE:
        lines.append("  not known   whether the paper has this row, and how RTD was trained for it")
    return "\n".join(lines)


def missing(row: Row) -> list[str]:
    """What is not there, or is not what the row needs; of benchmarks those that are not there at all are left out."""
    faults = []
    config = row.projection_folder / "config.json"
    if not config.is_file():
        faults.append(f"projection: there is no {config}")
    else:
        faults += _projection_faults(row, json.loads(config.read_text(encoding="utf-8")))
    if not Path(row.triplets).is_file():
        faults.append(f"triplets: there is no file {row.triplets}")
    if not any(row.benchmark(name).is_dir() for name in BENCHMARKS):
        faults.append(f"benchmarks: none of {', '.join(BENCHMARKS)} is in {row.benchmark('x').parent}")
    return faults


def _projection_faults(row: Row, found: dict) -> list[str]:
    from utils.clips import find_config

    kind, faults = found.get("projection_type"), []
    if kind != row.projection:
        faults.append(f"projection: {row.projection_folder} is of the kind {kind}, not {row.projection}")
    text, vision, _ = find_config(row.clip_model, None)
    wanted = {"input_dim": text.projection_dim, "output_dim": text.hidden_size}
    if found.get("vision_hidden_size") is not None and vision is not None:
        wanted["vision_hidden_size"] = vision
    wrong = [f"{name} {found.get(name)} for {value}" for name, value in wanted.items() if found.get(name) != value]
    if wrong:
        faults.append(f"projection: {row.projection_folder} is another CLIP's ({', '.join(wrong)})")
    return faults


def present(row: Row) -> list[str]:
    """The benchmarks that are there."""
    return [name for name in BENCHMARKS if row.benchmark(name).is_dir()]


def comparison(row: Row, measured: dict) -> str:
    """
    Measured figures beside the published ones that are known, as a Markdown table.

    Args:
        row ([`Row`]): The row.
        measured (`dict`): `metrics.json` of `evaluate_cir.py`: `metrics` and `before` by benchmark.

    Returns:
        `str`
    """
    key = (row.backbone, row.projection)
    without, with_rtd = _WITHOUT_RTD.get(key, {}), _WITH_RTD.get(key, {})
    after = {name: value for part in measured["metrics"].values() for name, value in part.items()}
    before = {name: value for part in measured["before"].values() for name, value in part.items()}
    limited = any(part.get("complete") is False for part in measured.get("protocols", {}).values())
    lines = [
        f"# {row.projection} on {row.backbone}, with and without RTD",
        "",
        "In percent. Published figures are second-hand, read in texts about the papers; `unknown`: not found there.",
        "",
        "| metric | measured without RTD | measured with RTD | published without RTD | published with RTD |",
        "|---|---|---|---|---|",
    ]
    if limited:
        lines.insert(3, "The data are not complete: NOT COMPARABLE with any published figure.\n")
    for name in [*dict.fromkeys([*without, *with_rtd, *(name for name in _HEADLINES if name in after)])]:
        benchmark = name.split("_")[0]
        server = _SERVERS.get(benchmark)
        note = f" ({server} split, from its server)" if server and name in without else ""
        # The server's figures are of another split than those that were measured here.
        shown = [before.get(name), after.get(name)]
        measured_here = [
            "not measured" if value is None else f"{value:.2f}{' (val)' if server else ''}" for value in shown
        ]
        published = [f"{known[name]:.2f}{note}" if name in known else "unknown" for known in (without, with_rtd)]
        lines.append("| " + " | ".join([name, *measured_here, *published]) + " |")
    if measured.get("submissions"):
        files = ", ".join(Path(path).name for path in measured["submissions"])
        lines += ["", f"For the servers of CIRR and CIRCO, whose test splits the published figures are of: {files}."]
    return "\n".join(lines) + "\n"


_HEADLINES = (*_FASHIONIQ, "fashioniq_average", "genecis_recall@1", *_CIRR, *_CIRCO, "coco_recall@1")


def main(argv: list[str]) -> int:
    """One command for one row; the exit code is 1 where something is missing."""
    parser = argparse.ArgumentParser(prog="utils.reproduction")
    parser.add_argument("command", choices=("rows", "list", "check", "present", "compare", "value"))
    parser.add_argument("backbone", nargs="?")
    parser.add_argument("projection", nargs="?")
    parser.add_argument("--name", help="`value`: which property of the row.")
    args = parser.parse_args(argv)
    if args.command == "rows":
        rows = [Row(b, p) for b in BACKBONES for p in PROJECTIONS]
        wanted = [row for row in rows if args.backbone in (None, row.backbone)]
        wanted = [row for row in wanted if args.projection in (None, row.projection)]
        if not wanted:
            Row(args.backbone, args.projection or PROJECTIONS[0])
            Row(BACKBONES[0], args.projection)
        sys.stdout.writelines(f"{row.name}\n" for row in wanted)
        return 0
    row = Row(args.backbone, args.projection)
    if args.command == "list":
        sys.stdout.write(supply(row) + "\n")
    elif args.command == "value":
        sys.stdout.write(f"{getattr(row, args.name)}\n")
    elif args.command == "present":
        sys.stdout.writelines(f"{name}={row.benchmark(name)}\n" for name in present(row))
    elif args.command == "check":
        faults = missing(row)
        sys.stdout.writelines(f"  missing: {fault}\n" for fault in faults)
        return 1 if faults else 0
    else:
        found = json.loads((row.output_dir / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
        text = comparison(row, found)
        (row.output_dir / "evaluation" / "comparison.md").write_text(text, encoding="utf-8")
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    with one_screen_errors():
        raise SystemExit(main(sys.argv[1:]))
