"""Triplets by a language model behind an endpoint or on this machine."""

from .generator import LLMGenerator
from .options import LLMOptions


__all__ = ["LLMGenerator", "LLMOptions"]
