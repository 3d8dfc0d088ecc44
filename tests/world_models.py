"""Random models of the offline world's size, for tests in which what a model has learnt plays no part."""

from functools import cache
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPVisionModelWithProjection

from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.projections import ImageToWordProjection
from rtd_hf.retrieval import ComposedImageRetriever
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


def random_retriever(**options) -> ComposedImageRetriever:
    """A retriever of its own at every call, always with the same weights."""
    clip = random_clip()
    text_encoder = CLIPTextModelForRTD(clip.config.text_config)
    vision_model = CLIPVisionModelWithProjection(clip.config.vision_config)
    weights = clip.state_dict()
    for model in (text_encoder, vision_model):
        model.load_state_dict({name: weights[name] for name in model.state_dict()}, strict=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        projection = ImageToWordProjection.build("lincir", clip.config.projection_dim, text_encoder.config.hidden_size)
    return ComposedImageRetriever(
        text_encoder.eval(),
        vision_model.eval(),
        projection=projection,
        tokenizer=world_tokenizer(),
        image_processor=build_image_processor(),
        **options,
    )
