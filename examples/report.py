"""Shows one run or several as one page of HTML: to read, to print, to send; nothing is fetched and no script runs.

    python examples/report.py outputs/rtd_shapes --output report.html

Figures with their intervals, learning curves, the queries that won and lost the most with their pictures, diagnoses of
`examples/diagnose.py`, the recipes and where they differ, machine and cost. Pictures are ranked anew with the run's
encoder: on the offline world's benchmark that it was measured on, or on those that `--benchmark` names.
"""

# ci: model_cards/rtd-lincir-shapes --output {tmp}/report.html
# ci: --help

import argparse
import sys
from pathlib import Path

from utils.arguments import one_screen_errors


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="Folders with metrics.json, of trainings or evaluations.")
    add("--output", default="report.html", help="The page. Default: report.html.")
    add(
        "--benchmark",
        nargs="*",
        default=[],
        help="`NAME[=ROOT][,option=value]`: benchmarks whose wins and losses are shown.",
    )
    add("--queries", type=int, default=6, help="Wins and losses to show, each; 0: none. Default: 6.")
    add("--base_model", help="Hub id or folder of the runs' CLIP; by default the one that a run names.")
    add("--device", default="cpu", help="Where the models run. Default: cpu.")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from utils.report_page import runs_page
    from utils.report_page_gallery import galleries_of
    from utils.report_page_runs import read_runs
    from utils.specs import parse_spec

    from rtd_hf.files import readable_bytes, whole_file

    page = Path(args.output)
    if page.suffix != ".html":
        raise ValueError(f"`--output` {page} must end in .html.")
    if args.queries < 0:
        raise ValueError(f"`--queries` must be 0 or more, got {args.queries}.")
    specs, runs, galleries = [parse_spec(text) for text in args.benchmark], read_runs(args.runs), {}
    for run in runs if args.queries else ():
        options = {"number": args.queries, "base_model": args.base_model, "device": args.device}
        galleries[run.name] = galleries_of(run, specs, **options)
        if galleries[run.name][1]:
            sys.stdout.write(f"No pictures of {run.name}: {galleries[run.name][1]}.\n")
    text = runs_page(runs, galleries)
    page.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{page}: {readable_bytes(page.stat().st_size)}, {len(runs)} run{'s' * (len(runs) > 1)}\n")


if __name__ == "__main__":
    with one_screen_errors():
        main(parse_arguments(sys.argv[1:]))
