"""Folder trees of the benchmarks with drawn pictures: the real annotations, or made-up ones of the same form."""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from rtd_hf.benchmarks import circo, cirr, coco, fashioniq, genecis, load_shapes, load_shapes_categories
from rtd_hf.benchmarks.files import AbsentError, read_json
from rtd_hf.benchmarks.shapes import load_shapes_many
from rtd_hf.shapes.pictures import picture
from rtd_hf.shapes.scenes import sample_scene


# So many images make every default cut-off say something: the largest is recall@100 of COCO.
_LEAST_GALLERY = 110
_LARGEST_COCO_ID = 581_929


def drawn(name: str) -> Image.Image:
    """A picture of the offline world that depends on the name alone."""
    rng = random.Random(f"layout {name}")
    return picture(sample_scene(rng, "held_out"), rng.getrandbits(63))


def write_pictures(
    folder: Path, names: Iterable[str], draw: Callable[[str], Image.Image], *, suffix: str = ".jpg"
) -> None:
    """One picture a name, which may hold subfolders."""
    for name in names:
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(name).save(path, quality=95)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_records(path: Path, records: Sequence, number: int | None, original: Path | None) -> None:
    """Annotations of the whole byte for byte, so that they keep their hash; else the records that are left."""
    if original is None or number is not None:
        write_json(path, list(records))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(original, path)


def filled(needed: Iterable, others: Iterable, least: int) -> list:
    """All that is needed, each once, and of the others as many as make up the least number."""
    kept = dict.fromkeys(needed)
    for item in others:
        if len(kept) >= least:
            break
        kept[item] = None
    return list(kept)


def first(records: Sequence, number: int | None) -> Sequence:
    """The first records, or all of them for `None`."""
    return records if number is None else records[:number]


# CIRR


def lay_out_cirr(folder: Path, annotations: Path | None, number: int | None) -> None:
    """Splits `val` and `test1`, with the references, targets and groups of the queries that are kept."""
    for split in ("val", "test1"):
        if annotations is None:
            path, (records, names, draw) = None, _drawn_cirr(split, number or 100)
        else:
            path = cirr.find_captions(annotations, split)
            records = first(read_json(path), number)
            listed = read_json(path.parent.parent / "image_splits" / f"split.rc2.{split}.json")
            kept = [name for record in records for name in (record["reference"], *record["img_set"]["members"])]
            kept += [record["target_hard"] for record in records if "target_hard" in record]
            least = len(listed) if number is None else _LEAST_GALLERY
            kept = set(filled(kept, listed, least))
            names = {name: place for name, place in listed.items() if name in kept}
            draw = drawn
        write_records(folder / "cirr" / "captions" / f"cap.rc2.{split}.json", records, number, path)
        write_json(folder / "cirr" / "image_splits" / f"split.rc2.{split}.json", names)
        stems = {place.removeprefix("./").removesuffix(".png"): name for name, place in names.items()}
        write_pictures(folder, stems, lambda stem, d=draw, s=stems: d(s[stem]), suffix=".png")


def _drawn_cirr(split: str, number: int) -> tuple[list[dict], dict[str, str], Callable]:
    world = load_shapes(num_queries=number, seed=0 if split == "val" else 1)
    prefix = "dev" if split == "val" else split
    own = {f"{prefix}-{int(name) // 4}-{int(name) // 2 % 2}-img{int(name) % 2}": name for name in world.gallery}
    name_of = {name: mine for mine, name in own.items()}
    records = []
    for place, query in enumerate(world.queries):
        members = [name_of[name] for name in dict.fromkeys((query.reference, *query.candidates))][:6]
        target = name_of[query.targets[0]]
        record = {
            "pairid": 12060 + place,
            "reference": name_of[query.reference],
            "target_hard": target,
            "target_soft": {target: 1.0},
            "caption": query.texts[0],
            "img_set": {"id": place, "members": members, "reference_rank": 2, "target_rank": 3},
        }
        if split == "test1":
            del record["target_hard"], record["target_soft"], record["img_set"]["target_rank"]
        records.append(record)
    return records, {name: f"./{prefix}/{name}.png" for name in own}, lambda name: world.load_image(own[name])


# FashionIQ


def lay_out_fashioniq(folder: Path, annotations: Path | None, number: int | None) -> None:
    """The split `val` of all categories; queries and galleries are cut per category."""
    made = _drawn_fashioniq(number or 100) if annotations is None else None
    for category in fashioniq.CATEGORIES:
        if made is not None:
            path, split, (records, ids, draw) = None, None, made[category]
        else:
            path = fashioniq.find_captions(annotations, category, "val")
            records = first(read_json(path), number)
            split = path.parent.parent / "image_splits" / f"split.{category}.val.json"
            listed = read_json(split)
            used = [name for record in records for name in (record["candidate"], record["target"])]
            ids, draw = filled(used, listed, len(listed) if number is None else _LEAST_GALLERY), drawn
        write_records(folder / "captions" / f"cap.{category}.val.json", records, number, path)
        write_records(folder / "image_splits" / f"split.{category}.val.json", ids, number, split)
        write_pictures(folder / "images", ids, draw)


def _drawn_fashioniq(number: int) -> dict[str, tuple]:
    world = load_shapes_categories(num_queries=3 * max(number, 30))
    own = {name: f"B00{name}" for name in world.gallery}
    place_of = {mine: name for name, mine in own.items()}
    made = {}
    for category, group in zip(fashioniq.CATEGORIES, world.galleries, strict=True):
        records = [
            {"target": own[query.targets[0]], "candidate": own[query.reference], "captions": list(query.texts)}
            for query in world.queries
            if query.group == group
        ]
        ids = [own[name] for name in world.galleries[group]]
        made[category] = (records[:number], ids, lambda name: world.load_image(place_of[name]))
    return made


# CIRCO


def lay_out_circo(folder: Path, annotations: Path | None, number: int | None) -> None:
    """Splits `val` and `test`; the real gallery is unknown here but for its size, so other ids fill it up."""
    if annotations is None:
        paths, (records, ids, draw) = {}, _drawn_circo(number or 100)
    else:
        paths = {split: circo.find_annotations(annotations, split) for split in circo.SPLITS}
        records = {split: first(read_json(path), number) for split, path in paths.items()}
        needed = {record["reference_img_id"] for own in records.values() for record in own}
        needed |= {image_id for record in records["val"] for image_id in record["gt_img_ids"]}
        rng = random.Random("layout circo")
        fill = (rng.randint(1, _LARGEST_COCO_ID) for _ in itertools.count())
        ids = sorted(filled(sorted(needed), fill, circo.GALLERY_SIZE if number is None else _LEAST_GALLERY))
        draw = drawn
    for split, own in records.items():
        write_records(folder / "annotations" / f"{split}.json", own, number, paths.get(split))
    info = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 48, "width": 48} for i in ids]
    pictures = folder / "COCO2017_unlabeled"
    write_json(pictures / "annotations" / "image_info_unlabeled2017.json", {"images": info})
    write_pictures(pictures / "unlabeled2017", (f"{i:012d}" for i in ids), draw)


def _drawn_circo(number: int) -> tuple[dict[str, list[dict]], list[int], Callable]:
    world = load_shapes_many(num_queries=2 * number)
    records = []
    for place, query in enumerate(world.queries):
        record = {
            "id": place % number,
            "reference_img_id": int(query.reference) + 1,
            "relative_caption": query.texts[0],
            "shared_concept": "a drawn scene",
        }
        if place < number:
            targets = [int(name) + 1 for name in query.targets]
            aspect = "negation" if "remove" in query.texts[0] else "addition"
            record |= {"target_img_id": targets[0], "gt_img_ids": targets, "semantic_aspects": [aspect]}
        records.append(record)
    ids = [int(name) + 1 for name in world.gallery]
    by_split = {"val": records[:number], "test": records[number:]}
    return by_split, ids, lambda name: world.load_image(f"{int(name) - 1:05d}")


# GeneCIS


def lay_out_genecis(folder: Path, annotations: Path | None, number: int | None) -> None:
    """The tasks that are there; made-up ones are all four."""
    sizes: dict[str, tuple[int, int]] = {}
    for task in genecis.TASKS:
        attribute = task.endswith("attribute")
        if annotations is None:
            path, (records, draw) = None, _drawn_genecis(task, number or 100)
        else:
            try:
                path = genecis.find_task(annotations, task)
            except AbsentError:
                continue
            records, draw = first(read_json(path), number), drawn
        write_records(folder / "genecis" / f"{task}.json", records, number, path)
        items = [item for record in records for item in (record["reference"], record["target"], *record["gallery"])]
        if attribute:
            names = _grow_around_boxes(sizes, items)
            write_pictures(folder / "VG_100K_all", names, lambda name, d=draw: d(name).resize(sizes[name]))
        else:
            names = {f"{item['val_image_id']:012d}": None for item in items}
            write_pictures(folder / "COCO_val2017", names, draw)


def _grow_around_boxes(sizes: dict[str, tuple[int, int]], items: Sequence[dict]) -> list[str]:
    """The pictures of some boxes; their sizes are made so large that they hold these boxes too."""
    for item in items:
        x, y, width, height = item["instance_bbox"]
        name = str(item["image_id"])
        least = sizes.get(name, (48, 48))
        sizes[name] = (max(least[0], round(x + width)), max(least[1], round(y + height)))
    return list(dict.fromkeys(str(item["image_id"]) for item in items))


def _drawn_genecis(task: str, number: int) -> tuple[list[dict], Callable]:
    attribute = task.endswith("attribute")
    others = 9 if task == "focus_attribute" else 14
    world = load_shapes(num_queries=number, seed=genecis.TASKS.index(task))
    offset = 100_000 * (1 + genecis.TASKS.index(task))
    rng = random.Random(f"layout {task}")

    def item(name: str) -> dict:
        image_id = offset + int(name)
        return {"image_id": image_id, "instance_bbox": [8, 8, 32, 32]} if attribute else {"val_image_id": image_id}

    records = []
    for query in world.queries:
        left = [name for name in world.gallery if name not in (query.reference, *query.candidates)]
        gallery = [*query.candidates[1:], *rng.sample(left, others)][:others]
        records.append(
            {
                "condition": query.texts[0],
                "reference": item(query.reference),
                "target": item(query.targets[0]),
                "gallery": [item(name) for name in gallery],
            }
        )
    return records, lambda name: world.load_image(f"{int(name) - offset:05d}")


# COCO


def lay_out_coco(folder: Path, annotations: Path | None, number: int | None) -> None:
    """Pictures of the annotated sizes; a number below 110 is raised, so that recall@100 says something."""
    if annotations is None:
        content = _drawn_coco(max(number or 0, _LEAST_GALLERY))
    else:
        content = read_json(coco.find_instances(annotations, "val"))
        annotated = {annotation["image_id"] for annotation in content["annotations"]}
        images = first(
            [image for image in content["images"] if image["id"] in annotated],
            None if number is None else max(number, _LEAST_GALLERY),
        )
        ids = {image["id"] for image in images}
        kept = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
        content = {"images": images, "annotations": kept, "categories": content["categories"]}
    write_json(folder / "annotations" / "instances_val2017.json", content)
    sizes = {Path(image["file_name"]).stem: (image["width"], image["height"]) for image in content["images"]}
    write_pictures(folder / "val2017", sizes, lambda name: drawn(name).resize(sizes[name]))


def _drawn_coco(number: int) -> dict[str, list[dict]]:
    """One to four objects a picture: polygons, and a crowd as run lengths in every tenth."""
    rng = random.Random("layout coco")
    names = ("person", "dog", "chair", "cup", "book", "car", "bird", "boat")
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": place + 1, "name": name} for place, name in enumerate(names)],
    }
    for image_id in range(1, number + 1):
        width, height = rng.choice(((64, 48), (48, 64)))
        content["images"].append(
            {"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": width, "height": height}
        )
        for _ in range(rng.randint(1, 4)):
            w, h = rng.uniform(12, 0.6 * width), rng.uniform(12, 0.6 * height)
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            annotation = {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": rng.randint(1, len(names)),
                "bbox": [round(x, 2), round(y, 2), round(w, 2), round(h, 2)],
                "area": round(w * h / 2, 2),
                "iscrowd": 0,
                "segmentation": [[x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]],
            }
            if image_id % 10 == 0:
                before, inside = height * int(x) + int(y), height * int(w)
                counts = [before, inside, width * height - before - inside]
                annotation |= {"iscrowd": 1, "segmentation": {"counts": counts, "size": [height, width]}}
            content["annotations"].append(annotation)
    return content


LAYOUTS = {
    "cirr": lay_out_cirr,
    "fashioniq": lay_out_fashioniq,
    "circo": lay_out_circo,
    "genecis": lay_out_genecis,
    "coco": lay_out_coco,
}
"""How each benchmark's tree is made: `(folder, annotations or None, number of queries or None)`."""
