"""Captions embedded once by the frozen encoder, kept on disk, and read by every epoch, sweep and run."""

from .fingerprints import encoder_fingerprint
from .store import AnchorStore, precompute_anchors


__all__ = ["AnchorStore", "encoder_fingerprint", "precompute_anchors"]
