"""Text backbones that accept pseudo-words. The import line of a module is its registration."""

from .auto import AutoTextModelForRTD
from .base import PseudoWordMixin
from .checkpoints import BACKBONES, save_stock
from .clip import CLIPTextModelForRTD
from .siglip import Siglip2TextModelForRTD, SiglipTextModelForRTD


__all__ = [
    "BACKBONES",
    "AutoTextModelForRTD",
    "CLIPTextModelForRTD",
    "PseudoWordMixin",
    "Siglip2TextModelForRTD",
    "SiglipTextModelForRTD",
    "save_stock",
]
