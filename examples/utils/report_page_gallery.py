"""Queries whose target rose or fell the most, with the pictures found before and after."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


THUMBNAIL = 96
SHOWN = 5


@dataclass(frozen=True)
class Gallery:
    """
    Wins and losses of a run on a benchmark.

    Args:
        title (`str`): The benchmark with its size.
        told (`str`): How many targets rose, fell and stayed.
        wins, losses (`list[dict]`): `reference`, `text`, `before`, `after` (ranks), `found_before`, `found_after`:
            lists of `(data URI, whether it is a target)`.
    """

    title: str
    told: str
    wins: list[dict[str, Any]]
    losses: list[dict[str, Any]]


def galleries_of(run, specs: list, *, number: int, base_model: str | None = None, device: str = "cpu"):
    """
    The galleries of a run, ranked anew with its encoder.

    Args:
        run (`Run`): The run.
        specs (`list[BenchmarkSpec]`): Benchmarks; none: the first of the offline world that the run was measured on.
        number (`int`): Wins and losses each.
        base_model (`str`, *optional*): Folder or Hub id of its CLIP; by default what the run names.
        device (`str`, *optional*, defaults to `"cpu"`): Where the models run.

    Returns:
        `tuple[list[Gallery], str]`: The galleries, and where there are none, why.
    """
    from rtd_hf import BENCHMARKS, AutoTextModelForRTD, load_cir_encoder
    from utils.specs import BenchmarkSpec

    if not any((run.folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return [], "its folder holds no weights"
    if not specs:
        named = run.recipe.get("benchmarks")
        known = [name for name in named if name in BENCHMARKS] if isinstance(named, list) else []
        world = [name for name in known if name.startswith("shapes")]
        if not world or not (_is_of_the_world(run.folder) or base_model):
            return [], "it was not measured on the offline world; name benchmarks with `--benchmark`"
        specs = [BenchmarkSpec(world[0])]
    options = {"base_model": base_model, "device": device}
    retriever = load_cir_encoder(run.folder, original=True, **options)
    after = AutoTextModelForRTD.from_pretrained(run.folder).eval().to(device)
    return [wins_and_losses(spec, retriever, after, number=number) for spec in specs], ""


def _is_of_the_world(folder: Path) -> bool:
    from rtd_hf.parsing import read_object

    path = folder / "projection" / "config.json"
    return path.is_file() and read_object(path).get("base_model") == "shapes"


def wins_and_losses(spec, retriever, after, *, number: int) -> Gallery:
    """
    Ranks a benchmark before and after.

    Args:
        spec (`BenchmarkSpec`): The benchmark.
        retriever (`CIREncoder`): With the encoder before the training.
        after: The encoder after it.
        number (`int`): Queries of each kind.
    """
    from rtd_hf import CIREvaluator

    evaluator = CIREvaluator(spec.load(), retriever)
    ranks = [evaluator.ranks(evaluator.encode(encoder)) for encoder in (None, after)]
    change = (ranks[0] / ranks[1]).log2()  # doublings, since from 2 to 1 is more than from 200 to 100
    order = change.argsort(stable=True).tolist()
    lost = [row for row in order if change[row] < 0][:number]
    won = [row for row in reversed(order) if change[row] > 0][:number]
    benchmark = evaluator.benchmark
    rows = won + lost
    depth = min(SHOWN, _smallest(benchmark))
    found = [evaluator.search(depth, text_encoder=encoder, rows=rows) if rows else [] for encoder in (None, after)]
    pictures: dict[str, str] = {}

    def show(image_id: str) -> str:
        if image_id not in pictures:
            pictures[image_id] = data_uri(benchmark.load_image(image_id))
        return pictures[image_id]

    lines = []
    for place, row in enumerate(rows):
        query = benchmark.queries[row]
        sides = [[(show(one), one in query.targets) for one in side[place]] for side in found]
        line: Mapping[str, Any] = {
            "reference": show(query.reference),
            "text": " / ".join(query.texts),
            "before": int(ranks[0][row]),
            "after": int(ranks[1][row]),
            "found_before": sides[0],
            "found_after": sides[1],
        }
        lines.append(dict(line))
    risen, fallen = int((change > 0).sum()), int((change < 0).sum())
    total = len(benchmark.queries)
    told = f"Of {total:,} targets {risen:,} rose, {fallen:,} fell and {total - risen - fallen:,} kept their rank."
    title = f"{spec.label}: {total:,} queries, {len(benchmark.gallery):,} pictures"
    return Gallery(title, told, lines[: len(won)], lines[len(won) :])


def _smallest(benchmark) -> int:
    """As many pictures as each query can find."""
    pools = [benchmark.gallery_of(group) for group in benchmark.groups]
    if benchmark.search_candidates:
        pools = [query.candidates for query in benchmark.queries]
    return max(1, min(map(len, pools)) - benchmark.exclude_reference)


def data_uri(image) -> str:
    """A picture, made small, as a URI that holds it."""
    image = image.convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "PNG" if max(image.size) <= 64 else "JPEG", optimize=True)
    kind = "png" if max(image.size) <= 64 else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
