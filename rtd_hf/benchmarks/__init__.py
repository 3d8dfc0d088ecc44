"""Evaluation sets. A new one is one file and one import line here."""

from .base import BENCHMARKS, CIRBenchmark, CIRQuery
from .shapes import load_shapes, load_shapes_categories, load_shapes_many, load_shapes_sparse


__all__ = [
    "BENCHMARKS",
    "CIRBenchmark",
    "CIRQuery",
    "load_shapes",
    "load_shapes_categories",
    "load_shapes_many",
    "load_shapes_sparse",
]
