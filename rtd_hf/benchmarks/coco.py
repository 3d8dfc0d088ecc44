"""COCO object composition: a masked object and the names of what else is there ask for the whole picture."""

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from .base import BENCHMARKS, CIRBenchmark, CIRQuery
from .files import DataSource, Images, check_choice, finish, picture_files, read_json
from .regions import PRESETS, Instances, MaskedCrop, Region, draw_regions, read_regions


SPLITS = ("val", "train")
CUT_OFFS = (1, 5, 10, 50, 100)
METRICS = tuple(f"{kind}@{k}" for kind in ("recall", "recall_reverse") for k in CUT_OFFS)

SOURCE = DataSource(
    name="coco",
    folders=("coco", "COCO", "COCO2017"),
    markers=("annotations/instances_val2017.json", "instances_val2017.json"),
    layout="""
  annotations/instances_val2017.json
  val2017/*.jpg                       or COCO_val2017/
  coco_eval.csv                       only for preset='csv'
""",
    how_to_get="Both are COCO's: `2017 Val images` and `2017 Train/Val annotations` of cocodataset.org.",
    # Two public draws have as many rows; which picture has a fitting region does not depend on the seed.
    counts={"val pic2word": {"num_queries": 4765, "gallery_size": 4765}},
    parts={"val": {"metrics": ("recall@1",)}},
    shared_pictures=True,
)


@BENCHMARKS.register("coco")
def load_coco(
    root: str | os.PathLike | None = None,
    *,
    split: str = "val",
    preset: str = "pic2word",
    seed: int = 0,
    csv: str | os.PathLike | None = None,
    masked_images: str | os.PathLike | None = None,
    exclude_crowd: bool = False,
    joiner: str = " and ",
    dangling_joiner: bool = True,
    crop_size: int = 224,
    metrics: Sequence[str] = METRICS,
    images: Images = "strict",
) -> CIRBenchmark:
    """COCO object composition (Pic2Word, Saito et al., CVPR 2023, [arXiv:2302.03084](https://huggingface.co/papers/2302.03084)).

    A query is one region of a picture, cut out by its mask on white and stretched to a square, with the name of its
    class and those of the picture's other classes; it asks for the picture among those of all queries. `recall@K` is
    the figure people quote; `coco_recall_reverse@K` ranks the queries for each picture.

    The published code draws the regions without a seed, so its figures have no fixed data set: two public draws share
    a third of their regions. Report the mean and the spread of several seeds ([`spread_over_draws`]).

    Args:
        root (`str` or `os.PathLike`): COCO's folder.
        split (`str`, *optional*, defaults to `"val"`): `"val"` or `"train"`.
        preset (`str`, *optional*, defaults to `"pic2word"`): Least size of a region: 0.05 pixels (as published), 5 %
            of the picture (`"relative"`); or the regions of a file (`"csv"`).
        seed (`int`, *optional*, defaults to 0): Of the draw.
        csv (`str` or `os.PathLike`, *optional*): For `preset="csv"`, by default `coco_eval.csv` in the folder.
        masked_images (`str` or `os.PathLike`, *optional*): For `preset="csv"`: a folder of pictures that are masked
            already, used instead of COCO's masks.
        exclude_crowd (`bool`, *optional*, defaults to `False`): Draw no crowd regions; the published code does.
        joiner (`str`, *optional*, defaults to `" and "`): Between class names; CompoDiff's paper has `", "`.
        dangling_joiner (`bool`, *optional*, defaults to `True`): Where there is no other class the published prompts
            end in the joiner (`"a photo of $ and chair and"`), nearly a fifth; `False` ends them before it.
        crop_size (`int`, *optional*, defaults to 224): Side of the square; take the image tower's input size.
        metrics (`Sequence[str]`, *optional*): Other cut-offs.
        images (`str`, *optional*, defaults to `"strict"`): What to do about missing pictures, see [`finish`].

    Returns:
        [`CIRBenchmark`] named `coco`.

    Raises:
        FileNotFoundError: If annotations or pictures are missing; says what is there and what is expected.
        ImportError: If a picture is opened and `pycocotools` is not installed.
        ValueError: If files are damaged or do not belong together, or an option is unknown.
    """
    check_choice("split", split, SPLITS)
    check_choice("preset", preset, (*PRESETS, "csv"))
    if preset != "csv" and (csv or masked_images):
        raise ValueError(f"`csv` and `masked_images` are for `preset='csv'`, got {preset!r}. Choose one of the two.")
    path = find_instances(root, split)
    instances = Instances(read_json(path), path)
    base = path.parent.parent if path.parent.name == "annotations" else path.parent
    protocol = {"split": split, "preset": preset}
    if preset == "csv":
        source = Path(csv) if csv is not None else base / "coco_eval.csv"
        regions, parameters = read_regions(source)
        protocol |= {"csv": source.name, "masks": "pictures" if masked_images else "annotations"}
        protocol |= {f"csv_{name}": value for name, value in parameters.items()}
        regions = regions if masked_images else [instances.match(region) for region in regions]
    else:
        regions = draw_regions(instances, preset=preset, seed=seed, exclude_crowd=exclude_crowd)
        protocol |= {"seed": seed, "exclude_crowd": exclude_crowd}
    protocol |= {"joiner": joiner, "dangling_joiner": dangling_joiner, "crop_size": crop_size}
    folders = [base / f"{split}2017", base / f"COCO_{split}2017"]
    queries = [_query(region, crop_size, joiner, dangling_joiner) for region in regions]
    benchmark = CIRBenchmark(
        name="coco",
        queries=queries,
        gallery=tuple(query.targets[0] for query in queries) + tuple(query.reference for query in queries),
        load_image=_pictures(regions, instances, folders, masked_images, crop_size),
        metrics=tuple(metrics),
        galleries={"": tuple(query.targets[0] for query in queries)},
        protocol=protocol,
    )
    expected = None if exclude_crowd else SOURCE.counts.get(f"{split} {preset}")
    return finish(benchmark, SOURCE, images=images, expected=expected)


def find_instances(root: str | os.PathLike | None, split: str) -> Path:
    """The file of a split's instances."""
    name = f"instances_{split}2017.json"
    return SOURCE.find(root, (f"annotations/{name}", name), f"The annotations {name}")


def _query(region: Region, crop_size: int, joiner: str, dangling: bool) -> CIRQuery:
    text = joiner.join((region.query_class, *region.classes))
    if not region.classes and dangling:
        text += joiner
    image_id = str(region.image_id)
    return CIRQuery(image_id, _crop_id(region, crop_size), (text,), (image_id,))


def _crop_id(region: Region, crop_size: int) -> str:
    # The size is in it, so that another one is another picture to whoever keeps features by their ids.
    return f"{region.image_id}#{'masked' if region.annotation_id is None else region.annotation_id}@{crop_size}"


def _pictures(
    regions: Sequence[Region],
    instances: Instances,
    folders: list[Path],
    masked_images: str | os.PathLike | None,
    crop_size: int,
):
    names = {str(region.image_id): Path(region.file_name).stem for region in regions}
    views = {}
    for region in regions:
        image = instances.images.get(region.image_id)
        if image is None:
            raise ValueError(f"The csv names {region.file_name}, which is not in COCO's annotations of this split.")
        annotation = instances.by_id.get(region.annotation_id)
        crop = MaskedCrop(annotation, region.box, (image["height"], image["width"]), crop_size)
        crop_id = _crop_id(region, crop_size)
        views[crop_id] = (str(region.image_id) if annotation else crop_id, crop)
    files = picture_files(names, folders, views)
    if masked_images is not None:
        masked = {_crop_id(region, crop_size): Path(region.file_name).stem for region in regions}
        made = picture_files(masked, [Path(masked_images)])
        files.paths |= made.paths
        files.folders += made.folders
    return files


def spread_over_draws(results: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """
    The mean of every figure over several draws of the regions, and how much the draw alone changes it.

    Args:
        results (`Sequence[Mapping[str, float]]`): The metrics of each draw, two or more with the same keys.

    Returns:
        `dict`: per figure `{"mean": ..., "std": ..., "low": ..., "high": ...}`: mean, sample standard deviation, least
        and greatest value.

    Raises:
        ValueError: If there are fewer than two, or their keys differ.
    """
    if len(results) < 2 or any(result.keys() != results[0].keys() for result in results):
        raise ValueError(f"`results` must be two or more with the same figures, got {[list(one) for one in results]}.")
    columns = {name: [result[name] for result in results] for name in results[0]}
    return {
        name: {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values),
            "low": min(values),
            "high": max(values),
        }
        for name, values in columns.items()
    }
