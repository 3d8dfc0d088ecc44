"""Teaching a projection's surrogate on pictures, so that text-only training can show the projection texts."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..contexts import evaluating
from ..prompts import PromptTokenizer
from .base import Batch, ProjectionObjective
from .towers import FrozenCLIP


class _Pictures(ProjectionObjective):
    """Reads pictures with their vision tokens, and fits nothing."""

    needs_patches = True


def teach_surrogate(
    projection: Any,
    clip: FrozenCLIP,
    dataset: Dataset,
    *,
    contexts: Sequence[str] | None = None,
    contexts_per_picture: int = 4,
    batch_size: int = 256,
    num_workers: int = 0,
    seed: int = 0,
    **options: Any,
) -> float:
    """
    Shows pictures to a projection that reads vision tokens, and has its surrogate learn what it makes of them.

    Args:
        projection ([`ImageToWordProjection`]): The fitted projection; its `text_training` is then `"surrogate"`.
        clip ([`FrozenCLIP`]): The CLIP it was fitted to, with its image tower.
        dataset (`Dataset`): Rows with an `"image"`, or with `"image_embeds"` and `"patch_embeds"`; several thousand.
        contexts (`Sequence[str]`, *optional*):
            Texts of queries, for a projection with context; best the conditioning texts it will be trained with. The
            rows' captions by default.
        contexts_per_picture (`int`, *optional*, defaults to 4): Contexts drawn for each picture.
        batch_size (`int`, *optional*, defaults to 256): Pictures at once.
        num_workers (`int`, *optional*, defaults to 0): Processes that open pictures.
        seed (`int`, *optional*, defaults to 0): Draws contexts and batches.
        options: Of [`~rtd_hf.projections.surrogate.WordSurrogate.fit`].

    Returns:
        `float`: the share of variance that the surrogate explains, on pictures it was not shown.

    Raises:
        ValueError: the projection needs no surrogate, there are fewer than 20 rows, or it reads contexts and there
            are neither `contexts` nor captions.
        OSError: a picture is missing, damaged or none; the message names it.
    """
    objective = _Pictures(clip, projection.config)
    device, rng = clip.device, random.Random(f"contexts {seed}")
    prompts = PromptTokenizer(clip.tokenizer, projection.config.prompt_template, **clip.text_encoder.prompt_options())
    repeats = contexts_per_picture if projection.needs_context else 1
    parts: list[tuple[torch.Tensor, ...]] = []
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=lambda rows: (objective.image_batch(rows), [row.get("caption") for row in rows]),
    )
    with torch.no_grad(), evaluating(projection):
        for batch, captions in tqdm(loader, desc="Showing pictures", unit="batch", disable=len(loader) < 4):
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            image_embeds, patch_embeds = objective.image_features(inputs)
            for _ in range(repeats):
                context = None
                if projection.needs_context:
                    texts = _drawn(contexts if contexts is not None else captions, len(image_embeds), rng)
                    context = _encoded(projection, clip, prompts, texts)
                targets = projection.surrogate_targets(image_embeds, patch_embeds, context)
                row = (image_embeds, targets) if context is None else (image_embeds, targets, context)
                parts.append(tuple(part.float().cpu() for part in row))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return projection.fit_surrogate(*columns, seed=seed, **options)


def _drawn(texts: Sequence[str | None], number: int, rng: random.Random) -> list[str]:
    """Another text than a picture's own, mostly: that of a query says what the picture does not show yet."""
    drawn = rng.choices(texts, k=number)
    if not all(drawn):
        raise ValueError(
            "A projection with context needs `contexts`, or rows with captions. Give texts such as queries have."
        )
    return drawn


def _encoded(projection: Any, clip: FrozenCLIP, prompts: PromptTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Embeddings of the prompts with the projection's placeholder token in them, `(B, D)`."""
    packed = clip.text_encoder.takes_packed_rows
    batch: Mapping[str, Any] = prompts.compose_with_token(
        texts, projection.config.context_placeholder_id, packed=packed
    )
    inputs: Batch = {name: value.to(clip.device) for name, value in batch.items()}
    return clip.text_encoder(**inputs).text_embeds.float()
