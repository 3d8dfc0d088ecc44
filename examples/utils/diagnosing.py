"""The diagnoses of an encoder: before the training and after it, as figures to write down and as tables to read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


DIAGNOSES = ("discrepancy", "alignment", "gap", "triplets", "perturbations", "layers")
IN_TRAINING = ("discrepancy", "perturbations", "alignment", "triplets", "layers")
_COSINES = {
    "query_to_caption": "composed query and target caption",
    "query_to_caption_margin": "  more than other captions",
    "query_to_image": "composed query and target picture",
    "query_to_image_margin": "  more than other pictures",
    "query_to_reference": "composed query and reference picture",
    "caption_to_image": "target caption and target picture (frozen)",
}


def check_diagnoses(names: Sequence[str], known: Sequence[str], option: str) -> None:
    """Refuses names that are no diagnosis.

    Raises:
        ValueError: If one is none, or stands twice.
    """
    wrong = [name for name in names if name not in known]
    if wrong or len({*names}) < len(names):
        raise ValueError(f"`{option}` must be of {', '.join(known)}, each once, got {' '.join(names)}.")


def both(measure: Callable, before, after, *, seed: int = 0) -> dict[str, Any]:
    """A diagnosis of two encoders: `before`, `after`, their `change` with its interval, and the `series` of both.

    Args:
        measure (`Callable`): `(text_encoder) -> Diagnosis`.
        before: The encoder before the training.
        after: The encoder after it.
        seed (`int`, *optional*, defaults to 0): Of the intervals.
    """
    first, then = measure(before), measure(after)
    return {
        "before": dict(first.metrics),
        "after": dict(then.metrics),
        "change": then.change_from(first, seed=seed),
        "series": {"before": dict(first.series), "after": dict(then.series)},
    }


def both_results(evaluate: Callable, before, after, *, seed: int = 0) -> dict[str, Any]:
    """The same of what gives a `CIRResult`."""
    first, then = evaluate(before), evaluate(after)
    change = {
        name: {"change": gain["gain"], "low": gain["low"], "high": gain["high"]}
        for name, gain in then.gain_over(first, seed=seed).items()
    }
    return {"before": first.metrics, "after": then.metrics, "change": change, "protocol": dict(then.protocol)}


class RunDiagnoses:
    """
    The diagnoses of a training: measured before it, at each evaluation, and after it.

    Args:
        names (`Sequence[str]`): Of `IN_TRAINING`; none at all measures nothing.
        evaluators (`Sequence[CIREvaluator]`): Over the benchmarks that are measured before and after.
        captions (`Sequence[str]`): What `alignment` is measured on, as `--watch_alignment` takes it.
        retriever (`CIREncoder`): Its text encoder not trained yet.
        triplets (`datasets.Dataset`): Those of the training.

    Raises:
        ValueError: As [`~RunDiagnoses.check`], or a benchmark lacks what is measured.
    """

    def __init__(self, names: Sequence[str], evaluators: Sequence, captions: Sequence[str], retriever, triplets):
        self.check(names, evaluators, captions)
        from .specs import alignment_of

        self.names = names
        self._measures = [(name, made) for each in evaluators for name, made in self._of(each)]
        if "alignment" in names:
            self._measures += [("alignment", alignment_of(text, retriever)) for text in captions]
        self._of_encoder = list(self._without_pictures(retriever, triplets))
        self._measures += self._of_encoder
        self._before = self._measured(retriever.text_encoder)

    @staticmethod
    def check(names: Sequence[str], benchmarks: Sequence, captions: Sequence[str]) -> None:
        """Refuses what cannot be measured, before any work is done.

        Raises:
            ValueError: If a name is unknown, or what it is measured on is missing.
        """
        check_diagnoses(names, IN_TRAINING, "--diagnostics")
        if {"discrepancy", "perturbations"} & {*names} and not benchmarks:
            raise ValueError("`--diagnostics` discrepancy and perturbations need `--benchmarks` to be measured on.")
        if "alignment" in names and not captions:
            raise ValueError("`--diagnostics alignment` needs captions: give `--watch_alignment` or `--preservation`.")

    def _of(self, evaluator) -> list[tuple[str, Any]]:
        from rtd_hf import QueryPerturbations, TaskDiscrepancy

        kinds = {"discrepancy": TaskDiscrepancy, "perturbations": QueryPerturbations}
        return [(name, kind(evaluator)) for name, kind in kinds.items() if name in self.names]

    def _without_pictures(self, retriever, triplets) -> Iterator[tuple[str, Any]]:
        from rtd_hf import LayerChanges, TripletQuality

        if not {"triplets", "layers"} & {*self.names}:
            return
        quality = TripletQuality(triplets, retriever)
        if "triplets" in self.names:
            yield "triplets", quality
        if "layers" in self.names:
            texts = [row["target_caption"] for row in quality.rows]
            yield "layers", LayerChanges(retriever.text_encoder, texts=texts, tokenizer=retriever.tokenizer)

    def watched(self, *evaluators) -> list[Callable]:
        """Evaluators for the trainer, on benchmarks of its own; the alignment is watched by `--watch_alignment`.

        The recalls after each change of texts are left out, which would be as many curves beside the true one.
        """

        def quietly(made) -> Callable:
            return lambda encoder: {key: value for key, value in made(encoder).items() if "_recall@" not in key}

        made = [one for evaluator in evaluators for _, one in self._of(evaluator)]
        return [quietly(one) for one in made] + [one for _, one in self._of_encoder]

    def _measured(self, encoder) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for name, made in self._measures:
            found.setdefault(name, {}).update(made(encoder))
        return found

    def compared(self, encoder) -> dict[str, dict]:
        """`before` and `after`, each by diagnosis."""
        return {"before": self._before, "after": self._measured(encoder)}


class Shown(NamedTuple):
    """A diagnosis as a reader sees it: what was measured, and nothing beyond it.

    Args:
        title (`str`): Of the table.
        rows (`list[list[str]]`): The table, its heading first.
        told (`list[str]`): The same in sentences.
    """

    title: str
    rows: list[list[str]]
    told: list[str]

    def lines(self) -> str:
        """For the screen."""
        from .tables import aligned

        return "\n".join(["", self.title, "", aligned(self.rows), "", *self.told])


def shown(found: Mapping[str, Any]) -> list[Shown]:
    """All that `diagnostics.json` holds, in the order of their plots; of triplets there is a page of their own."""
    parts = [shown_discrepancy(each["name"], each, label) for label, each in found.get("discrepancy", {}).items()]
    parts += [shown_alignment(name, each) for name, each in found.get("alignment", {}).items()]
    parts += [shown_gap(name, each) for name, each in found.get("gap", {}).items()]
    parts += [shown_perturbations(each["name"], each, label) for label, each in found.get("perturbations", {}).items()]
    return parts + ([shown_layers(found["layers"])] if "layers" in found else [])


def change_text(change: Mapping[str, float], *, digits: int = 3) -> str:
    """`+0.20 [+0.17, +0.23]`."""
    return f"{change['change']:+.{digits}f} [{change['low']:+.{digits}f}, {change['high']:+.{digits}f}]"


def _verdict(change: Mapping[str, float], up: str, down: str, *, digits: int = 3, what: str = "") -> str:
    """A change in words; one whose interval holds 0 is called none that was shown."""
    text = f"by {abs(change['change']):.{digits}f} (95 % interval {change['low']:+.{digits}f} to "
    text += f"{change['high']:+.{digits}f})"
    if change["low"] <= 0 <= change["high"]:
        return f"no change of {what} is shown: {change_text(change, digits=digits)}"
    return f"{what} {up if change['change'] > 0 else down} {text}"


def shown_discrepancy(name: str, found: Mapping[str, Any], label: str = "") -> Shown:
    """The table of the task discrepancy on one benchmark, and what it says."""
    rows = [["mean cosine of", "before", "after", "change [95 % interval]"]]
    for key, words in _COSINES.items():
        metric = f"{name}_{key}"
        cells = [f"{found[side][metric]:.3f}" for side in ("before", "after")]
        rows.append([words, *cells, change_text(found["change"][metric])])
    told = [
        _verdict(found["change"][f"{name}_{key}_margin"], "rises", "falls", what=f"the margin to the target {what}")
        for key, what in (("query_to_caption", "caption"), ("query_to_image", "picture"))
    ]
    return Shown(f"Task discrepancy on {label or name}", rows, [*map(_sentence, told)])


def shown_alignment(name: str, found: Mapping[str, Any]) -> Shown:
    """The table of captions and pictures, and what it says."""
    rows = [["captions and pictures", "before", "after", "change [95 % interval]"]]
    for metric in found["after"]:
        if metric.endswith("_change"):
            continue
        digits = 1 if "recall" in metric else 3
        cells = [f"{found[side][metric]:.{digits}f}" for side in ("before", "after")]
        rows.append([_plain(metric, name), *cells, change_text(found["change"][metric], digits=digits)])
    aligned_change = found["change"][f"{name}_image_alignment"]
    recall = found["change"][f"{name}_text_to_image_recall@1"]
    told = [
        _verdict(aligned_change, "rises", "falls", what="the cosine of captions and their pictures"),
        _verdict(recall, "rises", "falls", digits=1, what="plain retrieval (R@1 in points)"),
    ]
    return Shown(f"Anchor alignment on {name}", rows, [*map(_sentence, told)])


def shown_gap(name: str, found: Mapping[str, Any]) -> Shown:
    """The table of noise kinds and scales, and what it says."""
    rows = [["noise", "scale", "ROC area", "Frechet", "pair cosine", "norm ratio"]]
    for row in found["series"]["rows"]:
        cells = [row[key] for key in ("separability", "frechet", "pair_cosine", "norm_ratio")]
        rows.append([row["kind"], f"{row['scale']:g}", *(f"{value:.3f}" for value in cells)])
    metrics, told = found["metrics"], []
    for kind in dict.fromkeys(row["kind"] for row in found["series"]["rows"] if row["kind"] != "none"):
        largest = max(row["scale"] for row in found["series"]["rows"] if row["kind"] == kind)
        best, least = metrics[f"best_{kind}_frechet"], metrics["without_frechet"]
        scale = metrics[f"best_scale_{kind}"]
        edge = ", the largest that was tried" if scale == largest else ""
        near = f"is least at {scale:g}{edge}, {best:.3f} against {least:.3f} without noise"
        if best >= least:
            near = f"is at no scale less than without noise ({least:.3f})"
        scale = metrics[f"hardest_scale_{kind}"]
        edge = ", the largest that was tried" if scale == largest else ""
        told.append(
            f"with {kind} noise the Frechet distance of the words of pictures and of captions {near}; a linear "
            f"classifier tells them apart worst at {scale:g}{edge}: ROC area "
            f"{metrics[f'hardest_{kind}_separability']:.2f}, without noise {metrics['without_separability']:.2f}"
        )
    title = f"Modality gap of the projection on {name}, {found['series']['pictures']} pictures"
    return Shown(title, rows, [*map(_sentence, told)])


def shown_perturbations(name: str, found: Mapping[str, Any], label: str = "") -> Shown:
    """The table of changed texts, and what it says."""

    k = found["series"]["after"]["k"]
    rows = [["text", f"R@{k} before", f"R@{k} after", "lost before", "lost after [95 % interval]", "example"]]
    whole = [f"{found[side][f'{name}_unchanged_recall@{k}']:.1f}" for side in ("before", "after")]
    rows.append(["unchanged", *whole, "", "", ""])
    sides = [found["series"][side]["rows"] for side in ("before", "after")]
    for old, new in zip(*sides, strict=True):
        lost = f"{new['loss']:.1f} [{new['low']:.1f}, {new['high']:.1f}]"
        example = new["examples"][0][1]
        cells = [f"{row[f'recall@{k}']:.1f}" for row in (old, new)]
        rows.append(
            [new["change"], *cells, f"{old['loss']:.1f}", lost, example if len(example) < 33 else example[:29] + "..."]
        )
    told = []
    for row in sides[1]:
        if row["change"] in ("dropped", "shuffled", "negated", "swapped"):
            lost = f"{row['loss']:.1f} points, 95 % interval {row['low']:.1f} to {row['high']:.1f}"
            seen = "no loss is shown" if row["low"] <= 0 <= row["high"] else "the results change"
            told.append(f"after the training, with {row['what']}, {seen} ({lost})")
    title = f"Changed texts on {label or name}, {found['series']['after']['queries']} queries"
    return Shown(title, rows, [*map(_sentence, told)])


def shown_layers(found: Mapping[str, Any]) -> Shown:
    """The table of layers, and what it says."""
    series, kinds = found["series"], ["embeddings", "attention", "mlp", "norms", "projection", "other"]
    changes = {(row["layer"], row["kind"]): row["change"] for row in series["weights"]}
    kinds = [kind for kind in kinds if any(at == kind for _, at in changes)]
    states = {row["layer"]: row for row in series.get("states", [])}
    rows = [["layer", *kinds, "CKA of states", "cosine"]]
    for layer in range(-1, series["layers"] + 1):
        cells = [f"{changes[layer, kind]:.4f}" if (layer, kind) in changes else "" for kind in kinds]
        state = states.get(layer)
        more = [f"{state[key]:.3f}" if state else "" for key in ("cka", "cosine")]
        rows.append([_layer_name(layer, series["layers"]), *cells, *more])
    most = int(found["metrics"]["most_changed_layer"])
    told = (
        f"all weights together moved by {100 * found['metrics']['relative_change']:.2f} % of their norm, most of all "
        f"{_layer_name(most, series['layers'])}"
    )
    return Shown("How far the weights went (share of their norm)", rows, [_sentence(told)])


def _layer_name(layer: int, layers: int) -> str:
    return "embeddings" if layer < 0 else "after the layers" if layer == layers else f"layer {layer}"


def _plain(metric: str, name: str) -> str:
    short = metric.removeprefix(f"{name}_").replace("text_to_image_recall@", "caption to picture, R@")
    known = {
        "image_alignment": "cosine of caption and picture",
        "caption_similarity": "cosine of caption and its frozen self",
    }
    return known.get(short, short)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
