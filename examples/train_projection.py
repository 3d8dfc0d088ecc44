"""Fits an image-to-word projection to a CLIP, from captions alone (LinCIR's self-masking projection).

    python examples/train_projection.py --method lincir --output_dir outputs/lincir

Without further arguments the captions are those of the offline world and the CLIP is the small one that ships with the
package; this is how `rtd_hf/shapes/assets/lincir` was made.
"""

# ci: --max_steps 5 --output_dir {tmp}

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser, TrainingArguments


@dataclass
class FitArguments(TrainingArguments):
    """HF `TrainingArguments` with the defaults of the shipped projection, and the method's own options."""

    output_dir: str = field(default="outputs/lincir", metadata={"help": "Where projection and recipe are written."})
    method: str = field(default="lincir", metadata={"help": "The projection to fit; so far `lincir`."})
    clip_model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the CLIP; the small one of the offline world by default."}
    )
    noise_scale: float = field(default=1.0, metadata={"help": "Noise on the text embedding, times one U(0, 1) a row."})
    max_steps: int = field(default=2000, metadata={"help": "Training steps."})
    per_device_train_batch_size: int = field(default=256, metadata={"help": "Captions a step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW weight decay."})
    logging_steps: int = field(default=100, metadata={"help": "Steps between two log lines."})
    save_strategy: str = field(default="no", metadata={"help": "Checkpoints; a fit takes a few minutes."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The rows are texts."})


def mask_keywords(caption: str) -> str:
    """Replaces every run of words between prepositions by `$`: `"a red star on grey"` -> `"$ on $"`."""
    function_words = set("of on in at to above over below under with and front left right".split())
    masked: list[str] = []
    for word in caption.split():
        if word in function_words:
            masked.append(word)
        elif not masked or masked[-1] != "$":
            masked.append("$")
    return " ".join(masked)


def main() -> None:
    (args,) = HfArgumentParser(FitArguments).parse_args_into_dataclasses()
    if args.method != "lincir":
        raise SystemExit(f"`--method` must be `lincir`, got {args.method!r}.")

    import random

    import torch
    from torch.utils.data import Dataset
    from transformers import AutoTokenizer, Trainer, set_seed

    from rtd_hf import CLIPTextModelForRTD, ImageToWordProjection, PromptTokenizer
    from rtd_hf.shapes import ASSETS
    from rtd_hf.shapes.captions import describe_scene
    from rtd_hf.shapes.scenes import sample_scene

    # 1 the frozen CLIP and the random projection
    set_seed(args.seed)
    clip = args.clip_model or str(ASSETS / "clip")
    encoder = CLIPTextModelForRTD.from_pretrained(clip).eval().requires_grad_(False)
    prompts = PromptTokenizer(AutoTokenizer.from_pretrained(clip))
    projection = ImageToWordProjection.build(args.method, encoder.config.projection_dim, encoder.config.hidden_size)

    # 2 captions of training combinations only
    class Captions(Dataset):
        def __len__(self) -> int:
            return args.max_steps * args.train_batch_size

        def __getitem__(self, index: int) -> str:
            rng = random.Random(f"caption {args.seed} {index}")
            return describe_scene(sample_scene(rng, "train"), rng)

    def collate(captions: list[str]) -> dict[str, torch.Tensor]:
        texts = prompts.encode(captions)
        masked = prompts.mark([mask_keywords(caption) for caption in captions])
        return {**{f"caption_{name}": value for name, value in texts.items()}, **masked}

    # 3 the objective: the masked caption with the pseudo-word in its gaps has the caption's embedding (LinCIR, eq. 3)
    class LinCIRTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            caption = {k.removeprefix("caption_"): v for k, v in inputs.items() if k.startswith("caption_")}
            masked = {k: v for k, v in inputs.items() if not k.startswith("caption_")}
            with torch.no_grad():
                target = encoder(**caption).text_embeds
            noise = torch.randn_like(target) * torch.rand(len(target), 1, device=target.device) * args.noise_scale
            words = model(target + noise)
            per_row = masked["placeholder_mask"].sum(1)
            embeds = encoder(**masked, pseudo_words=words[:, 0].repeat_interleave(per_row, 0)).text_embeds
            return torch.nn.functional.mse_loss(embeds, target)

    started = time.perf_counter()
    encoder.to(args.device)
    trainer = LinCIRTrainer(projection, args, train_dataset=Captions(), data_collator=collate)
    trainer.train()

    # 4 save with the recipe
    projection.save_pretrained(args.output_dir)
    keys = ("method", "max_steps", "per_device_train_batch_size", "learning_rate", "weight_decay", "noise_scale")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    recipe = {
        "command": f"python examples/train_projection.py --method {args.method}",
        "clip_model": args.clip_model or "the small CLIP of the offline world",
        "seed": args.seed,
        **{key: getattr(args, key) for key in keys},
        "lr_scheduler_type": str(args.lr_scheduler_type.value),
        "seconds": round(time.perf_counter() - started),
        "figures": {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {},
    }
    Path(args.output_dir, "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


if __name__ == "__main__":
    main()
