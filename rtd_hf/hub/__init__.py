"""From a trained text encoder to a repository that plain transformers loads: folder, export, proof, card, push."""

from .card import build_model_card
from .circumstances import EnergyMeter, describe_environment, fingerprint_triplets, peak_memory_gib
from .drop_in import PROBE_TEXTS, DropInReport, check_safetensors, verify_drop_in
from .export import export_text_encoder
from .folders import OWNER_FILE, prepare_output_dir
from .modules import describe_modules
from .publication import Publication
from .push import push_repository
from .refusals import PushError
from .repository import cached_revision, card_of, check_base_model, load_cir_encoder, write_repository
from .training import PushesDropIns


__all__ = [
    "OWNER_FILE",
    "PROBE_TEXTS",
    "DropInReport",
    "EnergyMeter",
    "Publication",
    "PushError",
    "PushesDropIns",
    "build_model_card",
    "cached_revision",
    "card_of",
    "check_base_model",
    "check_safetensors",
    "describe_environment",
    "describe_modules",
    "export_text_encoder",
    "fingerprint_triplets",
    "load_cir_encoder",
    "peak_memory_gib",
    "prepare_output_dir",
    "push_repository",
    "verify_drop_in",
    "write_repository",
]
