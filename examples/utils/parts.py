"""What a run is made of: triplets, the towers of a CLIP, a projection, and the adapters to train."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


WORLD_PROJECTIONS = ("lincir", "pic2word", "searle", "context_i2w", "fti4cir")


@dataclass
class ModelArguments:
    use_peft: bool = field(
        default=False, metadata={"help": "Train LoRA adapters; the merged encoder is what is saved."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Their scale times the rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in front of the adapters."})

    def lora_config(self, text_encoder):
        """The adapters of a text encoder, as a `peft.LoraConfig`."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=list(text_encoder.lora_target_modules),
        )


@dataclass(frozen=True)
class Parts:
    """The towers of a CLIP with their preprocessing, and a projection for them."""

    text_encoder: Any
    vision_model: Any
    tokenizer: Any
    image_processor: Any
    projection: Any
    context_encoder: Any

    def retriever(self, **options):
        """A `CIREncoder` of these parts; the options are its own."""
        from rtd_hf import CIREncoder

        return CIREncoder(
            self.text_encoder,
            self.vision_model,
            projection=self.projection,
            tokenizer=self.tokenizer,
            image_processor=self.image_processor,
            context_encoder=self.context_encoder,
            **options,
        )


def load_triplets(source: str, number: int | None, seed: int):
    """The text triplets as a `datasets.Dataset`; columns are checked by the trainer.

    Args:
        source (`str`): A file, a Hub id, or `shapes` for triplets of the offline world.
        number (`int`, *optional*): How many; all of a file by default, 40,000 of the world.
        seed (`int`): For the world's.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged.
    """
    from datasets import Dataset, load_dataset

    from rtd_hf.data_files import room_for_cache
    from rtd_hf.parsing import check_nesting
    from rtd_hf.training_rows import read_table

    if source == "shapes":
        from rtd_hf.shapes.edits import sample_triplet

        rng = random.Random(f"triplets {seed}")
        return Dataset.from_list([sample_triplet(rng) for _ in range(number or 40000)])
    suffix = Path(source).suffix.lower().lstrip(".")
    formats = {"json": "json", "jsonl": "json", "csv": "csv", "parquet": "parquet"}
    if suffix not in formats:
        if Path(source).is_dir():
            check_nesting(Path(source))
        with room_for_cache():
            dataset = load_dataset(source, split="train")
    elif Path(source).is_file():
        dataset = read_table(Path(source), formats[suffix])
    else:
        raise FileNotFoundError(f"`--triplets` {source} does not exist. Give a file, a Hub id, or `shapes`.")
    return dataset.select(range(min(number, len(dataset)))) if number else dataset


def load_parts(
    clip_model: str,
    projection: str,
    *,
    projection_subfolder: str = "",
    projection_type: str | None = None,
    prompt_template: str | None = None,
    device="cpu",
) -> Parts:
    """Text encoder, image tower, tokenizer, image processor and projection.

    Args:
        clip_model (`str`): Folder or Hub id of a CLIP, or of another backbone (SigLIP, SigLIP 2), or `shapes`.
        projection (`str`): Folder or Hub id, the file its authors published, or a name of `WORLD_PROJECTIONS`
            (`shapes` is `lincir`).
        projection_subfolder (`str`, *optional*): Folder of the projection within it.
        projection_type (`str`, *optional*): Its kind: of an authors' file that looks like two, and to be sure of it.
        prompt_template (`str`, *optional*): Takes the place of all templates of the projection.
        device (*optional*): Where the models are put.

    Raises:
        ValueError, OSError: If one of them is damaged, or is no such thing.
    """
    from rtd_hf import AutoTextModelForRTD, ImageToWordProjection, check_safetensors
    from rtd_hf.contexts import quiet_transformers
    from rtd_hf.shapes import ASSETS
    from rtd_hf.tokens import load_tokenizer

    clip = str(ASSETS / "clip") if clip_model == "shapes" else clip_model
    words = "lincir" if projection == "shapes" else projection
    words = str(ASSETS / words) if words in WORLD_PROJECTIONS and not Path(words).exists() else words
    for folder in (Path(clip), Path(words, projection_subfolder)):
        if folder.is_dir():
            check_safetensors(folder)  # names the file that is damaged
    with quiet_transformers():  # each tower reports the other one's weights as left over
        if Path(words).is_file():
            base = None if Path(clip).exists() else clip
            fitted = ImageToWordProjection.from_original(words, base_model=base, projection_type=projection_type)
        else:
            fitted = ImageToWordProjection.from_pretrained(words, subfolder=projection_subfolder)
        kind = fitted.config.projection_type
        if projection_type and kind != projection_type:
            raise ValueError(f"`--projection` {projection} is of the kind `{kind}`, not `{projection_type}`.")
        if prompt_template:
            fitted.use_template(prompt_template)
        backbone = AutoTextModelForRTD.class_for(clip)
        text_encoder, tokenizer = backbone.from_pretrained(clip), load_tokenizer(clip)
        text_encoder.check_tokenizer(tokenizer)
        original = backbone.from_pretrained(clip) if fitted.needs_context else None
        return Parts(
            text_encoder=text_encoder.to(device),
            vision_model=backbone.load_vision_model(clip).to(device),
            tokenizer=tokenizer,
            image_processor=backbone.load_image_processor(clip),
            projection=fitted.eval().to(device),
            context_encoder=original and original.eval().requires_grad_(False).to(device),
        )
