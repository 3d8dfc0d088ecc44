"""Why it works, and what it costs: diagnoses of text encoders, projections and queries."""

from .base import Diagnosis
from .discrepancy import TaskDiscrepancy
from .gap import compare_distributions, modality_gap
from .layers import layer_changes, linear_cka, mean_states
from .perturbations import QueryPerturbations, changed_texts
from .texts import TEXT_CHANGES


__all__ = [
    "TEXT_CHANGES",
    "Diagnosis",
    "QueryPerturbations",
    "TaskDiscrepancy",
    "changed_texts",
    "compare_distributions",
    "layer_changes",
    "linear_cka",
    "mean_states",
    "modality_gap",
]
