"""Fits an image-to-word projection to a frozen CLIP, each method with its own objective and published settings.

    accelerate launch examples/train_projection.py --method lincir --output_dir outputs/lincir

Methods: `pic2word`, `searle`, `lincir`, `context_i2w`, `fti4cir`. Without further arguments pictures and captions are
those of the offline world, and the CLIP is the small one that ships with the package;
`--config examples/recipes/projection_lincir_shapes.yaml` is how a shipped projection was made. On your own data:

    accelerate launch examples/train_projection.py --config examples/recipes/projection_pic2word_l14.yaml --data photos

`--help` lists what all methods have in common, `--method pic2word --help` the options of one method too.
"""

# ci: --method lincir --max_steps 3 --num_rows 600 --output_dir {tmp}
# ci: --method pic2word --max_steps 3 --num_rows 200 --cache_images --crop_scale 1 --output_dir {tmp}
# ci: --method searle --max_steps 3 --num_rows 256 --inversion_steps 3 --output_dir {tmp}
# ci: --method context_i2w --max_steps 2 --num_rows 128 --output_dir {tmp}
# ci: --method fti4cir --max_steps 2 --num_rows 256 --output_dir {tmp}
# ci: --method fti4cir --help

import json
import shutil
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

from utils.arguments import checkpoint_to_resume, given, one_screen_errors, parse, wants_help, with_recipe
from utils.parts import load_triplets
from utils.resolved import shown_arguments


HERE = Path(__file__).parent


@dataclass
class ScriptArguments:
    config: str | None = field(default=None, metadata={"help": "YAML recipe; other arguments override it."})
    method: str = field(
        default="lincir",
        metadata={
            "help": "`pic2word`, `searle`, `lincir`, `context_i2w` or `fti4cir`; --help then lists its options."
        },
    )
    clip_model: str = field(
        default="shapes",
        metadata={"help": "Folder or Hub id of the CLIP; `shapes`: the small one that ships with us."},
    )
    data: str = field(
        default="shapes",
        metadata={
            "help": "Pictures and captions: a folder, a file, the Hub id of a data set, or `shapes`. LinCIR reads "
            "captions alone, Pic2Word and SEARLE pictures alone."
        },
    )
    split: str = field(default="train", metadata={"help": "Split of a data set that has several."})
    image_column: str | None = field(
        default=None, metadata={"help": "Column of pictures; its usual names by default."}
    )
    caption_column: str | None = field(
        default=None, metadata={"help": "Column of captions; its usual names by default."}
    )
    num_rows: int | None = field(
        default=None, metadata={"help": "Rows to use; all of a data set by default, 20000 of the offline world."}
    )
    cache_images: bool = field(
        default=False,
        metadata={"help": "Encode every picture once, before the training, and keep its features in memory."},
    )
    projection_options: str = field(
        default="{}", metadata={"help": "Entries of the projection's configuration, such as `{dropout: 0.1}`."}
    )
    phrases: str | None = field(
        default=None,
        metadata={"help": "SEARLE: JSON file `{concept: [phrases]}`; of the world's own by default there."},
    )
    concepts: str | None = field(
        default=None, metadata={"help": "SEARLE: text file with a concept a line, for `phrase_model`."}
    )
    phrase_model: str | None = field(
        default=None, metadata={"help": "SEARLE: folder or Hub id of a language model that writes the phrases."}
    )
    phrases_per_concept: int = field(default=256, metadata={"help": "SEARLE: phrases written about each concept."})
    contexts: str | None = field(
        default=None,
        metadata={
            "help": "Context-I2W: text triplets whose conditioning texts its surrogate is shown, for training with "
            "RTD; the captions of the data by default."
        },
    )
    num_eval_rows: int = field(default=256, metadata={"help": "Rows held back, where an `eval_strategy` is given."})
    benchmarks: list[str] = field(
        default_factory=list, metadata={"help": "Benchmarks measured after the training, and at each evaluation."}
    )


def load_bank(script: ScriptArguments, args):
    """SEARLE's phrases: the offline world's, those of a file, or written by a language model."""
    from rtd_hf import PhraseBank, generate_phrases, local_generator

    if script.phrases:
        return PhraseBank.from_file(script.phrases)
    if script.phrase_model:
        if not script.concepts or not Path(script.concepts).is_file():
            raise FileNotFoundError(
                f"`--phrase_model` needs `--concepts`, a text file with a concept a line, got {script.concepts}."
            )
        names = [line.strip() for line in Path(script.concepts).read_text(encoding="utf-8").splitlines()]
        writer = local_generator(script.phrase_model, device=args.device, seed=args.seed)
        path = Path(args.output_dir, "phrases.json")
        with args.main_process_first(desc="phrases"):
            return generate_phrases([name for name in names if name], writer, script.phrases_per_concept, path)
    if script.data == "shapes":
        from rtd_hf.shapes.phrases import world_phrases

        return PhraseBank(world_phrases(64, args.seed))
    raise ValueError(
        "SEARLE needs phrases: give `--phrases`, a JSON file `{concept: [phrases]}`, or `--concepts` and "
        "`--phrase_model`, which has them written."
    )


def load_data(script: ScriptArguments, objective, seed: int):
    """The rows to fit to: those of the offline world, or of `--data`."""
    from torch.utils.data import Subset

    from rtd_hf import load_rows
    from rtd_hf.shapes.pairs import SceneCaptions, ScenePairs

    if script.data == "shapes":
        rows = ScenePairs if objective.needs_images else SceneCaptions
        return rows(script.num_rows or 20000, seed=seed)
    rows = load_rows(
        script.data,
        images=objective.needs_images,
        captions=objective.needs_captions,
        split=script.split,
        image_column=script.image_column,
        caption_column=script.caption_column,
    )
    return Subset(rows, range(min(script.num_rows, len(rows)))) if script.num_rows else rows


def load_contexts(source: str, seed: int) -> list[str]:
    """Texts of queries: the conditioning texts of triplets."""
    from rtd_hf import resolve_triplet_columns

    triplets = load_triplets(source, 20000, seed)
    return list(triplets[resolve_triplet_columns(tuple(triplets.column_names))["conditioning_caption"]])


def main(script: ScriptArguments, options, args) -> None:
    from torch.utils.data import Subset
    from transformers import set_seed
    from utils.recipes import write_recipe

    from rtd_hf import (
        BENCHMARKS,
        OBJECTIVES,
        PROJECTIONS,
        CIREncoder,
        CIREvaluator,
        EncodedRows,
        FrozenCLIP,
        ImageToWordProjection,
        ProjectionTrainer,
        prepare_output_dir,
        teach_surrogate,
    )
    from rtd_hf.interruptions import PREEMPTED_EXIT_CODE
    from rtd_hf.parsing import parse_yaml
    from rtd_hf.shapes import ASSETS

    started = time.perf_counter()

    # 1 what can be refused is refused before any work is done
    folder = prepare_output_dir(args.output_dir)
    resume = checkpoint_to_resume(args)
    objective_class, benchmarks = OBJECTIVES[script.method], [BENCHMARKS[name] for name in script.benchmarks]

    # 2 the frozen CLIP and the random projection
    set_seed(args.seed)
    clip_name = str(ASSETS / "clip") if script.clip_model == "shapes" else script.clip_model
    clip = FrozenCLIP.from_pretrained(clip_name, images=objective_class.needs_images or bool(benchmarks))
    facts = {"base_model": None if Path(clip_name).exists() else clip_name}
    if PROJECTIONS[script.method].needs_patches:
        facts["vision_hidden_size"] = clip.vision_model.config.hidden_size
    if PROJECTIONS[script.method].needs_context and script.clip_model == "shapes":
        facts["context_placeholder_id"] = clip.tokenizer.convert_tokens_to_ids("$</w>")  # its vocabulary is small
    facts |= parse_yaml(script.projection_options)
    widths = (clip.text_encoder.projection_dim, clip.text_encoder.config.hidden_size)
    projection = ImageToWordProjection.build(script.method, *widths, **facts)

    # 3 the objective, and the rows it looks at
    more = {"bank": load_bank(script, args)} if objective_class.needs_phrases else {}
    objective = objective_class(clip.to(args.device), projection.config, options, **more)
    rows = load_data(script, objective, args.seed)
    loading = {"num_workers": args.dataloader_num_workers}
    if script.cache_images and objective.needs_images:
        rows = EncodedRows(rows, objective, **loading)
    rows = objective.prepare(rows, folder=str(folder / "inversion"), seed=args.seed, **loading)
    held_back = min(script.num_eval_rows, len(rows) // 10) if args.eval_strategy != "no" else 0

    # 4 train
    retriever = clip.vision_model and CIREncoder(
        clip.text_encoder,
        clip.vision_model,
        projection=projection,
        tokenizer=clip.tokenizer,
        image_processor=clip.image_processor,
        context_encoder=clip.text_encoder,
    )
    evaluators = [CIREvaluator(benchmark(), retriever) for benchmark in benchmarks]
    trainer = ProjectionTrainer(
        projection,
        args,
        objective=objective,
        train_dataset=Subset(rows, range(held_back, len(rows))),
        eval_dataset=Subset(rows, range(held_back)) if held_back else None,
        evaluators=evaluators,
    )
    if resume is None and args.process_index == 0:
        for stale in folder.glob("checkpoint-*"):  # of an earlier run in the same folder
            shutil.rmtree(stale)
    trainer.train(resume_from_checkpoint=resume)
    if trainer.preempted:
        sys.stdout.write(f"Stopped after step {trainer.state.global_step}; `--resume_from_checkpoint last` goes on.\n")
        raise SystemExit(PREEMPTED_EXIT_CODE)

    # 5 what text-only training needs of a projection that reads vision tokens
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    figures = {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}
    if "surrogate" in projection.text_trainings:
        source = script.contexts or ("shapes" if script.data == "shapes" else None)
        contexts = load_contexts(source, args.seed) if source and projection.needs_context else None
        explained = teach_surrogate(projection, clip, rows, contexts=contexts, seed=args.seed, **loading)
        figures["surrogate_explains"] = round(explained, 3)

    # 6 measure, and save with the recipe
    for evaluator in evaluators:
        figures |= {name: round(value, 1) for name, value in evaluator().items()}
    if args.process_index > 0:
        return
    projection.save_pretrained(folder)
    length = "max_steps" if args.max_steps > 0 else "num_train_epochs"
    names = (length, "per_device_train_batch_size", "learning_rate", "weight_decay")
    write_recipe(
        folder,
        " ".join(["python examples/train_projection.py", *shown_arguments(_what_matters(sys.argv[1:]))]),
        args,
        (*names, "adam_beta2", "adam_epsilon", "warmup_steps", "max_grad_norm"),
        method=script.method,
        rows=len(rows),
        options={item.name: getattr(options, item.name) for item in fields(options)},
        projection_options=parse_yaml(script.projection_options),
        parameters=projection.num_parameters(),
        seconds=time.perf_counter() - started,
        figures=figures,
    )
    sys.stdout.write(json.dumps(figures, indent=2) + f"\nThe projection lies in {folder}.\n")


def _what_matters(argv: list[str]) -> list[str]:
    """A command line without where the result goes and how the run is watched."""
    left_out = {"--output_dir", "--disable_tqdm", "--report_to"}
    return [word for last, word in zip(["", *argv], argv, strict=False) if not {last, word} & left_out]


def arguments(argv: list[str]) -> tuple:
    """The method first, because options and defaults are its own."""
    tokens = with_recipe(argv)
    method = given(tokens, "method")
    description = "Fits an image-to-word projection to a frozen CLIP."
    if wants_help(argv) and method is None:
        parse((ScriptArguments,), argv, default_recipe=None, description=description)
    from rtd_hf import OBJECTIVES, ProjectionTrainingArguments

    objective = OBJECTIVES[method or "lincir"]
    defaults = {"output_dir": f"outputs/{method or 'lincir'}", **objective.training_defaults}
    if given(tokens, "num_train_epochs"):
        defaults.pop("max_steps", None)  # or the epochs asked for would not count
    return parse(
        (ScriptArguments, objective.options_class, ProjectionTrainingArguments),
        argv,
        default_recipe=None,
        description=description,
        defaults=defaults,
    )


if __name__ == "__main__":
    with one_screen_errors():
        main(*arguments(sys.argv[1:]))
