"""Fine-tunes a CLIP text encoder with RTD, measures before and after, and writes a drop-in encoder with its card.

    accelerate launch examples/train_rtd.py

Without arguments it runs in the offline world: a small CLIP, its projection, triplets and benchmarks come with the
package. `--config recipe.yaml` reads another recipe (see `examples/recipes`); arguments override it. On your own data:

    accelerate launch examples/train_rtd.py --config examples/recipes/lincir_l14.yaml --triplets triplets.jsonl
"""

# ci: --max_steps 4 --num_triplets 600 --eval_steps 2 --save_steps 2 --warmup_steps 1 --output_dir {tmp}/run
# ci: --max_steps 4 --num_triplets 600 --eval_steps 2 --warmup_steps 1 --use_peft --output_dir {tmp}/lora
# ci: --max_steps 4 --num_triplets 600 --eval_steps 2 --anchors beside --mini_batch_size 50 --output_dir {tmp}/anchors
# ci: --help

import json
import platform
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from utils.arguments import checkpoint_to_resume, one_screen_errors, parse, wants_help
from utils.parts import ModelArguments, load_parts, load_triplets


HERE = Path(__file__).parent


@dataclass
class ScriptArguments:
    config: str = field(
        default=str(HERE / "recipes" / "shapes.yaml"), metadata={"help": "YAML recipe; other arguments override it."}
    )
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
    license: str = field(default="", metadata={"help": "Licence of the result, such as `mit`; required for the card."})


def anchors_folder(script: ScriptArguments, output_dir: str) -> Path:
    """Where the captions' embeddings lie: as told, or next to the file of triplets, if it is one."""
    if script.anchors != "beside":
        return Path(script.anchors)
    return Path(f"{script.triplets}.anchors") if Path(script.triplets).is_file() else Path(output_dir) / "anchors"


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(script: ScriptArguments, model_args: ModelArguments, args) -> None:
    import torch
    import transformers
    from transformers import set_seed
    from utils.plots import plot_curves, plot_retrieval
    from utils.tables import gain_table, result_table

    from rtd_hf import (
        BENCHMARKS,
        CIREvaluator,
        RTDTrainer,
        build_model_card,
        check_triplets,
        export_text_encoder,
        precompute_anchors,
        prepare_output_dir,
        verify_drop_in,
    )

    started = time.perf_counter()
    chief = args.process_index == 0

    # 1 what can be refused is refused before any work is done
    folder = prepare_output_dir(args.output_dir)
    resume = checkpoint_to_resume(args)
    if not script.license:
        raise ValueError(
            "`--license` is missing: the card of the result must state one, such as `mit` or `cc-by-nc-4.0`."
        )

    # 2 triplets, CLIP and projection
    set_seed(args.seed)
    triplets = load_triplets(script.triplets, script.num_triplets, args.seed)
    held_back = min(script.num_eval_triplets, len(triplets) // 10) if args.eval_strategy != "no" else 0
    check_triplets(triplets)  # the trainer checks its parts too; here the rows are still counted as in the file
    parts = load_parts(
        script.clip_model,
        script.projection,
        projection_subfolder=script.projection_subfolder,
        prompt_template=script.prompt_template,
        device=args.device,
    )
    text_encoder, tokenizer, projection = parts.text_encoder, parts.tokenizer, parts.projection

    # 3 benchmarks, measured with the frozen encoder, and what needs no training
    frozen = text_encoder
    evaluators = {name: CIREvaluator(BENCHMARKS[name](), parts.retriever()) for name in script.benchmarks}
    before = {name: evaluator.evaluate(frozen) for name, evaluator in evaluators.items()}
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
    watched = []
    if script.validation_benchmark and args.eval_strategy != "no":
        held_out = BENCHMARKS[script.validation_benchmark](num_queries=100, seed=1)
        watched.append(CIREvaluator(held_out, parts.retriever()))

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
    model = trainer.accelerator.unwrap_model(trainer.model)

    # 5 measure again
    after = {name: evaluator.evaluate(model) for name, evaluator in evaluators.items()}
    if not chief:
        return
    metrics = {
        "before": {key: value for result in before.values() for key, value in result.metrics.items()},
        "after": {key: value for result in after.values() for key, value in result.metrics.items()},
        "gain": {key: gain for name in after for key, gain in after[name].gain_over(before[name]).items()},
        "baselines": baselines,
        "run": {
            "command": " ".join(["accelerate launch", "examples/train_rtd.py", *sys.argv[1:]]),
            "seed": args.seed,
            "steps": trainer.state.global_step,
            "triplets per step": args.train_batch_size * args.world_size,
            "learning rate": args.learning_rate,
            "temperature": args.temperature,
            "noise scale": args.noise_scale,
            "loss": args.loss_type,
            "anchors": "computed ahead" if anchors else "in every step",
            "adapters": f"LoRA, rank {model_args.lora_r}" if model_args.use_peft else "none, all weights trained",
            "training seconds": round(trained.metrics["train_runtime"], 1),
            "seconds": round(time.perf_counter() - started, 1),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {args.device.type}",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        },
    }

    # 6 save, and prove that plain transformers loads it
    export_text_encoder(model, folder, tokenizer=tokenizer)
    report = verify_drop_in(folder, model, tokenizer=tokenizer)
    projection.save_pretrained(folder / "projection")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    card = build_model_card(
        metrics,
        license=script.license,
        base_model=None if script.clip_model == "shapes" or Path(script.clip_model).exists() else script.clip_model,
        model_id=str(args.output_dir),
        projection_id=f"{args.output_dir}/projection",
        projection_type=projection.config.projection_type,
        prompt_template=projection.config.prompt_template,
    )
    card.save(folder / "README.md")
    recall_key = next((key for row in trainer.state.log_history for key in row if key.endswith("recall@10")), "")
    plot_curves(trainer.state.log_history, folder / "loss.png", recall_key=recall_key)
    if first:
        best_after = first.search(5, text_encoder=model, rows=rows)
        plot_retrieval(first.benchmark, rows, best_before, best_after, folder / "retrieval.png")

    # 7 tell
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
    say(
        f"\nThe text encoder loads in plain transformers with the same embeddings (largest difference "
        f"{report.max_difference:.1g}). All of it lies in {folder}:"
    )
    for file, what in (
        ("model.safetensors", "the text encoder, with config and tokenizer beside it"),
        ("projection/", "the projection it was trained for"),
        ("metrics.json", "every figure of this run"),
        ("README.md", "the model card"),
        ("loss.png", "loss and recall over the steps"),
        ("retrieval.png", "eight queries before and after"),
    ):
        if (folder / file).exists():
            say(f"  {file:<18} {what}")
    say(f"\nLoad it:\n\n  from transformers import AutoTokenizer, {stock}")
    say(f'  tokenizer = AutoTokenizer.from_pretrained("{args.output_dir}")')
    say(f'  text_encoder = {stock}.from_pretrained("{args.output_dir}")')


def _spread(total: int, number: int) -> list[int]:
    """`number` places spread evenly over `total`, chosen by no result."""
    return [(2 * place + 1) * total // (2 * number) for place in range(min(number, total))]


if __name__ == "__main__":
    with one_screen_errors():
        if wants_help(sys.argv[1:]):
            from rtd_hf.options import RTDOptions as TrainingOptions
        else:
            from rtd_hf import RTDTrainingArguments as TrainingOptions
        parsed = parse(
            (ScriptArguments, ModelArguments, TrainingOptions),
            sys.argv[1:],
            default_recipe=HERE / "recipes" / "shapes.yaml",
            description="Fine-tunes a CLIP text encoder with RTD, and measures retrieval before and after.",
        )
        main(*parsed)
