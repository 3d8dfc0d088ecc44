"""Files for the test servers of CIRR and CIRCO: written from ranked lists, and checked before a server does it."""

import json
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .benchmarks.base import CIRBenchmark, CIRQuery
from .benchmarks.circo import find_annotations, gallery_ids, read_queries
from .benchmarks.cirr import load_cirr
from .benchmarks.files import read_json
from .files import whole_file
from .parsing import read_bytes


CIRR_VERSION = "rc2"
CIRR_LENGTHS = {"recall": 50, "recall_subset": 3}
CIRR_MAX_BYTES = 5_000_000
CIRCO_LENGTH = 50


@dataclass(frozen=True)
class SubmissionReport:
    """
    What a sound submission holds.

    Args:
        kind (`str`): `"cirr recall"`, `"cirr recall_subset"` or `"circo"`.
        num_queries (`int`): Queries answered: all of them.
        length (`int`): Ids a query.
        num_bytes (`int`): Size of the file as the server gets it.
        notes (`list[str]`): What is allowed, but not as it should be, and what could not be checked.
    """

    kind: str
    num_queries: int
    length: int
    num_bytes: int
    notes: list[str] = field(default_factory=list)


def write_cirr_submission(
    rankings: Sequence[Sequence[str]] | Mapping[str, Sequence[str]],
    path: str | os.PathLike,
    *,
    benchmark: CIRBenchmark,
    metric: str = "recall",
) -> SubmissionReport:
    """
    Writes one of the two files that CIRR's server takes (cirr.cecs.anu.edu.au).

    Args:
        rankings (`Sequence[Sequence[str]]` or `Mapping`): The ids found, best first: per query in the benchmark's
            order, or by the query's id. `CIREvaluator.search(50)`, and `search(3, subset=True)` for the subset.
        path (`str` or `os.PathLike`): The file to write. An existing one is replaced once the new one is whole.
        benchmark ([`CIRBenchmark`]): From `load_cirr(root, split="test1")`.
        metric (`str`, *optional*, defaults to `"recall"`): `"recall"` (50 ids a query) or `"recall_subset"` (3).

    Returns:
        [`SubmissionReport`]

    Raises:
        ValueError: If the server would refuse it, see [`validate_cirr_submission`]. Nothing is written then.
    """
    content = {"version": CIRR_VERSION, "metric": metric, **_by_query(rankings, benchmark)}
    data = _encoded(content)
    report = _check_cirr(content, benchmark, num_bytes=len(data), name="rankings", metric=metric)
    _write(Path(path), data)
    return report


def write_circo_submission(
    rankings: Sequence[Sequence[str | int]] | Mapping[str, Sequence[str | int]],
    path: str | os.PathLike,
    *,
    benchmark: CIRBenchmark,
) -> SubmissionReport:
    """
    Writes the file that CIRCO's server takes (circo.micc.unifi.it).

    Args:
        rankings (`Sequence[Sequence[str]]` or `Mapping`): The 50 ids found, best first: per query in the benchmark's
            order, or by the query's id. `CIREvaluator.search(50)` gives them.
        path (`str` or `os.PathLike`): The file to write. An existing one is replaced once the new one is whole.
        benchmark ([`CIRBenchmark`]): From `load_circo(root, split="test")`.

    Returns:
        [`SubmissionReport`]

    Raises:
        ValueError: If the server would refuse it, see [`validate_circo_submission`]. Nothing is written then.
    """
    known = frozenset(map(int, benchmark.gallery))
    content = {
        query: [int(i) if isinstance(i, str) and i.isdecimal() else i for i in ids]
        for query, ids in _by_query(rankings, benchmark).items()
    }
    data = _encoded(content)
    report = _check_circo(content, benchmark.queries, known, num_bytes=len(data), name="rankings")
    _write(Path(path), data)
    return report


def validate_cirr_submission(
    path: str | os.PathLike, root: str | os.PathLike, *, metric: str | None = None, split: str = "test1"
) -> SubmissionReport:
    """
    Checks a file for CIRR's server, whoever made it. No picture is needed.

    Args:
        path (`str` or `os.PathLike`): The JSON file; `.gz` is unpacked first.
        root (`str` or `os.PathLike`): Folder of the CIRR annotations.
        metric (`str`, *optional*): The `metric` it must be for, `"recall"` or `"recall_subset"`; either by default.
        split (`str`, *optional*, defaults to `"test1"`): The split whose queries it must answer.

    Returns:
        [`SubmissionReport`]

    Raises:
        FileNotFoundError: If the file or the annotations are missing.
        ValueError: With all that the server would refuse or score wrongly: a wrong version or metric, missing or
            unknown queries, lists of the wrong length, repeated or unknown ids, the reference, ids outside of the
            query's group (subset), more than 5 MB.
    """
    content, num_bytes = _read(path)
    benchmark = load_cirr(root, split=split, images="unchecked")
    return _check_cirr(content, benchmark, num_bytes=num_bytes, name=str(path), metric=metric)


def validate_circo_submission(
    path: str | os.PathLike, root: str | os.PathLike, *, split: str = "test"
) -> SubmissionReport:
    """
    Checks a file for CIRCO's server, whoever made it. No picture is needed, but what lists the gallery.

    The reference may be in a list, as CIRCO leaves it in the ranking. Ids may be strings of digits, which the server
    reads too.

    Args:
        path (`str` or `os.PathLike`): The JSON file; `.gz` is unpacked first.
        root (`str` or `os.PathLike`): Folder of the CIRCO annotations. Without COCO's image info or pictures below it
            the ids cannot be compared with the gallery; a note says so.
        split (`str`, *optional*, defaults to `"test"`): The split whose queries it must answer.

    Returns:
        [`SubmissionReport`]

    Raises:
        FileNotFoundError: If the file or the annotations are missing.
        ValueError: With all that the server would refuse or score wrongly: missing or unknown queries, lists of other
            than 50 ids, repeated or unknown ids.
    """
    content, num_bytes = _read(path)
    annotations = find_annotations(root, split)
    try:
        known = frozenset(gallery_ids(annotations)[0])
    except FileNotFoundError:
        known = None
    queries = read_queries(annotations, split == "test")
    return _check_circo(content, queries, known, num_bytes=num_bytes, name=str(path))


def read_submission(path: str | os.PathLike, benchmark: CIRBenchmark) -> list[list[str]]:
    """
    The lists of a submission in the order of a benchmark's queries, for [`score_rankings`].

    Args:
        path (`str` or `os.PathLike`): The JSON file; `.gz` is unpacked first.
        benchmark ([`CIRBenchmark`]): The queries it answers.

    Returns:
        `list[list[str]]`

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not answer exactly these queries.
    """
    content, _ = _read(path)
    answers = {key: value for key, value in content.items() if key not in ("version", "metric")}
    problems = list(_problems_of_keys(answers, [query.id for query in benchmark.queries]))
    problems += [f"the list of {key} is {str(ids)[:60]}" for key, ids in answers.items() if not isinstance(ids, list)]
    _raise_for(problems, str(path))
    return [[str(i) for i in answers[query.id]] for query in benchmark.queries]


# The checks


def _check_cirr(
    content: Mapping, benchmark: CIRBenchmark, *, num_bytes: int, name: str, metric: str | None
) -> SubmissionReport:
    answers = {key: value for key, value in content.items() if key not in ("version", "metric")}
    stated = content.get("metric")
    problems = []
    if content.get("version") != CIRR_VERSION:
        problems.append(f"`version` must be {CIRR_VERSION!r}, got {content.get('version')!r}")
    allowed = tuple(CIRR_LENGTHS) if metric is None else (metric,)
    length = CIRR_LENGTHS.get(stated, 0) if isinstance(stated, str) else 0
    if not length or stated not in allowed:
        problems.append(f"`metric` must be {' or '.join(map(repr, allowed))}, got {stated!r}")
    if num_bytes > CIRR_MAX_BYTES:
        problems.append(f"the file has {num_bytes} bytes, the server takes {CIRR_MAX_BYTES}; write it without indents")
    problems += _problems_of_keys(answers, [query.id for query in benchmark.queries])
    if length:
        gallery = frozenset(benchmark.gallery)

        def pool(query: CIRQuery) -> frozenset[str]:
            return frozenset((*query.candidates, query.reference)) if stated == "recall_subset" else gallery

        scope = "query's group" if stated == "recall_subset" else "gallery"
        problems += _problems_of_lists(answers, benchmark.queries, length, pool=pool, scope=scope, kind=str)
        for query in benchmark.queries:
            if query.reference in _as_list(answers.get(query.id)):
                problems.append(f"the list of {query.id} holds its reference {query.reference!r}")
    _raise_for(problems, name)
    return SubmissionReport(f"cirr {stated}", len(answers), length, num_bytes)


def _check_circo(
    content: Mapping, queries: Sequence[CIRQuery], known: frozenset[int] | None, *, num_bytes: int, name: str
) -> SubmissionReport:
    problems, notes = list(_problems_of_keys(content, [query.id for query in queries])), []
    strings = sum(isinstance(i, str) for ids in content.values() for i in _as_list(ids))
    answers = {key: [_number(i) for i in _as_list(ids)] for key, ids in content.items()}
    problems += _problems_of_lists(answers, queries, CIRCO_LENGTH, pool=lambda query: known, scope="gallery", kind=int)
    if strings:
        notes.append(f"{strings} ids are strings; the server reads them, but its examples hold integers")
    if known is None:
        notes.append("the ids were not compared with the gallery, because nothing below `root` lists it")
    _raise_for(problems, name)
    return SubmissionReport("circo", len(content), CIRCO_LENGTH, num_bytes, notes)


def _number(item: object) -> object:
    return int(item) if isinstance(item, str) and item.isdecimal() else item


def _as_list(ids: object) -> list:
    return ids if isinstance(ids, list) else []


def _problems_of_keys(answers: Mapping, wanted: Sequence[str]) -> Iterator[str]:
    missing = [key for key in wanted if key not in answers]
    unknown = sorted(answers.keys() - set(wanted))
    if missing:
        yield f"{len(missing)} of {len(wanted)} queries are not answered (first {', '.join(missing[:5])})"
    if unknown:
        yield f"{len(unknown)} keys are no queries of this split (first {', '.join(map(repr, unknown[:5]))})"


def _problems_of_lists(
    answers: Mapping[str, object],
    queries: Sequence[CIRQuery],
    length: int,
    *,
    pool: Callable[[CIRQuery], frozenset | None],
    scope: str,
    kind: type,
) -> Iterator[str]:
    for query in queries:
        if query.id not in answers:
            continue
        ids = answers[query.id]
        where = f"the list of {query.id}"
        if not isinstance(ids, list) or not all(type(item) is kind for item in ids):
            yield f"{where} must be a list of {kind.__name__}, got {str(ids)[:60]}"
            continue
        if len(ids) != length:
            yield f"{where} has {len(ids)} ids instead of {length}"
        repeated = [item for item, count in Counter(ids).items() if count > 1]
        if repeated:
            yield f"{where} holds {repeated[0]!r} more than once"
        allowed = pool(query)
        unknown = [] if allowed is None else [item for item in ids if item not in allowed]
        if unknown:
            yield f"{where} holds {unknown[0]!r}, which is not in the {scope}"


def _raise_for(problems: Sequence[str], name: str) -> None:
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{name} is no sound submission, {len(problems)} problems: {'; '.join(problems[:5])}{more}.")


# Files


def _by_query(
    rankings: Sequence[Sequence[Hashable]] | Mapping[str, Sequence[Hashable]], benchmark: CIRBenchmark
) -> dict[str, list]:
    if isinstance(rankings, Mapping):
        return {str(key): list(ids) for key, ids in rankings.items()}
    if len(rankings) != len(benchmark.queries):
        raise ValueError(
            f"`rankings` must hold a list for each of the {len(benchmark.queries)} queries of `{benchmark.name}`, got "
            f"{len(rankings)}."
        )
    return {query.id: list(ids) for query, ids in zip(benchmark.queries, rankings, strict=True)}


def _encoded(content: Mapping) -> bytes:
    # Without blanks CIRR's file has 4.0 MB, with them 4.2, indented more than the server takes.
    return json.dumps(content, separators=(",", ":")).encode()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def _read(path: str | os.PathLike) -> tuple[dict, int]:
    """The content of a submission, and its size as the server gets it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no submission at {path}.")
    content, num_bytes = read_json(path, unique_keys=True), _size(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object of lists by query, got {str(content)[:60]}.")
    return content, num_bytes


def _size(path: Path) -> int:
    return len(read_bytes(path)) if path.suffix == ".gz" else path.stat().st_size
