"""Why an encoder works, and what it cost: diagnoses of it and of the one it started from, with plots.

    python examples/diagnose.py --model outputs/rtd_shapes

Measured are the task discrepancy, the alignment of captions with pictures, the modality gap of the projection, the
quality of triplets (`--triplets FILE`), what changed texts do to the results, and which layers moved. Into a folder go
`diagnostics.json` and a PNG for each; `examples/report.py` shows both. On benchmarks and captions of your own:

    python examples/diagnose.py --model RUN --benchmark cirr=CIRR \\
        --captions coco=captions_val2017.json,images=val2017,num_images=1000
"""

# ci: --max_steps 2 --benchmark shapes,num_queries=9 --captions shapes,num_images=20 --output_dir {tmp}/a
# ci: --max_steps 2 --benchmark shapes_many,num_queries=6 --only perturbations --changes dropped --output_dir {tmp}/b
# ci: --max_steps 2 --only triplets --triplets shapes --output_dir {tmp}/c
# ci: --help

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from utils.arguments import one_screen_errors, parse, read_recipe
from utils.diagnosing import DIAGNOSES, check_diagnoses


TRIALS = Path(__file__).parent / "recipes" / "trials.yaml"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        default=["shapes"],
        help="Folders or Hub ids of runs; with `--clip_model`, text encoders in any form. Default: `shapes`, one that "
        "is trained now in the offline world.",
    )
    add("--clip_model", help="The CLIP that the encoders were trained from, where they are no whole runs.")
    add("--projection", help="The projection beside `--clip_model`: folder, Hub id or the authors' file.")
    add("--base_model", help="Hub id or folder of a run's CLIP; by default the one that the run names.")
    add("--benchmark", nargs="*", default=["shapes"], help="`NAME[=ROOT][,option=value]`, as in evaluate_cir.py.")
    add(
        "--captions",
        default="shapes",
        help="Pictures with captions: `shapes[,num_images=500]` or `coco=CAPTIONS.json,images=FOLDER[,num_images=N]`.",
    )
    add("--triplets", help="File or Hub id of text triplets, or `shapes`.")
    add("--only", nargs="+", default=[], metavar="DIAGNOSIS", help=f"Of {', '.join(DIAGNOSES)}; all by default.")
    add("--changes", nargs="+", default=[], help="Only these changes of texts; all by default.")
    add("--output_dir", help="By default `diagnostics` in the run's folder, or `outputs/diagnostics`.")
    add("--features", help="Folder in which embeddings of pictures are kept.")
    add("--batch_size", type=int, default=256, help="Pictures or texts at once. Default: 256.")
    add("--num_workers", type=int, default=0, help="Processes that read pictures ahead. Default: 0.")
    add("--device", default="cpu", help="Where the models run. Default: cpu.")
    add("--max_steps", type=int, default=300, help="Steps of the training of `shapes`. Default: 300.")
    add("--seed", type=int, default=0, help="Draws changes, noise and intervals. Default: 0.")
    return parser.parse_args(argv)


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def encoders_of(model: str, args: argparse.Namespace) -> tuple[Any, Any]:
    """A retriever with the encoder before the training, and the encoder after it."""
    from utils.encoders import load_text_encoder
    from utils.parts import load_parts

    from rtd_hf import load_cir_encoder
    from rtd_hf.shapes import ASSETS

    options = {"batch_size": args.batch_size, "num_workers": args.num_workers}
    if model == "shapes" and not Path(model).exists():
        return load_parts("shapes", "shapes", device=args.device).retriever(**options), trained_now(args)
    if args.clip_model:
        if not args.projection:
            raise ValueError("`--projection` is missing: which one belongs to `--clip_model`?")
        base = str(ASSETS / "clip") if args.clip_model == "shapes" else args.clip_model
        retriever = load_parts(args.clip_model, args.projection, device=args.device).retriever(**options)
        return retriever, load_text_encoder(model, base, device=args.device)
    retriever = load_cir_encoder(model, original=True, base_model=args.base_model, device=args.device, **options)
    return retriever, load_text_encoder(model, "", device=args.device)


def trained_now(args: argparse.Namespace):
    """An encoder of the offline world, trained now with the recipe of all comparisons."""
    from transformers import set_seed
    from utils.parts import load_parts, load_triplets
    from utils.trials import trained

    from rtd_hf import RTDTrainingArguments

    recipe = read_recipe(TRIALS)
    number = min(recipe.pop("num_triplets"), 256 * args.max_steps)
    recipe |= {"max_steps": args.max_steps, "warmup_steps": min(recipe["warmup_steps"], args.max_steps // 2)}
    with tempfile.TemporaryDirectory() as folder:
        recipe |= {"output_dir": folder, "report_to": "none"}
        (options,) = parse((RTDTrainingArguments,), [], default_recipe=None, description="", defaults=recipe)
        set_seed(options.seed)
        encoder = trained(load_parts("shapes", "shapes"), options, load_triplets("shapes", number, options.seed))
    return encoder.eval().to(args.device)


def on_benchmarks(found: dict, retriever, after, args: argparse.Namespace, wanted: list[str]) -> None:
    """What is measured by composed queries."""
    from utils.diagnosing import both, shown_discrepancy, shown_perturbations
    from utils.specs import parse_spec

    from rtd_hf import CIREvaluator, QueryPerturbations, TaskDiscrepancy

    before = retriever.text_encoder
    for spec in map(parse_spec, args.benchmark):
        evaluator = CIREvaluator(spec.load(), retriever, features=args.features)
        name, described = evaluator.benchmark.name, all(query.target_caption for query in evaluator.benchmark.queries)
        if "discrepancy" in wanted and described:
            made = both(TaskDiscrepancy(evaluator).measure, before, after, seed=args.seed)
            found.setdefault("discrepancy", {})[spec.label] = {"name": name, **made}
            say(shown_discrepancy(name, made, spec.label).lines())
        elif "discrepancy" in wanted:
            say(f"\nTask discrepancy on {spec.label}: not measured, for its queries have no target captions.")
        if "perturbations" in wanted:
            changed = QueryPerturbations(evaluator, changes=args.changes, seed=args.seed)
            made = both(changed.measure, before, after, seed=args.seed)
            found.setdefault("perturbations", {})[spec.label] = {"name": name, **made}
            say(shown_perturbations(name, made, spec.label).lines())


def on_captions(found: dict, retriever, after, args: argparse.Namespace, wanted: list[str]) -> None:
    """What is measured by captions, with pictures or without."""
    from utils.diagnosing import both_results, shown_alignment, shown_gap, shown_layers
    from utils.specs import captions_of

    from rtd_hf import ImageAlignment, layer_changes, modality_gap

    data, before = captions_of(args.captions), retriever.text_encoder
    if "alignment" in wanted:
        watched = ImageAlignment(data, retriever, features=args.features)
        found["alignment"] = {data.name: both_results(watched.evaluate, before, after, seed=args.seed)}
        say(shown_alignment(data.name, found["alignment"][data.name]).lines())
    if "gap" in wanted and getattr(retriever.projection, "text_training", "") == "literal":
        say("\nModality gap: not measured, for this projection makes no words of texts.")
    elif "gap" in wanted:
        gap = modality_gap(data, retriever, seed=args.seed)
        found["gap"] = {data.name: {"metrics": dict(gap.metrics), "series": dict(gap.series)}}
        say(shown_gap(data.name, found["gap"][data.name]).lines())
    if "layers" in wanted:
        texts = [captions[0] for captions in data.captions][:500]
        moved = layer_changes(before, after, texts=texts, tokenizer=retriever.tokenizer)
        found["layers"] = {"metrics": dict(moved.metrics), "series": dict(moved.series)}
        say(shown_layers(found["layers"]).lines())


def on_triplets(found: dict, retriever, args: argparse.Namespace, folder: Path) -> None:
    """The quality of the triplets under the frozen encoder, with its own page."""
    from utils.parts import load_triplets

    from rtd_hf.triplets import measure_triplets, read_triplets
    from rtd_hf.triplets.page import report_page

    shapes = args.triplets == "shapes"
    rows = load_triplets("shapes", 5000, args.seed) if shapes else read_triplets(args.triplets)
    report = measure_triplets(rows, encode=lambda texts: retriever.embed_texts(texts).numpy(), seed=args.seed)
    found["triplets"] = {args.triplets: report}
    (folder / "triplets.html").write_text(report_page({args.triplets: report}), encoding="utf-8")
    say(
        f"\nTriplets of {args.triplets}: {report['rows']:,}, of which {100 * report['consistent']:.1f} % are "
        f"consistent by their words; {sum(report['faults'].values()):,} have a fault. "
        f"More in {folder / 'triplets.html'}."
    )


def folder_of(model: str, args: argparse.Namespace) -> Path:
    """Where the diagnoses of a model go."""
    own = Path(model).name if Path(model).exists() else model.replace("/", "--")
    if args.output_dir:
        return Path(args.output_dir) / own if len(args.model) > 1 else Path(args.output_dir)
    return Path(model) / "diagnostics" if Path(model).is_dir() else Path("outputs", "diagnostics", own)


def main(args: argparse.Namespace) -> None:
    import torch
    import transformers
    from utils.diagnostic_plots import plot_diagnoses
    from utils.specs import captions_of, parse_spec

    import rtd_hf
    from rtd_hf import TEXT_CHANGES, prepare_output_dir
    from rtd_hf.files import whole_file
    from rtd_hf.triplets import read_triplets

    check_diagnoses(args.only, DIAGNOSES, "--only")
    wanted = list(args.only or (name for name in DIAGNOSES if name != "triplets" or args.triplets))
    if "triplets" in wanted and not args.triplets:
        raise ValueError("`--triplets` is missing: which triplets are to be looked at?")
    if "triplets" in wanted and args.triplets != "shapes":
        next(read_triplets(args.triplets), None)  # a file that is missing is told of before any work
    folders = [folder_of(model, args) for model in args.model]
    if len({*folders}) < len(folders):
        raise ValueError(f"`--model` names one twice, or two whose folders are called the same: {args.model}.")
    for change in args.changes:
        TEXT_CHANGES[change]  # an unknown one is an error of its own, with the nearest one
    for text in args.benchmark:
        parse_spec(text)
    captions_of(args.captions)
    for model, folder in zip(args.model, folders, strict=True):
        started = time.perf_counter()
        prepare_output_dir(folder)
        if len(args.model) > 1:
            say(f"\n=== {model}")
        (retriever, after), found = encoders_of(model, args), {}
        if {"discrepancy", "perturbations"} & {*wanted}:
            on_benchmarks(found, retriever, after, args, wanted)
        if {"alignment", "gap", "layers"} & {*wanted}:
            on_captions(found, retriever, after, args, wanted)
        if "triplets" in wanted:
            on_triplets(found, retriever, args, folder)
        report = {
            "model": model,
            "diagnoses": found,
            "run": {
                "command": " ".join(["python", "examples/diagnose.py", *sys.argv[1:]]),
                "seconds": round(time.perf_counter() - started, 1),
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {args.device}",
                "versions": {
                    "rtd_hf": rtd_hf.__version__,
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                },
            },
        }
        with whole_file(folder / "diagnostics.json") as temporary:
            temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        plots = plot_diagnoses(found, folder)
        say(f"\nWritten to {folder}: diagnostics.json, {', '.join(plots)}")


if __name__ == "__main__":
    with one_screen_errors():
        main(parse_arguments(sys.argv[1:]))
