"""Image-to-word projections. The import line of a module is its registration."""

from .base import PROJECTIONS, ImageToWordProjection, ProjectionConfig
from .context_i2w import ContextI2WConfig, ContextI2WProjection
from .fti4cir import FTI4CIRConfig, FTI4CIRProjection
from .lincir import LinCIRProjection
from .originals import OriginalReport, load_original
from .pic2word import Pic2WordProjection
from .searle import SEARLEProjection


__all__ = [
    "PROJECTIONS",
    "ContextI2WConfig",
    "ContextI2WProjection",
    "FTI4CIRConfig",
    "FTI4CIRProjection",
    "ImageToWordProjection",
    "LinCIRProjection",
    "OriginalReport",
    "Pic2WordProjection",
    "ProjectionConfig",
    "SEARLEProjection",
    "load_original",
]
