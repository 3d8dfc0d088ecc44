"""Search: the pictures in an index, and a retriever that asks it."""

from .effects import WordEffect, word_effects
from .index import Hit, ImageIndex
from .neighbours import NEIGHBOURS
from .retriever import ComposedImageRetriever


__all__ = ["NEIGHBOURS", "ComposedImageRetriever", "Hit", "ImageIndex", "WordEffect", "word_effects"]
