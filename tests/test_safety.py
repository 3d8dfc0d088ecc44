"""Files from elsewhere run nothing, open nothing beside them and fetch nothing; what is secret is written nowhere."""

import ast
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from chat_server import chat_server
from helpers import tiny_projection, tiny_text_model, tiny_tokenizer, tiny_trainer
from mutations import Command
from outside_readers import CAPTIONS, ROWS, coco_captions, from_examples, put, table, trees
from PIL import Image
from world_models import random_projection, save_random_clip, world_tokenizer

from rtd_hf import (
    AutoTextModelForRTD,
    FrozenCLIP,
    ImageToWordProjection,
    load_adapter,
    load_cir_encoder,
    write_repository,
)
from rtd_hf.benchmarks import BENCHMARKS
from rtd_hf.hub import PushError
from rtd_hf.hub.publication import plan_publication
from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.shapes.clip import build_image_processor


ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(ROOT / "rtd_hf").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
TOKEN = "hf_" + "SecretSecretSecret1234"


@pytest.fixture
def canary(tmp_path) -> Path:
    """A file that a payload makes where it runs; it must not be there in the end."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code that a file holds was run"


# --- what the sources may not do
def unsafe_calls(source: str) -> list[str]:
    """Calls by which a file's contents could run, or more be opened than was asked for."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        kind = name.rpartition(".")[2]
        bad = (
            name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.full_load")
            or name in ("yaml.unsafe_load", "yaml.load_all", "yaml.full_load_all", "yaml.unsafe_load_all")
            or name.split(".")[0] in ("joblib", "marshal", "shelve", "dill", "cloudpickle")
            or kind in ("urlopen", "urlretrieve", "extractall", "extract", "unpack_archive")
            or name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "pd.read_pickle")
            or (name == "torch.load" and options.get("weights_only") != "True")
            or (name == "np.load" and options.get("allow_pickle") != "False")
            or (name == "Image.open" and "formats" not in options)
            or options.get("trust_remote_code", "False") != "False"
            or options.get("shell", "False") != "False"
            or (kind == "from_pretrained" and name.startswith("Auto") and "trust_remote_code" not in ast.unparse(node)
                and not name.startswith("AutoTextModelForRTD."))  # ours
        )  # fmt: skip
        if bad:
            found.append(ast.unparse(node)[:80])
    return found


# Not of what others wrote: numbers and small pictures that the same script has just made, and a tokenizer of its own.
ALLOWED = {
    "examples/benchmark_ranking.py": ("np.load(",),
    "examples/utils/page.py": ("Image.open(",),
    "examples/benchmark_load.py": ("AutoTokenizer.from_pretrained(", "np.load("),
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_a_file_holds(path):
    allowed = ALLOWED.get(str(path.relative_to(ROOT)), ())
    found = [call for call in unsafe_calls(path.read_text(encoding="utf-8")) if not call.startswith(allowed or ("!",))]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "yaml.load(text)", "eval(text)", "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path)",
        "pickle.load(file)", "AutoModel.from_pretrained(name)", "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "subprocess.run(line, shell=True)", "Image.open(path)", "archive.extractall(folder)", "urlopen(address)",
        "load(name, trust_remote_code=value)",
    ],
)  # fmt: skip
def test_the_list_of_unsafe_calls_can_object(source):
    assert unsafe_calls(source) != []


def test_the_list_of_unsafe_calls_lets_the_safe_ones_pass():
    safe = "yaml.safe_load(t)\ntorch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)\n"
    assert unsafe_calls(safe + "AutoModel.from_pretrained(n, trust_remote_code=False)\nre.compile('x')") == []


# --- pickles
def test_the_payload_does_run_where_nothing_stops_it(tmp_path):
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(Command(f"touch {made}", "os.system")))
    assert made.exists()


@pytest.mark.parametrize("file", ["optimizer_0/.metadata", "global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_state_in_shards_of_another_run_is_not_unpickled(file, tmp_path):
    options = {"max_steps": 2, "eval_rows": 4, "save_steps": 1, "save_strategy": "steps"}
    tiny_trainer(tmp_path / "theirs", **options).train()
    target = tmp_path / "theirs" / "checkpoint-1" / file
    target.parent.mkdir()
    target.write_bytes(b"")
    mine = tiny_trainer(tmp_path / "mine", **options)
    with pytest.raises(ValueError, match=r"in shards, which torch unpickles.*If that was you, move it"):
        mine.train(resume_from_checkpoint=str(tmp_path / "theirs" / "checkpoint-1"))
    assert mine.state.global_step == 0
    tiny_trainer(tmp_path / "theirs", **options).train(
        resume_from_checkpoint=str(tmp_path / "theirs" / "checkpoint-1")
    )


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "bare"])
def test_a_checkpoint_that_holds_a_program_does_not_run_it(file, zipped, canary, tmp_path):
    options = {"max_steps": 2, "eval_rows": 4, "save_steps": 1, "save_strategy": "steps"}
    tiny_trainer(tmp_path / "run", **options).train()
    target = tmp_path / "run" / "checkpoint-1" / file
    assert target.is_file()
    payload = Command(f"touch {canary}", "os.system")
    if zipped:
        torch.save(payload, target)
    else:
        target.write_bytes(pickle.dumps(payload, protocol=2))
    trainer = tiny_trainer(tmp_path / "run", **options)
    if file == "training_args.bin":  # nobody reads it
        trainer.train(resume_from_checkpoint=str(target.parent))
        return
    with pytest.raises(Exception, match="(?i)weights_only|weights only|unpickl|unsupported|load failed|invalid"):
        trainer.train(resume_from_checkpoint=str(target.parent))


@pytest.mark.parametrize("load", ["encoder", "clip", "projection", "adapter"])
def test_weights_as_a_pickle_do_not_run(load, canary, tmp_path):
    payload = {"text_model.final_layer_norm.weight": Command(f"touch {canary}", "eval")}
    folder = tmp_path / "model"
    if load == "clip":
        save_random_clip(folder)
    elif load == "projection":
        tiny_projection().save_pretrained(folder)
    elif load == "adapter":
        from outside_readers import adapter

        folder.mkdir()
        adapter(folder)
    else:
        tiny_text_model(CLIPTextModelForRTD).save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    torch.save(payload, folder / ("adapter_model.bin" if load == "adapter" else "pytorch_model.bin"))
    read = {
        "encoder": AutoTextModelForRTD.from_pretrained,
        "clip": FrozenCLIP.from_pretrained,
        "projection": ImageToWordProjection.from_pretrained,
        "adapter": lambda name: load_adapter(name, tiny_text_model(CLIPTextModelForRTD)),
    }
    with pytest.raises((ValueError, OSError), match=str(folder)):
        read[load](str(folder))


def test_a_taggers_model_in_the_working_folder_is_not_taken(canary, tmp_path, monkeypatch):
    import gzip

    from rtd_hf import tagging

    model = gzip.compress(pickle.dumps(Command(f"touch {canary}", "os.system")))
    (tmp_path / "morphmodel_en.pgz").write_bytes(model)
    monkeypatch.chdir(tmp_path)
    tagging._remembered.cache_clear()
    assert [tag for _, tag in tagging.tag(["a red dog"], tagger="hanta")[0]] == ["DET", "ADJ", "NOUN"]


# --- code beside a model
CODE = "import os\nos.system('touch {canary}')\nclass Evil:\n    from_pretrained = classmethod(lambda *a, **k: None)\n"


def with_code(folder: Path, canary: Path) -> Path:
    """Puts code into a folder, and names it in every configuration there is, as models with code of their own do."""
    put(folder, "evil.py", CODE.replace("{canary}", str(canary)))
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        for file in folder.rglob(name):
            content = json.loads(file.read_text())
            kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoImageProcessor", "AutoProcessor")
            content["auto_map"] = {
                **{kind: "evil.Evil" for kind in kinds},
                "AutoTokenizer": ["evil.Evil", "evil.Evil"],
            }
            file.write_text(json.dumps(content))
            if file.parent != folder:
                put(file.parent, "evil.py", CODE.replace("{canary}", str(canary)))
    return folder


@pytest.fixture
def never_asked(monkeypatch):
    def ask(*args):
        raise AssertionError("the user was asked whether code is to be run")

    monkeypatch.setattr("builtins.input", ask)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return save_random_clip(tmp_path_factory.mktemp("clip"))


def repository(folder: Path, clip: Path, **options) -> Path:
    return write_repository(
        folder,
        CLIPTextModelForRTD.from_pretrained(clip),
        tokenizer=world_tokenizer(),
        image_processor=build_image_processor(),
        projection=random_projection("lincir"),
        metrics={"run": {"seed": 3}},
        recipe={},
        license="mit",
        base_model="them/clip",
        **options,
    )


@pytest.mark.usefixtures("never_asked")
def test_code_in_a_published_repository_is_not_run(clip, canary, tmp_path):
    folder = with_code(repository(tmp_path / "run", clip), canary)
    retriever = load_cir_encoder(folder, base_model=with_code(save_random_clip(tmp_path / "clip"), canary))
    assert type(retriever.text_encoder).__module__.startswith("rtd_hf.")
    assert plan_publication(folder, "me/it", license="mit").drop_in.num_tensors > 0


@pytest.mark.usefixtures("never_asked")
def test_code_beside_a_clip_is_not_run(canary, tmp_path):
    found = FrozenCLIP.from_pretrained(str(with_code(save_random_clip(tmp_path / "clip"), canary)))
    assert type(found.tokenizer).__module__.startswith("transformers.")


@pytest.mark.usefixtures("never_asked")
def test_a_language_model_that_needs_code_is_refused(canary, tmp_path):
    from rtd_hf.language_models import LocalLanguageModel

    tiny_tokenizer().save_pretrained(tmp_path / "model")
    put(tmp_path / "model", "config.json", {"model_type": "evil"})
    with_code(tmp_path / "model", canary)
    with pytest.raises(ValueError, match="trust_remote_code|needs code of its own"):
        LocalLanguageModel(str(tmp_path / "model"))


def test_an_attention_that_is_code_on_the_hub_is_refused(tmp_path):
    for model in (tiny_text_model(CLIPTextModelForRTD), tiny_projection()):
        model.save_pretrained(tmp_path / "model")
        file = tmp_path / "model" / "config.json"
        put(tmp_path / "model", "config.json", {**json.loads(file.read_text()), "attn_implementation": "evil/kernel"})
        load = ImageToWordProjection if "projection" in type(model).__module__ else AutoTextModelForRTD
        with pytest.raises(ValueError, match="'evil/kernel', which is code on the Hub"):
            load.from_pretrained(tmp_path / "model")


def test_a_configuration_with_layers_without_end_is_refused(tmp_path):
    tiny_text_model(CLIPTextModelForRTD).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    put(tmp_path, "config.json", {**json.loads(file.read_text()), "num_hidden_layers": 10**9})
    start = time.perf_counter()
    with pytest.raises(ValueError, match="states `num_hidden_layers` 1000000000"):
        AutoTextModelForRTD.from_pretrained(tmp_path)
    assert time.perf_counter() - start < 5


# --- paths that lead out
OUT = ["/etc/passwd", "../../secret/p", "a/../../../secret/p", "\\\\host\\p", "..\\..\\secret\\p", "C:/secret/p"]


@pytest.mark.parametrize("name", OUT)
def test_no_list_of_pictures_opens_others(name, tmp_path):
    from rtd_hf.images import ImageFolders

    (tmp_path / "secret").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret" / "p.png")
    folders = ImageFolders([tmp_path / "root" / "pictures"])
    with pytest.raises(ValueError, match="does not lie below .*pictures"):
        folders.find(name)
    assert ImageFolders([tmp_path]).find("secret/p") is not None
    assert ImageFolders([tmp_path]).find("secret/p..") is None


def test_annotations_that_name_pictures_elsewhere_are_refused(tmp_path):
    import shutil

    Image.new("RGB", (4, 4)).save(tmp_path / "private.png")
    root = tmp_path / "cirr"
    shutil.copytree(trees() / "cirr", root)
    file = next(root.rglob("split.rc2.val.json"))
    listed = json.loads(file.read_text())
    first = next(iter(listed))
    for place in ("../private.png", str(tmp_path / "private.png")):
        put(file.parent, file.name, {**listed, first: place})
        with pytest.raises(ValueError, match="does not lie below"):
            BENCHMARKS["cirr"](root)


def test_captions_of_pictures_elsewhere_are_refused(tmp_path):
    from rtd_hf.preservation import load_coco_captions

    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "private.png")
    path = coco_captions(tmp_path)
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "../private.png"
    put(tmp_path, "captions.json", content)
    with pytest.raises(ValueError, match="does not lie below"):
        load_coco_captions(path, tmp_path / "pictures")


@pytest.mark.parametrize("outside", ["../private.png", "absolute"])
def test_tables_of_pictures_elsewhere_are_refused(outside, tmp_path):
    from rtd_hf import load_rows

    Image.new("RGB", (4, 4)).save(tmp_path / "private.png")
    (tmp_path / "data").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "data" / "own.png")
    paths = ["own.png", "sub/../own.png", str(tmp_path / "data" / "own.png")]
    paths.append(str(tmp_path / "private.png") if outside == "absolute" else outside)
    table(tmp_path / "data", "metadata.csv", [{"file_name": path, "caption": "a dog"} for path in paths])
    rows = load_rows(str(tmp_path / "data"), images=True, captions=True)
    assert [Path(os.path.normpath(rows[at]["image"])).name for at in range(3)] == ["own.png"] * 3
    with pytest.raises(ValueError, match="Row 3 names the picture .* is not below"):
        rows[3]


def test_recipes_include_nothing_elsewhere(tmp_path):
    read = from_examples("utils.arguments", "read_recipe")
    put(tmp_path, "recipes/more/base.yaml", "seed: 3")
    put(tmp_path, "secret.yaml", "seed: 4")
    cases = (("more/base.yaml", True), ("../secret.yaml", False), (str(tmp_path / "secret.yaml"), False))
    for included, accepted in cases:
        path = put(tmp_path, "recipes/recipe.yaml", f"include: {included}")
        if accepted:
            assert read(path) == {"seed": 3}
        else:
            with pytest.raises(ValueError, match="`include` .* must name files below its folder"):
                read(path)


def test_anchors_of_another_folder_are_not_opened(tmp_path):
    from rtd_hf import AnchorStore, precompute_anchors

    folder = tmp_path / "anchors"
    precompute_anchors(ROWS, tiny_text_model(CLIPTextModelForRTD), tiny_tokenizer(), folder)
    (tmp_path / "part-00000.arrow").write_bytes((folder / "part-00000.arrow").read_bytes())
    manifest = json.loads((folder / "anchors.json").read_text())
    for name in ("../part-00000.arrow", str(tmp_path / "part-00000.arrow")):
        manifest["parts"][0]["file"] = name
        put(folder, "anchors.json", manifest)
        with pytest.raises(ValueError, match="is no file of a store"):
            AnchorStore.open(folder)


def test_an_index_of_weights_names_files_beside_it(tmp_path):
    from rtd_hf.objectives.towers import read_logit_scale

    for name in ("../elsewhere.safetensors", "/elsewhere.safetensors", 3):
        put(tmp_path, "model.safetensors.index.json", {"weight_map": {"logit_scale": name}})
        with pytest.raises(ValueError, match="which is no file beside it"):
            read_logit_scale(str(tmp_path))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_to_elsewhere_are_not_published(kind, clip, tmp_path):
    folder = repository(tmp_path / "run", clip)
    (tmp_path / "private").mkdir()
    put(tmp_path / "private", "key.txt", "secret")
    put(folder, "own.txt", "public")
    (folder / "link.txt").symlink_to(folder / "own.txt")
    assert "link.txt" in plan_publication(folder, "me/it", license="mit").files
    (folder / "other").symlink_to(tmp_path / "private" / ("key.txt" if kind == "file" else ""))
    with pytest.raises(ValueError, match="`other` in .* is a link to .*private"):
        plan_publication(folder, "me/it", license="mit")


def test_a_snapshot_of_the_hub_is_published_although_it_is_made_of_links(clip, tmp_path):
    folder = repository(tmp_path / "run", clip)
    snapshot, blobs = tmp_path / "models--me--it" / "snapshots" / "abc", tmp_path / "models--me--it" / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(path for path in folder.rglob("*") if path.is_file()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    planned = plan_publication(snapshot, "me/it", license="mit").files
    assert planned.keys() == plan_publication(folder, "me/it", license="mit").files.keys()


# --- addresses
ADDRESS = "https://example.com/picture.jpg"


def test_addresses_are_names_like_any_other(tmp_path):
    """The network of the tests raises `RuntimeError`, so that what is fetched would be noticed."""
    from rtd_hf import load_coco_captions, load_rows, read_triplets
    from rtd_hf.images import open_image

    with pytest.raises(FileNotFoundError, match="There is no picture at"):
        open_image(ADDRESS)
    table(tmp_path, "rows.jsonl", [{"image": ADDRESS, "caption": ADDRESS}])
    row = load_rows(str(tmp_path / "rows.jsonl"), images=True, captions=True)[0]
    assert row["caption"] == ADDRESS
    with pytest.raises(FileNotFoundError):
        open_image(row["image"])
    rows = [{"reference_caption": ADDRESS, "conditioning_caption": ADDRESS, "target_caption": ADDRESS}]
    table(tmp_path, "t.json", rows)
    assert list(read_triplets(tmp_path / "t.json")) == rows
    path = coco_captions(tmp_path)
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = ADDRESS
    put(tmp_path, "captions.json", content)
    with pytest.raises(FileNotFoundError, match="are not in"):
        load_coco_captions(path, tmp_path)


def test_a_picture_of_postscript_is_not_handed_to_ghostscript(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    from rtd_hf.images import image_fault, open_image

    def run(*args, **kwargs):
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    path = tmp_path / "p.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(AssertionError, match="Ghostscript"), Image.open(path) as image:  # as Pillow alone would
        image.load()
    with pytest.raises(OSError, match=r"p\.png .* no picture at all"):
        open_image(path)
    assert "no picture at all" in image_fault(path)


# --- secrets
def test_the_command_that_is_kept_holds_no_secrets():
    shown = from_examples("utils.resolved", "shown_arguments")
    given = ["--hub_token", TOKEN, "--seed", "3", f"--hub_token={TOKEN}", "--note", f"my {TOKEN}", "--hub-token", "x"]
    given += [
        "--base_url",
        "https://me:password1@host/v1",
        "--api_key_env",
        "MY_KEY",
        "--hub_token",
        "--max_steps",
        "4",
    ]
    given += ["--key", "sk-" + "a1" * 12, "--tokens_per_minute", "100"]
    words = shown(given)
    assert not any(secret in word for word in words for secret in (TOKEN, "password1", "a1a1"))
    assert words == [
        *("--hub_token", "***", "--seed", "3", "--hub_token=***", "--note", "my ***", "--hub-token", "***"),
        *("--base_url", "https://***@host/v1", "--api_key_env", "MY_KEY", "--hub_token", "--max_steps", "4"),
        *("--key", "***", "--tokens_per_minute", "100"),
    ]


def holders(folder: Path, secret: str) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and (secret.encode() in path.read_bytes() or secret.encode("utf-16-le") in path.read_bytes())
    ]


def test_a_training_writes_its_token_nowhere(tmp_path, capsys):
    options = {"max_steps": 1, "eval_rows": 4, "save_steps": 1, "save_strategy": "steps", "hub_token": TOKEN}
    trainer = tiny_trainer(tmp_path / "run", **options)
    trainer.train()
    trainer.save_model()
    assert trainer.args.hub_token == TOKEN
    assert (tmp_path / "run" / "checkpoint-1" / "training_args.bin").is_file()
    assert holders(tmp_path, TOKEN) == []
    assert TOKEN not in repr(trainer.args) + trainer.args.to_json_string() + str(trainer.args.to_sanitized_dict())
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err


def test_a_projections_training_writes_its_token_nowhere(tmp_path):
    from rtd_hf import ProjectionTrainingArguments

    args = ProjectionTrainingArguments(output_dir=str(tmp_path), hub_token=TOKEN, use_cpu=True)
    torch.save(args, tmp_path / "training_args.bin")
    assert args.hub_token == TOKEN and holders(tmp_path, TOKEN) == []


@pytest.mark.slow
def test_a_run_of_the_script_writes_its_token_nowhere(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "train_rtd.py"), "--max_steps", "1", "--num_triplets", "300"]
    command += ["--output_dir", str(tmp_path / "run"), "--hub_token", TOKEN, "--eval_steps", "1", "--benchmarks"]
    command += ["shapes_sparse", "--per_device_train_batch_size", "8", "--warmup_steps", "0", "--use_cpu", "True"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": TOKEN + "2", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "metrics.json").is_file() and (tmp_path / "run" / "recipe.yaml").is_file()
    assert "--hub_token" in json.loads((tmp_path / "run" / "metrics.json").read_text())["run"]["command"]
    assert holders(tmp_path, TOKEN) == [] and TOKEN not in done.stdout + done.stderr


def test_a_key_of_a_language_model_is_written_nowhere(tmp_path, monkeypatch, caplog):
    from rtd_hf import LLMGenerator, LLMOptions, generate_triplets

    key = "sk-" + "verysecret" * 3
    monkeypatch.setenv("MY_KEY", key)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with chat_server() as server:
        options = LLMOptions(
            model="m", base_url=server.url, api_key_env="MY_KEY", checkpoint=str(tmp_path / "answers")
        )
        generate_triplets(LLMGenerator(options), CAPTIONS, tmp_path / "t.jsonl")
    assert (tmp_path / "answers").stat().st_size > 0 and (tmp_path / "t.jsonl").is_file()
    assert holders(tmp_path, key) == [] and key not in caplog.text


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refused_key_is_not_in_the_error(status, tmp_path, monkeypatch):
    from rtd_hf import LLMGenerator, LLMOptions

    key = "sk-" + "verysecret" * 3
    monkeypatch.setenv("MY_KEY", key)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with chat_server(lambda body, number: (status, {"error": {"message": f"bad key {key}"}})) as server:
        options = LLMOptions(
            model="m", base_url=server.url, api_key_env="MY_KEY", checkpoint=str(tmp_path / "a"), retries=0
        )
        with pytest.raises(Exception) as failed:  # noqa: PT011 (of several kinds; what it says is the matter)
            list(LLMGenerator(options).generate(enumerate(CAPTIONS)))
    assert key not in str(failed.value)


def test_an_error_of_the_hub_does_not_hold_the_token(clip, tmp_path):
    from rtd_hf import push_repository

    folder = repository(tmp_path / "run", clip)
    with pytest.raises(PushError) as failed:
        push_repository(folder, "me/it", license="mit", token=TOKEN)
    assert TOKEN not in str(failed.value)
