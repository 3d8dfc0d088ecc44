"""The studies of the offline world: what is varied in each, and what the paper says of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Study:
    """
    One question, asked by a few trainings.

    Args:
        title (`str`): Heading of table and plot.
        settings (`dict[str, dict]`): By label what differs from the recipe: arguments of `RTDTrainingArguments`, and
            `lora_r` (adapters of that rank), `frozen` (parts of the encoder that do not learn), `num_triplets`.
        paper (`str`): What the paper reports; empty where we hold nothing of it.
        world (`str`): What `examples/studies` shows, with where it is not what the paper reports.
        unit (`str`, *optional*): Of the horizontal axis, where the labels are numbers.
        logarithmic (`bool`, *optional*): Whether that axis is.
        lines (`Sequence[str]`, *optional*): Where labels are `LINE: NUMBER`, the lines of the plot.
    """

    title: str
    settings: Mapping[str, Mapping[str, Any]]
    paper: str = ""
    world: str = ""
    unit: str = ""
    logarithmic: bool = False
    lines: Sequence[str] = field(default_factory=tuple)


def _each(name: str, values: Sequence[Any]) -> dict[str, dict[str, Any]]:
    return {f"{value:g}": {name: value} for value in values}


def _frozen(*parts: str) -> dict[str, Any]:
    return {"frozen": list(parts)}


STUDIES = {
    "components": Study(
        "Parts of the method",
        {
            "RTD": {},
            "no anchor (moving targets)": {"anchored": False},
            "no refined batch": {"refined_batch": False},
            "no refined concatenation": {"refined_concatenation": False},
            "neither refinement": {"refined_batch": False, "refined_concatenation": False},
            "none of the three": {"anchored": False, "refined_batch": False, "refined_concatenation": False},
        },
        paper="an earlier version, as its reviews quote it, has averages over five benchmarks: 37.38 without "
        "training, 36.25 with targets that move (worse than none), 39.17 with anchors, 39.64 with refined batches, "
        "and about 1.1 more with refined concatenation.",
    ),
    "noise": Study(
        "Noise in place of the modality gap",
        {
            f"{kind}: {scale:g}": {"noise_type": kind, "noise_scale": scale}
            for kind in ("scaled_gaussian", "gaussian")
            for scale in (0.0, 0.3, 0.65, 1.3, 2.6)
        },
        unit="scale of the noise",
        lines=("scaled_gaussian", "gaussian"),
    ),
    "temperature": Study(
        "Temperature", _each("temperature", (0.01, 0.03, 0.07, 0.15, 0.3)), unit="temperature", logarithmic=True
    ),
    "batch_size": Study(
        "Triplets a step",
        _each("per_device_train_batch_size", (16, 32, 64, 128, 256, 512)),
        unit="triplets a step, 300 steps",
        logarithmic=True,
    ),
    "num_triplets": Study(
        "Number of triplets",
        _each("num_triplets", (500, 2000, 8000, 40000, 160000)),
        unit="different triplets, 38,400 drawn",
        logarithmic=True,
    ),
    "steps": Study("Steps", _each("max_steps", (30, 100, 300, 1000)), unit="steps of 128 triplets", logarithmic=True),
    "learning_rate": Study(
        "Learning rate",
        _each("learning_rate", (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
        unit="learning rate, cosine schedule",
        logarithmic=True,
    ),
    "lora": Study(
        "All weights, or adapters",
        {"all weights": {}, **{f"LoRA, rank {rank}": {"lora_r": rank} for rank in (1, 4, 16, 64)}},
    ),
    "layers": Study(
        "What learns",
        {
            "all": {},
            "not the embeddings": _frozen("embeddings"),
            "not the first two layers": _frozen("embeddings", "layers.0.", "layers.1."),
            "the last layer and the projection": _frozen("embeddings", "layers.0.", "layers.1.", "layers.2."),
            "the projection alone": _frozen("embeddings", "layers.", "final_layer_norm"),
            "the embeddings alone": _frozen("layers.", "final_layer_norm", "text_projection"),
        },
    ),
}
