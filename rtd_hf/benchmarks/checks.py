"""Is a data set whole? Files, counts, hashes and pictures, with all that is wrong in one message."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from ..images import ImageFolders, image_fault
from .base import BENCHMARKS, CIRBenchmark
from .files import SOURCES, AbsentError, DataSource, check_choice, check_choices, count_differences


# Two public draws agree on it, but it was never published: no reason to refuse other data.
_UNSURE_COUNTS = {"coco"}


@dataclass
class DataReport:
    """
    What [`check_data`] found.

    Args:
        name (`str`): The benchmark.
        root (`str`): The folder.
        errors (`list[str]`): What makes figures wrong or impossible.
        warnings (`list[str]`): What may be meant, but should be known.
        facts (`list[str]`): What is there.
        advice (`str`): What belongs there and where it comes from.
    """

    name: str
    root: str
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    advice: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def raise_for_errors(self) -> None:
        """Raises a `ValueError` with the whole report if there is an error."""
        if self.errors:
            raise ValueError(str(self))

    def __str__(self) -> str:
        head = f"`{self.name}` in {self.root}: {len(self.errors)} errors, {len(self.warnings)} warnings."
        marked = [("error: ", self.errors), ("warning: ", self.warnings), ("", self.facts)]
        lines = [f"- {mark}{line}" for mark, entries in marked for line in entries]
        return "\n".join([head, *lines, *([self.advice] if self.errors else [])])


def check_data(
    name: str,
    root: str | os.PathLike,
    *,
    parts: Sequence[str] | None = None,
    deep: bool = False,
    num_workers: int = 8,
) -> DataReport:
    """
    Checks the files of a benchmark before anything is computed. Nothing is fetched.

    Looked at are: which annotation files are there, whether they are the official ones (another SHA-256 is a warning,
    because people save JSON anew; other counts are an error) and belong together (queries that name pictures which
    their list does not hold, ids that occur twice), and which pictures are missing, damaged, or belong to no list.

    Args:
        name (`str`): Name in `BENCHMARKS`, such as `"cirr"`.
        root (`str` or `os.PathLike`): Its folder.
        parts (`Sequence[str]`, *optional*): Splits or tasks to check; all by default.
        deep (`bool`, *optional*, defaults to `False`): Decode every picture; else its header and its end are read.
        num_workers (`int`, *optional*, defaults to 8): Threads that read pictures.

    Returns:
        [`DataReport`]; `print` shows it, `raise_for_errors` makes it an error.

    Raises:
        ValueError: If the benchmark needs no files, or has no such part.
    """
    check_choice("name", name, tuple(SOURCES))
    source = SOURCES[name]
    chosen = check_choices("parts", parts, (*source.parts, *(source.optional_parts if parts else ())))
    optional = {} if parts else source.optional_parts
    report = DataReport(name, str(root), advice=source.advice)
    found: dict[str, CIRBenchmark] = {}
    for part in (*chosen, *optional):
        benchmark = _load(source, part, root, report)
        if benchmark is not None:
            found[part] = benchmark
            _check_counts(source, part, benchmark, report)
    if not found and not report.errors:
        report.errors.append(report.warnings.pop(0))  # nothing at all is there: one of the parts says what to do
        report.warnings.clear()
    _check_hashes(source, root, report)
    _check_pictures(source, found, set(optional), report)
    paths = {path for benchmark in found.values() for path in benchmark.load_image.paths.values() if path is not None}
    _check_damage(sorted(paths), deep, num_workers, report)
    return report


def _load(source: DataSource, part: str, root: str | os.PathLike, report: DataReport) -> CIRBenchmark | None:
    optional = part not in source.parts
    options = (source.optional_parts if optional else source.parts)[part]
    try:
        return BENCHMARKS[source.name](root, **options, images="unchecked")
    except AbsentError as error:
        if not optional:
            report.warnings.append(_first_line(error))
    except (OSError, ValueError) as error:
        hint = " Are its files of different versions or splits?" if "is not in its gallery" in str(error) else ""
        (report.warnings if optional else report.errors).append(f"{part}: {_first_line(error)}{hint}")
    return None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]  # what follows is the advice, which the report gives once


def _check_counts(source: DataSource, part: str, benchmark: CIRBenchmark, report: DataReport) -> None:
    keys = (part, f"{part} original", f"{part} pic2word", "val")
    expected = next((source.counts[key] for key in keys if key in source.counts), {})
    have = benchmark.protocol["num_queries"]
    groups = set(have) if isinstance(have, Mapping) else set()
    own = {
        entry: {group: number for group, number in numbers.items() if group in groups}
        if isinstance(numbers, Mapping)
        else numbers
        for entry, numbers in expected.items()
    }
    lines = report.warnings if source.name in _UNSURE_COUNTS else report.errors
    lines += [f"{part}: {difference}" for difference in count_differences(benchmark, own)]
    files = benchmark.load_image
    present = len(files.paths) - len(files.missing)
    report.facts.append(f"{part}: {present} of {len(files.paths)} pictures; {benchmark.describe()}")
    if source.name == "circo" and not benchmark.hidden_targets and not any(q.aspects for q in benchmark.queries):
        report.warnings.append(f"{part}: an old file without `semantic_aspects`; there will be no figures per aspect.")


def _check_hashes(source: DataSource, root: str | os.PathLike, report: DataReport) -> None:
    for path in source.annotation_files(root):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != source.hashes[path.name]:
            report.warnings.append(
                f"{path} is not the official file, byte for byte (SHA-256 {digest[:12]}..., expected "
                f"{source.hashes[path.name][:12]}...). Saved anew it may say the same; edited, its figures compare "
                f"with no others."
            )


def _check_pictures(
    source: DataSource, found: Mapping[str, CIRBenchmark], optional: set[str], report: DataReport
) -> None:
    for part, benchmark in found.items():
        files = benchmark.load_image
        if files.missing:
            lines = report.warnings if part in optional else report.errors
            lines.append(f"{part}: {files.message(files.missing)}")
    if source.shared_pictures:
        return
    known = {path for benchmark in found.values() for path in benchmark.load_image.paths.values() if path is not None}
    index = ImageFolders([])
    for folder in sorted({path.parent for path in known}):
        extra = sorted(path.name for path in index.listing(folder).values() if path not in known)
        if extra:
            report.warnings.append(
                f"{len(extra)} pictures in {folder} belong to no list that is there (first {', '.join(extra[:5])})."
            )


def _check_damage(paths: Sequence[Path], deep: bool, num_workers: int, report: DataReport) -> None:
    with ThreadPoolExecutor(num_workers) as pool:
        faults = list(
            tqdm(
                pool.map(lambda path: image_fault(path, deep=deep), paths),
                total=len(paths),
                desc="Decoding pictures" if deep else "Checking pictures",
                disable=len(paths) < 2000,
                leave=False,
            )
        )
    damaged = [fault for fault in faults if fault]
    if damaged:
        more = f" And {len(damaged) - 5} more." if len(damaged) > 5 else ""
        report.errors.append(f"{len(damaged)} of {len(paths)} pictures are damaged. {' '.join(damaged[:5])}{more}")
