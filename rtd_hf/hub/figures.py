"""The figures of a run: checked, in order, as tables and as the Hub's evaluation results."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .markup import code, plain, table


if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry


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
FIGURES = ("before", "after", "gain", "baselines", "published", "preservation")
OTHERS = ("run", "data", "environment", "cost", "protocols", "curve", "diagnostics", "drop_in", "card")
# Greedy in the middle, so that `cirr_recall_subset@1` is a subset recall and `fashioniq_dress_recall@10` a group's.
_KEY = re.compile(r"(?P<benchmark>[a-z0-9]+)(?:_(?P<group>\w+?))?_(?P<metric>recall_subset|recall|map)@(?P<k>\d+)")
_CUTOFF = re.compile(r"(?P<stem>.*)@(?P<k>\d+)")


def checked_figures(metrics: Mapping[str, Any]) -> dict[str, dict]:
    """The parts of `metrics` that hold figures, each of them there.

    Args:
        metrics (`Mapping`): As [`build_model_card`] takes it.

    Raises:
        ValueError: A part is unknown, or a figure is not a finite number.
    """
    unknown = sorted(set(metrics) - {*FIGURES, *OTHERS})
    if unknown:
        known = ", ".join((*FIGURES, *OTHERS))
        raise ValueError(f"`metrics` has unknown parts: {', '.join(map(str, unknown))}. Known: {known}.")
    figures = {part: dict(metrics.get(part) or {}) for part in FIGURES}
    for where, value in _flat(figures, ""):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(
                f"`metrics` holds {value!r} at `{where}`. A card states finite figures only; measure it again."
            )
    return figures


def _flat(values: Mapping[str, Any], stem: str) -> list[tuple[str, Any]]:
    found = []
    for key, value in values.items():
        where = f"{stem}.{key}" if stem else str(key)
        found += _flat(value, where) if isinstance(value, Mapping) else [(where, value)]
    return found


def sorted_keys(*parts: Mapping[str, Any]) -> list[str]:
    """All keys of several parts, those of one metric together and by their cut-offs."""

    def order(key: str) -> tuple[str, int]:
        found = _CUTOFF.fullmatch(key)
        return (found["stem"], int(found["k"])) if found else (key, 0)

    return sorted({key for part in parts for key in part}, key=order)


def number(value: float | None, *, signed: bool = False) -> str:
    """A figure with one decimal, or that it was not measured."""
    if value is None:
        return NOT_MEASURED
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def _difference(gain: Mapping[str, float] | None) -> str:
    if gain is None:
        return NOT_MEASURED
    interval = ""
    if gain.get("low") is not None and gain.get("high") is not None:
        interval = f" [{number(gain['low'], signed=True)}, {number(gain['high'], signed=True)}]"
    return number(gain.get("gain"), signed=True) + interval


def results_table(figures: Mapping[str, Mapping]) -> str:
    """Before, after, and the gain with its interval; what a paper states has a column of its own."""
    published = figures["published"]
    head = ["metric (%)", "before", "after", "gain [95 % interval]", *(["the paper's, not ours"] if published else [])]
    rows = [
        [
            code(key, in_table=True),
            number(figures["before"].get(key)),
            number(figures["after"].get(key)),
            _difference(figures["gain"].get(key)),
            *([number(published[key]) if key in published else ""] if published else []),
        ]
        for key in sorted_keys(figures["before"], figures["after"], published)
    ]
    return table(head, rows or [["all", *[NOT_MEASURED] * (len(head) - 1)]])


def baselines_table(figures: Mapping[str, Mapping]) -> str:
    """What needs no training, of the metrics above; empty where nothing was measured."""
    baselines = figures["baselines"]
    rows = [
        [code(key, in_table=True), *(number(values.get(key)) for values in baselines.values())]
        for key in sorted_keys(figures["before"], figures["after"])
        if any(key in values for values in baselines.values())
    ]
    return table(["metric (%)", *map(plain, baselines)], rows) if rows else ""


def preservation_table(figures: Mapping[str, Mapping]) -> str:
    """Plain retrieval before and after; empty where it was not measured."""
    kept = {part: figures["preservation"].get(part) or {} for part in ("before", "after", "change")}
    rows = [
        [
            code(key, in_table=True),
            number(kept["before"].get(key)),
            number(kept["after"].get(key)),
            _difference(kept["change"].get(key)),
        ]
        for key in sorted_keys(kept["before"], kept["after"])
    ]
    return table(["metric (%)", "before", "after", "change [95 % interval]"], rows) if rows else ""


def benchmarks_of(figures: Mapping[str, Mapping]) -> list[str]:
    """The benchmarks of the figures, each as Markdown."""
    found = {key.split("_")[0] for key in sorted_keys(figures["before"], figures["after"])}
    return [BENCHMARK_NAMES.get(name) or plain(name) for name in sorted(found)]


def _parts_of(key: str) -> tuple[str, str | None, str]:
    """Benchmark, group and the metric's name, such as `("fashioniq", "dress", "Recall@10")`."""
    found = _KEY.fullmatch(key)
    if found is None:
        return key.split("_")[0], None, key
    return found["benchmark"], found["group"], f"{METRIC_NAMES[found['metric']]}@{found['k']}"


def eval_results(after: Mapping[str, float | None]) -> list["EvalResult"]:
    """The figures after the training as `huggingface_hub.EvalResult`s, for the model index of a card."""
    from huggingface_hub import EvalResult

    results = []
    for key in sorted_keys(after):
        if after[key] is None:
            continue
        benchmark, group, metric = _parts_of(key)
        results.append(
            EvalResult(
                task_type="image-feature-extraction",
                task_name="composed image retrieval",
                dataset_type=benchmark,
                dataset_name=BENCHMARK_NAMES.get(benchmark, benchmark).replace("`", ""),
                dataset_config=group,
                metric_type=key.split("_", 1)[-1],
                metric_name=metric,
                metric_value=round(float(after[key]), 4),
            )
        )
    return results


def eval_result_entries(
    after: Mapping[str, float | None], dataset_ids: Mapping[str, str], *, date: str | None = None
) -> dict[str, list["EvalResultEntry"]]:
    """The figures of benchmarks that are data sets on the Hub, for the files `.eval_results/*.yaml`.

    Args:
        after (`Mapping`): The figures in percent, by keys such as `cirr_recall@1`.
        dataset_ids (`Mapping[str, str]`): Hub ids of data sets, by the benchmark's name.
        date (`str`, *optional*): When they were measured, in ISO 8601.

    Returns:
        `dict[str, list[EvalResultEntry]]`: by benchmark; the tasks are called as the metrics are, `recall@1`.

    Raises:
        ValueError: A benchmark is named of which nothing was measured.
    """
    from huggingface_hub import EvalResultEntry

    found = {}
    for benchmark, dataset_id in dataset_ids.items():
        keys = [key for key in sorted_keys(after) if key.startswith(f"{benchmark}_") and after[key] is not None]
        if not keys:
            raise ValueError(
                f"`dataset_ids` names {benchmark!r}, of which nothing was measured. Measured: "
                f"{', '.join(sorted_keys(after)) or 'nothing'}."
            )
        notes = "Zero-shot composed image retrieval, in percent."
        found[benchmark] = [
            EvalResultEntry(
                dataset_id=dataset_id,
                task_id=key.removeprefix(f"{benchmark}_"),
                value=round(float(after[key]), 4),
                date=date,
                notes=notes,
            )
            for key in keys
        ]
    return found


def options_table(run: Mapping[str, Any], *, head: str = "option") -> str:
    """Options and their values; empty where there are none."""
    rows = [[code(key, in_table=True), plain(value)] for key, value in run.items()]
    return table([head, "value"], rows).replace("---:", "---") if rows else ""
