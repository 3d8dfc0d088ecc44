"""Evaluation sets. A new one is one file and one import line here."""

from .base import BENCHMARKS, CIRBenchmark, CIRQuery
from .checks import DataReport, check_data
from .circo import load_circo
from .cirr import load_cirr
from .coco import load_coco, spread_over_draws
from .fashioniq import load_fashioniq
from .files import SOURCES, DataSource
from .genecis import load_genecis
from .regions import write_regions
from .scoring import CIRResult, score_rankings
from .shapes import load_shapes, load_shapes_categories, load_shapes_many, load_shapes_sparse


__all__ = [
    "BENCHMARKS",
    "CIRBenchmark",
    "CIRQuery",
    "CIRResult",
    "DataReport",
    "DataSource",
    "SOURCES",
    "check_data",
    "load_circo",
    "load_cirr",
    "load_coco",
    "load_fashioniq",
    "load_genecis",
    "load_shapes",
    "load_shapes_categories",
    "load_shapes_many",
    "load_shapes_sparse",
    "score_rankings",
    "spread_over_draws",
    "write_regions",
]
