"""The report on triplets: every figure against a small set counted by hand, and the page against what it shows."""

import json
import random
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from test_examples import run

from rtd_hf.triplets import TRIPLET_COLUMNS, FilterOptions, TripletFilter
from rtd_hf.triplets.page import report_page
from rtd_hf.triplets.quality import changed_words, consistency, measure_triplets, similarities


def row(texts, **more):
    return dict(zip(TRIPLET_COLUMNS, texts, strict=True)) | more


ROWS = [
    row(("a red dog", "make the dog blue", "a blue dog"), rule="attribute", source="red dog", target="blue dog"),
    row(
        ("two dogs on grass", "swap the dogs for cats", "two cats on grass"),
        rule="replace",
        source="dogs",
        target="cats",
    ),
    row(("a cat", "add a hat", "a cat"), rule="add", source="", target="hat"),  # forgot the hat
    row(("a dog and a dog", "remove one", "a dog"), rule="remove", source="dog", target=""),
]


def encode(texts):
    """Known vectors: counts of some words."""
    words = ("red", "blue", "dog", "cat", "hat", "make", "add", "grass")
    return np.array([[1 + text.count(word) for word in words] for text in texts], dtype=np.float32)


class TestFigures:
    def test_against_a_count_by_hand(self):
        report = measure_triplets(ROWS)
        assert report["rows"] == 4 and report["rules"] == {"attribute": 1, "replace": 1, "add": 1, "remove": 1}
        assert report["openings"] == {"make": 1, "swap": 1, "add": 1, "remove": 1}
        lengths = report["lengths"]["reference_caption"]
        assert lengths == {"mean": 3.5, "median": 3, "p90": 5, "max": 5, "histogram": [[2, 1], [3, 1], [4, 1], [5, 1]]}
        assert report["vocabulary"]["reference_caption"] == 9  # a red dog two dogs on grass cat and
        assert report["distinct"]["conditioning_caption"] == 1.0
        # 14 words, 10 pairs of neighbours, no two the same
        assert report["distinct_word_pairs"] == pytest.approx(10 / 14, abs=1e-4)
        assert report["consistent"] == 0.75 and report["consistent_by_rule"]["add"] == 0.0
        assert report["shares"] == {
            "names_source": pytest.approx(2 / 3, abs=1e-4),
            "source_in_reference": 1.0,
            "source_gone": 1.0,
            "names_target": 1.0,
            "target_in_target": pytest.approx(2 / 3, abs=1e-4),
        }
        assert report["faults"] == {"identical": 1}
        assert [one["row"] for one in report["worst"]["target_in_target"]] == [2]
        assert json.loads(json.dumps(report)) == json.loads(json.dumps(measure_triplets(iter(ROWS))))

    def test_cosines(self):
        found = similarities(ROWS, encode)
        for place, one in enumerate(ROWS):
            reference, conditioning, target, both = encode(
                [*(one[name] for name in TRIPLET_COLUMNS), f"{one['reference_caption']} {one['conditioning_caption']}"]
            )
            unit = [vector / np.linalg.norm(vector) for vector in (reference, conditioning, target, both)]
            moved = unit[2] - unit[0]
            moved = moved / np.linalg.norm(moved) if np.linalg.norm(moved) else moved
            wanted = (unit[0] @ unit[2], unit[2] @ unit[3], unit[2] @ unit[1], moved @ unit[1])
            names = ("reference_target", "target_concatenation", "target_conditioning", "moved_as_told")
            for name, value in zip(names, wanted, strict=True):
                assert found[name][place] == pytest.approx(value, abs=1e-6)
        report = measure_triplets(ROWS, encode=encode)
        assert report["similarity"]["reference_target"]["mean"] == pytest.approx(
            float(found["reference_target"].mean()), abs=1e-4
        )
        low = report["worst"]["reference_target, low"]
        assert low[0]["row"] == int(found["reference_target"].argmin())
        assert [one["value"] for one in low] == sorted(one["value"] for one in low)
        with pytest.raises(ValueError, match="not finite"):
            similarities(ROWS, lambda texts: np.full((len(texts), 2), np.nan))

    def test_provenance_is_made_up_for(self):
        assert changed_words("A red dog, running", "a blue dog running") == ("red", "blue")
        bare = {name: ROWS[0][name] for name in TRIPLET_COLUMNS}
        assert consistency(bare) == dict.fromkeys(
            ("source_in_reference", "source_gone", "names_target", "target_in_target"), True
        ) | {"names_source": False}

    def test_noise_and_shuffling_show(self):
        """What the report is for: bad sets score below good ones."""
        from rtd_hf.shapes.edits import sample_triplet

        rng = random.Random(0)
        good = [sample_triplet(rng) for _ in range(300)]
        shuffled = [{**one, "conditioning_caption": other["conditioning_caption"]} for one, other in zip(
            good, [*good[1:], good[0]], strict=True)]  # fmt: skip
        shares = [measure_triplets(rows)["shares"]["names_target"] for rows in (good, shuffled)]
        assert shares[0] > shares[1] + 0.2

    def test_sample_is_drawn_evenly(self):
        rows = [row((f"a dog {number}", "is red", f"a red dog {number}")) for number in range(1000)]
        drawn = [one["row"] for one in measure_triplets(rows, sample=100, encoded=100)["sample"]]
        assert len(set(drawn)) == 100 and 350 < np.mean(drawn) < 650
        assert drawn == [one["row"] for one in measure_triplets(iter(rows), sample=100, encoded=100)["sample"]]
        assert drawn != [one["row"] for one in measure_triplets(rows, sample=100, encoded=100, seed=1)["sample"]]

    def test_bad_rows_are_counted(self):
        bad = [row((None, "x", "y")), row(("a", "b", float("nan"))), {"reference_caption": "a"}]
        report = measure_triplets([*ROWS, *bad])
        assert report["rows"] == 7 and report["faults"]["reference: missing"] == 1
        assert report["faults"]["target: no text"] == 1
        only = measure_triplets(bad)
        assert only["rows"] == 3 and only["consistent"] == 0.0
        assert "missing" in report_page({"bad": only})
        with pytest.raises(ValueError, match="no triplets"):
            measure_triplets([])


class Page(HTMLParser):
    """Tags, their attributes, and texts of a page; unclosed tags are kept."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        self.texts.append(data)


class TestPage:
    EVIL = row(
        ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a dog"), rule="<b>", source="x", target=""
    )

    def test_self_contained_and_escaped(self):
        text = report_page({"<i>name": measure_triplets([*ROWS, self.EVIL], encode=encode)})
        page = Page(text)
        assert not {"script", "img", "link", "iframe", "b", "i"} & set(page.tags) and page.open == []
        assert "<script>alert(1)</script>" in page.texts and "<i>name" in page.texts
        assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
        assert not re.search(r"url\(|@import|https?://", text)
        assert "default-src 'none'" in text

    def test_shows_the_figures(self):
        report = measure_triplets(ROWS, encode=encode, triplet_filter=TripletFilter(FilterOptions()))
        page = Page(report_page({"mine": report}))
        texts = " ".join(page.texts)
        for shown in ("75.0 %", "identical", "swap the dogs for cats", "reference and target", "attribute", "3.5"):
            assert shown in texts
        assert page.tags.count("svg") == 3 + 1 + 4

    def test_side_by_side(self):
        report = measure_triplets(ROWS)
        one, two = (Page(report_page(reports)) for reports in ({"a": report}, {"a": report, "b": report}))
        assert two.tags.count("table") == 2 * one.tags.count("table")
        with pytest.raises(ValueError, match="empty"):
            report_page({})


def test_script(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.jsonl"
    names = ("input", "edit", "after")
    renamed = [dict(zip(names, list(one.values())[:3], strict=True)) for one in ROWS]
    path.write_text("".join(json.dumps(one) + "\n" for one in renamed))
    run("inspect_triplets.py", str(path), str(path), "--columns", "target_caption=after", "--output",
        str(tmp_path / "report.html"), monkeypatch=monkeypatch)  # fmt: skip
    reports = json.loads((tmp_path / "report.json").read_text())
    assert list(reports) == [str(path), f"{path} (2)"] and reports[str(path)]["rows"] == 4
    assert set(reports[str(path)]["similarity"]) == {
        "reference_target", "target_concatenation", "target_conditioning", "moved_as_told"}  # fmt: skip
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert "4 triplets" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="must end in .html"):
        run("inspect_triplets.py", str(path), "--output", str(tmp_path / "r.txt"), monkeypatch=monkeypatch)
