"""Text backbones that accept pseudo-words. The import line of a module is its registration."""

from .base import BACKBONES, PseudoWordMixin
from .clip import CLIPTextModelForRTD


__all__ = ["BACKBONES", "CLIPTextModelForRTD", "PseudoWordMixin"]
