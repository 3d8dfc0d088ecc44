"""CIRCO: open-domain pictures, many targets a query, a gallery of 123,403."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..images import ImageFolders
from .base import BENCHMARKS, CIRBenchmark, CIRQuery
from .files import DataSource, Images, PictureFiles, check_choice, finish, picture_files, read_json, read_records


SPLITS = ("val", "test")
METRICS = tuple(f"{kind}@{k}" for kind in ("map", "recall") for k in (5, 10, 25, 50))
GALLERY_SIZE = 123403
_INFO = "image_info_unlabeled2017.json"
_PICTURES = ("COCO2017_unlabeled/unlabeled2017", "unlabeled2017")

SOURCE = DataSource(
    name="circo",
    folders=("CIRCO", "circo"),
    markers=("annotations/val.json", "annotations/test.json"),
    layout=f"""
  annotations/{{val,test}}.json
  COCO2017_unlabeled/annotations/{_INFO}  or annotations/, which lists the gallery
  COCO2017_unlabeled/unlabeled2017/*.jpg                            or unlabeled2017/
""",
    how_to_get=(
        "The annotations are on github.com/miccunifi/CIRCO; the pictures are COCO's `2017 Unlabeled images`, with "
        "their `Image info`, of cocodataset.org."
    ),
    counts={
        "val": {"num_queries": 220, "gallery_size": GALLERY_SIZE},
        "test": {"num_queries": 800, "gallery_size": GALLERY_SIZE},
    },
    parts={"val": {"split": "val"}, "test": {"split": "test"}},
    hashes={
        "val.json": "6b31a1dbc3c85627501d9a250f87708f24a27d74d6a65360b6ddd2537a154d04",
        "test.json": "2f7c37e89220c990b6b0525d6f3ed63d3fc02e03ce336aa42a3b822841b14886",
    },
)


@BENCHMARKS.register("circo")
def load_circo(
    root: str | os.PathLike | None = None,
    *,
    split: str = "val",
    exclude_reference: bool = False,
    metrics: Sequence[str] = METRICS,
    images: Images = "strict",
) -> CIRBenchmark:
    """CIRCO (Baldrati et al., ICCV 2023, [arXiv:2303.15247](https://huggingface.co/papers/2303.15247)).

    mAP@K counts all targets and divides by min(their number, K); Recall@K asks for the first target alone, as the
    official script does. mAP@10 is also given for each of nine semantic aspects, which overlap; old annotation files
    have none. The reference stays in the ranking.

    Args:
        root (`str` or `os.PathLike`): The folder, in any of the circulating trees.
        split (`str`, *optional*, defaults to `"val"`): `"val"`, or `"test"`, whose targets only the server knows
            ([`write_circo_submission`]).
        exclude_reference (`bool`, *optional*, defaults to `False`): Take the reference out: a variant, with slightly
            higher figures.
        metrics (`Sequence[str]`, *optional*): mAP, recall or both, and other cut-offs.
        images (`str`, *optional*, defaults to `"strict"`): What to do about missing pictures, see [`finish`].

    Returns:
        [`CIRBenchmark`] named `circo`; ids are COCO's, as decimal strings without leading zeros.

    Raises:
        FileNotFoundError: If annotations or pictures are missing; says what is there and what is expected.
        ValueError: If files are damaged or do not belong together, or an option is unknown.
    """
    check_choice("split", split, SPLITS)
    hidden, metrics = split == "test", tuple(metrics)
    annotations = find_annotations(root, split)
    queries = read_queries(annotations, hidden)
    ids, listed_by = gallery_ids(annotations)
    benchmark = CIRBenchmark(
        name="circo",
        queries=queries,
        gallery=tuple(map(str, ids)),
        load_image=_pictures(annotations, ids),
        metrics=metrics,
        exclude_reference=exclude_reference,
        hidden_targets=hidden,
        aspect_metrics=("map@10",) if "map@10" in metrics else (),
        protocol={"split": split, "gallery_listed_by": listed_by},
    )
    return finish(benchmark, SOURCE, images=images, expected=SOURCE.counts[split])


def find_annotations(root: str | os.PathLike | None, split: str) -> Path:
    """The annotation file of a split."""
    return SOURCE.find(root, (f"annotations/{split}.json",), f"The annotations of the split {split!r}")


def read_queries(path: Path, hidden: bool) -> list[CIRQuery]:
    """
    The queries of an annotation file.

    Args:
        path (`Path`): `val.json` or `test.json`.
        hidden (`bool`): Whether it has no targets.

    Returns:
        `list[CIRQuery]`, the target of the recall first among each one's targets.

    Raises:
        ValueError: If the file is damaged, or of the other split.
    """
    kinds = {"id": int, "reference_img_id": int, "relative_caption": str}
    queries = []
    for record in read_records(path, kinds if hidden else {**kinds, "target_img_id": int, "gt_img_ids": list}):
        targets, aspects = (), record.get("semantic_aspects", [])
        if not isinstance(aspects, list) or not all(isinstance(aspect, str) for aspect in aspects):
            raise ValueError(
                f"{path}: `semantic_aspects` of query {record['id']} must be a list of texts, got {aspects!r:.80}."
            )
        if not hidden:
            right, first = record["gt_img_ids"], record["target_img_id"]
            if first not in right:
                raise ValueError(f"{path}: `target_img_id` {first} of query {record['id']} is not in `gt_img_ids`.")
            targets = tuple(map(str, (first, *(image_id for image_id in right if image_id != first))))
            if len(targets) != len(right):
                raise ValueError(f"{path}: `gt_img_ids` of query {record['id']} holds {first} more than once.")
        texts = (record["relative_caption"],)
        queries.append(
            CIRQuery(str(record["id"]), str(record["reference_img_id"]), texts, targets, aspects=tuple(aspects))
        )
    return queries


def gallery_ids(annotations: Path) -> tuple[list[int], str]:
    """
    The ids of the gallery in COCO's order, and what listed them: COCO's image info, or else the folder of pictures.

    Args:
        annotations (`Path`): The file of queries.

    Returns:
        `tuple[list[int], str]`

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If the image info is damaged, or a folder holds other than 123,403 pictures: without the info,
            nothing tells a part from the whole.
    """
    base = annotations.parent.parent
    for place in (f"COCO2017_unlabeled/annotations/{_INFO}", f"annotations/{_INFO}", f"COCO2017_unlabeled/{_INFO}"):
        if (base / place).is_file():
            info = read_json(base / place)
            try:
                return [int(image["id"]) for image in info["images"]], _INFO
            except (TypeError, KeyError, ValueError, OverflowError) as error:
                raise ValueError(
                    f"{base / place} must hold `images` with an `id` each, which fails with {error!r}. Get it anew."
                ) from error
    for place in _PICTURES:
        if (base / place).is_dir():
            stems = ImageFolders([]).listing(base / place)
            ids = sorted(int(stem) for stem in stems if stem.isdecimal())
            if len(ids) != GALLERY_SIZE:
                raise ValueError(
                    f"{base / place} holds {len(ids)} pictures with a number for a name, but the gallery of `circo` "
                    f"has {GALLERY_SIZE}. Complete it, or put {_INFO}, which says what belongs to it, beside it."
                )
            return ids, "folder"
    raise FileNotFoundError(
        f"The gallery of `circo` is not known: {base} holds neither {_INFO} nor pictures.\n{SOURCE.advice}"
    )


def _pictures(annotations: Path, ids: Sequence[int]) -> PictureFiles:
    base = annotations.parent.parent
    return picture_files({str(i): f"{i:012d}" for i in ids}, [base / place for place in _PICTURES])
