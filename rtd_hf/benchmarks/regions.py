"""Regions of COCO pictures as queries: drawing one per picture, its masked crop, and the csv file of a draw."""

import csv
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import whole_file


if TYPE_CHECKING:
    from PIL import Image

# The lower bound of a region's box: Pic2Word's code writes 0.05 pixels where it surely meant 5 % of the picture.
PRESETS = {"pic2word": lambda area: 0.05, "relative": lambda area: 0.05 * area}
_LARGEST_SHARE = 0.5
_COLUMNS = ("id", "query_regions", "query_class", "classes")


@dataclass(frozen=True)
class Region:
    """
    One query of COCO object composition.

    Args:
        image_id (`int`): The picture, which is also the target.
        file_name (`str`): Its file.
        box (`tuple[float, ...]`): Left, top, right and bottom in pixels.
        query_class (`str`): What the region shows.
        classes (`tuple[str, ...]`): The other categories in the picture, in the order of their first appearance.
        annotation_id (`int`, *optional*): The COCO annotation it comes from.
    """

    image_id: int
    file_name: str
    box: tuple[float, float, float, float]
    query_class: str
    classes: tuple[str, ...]
    annotation_id: int | None = None


class Instances:
    """
    The content of `instances_val2017.json`, by picture.

    Args:
        content (`Mapping`): What the file holds.
        path (`Path`): The file, for messages.

    Raises:
        ValueError: If something that COCO's files have is missing.
    """

    def __init__(self, content: Mapping, path: Path):
        try:
            self.images = {image["id"]: image for image in content["images"]}
            self.categories = {category["id"]: category["name"] for category in content["categories"]}
            self.annotations: dict[int, list[Mapping]] = {}
            for annotation in content["annotations"]:
                self.annotations.setdefault(annotation["image_id"], []).append(annotation)
                _check_annotation(annotation, self.categories)
            for image in self.images.values():
                _check_kinds(image, {"file_name": str, "height": int, "width": int})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no file of COCO instances: {error!r} is missing or of another kind. Expected `images`, "
                f"`annotations` with `bbox`, `segmentation` and `category_id`, and `categories`; captions files have "
                f"none of these."
            ) from error
        self.by_id = {annotation["id"]: annotation for own in self.annotations.values() for annotation in own}

    def region(self, annotation: Mapping) -> Region:
        """The query that an annotation makes."""
        image = self.images[annotation["image_id"]]
        left, top, width, height = annotation["bbox"]
        names = [self.categories[other["category_id"]] for other in self.annotations[image["id"]]]
        own = self.categories[annotation["category_id"]]
        classes = tuple(name for name in dict.fromkeys(names) if name != own)
        box = (left, top, left + width, top + height)
        return Region(image["id"], image["file_name"], box, own, classes, annotation["id"])

    def match(self, region: Region) -> Region:
        """A region of a csv file with the annotation it was made of, by class and box."""
        matching = [
            annotation["id"]
            for annotation in self.annotations.get(region.image_id, ())
            if self.categories[annotation["category_id"]] == region.query_class
            and np.allclose(self.region(annotation).box, region.box, atol=0.01)
        ]
        if not matching:
            raise ValueError(
                f"The csv's region {region.box} ({region.query_class!r}) of {region.file_name} is none of COCO's "
                f"annotations. Is the csv of another split? `masked_images` takes the masks from pictures instead."
            )
        return Region(**{**vars(region), "annotation_id": matching[0]})


def _check_kinds(entry: Mapping, kinds: Mapping[str, type | tuple[type, ...]]) -> None:
    for name, kind in kinds.items():
        if not isinstance(entry[name], kind) or isinstance(entry[name], bool):
            raise TypeError(f"{name}: {str(entry[name])[:60]}")


def _check_annotation(annotation: Mapping, categories: Mapping) -> None:
    _check_kinds(annotation, {"id": int, "bbox": list, "segmentation": (list, dict)})
    _check_kinds({"category": categories[annotation["category_id"]]}, {"category": str})
    box = annotation["bbox"]
    if len(box) != 4 or not all(isinstance(edge, int | float) and abs(edge) < 1e9 for edge in box):
        raise TypeError(f"bbox: {str(box)[:60]}")


def draw_regions(instances: Instances, *, preset: str = "pic2word", seed: int = 0, exclude_crowd: bool = False):
    """
    Draws one region per picture that has any of a fitting size: Pic2Word's preparation with a seed.

    A picture's draw depends on the seed and its id alone, so leaving out pictures changes no other query.

    Args:
        instances ([`Instances`]): The annotations.
        preset (`str`, *optional*, defaults to `"pic2word"`): The least size of a box, 0.05 pixels as in the published
            code, or `"relative"`, 5 % of the picture. The largest is half of the picture in both.
        seed (`int`, *optional*, defaults to 0): Another seed is another benchmark.
        exclude_crowd (`bool`, *optional*, defaults to `False`): Leave out regions that COCO marks as crowds.

    Returns:
        `list[Region]`, in the order of the pictures in the file.
    """
    regions = []
    for image in instances.images.values():
        area = image["height"] * image["width"]
        fitting = [
            annotation
            for annotation in instances.annotations.get(image["id"], ())
            if PRESETS[preset](area) < annotation["bbox"][2] * annotation["bbox"][3] < _LARGEST_SHARE * area
            and not (exclude_crowd and annotation.get("iscrowd"))
        ]
        if fitting:
            fitting.sort(key=lambda annotation: annotation["id"])
            chosen = random.Random(f"coco region {seed} {image['id']}").choice(fitting)
            regions.append(instances.region(chosen))
    return regions


def decode_mask(segmentation: Sequence | Mapping, height: int, width: int) -> np.ndarray:
    """
    The mask of a COCO segmentation.

    COCO's own library does it: its polygons differ from Pillow's at the edges, and a query is not to depend on who
    draws it.

    Args:
        segmentation (`list` or `dict`): Polygons, or a run-length encoding, compressed or not.
        height (`int`): Height of the picture in pixels.
        width (`int`): Its width.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.

    Raises:
        ImportError: `pycocotools` is not installed.
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError(
            "COCO object composition needs COCO's masks. Install them: pip install pycocotools, or rtd_hf[coco]"
        ) from error
    if isinstance(segmentation, Mapping) and isinstance(segmentation["counts"], (str, bytes)):
        encoded = dict(segmentation)
    else:
        parts = coco_mask.frPyObjects(segmentation, height, width)
        encoded = coco_mask.merge(parts) if isinstance(parts, list) else parts
    return coco_mask.decode(encoded).astype(bool)


@dataclass(frozen=True)
class MaskedCrop:
    """
    Cuts a region out of its picture: white around the mask, cropped to the box, stretched to a square.

    Args:
        annotation (`Mapping`, *optional*): The COCO annotation; without one the picture is masked already.
        box (`tuple[float, ...]`): Left, top, right and bottom in pixels, cut off to integers.
        shape (`tuple[int, int]`): Height and width of the annotated picture.
        size (`int`): Side of the square.
    """

    annotation: Mapping | None
    box: tuple[float, float, float, float]
    shape: tuple[int, int]
    size: int

    def __call__(self, image: "Image.Image") -> "Image.Image":
        """The crop of an RGB picture."""
        from PIL import Image

        if image.size != self.shape[::-1]:
            raise ValueError(
                f"The picture has {image.width} x {image.height} pixels, its annotation {self.shape[1]} x "
                f"{self.shape[0]}. Use COCO's own pictures, neither scaled nor turned."
            )
        if self.annotation is not None:
            mask = decode_mask(self.annotation["segmentation"], *self.shape)
            image = Image.fromarray(np.where(mask[..., None], np.asarray(image), 255).astype(np.uint8))
        left, right = _at_least_one_pixel(self.box[0], self.box[2], image.width)
        top, bottom = _at_least_one_pixel(self.box[1], self.box[3], image.height)
        return image.crop((left, top, right, bottom)).resize((self.size, self.size), Image.Resampling.BICUBIC)


def _at_least_one_pixel(first: float, last: float, length: int) -> tuple[int, int]:
    first = min(max(int(first), 0), length - 1)
    return first, min(max(int(last), first + 1), length)


def write_regions(path: str | os.PathLike, regions: Sequence[Region], parameters: Mapping[str, object]) -> None:
    """
    Writes a draw as Pic2Word's csv, with lines before it that say how it was made.

    Args:
        path (`str` or `os.PathLike`): The file.
        regions (`Sequence[Region]`): The draw.
        parameters (`Mapping`): What it was made with; one comment line each.
    """
    with whole_file(Path(path)) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {name}={value}\n" for name, value in parameters.items())
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for region in regions:
            box = ";".join(str(float(edge)) for edge in region.box) + " "  # Pic2Word's files end it with a blank
            writer.writerow([region.file_name, box, region.query_class, ";".join(region.classes)])


def read_regions(path: str | os.PathLike) -> tuple[list[Region], dict[str, str]]:
    """
    Reads a csv of regions, Pic2Word's or one of [`write_regions`].

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `tuple[list[Region], dict[str, str]]`: the regions and the parameters of the comment lines before them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If columns are missing or a row is malformed; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no csv of regions at {path}.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}). Save it as such.") from error
    comments = [line for line in lines if line.startswith("#")]
    parameters = dict(line.removeprefix("#").strip().partition("=")[::2] for line in comments)
    reader = csv.DictReader(line for line in lines if not line.startswith("#"))
    if not set(_COLUMNS) <= set(reader.fieldnames or ()):
        raise ValueError(f"{path} must have the columns {', '.join(_COLUMNS)}, got {reader.fieldnames}.")
    regions = []
    for row in reader:
        try:
            left, top, right, bottom = map(float, row["query_regions"].split(";"))
            image_id = int(Path(row["id"]).stem)
            classes = tuple(filter(None, row["classes"].split(";")))
        except (ValueError, AttributeError) as error:
            place = reader.line_num + len(comments)
            raise ValueError(f"{path}, line {place}, is malformed ({error}): {row}. Expected x1;y1;x2;y2.") from error
        regions.append(Region(image_id, row["id"], (left, top, right, bottom), row["query_class"], classes))
    if not regions:
        raise ValueError(f"{path} holds no region.")
    return regions, parameters
