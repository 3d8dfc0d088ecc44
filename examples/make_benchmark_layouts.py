"""Lays out the folder trees of the five benchmarks with drawn pictures, to try every command without the real ones.

    python examples/make_benchmark_layouts.py --output_dir data --annotations annotations --num_queries 40

The real annotation files are used if `--annotations` names a folder that holds them, in any of the circulating trees:
whole, or the first queries of each with the images they need. Without it annotations of the same form are made up,
which ask for what the pictures show (COCO's do not), so that a model of the offline world scores above chance. Figures
on drawn pictures say that the machinery works and nothing else.
"""

# ci: --output_dir {tmp} --num_queries 6
# ci: --output_dir {tmp} --num_queries 4 --benchmarks genecis coco

import argparse
import sys
import time
from pathlib import Path

from utils.arguments import one_screen_errors, without_warnings


NAMES = ("cirr", "fashioniq", "circo", "genecis", "coco")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="Where each benchmark gets a folder of its name.")
    parser.add_argument("--benchmarks", nargs="+", choices=NAMES, default=NAMES, help="Which; all by default.")
    parser.add_argument("--annotations", help="Folder of the real annotation files; without it they are made up.")
    parser.add_argument(
        "--num_queries", type=int, help="Queries per split, category or task; by default all, or 100 if made up."
    )
    return parser.parse_args(argv)


def lay_out(output_dir: Path, name: str, annotations: Path | None, num_queries: int | None) -> str:
    """Makes one tree, and reads it back: its protocol, with the sizes."""
    from utils.layouts import LAYOUTS

    from rtd_hf import BENCHMARKS
    from rtd_hf.benchmarks import genecis

    folder = output_dir / name
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty, and what lies there would mix with the new files. Remove it.")
    LAYOUTS[name](folder, annotations, num_queries)
    options = {"metrics": ("recall@1",)}
    if name == "genecis":
        options["tasks"] = [task for task in genecis.TASKS if (folder / "genecis" / f"{task}.json").is_file()]
    return BENCHMARKS[name](folder, **options).describe()


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    with one_screen_errors(), without_warnings():  # that a part is not the whole is plain here
        if args.num_queries is not None and args.num_queries < 1:
            raise ValueError(f"`--num_queries` must be at least 1, got {args.num_queries}.")
        annotations = None if args.annotations is None else Path(args.annotations)
        for name in args.benchmarks:
            start = time.perf_counter()
            described = lay_out(Path(args.output_dir), name, annotations, args.num_queries)
            print(f"{Path(args.output_dir, name)} ({time.perf_counter() - start:.1f} s)\n  {described}")


if __name__ == "__main__":
    main(sys.argv[1:])
