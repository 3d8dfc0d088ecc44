"""Reducing task discrepancy of text encoders for zero-shot composed image retrieval, on Hugging Face libraries.

Every public name is imported on first use (PEP 562), so `import rtd_hf` costs next to nothing and needs neither torch
nor transformers.
"""

from importlib import import_module


__version__ = "0.1.0"

# Public name -> the module that holds it. The only list of the public API.
_MODULES = {
    # models and projections
    "BACKBONES": "models",
    "CLIPTextModelForRTD": "models",
    "PROJECTIONS": "projections",
    "ImageToWordProjection": "projections",
    "ProjectionConfig": "projections",
    # text
    "DataCollatorForRTD": "data_collator",
    "check_triplets": "triplets",
    "resolve_triplet_columns": "triplets",
    "PromptTokenizer": "prompts",
    "clean_caption": "texts",
    # speed
    "AnchorStore": "anchors",
    "PackedRows": "packing",
    "encoder_fingerprint": "anchors",
    "pack_rows": "packing",
    "precompute_anchors": "anchors",
    # training
    "RTDTrainer": "trainer",
    "RTDTrainingArguments": "training_args",
    "TargetAnchoredContrastiveLoss": "losses",
    "target_anchored_contrastive_loss": "losses",
    # retrieval and measurement
    "BENCHMARKS": "benchmarks",
    "CIREvaluator": "evaluator",
    "ComposedImageRetriever": "retrieval",
    "MeanAveragePrecisionAtK": "hf_metrics",
    "RecallAtK": "hf_metrics",
    "average_precision_at_k": "metrics",
    "paired_bootstrap": "metrics",
    "rank_targets": "metrics",
    "recall_at_k": "metrics",
    # saving and publishing
    "DropInReport": "hub",
    "check_safetensors": "hub",
    "export_text_encoder": "hub",
    "prepare_output_dir": "hub",
    "verify_drop_in": "hub",
    "build_model_card": "model_card",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(
            f"module `{__name__}` has no attribute `{name}`. `dir({__name__})` lists the public names."
        )
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next access no longer comes here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
