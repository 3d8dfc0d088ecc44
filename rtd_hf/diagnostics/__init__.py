"""Why it works, and what it costs: diagnoses of text encoders, projections and queries."""

from .base import Diagnosis
from .discrepancy import TaskDiscrepancy
from .gap import ModalityGap, compare_distributions, modality_gap
from .layers import LayerChanges, layer_changes, linear_cka, mean_states
from .perturbations import QueryPerturbations, changed_texts
from .texts import TEXT_CHANGES
from .triplets import TripletQuality


__all__ = [
    "TEXT_CHANGES",
    "Diagnosis",
    "LayerChanges",
    "ModalityGap",
    "QueryPerturbations",
    "TaskDiscrepancy",
    "TripletQuality",
    "changed_texts",
    "compare_distributions",
    "layer_changes",
    "linear_cka",
    "mean_states",
    "modality_gap",
]
