"""Text triplets: reference caption, conditioning text, target caption. Made, read, filtered and judged.

The import line of a generator's module is its registration.
"""

from .base import GENERATORS, PROVENANCE, ROW_COLUMNS, TripletGenerator
from .columns import TRIPLET_COLUMNS, check_texts, check_triplets, resolve_triplet_columns, string_column
from .filters import FilterOptions, TripletFilter
from .llm import LLMGenerator, LLMOptions
from .quality import measure_triplets
from .reading import Captions, read_triplets
from .rows import Rows, check_arrow
from .rules import RuleGenerator, RuleOptions
from .writing import generate_triplets, write_triplets


__all__ = [
    "GENERATORS",
    "PROVENANCE",
    "ROW_COLUMNS",
    "TRIPLET_COLUMNS",
    "Captions",
    "FilterOptions",
    "LLMGenerator",
    "LLMOptions",
    "Rows",
    "RuleGenerator",
    "RuleOptions",
    "TripletFilter",
    "TripletGenerator",
    "check_arrow",
    "check_texts",
    "check_triplets",
    "generate_triplets",
    "measure_triplets",
    "read_triplets",
    "resolve_triplet_columns",
    "string_column",
    "write_triplets",
]
