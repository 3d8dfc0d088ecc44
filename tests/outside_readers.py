"""Every function that reads files which others wrote, each with a sound set of them: for fuzzing and for safety."""

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from benchmark_files import make_trees
from helpers import tiny_projection, tiny_text_model, tiny_tokenizer, tiny_triplets
from PIL import Image
from world_models import random_projection, save_random_clip, world_tokenizer

from rtd_hf.models import CLIPTextModelForRTD


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ROWS = tiny_triplets(6)
CAPTIONS = [row["reference_caption"] for row in ROWS]
RANKED = tuple(f"q{number}" for number in range(4))


@dataclass(frozen=True)
class Reader:
    """
    A function that reads outside files.

    Args:
        make (`Callable[[Path], object]`): Writes sound files into a folder.
        read (`Callable[[Path], object]`): Reads them.
        modules (`tuple[str, ...]`): The modules of ours in which these files are opened.
        files (`str`): Pattern of the files that are fuzzed.
        dear (`bool`): Whether it takes more than some hundredths of a second.
        named (`bool`): Whether errors must name the file or folder.
        called (`str`): Another name by which they may be called.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    modules: tuple[str, ...]
    files: str = "*"
    dear: bool = False
    named: bool = True
    called: str = ""


READERS: dict[str, Reader] = {}


def reader(name: str, *modules: str, make: Callable[[Path], object], **options):
    """Decorator that enters the function it stands over, which reads what `make` writes."""

    def enter(read):
        READERS[name] = Reader(make, read, modules, **options)
        return read

    return enter


def from_examples(module: str, name: str):
    """A function of the modules beside the scripts."""
    from importlib import import_module

    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return getattr(import_module(module), name)


def put(folder: Path, name: str, content) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content if isinstance(content, str) else json.dumps(content)
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


# --- triplets and captions
def table(folder: Path, name: str, rows=ROWS):
    """Rows in the kind of file that the name asks for."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    kind, path = name.removesuffix(".gz").rpartition(".")[2], folder / name
    if kind == "json":
        return put(folder, name, rows)
    if kind == "jsonl":
        return put(folder, name, "".join(json.dumps(row) + "\n" for row in rows))
    if kind in ("csv", "tsv"):
        lines = [[*rows[0]], *([*row.values()] for row in rows)]
        return put(folder, name, "".join({"csv": ",", "tsv": "\t"}[kind].join(line) + "\n" for line in lines))
    if kind == "parquet":
        return parquet.write_table(pa.Table.from_pylist(rows), path)
    made = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), made.schema) as stream:
        stream.write_table(made)
    return path


def only(folder: Path) -> Path:
    """The one file of a folder."""
    return next(path for path in sorted(folder.iterdir()) if path.is_file())


for kind in ("json", "jsonl", "csv", "tsv", "parquet", "arrow", "json.gz", "jsonl.gz", "csv.gz"):

    @reader(
        f"triplets {kind}", "triplets/rows.py", "parsing.py", make=lambda folder, kind=kind: table(folder, f"t.{kind}")
    )
    def read_triplets_of(folder):
        from rtd_hf.triplets import read_triplets

        return list(read_triplets(only(folder)))


@reader("captions txt", "triplets/rows.py", make=lambda folder: put(folder, "c.txt", "\n".join(CAPTIONS)))
def read_captions(folder):
    from rtd_hf.triplets import Captions

    return list(Captions(only(folder)))


def coco_captions(folder: Path, name: str = "captions.json") -> Path:
    images = [{"id": n, "file_name": f"{n:03d}.png"} for n in range(3)]
    notes = [{"image_id": n % 3, "id": n, "caption": text} for n, text in enumerate(CAPTIONS)]
    return put(folder, name, {"images": images, "annotations": notes})


def lasco(folder: Path):
    coco_captions(folder)
    rows = [{"qid": n, "query-text": "is red", "query-image": [n, "x"], "target-image": [2, "y"]} for n in (0, 1)]
    put(folder, "lasco.json", rows)


@reader("triplets of pictures", "triplets/rows.py", "triplets/reading.py", make=lasco)
def read_lasco(folder):
    from rtd_hf.triplets import read_triplets

    return list(read_triplets(folder / "lasco.json", captions=folder / "captions.json"))


def saved_data_set(folder: Path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))


@reader("a saved data set", "triplets/rows.py", make=saved_data_set, files="saved/*", dear=True)
def read_saved(folder):
    from rtd_hf.triplets import read_triplets

    return list(read_triplets(folder / "saved"))


@reader("a folder of triplets", "triplets/rows.py", make=lambda folder: table(folder, "t.jsonl"), dear=True)
def read_folder(folder):
    from rtd_hf.triplets import read_triplets

    return list(read_triplets(folder))


@reader(
    "texts of benchmarks",
    "triplets/contamination.py",
    make=lambda folder: (table(folder, "a.json"), table(folder, "b.jsonl.gz"), table(folder, "c.csv")),
)
def read_benchmark_texts(folder):
    from rtd_hf.triplets.contamination import BenchmarkTexts

    return BenchmarkTexts([folder]).find("a red dog on the grass and more")


@reader("card of triplets", "triplets/publishing.py", make=lambda folder: table(folder, "t.parquet"))
def read_for_card(folder):
    from rtd_hf.triplets.publishing import build_triplet_card

    return build_triplet_card(only(folder), license="mit", repo_id="me/t", captions="COCO")


for kind in ("json", "jsonl", "csv", "parquet"):

    @reader(
        f"triplets to train on, {kind}",
        "../examples/utils/parts.py",
        make=lambda folder, kind=kind: table(folder, f"t.{kind}"),
        dear=True,
    )
    def read_for_training(folder):
        return len(from_examples("utils.parts", "load_triplets")(str(only(folder)), None, 0))


# --- training rows
def picture(path: Path, size=(9, 7)) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def pictures_with_metadata(folder: Path):
    for number in range(3):
        picture(folder / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "caption": CAPTIONS[number]} for number in range(3)]
    table(folder, "metadata.csv", rows)


@reader("pictures with metadata", "training_rows.py", make=pictures_with_metadata, files="metadata.csv", dear=True)
def read_metadata(folder):
    from rtd_hf.training_rows import load_rows

    rows = load_rows(str(folder), images=True, captions=True)
    return [rows[number] for number in range(len(rows))]


def pictures_with_texts(folder: Path):
    for number in range(3):
        picture(folder / f"{number}.png")
        put(folder, f"{number}.txt", CAPTIONS[number])


@reader("pictures with texts", "training_rows.py", make=pictures_with_texts, files="*.txt")
def read_texts_beside(folder):
    from rtd_hf.training_rows import load_rows

    return load_rows(str(folder), images=True, captions=True)


@reader("lines of captions", "training_rows.py", make=lambda folder: put(folder, "c.txt", "\n".join(CAPTIONS)))
def read_caption_lines(folder):
    from rtd_hf.training_rows import load_rows

    return load_rows(str(only(folder)), images=False, captions=True)


@reader("training rows jsonl", "training_rows.py", make=lambda folder: table(folder, "t.jsonl"), dear=True)
def read_training_rows(folder):
    from rtd_hf.training_rows import load_rows

    return load_rows(str(only(folder)), images=False, captions=True, caption_column="target_caption")[0]


@reader("a saved training set", "training_rows.py", make=saved_data_set, files="saved/*", dear=True)
def read_saved_training_rows(folder):
    from rtd_hf.training_rows import load_rows

    return load_rows(str(folder / "saved"), images=False, captions=True, caption_column="target_caption")[0]


# --- pictures
def many_pictures(folder: Path):
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tif"):
        picture(folder / f"p.{suffix}")


@reader("pictures", "images.py", make=many_pictures)
def read_pictures(folder):
    from rtd_hf.images import image_fault, open_image

    for path in sorted(folder.iterdir()):
        image_fault(path)
        open_image(path)
        open_image(path.read_bytes(), name=str(path), upright=True)


# --- benchmarks
@cache
def trees() -> Path:
    import tempfile

    return make_trees(Path(tempfile.mkdtemp(prefix="rtd_hf_trees_")))


def tree_of(name: str, folder: Path):
    shutil.copytree(trees() / name, folder, dirs_exist_ok=True)


def first_pictures(benchmark) -> None:
    from rtd_hf.benchmarks import CIRBenchmark

    if isinstance(benchmark, CIRBenchmark):
        for query in benchmark.queries[:2]:
            benchmark.load_image(query.reference)


def read_benchmark(name: str, folder: Path):
    from rtd_hf.benchmarks import BENCHMARKS

    first_pictures(BENCHMARKS[name](folder))


for name in ("cirr", "circo", "fashioniq", "genecis", "coco"):

    @reader(
        f"benchmark {name}",
        f"benchmarks/{name}.py",
        "benchmarks/files.py",
        make=lambda folder, name=name: tree_of(name, folder),
        files="**/*.json",
        dear=name in ("coco", "circo"),
        called=f"`{name}`",
    )
    def read_benchmark_of(folder, name=name):
        read_benchmark(name, folder)


@reader(
    "check of a benchmark",
    "benchmarks/checks.py",
    "images.py",
    make=lambda folder: tree_of("cirr", folder),
    files="**/*.*",
    dear=True,
)
def read_for_check(folder):
    from rtd_hf.benchmarks import check_data

    str(check_data("cirr", folder, num_workers=1, deep=True))


def regions(folder: Path):
    put(
        folder,
        "coco_eval.csv",
        "# seed=0\nid,query_regions,query_class,classes\n000000000001.jpg,1;2;30;40 ,dog,cat;car\n",
    )


@reader("regions of COCO", "benchmarks/regions.py", make=regions)
def read_regions_of(folder):
    from rtd_hf.benchmarks.regions import read_regions

    return read_regions(only(folder))


@reader(
    "captions of COCO",
    "preservation.py",
    make=lambda folder: (
        coco_captions(folder, "captions.json.gz"),
        [picture(folder / f"{number:03d}.png") for number in range(3)],
    ),
    files="*.gz",
)
def read_coco_captions(folder):
    from rtd_hf.preservation import load_coco_captions

    found = load_coco_captions(folder / "captions.json.gz", folder)
    return found.captions, found.load_image(found.images[0])


def submissions(folder: Path):
    from rtd_hf.benchmarks import load_circo, load_cirr
    from rtd_hf.submissions import write_circo_submission, write_cirr_submission

    for name, load, split, write in (
        ("cirr", load_cirr, "test1", write_cirr_submission),
        ("circo", load_circo, "test", write_circo_submission),
    ):
        benchmark = load(trees() / name, split=split, images="unchecked")
        lists = [[i for i in benchmark.gallery if i != query.reference][:50] for query in benchmark.queries]
        try:
            write(lists, folder / f"{name}.json", benchmark=benchmark)
        except ValueError:  # small galleries do not fill the lists that the servers want
            put(folder, f"{name}.json", {q.id: ids for q, ids in zip(benchmark.queries, lists, strict=True)})


@reader("submission", "submissions.py", make=submissions)
def read_submissions(folder):
    from rtd_hf.benchmarks import load_cirr
    from rtd_hf.submissions import read_submission, validate_circo_submission, validate_cirr_submission

    benchmark = load_cirr(trees() / "cirr", split="test1", images="unchecked")
    for read in (
        lambda: read_submission(folder / "cirr.json", benchmark),
        lambda: validate_cirr_submission(folder / "cirr.json", trees() / "cirr"),
        lambda: validate_circo_submission(folder / "circo.json", trees() / "circo"),
    ):
        try:
            read()
        except ValueError as error:
            if "no sound submission" not in str(error):
                raise


# --- checkpoints in other layouts
def original(folder: Path, *, wrapped: bool = False, suffix: str = "pt", **options):
    from safetensors.torch import save_file

    state = {name: weight.clone() for name, weight in tiny_projection().state_dict().items()}
    if suffix == "safetensors":
        return save_file(state, folder / "lincir.safetensors")
    return torch.save({"Phi": state, "epoch": 3} if wrapped else state, folder / f"lincir.{suffix}", **options)


for kind, options in {
    "": {},
    ", wrapped": {"wrapped": True},
    ", old format": {"_use_new_zipfile_serialization": False},
    ", safetensors": {"suffix": "safetensors"},
}.items():

    @reader(
        f"projection of its authors{kind}",
        "projections/original_files.py",
        make=lambda folder, options=options: original(folder, **options),
    )
    def read_original(folder):
        from rtd_hf.projections.originals import load_original

        return load_original(only(folder))


def layout(folder: Path, name: str):
    from rtd_hf.layouts import export_layout

    export_layout(
        tiny_text_model(CLIPTextModelForRTD, num_attention_heads=1, hidden_act="quick_gelu", **WIDE),
        folder,
        layout=name,
    )
    (folder / ".rtd_hf.json").unlink()
    if name == "open_clip":
        put(
            folder, "open_clip_config.json", {"model_cfg": {"quick_gelu": True, "text_cfg": {"heads": 1, "width": 64}}}
        )


WIDE = {"hidden_size": 64}

for name in ("open_clip", "open_clip_custom", "openai", "rtd"):

    @reader(
        f"text encoder as {name}",
        "layouts/state_dicts.py",
        "layouts/open_clip.py",
        make=lambda folder, name=name: layout(folder, name),
        dear=True,
    )
    def read_layout(folder):
        from rtd_hf.layouts import import_layout

        file = next(path for path in sorted(folder.iterdir()) if path.suffix in (".pt", ".safetensors"))
        return import_layout(file, hidden_act="quick_gelu")


# --- features and anchors
IDS = ["a", "b", "c"]
FINGERPRINT = {"weights": "x"}


def features(folder: Path):
    from rtd_hf.feature_files import FeatureFolder, Features

    kept = FeatureFolder(folder, "gallery", IDS, FINGERPRINT)
    kept.write(IDS, Features(torch.randn(3, 8), np.zeros((3, 16), np.uint8)))
    kept.write_part(0, Features(torch.randn(2, 8), np.ones((2, 16), np.uint8)))


@reader("image features", "feature_files.py", make=features)
def read_features(folder):
    from rtd_hf.feature_files import FeatureFolder

    kept = FeatureFolder(folder, "gallery", IDS, FINGERPRINT)
    return kept.read(), kept.known()


@cache
def _anchors() -> Path:
    import tempfile

    from rtd_hf import precompute_anchors

    folder = Path(tempfile.mkdtemp(prefix="rtd_hf_anchors_")) / "anchors"
    options = {"texts_per_part": 5, "tokens_per_batch": 40}
    precompute_anchors(ROWS, tiny_text_model(CLIPTextModelForRTD), tiny_tokenizer(), folder, **options)
    return folder


@reader(
    "anchors",
    "anchors/files.py",
    "anchors/store.py",
    make=lambda folder: shutil.copytree(_anchors(), folder, dirs_exist_ok=True),
)
def read_anchors(folder):
    from rtd_hf import AnchorStore

    try:
        return AnchorStore.open(folder).lookup(CAPTIONS)
    except NotImplementedError as error:  # documented: the format of another version
        raise ValueError(str(error)) from error


def image_index(folder: Path, kind: str):
    from rtd_hf.search import ImageIndex

    embeddings = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    ImageIndex(embeddings, [f"p{number}" for number in range(40)], kind=kind).save(folder / "index")


for kind in ("exact", "flat", "hnsw"):

    @reader(
        f"index of pictures, {kind}",
        *("search/index.py", *(("search/neighbours.py",) if kind != "exact" else ())),
        make=lambda folder, kind=kind: image_index(folder, kind),
        files="index/*.*",
    )
    def read_index(folder):
        from rtd_hf.search import ImageIndex

        index = ImageIndex.load(folder / "index")
        try:
            return index.search(np.ones((1, 8), np.float32), 3)
        except ValueError as error:  # of embeddings that are not of length 1, which a search looks for
            raise ValueError(f"{folder}: {error}") from error


# --- models and adapters
def tiny_folder(folder: Path):
    tiny_text_model(CLIPTextModelForRTD).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


@reader("text encoder", "models/checkpoints.py", "models/auto.py", "weights.py", make=tiny_folder, dear=True)
def read_text_encoder(folder):
    from rtd_hf import AutoTextModelForRTD
    from rtd_hf.tokens import load_tokenizer

    load_tokenizer(folder)
    return AutoTextModelForRTD.from_pretrained(folder)


@reader(
    "projection",
    "projections/configuration.py",
    "projections/base.py",
    make=lambda folder: tiny_projection().save_pretrained(folder),
    dear=True,
)
def read_projection(folder):
    from rtd_hf import ImageToWordProjection

    return ImageToWordProjection.from_pretrained(folder)


@cache
def _clip() -> Path:
    import tempfile

    return save_random_clip(Path(tempfile.mkdtemp(prefix="rtd_hf_clip_")))


@reader(
    "a whole CLIP",
    "objectives/towers.py",
    make=lambda folder: shutil.copytree(_clip(), folder, dirs_exist_ok=True),
    dear=True,
)
def read_clip(folder):
    from rtd_hf import FrozenCLIP

    return FrozenCLIP.from_pretrained(str(folder))


@cache
def _repository() -> Path:
    import tempfile

    from rtd_hf import write_repository
    from rtd_hf.shapes.clip import build_image_processor

    folder = Path(tempfile.mkdtemp(prefix="rtd_hf_repository_")) / "run"
    return write_repository(
        folder,
        CLIPTextModelForRTD.from_pretrained(_clip()),
        tokenizer=world_tokenizer(),
        image_processor=build_image_processor(),
        projection=random_projection("lincir"),
        metrics={"after": {"cirr_recall@1": 24.5}, "run": {"seed": 3}, "environment": {"date": "2026-01-02"}},
        recipe={"clip_model": "them/clip"},
        license="mit",
        base_model="them/clip",
    )


@reader(
    "a repository to publish",
    *("hub/checks.py", "hub/drop_in.py", "hub/publication.py", "hub/repository.py"),
    make=lambda folder: shutil.copytree(_repository(), folder, dirs_exist_ok=True),
    files="**/*",
    dear=True,
)
def read_for_publication(folder):
    from rtd_hf.hub import card_of
    from rtd_hf.hub.publication import plan_publication

    card_of(folder)
    return plan_publication(folder, "me/it", license="mit")


@reader(
    "a published repository",
    *("hub/repository.py", "retrieval.py"),
    make=lambda folder: shutil.copytree(_repository(), folder, dirs_exist_ok=True),
    files="**/*.*",
    dear=True,
)
def read_published(folder):
    from rtd_hf import load_cir_encoder

    return load_cir_encoder(folder, base_model=_clip())


def adapter(folder: Path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_text_model(CLIPTextModelForRTD), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)


@reader("adapter", "adapters.py", make=adapter, files="adapter_*", dear=True)
def read_adapter(folder):
    from rtd_hf import load_adapter

    return load_adapter(folder, tiny_text_model(CLIPTextModelForRTD))


# --- runs and recipes
def recipes(folder: Path):
    put(folder, "base.yaml", "learning_rate: 0.001\nbenchmarks: [shapes]\n")
    put(folder, "recipe.yaml", "include: base.yaml\nseed: 3\nfsdp_config: {a: 1}\n")


@reader("recipe", "../examples/utils/arguments.py", "parsing.py", make=recipes)
def read_recipe(folder):
    tokens = from_examples("utils.arguments", "recipe_tokens")(folder / "recipe.yaml", None)
    return sum(map(len, tokens))


@reader(
    "weights of rules",
    "triplets/rules/generator.py",
    make=lambda folder: put(folder, "weights.yaml", "{style: 0, count: 2}"),
    named=False,
)
def read_weights(folder):
    from rtd_hf import RuleOptions

    return RuleOptions(weights=only(folder).read_text(encoding="utf-8", errors="replace"))


def journal(folder: Path):
    from rtd_hf.triplets.llm.journal import Journal

    with Journal(folder / "answers.jsonl", {"model": "m"}) as kept:
        for number, caption in enumerate(CAPTIONS):
            rows = [{"conditioning_caption": "is red", "target_caption": "a red dog"}]
            refused = [{"reason": "json", "detail": "x", "said": "y"}]
            entry = {"key": f"{number:032x}", "row": number, "caption": caption, "rows": rows, "rejected": refused}
            kept.append({"usage": {"requests": 1}, "captions": [entry]})


@reader("journal of answers", "triplets/llm/journal.py", make=journal)
def read_journal(folder):
    from rtd_hf.triplets.llm.journal import Journal, count_rejected

    path = folder / "answers.jsonl"
    with Journal(path, {"model": "m"}) as kept:
        found = [kept.caption(f"{number:032x}") for number in range(len(CAPTIONS))]
    return found, count_rejected(path)


@reader(
    "phrases",
    "objectives/concepts.py",
    make=lambda folder: put(folder, "phrases.json", {"dog": ["a photo of a dog that runs"], "cat": ["a cat"]}),
)
def read_phrases(folder):
    from rtd_hf import PhraseBank, generate_phrases

    PhraseBank.from_file(only(folder))
    return generate_phrases(["dog", "cat"], lambda prompt, number: [f"{prompt} sleeps"] * number, 1, only(folder))


def results(folder: Path):
    from rtd_hf.evaluator import CIRResult

    result = CIRResult({"recall@1": torch.ones(4)}, 0, 4, {"split": "val"})
    report = {"protocols": {"cirr": {"split": "val"}}}
    from_examples("utils.results", "save_results")(folder, report, {"cirr": result}, {"cirr": list(RANKED)})


@reader("results of an evaluation", "../examples/utils/results.py", make=results)
def read_results(folder):
    from rtd_hf.evaluator import CIRResult

    result = CIRResult({"recall@1": torch.ones(4)}, 0, 4, {"split": "val"})
    return from_examples("utils.results", "load_results")(folder, {"cirr": result}, {"cirr": list(RANKED)})


def vocabulary(folder: Path):
    from rtd_hf.triplets.rules.vocabulary import Vocabulary

    Vocabulary([], np.zeros((0, 3), np.int32), letters={}, company={}).save(folder)


@reader("vocabulary", "triplets/rules/vocabulary.py", make=vocabulary)
def read_vocabulary(folder):
    from rtd_hf.triplets.rules.vocabulary import Vocabulary

    return Vocabulary.load(folder)
