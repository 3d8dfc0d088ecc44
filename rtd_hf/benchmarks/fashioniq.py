"""FashionIQ: clothes of three categories, two captions a query."""

import os
from collections.abc import Sequence
from pathlib import Path

from .base import BENCHMARKS, CIRBenchmark, CIRQuery
from .files import DataSource, Images, check_choice, check_choices, finish, picture_files, read_json, read_records


SPLITS = ("val", "test", "train")
CATEGORIES = ("dress", "shirt", "toptee")
GALLERIES = ("original", "val")
METRICS = ("recall@10", "recall@50")


def _per_category(*numbers: int) -> dict[str, int]:
    return dict(zip(CATEGORIES, numbers, strict=True))


SOURCE = DataSource(
    name="fashioniq",
    folders=("FashionIQ", "fashionIQ", "fashioniq", "fashion-iq", "fashion_iq", "fashionIQ_dataset"),
    markers=tuple(f"{folder}/cap.{name}.val.json" for folder in ("captions", "json") for name in CATEGORIES),
    layout="""
  captions/cap.{dress,shirt,toptee}.{val,test}.json         or json/cap.*
  image_splits/split.{dress,shirt,toptee}.{val,test}.json
  images/*.jpg (or .png, .jpeg)                             or {dress,shirt,toptee}/*
""",
    how_to_get=(
        "The annotations are on github.com/XiaoxiaoGuo/fashion-iq; the pictures are at the addresses of its "
        "image_url folder or in the copies that papers link to."
    ),
    counts={
        "val original": {
            "num_queries": _per_category(2017, 2038, 1961),
            "gallery_size": _per_category(3817, 6346, 5373),
        },
        "val val": {
            "num_queries": _per_category(2017, 2038, 1961),
            "gallery_size": _per_category(2628, 3089, 2902),
        },
        "train original": {
            "num_queries": _per_category(5985, 5988, 6027),
            "gallery_size": _per_category(11452, 19036, 16121),
        },
        "test original": {
            "num_queries": _per_category(2024, 2038, 2056),
            "gallery_size": _per_category(3818, 6346, 5374),
        },
    },
    parts={"val": {"split": "val"}},
    optional_parts={"train": {"split": "train"}, "test": {"split": "test"}},
    hashes={
        "cap.dress.val.json": "5e5117d45695df9c3ca91fac3e0bc49e6422ae9c8b3793f0ac9b3ab83adb7de9",
        "cap.shirt.val.json": "7b7ca3797b85dddfd83e74cdb4454cb63e3e7c09acef2590155efbacea6d7feb",
        "cap.toptee.val.json": "b4e09f428e6c255cc4b4ec46e77908305ab83075d82840c960be81af15cdc5eb",
        "split.dress.val.json": "21ff91d53c23859da91bfd49f3acc139b7f3a3dc944fc4e4a80194468cf14bab",
        "split.shirt.val.json": "b82effbf7352a6f828b38c45eb32e53d726bd4d6fd81d6290c81eeb2c68e3234",
        "split.toptee.val.json": "ee42b2505275dd7a19b11ddb88c9264aab2d77f4e59b075fb1c7c3095d02f412",
    },
)


@BENCHMARKS.register("fashioniq")
def load_fashioniq(
    root: str | os.PathLike | None = None,
    *,
    split: str = "val",
    categories: Sequence[str] | None = None,
    gallery: str = "original",
    skip_empty_captions: bool = False,
    exclude_reference: bool = False,
    metrics: Sequence[str] = METRICS,
    images: Images = "strict",
) -> CIRBenchmark:
    """FashionIQ (Wu et al., CVPR 2021, [arXiv:1905.12794](https://huggingface.co/papers/1905.12794)).

    Each category has its own gallery, in which the reference stays. Figures of all categories are the unweighted means
    over them; `fashioniq_average` is the mean of R@10 and R@50. How the two captions become one text is the
    projection's business: both orders averaged, or one.

    Args:
        root (`str` or `os.PathLike`): The folder, in any of the circulating trees.
        split (`str`, *optional*, defaults to `"val"`): `"val"`, `"train"`, or `"test"`, whose targets are not public.
        categories (`Sequence[str]`, *optional*): Some of `dress`, `shirt`, `toptee`; all by default.
        gallery (`str`, *optional*, defaults to `"original"`): The whole split list, as in zero-shot work, or `"val"`:
            only the references and targets of the queries, which is a third to a half smaller and gives higher
            figures.
        skip_empty_captions (`bool`, *optional*, defaults to `False`): Three `val` records have an empty first caption.
            The field joins it all the same (`"a photo of $ that and ..."`), and so does the default; `True` uses the
            other caption alone.
        exclude_reference (`bool`, *optional*, defaults to `False`): Take the reference out: a variant.
        metrics (`Sequence[str]`, *optional*): Other cut-offs.
        images (`str`, *optional*, defaults to `"strict"`): What to do about missing pictures, see [`finish`].

    Returns:
        [`CIRBenchmark`] named `fashioniq` with a group per category.

    Raises:
        FileNotFoundError: If annotations or pictures are missing; says what is there and what is expected.
        ValueError: If files are damaged or do not belong together, or an option is unknown.
    """
    check_choice("split", split, SPLITS)
    check_choice("gallery", gallery, GALLERIES)
    categories, metrics = check_choices("categories", categories, CATEGORIES), tuple(metrics)
    hidden = split == "test"
    if hidden and gallery == "val":
        raise ValueError("`gallery='val'` is made of the targets, which the split 'test' hides. Use 'original'.")
    queries: list[CIRQuery] = []
    galleries: dict[str, tuple[str, ...]] = {}
    for category in categories:
        captions = find_captions(root, category, split)
        own = _queries(captions, category, hidden, skip_empty_captions)
        galleries[category] = _original_gallery(captions, category, split)
        if gallery == "val":
            galleries[category] = _used(own)
        queries += own
    names = dict.fromkeys(name for ids in galleries.values() for name in ids)
    base = captions.parent.parent
    benchmark = CIRBenchmark(
        name="fashioniq",
        queries=queries,
        gallery=tuple(names),
        load_image=picture_files(
            {name: name for name in names}, [base / "images", *(base / category for category in CATEGORIES)]
        ),
        metrics=metrics,
        exclude_reference=exclude_reference,
        galleries=galleries,
        hidden_targets=hidden,
        averages={"average": METRICS} if set(METRICS) <= set(metrics) else {},
        protocol={"split": split, "gallery": gallery, "skip_empty_captions": skip_empty_captions},
    )
    return finish(benchmark, SOURCE, images=images, expected=SOURCE.counts.get(f"{split} {gallery}"))


def find_captions(root: str | os.PathLike | None, category: str, split: str) -> Path:
    """The caption file of a category; the folder `image_splits` beside its folder holds the gallery."""
    name = f"cap.{category}.{split}.json"
    return SOURCE.find(root, (f"captions/{name}", f"json/{name}"), f"The captions {name}")


def _queries(path: Path, category: str, hidden: bool, skip_empty: bool) -> list[CIRQuery]:
    kinds = {"candidate": str, "captions": list} if hidden else {"candidate": str, "captions": list, "target": str}
    queries = []
    for number, record in enumerate(read_records(path, kinds)):
        captions = record["captions"]
        if len(captions) != 2 or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"{path}: record {number} must have two `captions`, got {captions!r}. Get the file anew.")
        texts = tuple(caption for caption in captions if caption.strip(" .?,") or not skip_empty)
        targets = () if hidden else (record["target"],)
        queries.append(CIRQuery(f"{category}-{number:05d}", record["candidate"], texts, targets, group=category))
    return queries


def _original_gallery(captions: Path, category: str, split: str) -> tuple[str, ...]:
    path = captions.parent.parent / "image_splits" / f"split.{category}.{split}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}, which lists the gallery, is not there.\n{SOURCE.advice}")
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"{path} must be a list of names, got {str(listed)[:60]!r}. Get the file anew.")
    return tuple(listed)


def _used(queries: Sequence[CIRQuery]) -> tuple[str, ...]:
    """The references and targets of queries, each once."""
    return tuple(dict.fromkeys(name for query in queries for name in (query.reference, *query.targets)))
