"""A frozen CLIP, small projections, objectives and rows, for tests in which what a model has learnt plays no part."""

from functools import cache

import torch
from world_models import random_retriever

from rtd_hf.objectives import OBJECTIVES, FrozenCLIP, PhraseBank
from rtd_hf.projections import ImageToWordProjection
from rtd_hf.shapes.pairs import ScenePairs


ROWS, SCALE = 5, 21.0
PHRASES = {
    "red star": ["a photo of a red star on grey", "a photo of red star that moves to the left"],
    "blue ring": ["a photo of a blue ring above a circle", "one blue ring"],
    "green heart": ["a photo of a green heart"],
}
# Smaller than published, and with gate and dropout such that every part of the projection has its say.
SIZES = {
    "context_i2w": {"vision_hidden_size": 128, "latent_depth": 1, "hidden_dim": 32, "context_placeholder_id": 259},
    "fti4cir": {"vision_hidden_size": 128, "num_templates": 8, "num_pseudo_words": 5, "selector_layers": 1},
}


@cache
def frozen_clip() -> FrozenCLIP:
    """The random CLIP of the tests, with a logit scale of its own; one for all, because nothing may change it."""
    parts = random_retriever()
    return FrozenCLIP(parts.text_encoder, parts.tokenizer, parts.vision_model, parts.image_processor, SCALE)


def projection_for(name: str) -> ImageToWordProjection:
    torch.manual_seed(1)
    projection = ImageToWordProjection.build(name, 96, 96, dropout=0.0, **SIZES.get(name, {})).train()
    for parameter_name, parameter in projection.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
        if parameter_name == "local_gate":
            torch.nn.init.constant_(parameter, 0.5)
    return projection


def objective_for(name: str, clip: FrozenCLIP, projection, **settings):
    if name == "searle":
        settings["bank"] = PhraseBank(PHRASES)
    if name in ("pic2word", "context_i2w"):
        settings["options"] = OBJECTIVES[name].options_class(crop_scale=1.0)
    return OBJECTIVES[name](clip, projection.config, **settings)


def rows_for(name: str) -> list[dict]:
    rows = [{**ScenePairs(ROWS, seed=3)[index], "key": f"0 0 {index}"} for index in range(ROWS)]
    if name == "searle":
        generator = torch.Generator().manual_seed(2)
        for index, row in enumerate(rows):
            row |= {"inversion": torch.randn(96, generator=generator), "concepts": torch.tensor([index % 3, 0])}
    return rows
