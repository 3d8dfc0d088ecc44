"""Pictures are encoded once, found again on disk, never silently missing, the same from any number of processes."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_on_processes
from safetensors.torch import load_file, save_file
from world_models import random_retriever

from rtd_hf.benchmarks import BENCHMARKS, CIRBenchmark, CIRQuery
from rtd_hf.evaluator import CIREvaluator
from rtd_hf.features import UnreadableImagesError, picture_digest


NUMBER = 12
IDS = [f"p{i}" for i in range(NUMBER)]


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for image_id in IDS:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{image_id}.png")
    return folder


def counted(**options):
    """A retriever, and the numbers of pictures its image tower was given."""
    retriever, seen = random_retriever(**options), []
    retriever.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return retriever, seen


def loader(folder: Path):
    return lambda image_id: folder / f"{image_id}.png"


def gallery(retriever, pictures: Path, ids=IDS, **options):
    return retriever.embed_gallery(ids, loader(pictures), **options)


def plain(folder: Path, ids=IDS) -> torch.Tensor:
    """The embeddings one by one, by the stock model."""
    retriever = random_retriever()
    rows = []
    for image_id in ids:
        with Image.open(folder / f"{image_id}.png") as image:
            pixels = retriever.image_processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            rows.append(retriever.vision_model(pixels).image_embeds[0])
    return torch.stack(rows)


# ------------------------------------------------------------------------------------------------------------ encoding


@pytest.mark.parametrize("num_workers", [0, 2])
def test_embeddings_are_those_of_the_stock_model(pictures, num_workers):
    retriever, seen = counted(batch_size=5, num_workers=num_workers)
    found = gallery(retriever, pictures)
    torch.testing.assert_close(found.image_embeds, plain(pictures), rtol=0, atol=2e-5)
    assert found.unreadable == {} and seen == [5, 5, 2]


def test_reading_draws_no_random_numbers(pictures):
    retriever = random_retriever(num_workers=1, batch_size=5)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    gallery(retriever, pictures)
    assert torch.rand(4).equal(expected)


def test_copies_of_a_picture_have_the_same_embedding_bit_for_bit(pictures):
    shutil.copy(pictures / "p0.png", pictures / "p9.png")
    embeds = gallery(random_retriever(batch_size=5), pictures).image_embeds
    assert embeds[0].equal(embeds[9]) and not embeds[0].equal(embeds[1])


def test_digests_tell_pictures_apart():
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    other = image.copy()
    other[3, 5, 2] = 1
    variants = [image, other, image.reshape(6, 4, 3), Image.fromarray(image), Image.fromarray(image).convert("L")]
    assert len({picture_digest(variant) for variant in variants}) == 5
    assert picture_digest(Image.fromarray(image)) == picture_digest(Image.fromarray(image.copy()))


def test_a_tower_that_gives_nan_is_refused(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("rtd_hf.features._SAVED_AT_ONCE", 4)
    retriever = random_retriever(batch_size=4)
    with torch.no_grad():
        retriever.vision_model.visual_projection.weight[0] = torch.nan
    with pytest.raises(ValueError, match=f"NaN or infinity for {NUMBER} of {NUMBER} pictures .* number 0"):
        gallery(retriever, pictures, folder=tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


# ----------------------------------------------------------------------------------------------- pictures that are bad


def spoil(folder: Path) -> None:
    (folder / "p3.png").unlink()
    (folder / "p7.png").write_bytes((folder / "p7.png").read_bytes()[:700])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_unreadable_pictures_are_named_at_once(pictures, num_workers):
    spoil(pictures)
    retriever, seen = counted(batch_size=4, num_workers=num_workers)
    with pytest.raises(UnreadableImagesError) as caught:
        gallery(retriever, pictures)
    message = str(caught.value)
    assert "2 of 12 pictures cannot be read" in message and list(caught.value.faults) == ["p3", "p7"]
    assert f"There is no picture at {pictures / 'p3.png'}" in message
    assert f"The picture {pictures / 'p7.png'} (700 bytes) is damaged" in message
    assert sum(seen) <= 4  # nothing is encoded for nothing
    with pytest.raises(UnreadableImagesError, match="2 of 12 pictures"):
        retriever.embed_images([pictures / f"{image_id}.png" for image_id in IDS])


def test_lenient_mode_leaves_them_out(pictures):
    spoil(pictures)
    found = gallery(random_retriever(), pictures, strict=False)
    left = [image_id for image_id in IDS if image_id not in ("p3", "p7")]
    torch.testing.assert_close(found.image_embeds, plain(pictures, left), rtol=0, atol=2e-5)
    assert list(found.unreadable) == ["p3", "p7"]


def test_nothing_readable_at_all_is_an_error_in_either_mode(pictures):
    with pytest.raises(UnreadableImagesError, match="3 of 3 pictures .*\n.*\n.*\n.*\nThere is nothing left"):
        random_retriever().embed_gallery(["a", "b", "c"], loader(pictures), strict=False)


def benchmark_of(folder: Path) -> CIRBenchmark:
    queries = [
        CIRQuery("first", "p0", ("is red",), ("p1", "p2")),
        CIRQuery("lost reference", "p3", ("is red",), ("p4",)),
        CIRQuery("lost target", "p5", ("is blue",), ("p6", "p7")),
        CIRQuery("last", "p8", ("has no star",), ("p9",)),
    ]
    return CIRBenchmark("toy", queries, tuple(IDS), loader(folder), ("recall@1", "recall@5", "map@5"))


def test_lenient_evaluation_says_what_its_denominators_are(pictures, caplog):
    spoil(pictures)
    with pytest.raises(UnreadableImagesError, match="Nothing is scored without them"):
        CIREvaluator(benchmark_of(pictures), random_retriever()).evaluate()
    evaluator = CIREvaluator(benchmark_of(pictures), random_retriever(), strict=False)
    with caplog.at_level(logging.WARNING):
        result = evaluator.evaluate()
    assert [query.id for query in evaluator.benchmark.queries] == ["first", "last"]
    assert result.num_queries == 2 and result.protocol["left_out"] == {"images": 2, "queries": 2}
    assert result.protocol["gallery_size"] == 10 and all(len(values) == 2 for values in result.per_query.values())
    assert "Not comparable" in caplog.text and "num_queries=2" in caplog.text
    # The figures are those of a benchmark that never had the pictures.
    rest = benchmark_of(pictures).without_images({"p3", "p7"})
    assert CIREvaluator(rest, random_retriever()).evaluate().metrics == result.metrics
    assert len(CIREvaluator(benchmark_of(pictures), random_retriever(), strict=False).search(3)) == 2


# -------------------------------------------------------------------------------------------------------- kept on disk


def test_features_are_found_again(pictures, tmp_path):
    retriever, seen = counted(batch_size=5)
    first = gallery(retriever, pictures, folder=tmp_path / "kept")
    assert sum(seen) == NUMBER
    again, seen = counted(batch_size=5)
    second = gallery(again, pictures, folder=tmp_path / "kept")
    assert seen == [] and second.image_embeds.equal(first.image_embeds)
    (file,) = (tmp_path / "kept").iterdir()
    assert load_file(file)["image_embeds"].equal(first.image_embeds)


def test_another_tower_or_preprocessing_is_another_file(pictures, tmp_path):
    folder, counts = tmp_path / "kept", []

    def run(change):
        retriever, seen = counted()
        change(retriever)
        gallery(retriever, pictures, folder=folder)
        counts.append(sum(seen))

    def weight(retriever):
        with torch.no_grad():
            retriever.vision_model.visual_projection.weight[0, 0] += 1e-3

    def processor(retriever):
        retriever.image_processor.image_mean = [0.5, 0.5, 0.5]

    def padding(retriever):
        retriever.projection.config.image_preprocess = "targetpad"

    for change in (lambda retriever: None, weight, processor, padding):
        run(change)
        run(change)
    assert counts == [NUMBER, 0] * 4 and len(list(folder.iterdir())) == 4


def test_other_galleries_lend_what_they_know_whatever_it_is_called(pictures, tmp_path):
    folder = tmp_path / "kept"
    gallery(random_retriever(), pictures, IDS[:8], folder=folder, name="one")
    shutil.copytree(pictures, tmp_path / "moved")
    (tmp_path / "moved" / "p2.png").rename(tmp_path / "moved" / "another name.png")
    retriever, seen = counted()
    ids = ["p9", "another name", "p0"]
    found = gallery(retriever, tmp_path / "moved", ids, folder=folder, name="two")
    assert seen == [1]
    torch.testing.assert_close(found.image_embeds, plain(tmp_path / "moved", ids), rtol=0, atol=2e-5)


def test_pictures_that_changed_are_noticed_and_made_anew(pictures, tmp_path, caplog):
    gallery(random_retriever(), pictures, folder=tmp_path / "kept")
    Image.new("RGB", (40, 40), "red").save(pictures / "p4.png")
    retriever, seen = counted()
    with caplog.at_level(logging.WARNING):
        found = gallery(retriever, pictures, folder=tmp_path / "kept")
    assert "are stale: the picture 'p4' is no longer" in caplog.text and seen == [1]
    torch.testing.assert_close(found.image_embeds, plain(pictures), rtol=0, atol=2e-5)
    retriever, seen = counted()
    gallery(retriever, pictures, folder=tmp_path / "kept")
    assert seen == []


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "cut":
        file.write_bytes(content[:-100])
    elif how == "flipped":
        file.write_bytes(content[:-50] + bytes([content[-50] ^ 1]) + content[-49:])
    else:
        file.write_bytes(b"")


@pytest.mark.parametrize(
    ("how", "words"), [("cut", "half-written"), ("empty", "half-written"), ("flipped", "checksum differs")]
)
def test_a_damaged_file_is_named_and_made_anew(pictures, tmp_path, caplog, how, words):
    folder = tmp_path / "kept"
    expected = gallery(random_retriever(), pictures, folder=folder)
    (file,) = folder.iterdir()
    damage(file, how)
    retriever, seen = counted()
    with caplog.at_level(logging.WARNING):
        found = gallery(retriever, pictures, folder=folder)
    assert words in caplog.text and str(file) in caplog.text and sum(seen) == NUMBER
    assert found.image_embeds.equal(expected.image_embeds)
    retriever, seen = counted()
    gallery(retriever, pictures, folder=folder)
    assert seen == []


def test_a_file_of_somebody_else_is_left_alone(pictures, tmp_path):
    folder = tmp_path / "kept"
    gallery(random_retriever(), pictures, folder=folder)
    (file,) = folder.iterdir()
    save_file({"thesis": torch.ones(3)}, file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="is something else .* Nothing was changed"):
        gallery(random_retriever(), pictures, folder=folder)
    assert file.read_bytes() == before


def test_a_file_under_the_name_of_another_encoder_is_not_used(pictures, tmp_path, caplog):
    folder = tmp_path / "kept"
    other = random_retriever()
    with torch.no_grad():
        other.vision_model.visual_projection.weight.neg_()
    gallery(other, pictures, folder=folder)
    (foreign,) = folder.iterdir()
    gallery(random_retriever(), pictures, folder=folder)
    (own,) = set(folder.iterdir()) - {foreign}
    shutil.copy(foreign, own)
    with caplog.at_level(logging.WARNING):
        found = gallery(random_retriever(), pictures, folder=folder)
    assert "are of another encoder" in caplog.text
    torch.testing.assert_close(found.image_embeds, plain(pictures), rtol=0, atol=2e-5)


def test_an_interrupted_run_goes_on(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("rtd_hf.features._SAVED_AT_ONCE", 4)
    folder = tmp_path / "kept"
    retriever = random_retriever(batch_size=2)
    calls = []

    def stop(module, args, kwargs):
        calls.append(len(kwargs["pixel_values"]))
        if len(calls) == 5:
            raise KeyboardInterrupt

    retriever.vision_model.register_forward_pre_hook(stop, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        gallery(retriever, pictures, folder=folder)
    assert len(list(folder.glob("*.part-*.safetensors"))) == 2
    retriever, seen = counted(batch_size=2)
    found = gallery(retriever, pictures, folder=folder)
    assert sum(seen) == NUMBER - 8 and not list(folder.glob("*.part-*"))
    torch.testing.assert_close(found.image_embeds, plain(pictures), rtol=0, atol=2e-5)


def test_lenient_galleries_are_kept_too_and_completed_later(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "whole")
    spoil(pictures)
    gallery(random_retriever(), pictures, folder=tmp_path / "kept", strict=False)
    retriever, seen = counted()
    again = gallery(retriever, pictures, folder=tmp_path / "kept", strict=False)
    assert seen == [] and list(again.unreadable) == ["p3", "p7"]
    retriever, seen = counted()
    whole = gallery(retriever, tmp_path / "whole", folder=tmp_path / "kept")
    assert seen == [2] and whole.unreadable == {}


def test_other_seeds_of_the_world_do_not_share_a_file(tmp_path):
    options = {"features": tmp_path / "kept"}
    for seed in (0, 1, 0):
        benchmark = BENCHMARKS["shapes_sparse"](num_queries=5, seed=seed)
        kept = CIREvaluator(benchmark, random_retriever(), **options).evaluate()
        assert kept.metrics == CIREvaluator(benchmark, random_retriever()).evaluate().metrics


# --------------------------------------------------------------------------------------------------- several processes


@pytest.mark.parametrize("method", ["lincir", pytest.param("context_i2w", marks=pytest.mark.slow)])
def test_two_processes_give_the_numbers_of_one(tmp_path, method):
    run_on_processes(2, Path(__file__).with_name("features_worker.py"), str(tmp_path), method)
    found = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    benchmark = BENCHMARKS["shapes"](num_queries=20)
    evaluator = CIREvaluator(benchmark, random_retriever(method, batch_size=16))
    torch.set_num_threads(1)
    expected = {composer: evaluator.evaluate(composer=composer) for composer in ("projection", "sum")}
    for worker in found:
        assert worker["shared"] == [sum(worker["pictures"]) for worker in found]  # each did some, neither all
        for composer, result in expected.items():
            assert worker[composer].keys() == result.per_query.keys()
            assert all(worker[composer][name].equal(values) for name, values in result.per_query.items())
        assert worker["search"] == evaluator.search(5)
        assert worker["gallery"].equal(evaluator.image_embeds) and worker["again"].equal(evaluator.image_embeds)
        assert worker["faults"] == ["00001", "00020"]
    encoded = [worker["gallery pictures"] for worker in found]
    assert sum(encoded) == len(benchmark.gallery) and min(encoded) > 0
