"""Trains the small CLIP of the offline world from nothing, on training combinations only.

    python examples/fit_shapes_clip.py --output_dir outputs/shapes_clip

Writes model, tokenizer, image processor and `recipe.json` (arguments, seed, figures). This is how the files in
`rtd_hf/shapes/assets/clip` were made.
"""

# ci: --max_steps 3 --per_device_train_batch_size 32 --num_pictures 64 --output_dir {tmp}

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser, TrainingArguments


@dataclass
class FitArguments(TrainingArguments):
    """HF `TrainingArguments` with the defaults of the shipped small CLIP."""

    output_dir: str = field(default="outputs/shapes_clip", metadata={"help": "Where model and recipe are written."})
    max_steps: int = field(default=1000, metadata={"help": "Training steps."})
    per_device_train_batch_size: int = field(default=256, metadata={"help": "Pairs a step, all mutual negatives."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW weight decay."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW beta2."})
    warmup_steps: float = field(default=100, metadata={"help": "Steps of linear warm-up."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    logging_steps: int = field(default=50, metadata={"help": "Steps between two log lines."})
    save_steps: int = field(default=500, metadata={"help": "Steps between two checkpoints."})
    save_total_limit: int = field(default=1, metadata={"help": "Checkpoints kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The pairs carry their own columns."})
    num_pictures: int = field(default=1000, metadata={"help": "Held-out pictures of the final measurement."})


def main() -> None:
    (args,) = HfArgumentParser(FitArguments).parse_args_into_dataclasses()

    import torch
    from transformers import CLIPModel, Trainer, set_seed
    from transformers.trainer_utils import get_last_checkpoint
    from utils.recipes import write_recipe

    from rtd_hf.shapes.clip import build_config, build_image_processor, build_tokenizer, world_texts
    from rtd_hf.shapes.pairs import ScenePairs
    from rtd_hf.shapes.scoring import text_to_image_recall

    # 1 model, all of it random
    set_seed(args.seed)
    tokenizer, processor = build_tokenizer(world_texts(4000, seed=0)), build_image_processor()
    model = CLIPModel(build_config(tokenizer))

    # 2 data: every pair is new, none holds a held-out combination
    pairs = ScenePairs(args.max_steps * args.train_batch_size, seed=args.seed)

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = tokenizer([row["caption"] for row in rows], padding=True, return_tensors="pt")
        batch["pixel_values"] = processor([row["picture"] for row in rows], return_tensors="pt")["pixel_values"]
        return {**batch, "return_loss": True}

    # 3 train: CLIP's own symmetric loss
    started = time.perf_counter()
    trainer = Trainer(model, args, train_dataset=pairs, data_collator=collate)
    last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=last)

    # 4 measure on held-out combinations, and save with the recipe
    figures = text_to_image_recall(model, tokenizer, processor, number=args.num_pictures, seed=1)
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    write_recipe(
        args.output_dir,
        "python examples/fit_shapes_clip.py",
        args,
        ("max_steps", "per_device_train_batch_size", "learning_rate", "weight_decay", "adam_beta2", "warmup_steps"),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=time.perf_counter() - started,
        figures=figures,
    )
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
