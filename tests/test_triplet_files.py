"""Captions and triplets in all their published shapes, written files, and data sets on the Hub."""

import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import yaml
from test_examples import EXAMPLES, SHORT, run

from rtd_hf import BENCHMARKS
from rtd_hf.triplets import (
    ROW_COLUMNS,
    TRIPLET_COLUMNS,
    Captions,
    Rows,
    RuleGenerator,
    RuleOptions,
    generate_triplets,
    read_triplets,
    write_triplets,
)
from rtd_hf.triplets.publishing import build_triplet_card, push_triplets


TEXTS = [
    ("a brown dog on grass", "change the dog to a cat", "a brown cat on grass"),
    ('a sign, "stop"\nand a car', "remove the car", 'a sign, "stop"'),
    ("café at night", "make it day", "café at day"),
]


def rows_of(*names):
    return [dict(zip(names, texts, strict=True)) for texts in TEXTS]


def write(path: Path, rows) -> Path:
    """Rows in the format that the file's name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    if name.endswith(".jsonl"):
        content = "".join(json.dumps(row) + "\n\n" for row in rows)
    elif name.endswith(".json"):
        content = json.dumps(rows, indent=1)
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue()
    data = ("\ufeff" + content).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def texts_of(rows):
    return [tuple(row[name] for name in TRIPLET_COLUMNS) for row in rows]


class TestTriplets:
    @pytest.mark.parametrize(
        "names",
        [TRIPLET_COLUMNS, ("input", "edit", "output"), ("caption", "edit", "output"),
         ("original_prompt", "edit_prompt", "edited_prompt")],
        ids=lambda names: "-".join(names),
    )  # fmt: skip
    @pytest.mark.parametrize("file", ["t.json", "t.jsonl", "t.csv", "t.tsv", "t.parquet", "t.jsonl.gz", "t.csv.gz"])
    def test_published_names_in_every_format(self, names, file, tmp_path):
        path = write(tmp_path / file, [{**row, "url": "u"} for row in rows_of(*names)])
        found = list(read_triplets(path))
        assert texts_of(found) == TEXTS
        assert all(set(row) == {*TRIPLET_COLUMNS, "url"} for row in found)

    def test_single_record_of_instructpix2pix(self, tmp_path):
        path = tmp_path / "prompt.json"
        path.write_text(json.dumps({"caption": "a", "edit": "b", "output": "c", "url": ""}))
        assert texts_of(read_triplets(path)) == [("a", "b", "c")]

    def test_own_column_names(self, tmp_path):
        path = write(tmp_path / "t.csv", rows_of("before", "how", "after"))
        columns = dict(zip(TRIPLET_COLUMNS, ("before", "how", "after"), strict=True))
        assert texts_of(read_triplets(path, columns=columns)) == TEXTS
        with pytest.raises(ValueError, match="column `behind`, which the data has not. It has: after, before, how"):
            list(read_triplets(path, columns=columns | {"target_caption": "behind"}))
        with pytest.raises(ValueError, match="`columns` names `target`"):
            list(read_triplets(path, columns={"target": "after"}))
        with pytest.raises(ValueError, match="`reference_caption` is missing"):
            list(read_triplets(path))

    def test_partly_mapped(self, tmp_path):
        path = write(tmp_path / "t.json", rows_of("input", "edit", "after"))
        assert texts_of(read_triplets(path, columns={"target_caption": "after"})) == TEXTS

    def test_lasco(self, tmp_path):
        rows = [
            {"qid": 5, "query-image": [9, "train2014/COCO_train2014_000000000009.jpg"], "query-text": "add a dog",
             "target-image": [25, "train2014/COCO_train2014_000000000025.jpg"]}]  # fmt: skip
        captions = {"images": [], "annotations": [{"image_id": 25, "id": 1, "caption": "two dogs"},
                                                  {"image_id": 9, "id": 2, "caption": "a dog"},
                                                  {"image_id": 9, "id": 3, "caption": "later"}]}  # fmt: skip
        path = write(tmp_path / "lasco.json", rows)
        (tmp_path / "captions.json").write_text(json.dumps(captions))
        (found,) = read_triplets(path, captions=tmp_path / "captions.json")
        assert texts_of([found]) == [("a dog", "add a dog", "two dogs")] and found["qid"] == 5
        with pytest.raises(ValueError, match="name pictures and not captions.*`captions`"):
            list(read_triplets(path))
        write(tmp_path / "few.json", captions["annotations"][:1])
        with pytest.raises(ValueError, match=r"Row 0 of .*: `captions` holds none for the picture '9'"):
            list(read_triplets(path, captions=tmp_path / "few.json"))

    def test_laion_cir(self, tmp_path):
        captions = write(
            tmp_path / "captions.jsonl", [{"id": "a1", "caption": "a dog"}, {"id": "b", "caption": "cat"}]
        )
        rows = [{"ref_image_id": "a1", "relative_cap": "is a cat", "tgt_image_id": "b"}]
        path = write(tmp_path / "template.json", rows)
        assert texts_of(read_triplets(path, captions=captions)) == [("a dog", "is a cat", "cat")]
        answers = {"a1": {"tgt_image_id": "x", "relative_cap": "is a cat", "tgt_cap": "a cat"}}
        (tmp_path / "llm.json").write_text(json.dumps(answers))
        assert texts_of(read_triplets(tmp_path / "llm.json", captions=captions)) == [("a dog", "is a cat", "a cat")]

    def test_saved_data_set(self, tmp_path):
        from datasets import Dataset, DatasetDict

        data = Dataset.from_list(rows_of("input", "edit", "output"))
        data.save_to_disk(tmp_path / "alone")
        DatasetDict({"validation": data}).save_to_disk(tmp_path / "split")
        assert texts_of(read_triplets(tmp_path / "alone")) == TEXTS
        assert texts_of(read_triplets(tmp_path / "split", split="validation")) == TEXTS
        with pytest.raises(ValueError, match="`split` 'train' is not in .*There are: validation"):
            list(read_triplets(tmp_path / "split"))
        assert texts_of(read_triplets(data)) == TEXTS

    def test_missing_texts_are_not_dropped(self, tmp_path):
        path = write(tmp_path / "t.jsonl", [*rows_of(*TRIPLET_COLUMNS), dict.fromkeys(TRIPLET_COLUMNS)])
        assert texts_of(read_triplets(path))[-1] == (None, None, None)
        path = write(tmp_path / "u.jsonl", [*rows_of(*TRIPLET_COLUMNS), {"reference_caption": "a"}])
        with pytest.raises(ValueError, match="Row 3 .* lacks the column `conditioning_caption`"):
            list(read_triplets(path))


HOSTILE = [
    "<b>a dog</b> &amp; https://a.b", "a dog 🐶 👨‍👩‍👧", "собака на траве", "狗在草地上", "der Hund, die Katze",
    "x" * 10_000, "word " * 2000, "a\x00b\x07\x1b[0m", "one\ntwo\r\nthree\rfour", "one\u2028two\x85three\x0bfour",
    " \t", "", None, "\ufeffa dog", "a \u202edog", 'a "quoted", one\\', "'; --", "[1]", "null", "nan", "5",
]  # fmt: skip


@pytest.mark.parametrize("file", ["h.json", "h.jsonl", "h.csv", "h.tsv", "h.parquet", "h.json.gz", "h.csv.gz"])
def test_hostile_texts_come_through_whole(file, tmp_path):
    """A reader changes nothing and leaves nothing out, whatever stands in a text; CSV alone knows no `None`."""
    texts = [text for text in HOSTILE if text is not None or "json" in file or "parquet" in file]
    rows = [dict(zip(TRIPLET_COLUMNS, (text, "make it day", text), strict=True)) for text in texts]
    path = write(tmp_path / file, rows)
    assert texts_of(read_triplets(path)) == [tuple(row.values()) for row in rows]
    assert list(Captions(path, column="reference_caption")) == texts
    if path.suffix in (".jsonl", ".parquet"):  # what we write ourselves
        write_triplets(rows, tmp_path / f"again{path.suffix}")
        assert list(read_triplets(tmp_path / f"again{path.suffix}")) == rows


class TestDamage:
    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("t.json", "", "is empty"),
            ("t.json", "[]", "holds no rows"),
            ("t.jsonl", "\n\n", "holds no rows"),
            ("t.csv", "a,b\n", "holds no rows"),
            ("t.json", '[{"a": 1}', "damaged or of another kind"),
            ("t.jsonl", '{"a": 1}\n{"a"\n', "line 2"),
            ("t.json", "[1, 2]", "row 1 is a int"),
            ("t.csv", "a,b\n1,2\n1,2,3\n", "line 3 has another number of fields"),
            ("t.csv", "a,b\n1\n", "line 2 has another number of fields"),
            ("t.parquet", "PAR1 nonsense", "damaged or of another kind"),
            ("t.jsonl", b'{"a": "\xff"}\n', "damaged or of another kind"),
            ("t.txt", b"a dog\na c\xe4t\n", "damaged or of another kind"),
            ("t.json", '["a", "b" "c"]', "row 3: no comma before it"),
            ("t.json", '["a", "b",]', "row 3: Expecting value"),
            ("t.json", '["a", "b"', "row 2: the array does not end"),
            ("t.json", '["a"] ["b"]', "something behind the array"),
            ("t.csv", 'a\n"' + "x" * 200_000 + '"\n', "behind line 1: field larger than field limit"),
        ],
    )
    def test_message(self, file, content, message, tmp_path):
        path = tmp_path / file
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=message):
            list(Rows(path))

    def test_no_such_file(self):
        with pytest.raises(FileNotFoundError, match="nowhere.jsonl does not exist"):
            Rows("nowhere.jsonl")

    def test_unknown_kind(self, tmp_path):
        (tmp_path / "t.docx").write_text("x")
        with pytest.raises(ValueError, match="unknown kind"):
            Rows(tmp_path / "t.docx")


class TestStreams:
    """What is larger than memory goes through a piece at a time."""

    @pytest.fixture
    def many(self):
        return [{"caption": f"caption {number}", "n": number} for number in range(3000)]

    @pytest.mark.parametrize("file", ["m.parquet", "m.jsonl", "m.csv"])
    def test_streamed_data_set(self, file, many, tmp_path):
        from datasets import load_dataset

        path = write(tmp_path / file, many)
        kind = {"jsonl": "json"}.get(path.suffix[1:], path.suffix[1:])
        streamed = load_dataset(kind, data_files=str(path), split="train", streaming=True)
        wanted = [row["caption"] for row in many]
        for captions in (Captions(streamed), Captions(streamed, column="caption"), streamed["caption"]):
            assert list(captions) == wanted == list(captions)  # twice, as a run reads it
        assert list(Captions(streamed, limit=5)) == wanted[:5]

    def test_folder_of_files(self, many, tmp_path):
        (tmp_path / "data").mkdir()
        for number in range(3):
            write(tmp_path / "data" / f"train-{number}-of-3.parquet", many[number * 1000 : (number + 1) * 1000])
        assert list(Captions(tmp_path / "data")) == [row["caption"] for row in many]
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match="`captions` .*empty: .* Give a JSON array"):
            list(Captions(tmp_path / "empty"))

    def test_run_on_a_stream_is_that_on_a_list(self, tmp_path):
        from datasets import load_dataset

        captions = ["a dog on the grass", "a red car by a dog", "a dog and a car", "a car on the street"] * 40
        path = write(tmp_path / "c.jsonl", [{"caption": caption} for caption in captions])
        streamed = load_dataset("json", data_files=str(path), split="train", streaming=True)
        options = {"block_size": 50}
        made = [
            generate_triplets(RuleGenerator(RuleOptions(min_count=2)), given, tmp_path / f"{number}.jsonl", **options)
            for number, given in enumerate([captions, Captions(streamed), Captions(path)])
        ]
        assert len({one.path.read_bytes() for one in made}) == 1 and made[0].rows > 100

    @pytest.mark.parametrize("file", ["m.json", "m.jsonl", "m.csv", "m.txt", "m.parquet", "m.json.gz"])
    def test_memory_does_not_grow_with_the_file(self, file, tmp_path, monkeypatch):
        """Reading the first row and reading all of them takes the same memory, where the file is larger than that."""
        monkeypatch.setattr("rtd_hf.triplets.rows._READ", 1 << 14)
        monkeypatch.setattr("rtd_hf.triplets.rows._ROWS_AT_ONCE", 100)
        rows = [{"caption": f"{number} " + "words " * 30} for number in range(20_000)]  # 4 MB
        if file.endswith(".txt"):
            (tmp_path / file).write_text("".join(row["caption"] + "\n" for row in rows))
        elif file.endswith(".parquet"):
            parquet.write_table(pa.Table.from_pylist(rows), tmp_path / file, row_group_size=500)
        else:
            write(tmp_path / file, rows)
        number = len(rows)
        del rows
        list(Captions(tmp_path / file, limit=10))  # what is imported stays
        tracemalloc.start()
        try:
            assert sum(1 for _ in Captions(tmp_path / file)) == number
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("read", [1, 2, 7, 64])
    def test_array_cut_anywhere(self, read, tmp_path, monkeypatch):
        monkeypatch.setattr("rtd_hf.triplets.rows._READ", read)
        content = [
            {"caption": 'a "dog" ] , \\ \u00e9\U0001f600', "n": [1, 23.5e3, {"x": None}]},
            "b",
            None,
            {"caption": "c"},
        ]
        for indent in (None, 1):
            (tmp_path / "t.json").write_text(json.dumps(content, indent=indent) + "\n \n")
            assert list(Rows(tmp_path / "t.json")) == [content[0], {"caption": "b"}, {"caption": None}, content[3]]
        (tmp_path / "t.json").write_text("[12, 345]")
        with pytest.raises(ValueError, match="row 1 is a int"):
            list(Rows(tmp_path / "t.json"))
        (tmp_path / "t.json").write_text("[ ]")
        with pytest.raises(ValueError, match="holds no rows"):
            list(Rows(tmp_path / "t.json"))

    def test_pictures_are_not_decoded(self, tmp_path):
        from datasets import Dataset, Features, Image, Value, load_dataset

        kinds = Features({"image": Image(), "caption": Value("string"), "raw": Value("binary")})
        rows = [{"image": {"bytes": b"no picture", "path": None}, "caption": "a dog", "raw": b"\x00"}] * 3
        data = Dataset.from_list(rows, features=kinds)
        data.to_parquet(tmp_path / "t.parquet")
        data.save_to_disk(tmp_path / "saved")
        streamed = load_dataset("parquet", data_files=str(tmp_path / "t.parquet"), split="train", streaming=True)
        for source in (data, streamed, tmp_path / "t.parquet", tmp_path / "saved"):
            assert list(Rows(source)) == [{"caption": "a dog"}] * 3
            with pytest.raises(ValueError, match="`caption`.*`image`, `raw`: bytes, not read"):
                list(Captions(source, column="raw"))

    def test_iterator_is_refused(self, many):
        assert list(Captions(many)) == [row["caption"] for row in many]
        with pytest.raises(TypeError, match="cannot be an iterator"):
            Captions(iter(many))


class TestCaptions:
    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("c.txt", "a dog\n\na cat"),
            ("c.json", '["a dog", "", "a cat"]'),
            ("c.jsonl", '"a dog"\n""\n"a cat"\n'),
            ("c.jsonl", '{"id": 1, "text": "a dog"}\n{"id": 2, "text": ""}\n{"id": 3, "text": "a cat"}\n'),
            ("coco.json", '{"info": {}, "annotations": [{"id": 7, "caption": "a dog"}, {"caption": ""}, '
             '{"caption": "a cat"}]}'),
            ("columns.json", '{"caption": ["a dog", "", "a cat"], "n": [1, 2, 3]}'),
            ("c.csv", "n,caption\n1,a dog\n2,\n3,a cat\n"),
        ],
    )  # fmt: skip
    def test_shapes(self, file, content, tmp_path):
        (tmp_path / file).write_text(content)
        captions = Captions(tmp_path / file)
        assert list(captions) == ["a dog", "", "a cat"] == list(captions)  # twice
        assert list(Captions(tmp_path / file, limit=2)) == ["a dog", ""]

    def test_columns(self, tmp_path):
        path = write(
            tmp_path / "c.jsonl", [{"alt": "a dog", "many": ["one", "two"], "n": 3}, {"alt": None, "many": []}]
        )
        assert list(Captions(path, column="alt")) == ["a dog", None]
        assert list(Captions(path, column="many")) == ["one", None]
        with pytest.raises(ValueError, match="`caption_column` is needed: row 0 .* columns `alt`, `many`, `n`"):
            list(Captions(path))
        with pytest.raises(ValueError, match="`many_` is not there.*Did you mean `many`?"):
            list(Captions(path, column="many_"))
        with pytest.raises(ValueError, match="`limit` must be at least 1, got 0"):
            Captions(path, limit=0)
        with pytest.raises(ValueError, match="must hold texts, but row 0 holds the int 3"):
            list(Captions(path, column="n"))


class TestWriting:
    @pytest.mark.parametrize("file", ["out.parquet", "out.jsonl"])
    def test_round_trip(self, file, tmp_path):
        rows = [{**row, "n": number} for number, row in enumerate(rows_of(*TRIPLET_COLUMNS))]
        assert write_triplets(iter(rows), tmp_path / file) == 3
        assert list(read_triplets(tmp_path / file)) == rows
        with pytest.raises(FileExistsError):
            write_triplets(rows, tmp_path / file)

    def test_nothing_is_left_of_a_failure(self, tmp_path):
        def broken():
            yield rows_of(*TRIPLET_COLUMNS)[0]
            raise OSError("the source went away")

        for file in ("out.parquet", "out.jsonl"):
            with pytest.raises(OSError, match="went away"):
                write_triplets(broken(), tmp_path / file)
            with pytest.raises(ValueError, match="no triplets"):
                write_triplets([], tmp_path / file)
        assert list(tmp_path.iterdir()) == []


@pytest.fixture
def made(tmp_path):
    rows = [
        dict(zip(ROW_COLUMNS, (*texts, rule, "dog", "cat", "rules", 0, number), strict=True))
        for number, (texts, rule) in enumerate(zip(TEXTS, ("change", "remove", "change"), strict=True))
    ]
    rows[0]["reference_caption"] = "a | b <script>"
    write_triplets(rows, tmp_path / "made.parquet")
    return tmp_path / "made.parquet"


class TestHub:
    def test_card(self, made):
        card = build_triplet_card(made, license="cc-by-4.0", repo_id="me/mine", captions="COCO", command="python x",
                                  skipped={"empty": 2})  # fmt: skip
        facts = yaml.safe_load(card.split("---")[1])
        assert facts["license"] == "cc-by-4.0" and facts["configs"][0]["data_files"] == "data/train.parquet"
        assert facts["size_categories"] == ["n<1K"]
        assert "| change | 2 |" in card and "| remove | 1 |" in card and "Left out: empty: 2." in card
        assert "a \\| b &lt;script>" in card and 'load_dataset("me/mine"' in card
        assert all(f"| `{name}` | " in card for name in ROW_COLUMNS)
        with pytest.raises(ValueError, match="`license` is missing"):
            build_triplet_card(made, license="", repo_id="me/mine", captions="COCO")

    def test_push(self, made, monkeypatch):
        calls = []

        class Api:
            def create_repo(self, *args, **options):
                calls.append((args, options))
                return "https://hub/datasets/me/mine"

            def create_commit(self, *args, **options):
                calls.append((args, options))

        monkeypatch.setattr("huggingface_hub.HfApi", Api)
        assert push_triplets(made, "me/mine", "# card") == "https://hub/datasets/me/mine"
        (_, made_with), ((repo, files), options) = calls
        assert made_with == {"repo_type": "dataset", "private": True, "exist_ok": True}
        assert repo == "me/mine" and options["repo_type"] == "dataset"
        assert [file.path_in_repo for file in files] == ["data/train.parquet", "README.md"]
        with pytest.raises(ValueError, match="Parquet"):
            push_triplets(made.with_suffix(".jsonl"), "me/mine", "")


def test_captions_to_a_trained_encoder(tmp_path, monkeypatch, capsys):
    """The whole way: captions, triplets by rules, a data set `datasets` loads, and training on it."""
    output = tmp_path / "triplets.jsonl"
    run("generate_triplets.py", "--captions", "shapes", "--num_captions", "300", "--min_count", "2",
        "--output", str(output), monkeypatch=monkeypatch)  # fmt: skip
    assert "triplets of 300 captions" in capsys.readouterr().out
    for name, load in dict(BENCHMARKS).items():
        monkeypatch.setitem(BENCHMARKS, name, lambda root=None, load=load, **options: load(num_queries=12))
    arguments = [*SHORT, "shapes_many", "--triplets", str(output), "--output_dir", str(tmp_path / "run")]
    run("train_rtd.py", *arguments, monkeypatch=monkeypatch)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["run"]["steps"] == 4 and (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--captions", "nowhere.json"], "nowhere.json does not exist"),
        (["--captions", "shapes", "--swap", "3"], "`swap` must be a share"),
        (["--captions", "shapes", "--swapp", "1"], "Did you mean `swap`?"),
        (["--captions", "shapes", "--generator", "rulez"], "Unknown triplet generator `rulez`. Did you mean `rules`?"),
        (["--captions", "shapes", "--push_to_hub", "me/mine"], "`--push_to_hub` needs `--license`"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["generate_triplets.py", *arguments, "--output", str(tmp_path / "out.jsonl")])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import runpy

    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLES / "generate_triplets.py"), run_name="__main__")
    assert message in str(caught.value.code) and "Traceback" not in str(caught.value.code)
    assert not (tmp_path / "out.jsonl").exists()
