"""GeneCIS: four tasks, each query with a small gallery of its own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .base import BENCHMARKS, CIRBenchmark, CIRQuery
from .files import DataSource, Images, check_choice, check_choices, finish, picture_files, read_records


if TYPE_CHECKING:
    from PIL import Image


TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
METRICS = ("recall@1", "recall@2", "recall@3")
_ENLARGEMENT = 0.7
_FOLDERS = {
    "object": ("COCO_val2017", "val2017", "coco/val2017"),
    "attribute": ("VG_100K_all", "VG_100K", "VG_100K_2"),
}

SOURCE = DataSource(
    name="genecis",
    folders=("GeneCIS", "genecis"),
    markers=tuple(f"{inner}{task}.json" for inner in ("", "genecis/") for task in TASKS),
    layout="""
  genecis/{focus,change}_{attribute,object}.json  or without the inner genecis/
  COCO_val2017/*.jpg                              or val2017/, for the object tasks
  VG_100K_all/*.jpg                               or VG_100K/ and VG_100K_2/, for the attribute tasks
""",
    how_to_get=(
        "The annotations are on github.com/facebookresearch/genecis; the pictures are COCO's `2017 Val images` of "
        "cocodataset.org and both parts of Visual Genome 1.2."
    ),
    counts={
        "val": {
            "num_queries": dict(zip(TASKS, (2000, 2112, 1960, 1960), strict=True)),
            "gallery_size": dict(zip(TASKS, (10, 15, 15, 15), strict=True)),
        }
    },
    parts={task: {"tasks": (task,)} for task in TASKS},
    shared_pictures=True,
    hashes={
        "change_object.json": "0a5145984f7d8594c457a3609288ae2acfcdb6b72bd0309220e616300c9beac8",
        "focus_object.json": "ee6de86ffb78ad989986b65f7e74e5627a90c1395a8cdc4aed8da3d92f4c016c",
    },
)


@BENCHMARKS.register("genecis")
def load_genecis(
    root: str | os.PathLike | None = None,
    *,
    split: str = "val",
    tasks: Sequence[str] | None = None,
    metrics: Sequence[str] = METRICS,
    images: Images = "strict",
) -> CIRBenchmark:
    """GeneCIS (Vaze et al., CVPR 2023, [arXiv:2306.07969](https://huggingface.co/papers/2306.07969)).

    Each query ranks its own 10 or 15 images, the target among them and the reference not. The figure of a benchmark
    is the unweighted mean over its tasks; the headline is `genecis_recall@1`. One query of `change_object` (the 20th)
    has its target twice in its gallery, a tie that no model wins.

    In the object tasks the images are whole COCO pictures. In the attribute tasks they are boxes of Visual Genome
    pictures, cut as the authors cut them ([`AttributeCrop`]) and filled up with black to a square.

    Args:
        root (`str` or `os.PathLike`): The folder, in any of the circulating trees.
        split (`str`, *optional*, defaults to `"val"`): There is no other.
        tasks (`Sequence[str]`, *optional*): Some of `focus_attribute`, `change_attribute`, `focus_object`,
            `change_object`; all by default. The mean over fewer is not the published one.
        metrics (`Sequence[str]`, *optional*): Other cut-offs.
        images (`str`, *optional*, defaults to `"strict"`): What to do about missing pictures, see [`finish`].

    Returns:
        [`CIRBenchmark`] named `genecis` with a group per task.

    Raises:
        FileNotFoundError: If annotations or pictures are missing; says what is there and what is expected.
        ValueError: If files are damaged, or an option is unknown.
    """
    check_choice("split", split, ("val",))
    tasks = check_choices("tasks", tasks, TASKS)
    queries: list[CIRQuery] = []
    names: dict[str, str] = {}
    views: dict[str, tuple[str, AttributeCrop]] = {}
    bases: dict[str, list[Path]] = {"object": [], "attribute": []}
    for task in tasks:
        path = find_task(root, task)
        kind = task.rpartition("_")[2]
        bases[kind] = [path.parent.parent, path.parent]
        queries += _queries(path, task, names, views)
    folders = [base / place for kind, found in bases.items() for base in found for place in _FOLDERS[kind]]
    ids = dict.fromkeys(name for query in queries for name in (query.reference, *query.candidates))
    benchmark = CIRBenchmark(
        name="genecis",
        queries=queries,
        gallery=tuple(ids),
        load_image=picture_files(names, folders, views),
        metrics=tuple(metrics),
        search_candidates=True,
        protocol={"split": split, "tasks": tasks},
    )
    return finish(benchmark, SOURCE, images=images, expected=SOURCE.counts[split])


def find_task(root: str | os.PathLike | None, task: str) -> Path:
    """The annotation file of a task."""
    places = (f"genecis/{task}.json", f"{task}.json")
    return SOURCE.find(root, places, f"The task {task!r} (choose others by `tasks`, if you must)")


def _queries(
    path: Path, task: str, names: dict[str, str], views: dict[str, "tuple[str, AttributeCrop]"]
) -> list[CIRQuery]:
    """The queries of a task; the files and crops of their images are added to `names` and `views`."""
    queries = []
    kinds = {"condition": str, "reference": dict, "target": dict, "gallery": list}
    for number, record in enumerate(read_records(path, kinds)):
        try:
            add = _add_object if task.endswith("object") else _add_attribute
            reference, target, *others = (
                add(item, names, views) for item in (record["reference"], record["target"], *record["gallery"])
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: record {number} has an image without id or box ({error!r}).") from error
        # The target first, as the authors put it: the file's gallery does not hold it.
        query_id = f"{task}-{number:05d}"
        queries.append(CIRQuery(query_id, reference, (record["condition"],), (target,), (target, *others), group=task))
    return queries


def _add_object(item: dict, names: dict[str, str], views: dict) -> str:
    image_id = str(int(item["val_image_id"]))
    names[image_id] = f"{int(image_id):012d}"
    return image_id


def _add_attribute(item: dict, names: dict[str, str], views: dict) -> str:
    x, y, width, height = map(float, item["instance_bbox"])
    file_id = f"vg/{int(item['image_id'])}"
    image_id = f"{file_id}@{x},{y},{width},{height}"
    names[file_id] = file_id.removeprefix("vg/")
    views[image_id] = (file_id, AttributeCrop(x, y, width, height))
    return image_id


@dataclass(frozen=True)
class AttributeCrop:
    """
    The cut around a box in the attribute tasks: enlarged by 70 %, and filled up with black to a square.

    The published cut enlarges to the left and to the top only, unless the picture's edge stops it there. That looks
    like an oversight, but is what all figures were made with.

    Args:
        x (`float`): Left edge of the box in pixels.
        y (`float`): Top edge.
        width (`float`): Its width.
        height (`float`): Its height.
    """

    x: float
    y: float
    width: float
    height: float

    def __call__(self, image: "Image.Image") -> "Image.Image":
        """The cut of an RGB picture, a square."""
        from PIL import Image

        left = max(0, self.x - _ENLARGEMENT * self.width)
        top = max(0, self.y - _ENLARGEMENT * self.height)
        right = min(image.width, left + (1 + _ENLARGEMENT) * self.width)
        bottom = min(image.height, top + (1 + _ENLARGEMENT) * self.height)
        if round(right) <= round(left) or round(bottom) <= round(top):
            raise ValueError(
                f"The box {self} is empty or lies outside of its picture of {image.width} x {image.height} pixels. Is "
                f"it the picture that was annotated?"
            )
        cut = image.crop((left, top, right, bottom))
        side = max(cut.size)
        square = Image.new("RGB", (side, side))
        square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
        return square
