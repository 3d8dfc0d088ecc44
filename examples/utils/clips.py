"""The published CLIPs whose sizes are known without their files: for what is counted or tried without weights."""

from pathlib import Path
from typing import Any


# name: Hub id; of the text tower hidden size, layers, heads (as wide as the joint space); hidden size of the vision
# tower; activation. The vocabulary has 49,408 tokens, a text 77 at most, the MLP four times the hidden size.
_CLIPS = {
    "b32": ("openai/clip-vit-base-patch32", 512, 12, 8, 768, "quick_gelu"),
    "b16": ("openai/clip-vit-base-patch16", 512, 12, 8, 768, "quick_gelu"),
    "l14": ("openai/clip-vit-large-patch14", 768, 12, 12, 1024, "quick_gelu"),
    "h14": ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 1024, 24, 16, 1280, "gelu"),
    "bigg14": ("Geonmo/CLIP-Giga-config-fixed", 1280, 32, 20, 1664, "gelu"),
    "metaclip_l14": ("facebook/metaclip-l14-fullcc2.5b", 768, 12, 12, 1024, "quick_gelu"),
    "metaclip_h14": ("facebook/metaclip-h14-fullcc2.5b", 1024, 24, 16, 1280, "quick_gelu"),
}
SIZES = tuple(_CLIPS)


def size_of(clip_model: str) -> str | None:
    """The name in `SIZES` of a Hub id, if it is known."""
    return next((name for name, facts in _CLIPS.items() if facts[0] == clip_model), None)


def known_config(size: str, *, layers: int | None = None):
    """
    The text configuration of a published CLIP, and the width of its vision tower.

    Args:
        size (`str`): A name in `SIZES`.
        layers (`int`, *optional*): So many layers of the text tower; all by default.

    Returns:
        `tuple[CLIPTextConfig, int]`

    Raises:
        ValueError: there is no such size.
    """
    from transformers import CLIPTextConfig

    if size not in _CLIPS:
        raise ValueError(f"`--estimate_size` must be one of {', '.join(SIZES)}, got {size!r}.")
    _, width, number, heads, vision_width, activation = _CLIPS[size]
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers or number,
        num_attention_heads=heads,
        hidden_act=activation,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    return config, vision_width


def find_config(clip_model: str, size: str | None) -> tuple[Any, int | None, str]:
    """
    The configuration of a text tower: as told by its size, of its folder, of a known Hub id, or from the Hub.

    Args:
        clip_model (`str`): Folder or Hub id, or `shapes`.
        size (`str`, *optional*): A name in `SIZES` that is used instead.

    Returns:
        `tuple[PreTrainedConfig, int | None, str]`: it, the width of the vision tower where it is known, and where it
        is from, in words.

    Raises:
        ValueError: there is no such size.
        OSError: it can not be had; the message says what to do.
    """
    from rtd_hf import AutoTextModelForRTD
    from rtd_hf.models.checkpoints import read_config
    from rtd_hf.shapes import ASSETS

    if size is not None:
        return *known_config(size), f"as told, of the size {size}"
    name = str(ASSETS / "clip") if clip_model == "shapes" else clip_model
    known = None if Path(name).exists() else size_of(name)
    if known is not None:
        return *known_config(known), f"of {name}, as published ({known}; nothing was downloaded)"
    try:
        facts = read_config(name)
    except OSError as error:
        raise OSError(
            f"The configuration of `--clip_model` {name} can not be had: {error} Say `--estimate_size` with what it "
            f"is as large as, one of {', '.join(SIZES)}; or give its folder."
        ) from error
    config = AutoTextModelForRTD.class_for(name).config_class.from_pretrained(name)
    if facts.get("projection_dim") and hasattr(config, "projection_dim"):
        config.projection_dim = facts["projection_dim"]
    vision = facts.get("vision_config") or {}
    return config, vision.get("hidden_size"), f"of {clip_model}"
