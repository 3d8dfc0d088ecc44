"""What a set of triplets is like: how much of what, how varied, how consistent, and how far its targets move."""

import difflib
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .columns import TRIPLET_COLUMNS
from .filters import TripletFilter
from .rules.english import singular
from .rules.vocabulary import Encoder


_MOST_WORDS = 1_000_000  # different ones that are counted
_FUNCTION_WORDS = frozenset(
    "a an the of in on at to with and or is are it that this from for by as not no any instead one some there".split()
)
_WORST = 8
_BINS = 20
# Measure -> whether a high value is the bad one.
MEASURES = {
    "reference_target": None,
    "target_concatenation": False,
    "target_conditioning": False,
    "moved_as_told": False,
}


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return re.findall(r"[\w'’-]+", text.lower())


def changed_words(reference: str, target: str) -> tuple[str, str]:
    """The words that stand in the reference alone and in the target alone, in their order."""
    sides = [words_of(text) for text in (reference, target)]
    changes = difflib.SequenceMatcher(None, *sides, autojunk=False).get_opcodes()
    changes = [change for change in changes if change[0] != "equal"]
    gone = " ".join(word for _, start, end, _, _ in changes for word in sides[0][start:end])
    return gone, " ".join(word for _, _, _, start, end in changes for word in sides[1][start:end])


def consistency(row: Mapping[str, Any]) -> dict[str, bool]:
    """
    Whether texts and edit of one triplet agree. Words count in their singular, function words do not.

    Args:
        row (`Mapping[str, Any]`):
            With the three texts; `source` and `target` are what the edit takes and brings, and are found by comparing
            reference and target where the row has none.

    Returns:
        `dict[str, bool]`: `names_source` and `names_target`: the conditioning text says a word of what goes or comes;
        `source_in_reference`, `target_in_target`; `source_gone`: the target has lost a word of the source. What does
        not apply is left out.
    """
    texts = [row.get(column) or "" for column in TRIPLET_COLUMNS]
    source, target = row.get("source"), row.get("target")
    if source is None or target is None:
        source, target = changed_words(texts[0], texts[2])
    reference, conditioning, wanted = (_stems(text) for text in texts)
    source, target = _stems(source).keys(), _stems(target).keys()
    found = {}
    if source:
        found["names_source"] = bool(source & conditioning.keys())
        # What is denied need not have been there; "a dog" is one dog; a style may be worded otherwise.
        found["source_in_reference"] = source <= reference.keys() or row.get("rule") in ("count", "style", "negation")
        # A word may stand in the caption twice and go once.
        lost = [word for word in source - target if wanted[word] < reference[word]]
        found["source_gone"] = bool(lost) or not source - target or row.get("rule") in ("negation", "count", "style")
    if target:
        found["names_target"] = bool(target & conditioning.keys())
        found["target_in_target"] = target <= wanted.keys() or row.get("rule") in ("count", "style", "negation")
    return found


def _stems(text: str) -> Counter[str]:
    return Counter(word for word in map(singular, words_of(text)) if word not in _FUNCTION_WORDS)


def measure_triplets(
    rows: Iterable[Mapping[str, Any]],
    *,
    encode: Encoder | None = None,
    encoded: int = 2000,
    sample: int = 40,
    seed: int = 0,
    triplet_filter: TripletFilter | None = None,
) -> dict[str, Any]:
    """
    Measures a set of triplets, in one pass over it.

    Args:
        rows (`Iterable[Mapping]`): Triplets with our column names; `rule`, `source`, `target` are used where present.
        encode (`Callable[[Sequence[str]], np.ndarray]`, *optional*): The frozen text encoder, `(n,)` to `(n, D)`.
        encoded (`int`, *optional*, defaults to 2000): Triplets drawn at random for it.
        sample (`int`, *optional*, defaults to 40): Triplets drawn at random to be read.
        seed (`int`, *optional*, defaults to 0): Decides which.
        triplet_filter ([`TripletFilter`], *optional*): Says what is wrong with rows; its default options by default.

    Returns:
        `dict`: of numbers, texts, lists and dicts alone, for JSON. Lengths are in words, shares in [0, 1],
        similarities cosines: `reference_target`; `target_concatenation`, of the target, and reference and
        conditioning text written behind each other; `target_conditioning`; `moved_as_told`, of the difference
        target - reference and the conditioning text.

    Raises:
        ValueError: there are no rows.
    """
    judge = triplet_filter or TripletFilter()
    rng = random.Random(f"quality {seed}")
    counted = _Counted()
    faults: Counter[str] = Counter()
    drawn: list[tuple[int, dict]] = []
    for number, row in enumerate(rows):
        reason = judge.reason(row)
        faults.update([reason] if reason else [])
        if any(not isinstance(row.get(column), str) for column in TRIPLET_COLUMNS):
            counted.unreadable += 1
            continue
        counted.add(row)
        place = len(drawn) if len(drawn) < max(encoded, sample) else rng.randint(0, number)
        if place < len(drawn):
            drawn[place] = (number, dict(row))
        elif place == len(drawn) < max(encoded, sample):
            drawn.append((number, dict(row)))
    if not counted.rows and not counted.unreadable:
        raise ValueError("There are no triplets to measure.")
    report = counted.report()
    report["faults"] = dict(faults.most_common())
    report["contaminated"] = dict(judge.contaminated.most_common())
    picked = rng.sample(drawn, min(sample, len(drawn)))
    report["sample"] = [_shown(number, row) for number, row in picked]
    report["fault_examples"] = {reason: _shown(None, row) for reason, row in judge.examples.items()}
    report["worst"] = _inconsistent(drawn)
    if encode is not None and drawn:
        _add_similarities(report, drawn, encode)
    return report


def _shown(number: int | None, row: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    names = (*TRIPLET_COLUMNS, "rule", "source", "target")
    return {"row": number, **{name: row.get(name) for name in names if name in row}, **more}


class _Counted:
    """What is summed over the rows."""

    def __init__(self):
        self.rows = self.unreadable = 0
        self.rules: Counter[str] = Counter()
        self.openings: Counter[str] = Counter()
        self.lengths = {column: Counter() for column in TRIPLET_COLUMNS}
        self.words = {column: Counter() for column in TRIPLET_COLUMNS}
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.distinct = {column: set() for column in TRIPLET_COLUMNS}
        self.checks: dict[str, list[int]] = {}
        self.by_rule: dict[str, list[int]] = {}
        self.shared: Counter[int] = Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows += 1
        rule = str(row.get("rule") or "unknown")
        self.rules[rule] += 1
        for column in TRIPLET_COLUMNS:
            words = words_of(row[column])
            self.lengths[column][len(words)] += 1
            if len(self.words[column]) < _MOST_WORDS:
                self.words[column].update(words)
            self.distinct[column].add(hash(row[column].lower()))
            if column == "conditioning_caption":
                self.openings[words[0] if words else ""] += 1
                self.pairs.update(zip(words, words[1:], strict=False))
        found = consistency(row)
        for name, holds in found.items():
            sums = self.checks.setdefault(name, [0, 0])
            sums[0] += holds
            sums[1] += 1
        sums = self.by_rule.setdefault(rule, [0, 0])
        sums[0] += all(holds for name, holds in found.items() if not name.startswith("names"))
        sums[1] += 1
        one, other = (set(words_of(row[column])) for column in ("reference_caption", "target_caption"))
        self.shared[round(_BINS * len(one & other) / max(1, len(one | other)))] += 1

    def report(self) -> dict[str, Any]:
        total = max(1, self.rows)
        words = sum(self.words["conditioning_caption"].values())
        return {
            "rows": self.rows + self.unreadable,
            "rules": dict(self.rules.most_common()),
            "openings": dict(self.openings.most_common(20)),
            "lengths": {column: _spread(lengths) for column, lengths in self.lengths.items()},
            "vocabulary": {column: len(counts) for column, counts in self.words.items()},
            "frequent_words": {
                column: [[word, number] for word, number in counts.most_common(200) if word not in _FUNCTION_WORDS][
                    :25
                ]
                for column, counts in self.words.items()
            },
            "distinct": {column: round(len(found) / total, 4) for column, found in self.distinct.items()},
            "distinct_word_pairs": round(len(self.pairs) / max(1, words), 4),
            "shares": {name: round(good / number, 4) for name, (good, number) in self.checks.items()},
            "consistent": round(sum(good for good, _ in self.by_rule.values()) / total, 4),
            "consistent_by_rule": {rule: round(good / number, 4) for rule, (good, number) in self.by_rule.items()},
            "shared_words": [[place / _BINS, self.shared[place]] for place in range(_BINS + 1)],
        }


def _spread(lengths: Counter[int]) -> dict[str, Any]:
    """Mean, quantiles and histogram of lengths."""
    values = np.array(sorted(lengths), dtype=np.int64)
    numbers = np.array([lengths[value] for value in values], dtype=np.int64)
    if not len(values):
        return {"mean": 0.0, "median": 0, "p90": 0, "max": 0, "histogram": []}
    sums = np.cumsum(numbers)
    at = [int(values[np.searchsorted(sums, share * sums[-1])]) for share in (0.5, 0.9)]
    mean = round(float((values * numbers).sum() / sums[-1]), 2)
    histogram = [[int(value), int(number)] for value, number in zip(values, numbers, strict=True)]
    return {"mean": mean, "median": at[0], "p90": at[1], "max": int(values[-1]), "histogram": histogram}


def _inconsistent(drawn: Sequence[tuple[int, dict]]) -> dict[str, list[dict]]:
    """Among the drawn rows the first ones that fail each check."""
    worst: dict[str, list[dict]] = {}
    for number, row in drawn:
        for name, holds in consistency(row).items():
            if not holds and not name.startswith("names") and len(worst.setdefault(name, [])) < _WORST:
                worst[name].append(_shown(number, row))
    return worst


def similarities(rows: Sequence[Mapping[str, Any]], encode: Encoder) -> dict[str, np.ndarray]:
    """
    The cosines that [`measure_triplets`] describes.

    Args:
        rows (`Sequence[Mapping]`): n triplets.
        encode (`Callable[[Sequence[str]], np.ndarray]`): The frozen text encoder, `(n,)` to `(n, D)`.

    Returns:
        `dict[str, np.ndarray]`: for each of `MEASURES` an array of shape `(n,)`, float32.
    """
    reference, conditioning, target = (_unit(encode([row[column] for row in rows])) for column in TRIPLET_COLUMNS)
    both = [f"{row['reference_caption']} {row['conditioning_caption']}" for row in rows]
    concatenated = _unit(encode(both))
    return {
        "reference_target": (reference * target).sum(1),
        "target_concatenation": (target * concatenated).sum(1),
        "target_conditioning": (target * conditioning).sum(1),
        "moved_as_told": (_unit(target - reference) * conditioning).sum(1),
    }


def _unit(embeddings: np.ndarray) -> np.ndarray:
    embeddings = np.asarray(embeddings, dtype=np.float32)
    if not np.isfinite(embeddings).all():
        raise ValueError("The text encoder returned embeddings that are not finite. Check its weights.")
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def _add_similarities(report: dict[str, Any], drawn: Sequence[tuple[int, dict]], encode: Encoder) -> None:
    found = similarities([row for _, row in drawn], encode)
    report["similarity"] = {}
    for name, values in found.items():
        counts, edges = np.histogram(values, bins=_BINS, range=(-0.2, 1.0))
        spread = {f"p{share}": round(float(np.percentile(values, share)), 4) for share in (5, 50, 95)}
        histogram = [[round(float(edge), 2), int(count)] for edge, count in zip(edges, counts, strict=False)]
        report["similarity"][name] = {"mean": round(float(values.mean()), 4), **spread, "histogram": histogram}
        order = np.argsort(values, kind="stable")
        ends = (
            {"low": order[:_WORST], "high": order[::-1][:_WORST]}
            if MEASURES[name] is None
            else {"low": order[:_WORST]}
        )
        for end, places in ends.items():
            report["worst"][f"{name}, {end}"] = [
                _shown(*drawn[place], value=round(float(values[place]), 3)) for place in places
            ]
    report["encoded"] = len(drawn)
