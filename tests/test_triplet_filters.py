"""What is left out, and that nothing else is: faults of texts, repetitions, near ones, texts of benchmarks."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from rtd_hf.triplets import TRIPLET_COLUMNS, FilterOptions, TripletFilter, generate_triplets
from rtd_hf.triplets.contamination import BenchmarkTexts
from rtd_hf.triplets.faults import text_fault
from rtd_hf.triplets.filters import NearDuplicates, SeenIds


SHARED = Path(__file__).resolve().parents[2] / "shared" / "annotations"


def row(reference="a red dog", conditioning="make it blue", target="a blue dog", **more):
    return dict(zip(TRIPLET_COLUMNS, (reference, conditioning, target), strict=True)) | more


class TestFaults:
    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("a dog on the grass", None),
            ("A café à la carte", None),  # accents are letters of English captions too
            ("a <PERSON> and a dog", None),
            ("the “old” man – smiling…", None),
            ("5 dogs", None),
            ("le chien est dans le jardin avec une fille", "not English"),
            ("der Hund und die Katze auf dem Rasen", "not English"),
            ("el perro y los gatos con una pelota", "not English"),
            (None, "missing"),
            (5, "no text"),
            (float("nan"), "no text"),
            ("", "empty"),
            (" \n\t", "empty"),
            ("5 $ a piece", "placeholder"),
            ("word " * 61, "too long"),
            ("x" * 10_000, "too long"),
            ("<a href='x'>dog</a>", "markup"),
            ("dog &amp; cat", "markup"),
            ("see www.dogs.org", "markup"),
            ("a dog\x00", "control characters"),
            ("a dog\u202e", "control characters"),
            ("a dog \ufffd", "control characters"),
            ("a dog 🐶", "not Latin script"),
            ("собака", "not Latin script"),
            ("狗在草地上", "not Latin script"),
            ("!!! 123", "no words"),
            ("…", "no words"),
            ("a Nude statue", "unsafe"),
            ("a denuded hill", None),  # whole words only
        ],
    )
    def test_fault(self, text, fault):
        assert text_fault(text) == fault
        assert text_fault(text, unsafe=False) == (None if fault == "unsafe" else fault)

    def test_no_real_caption_is_lost(self):
        path = SHARED / "coco_captions" / "captions_val2017.json.gz"
        if not path.is_file():
            pytest.skip("the COCO captions are not beside the repository")
        with gzip.open(path) as file:
            captions = [entry["caption"] for entry in json.load(file)["annotations"]]
        found = [text for text in captions if text_fault(text, unsafe=False)]
        assert len(captions) == 25_014 and found == []


class TestFilter:
    def test_every_reason(self):
        kept = row()
        rows = [
            (kept, None),
            (row("A  Red dog!", "Make it blue.", "a blue DOG"), "duplicate"),
            (row("a red dog", "make it green", "a green dog"), None),
            (row("a cat", "is a cat", "A cat."), "identical"),
            (row("", "x", "y"), "reference: empty"),
            (row(conditioning=None), "conditioning: missing"),
            (row(conditioning="costs 5 $"), "conditioning: placeholder"),
            (row(target="<i>dog</i>"), "target: markup"),
            (row(target="a dog " * 40), "target: too long"),
            (row(target="one two three four five six seven"), "target: too many tokens"),
            ({"reference_caption": "a"}, "conditioning: missing"),
        ]
        judge = TripletFilter(FilterOptions(longest_tokens=6), count_tokens=lambda text: len(text.split()))
        for given, reason in rows:
            assert judge.reason(given) == reason, given
        assert sum(judge.dropped.values()) == 9 and judge.dropped["conditioning: missing"] == 2
        assert judge.examples["identical"]["target_caption"] == "A cat."

    def test_apply_loses_nothing(self):
        rows = [row(target=f"a dog {number % 7}") for number in range(50)]
        kept, dropped = TripletFilter().apply(rows)
        assert kept == rows[:7] and dropped == {"duplicate": 43}
        judge = TripletFilter()
        judge.remember(rows[:3])
        assert judge.apply(rows)[0] == rows[3:7]

    @pytest.mark.parametrize(("name", "value"), [("near_duplicates", 2), ("longest_text", 0), ("longest_tokens", -1)])
    def test_wrong_options(self, name, value):
        with pytest.raises(ValueError, match=f"`{name}`"):
            FilterOptions(**{name: value})

    def test_resumed_run_finds_the_duplicates_of_its_first_part(self, tmp_path, monkeypatch):
        from rtd_hf.triplets import RuleGenerator, RuleOptions

        captions = ["a red dog on the grass", "a dog and a red car", "a car on the street"] * 30

        # What is drawn depends on the number of the caption; here the same triplets come again and again.
        def same(self, text, number):
            yield self.row((text, "make it blue", "a blue dog"), rule="x", source="", target="", caption_row=number)

        monkeypatch.setattr(RuleGenerator, "triplets_of", same)

        def killed(self, text, number):
            if number == 45:
                raise KeyboardInterrupt
            yield from same(self, text, number)

        def run(name, block):
            generator = RuleGenerator(RuleOptions(min_count=2))
            return generate_triplets(
                generator, captions, tmp_path / name, filter=TripletFilter(), block_size=block, workers=1
            )

        made = [run(f"{block}.jsonl", block) for block in (1000, 10)]
        with monkeypatch.context() as patch:
            patch.setattr(RuleGenerator, "triplets_of", killed)
            with pytest.raises(KeyboardInterrupt):
                run("resumed.jsonl", 10)
        assert len(list((tmp_path / "resumed.jsonl.parts").glob("part-*"))) == 4
        made.append(run("resumed.jsonl", 10))
        assert all(one.rows == 3 and one.skipped["duplicate"] == 87 for one in made)
        assert len({one.path.read_bytes() for one in made}) == 1


class TestSeenIds:
    def test_is_a_set(self):
        rng = np.random.default_rng(0)
        numbers = rng.integers(0, 400_000, 700_000).tolist()
        seen, plain = SeenIds(), set()
        for number in numbers:
            assert seen.add(number) == (number not in plain)
            plain.add(number)
        assert len(seen) == len(plain) and len(seen._runs) >= 1
        assert all(number in seen for number in numbers[:1000]) and 400_001 not in seen


class TestNearDuplicates:
    def test_signatures_estimate_jaccard(self):
        judge = NearDuplicates(0.5)
        words = [f"word{number}" for number in range(200)]
        one, other = " ".join(words), " ".join(words[:150])
        pairs = [{tuple(text[place : place + 2]) for place in range(len(text) - 1)} for text in (
            ["", *one.split(), ""], ["", *other.split(), ""])]  # fmt: skip
        jaccard = len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])
        same = (judge.signature([one]) == judge.signature([other])).mean()
        assert same == pytest.approx(jaccard, abs=0.25) and (judge.signature([one]) == judge.signature([one])).all()

    def test_near_and_far(self):
        long = "a young man in a red shirt rides an old blue bicycle along the quiet street in the early morning"
        judge = TripletFilter(FilterOptions(near_duplicates=0.7))
        assert judge.reason(row(long, "make the shirt green", long.replace("red", "green"))) is None
        assert (
            judge.reason(row(long + " sun", "make the shirt green", long.replace("red", "green"))) == "near duplicate"
        )
        assert judge.reason(row("a dog", "remove the dog", "an empty street")) is None
        plain = TripletFilter()
        assert plain.reason(row(long, "x y", "z")) is None and plain.reason(row(long + " sun", "x y", "z")) is None


class TestContamination:
    @pytest.fixture
    def benchmark(self, tmp_path):
        folder = tmp_path / "cirr"
        folder.mkdir()
        records = [{"pairid": 1, "caption": "Show three bottles of soft drink.", "nested": [{"note": "is red"}]}]
        (folder / "cap.json").write_text(json.dumps(records))
        long = "a man who wears a very tall hat stands beside the river"
        with gzip.open(folder / "val.json.gz", "wt") as file:
            json.dump({"annotations": [{"caption": long}]}, file)
        return folder

    def test_found_by_words_and_by_eight_in_a_row(self, benchmark):
        texts = BenchmarkTexts([benchmark])
        assert {Path(path).name: number for path, number in texts.sources.items()} == {"cap.json": 1, "val.json.gz": 1}
        assert Path(texts.find("show THREE bottles of soft drink")).name == "cap.json"
        assert Path(texts.find("he is a man who wears a very tall hat, or so")).name == "val.json.gz"
        assert texts.find("three bottles of soft drink") is None
        assert texts.find("a man who wears a very tall cap") is None
        assert texts.find("is red") is None  # stands everywhere

    def test_reported_or_dropped(self, benchmark):
        given = row(conditioning="Show three bottles of soft drink.")
        judge = TripletFilter(FilterOptions(benchmark_texts=[str(benchmark)]))
        assert judge.reason(given) is None and judge.reason(row()) is None
        assert dict(judge.contaminated) == {str(benchmark / "cap.json"): 1}
        judge = TripletFilter(FilterOptions(benchmark_texts=[str(benchmark)], drop_contaminated=True))
        assert judge.reason(given) == "contaminated"

    def test_wrong_paths(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            BenchmarkTexts([tmp_path / "none"])
        with pytest.raises(FileNotFoundError, match="holds no"):
            BenchmarkTexts([tmp_path])
        (tmp_path / "a.json").write_text('["red"]')
        with pytest.raises(ValueError, match="no text of 4 words"):
            BenchmarkTexts([tmp_path])
        (tmp_path / "a.json").write_text('["red"')
        with pytest.raises(ValueError, match="damaged"):
            BenchmarkTexts([tmp_path])

    def test_real_annotations(self):
        folder = SHARED / "cirr"
        if not folder.is_dir():
            pytest.skip("the annotations are not beside the repository")
        texts = BenchmarkTexts([folder])
        path = next(path for path in texts.sources if "cap" in Path(path).name and path.endswith(".json"))
        records = json.loads(Path(path).read_text())
        long = [record["caption"] for record in records if len(record["caption"].split()) > 4]
        assert len(long) > 100 and all(texts.find(text) for text in long[:500])
        assert texts.find("a purple heart above a tiny orange square on an olive background") is None
