"""The model card of a trained text encoder, filled from the figures of its own run and from nothing else."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard


TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ("rtd", "composed-image-retrieval", "zero-shot", "clip")
NOT_MEASURED = "not measured"
BENCHMARK_NAMES = {
    "cirr": "CIRR",
    "circo": "CIRCO",
    "fashioniq": "FashionIQ",
    "genecis": "GeneCIS",
    "coco": "COCO object composition",
    "shapes": "the offline world of `rtd_hf.shapes`",
}
METRIC_NAMES = {"recall": "Recall", "recall_subset": "Recall in the subset", "map": "mAP"}
# Greedy in the middle, so that `cirr_recall_subset@1` is a subset recall and `fashioniq_dress_recall@10` a group's.
_KEY = re.compile(r"(?P<benchmark>[a-z0-9]+)(?:_(?P<group>\w+?))?_(?P<metric>recall_subset|recall|map)@(?P<k>\d+)")
_CUTOFF = re.compile(r"(?P<stem>.*)@(?P<k>\d+)")
# Entries of metrics["run"] that are results or circumstances, not options of the training.
_NOT_OPTIONS = ("command", "seconds", "versions")


def build_model_card(
    metrics: Mapping[str, Any],
    *,
    license: str,
    model_id: str = "path/to/text_encoder",
    projection_id: str = "path/to/projection",
    base_model: str | None = None,
    datasets: Sequence[str] | None = None,
    projection_type: str = "lincir",
    prompt_template: str = "a photo of $ that {caption}",
    limits: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> "ModelCard":
    """Builds the card of one trained text encoder. Nothing is asked of the Hub.

    Every figure comes from `metrics`; what is not in there reads "not measured".

    Args:
        metrics (`Mapping`):
            `{"before": {key: value}, "after": {key: value}, "gain": {key: {"gain", "low", "high"}},
            "baselines": {name: {key: value}}, "run": {option: value}}`, every part optional. Values are in percent,
            keys such as `shapes_recall@10`. In `run`, `command`, `seconds` and `versions` (a mapping) have places of
            their own.
        license (`str`):
            Hub licence identifier of the weights. There is no default: what the encoder, the projection and the texts
            were released under decides it.
        model_id (`str`): Hub id or path of the text encoder, for the code in the card.
        projection_id (`str`): Hub id or path of the projection, for the code in the card.
        base_model (`str`, *optional*): Hub id of the model the training started from.
        datasets (`Sequence[str]`, *optional*): Hub ids of the data trained on.
        projection_type (`str`): The projection it was trained with, to cite it: `"lincir"`, `"searle"`, `"pic2word"`.
        prompt_template (`str`): The query prompt, with `$` for the pseudo-word.
        limits (`Sequence[str]`): Sentences added to the card's limits.
        tags (`Sequence[str]`): Added to the card's tags.

    Returns:
        `huggingface_hub.ModelCard`: Write it with `card.save("README.md")`.

    Raises:
        ValueError: `license` is empty, a part of `metrics` is unknown, or a figure is not a finite number.
    """
    from huggingface_hub import ModelCard, ModelCardData

    if not license:
        raise ValueError(
            f"`license` must be a Hub licence identifier such as 'mit', but is {license!r}. Settle it with the "
            "owners of the encoder, the projection and the texts that the weights come from."
        )
    figures = _checked(metrics)
    run = dict(metrics.get("run") or {})
    name = model_id.rstrip("/").split("/")[-1]
    results = _eval_results(figures["after"])
    data = ModelCardData(
        base_model=base_model,
        datasets=list(datasets) if datasets else None,
        eval_results=results or None,
        library_name="transformers",
        license=license,
        model_name=name if results else None,
        pipeline_tag="feature-extraction",
        tags=[*TAGS, *(tag for tag in tags if tag not in TAGS)],
    )
    keys = _sorted_keys(figures["before"], figures["after"])
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model_name=name,
        model_id=model_id,
        projection_id=projection_id,
        projection_type=projection_type,
        base_model=base_model,
        prompt_template=prompt_template,
        bare_prompt=prompt_template[: prompt_template.rfind("$") + 1],
        results_table=_results_table(keys, figures),
        baselines_table=_baselines_table(keys, figures),
        benchmarks=_benchmarks(keys),
        only_shapes=bool(keys) and all(key.startswith("shapes_") for key in keys),
        seed=run.get("seed"),
        command=run.get("command"),
        seconds=run.get("seconds"),
        versions=run.get("versions") or {},
        options={key: value for key, value in run.items() if key not in _NOT_OPTIONS},
        limits=list(limits),
        not_measured=NOT_MEASURED,
    )


def _checked(metrics: Mapping[str, Any]) -> dict[str, dict]:
    parts = ("before", "after", "gain", "baselines")
    unknown = sorted(set(metrics) - {*parts, "run"})
    if unknown:
        raise ValueError(f"`metrics` has unknown parts: {', '.join(unknown)}. Known: {', '.join(parts)}, run.")
    figures = {part: dict(metrics.get(part) or {}) for part in parts}
    flat = [(f"{part}.{key}", value) for part in ("before", "after") for key, value in figures[part].items()]
    for part in ("gain", "baselines"):
        for key, values in figures[part].items():
            flat += [(f"{part}.{key}.{inner}", value) for inner, value in values.items()]
    for where, value in flat:
        if value is not None and not math.isfinite(value):
            raise ValueError(
                f"`metrics` holds {value} at `{where}`. A card states finite figures only; measure it again."
            )
    return figures


def _sorted_keys(*parts: Mapping[str, float]) -> list[str]:
    def order(key: str) -> tuple[str, int]:
        found = _CUTOFF.fullmatch(key)
        return (found["stem"], int(found["k"])) if found else (key, 0)

    return sorted({key for part in parts for key in part}, key=order)


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def _label(key: str) -> str:
    return f"`{key}`"


def _gain(key: str, figures: Mapping[str, Mapping]) -> str:
    gain = figures["gain"].get(key)
    if gain is None:
        return NOT_MEASURED
    interval = ""
    if gain.get("low") is not None and gain.get("high") is not None:
        interval = f" [{_number(gain['low'], signed=True)}, {_number(gain['high'], signed=True)}]"
    return _number(gain.get("gain"), signed=True) + interval


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _results_table(keys: Sequence[str], figures: Mapping[str, Mapping]) -> str:
    rows = [
        [_label(key), _number(figures["before"].get(key)), _number(figures["after"].get(key)), _gain(key, figures)]
        for key in keys
    ]
    rows = rows or [["all", NOT_MEASURED, NOT_MEASURED, NOT_MEASURED]]
    return _table(["metric (%)", "before", "after", "gain [95 % interval]"], rows)


def _baselines_table(keys: Sequence[str], figures: Mapping[str, Mapping]) -> str:
    baselines = figures["baselines"]
    rows = [
        [_label(key), *(_number(values.get(key)) for values in baselines.values())]
        for key in keys
        if any(key in values for values in baselines.values())
    ]
    return _table(["metric (%)", *baselines], rows) if rows else ""


def _benchmarks(keys: Sequence[str]) -> list[str]:
    found = {key.split("_")[0] for key in keys}
    return [BENCHMARK_NAMES.get(name, name) for name in sorted(found)]


def _eval_results(after: Mapping[str, float]) -> list["EvalResult"]:
    from huggingface_hub import EvalResult

    results = []
    for key in _sorted_keys(after):
        if after[key] is None:
            continue
        found = _KEY.fullmatch(key)
        benchmark = found["benchmark"] if found else key.split("_")[0]
        metric = f"{METRIC_NAMES[found['metric']]}@{found['k']}" if found else key
        results.append(
            EvalResult(
                task_type="image-feature-extraction",
                task_name="composed image retrieval",
                dataset_type=benchmark,
                dataset_name=BENCHMARK_NAMES.get(benchmark, benchmark).replace("`", ""),
                dataset_config=found["group"] if found else None,
                metric_type=key.split("_", 1)[-1],
                metric_name=metric,
                metric_value=round(float(after[key]), 4),
            )
        )
    return results
