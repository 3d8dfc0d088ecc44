"""Fine-tunes a CLIP text encoder with RTD, measures before and after, and writes a drop-in encoder with its card.

    accelerate launch examples/train_rtd.py

Without arguments it runs in the offline world: a small CLIP, its projection, triplets and benchmarks come with the
package. `--config recipe.yaml` reads another recipe (see `examples/recipes`); arguments override it. On your own data:

    accelerate launch examples/train_rtd.py --config examples/recipes/lincir_l14.yaml --triplets triplets.jsonl
"""

# ci: --max_steps 4 --num_triplets 600 --eval_steps 2 --save_steps 2 --warmup_steps 1 --output_dir {tmp}/run
# ci: --max_steps 4 --num_triplets 600 --eval_steps 2 --use_peft --diagnostics discrepancy --output_dir {tmp}/lora
# ci: --max_steps 4 --num_triplets 600 --eval_steps 2 --anchors beside --mini_batch_size 50 --output_dir {tmp}/anchors
# ci: --estimate --per_device_train_batch_size 16
# ci: --dry_run 2 --per_device_train_batch_size 16
# ci: --help

import json
import shlex
import shutil
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from utils.arguments import checkpoint_to_resume, given_names, one_screen_errors, parse, wants_help
from utils.diagnosing import RunDiagnoses
from utils.dry_run import dry_run
from utils.estimates import PlanArguments, show_estimate
from utils.parts import ModelArguments, load_parts, load_triplets
from utils.resolved import portable, resolved_recipe, shown_arguments
from utils.specs import alignment_of, preservation_of


SHAPES = Path(__file__).parent / "recipes" / "shapes.yaml"


@dataclass
class ScriptArguments:
    config: str = field(default=str(SHAPES), metadata={"help": "YAML recipe; other arguments override it."})
    clip_model: str = field(
        default="shapes",
        metadata={"help": "Folder or Hub id of the CLIP; `shapes`: the small one that ships with us."},
    )
    projection: str = field(
        default="shapes",
        metadata={
            "help": "Folder or Hub id of the fitted projection, or one of ours for the small CLIP: `lincir` (also "
            "`shapes`), `pic2word`, `searle`, `context_i2w`, `fti4cir`."
        },
    )
    projection_subfolder: str = field(
        default="", metadata={"help": "Folder within it, such as `projection` of a repository that we published."}
    )
    projection_type: str | None = field(
        default=None,
        metadata={
            "help": "Its kind, such as `searle`: for an authors' file that looks like two, and to be sure of it."
        },
    )
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": "Template of all prompts, in training and on benchmarks, such as `a photo of $ that {caption}` "
            "(the paper's, for every projection); the projection's own by default."
        },
    )
    triplets: str = field(
        default="shapes", metadata={"help": "Text triplets: .json, .jsonl, .csv, .parquet, a Hub id, or `shapes`."}
    )
    num_triplets: int | None = field(
        default=None, metadata={"help": "Triplets to use; all of a file by default, 40000 of the offline world."}
    )
    anchors: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the captions' embeddings under the frozen encoder, computed ahead where they are not "
            "there yet; `beside`: next to the triplets. Pays with several epochs or runs, and for large encoders."
        },
    )
    num_eval_triplets: int = field(default=256, metadata={"help": "Triplets held back for the evaluation loss."})
    benchmarks: list[str] = field(
        default_factory=list, metadata={"help": "Benchmarks measured before and after the training."}
    )
    validation_benchmark: str | None = field(
        default=None, metadata={"help": "Benchmark measured during the training, on queries of its own (seed 1)."}
    )
    preservation: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Plain retrieval before and after the training: `shapes[,num_images=500]` or "
            "`coco=captions_val2017.json,images=val2017[,num_images=1000]`, several in a row."
        },
    )
    watch_alignment: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Held-out captions on which each evaluation looks whether the encoder drifts from the pictures: "
            "`shapes[,num_images=200]`, `coco=captions_val2017.json,images=val2017[,num_images=1000]`, `rows=DATA` "
            "(pictures with captions) or `captions=DATA` (without pictures), several in a row."
        },
    )
    diagnostics: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Diagnoses before, during and after the training: `triplets`; `layers`; `discrepancy` and "
            "`perturbations` on the benchmarks; `alignment` on the captions of `--watch_alignment`, `--preservation`."
        },
    )
    license: str = field(default="", metadata={"help": "Licence of the result, such as `mit`; required for the card."})
    base_model: str = field(
        default="",
        metadata={"help": "Hub id of the CLIP where `--clip_model` is a folder, for the card and for who loads it."},
    )
    base_revision: str = field(default="", metadata={"help": "Its revision; by default the one that was loaded."})
    benchmark_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Benchmarks that are data sets on the Hub, as `cirr=org/name`, for `.eval_results`."},
    )


def anchors_folder(script: ScriptArguments, output_dir: str) -> Path:
    """Where the captions' embeddings lie: as told, or next to the file of triplets, if it is one."""
    if script.anchors != "beside":
        return Path(script.anchors)
    return Path(f"{script.triplets}.anchors") if Path(script.triplets).is_file() else Path(output_dir) / "anchors"


def base_of(script: ScriptArguments) -> str | None:
    """The Hub id of the CLIP, `shapes`, or none where it is a folder and nobody says whose it is."""
    if script.base_model:
        return script.base_model
    return None if Path(script.clip_model).exists() else script.clip_model


def benchmark_datasets_of(script: ScriptArguments) -> dict[str, str]:
    """`--benchmark_datasets` by the benchmarks' names."""
    named = dict(text.partition("=")[::2] for text in script.benchmark_datasets)
    wrong = [name for name, dataset_id in named.items() if name not in script.benchmarks or not dataset_id]
    if wrong:
        raise ValueError(
            f"`--benchmark_datasets` must be as `cirr=org/name`, of benchmarks that are measured "
            f"({', '.join(script.benchmarks) or 'none'}); wrong: {', '.join(wrong)}."
        )
    return named


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(script: ScriptArguments, model_args: ModelArguments, args) -> None:
    from transformers import set_seed
    from utils.plots import plot_curves, plot_retrieval
    from utils.reports import preservation_table
    from utils.tables import gain_table, result_table

    from rtd_hf import (
        BENCHMARKS,
        CIREvaluator,
        PushError,
        RTDTrainer,
        check_triplets,
        learning_curve,
        precompute_anchors,
        prepare_output_dir,
        write_repository,
    )
    from rtd_hf.files import hash_weights
    from rtd_hf.hub import EnergyMeter, cached_revision, check_base_model, fingerprint_triplets
    from rtd_hf.hub.refusals import UNPUBLISHED_EXIT_CODE
    from rtd_hf.interruptions import PREEMPTED_EXIT_CODE
    from rtd_hf.options import RTDOptions

    started = time.perf_counter()
    chief = args.process_index == 0

    # 1 what can be refused is refused before any work is done
    folder = prepare_output_dir(args.output_dir)
    resume = checkpoint_to_resume(args)
    if not script.license:
        raise ValueError(
            "`--license` is missing: the card of the result must state one, such as `mit` or `cc-by-nc-4.0`."
        )
    captions = script.watch_alignment or script.preservation
    RunDiagnoses.check(script.diagnostics, script.benchmarks, captions)
    base_model, benchmark_datasets = base_of(script), benchmark_datasets_of(script)
    check_base_model(script.base_model or None)
    args.hub_license = args.hub_license or script.license
    stated = given_names(sys.argv[1:], default_recipe=SHAPES)
    recipe = resolved_recipe((script, model_args, args), given=stated, always=(RTDOptions,))
    recipe["clip_model"] = base_model or recipe["clip_model"]
    meter = EnergyMeter(gpus=args.device.type == "cuda").start() if chief else None

    # 2 triplets, CLIP and projection
    set_seed(args.seed)
    triplets = load_triplets(script.triplets, script.num_triplets, args.seed)
    held_back = min(script.num_eval_triplets, len(triplets) // 10) if args.eval_strategy != "no" else 0
    check_triplets(triplets)  # the trainer checks its parts too; here the rows are still counted as in the file
    parts = load_parts(
        script.clip_model,
        script.projection,
        projection_subfolder=script.projection_subfolder,
        projection_type=script.projection_type,
        prompt_template=script.prompt_template,
        device=args.device,
    )
    text_encoder, tokenizer, projection = parts.text_encoder, parts.tokenizer, parts.projection
    begun_with = {"text encoder": text_encoder, "projection": projection}
    begun_with = {name: hash_weights(part.state_dict()) for name, part in begun_with.items()} if chief else {}

    # 3 benchmarks, measured with the frozen encoder, and what needs no training
    frozen = text_encoder
    evaluators = {name: CIREvaluator(BENCHMARKS[name](), parts.retriever()) for name in script.benchmarks}
    keepers = [preservation_of(text, parts.retriever()) for text in script.preservation]
    before = {name: evaluator.evaluate(frozen) for name, evaluator in evaluators.items()}
    kept_before = [keeper.evaluate(frozen) for keeper in keepers]
    composers = {
        "image": "reference image",
        "text": "conditioning text",
        "sum": "sum of both",
        "caption": "full target caption",
    }
    baselines: dict[str, dict[str, float]] = {label: {} for label in composers.values()}
    for evaluator in evaluators.values():
        for composer, label in composers.items():
            if composer != "caption" or all(query.target_caption for query in evaluator.benchmark.queries):
                baselines[label] |= evaluator.evaluate(frozen, composer=composer).metrics
    first = next(iter(evaluators.values()), None)
    rows = _spread(len(first.benchmark.queries), 8) if first else []
    best_before = first.search(5, text_encoder=frozen, rows=rows) if first else []
    diagnoses = RunDiagnoses(script.diagnostics, [*evaluators.values()], captions, parts.retriever(), triplets)
    watched = []
    if script.validation_benchmark and args.eval_strategy != "no":
        held_out = BENCHMARKS[script.validation_benchmark](num_queries=100, seed=1)
        watched.append(CIREvaluator(held_out, parts.retriever()))
    if args.eval_strategy != "no":
        watched += diagnoses.watched(*watched)
        watched += [alignment_of(text, parts.retriever()) for text in script.watch_alignment]

    # 4 train
    peft_config = model_args.lora_config(text_encoder) if model_args.use_peft else None
    anchors = None
    if script.anchors:
        folder_of_anchors = anchors_folder(script, args.output_dir)
        anchors = precompute_anchors(triplets, frozen, tokenizer, folder_of_anchors, max_length=args.max_length)
    trainer = RTDTrainer(
        text_encoder,
        args,
        projection=projection,
        processing_class=tokenizer,
        train_dataset=triplets.select(range(held_back, len(triplets))),
        eval_dataset=triplets.select(range(held_back)) if held_back else None,
        evaluators=watched,
        peft_config=peft_config,
        anchors=anchors,
    )
    if resume is None and chief:
        for stale in folder.glob("checkpoint-*"):  # of an earlier run in the same folder
            shutil.rmtree(stale)
    trained = trainer.train(resume_from_checkpoint=resume)
    if trainer.preempted:
        say(f"Stopped after step {trainer.state.global_step}. `--resume_from_checkpoint last` goes on from there.")
        raise SystemExit(PREEMPTED_EXIT_CODE)
    if trainer.stopped and chief:
        say(f"\nStopped after step {trainer.stopped['step']}: {trainer.stopped['reason']}.")
    model = trainer.trained_encoder()

    # 5 measure again
    after = {name: evaluator.evaluate(model) for name, evaluator in evaluators.items()}
    kept_after = [keeper.evaluate(model) for keeper in keepers]
    diagnosed = diagnoses.compared(model)
    if not chief:
        return
    meter.stop()
    metrics = {
        **compared(before.values(), after.values()),
        "baselines": baselines,
        "preservation": compared(kept_before, kept_after, difference="change"),
        "protocols": {name: dict(result.protocol) for name, result in after.items()},
        **circumstances(script, model_args, args, seconds=time.perf_counter() - started, meter=meter),
    }
    metrics["run"] |= {"steps": trainer.state.global_step, "anchors": "computed ahead" if anchors else "in every step"}
    metrics["run"] |= {"stopped": trainer.stopped["reason"]} if trainer.stopped else {}
    metrics["curve"] = learning_curve(trainer.state.log_history)
    metrics |= {"diagnostics": diagnosed} if script.diagnostics else {}
    metrics["cost"]["training seconds"] = round(trained.metrics["train_runtime"], 1)
    used = {"triplets": portable(script.triplets), **fingerprint_triplets(triplets), "held back": held_back}
    metrics["data"] = used | begun_with

    # 6 save all that belongs to it, and prove that plain transformers loads it
    on_hub = script.triplets != "shapes" and not Path(script.triplets).exists()
    write_repository(
        folder,
        model,
        tokenizer=tokenizer,
        image_processor=parts.image_processor,
        projection=projection,
        metrics=metrics,
        recipe=recipe,
        license=script.license,
        base_model=base_model,
        base_revision=script.base_revision or cached_revision(base_model),
        model_id=args.hub_model_id or str(args.output_dir),
        datasets=[script.triplets] if on_hub else None,
        dataset_ids=benchmark_datasets,
    )
    plot_curves(metrics["curve"], folder / "loss.png")
    if first:
        best_after = first.search(5, text_encoder=model, rows=rows)
        plot_retrieval(first.benchmark, rows, best_before, best_after, folder / "retrieval.png")

    # 7 tell
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    stock = text_encoder.stock_class.__name__
    columns = ("recall@1", "recall@5", "recall@10", "recall@50", "map@10")
    for name in evaluators:
        if all(f"{name}_{column}" in metrics["after"] for column in columns):
            say(
                f"\n{name}: {len(evaluators[name].benchmark.queries)} queries, "
                f"{len(evaluators[name].benchmark.gallery)} pictures, in percent\n"
            )
            say(result_table(metrics, name, columns))
    if metrics["gain"]:
        say("\n" + gain_table(metrics))
    for first_kept, then in zip(kept_before, kept_after, strict=True):
        rows_kept = {"before": first_kept.metrics, "after": then.metrics}
        say("\n" + preservation_table(rows_kept, then.gain_over(first_kept)))
    say(
        f"\nThe text encoder loads in plain transformers with the same embeddings (largest difference "
        f"{metrics['drop_in']['max difference']:.1g}). All of it lies in {folder}:"
    )
    for file, what in (
        ("model.safetensors", "the text encoder, with config and tokenizer beside it"),
        ("adapter/", "the adapter alone; the weights above have it merged in"),
        ("projection/", "the projection it was trained for"),
        ("metrics.json", "every figure of this run, its data and its machine"),
        ("recipe.yaml", "its arguments: `--config` repeats it"),
        ("README.md", "the model card"),
        ("loss.png", "loss, recall and image alignment over the steps"),
        ("retrieval.png", "eight queries before and after"),
    ):
        if (folder / file).exists():
            say(f"  {file:<18} {what}")
    say(f"\nLoad it:\n\n  from transformers import AutoTokenizer, {stock}")
    say(f'  tokenizer = AutoTokenizer.from_pretrained("{args.output_dir}")')
    say(f'  text_encoder = {stock}.from_pretrained("{args.output_dir}")')
    if args.push_to_hub:
        try:
            say(f"\nPublished: {trainer.push_to_hub(folder=folder).url}")
        except PushError as error:
            sys.stderr.write(f"\nPushError: {error}\n")
            raise SystemExit(UNPUBLISHED_EXIT_CODE) from None


def compared(before, after, *, difference: str = "gain") -> dict[str, dict]:
    """The figures of several results before and after, and their difference with its interval."""
    pairs = list(zip(before, after, strict=True))
    return {
        "before": {key: value for first, _ in pairs for key, value in first.metrics.items()},
        "after": {key: value for _, second in pairs for key, value in second.metrics.items()},
        difference: {key: gain for first, second in pairs for key, gain in second.gain_over(first).items()},
    }


def circumstances(
    script: ScriptArguments, model_args: ModelArguments, args, *, seconds: float, meter
) -> dict[str, dict]:
    """How it was trained, where, and what it cost."""
    from rtd_hf.hub import describe_environment, peak_memory_gib

    memory, energy = peak_memory_gib(device_type=args.device.type), meter.watt_hours
    return {
        "run": {
            "command": shlex.join(["accelerate", "launch", "examples/train_rtd.py", *shown_arguments(sys.argv[1:])]),
            "seed": args.seed,
            "triplets per step": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
            "learning rate": args.learning_rate,
            "schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
            "temperature": args.temperature,
            "noise scale": args.noise_scale,
            "loss": args.loss_type,
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
            "adapters": f"LoRA, rank {model_args.lora_r}" if model_args.use_peft else "none, all weights trained",
            "CLIP": base_of(script) or portable(script.clip_model),
            "projection": portable(script.projection),
        },
        "environment": {
            "date": datetime.now(UTC).date().isoformat(),
            **describe_environment(processes=args.world_size),
            "device": args.device.type,
        },
        "cost": {
            "seconds": round(seconds, 1),
            "peak memory GiB": None if memory is None else round(memory, 2),
            "energy Wh": None if energy is None else round(energy, 3),
            "energy scope": meter.scope,
        },
    }


def _spread(total: int, number: int) -> list[int]:
    """`number` places spread evenly over `total`, chosen by no result."""
    return [(2 * place + 1) * total // (2 * number) for place in range(min(number, total))]


if __name__ == "__main__":
    with one_screen_errors():
        if wants_help(sys.argv[1:]):
            from rtd_hf.options import RTDOptions as TrainingOptions
        else:
            from rtd_hf import RTDTrainingArguments as TrainingOptions
        *parsed, options = parse(
            (ScriptArguments, ModelArguments, TrainingOptions, PlanArguments),
            sys.argv[1:],
            default_recipe=SHAPES,
            description="Fine-tunes a CLIP text encoder with RTD, and measures retrieval before and after.",
        )
        if options.estimate:
            show_estimate(options, *parsed)
        elif options.dry_run is not None:
            dry_run(options, *parsed)
        else:
            main(*parsed)
