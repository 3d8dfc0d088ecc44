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
    "AutoTextModelForRTD": "models",
    "CLIPTextModelForRTD": "models",
    "Siglip2TextModelForRTD": "models",
    "SiglipTextModelForRTD": "models",
    "PROJECTIONS": "projections",
    "ImageToWordProjection": "projections",
    "ProjectionConfig": "projections",
    # fitting projections
    "EncodedRows": "objectives",
    "FrozenCLIP": "objectives",
    "OBJECTIVES": "objectives",
    "teach_surrogate": "objectives",
    "PhraseBank": "objectives",
    "ProjectionObjective": "objectives",
    "ProjectionTrainer": "projection_trainer",
    "ProjectionTrainingArguments": "projection_trainer",
    "generate_phrases": "objectives",
    "load_rows": "training_rows",
    "local_generator": "objectives",
    "mask_keywords": "tagging",
    "tag": "tagging",
    "textual_inversion": "objectives",
    # text
    "DataCollatorForRTD": "data_collator",
    "check_triplets": "triplets",
    "GENERATORS": "triplets",
    "FilterOptions": "triplets",
    "LLMGenerator": "triplets",
    "LLMOptions": "triplets",
    "RuleGenerator": "triplets",
    "RuleOptions": "triplets",
    "TripletFilter": "triplets",
    "TripletGenerator": "triplets",
    "generate_triplets": "triplets",
    "measure_triplets": "triplets",
    "read_triplets": "triplets",
    "write_triplets": "triplets",
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
    "NoRoomError": "files",
    "RTDTrainer": "trainer",
    "StepTime": "step_probe",
    "TrainingEstimate": "estimates",
    "estimate_training": "estimates",
    "probe_step_seconds": "step_probe",
    "RTDTrainingArguments": "training_args",
    "StopRules": "stopping",
    "TargetAnchoredContrastiveLoss": "losses",
    "learning_curve": "stopping",
    "target_anchored_contrastive_loss": "losses",
    # retrieval and measurement
    "BENCHMARKS": "benchmarks",
    "CIRBenchmark": "benchmarks",
    "CIREvaluator": "evaluator",
    "CIRQuery": "benchmarks",
    "CIRResult": "benchmarks",
    "CaptionedImages": "preservation",
    "CaptionDrift": "alignment",
    "CIREncoder": "retrieval",
    "ComposedImageRetriever": "search",
    "ImageIndex": "search",
    "word_effects": "search",
    "ImageAlignment": "alignment",
    "MeanAveragePrecisionAtK": "hf_metrics",
    "PreservationEvaluator": "preservation",
    "RecallAtK": "hf_metrics",
    "RecallSubsetAtK": "hf_metrics",
    "UnreadableImagesError": "features",
    "average_precision_at_k": "metrics",
    "check_data": "benchmarks",
    "captioned_rows": "alignment",
    "interpolate_encoders": "preservation",
    "load_coco_captions": "preservation",
    "load_shapes_captions": "preservation",
    "paired_bootstrap": "metrics",
    "rank_targets": "metrics",
    "recall_at_k": "metrics",
    "write_metric_space": "metric_spaces",
    "score_rankings": "benchmarks",
    "spread_over_draws": "benchmarks",
    "validate_circo_submission": "submissions",
    "validate_cirr_submission": "submissions",
    "write_circo_submission": "submissions",
    "write_cirr_submission": "submissions",
    # understanding what changed
    "Diagnosis": "diagnostics",
    "LayerChanges": "diagnostics",
    "ModalityGap": "diagnostics",
    "QueryPerturbations": "diagnostics",
    "TEXT_CHANGES": "diagnostics",
    "TaskDiscrepancy": "diagnostics",
    "TripletQuality": "diagnostics",
    "layer_changes": "diagnostics",
    "modality_gap": "diagnostics",
    # saving and publishing
    "DropInReport": "hub",
    "check_safetensors": "hub",
    "export_text_encoder": "hub",
    "prepare_output_dir": "hub",
    "verify_drop_in": "hub",
    "build_model_card": "hub",
    "LAYOUTS": "layouts",
    "export_layout": "layouts",
    "import_layout": "layouts",
    "load_adapter": "adapters",
    "load_sentence_transformer": "layouts",
    "Publication": "hub",
    "PushError": "hub",
    "push_repository": "hub",
    "load_cir_encoder": "hub",
    "write_repository": "hub",
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
