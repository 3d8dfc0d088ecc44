"""Files that are damaged, of another kind or meant to harm: success or an error that names them, and nothing else.

A longer run, by hand: `python tests/test_fuzz.py 20000 [seed] [part of a reader's name]`.
"""

import ast
import contextlib
import faulthandler
import gzip
import io
import logging
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
from mutations import YAML, Mutator, huge_png, laughs, packed_zeros
from outside_readers import READERS, ROWS, put, table

from rtd_hf.registry import RegistryError


PACKAGE = Path(__file__).resolve().parents[1] / "rtd_hf"
SECONDS = 10  # none of the small files takes even one
MEMORY = 4 << 30  # bytes beyond what the process holds
FEW, MANY = 12, 60

# Calls by which a module reads files. Where one stands, a reader above must name the module, or this list say why not.
OPENING = {
    *("open", "read_text", "read_bytes", "safe_open", "load_file", "load_dataset", "load_from_disk", "ParquetFile"),
    *(
        "read_table",
        "open_file",
        "open_stream",
        "memory_map",
        "ZipFile",
        "is_zipfile",
        "is_tarfile",
        "from_pretrained",
    ),
    *("safe_load", "parse_yaml", "read_json", "parse_json", "load_complete", "open_text", "loads", "load"),
}
NOT_OUTSIDE = {
    "anchors/fingerprints.py": "JSON of a tokenizer in memory",
    "benchmarks/base.py": "opens nothing: `load_image` is what a loader gave",
    "evaluator.py": "no files",
    "features.py": "`load` is what opens a gallery's pictures, `images.py`",
    "files.py": "`os.open` of a folder, to sync it",
    "hub/circumstances.py": "the kernel's own files under /sys and /proc",
    "hub/export.py": "the config that it has just written",
    "layouts/clip_model.py": "`load_complete` of a base, as `models/checkpoints.py`",
    "layouts/query_module.py": "the folders that `load_cir_encoder` reads",
    "layouts/sentence_transformers.py": "the folders that `load_cir_encoder` reads",
    "interruptions.py": "a run's own checkpoints, which `test_interruptions.py` cuts off everywhere",
    "language_models.py": "a language model that the user names, by `transformers`",
    "metric_spaces.py": "writes only",
    "objectives/inversion.py": "words that the same run has just written",
    "search/galleries.py": "`load` gives paths and pictures, and `images.py` opens them",
    "search/retriever.py": "`ImageIndex.load`, and the parts that `load_cir_encoder` reads",
    "shapes/clip.py": "JSON of a tokenizer in memory",
    "triplets/writing.py": "parts of its own unfinished run",
    "tagging.py": "spaCy's model and the Hanover Tagger's, out of their packages",
    "tokens.py": "`load_tokenizer`, which the models' readers go through",
}


class Hang(BaseException):
    """Nothing catches it."""


@contextlib.contextmanager
def bounded(seconds: int = SECONDS):
    """Ends what takes too long, and refuses memory by the gigabyte."""

    def stop(number, frame):
        raise Hang(f"more than {seconds} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, limits = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def fault_of(read, folder: Path, canary: Path, *, named: bool = True, called: str = "") -> str | None:
    """What is wrong with how a reader takes its files, if anything."""
    try:
        with bounded(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            read(folder)
    except (ValueError, TypeError, OSError, RegistryError) as error:
        names = {str(folder), *(path.name for path in folder.rglob("*")), called} - {""}
        if isinstance(error, UnicodeError) or type(error).__module__ in ("json.decoder", "zipfile", "gzip", "zlib"):
            return f"raw {type(error).__name__}: {error}"
        if named and not any(name in str(error) for name in names):
            return f"{type(error).__name__} names no file: {error}"
    except BaseException as error:  # noqa: BLE001 (what is looked for)
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:300]}"
    if canary.exists():
        canary.unlink()
        return "ran what the file holds"
    return None


class Sandbox:
    """Sound files of one reader, which are put back after each change."""

    def __init__(self, name: str, folder: Path):
        self.reader, self.folder, self.canary = READERS[name], folder / "files", folder / "canary"
        self.folder.mkdir(parents=True)
        self.naming = {"named": self.reader.named, "called": self.reader.called}
        self.reader.make(self.folder)
        self.sound = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        self.targets = sorted(path for path in self.folder.glob(self.reader.files) if path in self.sound)

    def restore(self) -> None:
        for path in [path for path in self.folder.rglob("*") if path.is_file() and path not in self.sound]:
            path.unlink()
        for path, data in self.sound.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != data:
                path.write_bytes(data)

    def try_one(self, seed: str) -> tuple[str, str] | None:
        """One change and one reading: what was changed and what was wrong, or nothing."""
        mutate = Mutator(seed, self.canary)
        try:
            mutate(mutate.rng.choice(self.targets))
            fault = fault_of(self.reader.read, self.folder, self.canary, **self.naming)
        finally:
            self.restore()
        return (mutate.did, fault) if fault else None


@contextlib.contextmanager
def quiet():
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def fuzz(name: str, folder: Path, count: int, seed: str = "0") -> list[tuple[str, str]]:
    sandbox = Sandbox(name, folder)
    with quiet():
        assert fault_of(sandbox.reader.read, sandbox.folder, sandbox.canary) is None, "sound files are not read"
        found = (sandbox.try_one(f"{seed} {name} {number}") for number in range(count))
        return [fault for fault in found if fault is not None]


@pytest.mark.parametrize("name", READERS)
def test_changed_files_end_in_an_error_that_names_them(name, tmp_path):
    assert fuzz(name, tmp_path, FEW // 3 if READERS[name].dear else FEW) == []


@pytest.mark.huge
@pytest.mark.parametrize("name", READERS)
def test_many_more_changed_files(name, tmp_path):
    assert fuzz(name, tmp_path, MANY // 3 if READERS[name].dear else MANY, seed="more") == []


# --- what is meant to harm
@pytest.mark.parametrize("name", ["triplets jsonl.gz", "triplets json.gz", "triplets csv.gz", "captions of COCO"])
def test_a_file_that_unpacks_to_no_end_is_refused_early(name, tmp_path):
    sandbox = Sandbox(name, tmp_path)
    sandbox.targets[0].write_bytes(packed_zeros(1 << 27))
    start = time.perf_counter()
    with pytest.raises(ValueError, match="unpacks to more than 67,108,864 bytes, 200 times its size"):
        sandbox.reader.read(sandbox.folder)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    "text", ['{"a": %s}', '[{"caption": %s}]', '{"caption": "x"}\n{"caption": %s}\n', '{\n"a": %s}']
)
def test_a_number_of_too_many_digits_is_an_error_that_names_the_file(text, tmp_path):
    from rtd_hf.triplets.rows import Rows

    (tmp_path / "t.json").write_text(text % ("9" * 5000))
    with pytest.raises(ValueError, match=r"t\.json.*4300 digits"):
        list(Rows(tmp_path / "t.json", argument="triplets"))


# Deeper than is read, and not so deep that a reader in C++ would end the tests.
DEEP = {
    "in a line": '{"a": 1}\n{"a": ' + "[" * 1200 + "]" * 1200 + "}\n",
    "over lines": '{"a":\n' * 1200 + "1" + "}" * 1200 + "\n",
    "behind too many ends": "}" * 1200 + '{"a":\n' * 1200 + "\n",
    "behind strings with ends": '{"a": "}\\"}", "b":\n' * 1200 + "\n",
    "behind objects with ends": '{"a": {"b": 1}\n, "c":\n' * 1200 + "\n",
    "over megabytes": ('{"a": "' + "x" * 2000 + '", "b":\n') * 1200 + "\n",
}


@pytest.mark.parametrize("name", ["t.jsonl", "below/t.JSON", "t.ndjson", "t.jsonl.gz"])
@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_a_folder_of_rows_nested_too_deeply_is_refused(name, text, tmp_path):
    (tmp_path / "below").mkdir()
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    from rtd_hf.triplets import read_triplets

    with pytest.raises(ValueError, match=f"{Path(name).name}` is nested too deeply for a table"):
        list(read_triplets(tmp_path))


@pytest.mark.parametrize("row", ['{"a": "[[{{"}', '{"a": ["{", {"b": 1}]}', '{\n"a": "\\"[",\n"b": 1}'])
def test_many_shallow_rows_are_not_nested(row, tmp_path):
    from rtd_hf.parsing import check_nesting

    (tmp_path / "t.jsonl").write_text(f"{row}\n" * 1200)
    (tmp_path / "t.json").write_text("[" + ",".join([row] * 1200) + "]")
    check_nesting(tmp_path)


def test_what_packs_well_is_read_all_the_same(tmp_path):
    table(tmp_path, "t.jsonl.gz", ROWS * 20_000)
    from rtd_hf.triplets import read_triplets

    assert sum(1 for _ in read_triplets(tmp_path / "t.jsonl.gz")) == 120_000


@pytest.mark.parametrize("text", [*YAML, laughs(), "a: " + "{a: " * 5000], ids=lambda text: text[:30])
def test_recipes_that_yaml_alone_would_stumble_over(text, tmp_path):
    canary = tmp_path / "canary"
    text = text if text.startswith("a0") else text.replace("{{", "{").replace("}}", "}")
    put(tmp_path, "recipe.yaml", text.replace("{command}", f"touch {canary}"))
    assert fault_of(READERS["recipe"].read, tmp_path, canary) is None


def test_a_picture_of_thousands_of_millions_of_pixels_is_refused(tmp_path):
    from rtd_hf.images import open_image

    (tmp_path / "a.png").write_bytes(huge_png())
    with pytest.raises(OSError, match=r"a.png .* is too large to be opened safely"):
        open_image(tmp_path / "a.png")


# --- no reader forgotten
def opening_calls(source: str) -> set[str]:
    """The calls in a source by which files may be read; opening to write, and the like, are not."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if name in OPENING and not (name == "open" and any(mode in ("w", "wb", "x") for mode in modes)):
                found.add(name)
    return found


def test_every_module_that_opens_files_is_fuzzed():
    named = {module for reader in READERS.values() for module in reader.modules}
    assert [module for module in named if not (PACKAGE / module).is_file()] == []
    opening = {
        path.relative_to(PACKAGE).as_posix(): calls
        for path in PACKAGE.rglob("*.py")
        if (calls := opening_calls(path.read_text(encoding="utf-8")))
    }
    forgotten = {module: calls for module, calls in opening.items() if module not in {*named, *NOT_OUTSIDE}}
    assert forgotten == {}, "give each a reader in `outside_readers.py`, or say in NOT_OUTSIDE why it needs none"


def test_the_list_of_opening_calls_can_object():
    assert opening_calls("json.loads(path.read_text())") == {"loads", "read_text"}
    assert opening_calls("open(path, 'w')\nwrite(path)") == set()


def test_the_harness_sees_what_it_is_for(tmp_path):
    canary = tmp_path / "canary"

    def fault(read):
        return fault_of(read, tmp_path, canary)

    def say(error):
        raise error

    assert fault(lambda folder: say(ValueError(f"{folder} is bad"))) is None
    assert fault(lambda folder: say(ValueError("bad"))).startswith("ValueError names no file")
    assert fault(lambda folder: say(KeyError("x"))) == "KeyError: 'x'"
    assert fault(lambda folder: say(UnicodeDecodeError("utf-8", b"", 0, 1, str(folder)))).startswith("raw Unicode")
    assert fault(lambda folder: canary.touch()) == "ran what the file holds"
    assert fault(lambda folder: bytearray(MEMORY * 2)).startswith("MemoryError")
    with pytest.raises(Hang), bounded(1):
        time.sleep(5)


def main(count: int, seed: str, wanted: str) -> int:
    """A run over all readers in turn, dear ones a tenth as often; says what was found."""
    faulthandler.enable()
    logging.disable(logging.CRITICAL)
    names = [name for name in READERS if wanted in name]
    weights = {name: 1 if READERS[name].dear else 10 for name in names}
    done, found, start = Counter(), Counter(), time.perf_counter()
    for name in names:
        sys.stderr.write(f"{name}\n")  # a reader that ends the process is the last
        folder = Path(tempfile.mkdtemp(prefix="rtd_hf_fuzz_"))
        sandbox = Sandbox(name, folder)
        for number in range(-(-count * weights[name] // sum(weights.values()))):
            done[name] += 1
            fault = sandbox.try_one(f"{seed} {name} {number}")
            if fault:
                key = f"{name}: {fault[1][:160]}"
                if not found[key]:
                    sys.stdout.write(f"{key}\n    after {fault[0][:300]} (number {number})\n")
                    sys.stdout.flush()
                found[key] += 1
        shutil.rmtree(folder)
    seconds = time.perf_counter() - start
    sys.stdout.write(
        f"{done.total():,} changed files, {len(names)} readers, {seconds:.0f} s: {found.total()} faults\n"
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *(sys.argv[2:] + ["0", ""][len(sys.argv) - 2 :])))
