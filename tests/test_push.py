"""Publishing, with the real `huggingface_hub` against a server of this machine that speaks the Hub's protocol."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backbone_models import siglip_tokenizer, tiny_backbone
from helpers import tiny_projection, tiny_text_model, tiny_tokenizer, tiny_triplets
from hub_client import ClientError, environment
from hub_server import ACCOUNTS, File, Repo, git_oid
from safetensors.torch import load_file, save_file
from test_hub import OLD_TRANSFORMERS, old_transformers  # noqa: F401
from transformers import CLIPImageProcessorPil

from rtd_hf import CLIPTextModelForRTD, push_repository, write_repository
from rtd_hf.hub import card_of
from rtd_hf.hub.checks import is_local_path
from rtd_hf.projections.originals import LICENSES


TEXTS = ["a photo of a dog", "a photo of $ that is red", "Green, on the left!", ""]
METRICS = {"before": {"shapes_recall@1": 4.0}, "after": {"shapes_recall@1": 12.0}, "run": {"seed": 3}}
PUSH = """
    from rtd_hf import push_repository

    done = push_repository(folder, repo, **options)
    return {"url": done.url, "commit": done.commit, "removed": done.removed, "text": str(done), "card": done.card}
"""
EMBED = """
    import torch
    from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection
    from rtd_hf import ImageToWordProjection

    where = {"cache_dir": cache, "revision": revision}
    model, info = CLIPTextModelWithProjection.from_pretrained(repo, output_loading_info=True, **where)
    bare, bare_info = CLIPTextModel.from_pretrained(repo, output_loading_info=True, **where)
    projection = ImageToWordProjection.from_pretrained(repo, subfolder="projection", **where)
    rows = AutoTokenizer.from_pretrained(repo, **where)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return {
            "projected": model.eval()(**rows).text_embeds.tolist(),
            "bare": model.text_projection(bare.eval()(**rows).pooler_output).tolist(),
            "word": projection(torch.ones(1, projection.config.input_dim)).tolist(),
            "lost": [sorted(map(str, found["missing_keys"])) for found in (info, bare_info)],
        }
"""


def write_folder(folder: Path, *, seed: int | None = None, **options) -> Path:
    """What a training writes, of a tiny encoder."""
    model = tiny_text_model(CLIPTextModelForRTD)
    if seed is not None:
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.text_projection.weight)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    parts = {"license": "mit", "base_model": "them/clip", "recipe": {"seed": 3}, "metrics": METRICS}
    return write_repository(
        folder,
        model,
        tokenizer=tiny_tokenizer(),
        image_processor=processor,
        projection=tiny_projection(),
        **{**parts, **options},
    )


def embeds_of(folder: Path) -> torch.Tensor:
    model = tiny_text_model(CLIPTextModelForRTD)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        return model(**tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt")).text_embeds


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("written") / "run")


@pytest.fixture
def folder(written, tmp_path):
    """A folder of its own for each test."""
    return Path(shutil.copytree(written, tmp_path / "run"))


@pytest.fixture
def push(hub, client, folder):
    """Pushes `folder` in the client; `repo` is the first argument."""
    hub.calm()

    def push(repo, *, token="hf_owner", of=None, **options):
        return client.run(PUSH, folder=of or folder, repo=repo, options={"license": "mit", **options}, token=token)

    return push


def messages(hub, repo, branch="main"):
    return [commit.message for commit in hub.repo(repo).history(branch)]


# ------------------------------------------------------------------------------------------------------- what is sent
def test_a_dry_run_says_everything_and_asks_nothing(push, hub, client, folder):
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "optimizer.pt").write_bytes(b"x")
    (folder / "training_args.bin").write_bytes(b"x")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    said = push("org/dry", dry_run=True, tag="v1", revision="next")
    assert hub.requests == [] and said["url"] is None and said["commit"] is None
    assert "org/dry: private, licence mit, branch next, tag v1" in said["text"]
    assert "Left out: checkpoint-2/, training_args.bin" in said["text"]
    shown = dict(re.findall(r"^  (\S+)  +([\d.]+ k?M?B)$", said["text"], flags=re.MULTILINE))
    sent = {path.relative_to(folder).as_posix() for path in before} - {
        *("checkpoint-2/optimizer.pt", "training_args.bin"),
    }
    assert set(shown) == sent and "projection/model.safetensors" in sent and "recipe.yaml" in sent
    size = (folder / "model.safetensors").stat().st_size
    assert shown["model.safetensors"] == f"{size / 1000:.1f} kB"
    # The same as when the folder had been written for the Hub.
    assert said["card"] == str(card_of(folder, model_id="org/dry"))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_push_is_one_private_commit_of_what_the_folder_holds(push, hub, folder):
    said = push("org/first", tag="v1")
    repo = hub.repo("org/first")
    assert repo.private and messages(hub, "org/first") == ["Publish the text encoder", "initial commit"]
    assert said["url"] == f"{hub.url}/org/first"
    assert repo.tags == {"v1": said["commit"]} == {"v1": repo.branches["main"]}
    for path, file in repo.find("v1").files.items():
        if path not in ("README.md", "metrics.json", ".gitattributes"):
            assert hub.content(file) == (folder / path).read_bytes(), path
        assert file.large == path.endswith((".safetensors", ".png"))
    assert hub.read("org/first", "README.md").decode() == str(card_of(folder, model_id="org/first"))
    metrics = json.loads(hub.read("org/first", "metrics.json"))
    assert metrics["card"]["model_id"] == "org/first" and metrics["after"] == METRICS["after"]
    assert str(folder).encode() not in b"".join(map(hub.content, repo.find("v1").files.values()))
    # The header was read back, not the whole file; and the store of large files never sees a token.
    reads = [each for each in hub.requests if each.method == "GET" and "/_store/" in each.path]
    assert [each.range for each in reads] == ["bytes=0-100000"]
    assert {each.token for each in hub.requests if "/_store/" in each.path} == {None}


def test_what_was_pushed_loads_in_a_clean_cache(push, hub, client, folder, tmp_path):
    push("org/loads")
    hub.calm()
    options = {"texts": TEXTS, "revision": None, "cache": tmp_path / "cache", "token": "hf_owner"}
    found = client.run(EMBED, repo="org/loads", **options)
    expected = embeds_of(folder)
    for name in ("projected", "bare"):
        torch.testing.assert_close(torch.tensor(found[name]), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        word = tiny_projection()(torch.ones(1, 24))
    torch.testing.assert_close(torch.tensor(found["word"]), word, rtol=0, atol=1e-6)
    assert found["lost"] == [[], []]
    assert hub.asked("GET", "/_store/")  # it came from the server, and from no other cache


def test_pushes_with_tags_stay_apart(push, hub, client, folder, tmp_path):
    push("org/tags", tag="v1")
    other = write_folder(tmp_path / "other", seed=5)
    push("org/tags", tag="v2", of=other)
    expected = {"v1": embeds_of(folder), "v2": embeds_of(other), None: embeds_of(other)}
    assert (expected["v1"] - expected["v2"]).abs().max() > 0.1
    for revision, embeds in expected.items():
        options = {"texts": TEXTS, "revision": revision, "cache": tmp_path / "cache", "token": "hf_owner"}
        found = client.run(EMBED, repo="org/tags", **options)
        torch.testing.assert_close(torch.tensor(found["projected"]), embeds, rtol=0, atol=1e-6)

    hub.calm()
    with pytest.raises(ClientError, match=r"has a tag `v1` already.*Nothing was sent.*another `tag`") as caught:
        push("org/tags", tag="v1")
    assert caught.value.kind == "PushError" and len(messages(hub, "org/tags")) == 3
    assert hub.asked("PUT") == [] and hub.asked("POST", "preupload|commit") == []


def test_a_branch_of_its_own(push, hub):
    push("org/branches")
    push("org/branches", revision="next", commit_message="Try this")
    repo = hub.repo("org/branches")
    # The same content as on main, so there is nothing to commit; another does make one.
    assert repo.branches["next"] == repo.branches["main"]


def test_the_same_again_makes_no_commit_but_takes_the_tag(push, hub):
    first = push("org/again")
    puts = len(hub.asked("PUT"))
    second = push("org/again", tag="v1")
    assert second["commit"] == first["commit"] and hub.repo("org/again").tags == {"v1": first["commit"]}
    assert puts == 2 == len(hub.asked("PUT"))  # the weights of the encoder and of the projection, once


def test_what_an_earlier_push_left_does_not_contradict_the_later(push, hub, folder, tmp_path):
    earlier = Path(shutil.copytree(folder, tmp_path / "earlier"))
    (earlier / "adapter").mkdir()
    for name in ("adapter/adapter_config.json", "notes.md", "model-00002-of-00002.safetensors"):
        shutil.copy(earlier / ("model.safetensors" if name.endswith("safetensors") else "config.json"), earlier / name)
    # As somebody wrote it by hand: the push itself refuses such a folder.
    shutil.copy(folder / "model.safetensors", earlier / "adapter" / "adapter_model.safetensors")
    (earlier / "model-00002-of-00002.safetensors").unlink()
    push("org/outdated", of=earlier)
    said = push("org/outdated")
    assert said["removed"] == ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
    paths = hub.paths("org/outdated")
    assert "notes.md" in paths and not any(path.startswith("adapter") for path in paths)
    assert "Removed from the repository: adapter/adapter_config.json" in said["text"]


def test_privacy(push, hub, client):
    push("org/open", private=False)
    assert not hub.repo("org/open").private
    said = push("org/open", commit_message="again")
    assert "org/open: public, licence mit" in said["text"]  # as it is, and not as it was asked
    assert not hub.repo("org/open").private
    assert any("`org/open` was there already and is public; `private=True` does" in line for line in client.logged)


def test_a_repository_of_something_else_is_not_overwritten(push, hub, folder):
    push("org/mine")
    repo = hub.repo("org/mine")
    files = {path: file for path, file in repo.find("main").files.items() if path != ".rtd_hf.json"}
    theirs = repo.add("main", "by hand", files)
    hub.calm()
    with pytest.raises(
        ClientError, match=r"`org/mine` is taken: it holds \d+ files .* such as `config.json`.*overwrite"
    ):
        push("org/mine")
    assert hub.asked("PUT") == [] and repo.find("main") is theirs
    push("org/mine", overwrite=True)
    assert json.loads(hub.read("org/mine", ".rtd_hf.json"))["written_by"] == "rtd_hf"
    (folder / ".rtd_hf.json").unlink()  # somebody copied the visible files only
    assert ".rtd_hf.json" in push("org/mine", dry_run=True)["text"]


# ------------------------------------------------------------------------------------------ when something goes wrong
def test_a_broken_upload_goes_on_where_it_stopped(push, hub, folder):
    projection = load_file(folder / "projection" / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in projection.items()}, folder / "projection" / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    changed = (folder / "projection" / "model.safetensors").read_bytes()
    name = hashlib.sha256(changed).hexdigest()
    hub.disturb("PUT", name, status=400, message="the store is full of sand", times=1)
    with pytest.raises(ClientError, match=r"upload to `org/broken`.*projection/model.safetensors.*full of sand"):
        push("org/broken")
    assert messages(hub, "org/broken") == ["initial commit"]  # nothing half
    hub.calm()
    push("org/broken")
    assert hub.asked("PUT") == [f"/_store/model/org/broken/{name}"]  # the encoder had arrived
    assert messages(hub, "org/broken") == ["Publish the text encoder", "initial commit"]
    assert hub.read("org/broken", "projection/model.safetensors") == changed


def test_a_dropped_connection_is_tried_again(push, hub, folder, tmp_path):
    other = write_folder(tmp_path / "other", seed=11)
    cut = hub.disturb("PUT", "/_store/", after=1000)
    push("org/dropped", of=other)
    assert cut.done and len(hub.asked("PUT")) == 3  # two files, one of them in two attempts
    assert hub.read("org/dropped", "model.safetensors") == (other / "model.safetensors").read_bytes()


def test_large_files_go_in_parts_where_the_hub_says_so(push, hub, tmp_path):
    other = write_folder(tmp_path / "other", seed=12)
    hub.part_size = 50_000
    push("org/parts", of=other)
    weights = (other / "model.safetensors").read_bytes()
    words = (other / "projection" / "model.safetensors").stat().st_size
    assert len(hub.asked("PUT", "/part/")) == -(-len(weights) // 50_000) + -(-words // 50_000) == 6
    assert hub.read("org/parts", "model.safetensors") == weights


def test_large_files_go_by_xet_as_to_the_real_hub(push, hub, client, tmp_path):
    pytest.importorskip("hf_xet")
    other = write_folder(tmp_path / "other", seed=13)
    files = [other / "model.safetensors", other / "projection" / "model.safetensors"]
    hub.xet = tmp_path / "xet"
    hub.xet.mkdir()
    client.run("import huggingface_hub.constants as constants; constants.HF_HUB_DISABLE_XET = False")
    try:
        with pytest.raises(
            ClientError, match="upload to `org/xet`.*LFS pointer pointed to a file that does not exist"
        ):
            push("org/xet", of=other)  # a Hub that did not get what was sent
        hub.expect(files)
        push("org/xet", of=other)
        assert hub.asked("PUT") == [] == hub.asked("POST", "lfs/objects")
        assert messages(hub, "org/xet") == ["Publish the text encoder", "initial commit"]
        assert hub.read("org/xet", "model.safetensors") == files[0].read_bytes()
        hub.calm()
        options = {"texts": TEXTS, "revision": None, "cache": tmp_path / "cache", "token": "hf_owner"}
        found = client.run(EMBED, repo="org/xet", **options)
        torch.testing.assert_close(torch.tensor(found["projected"]), embeds_of(other), rtol=0, atol=1e-6)
        assert hub.asked("GET", "xet-read-token") and hub.asked("GET", "/_store/") == []
    finally:
        client.run("import huggingface_hub.constants as constants; constants.HF_HUB_DISABLE_XET = True")
        hub.xet = None


@pytest.mark.parametrize("late", [False, True], ids=["refused", "answer lost"])
def test_trouble_of_the_hub_is_tried_again_and_makes_one_commit(push, hub, client, late):
    repo = f"org/trouble-{late}"
    before = hub.disturb("POST", "/preupload/", status=503)
    commit = hub.disturb("POST", "/commit/", status=500, message="Internal error", late=late)
    push(repo)
    assert before.done and commit.done
    assert messages(hub, repo) == ["Publish the text encoder", "initial commit"]
    assert any("The Hub has trouble" in line for line in client.logged)


@pytest.mark.parametrize(
    ("repo", "token", "disturbance", "status", "message"),
    [
        ("org/x1", "hf_wrong", None, 401, "does not accept the token.*settings/tokens.*Invalid credentials"),
        ("them/x2", "hf_owner", None, 403, "create `them/x2`.*may not write.*`them` is not you.*under the namespace"),
        ("org/x3", "hf_reader", None, 403, "only reads.*another `repo_id`"),
        ("org/x4", "hf_owner", ("/commit/", 403, "Private repository storage limit reached, please upgrade your plan"),
         403, "storage of `org` is used up.*private=False"),
        ("org/x5", "hf_owner", ("/api/repos/create", 402, "Payment required"), 402, "storage of `org` is used up"),
        ("org/x6", "hf_owner", ("/commit/", 409, "Another commit is in progress"), 409, "somebody else writes"),
        ("org/x7", "hf_owner", ("/commit/", 412, "A commit has happened since"), 412, "run it again"),
        ("org/x8", "hf_owner", ("/commit/", 429, "Slow down", {"ratelimit": '"api";r=0;t=55'}), 429,
         "asked the Hub too often; wait 55 seconds.*not sent twice"),
        ("org/x9", "hf_owner", ("/api/repos/create", 429, "Slow down", {"Retry-After": "7"}), 429, "wait 7 seconds"),
        ("org/x14", "hf_owner", ("/commit/", 429, "You hit the quota of 1000 requests, upgrade your plan"), 429,
         "asked the Hub too often"),
        ("org/x10", "hf_owner", ("/commit/", 502, "<html>Bad gateway</html>"), 502,
         r"the Hub has trouble \(HTTP 502; see https://status"),
        ("org/x11", "hf_owner", ("/revision/", 404, "Repository not found"), 404, "no `org/x11` that your token"),
        ("org/x12", "hf_owner", ("/api/validate-yaml", 400, "no"), None, "Invalid metadata in README.md"),
        ("org/x13", "hf_owner", ("/tag/", 403, "Forbidden"), 403, "set the tag `v1` on commit [0-9a-f]{40}, which is"),
    ],
)  # fmt: skip
def test_refusals_in_plain_words(push, hub, client, repo, token, disturbance, status, message):
    if disturbance:
        path, code, text, *headers = disturbance
        hub.disturb("GET|POST", path, status=code, message=text, headers=headers[0] if headers else {}, times=9)
    client.run("import rtd_hf.hub.push as push; push._WAITS = (0.01,)")
    with pytest.raises(ClientError) as caught:
        push(repo, token=token, tag="v1")
    client.run("import rtd_hf.hub.push as push; push._WAITS = (1.0, 4.0)")
    assert caught.value.kind == "PushError" and caught.value.text.startswith("Could not ")
    assert re.search(message, caught.value.text), caught.value.text
    if token in ACCOUNTS and status != 403:
        assert messages(hub, repo) == ["initial commit"] if ("model", repo) in hub.repos else True


@pytest.mark.parametrize("kind", ["cut", "other"])
def test_what_arrived_is_compared_with_what_was_sent(push, hub, folder, kind):
    def cut(files):
        files["vocab.json"] = File(git_oid(b"{}"), 2, False)
        hub.blobs[git_oid(b"{}")] = b"{}"

    def other(files):
        content = (folder / "model.safetensors").read_bytes().replace(b"text_projection", b"test_projection")
        name = hashlib.sha256(content).hexdigest()
        files["model.safetensors"], hub.store[name] = File(name, len(content), True), content

    hub.tamper = {"cut": cut, "other": other}[kind]
    said = {
        "cut": r"1 of \d+ files on the Hub are not those .* `vocab.json` \(2 instead of \d+ bytes\)",
        "other": "hold other tensors than",
    }
    with pytest.raises(ClientError, match=f"{said[kind]}.*Do not use commit [0-9a-f]{{40}}"):
        push(f"org/tampered-{kind}", tag="v1")
    assert hub.repo(f"org/tampered-{kind}").tags == {}


def test_somebody_elses_repository(push, hub):
    push("org/taken", private=False)
    with pytest.raises(ClientError, match="may not write to `org/taken`.*`org` is not you"):
        push("org/taken", token="hf_other")
    assert len(messages(hub, "org/taken")) == 2


def test_nothing_is_asked_without_a_token_or_offline(push, hub, client, folder):
    with pytest.raises(ClientError, match="there is no token.*hf auth login"):
        push("org/none", token=None)
    with pytest.raises(ClientError, match="there is no token"):
        client.run(PUSH, folder=folder, repo="org/none", options={"license": "mit", "token": False}, token="hf_owner")
    offline = """
        import huggingface_hub.constants as constants
        from rtd_hf import push_repository

        constants.HF_HUB_OFFLINE = True
        try:
            push_repository(folder, "org/none", license="mit")
        finally:
            constants.HF_HUB_OFFLINE = False
    """
    with pytest.raises(ClientError, match="switched off here by `HF_HUB_OFFLINE`.*`dry_run=True`") as caught:
        client.run(offline, folder=folder, token="hf_owner")
    assert caught.value.kind == "PushError" and caught.value.cause == "OfflineModeIsEnabled"
    assert hub.requests == []
    dead = """
        import huggingface_hub.constants as constants
        from rtd_hf import push_repository

        endpoint, constants.ENDPOINT = constants.ENDPOINT, "http://127.0.0.1:9"
        try:
            push_repository(folder, "org/none", license="mit")
        finally:
            constants.ENDPOINT = endpoint
    """
    with pytest.raises(ClientError, match="cannot be reached.*Connection refused.*`HF_ENDPOINT`") as caught:
        client.run(dead, folder=folder, token="hf_owner")
    assert caught.value.kind == "PushError" and caught.value.cause == "ConnectError"


LOAD = """
    from transformers import CLIPTextModelWithProjection

    model = CLIPTextModelWithProjection.from_pretrained(repo, cache_dir=cache)
    return model.text_projection.weight.sum().item()
"""


def test_a_private_repository_needs_the_token(push, hub, client, folder, tmp_path):
    push("org/private")
    for token in (None, "hf_other"):
        with pytest.raises(ClientError, match="not a valid model identifier.*\n.*private repository.*token"):
            client.run(LOAD, repo="org/private", cache=tmp_path / "cache", token=token)
    found = client.run(LOAD, repo="org/private", cache=tmp_path / "cache", token="hf_owner")
    assert found == pytest.approx(load_file(folder / "model.safetensors")["text_projection.weight"].sum().item())


def test_a_broken_and_slow_download_goes_on_where_it_stopped(push, hub, client, tmp_path):
    push("org/slow")
    content = bytes(range(256)) * 47_000  # more than one of the 10 MiB that the client takes at once
    large = File(hashlib.sha256(content).hexdigest(), len(content), True)
    hub.store[large.oid] = content
    hub.repo("org/slow").add("main", "large", {"large.bin": large})
    hub.calm()
    hub.disturb("HEAD", "/resolve/", seconds=0.3)
    hub.disturb("GET", "/_store/", after=11_000_000, seconds=0.3)
    code = """
        from huggingface_hub import hf_hub_download

        return hf_hub_download(repo, "large.bin", cache_dir=cache)
    """
    file = client.run(code, repo="org/slow", cache=tmp_path / "cache", token="hf_owner")
    assert Path(file).read_bytes() == content
    reads = [each.range for each in hub.requests if each.method == "GET" and "/_store/" in each.path]
    assert reads == [None, f"bytes={10 * 2**20}-"]


# ---------------------------------------------------------------------------------------------- what is not published
def change_json(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def flat_keys(folder):
    tensors = load_file(folder / "model.safetensors")
    flat = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    save_file(flat, folder / "model.safetensors", metadata={"format": "pt"})


def without_format(folder):
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")


def not_finite(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["text_projection.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_projection(folder):
    from rtd_hf import ImageToWordProjection

    ImageToWordProjection.build("lincir", 24, 40).save_pretrained(folder / "projection")


def replace(file, old, new):
    def change(folder):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return change


def adapter_of(base):
    def change(folder):
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))

    return change


REFUSED = {
    "local base in config.json": (
        lambda folder: change_json(folder / "config.json", _name_or_path="/data/clip"),
        "`config.json` names '/data/clip' as `_name_or_path`, which is a path of this machine",
    ),
    "local base of the adapter": (adapter_of("../clip"), "`adapter/adapter_config.json` names '../clip'"),
    "local base of the projection": (
        lambda folder: change_json(folder / "projection" / "config.json", base_model="C:\\clip"),
        "`projection/config.json` names .* as `base_model`",
    ),
    "local base in the card": (
        replace("README.md", "base_model: them/clip", "base_model: ./clip"),
        "`README.md` names",
    ),
    "local base in the figures": (
        lambda folder: change_json(folder / "metrics.json", run={"base_model": "~/clip"}),
        "`metrics.json` names '~/clip'",
    ),
    "local base in the recipe": (
        lambda folder: (folder / "recipe.yaml").write_text("clip_model: a/b/c\n"),
        "`recipe.yaml` names 'a/b/c' as `clip_model`",
    ),
    "another path in the card's code": (
        replace("README.md", "CLIPTextModelWithProjection.from_pretrained(", 'x.from_pretrained("/data/clip", '),
        "code in the card loads '/data/clip'",
    ),
    "a token": (
        replace("README.md", "## Limits", "train.py --hub_token hf_" + "aB3" * 10),
        "`README.md` holds an access token",
    ),
    "a name in the card that is no text": (
        replace("README.md", "base_model: them/clip", "0: them/clip"),
        "`README.md` in .* cannot be read",
    ),
    "no card": (lambda folder: (folder / "README.md").unlink(), "has no `README.md`"),
    "no tokenizer": (lambda folder: (folder / "tokenizer_config.json").unlink(), "has no `tokenizer_config.json`"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "No safetensors file"),
    "cut weights": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:999]),
        "is cut off or damaged",
    ),
    "flat keys": (flat_keys, "do not start with `text_model.`"),
    "no format": (without_format, "must say `format: pt`"),
    "not finite": (not_finite, "gives other embeddings than the model: largest difference nan"),
    "a bare model": (
        lambda folder: change_json(folder / "config.json", architectures=["CLIPTextModel"]),
        r"`architectures` \['CLIPTextModel'\], but a published encoder must be one of CLIPTextModelWithProjection",
    ),
    "an adapter beside the weights": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        "`adapter_config.json` beside merged weights",
    ),
    "a projection that does not fit": (other_projection, "makes words of width 40, but the text encoder takes 32"),
    "damaged figures": (lambda folder: (folder / "metrics.json").write_text("{"), "metrics.json.* cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_must_not_be_published_is_refused_before_anything_is_sent(folder, case):
    change, message = REFUSED[case]
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        push_repository(folder, "org/name", license="mit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"license": ""}, "`license` must be a Hub licence identifier .* no default"),
        ({"license": None}, "`license` must be"),
        ({"license": "The MIT licence"}, "`license` must be"),
        ({"license": "apache-2.0"}, "`license` is 'apache-2.0', but the card in .* states 'mit'"),
        ({"repo_id": "name"}, "`repo_id` must be `owner/name`"),
        ({"repo_id": "https://huggingface.co/org/name"}, "`repo_id` must be `owner/name`"),
        ({"folder": "nowhere"}, "`folder` nowhere does not exist"),
    ],
)
def test_arguments_are_checked(folder, arguments, message):
    arguments = {"folder": folder, "repo_id": "org/name", "license": "mit", **arguments}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        push_repository(**arguments)
    with pytest.raises(TypeError, match="license"):
        push_repository(folder, "org/name")


def test_a_card_without_a_licence_gets_the_chosen_one(folder):
    replace("README.md", "license: mit\n", "")(folder)
    plan = push_repository(folder, "org/name", license="apache-2.0", dry_run=True)
    assert "\nlicense: apache-2.0\n" in plan.card
    assert json.loads(plan.changed["metrics.json"])["card"]["license"] == "apache-2.0"


@pytest.mark.parametrize("kind", ["SiglipTextModelForRTD", "Siglip2TextModelForRTD"])
def test_other_backbones(tmp_path, kind):
    import rtd_hf

    model, tokenizer = tiny_backbone(getattr(rtd_hf, kind)), siglip_tokenizer(tmp_path / "tokenizer")
    folder = rtd_hf.export_text_encoder(model, tmp_path / "run", tokenizer=tokenizer)
    name = model.stock_class.__name__
    rtd_hf.build_model_card({}, license="mit", text_encoder_class=name).save(folder / "README.md")
    plan = push_repository(folder, "org/siglip", license="mit", dry_run=True)
    assert f'{name}.from_pretrained("org/siglip")' in plan.card and plan.drop_in.max_difference < 1e-5


def test_the_model_it_came_from_is_compared_where_it_is_given(folder):
    model, tokenizer = tiny_text_model(CLIPTextModelForRTD), tiny_tokenizer()
    push_repository(folder, "org/name", license="mit", dry_run=True, model=model, tokenizer=tokenizer)
    with torch.no_grad():
        model.text_projection.weight += 0.01
    with pytest.raises(ValueError, match="gives other embeddings than the model"):
        push_repository(folder, "org/name", license="mit", dry_run=True, model=model, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("name", "local"),
    [
        *(("openai/clip-vit-large-patch14", False), ("gpt2", False), ("shapes", False), ("/data/clip", True)),
        *(("./clip", True), ("../clip", True), ("~/clip", True), ("a/b/c", True), ("C:/clip", True), ("a\\b", True)),
    ],
)
def test_what_is_a_path(name, local):
    assert is_local_path(name) is local


def test_a_folder_that_looks_like_a_hub_id_is_a_path(tmp_path, monkeypatch):
    assert not is_local_path("outputs/clip")
    (tmp_path / "outputs" / "clip").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_local_path("outputs/clip")


@pytest.mark.parametrize(
    ("change", "license", "warning"),
    [
        ({"license": "cc-by-nc-4.0"}, "mit", "licence is not free: cc-by-nc-4.0. It may bind"),
        ({"license": LICENSES["lincir"]}, "mit", "licence is not free: CC BY-NC 4.0: no commercial use"),
        ({"license": LICENSES["fti4cir"]}, "mit", "ask the authors before publishing"),
        ({"license": LICENSES["pic2word"]}, "mit", None),
        ({"license": "cc-by-nc-4.0"}, "cc-by-nc-4.0", None),
        ({"license": "mit"}, "mit", None),
        (
            {},
            "mit",
            "The projection records no licence. Of the weights that the authors of `lincir` published it is: CC BY",
        ),
        ({}, "cc-by-nc-sa-4.0", None),
        ({"projection_type": "pic2word"}, "mit", None),
    ],
)
def test_warning_of_a_non_commercial_projection(folder, change, license, warning):
    change_json(folder / "projection" / "config.json", **change)
    replace("README.md", "license: mit", f"license: {license}")(folder)
    if "projection_type" in change:
        from rtd_hf import ImageToWordProjection

        ImageToWordProjection.build("pic2word", 24, 32).save_pretrained(folder / "projection")
    plan = push_repository(folder, "org/name", license=license, dry_run=True)
    found = [line for line in plan.warnings if "projection" in line]
    assert [warning in line for line in found] == ([True] if warning else [])
    assert ("Warning: " in str(plan)) == bool(warning)


def test_warning_of_what_is_missing_or_private(folder):
    shutil.rmtree(folder / "projection")
    replace("README.md", "base_model: them/clip\n", "")(folder)
    replace("README.md", "## Limits", f"Made in {folder}.\n\n## Limits")(folder)
    warnings = " ".join(push_repository(folder, "org/name", license="mit", dry_run=True).warnings)
    assert "There is no `projection/`" in warnings and "names no `base_model`" in warnings
    assert "This folder's path stands in `README.md`" in warnings


@pytest.mark.parametrize("place", ["here", "moved", "elsewhere"])
def test_the_cards_code_loads_the_repository_wherever_the_folder_was(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    folder = write_folder(Path("outputs/run"))
    assert 'from_pretrained("outputs/run")' in (folder / "README.md").read_text()
    if place != "here":
        monkeypatch.chdir(tmp_path / "outputs" if place == "elsewhere" else "/")
        folder = tmp_path / "outputs" / "run"
    if place == "moved":
        (tmp_path / "new").mkdir()
        folder = folder.rename(tmp_path / "new" / "run")
    card = push_repository(folder, "org/enc", license="mit", dry_run=True).card
    assert "outputs" not in card and card.count('"org/enc"') >= 3 and "\n# enc\n" in card


# -------------------------------------------------------------------------------------------------------- the trainer
TRAIN = """
    import json
    from pathlib import Path

    import torch
    from datasets import Dataset
    from helpers import tiny_projection, tiny_text_model, tiny_tokenizer, tiny_triplets
    from transformers import CLIPImageProcessorPil

    from rtd_hf import CLIPTextModelForRTD, RTDTrainer, RTDTrainingArguments

    defaults = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
                "disable_tqdm": True, "use_cpu": True, "report_to": "none", "push_to_hub": True, "hub_license": "mit"}
    torch.manual_seed(0)  # the adapters start at random
    peft = None
    if lora:
        from peft import LoraConfig
        peft = LoraConfig(r=2, lora_alpha=4, target_modules=list(CLIPTextModelForRTD.lora_target_modules))
    trainer = RTDTrainer(
        tiny_text_model(CLIPTextModelForRTD),
        RTDTrainingArguments(output_dir=output, **{**defaults, **options}),
        projection=tiny_projection(), processing_class=tiny_tokenizer(),
        train_dataset=Dataset.from_list(tiny_triplets(20)), peft_config=peft,
    )
    checkpoint = None
    if resume:
        from huggingface_hub import snapshot_download
        got = snapshot_download(resume, allow_patterns="last-checkpoint/*", cache_dir=cache)
        checkpoint = f"{got}/last-checkpoint"
    trainer.train(resume_from_checkpoint=checkpoint)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    error = None
    if final is True:
        try:
            done = trainer.push_to_hub(image_processor=processor, base_model="them/clip", tag="v1")
        except OSError as caught:
            if not refused:
                raise
            error = str(caught)
    if final == "in the background":
        assert trainer.hub_model_id is None
        later = trainer.push_to_hub(image_processor=processor, base_model="them/clip", blocking=False, private=False)
        done = later.result()
    if refused and final:
        done = trainer.push_to_hub(image_processor=processor, base_model="them/clip", tag="v1")
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    with torch.no_grad():
        embeds = model(**tiny_tokenizer()(texts, padding=True, return_tensors="pt")).text_embeds.tolist()
    return {"embeds": embeds, "error": error, "steps": trainer.state.global_step, "repo": trainer.hub_model_id}
"""


def train(client, tmp_path, *, lora=False, final=True, refused=False, resume=None, token="hf_owner", **options):
    options = {"hub_token": token, **options}
    values = {"lora": lora, "final": final, "refused": refused, "resume": resume}
    values |= {"texts": TEXTS, "output": tmp_path / "run", "cache": tmp_path / "cache"}
    return client.run(TRAIN, options=options, token=token, **values)


def holds_token(hub, repo, token):
    contents = [hub.content(file) for commit in repo.commits.values() for file in commit.files.values()]
    return any(token.encode() in content for content in contents)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_trainer_publishes_the_drop_in(hub, client, tmp_path, lora):
    hub.calm()
    name = f"org/trained-{lora}"
    trained = train(client, tmp_path, lora=lora, hub_model_id=name)
    repo = hub.repo(name)
    assert repo.private and trained["repo"] == name and repo.tags["v1"] == repo.branches["main"]
    subjects = messages(hub, name)
    assert subjects[0] == "End of training" and subjects[-1] == "initial commit"
    assert "Training in progress, step 2" in subjects
    assert ("adapter/adapter_config.json" in hub.paths(name)) == lora
    assert not {"training_args.bin", "adapter_config.json", "adapter_model.safetensors"} & {
        path for commit in repo.commits.values() for path in commit.files
    }
    assert b"hf_owner" not in (tmp_path / "run" / "checkpoint-4" / "training_args.bin").read_bytes()
    assert not holds_token(hub, repo, "hf_owner")
    card = hub.read(name, "README.md").decode()
    assert "license: mit" in card and "base_model: them/clip" in card and f'from_pretrained("{name}")' in card
    options = {"texts": TEXTS, "cache": tmp_path / "cache", "token": "hf_owner"}
    found = client.run(EMBED, repo=name, revision="v1", **options)
    for kind in ("projected", "bare"):
        torch.testing.assert_close(torch.tensor(found[kind]), torch.tensor(trained["embeds"]), rtol=0, atol=1e-5)
    # What was pushed on the way is a drop-in as well, of an earlier step.
    (step,) = [commit for commit in repo.history() if commit.message == "Training in progress, step 2"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(step.files)
    early = client.run(LOAD.replace("cache_dir=cache", f"cache_dir=cache, revision={step.oid!r}"), repo=name,
                       cache=tmp_path / "cache", token="hf_owner")  # fmt: skip
    merged = tmp_path / "run" / "checkpoint-2" / ("merged" if lora else "")
    weights = load_file(merged / "model.safetensors")
    assert early == pytest.approx(weights["text_projection.weight"].sum().item(), rel=1e-5)
    assert hub.content(step.files["model.safetensors"]) == (merged / "model.safetensors").read_bytes()
    assert not list((tmp_path / "run" / ".pushing").iterdir())


def test_the_trainers_arguments_of_the_hub(hub, client, tmp_path):
    hub.calm()
    train(client, tmp_path, hub_model_id="org/strategies", hub_strategy="all_checkpoints", hub_revision="next",
          hub_private_repo=False, hub_always_push=True)  # fmt: skip
    repo = hub.repo("org/strategies")
    assert not repo.private and messages(hub, "org/strategies") == ["initial commit"]
    assert repo.tags["v1"] == repo.branches["next"]
    paths = hub.paths("org/strategies", "next")
    assert {"checkpoint-2/optimizer.pt", "checkpoint-4/trainer_state.json", "model.safetensors"} <= paths
    assert not any("training_args" in path or "merged" in path for path in paths)

    # Without `push_to_hub` only what is asked; the repository is called like the folder.
    train(client, tmp_path / "asked", final="in the background", push_to_hub=False)
    assert messages(hub, "me/run") == ["End of training", "initial commit"] and not hub.repo("me/run").private

    train(client, tmp_path / "end", hub_model_id="strategies-end", hub_strategy="end")
    assert messages(hub, "me/strategies-end") == ["End of training", "initial commit"]  # the user's own namespace


def test_a_training_goes_on_from_the_hub(hub, client, tmp_path):
    hub.calm()
    pushed = {"hub_model_id": "org/resumed", "hub_strategy": "checkpoint", "hub_always_push": True}
    train(client, tmp_path, lora=True, final=False, **pushed)
    paths = hub.paths("org/resumed")
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/adapter_model.safetensors", "model.safetensors"} <= paths
    assert not any("training_args" in path or "merged" in path for path in paths)
    options = {"lora": True, "final": False, "max_steps": 6, "push_to_hub": False}
    whole = train(client, tmp_path / "whole", **options)
    resumed = train(client, tmp_path / "resumed", resume="org/resumed", **options)
    assert whole["steps"] == resumed["steps"] == 6
    assert [path.name for path in (tmp_path / "resumed" / "run").glob("checkpoint-*")] == ["checkpoint-6"]
    torch.testing.assert_close(torch.tensor(resumed["embeds"]), torch.tensor(whole["embeds"]), rtol=0, atol=1e-6)


def test_a_push_that_fails_loses_nothing(hub, client, tmp_path):
    hub.calm()
    in_training = hub.disturb("POST", "/preupload/", status=403, message="Forbidden", times=1)
    trained = train(client, tmp_path, final=False, hub_model_id="org/failing", hub_strategy="every_save")
    assert in_training.done and trained["steps"] == 4
    assert any("A checkpoint was not pushed to `org/failing`" in line for line in client.logged)
    assert (tmp_path / "run" / "checkpoint-4" / "optimizer.pt").is_file()

    hub.calm()
    hub.disturb("POST", "/commit/", status=429, message="Slow down", times=1)
    trained = train(client, tmp_path / "end", refused=True, hub_model_id="org/failing", hub_strategy="end")
    folder = tmp_path / "end" / "run" / "published"
    assert re.search(rf"asked the Hub too often.*Nothing is lost.*`{folder}`.*push_to_hub.py", trained["error"])
    torch.testing.assert_close(embeds_of(folder), torch.tensor(trained["embeds"]), rtol=0, atol=1e-5)
    assert messages(hub, "org/failing")[0] == "End of training"  # the second attempt


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        ({"hub_license": None}, "hf_owner", "ValueError: `license` must be a Hub licence identifier"),
        ({}, "hf_wrong", "PushError: Could not create `org/refused`: the Hub does not accept the token"),
        ({"hub_model_id": "them/x"}, "hf_owner", "PushError: Could not create `them/x`.*may not write"),
        ({"hub_model_id": "org/other"}, "hf_owner", "PushError: `org/other` is taken.*another `hub_model_id`"),
    ],
)
def test_a_training_that_could_not_be_pushed_does_not_start(hub, client, tmp_path, options, token, message):
    hub.calm()
    hub.repos["model", "org/other"] = Repo(private=True)
    hub.repos["model", "org/other"].add("main", "by hand", {"config.json": File(git_oid(b""), 0, False)})
    with pytest.raises(ClientError, match=message):
        train(client, tmp_path, token=token, **{"hub_model_id": "org/refused", **options})
    assert not (tmp_path / "run" / "checkpoint-2").exists()


# ------------------------------------------------------------------------------------------------- scripts, data sets
SCRIPT = """
    import contextlib, io, runpy, sys

    sys.path.insert(0, examples)
    sys.argv = ["push_to_hub.py", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            runpy.run_path(f"{examples}/push_to_hub.py", run_name="__main__")
        except SystemExit as end:
            return [said.getvalue(), str(end.code)]
    return [said.getvalue(), None]
"""
EXAMPLES = Path(__file__).parents[1] / "examples"


def test_script(hub, client, folder):
    hub.calm()

    def script(*arguments):
        return client.run(SCRIPT, examples=EXAMPLES, arguments=[str(folder), *arguments], token="hf_owner")

    said, end = script("--repo_id", "org/script", "--license", "mit", "--dry_run")
    assert end is None and hub.requests == []
    assert "model.safetensors" in said and "# script" in said and "Nothing was sent" in said
    said, end = script("--repo_id", "org/script", "--license", "mit", "--public", "--tag", "v1")
    assert end is None and f"{hub.url}/org/script" in said
    assert not hub.repo("org/script").private and "v1" in hub.repo("org/script").tags
    for arguments, message in (
        (["--repo_id", "org/script"], "`license` must be a Hub licence identifier"),
        (["--license", "mit"], "`repo_id` must be"),
        (["--repo_id", "org/script", "--license", "mit", "--tag", "v1"], "has a tag `v1` already"),
        (["--repo_id", "org/script", "--licence", "mit"], "Did you mean `license`"),
    ):
        said, end = script(*arguments)
        assert end and message in end and "Traceback" not in end


MAIN_JOB = """
    import contextlib, io, json, runpy, sys

    import torch
    from rtd_hf import BENCHMARKS, CLIPTextModelForRTD, load_cir_encoder

    sys.path.insert(0, examples)
    sys.argv = ["train_rtd.py", *arguments]
    for name, load in dict(BENCHMARKS).items():
        BENCHMARKS[name] = lambda root=None, load=load, **options: load(num_queries=12)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_path(f"{examples}/train_rtd.py", run_name="__main__")
    benchmark = BENCHMARKS["shapes"]()
    queries = benchmark.queries[:4]
    found = {}
    for name, source in (("folder", output), ("hub", repo)):
        if name == "hub":
            import huggingface_hub.constants as constants
            constants.HF_HUB_CACHE = cache
        retriever = load_cir_encoder(source)
        rows = torch.stack([p.sum() for p in retriever.text_encoder.parameters()])
        found[name] = rows.tolist()
    return [said.getvalue(), found]
"""


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_main_job_publishes_what_loads_again(hub, client, tmp_path, lora):
    hub.calm()
    name, output = f"org/world-{lora}", tmp_path / "run"
    arguments = (
        "--max_steps 4 --num_triplets 400 --warmup_steps 1 --eval_steps 2 --save_steps 2 --num_eval_triplets 16 "
        "--per_device_train_batch_size 16 --disable_tqdm true --benchmarks shapes_many --license mit "
        f"--push_to_hub true --hub_model_id {name} --output_dir {output}" + " --use_peft" * lora
    ).split()
    said, found = client.run(
        MAIN_JOB, examples=EXAMPLES, arguments=arguments, output=output, repo=name, cache=tmp_path / "cache",
        token="hf_owner",
    )  # fmt: skip
    assert f"Published: {hub.url}/{name}" in said
    assert found["hub"] == found["folder"]
    paths = hub.paths(name)
    assert {"recipe.yaml", "metrics.json", "README.md", "preprocessor_config.json", "projection/config.json"} <= paths
    assert ("adapter/adapter_config.json" in paths) == lora
    assert hub.read(name, "README.md").decode() == str(card_of(output, model_id=name))
    assert str(tmp_path).encode() not in b"".join(map(hub.content, hub.repo(name).find("main").files.values()))


def test_triplets_as_a_data_set(hub, client, tmp_path):
    hub.calm()
    rows = tiny_triplets(12)
    code = """
        from datasets import load_dataset

        from rtd_hf.triplets import write_triplets
        from rtd_hf.triplets.publishing import build_triplet_card, push_triplets

        made = write_triplets(rows, file)
        card = build_triplet_card(file, license="cc-by-4.0", repo_id="org/triplets", captions="a test")
        address = push_triplets(file, "org/triplets", card)
        loaded = load_dataset("org/triplets", split="train", cache_dir=cache)
        return [address, [dict(row) for row in loaded]]
    """
    address, loaded = client.run(
        code, rows=rows, file=tmp_path / "triplets.parquet", cache=tmp_path / "cache", token="hf_owner"
    )
    assert address == f"{hub.url}/datasets/org/triplets" and hub.repo("org/triplets", "dataset").private
    assert [{name: row[name] for name in rows[0]} for row in loaded] == rows
    assert hub.paths("org/triplets", kind="dataset") == {".gitattributes", "README.md", "data/train.parquet"}


# -------------------------------------------------------------------------------------------------- transformers 4.57
OLD_READER = """
import json, sys
from no_network import refuse_other_hosts

refuse_other_hosts()
import torch, transformers
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection

repo, texts = sys.argv[1], json.loads(sys.argv[2])
model, info = CLIPTextModelWithProjection.from_pretrained(repo, output_loading_info=True)
bare, bare_info = CLIPTextModel.from_pretrained(repo, output_loading_info=True)
rows = AutoTokenizer.from_pretrained(repo)(texts, padding=True, return_tensors="pt")
with torch.no_grad():
    embeds = [model.eval()(**rows).text_embeds, model.text_projection(bare.eval()(**rows).pooler_output)]
print(json.dumps({
    "version": transformers.__version__,
    "embeds": [embed.tolist() for embed in embeds],
    "missing": [sorted(found["missing_keys"]) for found in (info, bare_info)],
}))
"""


@pytest.mark.slow
def test_transformers_4_loads_what_was_pushed(push, hub, folder, old_transformers, tmp_path):  # noqa: F811
    push("org/old", private=True)
    hub.calm()
    variables = environment(hub.url, tmp_path / "home", HF_TOKEN="hf_owner")
    variables["PYTHONPATH"] = f"{old_transformers}:{variables['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-c", OLD_READER, "org/old", json.dumps(TEXTS)],
        capture_output=True,
        text=True,
        env=variables,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["version"] == OLD_TRANSFORMERS["transformers"] and read["missing"] == [[], []]
    for embeds in read["embeds"]:
        torch.testing.assert_close(torch.tensor(embeds), embeds_of(folder), rtol=0, atol=1e-6)
    assert hub.asked("GET", "/_store/")
