"""Search: the pictures in an index, and a retriever that asks it."""

from .index import Hit, ImageIndex
from .neighbours import NEIGHBOURS


__all__ = ["NEIGHBOURS", "Hit", "ImageIndex"]
