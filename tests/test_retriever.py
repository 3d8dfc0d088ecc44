"""`ComposedImageRetriever`: queries, indexes of folders, data sets and embeddings, search, and bad input."""

import logging
import random
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.projections import ImageToWordProjection
from rtd_hf.retrieval import CIREncoder
from rtd_hf.search import ComposedImageRetriever, ImageIndex, word_effects
from rtd_hf.shapes import ASSETS
from rtd_hf.shapes.pictures import picture as draw_picture
from rtd_hf.shapes.scenes import sample_scene


NUMBER = 24


def world_encoder() -> CIREncoder:
    """The offline world's small CLIP, loaded anew: random weights hardly tell one picture from another."""
    clip = ASSETS / "clip"
    return CIREncoder(
        CLIPTextModelForRTD.from_pretrained(clip).eval(),
        CLIPTextModelForRTD.load_vision_model(clip),
        projection=ImageToWordProjection.from_pretrained(ASSETS / "lincir"),
        tokenizer=AutoTokenizer.from_pretrained(clip),
        image_processor=CLIPTextModelForRTD.load_image_processor(clip),
    )


def scene_picture(seed: int) -> Image.Image:
    return draw_picture(sample_scene(random.Random(seed)), seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    (root / "more").mkdir()
    for seed in range(NUMBER):
        scene_picture(seed).save(root / ("more" if seed % 3 == 0 else "") / f"{seed:02d}.png")
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(b"")
    return root


@pytest.fixture
def retriever(folder) -> ComposedImageRetriever:
    made = ComposedImageRetriever(world_encoder(), model="org/clip", revision="abc")
    made.index(folder)
    return made


def name_of(seed: int) -> str:
    return f"{'more/' if seed % 3 == 0 else ''}{seed:02d}.png"


def unit(array):
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def angle(first, second):
    return np.degrees(np.arccos(np.clip((first * second).sum(-1), -1, 1)))


# --------------------------------------------------------------------------------------------------------- the queries
def test_embeddings_are_normalised_float32_arrays_and_those_of_the_encoder(retriever, folder):
    pictures = [scene_picture(seed) for seed in range(3)]
    images, texts = retriever.encode_images(pictures), retriever.encode_texts(["a circle", "is red"])
    queries = retriever.encode_queries(pictures, ["is red", "is blue", "without the circle"])
    for array, rows in ((images, 3), (texts, 2), (queries, 3)):
        assert isinstance(array, np.ndarray) and array.dtype == np.float32 and array.shape == (rows, retriever.width)
        np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, atol=1e-6)
    encoder = world_encoder()
    wanted = encoder.encode_queries(
        encoder.embed_references(pictures), ["is red", "is blue", "without the circle"]
    ).numpy()
    np.testing.assert_allclose(queries, wanted, atol=1e-6)
    np.testing.assert_allclose(images, encoder.encode_images(pictures).numpy(), atol=1e-6)
    from_files = retriever.encode_images([folder / name_of(seed) for seed in range(3)])
    np.testing.assert_allclose(from_files, images, atol=1e-6)


def test_the_weight_leads_from_the_picture_over_the_query_to_the_text(retriever):
    picture, text = [scene_picture(1)], ["is red"]
    image, words = retriever.encode_images(picture), retriever.encode_texts(text)
    at = {weight: retriever.encode_queries(picture, text, text_weight=weight) for weight in (0, 0.25, 0.5, 0.75, 1)}
    np.testing.assert_allclose(at[0], image, atol=1e-5)
    np.testing.assert_allclose(at[1], words, atol=1e-5)
    np.testing.assert_allclose(at[0.5], retriever.encode_queries(picture, text), atol=1e-6)
    assert angle(at[0.25], image) == pytest.approx(angle(at[0.5], image) / 2, abs=0.05)
    assert angle(at[0.75], words) == pytest.approx(angle(at[0.5], words) / 2, abs=0.05)


def test_several_references_are_the_mean_of_their_queries(retriever):
    first, second = scene_picture(1), scene_picture(2)
    alone = retriever.encode_queries([first, second], ["is red", "is red"])
    together = retriever.encode_queries([[first, second], first], ["is red", "is red"])
    np.testing.assert_allclose(together, [unit(alone.mean(0)), alone[0]], atol=1e-5)
    assert angle(together[0], alone[0]) > 1


def test_references_that_were_embedded_before_stand_for_pictures(retriever, monkeypatch):
    pictures, texts = [scene_picture(seed) for seed in (1, 2)], ["is red", "is blue", "is large"]
    features = retriever.embed_references(pictures)
    wanted = retriever.encode_queries([pictures[0], pictures[1], [pictures[1], pictures[0]]], texts, text_weight=0.4)
    embedded = []
    embed = retriever.encoder.embed_references

    def counted(images, *, number):
        embedded.extend(images(place) for place in range(number))
        return embed(images, number=number)

    monkeypatch.setattr(retriever.encoder, "embed_references", counted)
    mixed = [features[[0]], pictures[1], [pictures[1], features[[0]]]]
    np.testing.assert_allclose(retriever.encode_queries(mixed, texts, text_weight=0.4), wanted, atol=1e-6)
    assert embedded == [pictures[1]]  # once, although it comes twice
    embedded.clear()
    found, hits = retriever.search(features[[1]], "is red", 5), retriever.search(pictures[1], "is red", 5)
    assert [hit.id for hit in found] == [hit.id for hit in hits]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    assert embedded == [pictures[1]]
    embedded.clear()
    word_effects(retriever, pictures[0], "is large and red")
    assert len(embedded) == 2  # to find the best, and for all words together
    with pytest.raises(ValueError, match=r"A reference is one picture.*features\[\[row\]\]"):
        retriever.search(features, "is red")


def test_what_is_to_be_avoided_is_taken_away(retriever):
    picture, text = scene_picture(1), "is red"
    plain, unwanted = retriever.encode_queries([picture], [text]), retriever.encode_texts(["a circle"])
    queries = retriever.encode_queries([picture] * 2, [text] * 2, avoid=["a circle", None], avoid_weight=0.4)
    np.testing.assert_allclose(queries[0], unit(plain - 0.4 * unwanted)[0], atol=1e-5)
    np.testing.assert_allclose(queries[1], plain[0], atol=1e-5)


def test_texts_that_are_cut_are_warned_of(retriever, caplog):
    logger = logging.getLogger("rtd_hf.search.queries")
    logger.addHandler(caplog.handler)
    try:
        query = retriever.encode_queries([scene_picture(1)], ["red " * 2500])
        assert np.isfinite(query).all()
        assert "1 texts were longer" in caplog.text and "Say it shorter" in caplog.text
        caplog.clear()
        retriever.encode_queries([scene_picture(1)], ["red"])
        assert not caplog.text
    finally:
        logger.removeHandler(caplog.handler)


# ---------------------------------------------------------------------------------------------------------- the index
def test_a_folder_is_indexed_whole_by_paths_within_it(retriever, folder):
    assert sorted(retriever.gallery.ids) == sorted(name_of(seed) for seed in range(NUMBER))
    row = retriever.gallery.ids.index(name_of(5))
    np.testing.assert_allclose(
        retriever.gallery.embeddings[row], retriever.encode_images([scene_picture(5)])[0], atol=1e-5
    )


def test_a_data_set_is_indexed(retriever, folder):
    from datasets import Dataset
    from datasets import Image as ImageFeature

    rows = {"picture": [str(folder / name_of(seed)) for seed in range(5)], "key": list("abcde")}
    dataset = Dataset.from_dict(rows).cast_column("picture", ImageFeature())
    found = {name: retriever.gallery.embeddings[retriever.gallery.ids.index(name)] for name in retriever.gallery.ids}
    index = retriever.index(dataset, id_column="key")
    assert index.ids == list("abcde") and retriever.folder is None
    np.testing.assert_allclose(index.embeddings[3], found[name_of(3)], atol=1e-5)
    assert retriever.index(dataset).ids == [str(row) for row in range(5)]
    with pytest.raises(ValueError, match="`id_column` 'name' is no column"):
        retriever.index(dataset, id_column="name")
    with pytest.raises(ValueError, match="has 0 of them"):
        retriever.index(dataset.remove_columns("picture"))


def test_embeddings_are_brought_along(retriever):
    theirs, ids = np.array(retriever.gallery.embeddings) * 7, retriever.gallery.ids
    before = retriever.search(scene_picture(40), "is red")
    for form in (theirs, torch.from_numpy(theirs)):
        index = retriever.index(form, ids=ids)
        assert index.encoder is None
        assert [hit.id for hit in retriever.search(scene_picture(40), "is red")] == [hit.id for hit in before]
    with pytest.raises(ValueError, match="needs a name|need a name"):
        retriever.index(theirs)
    with pytest.raises(ValueError, match="wide, got 5"):
        retriever.index(theirs[:, :5], ids=ids)


def test_an_index_is_read_again_by_the_same_image_tower_only(retriever, folder, tmp_path):
    retriever.gallery.save(tmp_path / "index")
    same = ComposedImageRetriever(world_encoder())
    same.load_index(tmp_path / "index", pictures=folder)
    wanted = retriever.search(scene_picture(40), "is red")
    assert same.search(scene_picture(40), "is red") == wanted

    other = ComposedImageRetriever(world_encoder(), model="org/other")
    with torch.no_grad():
        next(iter(other.encoder.vision_model.parameters())).add_(1)
    with pytest.raises(ValueError, match=r"weights differ.*It is of org/clip abc, this retriever of org/other"):
        other.load_index(tmp_path / "index")
    resized = ComposedImageRetriever(world_encoder())
    resized.encoder.image_processor.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="preprocessing differ"):
        resized.load_index(tmp_path / "index")

    ImageIndex(np.array(retriever.gallery.embeddings), retriever.gallery.ids).save(tmp_path / "unknown")
    with pytest.raises(ValueError, match="does not say which model"):
        same.load_index(tmp_path / "unknown")
    assert len(same.load_index(tmp_path / "unknown", unknown=True)) == NUMBER
    ImageIndex(np.eye(3, dtype=np.float32), list("abc")).save(tmp_path / "narrow")
    with pytest.raises(ValueError, match="is 3 wide"):
        same.load_index(tmp_path / "narrow", unknown=True)


def test_pictures_are_added_and_removed(retriever, folder, tmp_path):
    for name in ("new.png", "newer.png"):
        scene_picture(77).save(tmp_path / name)
    scene_picture(78).save(tmp_path / "old.png")
    retriever.index(tmp_path)
    retriever.gallery.remove(["new.png", "newer.png"])
    assert retriever.gallery.ids == ["old.png"]
    retriever.add(["new.png"])
    assert retriever.search(scene_picture(77), None, 1, text_weight=0, exclude_reference=False)[0].id == "new.png"
    for name in ("../secret.png", "/etc/passwd", "a\0b", "x" * 9999):
        with pytest.raises(ValueError, match="outside of its folder|cannot be the name"):
            retriever.add([name])
    with pytest.raises(OSError, match=r"gone\.png"):
        retriever.add(["gone.png"])
    assert len(retriever.gallery) == 2


# --------------------------------------------------------------------------------------------------------- the search
def test_search_ranks_by_the_product_of_query_and_pictures(retriever):
    picture = scene_picture(40)
    hits = retriever.search(picture, "is red", 6)
    scores = (retriever.encode_queries([picture], ["is red"]) @ retriever.gallery.embeddings.T)[0]
    assert [hit.id for hit in hits] == [retriever.gallery.ids[row] for row in np.argsort(-scores, kind="stable")[:6]]
    np.testing.assert_allclose([hit.score for hit in hits], -np.sort(-scores)[:6], atol=1e-5)
    several = retriever.search([picture, scene_picture(41)], ["is red", "is blue"], 6)
    assert [hit.id for hit in several[0]] == [hit.id for hit in hits] and len(several) == 2
    one = retriever.search([picture, scene_picture(41)], "is red", 6)  # one query of two references
    assert one[0].score == pytest.approx(
        float(
            (
                retriever.encode_queries([[picture, scene_picture(41)]], ["is red"]) @ retriever.gallery.embeddings.T
            ).max()
        ),
        abs=1e-5,
    )


def test_the_reference_is_left_out_by_whatever_name(retriever, folder, tmp_path):
    with_it = retriever.search(folder / name_of(4), None, 30, text_weight=0, exclude_reference=False)
    assert with_it[0].id == name_of(4) and len(with_it) == NUMBER
    without = retriever.search(scene_picture(4), None, 30, text_weight=0)
    assert [hit.id for hit in without] == [hit.id for hit in with_it[1:]]

    for copy in range(9):  # more copies than are reckoned with
        scene_picture(4).save(tmp_path / f"{copy}.png")
    for seed in range(5, 9):
        scene_picture(seed).save(tmp_path / f"other{seed}.png")
    retriever.index(tmp_path)
    found = {hit.id for hit in retriever.search(scene_picture(4), "is red", 4, text_weight=0.1)}
    assert found == {f"other{seed}.png" for seed in range(5, 9)}


def test_ids_are_left_out_on_demand(retriever):
    best = retriever.search(scene_picture(40), "is red", 3)
    rest = retriever.search(scene_picture(40), "is red", 2, exclude=[best[0].id])
    assert [hit.id for hit in rest] == [hit.id for hit in best[1:]]
    with pytest.raises(KeyError, match="nowhere"):
        retriever.search(scene_picture(40), "is red", exclude=["nowhere"])


def test_two_threads_get_what_one_gets(retriever):
    asked = {50: "is red", 51: "is blue"}
    wanted = {seed: retriever.search(scene_picture(seed), text) for seed, text in asked.items()}
    found, faults = {50: [], 51: []}, []

    def ask(seed, text):
        try:
            for _ in range(8):
                found[seed].append(retriever.search(scene_picture(seed), text))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test has to see it
            faults.append(error)

    threads = [threading.Thread(target=ask, args=arguments) for arguments in asked.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert all(hits == wanted[seed] for seed in found for hits in found[seed])


def test_the_effect_of_a_word_is_the_score_it_brings(retriever):
    picture = scene_picture(40)
    ids = [hit.id for hit in retriever.search(picture, "is big red", 2)]
    effects = word_effects(retriever, picture, "is big red", ids)
    assert [effect.word for effect in effects] == ["is", "big", "red"]
    rows = retriever.gallery.embeddings[retriever.gallery.positions(ids)]
    whole, without = (retriever.encode_queries([picture], [text])[0] @ rows.T for text in ("is big red", "is red"))
    np.testing.assert_allclose(effects[1].effects, whole - without, atol=1e-5)
    assert effects[1].mean == pytest.approx(float((whole - without).mean()), abs=1e-5)
    assert word_effects(retriever, picture, "is big red")[1].effects[0] == pytest.approx(
        effects[1].effects[0], abs=1e-5
    )
    (only,) = word_effects(retriever, picture, "red", ids[:1])
    alone = retriever.encode_queries([picture], ["red"]) - retriever.encode_images([picture])
    assert only.effects[0] == pytest.approx(float(alone[0] @ rows[0]), abs=1e-5)


# ---------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("image", "text", "options", "error", "message"),
    [
        (0, "", {}, ValueError, "`texts` holds an empty text"),
        (0, "  \n", {}, ValueError, "`texts` holds an empty text"),
        (0, "red \ud83d", {}, ValueError, "`texts` holds a text at place 0 that is no Unicode"),
        (0, 5, {}, TypeError, "`text` must be a text"),
        ([], "red", {}, ValueError, "list is empty"),
        ([0, 0], ["red"], {}, ValueError, "one for each of 2 references"),
        (0, ["red"], {}, TypeError, r"`images` must be a list of pictures, got Image"),
        ("missing.png", ["red"], {}, TypeError, r"`images` must be a list of pictures, got str"),
        (None, "red", {}, TypeError, "`images` holds no picture at place 0: .* got NoneType"),
        ("missing.png", "red", {}, OSError, "missing.png"),
        (0, "red", {"k": 0}, ValueError, "`k` must be"),
        (0, "red", {"k": 2.5}, ValueError, "`k` must be"),
        (0, "red", {"text_weight": 1.5}, ValueError, "`text_weight` must be a number between"),
        (0, "red", {"text_weight": "0.5"}, ValueError, "`text_weight` must be a number between"),
        (0, "red", {"avoid": "x", "avoid_weight": -1}, ValueError, "`avoid_weight` must be a number"),
        (0, "red", {"avoid": " "}, ValueError, "`avoid` holds an empty text"),
        (0, "red", {"exclude": "01.png"}, TypeError, "`exclude` must be a list of ids, got the one id '01.png'"),
        ([0, 0], ["red", "blue"], {"avoid": ["x"]}, ValueError, "`avoid` must hold"),
    ],
)
def test_bad_queries_are_refused(retriever, image, text, options, error, message):
    pictures = [scene_picture(1) if entry == 0 else entry for entry in image] if isinstance(image, list) else image
    with pytest.raises(error, match=message):
        retriever.search(scene_picture(1) if pictures == 0 else pictures, text, **options)


def test_files_that_are_no_pictures_are_named(retriever, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    whole = scene_picture(1)
    whole.save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-40])
    with pytest.raises(OSError, match="too large to be opened safely"):
        retriever.search(tmp_path / "huge.png", "red")
    with pytest.raises(OSError, match=r"text\.png"):
        retriever.search(tmp_path / "text.png", "red")
    with pytest.raises(OSError, match=r"(?s)3 of 4 pictures.*leave them out knowingly: `strict=False`") as told:
        retriever.index(tmp_path)
    assert all(name in str(told.value) for name in ("text.png", "huge.png", "cut.png"))
    assert retriever.index(tmp_path, strict=False).ids == ["whole.png"]


def test_folders_without_pictures_and_links_that_leave_are_refused(retriever, folder, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match="hold no pictures .* but 1 other files"):
        retriever.index(tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file"):
        retriever.index(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="no folder"):
        retriever.index(tmp_path / "nowhere")
    scene_picture(1).save(tmp_path / "inside.png")
    (tmp_path / "link.png").symlink_to(folder / name_of(1))
    with pytest.raises(ValueError, match=r"1 pictures .* link\.png"):
        retriever.index(tmp_path)
    assert len(retriever.index(tmp_path, follow_links=True)) == 2
    assert len(retriever.gallery) == 2
    (tmp_path / "round").symlink_to(tmp_path)
    assert retriever.index(tmp_path, follow_links=True).ids == ["inside.png", "link.png"]


def test_sources_that_cannot_be_indexed_are_named(retriever, folder):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict({"picture": [str(folder / name_of(1)), None], "key": [1, 2]})
    for source in (None, 5, [folder / name_of(1)], rows.to_iterable_dataset(), DatasetDict(train=rows)):
        with pytest.raises(TypeError, match=f"`source` must be a folder.* got {type(source).__name__}"):
            retriever.index(source)
    with pytest.raises(OSError, match=r"1 of 2 pictures cannot be read:\s+1: A picture must be .* got NoneType"):
        retriever.index(rows, image_column="picture")
    for change in (retriever.gallery.remove, retriever.gallery.positions, retriever.add):
        with pytest.raises(TypeError, match="must be a list of ids, got the one id '01.png'"):
            change("01.png")


# ---------------------------------------------------------------------------------------------- what counts as picture
def test_pictures_are_turned_as_viewers_show_them(retriever, tmp_path):
    upright, exif = scene_picture(3), Image.Exif()
    exif[0x0112] = 6  # a phone held upright: stored lying, and to be turned
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.png", exif=exif)
    scene_picture(4).save(tmp_path / "other.png")
    (wanted,) = retriever.encode_images([upright])
    phone = tmp_path / "phone.png"
    retriever.index(tmp_path)
    for found in (
        retriever.encode_images([phone])[0],
        retriever.encode_images([Image.open(phone)])[0],
        retriever.embed_references([phone]).image_embeds[0].numpy(),
        retriever.gallery.embeddings[retriever.gallery.ids.index("phone.png")],
    ):
        np.testing.assert_allclose(unit(found), wanted, atol=1e-5)
    assert retriever.search(upright, "is red", 2) == retriever.search(upright, "is red", 2, exclude=["phone.png"])
    stored = retriever.encoder.encode_images([phone])[0].numpy()
    assert np.abs(stored - wanted).max() > 1e-2  # or there was nothing to turn


def test_arrays_and_tensors_are_pictures(retriever):
    image = scene_picture(5)
    pixels = np.asarray(image)
    wanted = retriever.encode_images([image, image.convert("L")])
    sixteen = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    alpha = np.full((*pixels.shape[:2], 1), 7, np.uint8)
    same = [
        pixels,
        pixels.astype(np.int64),
        pixels.transpose(2, 0, 1),
        torch.from_numpy(pixels.copy()),
        torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        np.concatenate([pixels, alpha], 2),
    ]
    grey = [np.asarray(image.convert("L")), np.asarray(image.convert("L"))[..., None], sixteen]
    found = retriever.encode_images(same + grey)
    np.testing.assert_allclose(found, wanted[[0] * len(same) + [1] * len(grey)], atol=1e-5)
    for wrong, told in (
        (pixels / 255, "got float64"),
        (pixels.astype(np.int32) * 2, "int32 from .* to"),
        (pixels > 9, "got bool"),
        (pixels[..., :2], r"the shape \(48, 48, 2\)"),
        (pixels[:0], r"the shape \(0, 48, 3\)"),
    ):
        with pytest.raises(ValueError, match=f"`images` holds no picture at place 1: .*{told}"):
            retriever.encode_images([pixels, wrong])
    for wrong in (None, 5, b"png"):
        with pytest.raises(TypeError, match=f"at place 0: .* got {type(wrong).__name__}"):
            retriever.encode_images([wrong])
    for wrong in (image, pixels, "a.png", retriever.embed_references([image])):
        with pytest.raises(TypeError, match="`images` must be a list of pictures"):
            retriever.encode_images(wrong)
    with pytest.raises(OSError, match="of mode F, of which none is said to be white"):
        retriever.encode_images([image.convert("F")])
    with pytest.raises(TypeError, match="`texts` must be a list of texts"):
        retriever.encode_texts("a star")


def test_nothing_to_search_in(folder):
    fresh = ComposedImageRetriever(world_encoder())
    with pytest.raises(ValueError, match="Call `index`"):
        fresh.search(scene_picture(1), "red")
    with pytest.raises(ValueError, match="`ids` belongs to embeddings"):
        fresh.index(folder, ids=["a"])
