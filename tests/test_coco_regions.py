"""COCO object composition: which regions are drawn, how they are cut out, and the files of a draw."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from benchmark_files import fakely, load_json
from PIL import Image

from rtd_hf.benchmarks import load_coco, spread_over_draws, write_regions
from rtd_hf.benchmarks.regions import Instances, MaskedCrop, decode_mask, draw_regions, read_regions
from rtd_hf.texts import compose_prompt


@pytest.fixture
def instances(trees) -> Instances:
    path = trees / "coco" / "annotations" / "instances_val2017.json"
    return Instances(load_json(path), path)


def test_regions_are_drawn_by_seed_and_picture(instances):
    first = draw_regions(instances, seed=0)
    assert first == draw_regions(instances, seed=0) != draw_regions(instances, seed=1)
    # Neither the order of the annotations nor other pictures matter.
    fewer = Instances(
        {
            "images": list(instances.images.values())[::-2],
            "categories": [{"id": key, "name": name} for key, name in instances.categories.items()],
            "annotations": list(instances.by_id.values())[::-1],
        },
        Path("fewer.json"),
    )
    chosen = {region.image_id: region.annotation_id for region in first}
    assert all(chosen[region.image_id] == region.annotation_id for region in draw_regions(fewer, seed=0))
    for region in first:
        image = instances.images[region.image_id]
        left, top, right, bottom = region.box
        assert 0.05 < (right - left) * (bottom - top) < 0.5 * image["height"] * image["width"]
        own = [instances.categories[a["category_id"]] for a in instances.annotations[region.image_id]]
        assert region.query_class in own and set(region.classes) == set(own) - {region.query_class}
        assert list(region.classes) == sorted(region.classes, key=own.index)


def test_every_region_is_drawn_at_times(instances):
    fitting = {
        annotation["id"]
        for annotation in instances.by_id.values()
        if annotation["bbox"][2] * annotation["bbox"][3] < 0.5 * 64 * 48
    }
    drawn = {region.annotation_id for seed in range(40) for region in draw_regions(instances, seed=seed)}
    assert drawn == fitting


def test_presets_and_crowds(instances):
    small = [a for a in instances.by_id.values() if a["bbox"][2] * a["bbox"][3] <= 0.05 * 64 * 48]
    by_preset = {
        preset: {r.annotation_id for seed in range(40) for r in draw_regions(instances, preset=preset, seed=seed)}
        for preset in ("pic2word", "relative")
    }
    assert by_preset["pic2word"] - by_preset["relative"] == {annotation["id"] for annotation in small}
    crowds = {annotation["id"] for annotation in instances.by_id.values() if annotation["iscrowd"]}
    without = {r.annotation_id for seed in range(40) for r in draw_regions(instances, seed=seed, exclude_crowd=True)}
    assert crowds & by_preset["pic2word"] and not crowds & without


def test_masks():
    counts = [3, 2, 5, 4, 6]
    by_hand = np.repeat([False, True, False, True, False], counts).reshape(5, 4).T  # column by column
    assert np.array_equal(decode_mask({"counts": counts, "size": [4, 5]}, 4, 5), by_hand)
    from pycocotools import mask as coco_mask

    packed = coco_mask.encode(np.asfortranarray(by_hand.astype(np.uint8)))
    assert isinstance(packed["counts"], bytes)
    assert np.array_equal(decode_mask(packed, 4, 5), by_hand)
    # Two polygons together, with corners on pixel borders.
    boxes = [[1, 1, 3, 1, 3, 4, 1, 4], [5, 2, 8, 2, 8, 6, 5, 6]]
    expected = np.zeros((7, 9), bool)
    expected[1:4, 1:3] = expected[2:6, 5:8] = True
    assert np.array_equal(decode_mask(boxes, 7, 9), expected)


def test_masked_crop():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
    annotation = {"segmentation": [[10, 10, 30, 10, 30, 20, 10, 20]]}
    crop = MaskedCrop(annotation, (8.9, 10.0, 33.7, 25.9), (40, 60), 25)(Image.fromarray(pixels))
    # 8 to 33 and 10 to 25 in whole pixels, stretched to a square without keeping its form
    white = np.full((15, 25, 3), 255, np.uint8)
    white[:10, 2:22] = pixels[10:20, 10:30]
    assert crop.size == (25, 25)
    assert np.array_equal(np.asarray(crop), np.asarray(Image.fromarray(white).resize((25, 25), Image.BICUBIC)))
    # A box of no width becomes one pixel wide, also at the edge.
    for box, column in (((12.3, 5.0, 12.9, 9.0), 12), ((59.9, 5.0, 60.0, 9.0), 59)):
        thin = np.asarray(MaskedCrop(None, box, (40, 60), 4)(Image.fromarray(pixels)))
        assert np.array_equal(thin[:, 0], pixels[5:9, column])
    with pytest.raises(ValueError, match="The picture has 40 x 60 pixels, its annotation 60 x 40"):
        MaskedCrop(annotation, (1, 1, 5, 5), (40, 60), 8)(Image.new("RGB", (40, 60)))


def test_prompts_of_coco(trees):
    def texts(**options):
        return {query.id: query.texts[0] for query in load_coco(trees / "coco", **options).queries}

    published, comma, clean = texts(), texts(joiner=", "), texts(dangling_joiner=False)
    alone = [key for key, text in published.items() if text.endswith(" and ")]
    assert 0 < len(alone) < len(published)
    for key, text in published.items():
        assert comma[key] == text.replace(" and ", ", ")
        assert clean[key] == (text.removesuffix(" and ") if key in alone else text)
    template = "a photo of $ and {caption}"
    assert compose_prompt(template, published[alone[0]]) == f"a photo of $ and {clean[alone[0]]} and"


def test_a_draw_is_written_and_read(trees, tmp_path, instances):
    root = shutil.copytree(trees / "coco", tmp_path / "coco")
    regions = draw_regions(instances, preset="relative", seed=7)
    write_regions(root / "coco_eval.csv", regions, {"preset": "relative", "seed": 7})
    lines = (root / "coco_eval.csv").read_text().splitlines()
    assert lines[:3] == ["# preset=relative", "# seed=7", "id,query_regions,query_class,classes"]
    assert lines[3].split(",")[1].endswith(" ") and lines[3].count(";") >= 3
    read, parameters = read_regions(root / "coco_eval.csv")
    assert parameters == {"preset": "relative", "seed": "7"}
    assert [dataclasses.replace(region, annotation_id=None) for region in regions] == read
    metrics = ("recall@1", "recall@5")
    drawn = load_coco(root, preset="relative", seed=7, metrics=metrics)
    from_file = load_coco(root, preset="csv", metrics=metrics)
    assert from_file.queries == drawn.queries and from_file.gallery == drawn.gallery
    assert from_file.protocol["csv_seed"] == "7" and from_file.protocol["masks"] == "annotations"
    crop = drawn.queries[0].reference
    assert from_file.load_image(crop).tobytes() == drawn.load_image(crop).tobytes()

    masked = tmp_path / "masked"
    masked.mkdir()
    for region in regions:
        Image.new("RGB", Image.open(root / "val2017" / region.file_name).size, "red").save(masked / region.file_name)
    ready = load_coco(root, preset="csv", masked_images=masked, metrics=metrics)
    assert ready.protocol["masks"] == "pictures"
    assert np.asarray(ready.load_image(ready.queries[0].reference))[0, 0].tolist() == [254, 0, 0]
    assert ready.load_image(ready.gallery[0]).tobytes() == drawn.load_image(drawn.gallery[0]).tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("query_class", "class"), "must have the columns id, query_regions"),
        (lambda text: text.replace(";", ",", 1), "line 2, is malformed"),
        (lambda text: text.split("\n")[0], "holds no region"),
        (lambda text: text.replace("000000000001.jpg", "000000999999.jpg"), "none of COCO's annotations"),
    ],
)
def test_a_damaged_csv(trees, tmp_path, instances, change, message):
    root = shutil.copytree(trees / "coco", tmp_path / "coco")
    path = root / "coco_eval.csv"
    write_regions(path, draw_regions(instances), {})
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        load_coco(root, preset="csv", metrics=("recall@1",))


def test_options_of_coco_that_do_not_go_together(trees):
    with pytest.raises(ValueError, match="are for `preset='csv'`, got 'pic2word'"):
        load_coco(trees / "coco", csv="x.csv")
    with pytest.raises(ValueError, match="`preset` must be one of 'pic2word', 'relative', 'csv', got 'random'"):
        load_coco(trees / "coco", preset="random")
    with pytest.raises(FileNotFoundError, match="no csv of regions"):
        load_coco(trees / "coco", preset="csv")


def test_spread_over_draws(trees):
    # The five draws of Pic2Word (CC3M) in CompoDiff's appendix, with their mean and sample deviation.
    values = [11.00, 11.29, 10.72, 10.72, 11.00]
    spread = spread_over_draws([{"coco_recall@1": value} for value in values])["coco_recall@1"]
    assert spread["mean"] == pytest.approx(10.946) and spread["std"] == pytest.approx(0.24, abs=0.005)
    assert (spread["low"], spread["high"]) == (10.72, 11.29)
    results = [fakely(load_coco(trees / "coco", seed=seed)).evaluate().metrics for seed in range(3)]
    assert spread_over_draws(results)["coco_recall@10"]["std"] > 0
    with pytest.raises(ValueError, match="two or more with the same figures"):
        spread_over_draws(results[:1])


def test_a_masked_crop_goes_with_its_picture(trees, tmp_path):
    root = shutil.copytree(trees / "coco", tmp_path / "coco")
    metrics = ("recall@1",)
    whole = load_coco(root, metrics=metrics)
    (root / "val2017" / f"{int(whole.queries[0].id):012d}.jpg").unlink()
    part = load_coco(root, images="lenient", metrics=metrics)
    assert part.queries == whole.queries[1:] and len(part.gallery) == len(whole.gallery) - 2
