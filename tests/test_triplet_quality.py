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
        # The third forgot the hat, the last one does not say what to remove.
        assert report["consistent"] == 0.5 and report["consistent_by_rule"]["add"] == 0.0
        assert report["consistent_by_rule"]["attribute"] == 1.0 and report["consistent_by_rule"]["remove"] == 0.0
        assert report["shares"] == {
            "names_source": pytest.approx(2 / 3, abs=1e-4),
            "source_in_reference": 1.0,
            "source_gone": 1.0,
            "names_target": 1.0,
            "says_edit": 0.75,
            "target_in_target": pytest.approx(2 / 3, abs=1e-4),
        }
        # red, blue: blue is said; dog, cat: both; no change; dog: not said
        assert report["change_named"] == pytest.approx((0.5 + 1 + 0) / 3, abs=1e-4)
        assert report["common_words"] == pytest.approx((2 / 4 + 3 / 5 + 1 + 2 / 3) / 4, abs=1e-4)
        assert report["words_once"]["reference_caption"] == 0.5  # 7 of 14: red two dogs on grass cat and
        assert report["effective"] == {"rules": 4.0, "openings": 4.0}
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
            ("source_in_reference", "source_gone", "names_target", "target_in_target", "says_edit"), True
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

    def test_every_damage_shows(self):
        """Each kind of damage moves a measure away from where all the good sets have it, without any provenance."""
        from rtd_hf.shapes.edits import sample_triplet

        reference, conditioning, target = TRIPLET_COLUMNS
        rng = random.Random(4)

        def figures(rows):
            report = measure_triplets([{name: one[name] for name in TRIPLET_COLUMNS} for one in rows])
            names = ("change_named", "common_words", "consistent")
            return {name: report[name] for name in names} | {
                "openings": report["effective"]["openings"],
                "words_once": report["words_once"][target],
            }

        def noisy(text):
            return " ".join(f"x{rng.randrange(10**6)}" if rng.random() < 0.2 else word for word in text.split())

        good = [[sample_triplet(rng) for _ in range(400)] for _ in range(5)]
        usual = [figures(rows) for rows in good]
        pairs = list(zip(good[0], good[1], strict=True))
        damaged = {
            "change_named": [{**one, target: other[target]} for one, other in pairs],
            "common_words": [{**(one, other)[n % 3 == 0], reference: one[reference], conditioning: one[conditioning]}
                             for n, (one, other) in enumerate(pairs)],
            "consistent": [{**one, conditioning: other[conditioning]} for one, other in pairs],
            "openings": [{**one, conditioning: "change it"} for one in good[0]],
            "words_once": [{**one, target: noisy(one[target])} for one in good[0]],
        }  # fmt: skip
        for name, rows in damaged.items():
            values = [one[name] for one in usual]
            room = 2 * (max(values) - min(values))
            bad = figures(rows)[name]
            assert not min(values) - room <= bad <= max(values) + room, (name, bad, values)

    @pytest.mark.parametrize(
        ("texts", "provenance"),
        [
            (("a dog", "make it three dogs", "three dogs"), ("count", "one dog", "three dogs")),
            (("a dog", "as a sketch", "a dog, in pencil"), ("style", "", "a pencil sketch")),
            (("a dog", "has no cats", "a dog with no cats"), ("negation", "cats", "")),
        ],
    )
    def test_edits_in_other_words(self, texts, provenance):
        """They are consistent, and with the target of another triplet they are not."""
        more = dict(zip(("rule", "source", "target"), provenance, strict=True))
        assert measure_triplets([row(texts, **more)])["consistent"] == 1.0
        assert measure_triplets([row((*texts[:2], "two birds over a hill"), **more)])["consistent"] == 0.0

    def test_one_rule_alone_shows(self):
        report = measure_triplets([ROWS[0]] * 5)
        assert report["effective"] == {"rules": 1.0, "openings": 1.0}
        assert measure_triplets([*ROWS[:2], *ROWS[:2]])["effective"]["rules"] == 2.0

    def test_worst_by_words(self):
        worst = measure_triplets(ROWS)["worst"]
        assert [(one["row"], one["value"]) for one in worst["change_named, low"]] == [(3, 0.0), (0, 0.5), (1, 1.0)]
        assert [one["row"] for one in worst["common_words, low"]] == [0, 1, 3, 2]

    def test_no_cosine_is_left_out_of_the_plot(self):
        """Those below zero too."""
        found = measure_triplets(
            ROWS,
            encode=lambda texts: np.array(
                [[1, -1] if "make" in text or "swap" in text else [-1, 1] for text in texts]
            ),
        )["similarity"]
        assert found["target_conditioning"]["p5"] == -1.0
        for one in found.values():
            assert sum(number for _, number in one["histogram"]) == len(ROWS)

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
        for shown in ("50.0 %", "identical", "swap the dogs for cats", "reference and target", "attribute", "3.5"):
            assert shown in texts
        assert page.tags.count("svg") == 3 + 1 + 4

    def test_side_by_side(self):
        report = measure_triplets(ROWS)
        one, two = (Page(report_page(reports)) for reports in ({"a": report}, {"a": report, "b": report}))
        # One overview with a column for each; everything else twice, each under its name.
        assert two.tags.count("table") == 2 * one.tags.count("table") - 1
        assert two.texts.count("a") == two.texts.count("b") == 9 and two.tags.count("svg") == 2 * one.tags.count("svg")
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


def test_words_of_queries_that_the_triplets_hold():
    rows = [row(("a red dog", "make it blue", "a blue dog"))] * 5
    rows += [row(("a red dog", "make it green", "a green dog"))] * 4
    report = measure_triplets(rows, queries=["make it blue", "make it green", "Is it purple?"])
    # "make", "it" and "blue" stand there five times or more; "green" four times, "is" and "purple" never.
    assert report["query_words_known"] == round(6 / 9, 4)
    assert "query_words_known" not in measure_triplets(rows)
