"""Shows what text triplets are like: one page of HTML to look at, and the same figures as JSON.

    python examples/inspect_triplets.py triplets.parquet --clip_model openai/clip-vit-large-patch14

Counts by rule, lengths and words, how varied and how consistent they are, how far targets move under the frozen text
encoder, what a filter would leave out, a random sample and the worst by each measure. Several files stand side by
side.
"""

# ci: shapes --limit 600 --encoded 200 --output {tmp}/report.html
# ci: shapes shapes --limit 300 --clip_model none --output {tmp}/pair.html

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from utils.arguments import one_screen_errors


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "triplets", nargs="+", help="Files in any of the known shapes, Hub ids, or `shapes` for those of the world."
    )
    parser.add_argument("--output", default="triplets.html", help="The page; the figures lie beside it, as .json.")
    parser.add_argument(
        "--clip_model",
        default="shapes",
        help="CLIP whose frozen text encoder measures: folder, Hub id, `shapes`, or `none`. Default: `shapes`, which "
        "knows the words of the offline world alone.",
    )
    parser.add_argument(
        "--columns", nargs="*", default=[], metavar="ROLE=COLUMN", help="Such as `target_caption=after`."
    )
    parser.add_argument("--captions", help="Captions of the pictures, where triplets name pictures (LaSCo).")
    parser.add_argument("--split", default="train", help="Split of a data set that has several.")
    parser.add_argument("--limit", type=int, help="Only the first so many rows.")
    parser.add_argument("--encoded", type=int, default=2000, help="Rows that the text encoder sees. Default: 2000.")
    parser.add_argument("--sample", type=int, default=40, help="Rows to read. Default: 40.")
    parser.add_argument(
        "--benchmark_texts", nargs="*", default=[], help="Annotation files of benchmarks: triplets with their texts."
    )
    parser.add_argument(
        "--queries",
        help="Text file of queries as people will ask them, one a line: do the triplets hold their words?",
    )
    parser.add_argument("--near_duplicates", type=float, default=0.0, help="Also count near ones, such as 0.9.")
    parser.add_argument("--seed", type=int, default=0, help="Draws the rows.")
    parser.add_argument("--device", default="cpu", help="Where the text encoder runs.")
    return parser.parse_args(argv)


def rows_of(source: str, args: argparse.Namespace) -> Iterator[dict]:
    """The triplets of a source."""
    from rtd_hf.triplets import read_triplets

    if source == "shapes":
        from utils.parts import load_triplets

        yield from load_triplets("shapes", args.limit or 5000, args.seed)
        return
    pairs = [entry.partition("=") for entry in args.columns]
    if not all(role and column for role, _, column in pairs):
        raise ValueError(f"`--columns` must read like `target_caption=after`, got {' '.join(args.columns)}.")
    columns = {role: column for role, _, column in pairs}
    yield from islice(read_triplets(source, columns=columns, captions=args.captions, split=args.split), args.limit)


def main(args: argparse.Namespace) -> None:
    from rtd_hf.triplets import FilterOptions, TripletFilter
    from rtd_hf.triplets.page import report_page
    from rtd_hf.triplets.quality import measure_triplets

    page = Path(args.output)
    if page.suffix != ".html":
        raise ValueError(f"`--output` {page} must end in .html.")
    encode = None
    if args.clip_model != "none":
        from utils.embedding import text_embedder

        encode = text_embedder(args.clip_model, device=args.device)
    encoder = (
        "shapes, which knows the words of the offline world alone" if args.clip_model == "shapes" else args.clip_model
    )
    options = FilterOptions(near_duplicates=args.near_duplicates, benchmark_texts=args.benchmark_texts)
    queries = Path(args.queries).read_text(encoding="utf-8").splitlines() if args.queries else ()
    reports = {}
    for number, source in enumerate(args.triplets, start=1):
        report = measure_triplets(
            rows_of(source, args),
            encode=encode,
            encoded=args.encoded,
            sample=args.sample,
            seed=args.seed,
            triplet_filter=TripletFilter(options),
            queries=queries,
        )
        name = source if source not in reports else f"{source} ({number})"
        reports[name] = {"encoder": encoder, **report}
        sys.stdout.write(
            f"{name}: {report['rows']:,} triplets, {100 * report['consistent']:.1f} % consistent, "
            f"{100 * report['change_named']:.1f} % of the changed words named, "
            f"{sum(report['faults'].values()):,} with a fault\n"
        )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(report_page(reports), encoding="utf-8")
    figures = page.with_suffix(".json")
    figures.write_text(json.dumps(reports, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(f"{page}, and the figures in {figures}\n")


if __name__ == "__main__":
    with one_screen_errors():
        main(parse_arguments(sys.argv[1:]))
