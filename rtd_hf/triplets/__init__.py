"""Text triplets: reference caption, conditioning text, target caption."""

from .columns import TRIPLET_COLUMNS, check_texts, check_triplets, resolve_triplet_columns, string_column


__all__ = ["TRIPLET_COLUMNS", "check_texts", "check_triplets", "resolve_triplet_columns", "string_column"]
