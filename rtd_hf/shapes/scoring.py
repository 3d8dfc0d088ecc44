"""How well the small CLIP knows the world: plain text-to-image retrieval on held-out combinations."""

import random

import torch

from ..contexts import evaluating
from ..metrics import rank_targets, recall_at_k
from .captions import describe_fully
from .pictures import draw_scene
from .scenes import Scene, sample_scene


def held_out_pictures(number: int, seed: int) -> list[tuple[Scene, object]]:
    """Draws `number` different held-out scenes, each with its picture (`uint8` array of shape `(48, 48, 3)`)."""
    rng = random.Random(f"held-out pictures {seed}")
    scenes: dict[Scene, None] = {}
    while len(scenes) < number:
        scenes[sample_scene(rng, "held_out")] = None
    return [(scene, draw_scene(scene, rng.getrandbits(63))) for scene in scenes]


def text_to_image_recall(model, tokenizer, image_processor, *, number: int = 1000, seed: int = 1) -> dict[str, float]:
    """Recall of plain text-to-image retrieval with full captions among held-out pictures.

    Args:
        model (`CLIPModel`): The small CLIP.
        tokenizer (`CLIPTokenizer`): Its tokenizer.
        image_processor: Its image processor.
        number (`int`, *optional*, defaults to 1000): Pictures, and as many captions.
        seed (`int`, *optional*, defaults to 1): Draws them.

    Returns:
        `dict[str, float]`: `text_to_image_recall@1`, `@5`, `@10` in percent, ties counted against the model.
    """
    rng = random.Random(f"captions {seed}")
    rows = held_out_pictures(number, seed)
    captions = [describe_fully(scene, rng) for scene, _ in rows]
    texts, images = [], []
    with torch.inference_mode(), evaluating(model):
        for start in range(0, number, 250):
            pixels = image_processor([picture for _, picture in rows[start : start + 250]], return_tensors="pt")
            tokens = tokenizer(captions[start : start + 250], padding=True, return_tensors="pt")
            output = model(**tokens.to(model.device), pixel_values=pixels["pixel_values"].to(model.device))
            texts.append(output.text_embeds)
            images.append(output.image_embeds)
    ranks = rank_targets(torch.cat(texts), torch.cat(images), torch.arange(number, device=model.device)[:, None])
    return {f"text_to_image_recall@{k}": 100 * recall_at_k(ranks, k).double().mean().item() for k in (1, 5, 10)}
