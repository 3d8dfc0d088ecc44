"""Between the frozen and the trained text encoder: what is gained in composed retrieval against what is kept.

    python examples/interpolate.py --clip_model CLIP --text_encoder RTD_ENCODER --projection PROJECTION \\
        --benchmarks cirr=CIRR --gained cirr_recall@1 --preservation coco=captions_val2017.json,images=val2017

WiSE-FT (Wortsman et al., CVPR 2022, arXiv:2109.01903): every weight is `(1 - alpha)` times the frozen one plus `alpha`
times the trained one. Without `--text_encoder` an encoder is first trained in the offline world. The curve goes into
`interpolation.png`, its figures with their intervals against the frozen encoder into `interpolation.json`.
"""

# ci: --max_steps 3 --alphas 0.5 --benchmarks shapes,num_queries=40 --preservation shapes --output_dir {tmp}

import json
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path

from utils.arguments import one_screen_errors, parse, wants_help
from utils.specs import parse_spec, preservation_of


HERE = Path(__file__).parent


@dataclass
class InterpolationArguments:
    config: str = field(
        default=str(HERE / "recipes" / "trials.yaml"),
        metadata={"help": "YAML recipe of the training, where there is one."},
    )
    clip_model: str = field(default="shapes", metadata={"help": "Folder or Hub id of the CLIP, or `shapes`."})
    text_encoder: str = field(
        default="", metadata={"help": "The trained encoder: folder, Hub id or `.pt`; by default one is trained."}
    )
    adapter: str = field(default="", metadata={"help": "Folder or Hub id of a PEFT adapter for it."})
    projection: str = field(default="shapes", metadata={"help": "Folder or Hub id, an original file, or one of ours."})
    projection_subfolder: str = field(default="", metadata={"help": "Folder of the projection within it."})
    num_triplets: int = field(default=40000, metadata={"help": "Triplets of the training in the offline world."})
    alphas: list[float] = field(
        default_factory=lambda: [round(0.1 * i, 1) for i in range(11)],
        metadata={"help": "Shares of the trained weights; 0 and 1 are always among them."},
    )
    benchmarks: list[str] = field(
        default_factory=lambda: ["shapes"], metadata={"help": "As in `evaluate_cir.py`: `NAME[=ROOT][,option=value]`."}
    )
    preservation: str = field(
        default="shapes", metadata={"help": "Plain retrieval: `shapes`, or `coco=CAPTIONS.json,images=FOLDER`."}
    )
    gained: str = field(default="", metadata={"help": "Metric to draw; the first benchmark's R@10 by default."})
    kept: str = field(default="", metadata={"help": "Metric to draw against; text to image R@1 by default."})
    features: str = field(default="", metadata={"help": "Folder in which image embeddings are kept."})


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def trained_encoder(script: InterpolationArguments, args, base: str):
    """The trained encoder as given, or trained now in the offline world."""
    from utils.encoders import load_text_encoder
    from utils.parts import load_parts, load_triplets

    if script.text_encoder or script.adapter:
        return load_text_encoder(script.text_encoder, base, adapter=script.adapter, device=args.device)
    if script.clip_model != "shapes":
        raise ValueError(f"`--text_encoder` is missing: which encoder was trained from {script.clip_model}?")
    from transformers import set_seed
    from utils.trials import trained

    set_seed(args.seed)
    parts = load_parts("shapes", script.projection, device=args.device)
    return trained(parts, args, load_triplets("shapes", script.num_triplets, args.seed)).eval()


def measure(frozen, trained, evaluators: list, alphas: list[float]) -> list[dict]:
    """Metrics of every encoder between the two, with the interval of their change from the frozen one."""
    from rtd_hf import interpolate_encoders

    points, first = [], []
    for alpha in alphas:
        encoder = interpolate_encoders(frozen, trained, alpha)
        results = [evaluator.evaluate(encoder) for evaluator in evaluators]
        first = first or results
        point = {"alpha": alpha, "change": {}}
        for before, result in zip(first, results, strict=True):
            point |= result.metrics
            point["change"] |= result.gain_over(before)
        points.append(point)
        say(f"alpha {alpha:g}: done")
    return points


def main(script: InterpolationArguments, args) -> None:
    import torch
    import transformers
    from utils.parts import load_parts
    from utils.plots import plot_interpolation
    from utils.tables import aligned

    from rtd_hf import CIREvaluator, prepare_output_dir
    from rtd_hf.shapes import ASSETS

    if any(not 0 <= alpha <= 1 for alpha in script.alphas):
        raise ValueError(f"`--alphas` must lie between 0 and 1, got {script.alphas}.")
    alphas = sorted({0.0, 1.0, *script.alphas})
    folder = prepare_output_dir(args.output_dir)
    specs = [parse_spec(text) for text in script.benchmarks]
    base = str(ASSETS / "clip") if script.clip_model == "shapes" else script.clip_model
    trained = trained_encoder(script, args, base)
    parts = load_parts(
        script.clip_model,
        script.projection,
        projection_subfolder=script.projection_subfolder,
        device=args.device,
    )
    retriever, features = parts.retriever(), script.features or None
    evaluators = [CIREvaluator(spec.load(), retriever, features=features) for spec in specs]
    evaluators.append(preservation_of(script.preservation, retriever, features=features))
    points = measure(parts.text_encoder, trained, evaluators, alphas)
    gained = script.gained or f"{evaluators[0].benchmark.name}_recall@10"
    kept = script.kept or f"{evaluators[-1].data.name}_text_to_image_recall@1"
    for option, key in (("gained", gained), ("kept", kept)):
        if key not in points[0]:
            known = ", ".join(name for name in points[0] if name not in ("alpha", "change"))
            raise ValueError(f"`--{option}` must be one of {known}; got {key!r}.")
    rows = [["alpha", gained, "95 % interval of the change", kept, "95 % interval of the change"]]
    for point in points:
        line = [f"{point['alpha']:g}"]
        for key in (gained, kept):
            change = point["change"][key]
            line += [f"{point[key]:.2f}", f"[{change['low']:+.2f}, {change['high']:+.2f}]"]
        rows.append(line)
    say("\n" + aligned(rows))
    report = {
        "command": " ".join(["python", "examples/interpolate.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {args.device.type}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "gained": gained,
        "kept": kept,
        "points": points,
    }
    (folder / "interpolation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plot_interpolation(points, folder / "interpolation.png", gained=gained, kept=kept)
    say(f"\nWritten to {folder}: interpolation.png, interpolation.json")


if __name__ == "__main__":
    with one_screen_errors():
        if wants_help(sys.argv[1:]):
            from rtd_hf.options import RTDOptions as TrainingOptions
        else:
            from rtd_hf import RTDTrainingArguments as TrainingOptions
        parsed = parse(
            (InterpolationArguments, TrainingOptions),
            sys.argv[1:],
            default_recipe=HERE / "recipes" / "trials.yaml",
            description="Encoders between the frozen and the trained one: what is gained against what is kept.",
            defaults={"output_dir": "outputs/interpolation"},
        )
        main(*parsed)
