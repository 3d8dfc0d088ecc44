"""Image-to-word projections. The import line of a module is its registration."""

from .base import PROJECTIONS, ImageToWordProjection, ProjectionConfig
from .lincir import LinCIRProjection
from .pic2word import Pic2WordProjection
from .searle import SEARLEProjection


__all__ = [
    "PROJECTIONS",
    "ImageToWordProjection",
    "LinCIRProjection",
    "Pic2WordProjection",
    "ProjectionConfig",
    "SEARLEProjection",
]
