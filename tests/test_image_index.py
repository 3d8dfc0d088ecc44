"""The index of pictures: search against a plain product and sort, what is added and removed, files, and bad input."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from rtd_hf.search import NEIGHBOURS, Hit, ImageIndex


KINDS = ("exact", "flat", "hnsw")


def unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=1, keepdims=True)


@pytest.fixture
def embeddings() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((700, 24)).astype(np.float32) * 3


@pytest.fixture
def queries(embeddings) -> np.ndarray:
    return embeddings[:9] + np.random.default_rng(1).standard_normal((9, 24)).astype(np.float32)


def names(number: int, first: int = 0) -> list[str]:
    return [f"p{i:04d}" for i in range(first, first + number)]


def by_hand(queries, embeddings, ids, k):
    scores = unit(queries.astype(np.float64)) @ unit(embeddings.astype(np.float64)).T
    return [[ids[i] for i in np.argsort(-row, kind="stable")[:k]] for row in scores], scores


def ids_of(hits: list[list[Hit]]) -> list[list[str]]:
    return [[hit.id for hit in row] for row in hits]


@pytest.mark.parametrize("kind", KINDS)
def test_search_is_the_plain_product_sorted(embeddings, queries, kind):
    ids = names(700)
    wanted, scores = by_hand(queries, embeddings, ids, 5)
    found = ImageIndex(embeddings, ids, kind=kind).search(queries, 5)
    assert ids_of(found) == wanted
    np.testing.assert_allclose(
        [[hit.score for hit in row] for row in found], -np.sort(-scores, axis=1)[:, :5], atol=2e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_excluded_is_not_found_and_its_place_is_filled(embeddings, queries, kind):
    ids = names(700)
    wanted, _ = by_hand(queries, embeddings, ids, 8)
    exclude = [row[:3] if number else [] for number, row in enumerate(wanted)]
    found = ids_of(ImageIndex(embeddings, ids, kind=kind).search(queries, 5, exclude=exclude))
    assert found == [wanted[0][:5], *(row[3:8] for row in wanted[1:])]


@pytest.mark.parametrize("kind", KINDS)
def test_added_and_removed_is_as_made_at_once(embeddings, queries, kind):
    ids = names(700)
    index = ImageIndex(embeddings[:400], ids[:400], kind=kind)
    index.remove(ids[2:60:2])
    index.add(embeddings[400:], ids[400:])
    index.remove([ids[1], ids[650]])
    left = [i for i, name in enumerate(ids) if name not in {*ids[2:60:2], ids[1], ids[650]}]
    wanted, _ = by_hand(queries, embeddings[left], [ids[i] for i in left], 6)
    assert len(index) == len(left) and ids[0] in index and ids[2] not in index
    assert ids_of(index.search(queries, 6)) == wanted
    assert index.positions([ids[3]]) == [1]


def test_much_removed_from_a_graph_is_built_anew(embeddings, queries):
    ids = names(700)
    index = ImageIndex(embeddings, ids, kind="hnsw")
    index.remove(ids[:100])
    assert index.neighbours.structure.ntotal == 700  # passed over
    index.remove(ids[100:300])
    assert index.neighbours.structure.ntotal == 400
    wanted, _ = by_hand(queries, embeddings[300:], ids[300:], 6)
    assert ids_of(index.search(queries, 6)) == wanted


def test_compressed_lists_propose_and_exact_scores_decide():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((200, 48))
    pictures = (centres[rng.integers(0, 200, 12000)] + 0.5 * rng.standard_normal((12000, 48))).astype(np.float32)
    queries = pictures[:40] + 0.2 * rng.standard_normal((40, 48)).astype(np.float32)
    ids = names(12000)
    wanted, scores = by_hand(queries, pictures, ids, 10)
    index = ImageIndex(pictures, ids, kind="ivf_pq")
    found = index.search(queries, 10)
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(ids_of(found), wanted, strict=True)]) > 0.95
    for query, row in enumerate(found):
        for hit in row:
            assert hit.score == pytest.approx(scores[query, ids.index(hit.id)], abs=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_kept(embeddings, queries, kind, tmp_path):
    index = ImageIndex(embeddings, names(700), kind=kind, encoder={"model": "org/clip", "weights": "abc"})
    index.remove(["p0003"])
    index.save(tmp_path / "index")
    index.add(embeddings[:1] + 1, ["later"])
    read = ImageIndex.load(tmp_path / "index")
    assert (len(read), read.kind, read.encoder) == (699, kind, {"model": "org/clip", "weights": "abc"})
    index.remove(["later"])
    assert read.search(queries, 7) == index.search(queries, 7)
    read.add(embeddings[3:4], ["p0003"])  # mapped files are copied, not written to
    assert len(read) == 700 and len(ImageIndex.load(tmp_path / "index")) == 699
    read.save(tmp_path / "index")
    assert len(ImageIndex.load(tmp_path / "index", in_memory=True)) == 700


def test_equals_come_in_the_order_they_were_added():
    index = ImageIndex(np.ones((300, 8), dtype=np.float32), names(300))
    assert ids_of(index.search(np.ones((1, 8)), 4)) == [names(4)]


def test_fewer_pictures_than_asked_for_are_all_of_them(embeddings, queries):
    index = ImageIndex(embeddings[:3], names(3))
    assert [len(row) for row in index.search(queries, 10)] == [3] * 9
    assert index.search(queries[:1], 10, exclude=[names(3)]) == [[]]


def test_what_is_half_written_is_no_index(embeddings, tmp_path, monkeypatch):
    index = ImageIndex(embeddings, names(700))
    index.save(tmp_path)
    monkeypatch.setattr(np, "save", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        index.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no index"):
        ImageIndex.load(tmp_path)


def _told(folder, **changes):
    about = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(about | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "ids.json").write_text('["a"]'), "do not belong together"),
        (lambda folder: (folder / "ids.json").write_bytes(b"\xff\xfe["), "damaged"),
        (lambda folder: (folder / "ids.json").write_text("[" * 100_000), "damaged"),
        (lambda folder: (folder / "index.json").write_text("[1]"), "must hold a dict"),
        (lambda folder: (folder / "index.json").write_text('{"format": "x"}'), "no index of this version"),
        (lambda folder: _told(folder, encoder=["clip"]), r"damaged: `encoder` is \['clip'\]"),
        (lambda folder: (folder / "embeddings.npy").write_bytes(b"\x93NUMPY"), "damaged"),
        (lambda folder: (folder / "embeddings.npy").unlink(), "missing"),
        (lambda folder: np.save(folder / "embeddings.npy", np.array([object()]), allow_pickle=True), "damaged"),
        (lambda folder: np.save(folder / "embeddings.npy", np.ones((700, 24))), "do not belong together"),
        (lambda folder: (folder / "neighbours.faiss").write_bytes(b"IxFI" + b"\0" * 30), "damaged"),
        (lambda folder: np.save(folder / "neighbours.npy", np.arange(700)[::-1].copy()), "do not belong"),
        (lambda folder: np.save(folder / "neighbours.npy", np.arange(1, 701)), "do not belong"),
    ],
)
def test_damaged_files_are_named(embeddings, tmp_path, change, message):
    ImageIndex(embeddings, names(700), kind="flat").save(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        ImageIndex.load(tmp_path)


def test_damaged_numbers_are_seen_by_the_first_search(embeddings, queries, tmp_path):
    index = ImageIndex(embeddings, names(700))
    index.save(tmp_path)
    broken = index.embeddings.copy()
    broken[431, 3] = np.nan
    np.save(tmp_path / "embeddings.npy", broken)
    with pytest.raises(ValueError, match="row 431"):
        ImageIndex.load(tmp_path).search(queries)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": np.zeros((2, 4), dtype=np.float32)}, "row 0 has the length 0"),
        ({"embeddings": np.full((2, 4), np.inf, dtype=np.float32)}, "finite"),
        ({"embeddings": np.ones((2, 4), dtype=np.int64)}, "floating point"),
        ({"embeddings": np.ones((2, 2, 2))}, "shape"),
        ({"embeddings": np.ones((0, 4))}, "at least one row"),
        ({"embeddings": np.ones((2, 4)), "normalized": True}, "of length 1"),
        ({"ids": ["a", "a"]}, "'a' comes twice"),
        ({"ids": ["a"]}, "one id for each of 2"),
        ({"ids": "ab"}, "list of strings"),
        ({"ids": ["a", 3]}, "list of strings"),
        ({"kind": "annoy"}, "`kind` must be"),
        ({"kind": "ivf_pq"}, "pictures at least, got 2"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageIndex(**{"embeddings": torch.ones(2, 4), "ids": ["a", "b"], **arguments})


def test_bad_changes_and_queries_are_refused_and_change_nothing(embeddings, queries):
    index = ImageIndex(embeddings, names(700))
    for action, error, message in (
        (lambda: index.add(embeddings[:1], ["p0000"]), ValueError, "are in the index"),
        (lambda: index.add(embeddings[:1, :5], ["new"]), ValueError, "24 wide"),
        (lambda: index.remove(["p0000", "nowhere"]), KeyError, "nowhere"),
        (lambda: index.remove(names(700)), ValueError, "one at least"),
        (lambda: index.search(queries[:, :5]), ValueError, "the same CLIP"),
        (lambda: index.search(queries * np.nan), ValueError, "finite"),
        (lambda: index.search(queries, 0), ValueError, "`k`"),
        (lambda: index.search(queries, exclude=[[]]), ValueError, "one list for each of 9"),
        (lambda: index.search(queries, exclude=[["x"]] * 9), KeyError, "not in the index"),
    ):
        with pytest.raises(error, match=message):
            action()
        assert len(index) == 700


def test_without_faiss_the_message_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "import numpy as np; from rtd_hf.search import ImageIndex\n"
        "ImageIndex(np.eye(3, dtype='float32'), list('abc')).search(np.eye(3))\n"
        "try: ImageIndex(np.eye(3, dtype='float32'), list('abc'), kind='flat')\n"
        "except ImportError as error: print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install faiss-cpu" in told


def test_all_kinds_are_known():
    assert {*KINDS, "ivf_pq"} == {"exact", *NEIGHBOURS}
    assert json.dumps(NEIGHBOURS)
