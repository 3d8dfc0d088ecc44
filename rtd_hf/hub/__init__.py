"""From a trained text encoder to a repository that plain transformers loads: folder, export, proof, card, push."""

from .card import build_model_card
from .drop_in import PROBE_TEXTS, DropInReport, check_safetensors, verify_drop_in
from .export import export_text_encoder
from .folders import OWNER_FILE, prepare_output_dir


__all__ = [
    "OWNER_FILE",
    "PROBE_TEXTS",
    "DropInReport",
    "build_model_card",
    "check_safetensors",
    "export_text_encoder",
    "prepare_output_dir",
    "verify_drop_in",
]
