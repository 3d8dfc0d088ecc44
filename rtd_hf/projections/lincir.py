"""LinCIR's projection (Gu et al., CVPR 2024, "Language-only Training of Zero-shot Composed Image Retrieval")."""

from .base import PROJECTIONS
from .searle import SEARLEProjection


@PROJECTIONS.register("lincir")
class LinCIRProjection(SEARLEProjection):
    """
    The network of [`SEARLEProjection`], trained from captions alone and used with CLIP's own image preprocessing.

    The published checkpoints have the same keys (`layers.0`, `layers.3`, `layers.6`).
    """

    projection_type = "lincir"
    image_preprocess = "clip"
