"""What a set of triplets is like: how much of what, how varied, how consistent, and how far its targets move."""

import difflib
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from .columns import TRIPLET_COLUMNS
from .filters import TripletFilter
from .rules.english import singular
from .rules.vocabulary import Encoder


_MOST_WORDS = 1_000_000  # different ones that are counted
_FUNCTION_WORDS = frozenset(
    "a an the of in on at to with and or is are was were be has have it that this from for by as not no any "
    "instead one some there".split()
)
_WORST = 8
_OFTEN = 5  # a word that was seen less often is not learnt
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
        `says_edit`: of one of them; `source_in_reference`, `target_in_target`; `source_gone`: the target has lost a
        word of the source. What does not apply is left out.
    """
    texts = [row.get(column) or "" for column in TRIPLET_COLUMNS]
    source, target = row.get("source"), row.get("target")
    if source is None or target is None:
        source, target = changed_words(texts[0], texts[2])
    reference, conditioning, wanted = (_stems(text) for text in texts)
    source, target = _stems(source).keys(), _stems(target).keys()
    rule, found = row.get("rule"), {}

    def held(words: Set[str], text: Counter[str]) -> bool:
        # "one dog" is "a dog", and "a pencil sketch" may be "drawn in pencil".
        return bool(words & text.keys()) if rule in ("count", "style") else words <= text.keys()

    if source:
        found["names_source"] = bool(source & conditioning.keys())
        # What is denied need not have been there.
        found["source_in_reference"] = rule == "negation" or held(source, reference)
        # A word may stand in the caption twice and go once; what is denied is still named.
        lost = any(wanted[word] < reference[word] for word in source - target)
        found["source_gone"] = lost or not source - target or (rule == "negation" and held(source, wanted))
    if target:
        found["names_target"] = bool(target & conditioning.keys())
        # That it is a photo is not said of one.
        found["target_in_target"] = held(target, wanted) or (rule == "style" and "photo" in target)
    if source or target:
        found["says_edit"] = bool((source | target) & conditioning.keys())
    return found


def change_named(row: Mapping[str, Any]) -> float | None:
    """
    How much of what differs between reference and target the conditioning text says.

    Neither provenance nor an encoder is needed: a target that belongs to another caption, noise in a text and a
    conditioning text that asks for something else all lower it. Texts that name what comes alone, and paraphrases, do
    so too.

    Args:
        row (`Mapping[str, Any]`): With the three texts.

    Returns:
        `float`: of the words that are in one caption and not in the other, the share that stands in the conditioning
        text, in [0, 1]; words count as in [`consistency`]. `None` where there are no such words.
    """
    reference, conditioning, target = (_stems(row[column] or "") for column in TRIPLET_COLUMNS)
    changed = (reference - target).keys() | (target - reference).keys()
    return len(changed & conditioning.keys()) / len(changed) if changed else None


def _common_words(row: Mapping[str, Any]) -> float:
    """Share of the words of reference and target that stand in both."""
    one, other = (set(words_of(row[column])) for column in ("reference_caption", "target_caption"))
    return len(one & other) / max(1, len(one | other))


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
    queries: Sequence[str] = (),
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
        queries (`Sequence[str]`, *optional*):
            Conditioning texts as they will be searched with, for `query_words_known`: the share of their words that
            stand at least five times in the conditioning texts of the triplets.

    Returns:
        `dict`: of numbers, texts, lists and dicts alone, for JSON. `consistent` is the share of rows that pass every
        check of [`consistency`] but the two on which side is named, `change_named` the mean of [`change_named`],
        `common_words` that of the share of words in both captions, `words_once` the share of words that stand in a
        column only once, which typing errors and noise raise, `effective` the exponential of the entropy of rules
        and of first words: as many as are used equally often. Lengths are in words, shares in [0, 1],
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
    if queries:
        report["query_words_known"] = _known(queries, counted.words["conditioning_caption"])
    report["faults"] = dict(faults.most_common())
    report["contaminated"] = dict(judge.contaminated.most_common())
    picked = rng.sample(drawn, min(sample, len(drawn)))
    report["sample"] = [_shown(number, row) for number, row in picked]
    report["fault_examples"] = {reason: _shown(None, row) for reason, row in judge.examples.items()}
    report["worst"] = _inconsistent(drawn)
    if encode is not None and drawn:
        _add_similarities(report, drawn, encode)
    return report


def _known(queries: Sequence[str], counts: Counter[str]) -> float:
    words = [word for query in queries for word in words_of(query)]
    return round(sum(counts[word] >= _OFTEN for word in words) / max(1, len(words)), 4)


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
        self.common, self.named, self.changed = 0.0, 0.0, 0

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
        common, named = _common_words(row), change_named(row)
        self.shared[round(_BINS * common)] += 1
        self.common += common
        if named is not None:
            self.named += named
            self.changed += 1

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
            "words_once": {
                column: round(sum(number == 1 for number in counts.values()) / max(1, sum(counts.values())), 4)
                for column, counts in self.words.items()
            },
            "effective": {"rules": _effective(self.rules), "openings": _effective(self.openings)},
            "common_words": round(self.common / total, 4),
            "change_named": round(self.named / max(1, self.changed), 4),
            "shares": {name: round(good / number, 4) for name, (good, number) in self.checks.items()},
            "consistent": round(sum(good for good, _ in self.by_rule.values()) / total, 4),
            "consistent_by_rule": {rule: round(good / number, 4) for rule, (good, number) in self.by_rule.items()},
            "shared_words": [[place / _BINS, self.shared[place]] for place in range(_BINS + 1)],
        }


def _effective(counts: Counter[str]) -> float:
    """How many of them there are, weighed: the exponential of the entropy."""
    shares = np.array(list(counts.values()), dtype=np.float64) / max(1, sum(counts.values()))
    return round(float(np.exp(-(shares * np.log(shares)).sum())), 2) if len(shares) else 0.0


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
    """Among the drawn rows the first ones that fail each check, and those whose captions fit their edit least."""
    worst: dict[str, list[dict]] = {}
    for number, row in drawn:
        for name, holds in consistency(row).items():
            if not holds and not name.startswith("names") and len(worst.setdefault(name, [])) < _WORST:
                worst[name].append(_shown(number, row))
    for name, measure in (("change_named, low", change_named), ("common_words, low", _common_words)):
        values = [(measure(row), number, row) for number, row in drawn]
        values = sorted((one for one in values if one[0] is not None), key=lambda one: one[:2])
        if values:
            worst[name] = [_shown(number, row, value=round(value, 3)) for value, number, row in values[:_WORST]]
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
        # Rounding may put a cosine outside; nothing is left out of the plot.
        counts, edges = np.histogram(np.clip(values, -1, 1), bins=2 * _BINS, range=(-1.0, 1.0))
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
