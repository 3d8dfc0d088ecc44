"""Random models of the offline world's size, for tests in which what a model has learnt plays no part."""

import copy
from functools import cache
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPVisionModelWithProjection

from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.projections import ImageToWordProjection
from rtd_hf.retrieval import CIREncoder
from rtd_hf.shapes.clip import build_config, build_image_processor, build_tokenizer, world_texts


@cache
def world_tokenizer():
    """The tokenizer of the shipped small CLIP, fitted anew."""
    return build_tokenizer(world_texts(4000, seed=0))


@cache
def random_clip() -> CLIPModel:
    """A `CLIPModel` in evaluation mode, wide enough in its weights for different inputs to lie well apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(build_config(world_tokenizer()))
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                deviation = 1.0 if "embedding" in name else parameter[0].numel() ** -0.5
                torch.nn.init.normal_(parameter, std=deviation)
    return model.eval()


def save_random_clip(folder: Path) -> Path:
    random_clip().save_pretrained(folder)
    world_tokenizer().save_pretrained(folder)
    build_image_processor().save_pretrained(folder)
    return folder


def random_projection(method: str) -> ImageToWordProjection:
    """A projection for the random CLIP, as small as its kind allows, without zeros that could hide a part."""
    clip = random_clip().config
    options = {
        "context_i2w": {"latent_depth": 1, "context_placeholder_id": 5},
        "fti4cir": {"num_templates": 8, "num_pseudo_words": 5, "selector_layers": 1, "attribute_threshold": 0.1},
    }
    widths = (clip.projection_dim, clip.text_config.hidden_size)
    sizes = {"vision_hidden_size": clip.vision_config.hidden_size, **options.get(method, {})}
    projection = ImageToWordProjection.build(method, *widths, **sizes)
    if projection.needs_patches:  # the others have none
        with torch.no_grad():
            for parameter in projection.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return projection


def random_retriever(method: str = "lincir", **options) -> CIREncoder:
    """A retriever of its own at every call, always with the same weights."""
    clip = random_clip()
    text_encoder = CLIPTextModelForRTD(clip.config.text_config)
    vision_model = CLIPVisionModelWithProjection(clip.config.vision_config)
    weights = clip.state_dict()
    for model in (text_encoder, vision_model):
        model.load_state_dict({name: weights[name] for name in model.state_dict()}, strict=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        projection = random_projection(method)
    if projection.needs_context:
        options.setdefault("context_encoder", copy.deepcopy(text_encoder).eval())
    return CIREncoder(
        text_encoder.eval(),
        vision_model.eval(),
        projection=projection,
        tokenizer=world_tokenizer(),
        image_processor=build_image_processor(),
        **options,
    )
