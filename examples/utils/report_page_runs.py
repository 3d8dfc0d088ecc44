"""What the folder of a run says of it, read with care: it may come from a stranger."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """
    What is shown of a run.

    Args:
        name (`str`): Its folder's, told apart from those of the others.
        folder (`Path`): The folder.
        before, after (`dict[str, float]`): Composed retrieval, in percent.
        gain (`dict[str, dict]`): `{"gain", "low", "high"}` by metric.
        baselines (`dict[str, dict]`): Other ways to compose the query.
        kept (`dict[str, dict]`): `before`, `after` and `change` of plain retrieval.
        curve (`dict`): As `learning_curve` gives it.
        diagnosed (`dict[str, dict]`): `before` and `after` of the diagnoses of the training, by diagnosis.
        diagnoses (`dict`): As `diagnose.py` wrote them.
        recipe (`dict`): Its arguments.
        facts (`dict[str, dict[str, str]]`): What else `metrics.json` holds: run, data, environment, cost.
    """

    name: str
    folder: Path
    before: dict[str, float]
    after: dict[str, float]
    gain: dict[str, dict[str, float]]
    baselines: dict[str, dict[str, float]]
    kept: dict[str, dict]
    curve: dict[str, dict[str, list]]
    diagnosed: dict[str, dict]
    diagnoses: dict[str, Any]
    recipe: dict[str, Any]
    facts: dict[str, dict[str, str]] = field(default_factory=dict)


def read_runs(folders: list[str]) -> list[Run]:
    """
    Reads several runs.

    Args:
        folders (`list[str]`): Folders with `metrics.json`, and what else there is.

    Raises:
        FileNotFoundError: A folder holds no `metrics.json`.
        ValueError: A file is damaged, holds something else, or is a link to elsewhere; or a folder is named twice.
    """
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"The same run is named twice: {' '.join(folders)}.")
    short = [path.resolve().name for path in paths]
    names = [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _read_run(folder: Path, name: str) -> Run:
    from rtd_hf.parsing import read_object

    path = folder / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no metrics.json. Give the folder of a training or an evaluation.")
    metrics = read_object(_own(path, folder))
    try:
        if "metrics" in metrics and "after" not in metrics:  # of an evaluation, by benchmark
            metrics["after"] = _merged(metrics["metrics"])
            metrics |= {key: _merged(metrics.get(key, {})) for key in ("before", "gain")}
            metrics["baselines"] = _swapped(metrics.get("baselines", {}))
        kept = metrics.get("preservation", {})
        return Run(
            name,
            folder,
            before=_numbers(metrics.get("before", {}), "before"),
            after=_numbers(metrics.get("after", {}), "after"),
            gain=_intervals(metrics.get("gain", {}), "gain"),
            baselines={str(key): _numbers(each, "baselines") for key, each in _items(metrics, "baselines")},
            kept=_kept(kept) if "after" in _mapping(kept, "preservation") else {},
            curve=_curve(metrics.get("curve") or _logged(folder)),
            diagnosed={
                side: {str(kind): _numbers(each, "diagnostics") for kind, each in _mapping(kinds, side).items()}
                for side, kinds in _items(metrics, "diagnostics")
            },
            diagnoses=_diagnoses(folder),
            recipe=_recipe(folder),
            facts={
                part: _flat(_mapping(metrics[part], part))
                for part in ("run", "data", "environment", "cost")
                if part in metrics
            },
        )
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"`{path}` is damaged, or of no run ({type(error).__name__}: {error}).") from error


def _own(path: Path, folder: Path) -> Path:
    """Whoever made a folder is not to decide which other files of this machine are shown."""
    here, target = folder.resolve(), path.resolve()
    # In the cache of the Hub the files of a snapshot are links to blobs beside it.
    blobs = here.parents[1] / "blobs" if here.parent.name == "snapshots" else here
    if not target.is_relative_to(here) and not target.is_relative_to(blobs):
        raise ValueError(f"`{path}` is a link to {target}, which lies elsewhere. Put a copy in its place.")
    return path


def _mapping(values: Any, what: str) -> Mapping:
    if not isinstance(values, Mapping):
        raise TypeError(f"`{what}` must be an object, but is a {type(values).__name__}")
    return values


def _items(metrics: Mapping, part: str) -> list[tuple[Any, Any]]:
    return list(_mapping(metrics.get(part, {}), part).items())


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        raise TypeError(f"`{what}` must hold numbers, but holds {str(value)[:40]!r}")
    return float(value)


def _numbers(values: Any, what: str) -> dict[str, float]:
    return {str(key): _number(value, what) for key, value in _mapping(values, what).items()}


def _intervals(values: Any, what: str) -> dict[str, dict[str, float]]:
    found = {str(key): _numbers(each, what) for key, each in _mapping(values, what).items()}
    for key, each in found.items():
        if each.keys() != {"gain", "low", "high"}:
            raise TypeError(f"`{what}` of {key[:40]!r} must have `gain`, `low` and `high`")
    return found


def _kept(values: Mapping) -> dict[str, dict]:
    change = _intervals(values.get("change", {}), "preservation")
    return {"change": change} | {side: _numbers(values[side], "preservation") for side in ("before", "after")}


def _merged(parts: Mapping) -> dict:
    return {key: value for each in _mapping(parts, "metrics").values() for key, value in each.items()}


def _swapped(parts: Mapping) -> dict:
    """`{benchmark: {way: figures}}` as `{way: figures}`."""
    found: dict[str, dict] = {}
    for ways in _mapping(parts, "baselines").values():
        for way, figures in ways.items():
            found.setdefault(way, {}).update(figures)
    return found


def _curve(values: Any) -> dict[str, dict[str, list]]:
    """Only what can be drawn: a number for each step, or none."""
    curve = {}
    for name in ("training", "evaluation"):
        columns = _mapping(values, "curve").get(name, {"step": []})
        steps = [_number(step, "curve") for step in columns["step"]]
        curve[name] = {"step": steps}
        for key, column in columns.items():
            if key == "step":
                continue
            if not isinstance(column, list) or len(column) != len(steps):
                raise TypeError(f"`curve` must hold as many values as steps, but not {str(key)[:40]!r}")
            curve[name][str(key)] = [
                None
                if value is None or isinstance(value, str) or not math.isfinite(_number(value, "curve"))
                else value
                for value in column
            ]
    return curve


def _logged(folder: Path) -> dict:
    """The curve of a run that wrote none, from what the trainer logged, in the folder or its last checkpoint."""
    from rtd_hf import learning_curve
    from rtd_hf.parsing import read_object

    def step(path: Path) -> int:
        number = path.parent.name.removeprefix("checkpoint-")
        return int(number) if number.isdecimal() else -1

    states = [folder / "trainer_state.json", *folder.glob("checkpoint-*/trainer_state.json")]
    states = sorted((path for path in states if path.is_file()), key=step)
    if not states:
        return {}
    history = read_object(_own(states[-1], folder)).get("log_history", [])
    if not isinstance(history, list) or not all(isinstance(row, dict) and "step" in row for row in history):
        raise ValueError(f"`{states[-1]}` must hold a list of rows with a step each as `log_history`.")
    return learning_curve(history)


def _recipe(folder: Path) -> dict[str, Any]:
    from rtd_hf.parsing import parse_yaml

    path = folder / "recipe.yaml"
    if not path.is_file():
        return {}
    try:
        recipe = parse_yaml(_own(path, folder).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"`{path}` must hold `name: value` lines.")
    return recipe


def _diagnoses(folder: Path) -> dict[str, Any]:
    from rtd_hf.parsing import read_object

    for path in (folder / "diagnostics.json", folder / "diagnostics" / "diagnostics.json"):
        if path.is_file():
            return dict(_mapping(read_object(_own(path, folder)).get("diagnoses", {}), "diagnoses"))
    return {}


def _flat(values: Mapping, before: str = "") -> dict[str, str]:
    """Facts as texts, those within others by `outer: inner`."""
    found = {}
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and not before:
            found |= _flat(value, f"{name}: ")
        else:
            found[name] = as_text(value)
    return found


def as_text(value: Any) -> str:
    """A value as it is shown."""
    if isinstance(value, list | tuple):
        return ", ".join(map(as_text, value)) or "none"
    text = "not measured" if value is None else str(value)
    return text if len(text) <= 400 else f"{text[:400]} ... ({len(text):,} characters)"
