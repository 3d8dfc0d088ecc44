"""`--dry_run`: a few steps of a recipe at its true size, with random weights, and nothing left behind."""

import sys
import tempfile
import time

from utils.estimates import PlanArguments, plan


def dry_run(options: PlanArguments, script, model_args, args) -> None:
    """Trains `options.dry_run` steps of the recipe's own `RTDTrainer`.

    Raises:
        ValueError: If the number of steps is not positive.
    """
    from datasets import Dataset
    from transformers import set_seed

    from rtd_hf import RTDTrainer
    from rtd_hf.hub import peak_memory_gib
    from rtd_hf.models import BACKBONES

    if options.dry_run < 1:
        raise ValueError(f"`--dry_run` must be at least 1 step, got {options.dry_run}.")
    chief = args.process_index == 0
    needed = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps * options.dry_run
    known = plan(script, model_args, args, size=options.estimate_size, at_least=needed, device="cpu")
    if chief:
        say("Dry run: random weights at the true size. Its losses and its result mean nothing; nothing is saved.")
        say(f"CLIP {known.origin}; a random {known.projection.config.projection_type} projection; {known.texts}.")
        if script.anchors:
            say("Anchors are computed in every step here, as there is no folder for them.")
    set_seed(args.seed)  # every process draws the same weights
    model = BACKBONES[known.config.model_type](known.config)
    with tempfile.TemporaryDirectory() as folder:
        _keep_nothing(args, options.dry_run, folder)
        trainer = RTDTrainer(
            model,
            args,
            projection=known.projection,
            processing_class=known.tokenizer,
            train_dataset=Dataset.from_list(known.triplets),
            peft_config=known.lora,
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    if not chief:
        return
    losses = [f"{row['loss']:.4f}" for row in trainer.state.log_history if "loss" in row]
    memory = peak_memory_gib(device_type=args.device.type)
    say(f"\n{trainer.state.global_step} steps of {args.world_size} x {args.train_batch_size} triplets ran.")
    say(f"  parameters           {sum(weight.numel() for weight in model.parameters()):,}")
    say(f"  losses               {', '.join(losses)}")
    say(f"  seconds              {seconds:.1f}, the first step and its preparations among them")
    if memory is not None:
        say(f"  memory at most       {memory:.2f} GiB, in this process")


def _keep_nothing(args, steps: int, folder: str) -> None:
    """Options of a training that leaves no trace; the rest is the recipe's."""
    args.output_dir, args.max_steps, args.logging_steps = folder, steps, 1
    args.save_strategy = args.eval_strategy = "no"
    args.eval_on_start = args.load_best_model_at_end = args.push_to_hub = False
    args.report_to = []
    args.disable_tqdm = True


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
