"""Trees of the five benchmarks, the real annotations where they are at hand, and features out of thin air."""

import dataclasses
import json
import sys
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rtd_hf.evaluator import CIREvaluator
from rtd_hf.features import GalleryFeatures
from rtd_hf.projections import ImageToWordProjection
from rtd_hf.texts import join_captions


ROOT = Path(__file__).resolve().parents[1]
ANNOTATIONS = ROOT.parent / "shared" / "annotations"
FIVE = ("cirr", "fashioniq", "circo", "genecis", "coco")
COCO_METRICS = ("recall@1", "recall@5", "recall@10", "recall_reverse@1", "recall_reverse@10")


def real(name: str) -> Path:
    """A folder of the real annotation files; skips the test where they are not at hand."""
    if not (ANNOTATIONS / name).is_dir():
        pytest.skip(f"the annotation files are not in {ANNOTATIONS}")
    return ANNOTATIONS / name


def make_trees(folder: Path) -> Path:
    """The made-up trees of all five, as `examples/make_benchmark_layouts.py` writes them."""
    for name, lay_out in layouts().items():
        lay_out(folder / name, None, 30)
    return folder


def layouts() -> dict:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from utils.layouts import LAYOUTS
    finally:
        sys.path.remove(str(ROOT / "examples"))
    return LAYOUTS


def load_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def save_json(path: Path, content) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@cache
def feature(name: str, dim: int = 16) -> np.ndarray:
    """A direction that the name alone decides, float64, of length 1."""
    vector = np.random.default_rng(zlib.crc32(name.encode())).normal(size=dim)
    return vector / np.linalg.norm(vector)


def query_vector(reference: str, texts: tuple[str, ...]) -> np.ndarray:
    """The query of [`FakeRetriever`], in float64 and before its last normalisation."""
    return feature(reference) + feature("|".join(texts))


def named(benchmark):
    """The same benchmark with the names of its images as images."""
    return dataclasses.replace(benchmark, load_image=str)


def fakely(benchmark, **options) -> CIREvaluator:
    """Scores a benchmark on features out of thin air."""
    return CIREvaluator(named(benchmark), FakeRetriever(), **options)


def change_records(path: Path, change) -> None:
    records = load_json(path)
    change(records)
    save_json(path, records)


class FakeRetriever:
    """Stands in for [`CIREncoder`]: `load_image` gives names, and features come out of those."""

    def __init__(self, image_embeds=None):
        self.projection, self.image_embeds = ImageToWordProjection.build("lincir", 4), image_embeds

    def embed_gallery(self, ids, load, **options):
        if self.image_embeds is not None:
            return GalleryFeatures(self.image_embeds(len(ids)), {})
        return GalleryFeatures(torch.tensor(np.stack([3 * feature(load(i)) for i in ids]), dtype=torch.float32), {})

    def compose(self, image_embeds, texts, *, benchmark):
        return F.normalize(image_embeds, dim=-1), texts

    def encode_prompts(self, prompts, *, text_encoder=None):
        embeds, texts = prompts
        own = np.stack([feature("|".join(entry)) for entry in texts])
        return F.normalize(embeds + torch.tensor(own, dtype=torch.float32), dim=-1)

    def encode_texts(self, texts, *, text_encoder=None):
        joined = [text if isinstance(text, str) else join_captions(text, "both")[0] for text in texts]
        return torch.tensor(np.stack([feature(text) for text in joined]), dtype=torch.float32)
