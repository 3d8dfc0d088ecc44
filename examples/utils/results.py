"""The files of an evaluation, and what it takes to compare two of them: the same queries under the same protocol."""

import json
from collections.abc import Mapping
from pathlib import Path


METRICS = "metrics.json"
PER_QUERY = "per_query.safetensors"
# What a figure may be given beside without being another figure.
_FREE = frozenset({"complete"})


def save_results(folder: Path, report: Mapping, results: Mapping, queries: Mapping) -> None:
    """Writes `metrics.json`, and `per_query.safetensors` with the values whose means are the metrics.

    Args:
        folder (`Path`): Where to.
        report (`Mapping`): What goes into `metrics.json`.
        results (`Mapping[str, CIRResult]`): By benchmark; a variant by its label.
        queries (`Mapping[str, list]`): Of each what tells its queries from others.
    """
    from safetensors.torch import save_file

    from rtd_hf.files import whole_file

    tensors = {
        f"{label} {metric}": values.float().contiguous()
        for label, result in results.items()
        for metric, values in result.per_query.items()
    }
    metadata = {"format": "rtd_hf per-query values 1", **{label: _digest(ids) for label, ids in queries.items()}}
    with whole_file(folder / PER_QUERY) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    with whole_file(folder / METRICS) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _digest(queries: list) -> str:
    from rtd_hf.files import hash_bytes

    return hash_bytes(json.dumps(queries).encode())


def load_results(folder: str | Path, results: Mapping, queries: Mapping) -> dict:
    """The results of an earlier evaluation, for the benchmarks that were evaluated now.

    Args:
        folder (`str` or `Path`): What an earlier run wrote.
        results (`Mapping[str, CIRResult]`): What was found now.
        queries (`Mapping[str, list]`): What tells its queries from others.

    Returns:
        `dict[str, CIRResult]` of the earlier run, for each label of `results`.

    Raises:
        FileNotFoundError: If the folder holds no results.
        ValueError: If the earlier run lacks a benchmark, or had other queries or another protocol: the difference of
            two such figures says nothing about the encoders.
    """
    from safetensors import safe_open

    from rtd_hf import check_safetensors
    from rtd_hf.benchmarks import CIRResult
    from rtd_hf.parsing import read_object

    folder = Path(folder)
    missing = [name for name in (METRICS, PER_QUERY) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"`--before` {folder} holds no {missing[0]}. Give the `--output_dir` of an evaluation."
        )
    check_safetensors(folder / PER_QUERY)
    protocols = read_object(folder / METRICS).get("protocols", {})
    if not isinstance(protocols, dict) or not all(isinstance(entry, dict) for entry in protocols.values()):
        raise ValueError(f"`--before` {folder / METRICS} has no `protocols` by benchmark. Evaluate again.")
    with safe_open(folder / PER_QUERY, framework="pt") as file:
        metadata, names = file.metadata() or {}, set(file.keys())
        found = {}
        for label, result in results.items():
            protocol = protocols.get(label)
            if protocol is None:
                raise ValueError(
                    f"`--before` {folder} has no results of `{label}`, but of "
                    f"{', '.join(protocols) or 'nothing'}. Evaluate the same benchmarks."
                )
            here = json.loads(json.dumps(result.protocol))
            differing = [
                f"`{key}` was {protocol.get(key)}, is {here.get(key)}"
                for key in sorted({*protocol, *here} - _FREE)
                if protocol.get(key) != here.get(key)
            ]
            if metadata.get(label) != _digest(queries[label]):
                differing.append("the queries are others")
            wanted = {f"{label} {metric}": metric for metric in result.per_query}
            if not differing and not wanted.keys() <= names:
                differing.append("metrics are missing there")
            if differing:
                raise ValueError(
                    f"`--before` {folder} cannot be compared on `{label}`: {'; '.join(differing)}. Evaluate both with "
                    f"the same options."
                )
            values = {metric: file.get_tensor(name) for name, metric in wanted.items()}
            found[label] = CIRResult(values, 0, result.num_queries, protocol)
    return found
