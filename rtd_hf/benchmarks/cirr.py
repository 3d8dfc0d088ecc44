"""CIRR: real-life pictures, one target, and a subset ranking among six look-alikes."""

import os
from collections.abc import Sequence
from pathlib import Path

from .base import BENCHMARKS, CIRBenchmark, CIRQuery
from .files import DataSource, Images, check_choice, finish, picture_files, read_json, read_records


SPLITS = ("val", "test1", "train")
METRICS = ("recall@1", "recall@5", "recall@10", "recall@50")
METRICS += ("recall_subset@1", "recall_subset@2", "recall_subset@3")

SOURCE = DataSource(
    name="cirr",
    folders=("CIRR", "cirr_dataset"),
    markers=tuple(f"{inner}captions/cap.rc2.{split}.json" for inner in ("cirr/", "") for split in SPLITS),
    layout="""
  cirr/captions/cap.rc2.{val,test1}.json        or captions/ without the inner cirr/
  cirr/image_splits/split.rc2.{val,test1}.json  or image_splits/
  dev/*.png  test1/*.png  train/<0..99>/*.png   or these below img_raw/ or cirr/img_raw/
""",
    how_to_get=(
        "The annotations are on the branch `cirr_dataset` of github.com/Cuberick-Orion/CIRR; the pictures are "
        "NLVR2's, by its form at lil.nlp.cornell.edu/nlvr."
    ),
    counts={
        "val": {"num_queries": 4181, "gallery_size": 2297},
        "test1": {"num_queries": 4148, "gallery_size": 2315},
        "train": {"gallery_size": 16939},
    },
    parts={"val": {"split": "val"}, "test1": {"split": "test1"}},
    optional_parts={"train": {"split": "train"}},
    hashes={
        "cap.rc2.val.json": "a85c3a1aa464f1af7229918e8018d08b8b20ce5dab479ffdf39d61113140f919",
        "cap.rc2.test1.json": "26a2b2e7a5c96c903491aefc7d5f237f03d3cca97712e1b6bb3b231db5ff8001",
        "split.rc2.val.json": "de36f7a7219c8bb06347a67748cfc68405be7dad62853a1e31846c98e491235b",
        "split.rc2.test1.json": "bf2bb9ed0659c4aae35de72350652b9ab75d36a060211f826bec15c58ec12566",
        "split.rc2.train.json": "7b3f2211ff67e527190754ab778321a3c83f0baa6150d1e6c19646ec25c3bcb9",
    },
)


def find_captions(root: str | os.PathLike | None, split: str) -> Path:
    """The caption file of a split; its neighbour folder `image_splits` holds the gallery."""
    name = f"captions/cap.rc2.{split}.json"
    return SOURCE.find(root, (f"cirr/{name}", name), f"The captions of the split {split!r}")


@BENCHMARKS.register("cirr")
def load_cirr(
    root: str | os.PathLike | None = None,
    *,
    split: str = "val",
    exclude_reference: bool = True,
    metrics: Sequence[str] = METRICS,
    images: Images = "strict",
) -> CIRBenchmark:
    """CIRR (Liu et al., ICCV 2021, [arXiv:2108.04024](https://huggingface.co/papers/2108.04024)), version rc2.

    The reference is taken out of every ranking. Recall_subset@K ranks the five other members of the query's group; the
    headline is `cirr_average`, the mean of R@5 and Rs@1. Six pairs of `val` queries ask the same of the same reference
    and differ in their target, so R@1 cannot exceed 99.86. One caption of `test1` is blank, and is a query all the
    same.

    Args:
        root (`str` or `os.PathLike`): The folder, in any of the circulating trees.
        split (`str`, *optional*, defaults to `"val"`): `"val"`, `"train"`, or `"test1"` (`"test"`), whose targets only
            the server knows ([`write_cirr_submission`]).
        exclude_reference (`bool`, *optional*, defaults to `True`): The field's protocol; `False` is a variant.
        metrics (`Sequence[str]`, *optional*): Other cut-offs, such as Pic2Word's `recall@100`.
        images (`str`, *optional*, defaults to `"strict"`): What to do about missing pictures, see [`finish`].

    Returns:
        [`CIRBenchmark`] named `cirr`.

    Raises:
        FileNotFoundError: If annotations or pictures are missing; says what is there and what is expected.
        ValueError: If files are damaged or do not belong together, or an option is unknown.
    """
    split = "test1" if split == "test" else split
    check_choice("split", split, SPLITS)
    captions = find_captions(root, split)
    hidden = split == "test1"
    kinds = {"pairid": int, "reference": str, "caption": str, "img_set": dict}
    records = read_records(captions, kinds if hidden else {**kinds, "target_hard": str})
    names = _gallery_names(captions, split)
    queries = [_query(record, hidden, captions) for record in records]
    base = captions.parent.parent
    folders = [base, base / "img_raw", base / "cirr" / "img_raw", base.parent, base.parent / "img_raw"]
    metrics = tuple(metrics)
    benchmark = CIRBenchmark(
        name="cirr",
        queries=queries,
        gallery=tuple(names),
        load_image=picture_files(names, folders[: 5 if base.name == "cirr" else 3]),
        metrics=metrics,
        exclude_reference=exclude_reference,
        hidden_targets=hidden,
        averages={"average": ("recall@5", "recall_subset@1")} if {"recall@5", "recall_subset@1"} <= {*metrics} else {},
        protocol={"split": split, "version": "rc2"},
    )
    return finish(benchmark, SOURCE, images=images, expected=SOURCE.counts[split])


def _gallery_names(captions: Path, split: str) -> dict[str, str]:
    """Per image of a split its path without extension."""
    path = captions.parent.parent / "image_splits" / f"split.rc2.{split}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}, which lists the gallery, is not there.\n{SOURCE.advice}")
    listed = read_json(path, unique_keys=True)
    if not isinstance(listed, dict) or not all(isinstance(place, str) for place in listed.values()):
        raise ValueError(f"{path} must map each image's name to its path, got {str(listed)[:60]!r}. Get it anew.")
    return {name: place.removeprefix("./").rpartition(".")[0] for name, place in listed.items()}


def _query(record: dict, hidden: bool, path: Path) -> CIRQuery:
    members = record["img_set"].get("members")
    if not isinstance(members, list) or not all(isinstance(name, str) for name in members):
        raise ValueError(f"{path}: `img_set` of pairid {record['pairid']} has no list of `members`, but {members!r}.")
    # The target is looked for by name: the ranks in `img_set` are not its place among the members.
    others = tuple(name for name in members if name != record["reference"])
    targets = () if hidden else (record["target_hard"],)
    return CIRQuery(str(record["pairid"]), record["reference"], (record["caption"],), targets, others)
