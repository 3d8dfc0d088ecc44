"""Scores a text encoder with a projection on composed retrieval: any benchmarks in one run, compared with what was.

    python examples/evaluate_cir.py --clip_model openai/clip-vit-large-patch14 --projection PROJECTION \\
        --text_encoder RTD_ENCODER --baseline_encoder frozen \\
        --benchmarks cirr=CIRR circo=CIRCO fashioniq=FashionIQ genecis=genecis coco=coco,draws=5 \\
        --features ~/.cache/rtd_hf/features --num_workers 8 --output_dir results/rtd --format latex

Without arguments it runs in the offline world. `--check_data` looks at the files and stops. A benchmark is
`NAME=ROOT`, with options of its loader behind commas: `fashioniq=ROOT,gallery=val`, `cirr=ROOT,split=test1` (which
writes the server's files), `shapes,num_queries=50`. Over several processes, start it with `accelerate launch`, or
on CPUs with `torchrun`.
"""

# ci: --benchmarks shapes,num_queries=40 --baselines image slerp --baseline_encoder frozen --output_dir {tmp}/results
# ci: --benchmarks shapes_many,num_queries=30 --preservation shapes,num_images=60 --features {tmp} --format latex
# ci: --benchmarks shapes_categories,num_queries=30 --limit 8 --format markdown
# ci: --help

import platform
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from utils.arguments import one_screen_errors, wants_help
from utils.specs import BenchmarkSpec, parse_spec, preservation_of


BASELINES = ("image", "text", "sum", "slerp", "caption")
TITLES = {
    "image": "image only",
    "text": "text only",
    "sum": "sum of both",
    "slerp": "slerp of both",
    "caption": "full target caption",
}


@dataclass
class EvaluationArguments:
    clip_model: str = field(
        default="shapes",
        metadata={"help": "Folder or Hub id of the CLIP; `shapes`: the small one that ships with us."},
    )
    text_encoder: str = field(
        default="",
        metadata={
            "help": "What is scored: folder, Hub id, or a `.pt` file `{'CLIPTextModelWithProjection': state_dict}`; "
            "the CLIP's own by default."
        },
    )
    adapter: str = field(default="", metadata={"help": "Folder or Hub id of a PEFT adapter for that encoder."})
    projection: str = field(
        default="shapes",
        metadata={"help": "Folder or Hub id, an authors' original file, or one of ours for the small CLIP."},
    )
    projection_subfolder: str = field(default="", metadata={"help": "Folder of the projection within it."})
    projection_type: str | None = field(
        default=None, metadata={"help": "Kind of an original file that looks like two kinds: `searle`, `lincir`."}
    )
    prompt_template: str | None = field(
        default=None, metadata={"help": "Takes the place of the projection's templates, on every benchmark."}
    )
    benchmarks: list[str] = field(
        default_factory=lambda: ["shapes", "shapes_many", "shapes_categories"],
        metadata={"help": "`NAME[=ROOT][,option=value ...]`, several; `draws=5` measures five seeds of `coco`."},
    )
    baselines: list[str] = field(
        default_factory=lambda: ["image", "text", "sum"],
        metadata={"help": f"Of {', '.join(BASELINES)}, with the CLIP's own text encoder; `none` for none."},
    )
    text_weight: float = field(
        default=0.5, metadata={"help": "The text's share in `sum` and `slerp`, which are the same at 0.5."}
    )
    baseline_encoder: str = field(
        default="", metadata={"help": "An encoder to compare with, as `--text_encoder`; `frozen`: the CLIP's own."}
    )
    before: str = field(default="", metadata={"help": "`--output_dir` of an earlier evaluation to compare with."})
    preservation: list[str] = field(
        default_factory=list,
        metadata={"help": "Plain retrieval: `shapes`, or `coco=CAPTIONS.json,images=FOLDER` (`,num_images=1000`)."},
    )
    name: str = field(default="", metadata={"help": "What the encoder is called in tables."})
    output_dir: str = field(default="", metadata={"help": "Folder for metrics.json and per_query.safetensors."})
    format: list[str] = field(default_factory=list, metadata={"help": "Also print rows in `latex`, `markdown`."})
    check_data: bool = field(default=False, metadata={"help": "Check the files of the benchmarks, and stop."})
    deep: bool = field(default=False, metadata={"help": "With `--check_data`: decode every picture."})
    submission: bool = field(
        default=False, metadata={"help": "Also write the files for the servers of CIRR and CIRCO into `--output_dir`."}
    )
    lenient: bool = field(
        default=False, metadata={"help": "Leave out pictures that are missing or damaged; not comparable."}
    )
    limit: int | None = field(
        default=None, metadata={"help": "Only the first queries of each group, in a small gallery; not comparable."}
    )
    features: str = field(default="", metadata={"help": "Folder in which image embeddings are kept between runs."})
    ties: str = field(default="pessimistic", metadata={"help": "Equal scores count: pessimistic, optimistic, mean."})
    batch_size: int = field(default=256, metadata={"help": "Pictures or texts encoded at once."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read pictures."})
    seed: int = field(default=0, metadata={"help": "Of the bootstrap."})
    cpu: bool = field(default=False, metadata={"help": "Do not use a GPU."})


@dataclass
class Run:
    """What is found, by the benchmark's label."""

    results: dict = field(default_factory=dict)
    queries: dict = field(default_factory=dict)
    benchmarks: dict = field(default_factory=dict)
    before: dict = field(default_factory=dict)
    baselines: dict = field(default_factory=dict)
    spreads: dict = field(default_factory=dict)
    submissions: list = field(default_factory=list)


class Screen:
    """Writes on the first process alone."""

    def __init__(self, chief: bool):
        self.chief = chief

    def __call__(self, text: str = "") -> None:
        if self.chief:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


def check(args: EvaluationArguments) -> list[BenchmarkSpec]:
    """Refuses what is known to be wrong before anything is loaded."""
    unknown = [name for name in args.baselines if name not in (*BASELINES, "none")]
    formats = [name for name in args.format if name not in ("latex", "markdown")]
    if unknown or formats:
        raise ValueError(
            f"`--baselines` must be of {', '.join(BASELINES)}, `--format` of latex, markdown; got "
            f"{(unknown or formats)[0]!r}."
        )
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"`--limit` must be at least 1, got {args.limit}.")
    if args.limit and args.submission:
        raise ValueError("`--submission` needs all queries, so it does not go with `--limit`.")
    if args.submission and not args.output_dir:
        raise ValueError("`--submission` needs `--output_dir` to write to.")
    if args.before and args.baseline_encoder:
        raise ValueError("`--before` and `--baseline_encoder` each give something to compare with. Choose one.")
    specs = [parse_spec(text) for text in args.benchmarks]
    if len({spec.label for spec in specs}) < len(specs):
        raise ValueError(f"`--benchmarks` names one twice: {', '.join(spec.label for spec in specs)}.")
    return specs


def check_files(specs: list[BenchmarkSpec], args: EvaluationArguments, say: Screen) -> None:
    """`--check_data`: a report for every benchmark that has files; an error if one of them has errors."""
    from rtd_hf.benchmarks import SOURCES, check_data

    reports = []
    for spec in specs:
        if spec.name not in SOURCES:
            say(f"`{spec.name}` is drawn and needs no files.")
            continue
        if spec.root is None:
            raise ValueError(f"`--check_data` needs the folder of `{spec.name}`: `--benchmarks {spec.name}=ROOT`.")
        parts = [spec.options["split"]] if "split" in spec.options else None
        reports.append(
            check_data(spec.name, spec.root, parts=parts, deep=args.deep, num_workers=args.num_workers or 8)
        )
        say(f"{reports[-1]}\n")
    for report in reports:
        if report.errors:
            raise ValueError(f"The data of `{report.name}` in {report.root} are not fit for use, as said above.")


def limited(benchmark, number: int):
    """The first queries of each group, in a gallery of their pictures and ten others a query."""
    queries = [benchmark.queries[row] for rows in benchmark.groups.values() for row in rows[:number]]
    needed = {i for query in queries for i in (query.reference, *query.targets, *query.candidates)}
    others = {group: 10 * number for group in ("", *benchmark.galleries)}

    def kept(ids, group=""):
        left = iter(range(others[group]))
        return tuple(i for i in ids if i in needed or next(left, None) is not None)

    galleries = {group: kept(ids, group) for group, ids in benchmark.galleries.items()}
    whole = {i for ids in galleries.values() for i in ids} | needed
    gallery = tuple(i for i in benchmark.gallery if i in whole) if galleries else kept(benchmark.gallery)
    protocol = {**benchmark.protocol, "limit": number, "complete": False}
    return replace(benchmark, queries=queries, gallery=gallery, galleries=galleries, protocol=protocol)


def evaluate(specs, parts, encoders, args: EvaluationArguments, say: Screen) -> Run:
    """All benchmarks, one after the other."""
    from rtd_hf import CIREvaluator
    from rtd_hf.benchmarks import spread_over_draws

    run = Run()
    options = {"ties": args.ties, "features": args.features or None, "strict": not args.lenient}
    for spec in specs:
        labels = []
        for draw in spec.each_draw():
            benchmark = draw.load(images="lenient" if args.lenient else "strict")
            if args.limit:
                benchmark = limited(benchmark, args.limit)
            say(f"\n{benchmark.describe()}")
            evaluator = CIREvaluator(benchmark, parts, **options)
            if benchmark.hidden_targets or (args.submission and draw.name in ("cirr", "circo")):
                run.submissions += submit(draw, evaluator, parts, encoders["after"], args, say)
            if not benchmark.hidden_targets:
                measure(draw.label, evaluator, encoders, args, run)
                labels.append(draw.label)
                show(draw.label, run, args, say)
        if len(labels) > 1:
            run.spreads[spec.label] = spread_over_draws([run.results[label].metrics for label in labels])
    return run


def measure(label: str, evaluator, encoders: dict, args: EvaluationArguments, run: Run) -> None:
    result = evaluator.evaluate(encoders["after"])
    run.results[label], run.benchmarks[label] = result, evaluator.benchmark
    run.queries[label] = [
        [query.id, query.reference, *query.texts, *query.targets] for query in evaluator.benchmark.queries
    ]
    if "before" in encoders:
        run.before[label] = evaluator.evaluate(encoders["before"])
    elif args.before:
        from utils.results import load_results

        run.before |= load_results(args.before, {label: result}, run.queries)
    run.baselines[label] = {}
    for composer in args.baselines:
        if composer == "none" or (
            composer == "caption" and not all(query.target_caption for query in evaluator.benchmark.queries)
        ):
            continue
        found = evaluator.evaluate(encoders["frozen"], composer=composer, text_weight=args.text_weight)
        share = f" (text {args.text_weight:g})" if composer in ("sum", "slerp") and args.text_weight != 0.5 else ""
        run.baselines[label][TITLES[composer] + share] = found.metrics


def submit(
    spec: BenchmarkSpec, evaluator, retriever, text_encoder, args: EvaluationArguments, say: Screen
) -> list[str]:
    """Writes the files of a server, of the test split; returns their paths."""
    from rtd_hf import CIREvaluator
    from rtd_hf.submissions import write_circo_submission, write_cirr_submission

    if not args.output_dir:
        raise ValueError(f"The targets of `{spec.label}` are hidden: give `--output_dir` for the server's files.")
    if args.limit or args.lenient:
        raise ValueError("A submission needs all queries and pictures: leave out `--limit` and `--lenient`.")
    if not evaluator.benchmark.hidden_targets:
        benchmark = replace(spec, options={**spec.options, "split": "test"}).load()
        evaluator = CIREvaluator(benchmark, retriever, features=args.features or None)
    folder, benchmark = Path(args.output_dir), evaluator.benchmark
    lists = {f"{spec.name}_test.json": evaluator.search(50, text_encoder=text_encoder)}
    if spec.name == "cirr":
        lists["cirr_test_subset.json"] = evaluator.search(3, text_encoder=text_encoder, subset=True)
    if not say.chief:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for name, rankings in lists.items():
        if spec.name == "circo":
            report = write_circo_submission(rankings, folder / name, benchmark=benchmark)
        else:
            metric = "recall_subset" if "subset" in name else "recall"
            report = write_cirr_submission(rankings, folder / name, benchmark=benchmark, metric=metric)
        notes = "".join(f"; {note}" for note in report.notes)
        say(f"{folder / name}: {report.num_queries} lists of {report.length}, {report.num_bytes:,} bytes{notes}")
    return [str(folder / name) for name in lists]


def show(label: str, run: Run, args: EvaluationArguments, say: Screen) -> None:
    """The tables of one benchmark."""
    from utils.reports import main_table, paper_rows, part_table

    benchmark, result = run.benchmarks[label], run.results[label]
    rows = dict(run.baselines[label])
    gain = None
    if label in run.before:
        rows["before"] = run.before[label].metrics
        gain = result.gain_over(run.before[label], seed=args.seed)
    name = args.name or "projection"
    rows[name] = result.metrics
    say(f"\n{label}, in percent\n\n{main_table(benchmark, rows, gain)}")
    parts = part_table(benchmark, result.metrics)
    if parts:
        say(f"\n{parts}")
    incomplete = result.protocol.get("complete") is False or "left_out" in result.protocol
    note = " (NOT COMPARABLE)" if incomplete else ""
    if note:
        reason = f"`--limit {args.limit}`" if args.limit else "the data are not complete"
        say(f"\n*** NOT COMPARABLE WITH ANY PUBLISHED FIGURE: {reason} ***")
    for kind in args.format:
        say(f"\n{paper_rows(benchmark, rows, kind=kind, note=note)}")


def preserve(retriever, encoders: dict, args: EvaluationArguments, say: Screen) -> dict:
    """Plain retrieval of the encoder, of the CLIP's own, and the change with its interval."""
    from utils.reports import preservation_table

    found = {}
    for text in args.preservation:
        options = {"ties": args.ties, "features": args.features or None, "strict": not args.lenient}
        evaluator = preservation_of(text, retriever, **options)
        frozen, after = evaluator.evaluate(encoders["frozen"]), evaluator.evaluate(encoders["after"])
        gain = after.gain_over(frozen, seed=args.seed)
        name = evaluator.data.name
        found[name] = {"frozen": frozen.metrics, "after": after.metrics, "change": gain, "protocol": after.protocol}
        say("\n" + preservation_table({"frozen": frozen.metrics, args.name or "this encoder": after.metrics}, gain))
    return found


def report_of(run: Run, preservation: dict, args: EvaluationArguments, started: float, device: str) -> dict:
    """The content of metrics.json."""
    import torch
    import transformers

    import rtd_hf

    gains = {
        label: result.gain_over(run.before[label], seed=args.seed)
        for label, result in run.results.items()
        if label in run.before
    }
    return {
        "metrics": {label: result.metrics for label, result in run.results.items()},
        "protocols": {label: result.protocol for label, result in run.results.items()},
        "queries with ties": {label: result.num_tied for label, result in run.results.items()},
        "before": {label: result.metrics for label, result in run.before.items()},
        "gain": gains,
        "baselines": run.baselines,
        "draws": run.spreads,
        "preservation": preservation,
        "submissions": run.submissions,
        "run": {
            "command": " ".join(["python", "examples/evaluate_cir.py", *sys.argv[1:]]),
            "seconds": round(time.perf_counter() - started, 1),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}",
            "versions": {
                "rtd_hf": rtd_hf.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        },
    }


def main(args: EvaluationArguments) -> None:
    started = time.perf_counter()
    specs = check(args)
    from accelerate import PartialState

    state = PartialState(cpu=args.cpu)
    say = Screen(state.is_main_process)
    if args.check_data:
        check_files(specs, args, say)
        return
    from utils.encoders import load_text_encoder
    from utils.parts import load_parts
    from utils.reports import draws_table
    from utils.results import save_results

    from rtd_hf import prepare_output_dir
    from rtd_hf.shapes import ASSETS

    folder = prepare_output_dir(args.output_dir) if args.output_dir else None
    parts = load_parts(
        args.clip_model,
        args.projection,
        projection_subfolder=args.projection_subfolder,
        projection_type=args.projection_type,
        prompt_template=args.prompt_template,
        device=state.device,
    )
    retriever = parts.retriever(
        batch_size=args.batch_size, num_workers=args.num_workers, shared=state.num_processes > 1
    )
    base = str(ASSETS / "clip") if args.clip_model == "shapes" else args.clip_model
    encoders = {"frozen": parts.text_encoder, "after": parts.text_encoder}
    if args.text_encoder or args.adapter:
        encoders["after"] = load_text_encoder(args.text_encoder, base, adapter=args.adapter, device=state.device)
    if args.baseline_encoder:
        frozen = args.baseline_encoder == "frozen"
        own = parts.text_encoder
        encoders["before"] = own if frozen else load_text_encoder(args.baseline_encoder, base, device=state.device)
    run = evaluate(specs, retriever, encoders, args, say)
    for label, spread in run.spreads.items():
        say(f"\n{label}\n\n{draws_table(spread, list(spread))}")
    preservation = preserve(retriever, encoders, args, say) if args.preservation else {}
    if folder and say.chief:
        report = report_of(run, preservation, args, started, str(state.device))
        save_results(folder, report, run.results, run.queries)
        say(f"\nWritten to {folder}: metrics.json (every figure), per_query.safetensors (for `--before`).")
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    with one_screen_errors():
        if wants_help(sys.argv[1:]):
            sys.argv[1:] = ["--help"]
        from transformers import HfArgumentParser

        parser = HfArgumentParser(
            EvaluationArguments, description="Scores a text encoder on composed retrieval.", allow_abbrev=False
        )
        (parsed,) = parser.parse_args_into_dataclasses()
        main(parsed)
