"""`check_data`: what it finds wrong with a folder; and pictures of every kind, sound and damaged."""

import dataclasses
import io
import json
import shutil
import time
import warnings

import numpy as np
import pytest
from benchmark_files import FIVE, change_records, layouts, load_json, real, save_json
from PIL import Image, ImageOps

from rtd_hf.benchmarks import SOURCES, check_data, load_circo, load_cirr
from rtd_hf.images import ImageFolders, as_picture, image_fault, open_image


@pytest.fixture
def small_counts(monkeypatch):
    """No official counts and hashes, so that the made-up trees are sound."""
    for name in FIVE:
        source = SOURCES[name]
        monkeypatch.setitem(SOURCES, name, source)  # what `replace` enters goes after the test
        dataclasses.replace(source, counts=dict.fromkeys(source.counts, {}), hashes={})


@pytest.fixture
def cirr(trees, tmp_path, small_counts):
    return shutil.copytree(trees / "cirr", tmp_path / "cirr")


# ---------------------------------------- sound data
@pytest.mark.parametrize("name", FIVE)
def test_a_sound_folder(name, trees, small_counts):
    report = check_data(name, trees / name, deep=True)
    assert report.ok and report.errors == [] and report.warnings == []
    report.raise_for_errors()
    facts = str(report)
    assert facts.startswith(f"`{name}` in {trees / name}: 0 errors, 0 warnings.")
    assert "num_queries=" in facts and "Expected below" not in facts
    assert [fact.partition(":")[0] for fact in report.facts] == list(SOURCES[name].parts)


def test_other_counts_are_errors(trees):
    report = check_data("cirr", trees / "cirr")
    assert "val: num_queries is 30, expected 4181" in report.errors
    assert "test1: num_queries is 30, expected 4148" in report.errors
    assert len([line for line in report.warnings if "is not the official file, byte for byte" in line]) == 4
    with pytest.raises(ValueError, match="num_queries is 30, expected 4181"):
        report.raise_for_errors()
    report = check_data("fashioniq", trees / "fashioniq")
    assert "val: gallery_size of shirt is" in str(report) and "expected 6346" in str(report)
    report = check_data("genecis", trees / "genecis", parts=["focus_attribute"])
    assert report.errors == ["focus_attribute: num_queries of focus_attribute is 30, expected 2000"]
    # COCO's count was never published by the authors.
    report = check_data("coco", trees / "coco")
    assert report.ok and "val: num_queries is 110, expected 4765" in report.warnings


@pytest.mark.slow
def test_real_annotations_with_all_pictures(tmp_path):
    """The whole of CIRR with a drawn picture for each name: nothing to object to, in seconds."""
    layouts()["cirr"](tmp_path, real("cirr"), None)
    start = time.perf_counter()
    report = check_data("cirr", tmp_path, parts=["val", "test1"])
    assert (report.errors, report.warnings) == ([], [])
    assert time.perf_counter() - start < 30
    assert report.facts[0].startswith("val: 2297 of 2297 pictures; cirr: complete=True")


def test_hashes_of_real_annotations(tmp_path):
    shutil.copytree(real("genecis"), tmp_path / "genecis")
    report = check_data("genecis", tmp_path)
    assert not any("official" in line for line in report.warnings)
    path = tmp_path / "genecis" / "genecis" / "focus_object.json"
    path.write_text(path.read_text() + "\n")
    report = check_data("genecis", tmp_path)
    assert [line for line in report.warnings if "official" in line][0].startswith(f"{path} is not the official file")
    # The attribute tasks are not at hand, and the pictures are missing: both are told, in one message.
    assert sum("not found" in line for line in report.warnings) == 2
    assert sum("pictures are missing" in line and "as is their folder" in line for line in report.errors) == 2
    assert "Visual Genome 1.2. Nothing is downloaded here." in str(report)


# ---------------------------------------- what can be wrong
def test_everything_wrong_is_in_one_message(cirr):
    (cirr / "dev" / "dev-0-0-img0.png").unlink()
    (cirr / "dev" / "dev-0-0-img1.png").write_bytes(b"")
    (cirr / "test1" / "test1-0-1-img0.png").write_bytes(b"<html>not found</html>")
    (cirr / "dev" / "stray.png").write_bytes((cirr / "dev" / "dev-1-0-img0.png").read_bytes())
    report = check_data("cirr", cirr)
    message = str(report)
    assert "2 errors, 1 warnings" in message
    assert "val: 1 of" in message and "pictures are missing (first dev-0-0-img0)" in message
    assert "2 of" in message and "pictures are damaged" in message
    assert "dev-0-0-img1.png (0 bytes) is damaged" in message and "test1-0-1-img0.png (22 bytes)" in message
    assert f"1 pictures in {cirr / 'dev'} belong to no list that is there (first stray.png)" in message
    assert "Expected below `root`" in message and "NLVR2" in message
    assert check_data("cirr", cirr, parts=["test1"]).errors[0].startswith("1 of")


def test_truncated_pictures_are_found_without_decoding(cirr):
    path = cirr / "dev" / "dev-1-1-img0.png"
    path.write_bytes(path.read_bytes()[:-30])
    (fault,) = check_data("cirr", cirr).errors
    assert "1 of" in fault and "dev-1-1-img0.png" in fault and "cut short" in fault


def test_damage_inside_needs_a_deep_look(cirr):
    path = cirr / "dev" / "dev-1-1-img0.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert check_data("cirr", cirr).ok
    (fault,) = check_data("cirr", cirr, deep=True).errors
    assert "1 of" in fault and "dev-1-1-img0.png" in fault


def test_mixed_versions(cirr):
    splits = cirr / "cirr" / "image_splits"
    shutil.copy(splits / "split.rc2.test1.json", splits / "split.rc2.val.json")
    report = check_data("cirr", cirr)
    assert any("is not in its gallery" in line and "different versions or splits?" in line for line in report.errors)
    captions = cirr / "cirr" / "captions"
    shutil.copy(captions / "cap.rc2.test1.json", captions / "cap.rc2.val.json")
    assert any("has no 'target_hard'" in line for line in check_data("cirr", cirr).errors)


def test_duplicated_ids(cirr):
    path = cirr / "cirr" / "captions" / "cap.rc2.val.json"
    change_records(path, lambda records: records[1].update(pairid=records[0]["pairid"]))
    (line,) = check_data("cirr", cirr).errors
    assert line.startswith("val: 1 problems in the benchmark `cirr`: `queries` holds '12060' 2 times")


def test_a_part_that_is_not_there(cirr):
    (cirr / "cirr" / "captions" / "cap.rc2.test1.json").unlink()
    report = check_data("cirr", cirr)
    assert report.ok and len(report.warnings) == 1
    assert report.warnings[0].startswith("The captions of the split 'test1' of `cirr` not found: `root`")
    assert "\n" not in report.warnings[0] and len(report.facts) == 1


@pytest.mark.parametrize("aspects", [float("inf"), "addition", [1], None], ids=repr)
def test_aspects_of_circo_that_are_no_list_of_texts(aspects, trees, tmp_path):
    root = shutil.copytree(trees / "circo", tmp_path / "circo")
    file = next(root.rglob("val.json"))
    records = json.loads(file.read_text(encoding="utf-8"))
    records[1]["semantic_aspects"] = aspects
    file.write_text(json.dumps(records), encoding="utf-8")
    with pytest.raises(ValueError, match="val.json: `semantic_aspects` of query .* must be a list of texts"):
        load_circo(root)


def test_an_old_circo(trees, tmp_path, small_counts):
    root = shutil.copytree(trees / "circo", tmp_path / "circo")
    change_records(root / "annotations" / "val.json", lambda rows: [row.pop("semantic_aspects") for row in rows])
    report = check_data("circo", root)
    assert report.ok and report.warnings == [
        "val: an old file without `semantic_aspects`; there will be no figures per aspect."
    ]


def test_pictures_of_splits_that_are_only_listed(trees, tmp_path, small_counts):
    """FashionIQ's folder holds all splits. Pictures of others are no strangers, and their absence is no error."""
    root = shutil.copytree(trees / "fashioniq", tmp_path / "fashioniq")
    stray = [f"B00stray{number}" for number in range(3)]
    for name in stray[:2]:
        shutil.copy(next((root / "images").iterdir()), root / "images" / f"{name}.jpg")
    assert "2 pictures in" in str(check_data("fashioniq", root))
    for category in ("dress", "shirt", "toptee"):
        records = [{"target": stray[0], "candidate": stray[1], "captions": ["a", "b"]}]
        save_json(root / "captions" / f"cap.{category}.train.json", records)
        others = load_json(root / "image_splits" / f"split.{category}.val.json")[:60]
        save_json(root / "image_splits" / f"split.{category}.train.json", stray + others)
    report = check_data("fashioniq", root)
    assert report.ok
    assert [line for line in report.warnings if "train: 1 of" in line and "B00stray2" in line] == report.warnings


@pytest.mark.parametrize("name", FIVE)
def test_a_wrong_root(name, trees, tmp_path):
    other = FIVE[FIVE.index(name) - 1]
    report = check_data(name, trees / other)
    assert len(report.errors) == 1 and not report.warnings and not report.facts
    assert f"It looks like `{other}`" in str(report) and "Nothing is downloaded" in str(report)
    (tmp_path / "file").write_text("")
    assert "file is a file." in str(check_data(name, tmp_path / "file"))


def test_unknown_names():
    with pytest.raises(ValueError, match="`name` must be one of .*'cirr'.*got 'shapes'"):
        check_data("shapes", ".")
    with pytest.raises(ValueError, match="`parts` must be one of 'val', 'test1', 'train', got 'test2'"):
        check_data("cirr", ".", parts=["test2"])


def test_damaged_pictures_are_refused_when_they_are_opened(cirr):
    benchmark = load_cirr(cirr)
    name = benchmark.gallery[5]
    path = cirr / "dev" / f"{name}.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OSError, match=rf"{name}.png \(100 bytes\) is damaged, cut short"):
        benchmark.load_image(name)


# ---------------------------------------- kinds of pictures
def pixels_of(path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_grey_and_binary(tmp_path, noise):
    Image.fromarray(noise[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(pixels_of(tmp_path / "grey.png"), np.repeat(noise[..., :1], 3, axis=2))
    Image.fromarray(noise[..., 0] > 127).save(tmp_path / "binary.png")
    assert np.array_equal(pixels_of(tmp_path / "binary.png")[..., 1], 255 * (noise[..., 0] > 127))


def test_cmyk(tmp_path):
    plain = Image.new("RGB", (16, 16), (200, 120, 40))
    plain.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert Image.open(tmp_path / "cmyk.jpg").mode == "CMYK"
    assert np.abs(pixels_of(tmp_path / "cmyk.jpg").astype(int) - [200, 120, 40]).max() <= 3


def test_sixteen_bits_keep_their_shades(tmp_path):
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(pixels_of(tmp_path / "deep.png")[..., 0], deep >> 8)
    assert len(np.unique(pixels_of(tmp_path / "deep.png"))) == 256
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    assert np.array_equal(pixels_of(tmp_path / "deep.tif")[..., 2], deep >> 8)


def test_numbers_without_a_range_are_refused(tmp_path):
    for kind in (np.float32, np.int32):
        Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "numbers.tif")
        with pytest.raises(OSError, match="numbers of mode [FI], of which none is said to be white"):
            open_image(tmp_path / "numbers.tif")


def test_transparency_is_dropped(tmp_path, noise):
    alpha = np.linspace(0, 255, 600).astype(np.uint8).reshape(20, 30, 1)
    Image.fromarray(np.concatenate([noise, alpha], axis=2)).save(tmp_path / "rgba.png")
    assert np.array_equal(pixels_of(tmp_path / "rgba.png"), noise)
    palette = Image.fromarray(noise).quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(0, 160, 10)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pixels_of(tmp_path / "palette.png")
    assert np.array_equal(found, np.asarray(palette.convert("RGB")))


def test_orientation_is_not_followed(tmp_path, noise):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(noise).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(pixels_of(tmp_path / "turned.png"), noise)


def test_orientation_is_followed_where_that_is_asked_for(tmp_path, noise):
    stored = Image.fromarray(noise)
    for value in range(10):
        exif = Image.Exif()
        exif[0x0112] = value
        stored.save(tmp_path / "turned.png", exif=exif)
        found = open_image(tmp_path / "turned.png", upright=True)
        assert np.array_equal(found, ImageOps.exif_transpose(Image.open(tmp_path / "turned.png")))
        assert np.array_equal(as_picture(found), found)  # not turned once more
    stored.save(tmp_path / "odd.png", exif=b"Exif\0\0no entries at all")
    assert np.array_equal(open_image(tmp_path / "odd.png", upright=True), noise)


def test_huge_pictures_are_named(tmp_path, monkeypatch):
    Image.new("RGB", (40, 30)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(OSError, match=r"huge.png \(\d+ bytes\) is too large to be opened safely.*1200 pixels"):
        open_image(tmp_path / "huge.png")
    assert "huge.png" in image_fault(tmp_path / "huge.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif"])
def test_faults(tmp_path, noise, suffix):
    sound = tmp_path / f"sound.{suffix}"
    Image.fromarray(noise).save(sound)
    data = sound.read_bytes()
    assert image_fault(sound) is None and image_fault(sound, deep=True) is None
    cut = tmp_path / f"cut.{suffix}"
    for size in (0, 10, len(data) // 2, len(data) - 4):
        cut.write_bytes(data[:size])
        if suffix in ("gif", "png") and size == len(data) - 4:
            continue  # all pixels are there
        assert f"cut.{suffix}" in image_fault(cut), size
    # Something behind the end, as some cameras and shops write it, is no fault.
    cut.write_bytes(data + b"trailer")
    assert image_fault(cut) is None
    assert "gone" in image_fault(tmp_path / f"gone.{suffix}")


def test_folders_are_listed_once_and_formats_have_an_order(tmp_path, monkeypatch):
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    for place in ("a/x.jpg", "a/x.png", "a/y.JPEG", "a/notes.txt", "a/sub/z.jpg", "b/x.jpg", "b/w.v2.png"):
        (tmp_path / place).write_bytes(b"")
    index = ImageFolders([tmp_path / "none", tmp_path / "a", tmp_path / "b"])
    found = {name: index.find(name) for name in ("x", "y", "w.v2", "sub/z", "notes", "sub/x", "q")}
    expected = {"x": "a/x.png", "y": "a/y.JPEG", "w.v2": "b/w.v2.png", "sub/z": "a/sub/z.jpg"}
    assert found == {name: tmp_path / expected[name] if name in expected else None for name in found}
    monkeypatch.setattr("os.listdir", lambda folder: pytest.fail("listed again"))
    assert index.find("y") == tmp_path / "a" / "y.JPEG"


def test_pictures_in_memory(noise):
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    assert np.array_equal(np.asarray(open_image(buffer.getvalue())), noise)
