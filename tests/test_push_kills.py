"""Pushes that are killed, and a Hub that is gone: what it holds is before or after a commit, and nothing is lost."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_client import ClientError, environment
from push_kill_worker import STEPS, trainer_for
from test_push import PUSH, messages, train, write_folder

from rtd_hf.hub.refusals import UNPUBLISHED_EXIT_CODE


HERE = Path(__file__).parent


def run_worker(hub, tmp_path, job, repo, kills, longest, *folders):
    command = [sys.executable, str(HERE / "push_kill_worker.py"), job, repo, str(kills), str(longest)]
    done = subprocess.run(
        [*command, *map(str, folders)], env=environment(hub.url, tmp_path, HF_TOKEN="hf_owner"), cwd=tmp_path,
        capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return int(done.stdout.rpartition(" kills")[0].split()[-1])


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.huge)])
def test_a_push_that_is_killed(hub, tmp_path, kills):
    hub.calm()
    hub.disturb(".*", ".*", times=10**6, seconds=0.03)  # a Hub that takes its time, so that kills hit every request
    folders = [write_folder(tmp_path / "first"), write_folder(tmp_path / "second", seed=5)]
    repo = f"org/killed-{kills}"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_worker(hub, tmp_path, "publish", repo, kills, 1.2, *folders) == kills
    assert {path: path.read_bytes() for path in before} == before
    left = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert left == set(before)  # nothing was left in them either

    history = hub.repo(repo).history()[::-1]
    assert [commit.message for commit in history] == ["initial commit"] + ["Publish the text encoder"] * 2
    begun, done = len(hub.asked("POST", "/api/repos/create")), len(hub.asked("POST", "/commit/"))
    assert begun > done > 1, (begun, done)  # some were killed while they talked to the Hub
    for commit, folder in zip(history[1:], folders, strict=True):
        paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert set(commit.files) == paths | {".gitattributes"}
        for path in paths - {"README.md", "metrics.json"}:
            assert hub.content(commit.files[path]) == (folder / path).read_bytes(), path


@pytest.mark.slow
@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.huge)])
def test_a_training_that_is_killed_while_it_pushes(hub, tmp_path, kills):
    hub.calm()
    hub.disturb(".*", ".*", times=10**6, seconds=0.03)
    whole = trainer_for(tmp_path / "whole", None, save_total_limit=None)
    whole.train()
    weights = {
        step: digest((tmp_path / "whole" / f"checkpoint-{step}" / "model.safetensors").read_bytes())
        for step in range(1, STEPS + 1)
    }
    assert len(set(weights.values())) == STEPS
    repo, runs = f"org/trained-{kills}", [tmp_path / "run"]
    assert run_worker(hub, tmp_path, "train", repo, kills, 2.5, *runs) == kills

    end = torch.load(tmp_path / "run.end")
    expected = dict(whole.model.state_dict())
    assert end.keys() == expected.keys() and all(torch.equal(end[name], expected[name]) for name in end)
    history = hub.repo(repo).history()[::-1]
    steps = []
    for commit in history[1:]:
        (step,) = [step for step, name in weights.items() if name == commit.files["model.safetensors"].oid]
        steps.append(step)
        last = {path: file for path, file in commit.files.items() if path.startswith("last-checkpoint/")}
        if commit.message == "End of training":
            assert step == STEPS and "README.md" in commit.files
            continue
        assert commit.message == f"Training in progress, step {step}"
        assert {"config.json", "tokenizer.json", ".rtd_hf.json"} <= set(commit.files)
        # The drop-in and what resumes the training are of the same step, in every commit there ever was.
        assert last["last-checkpoint/model.safetensors"].oid == weights[step]
        assert json.loads(hub.content(last["last-checkpoint/trainer_state.json"]))["global_step"] == step
        assert {"last-checkpoint/optimizer.pt", "last-checkpoint/rng_state.pth"} <= last.keys()
        assert not any("training_args" in path for path in commit.files)
    assert len(hub.asked("POST", "/preupload/")) > len(hub.asked("POST", "/commit/")), "no kill hit a push"
    assert steps[-1] == STEPS and history[-1].message == "End of training"
    assert not list((tmp_path / "run").glob(".pushing/*/*"))


# ------------------------------------------------------------------------------------------------ a Hub that is gone
def test_a_checkpoint_that_is_deleted_while_it_is_pushed(hub, client, tmp_path):
    hub.calm()
    slow = hub.disturb("POST", "/preupload/", times=2, seconds=0.7)
    options = {"hub_strategy": "checkpoint", "hub_always_push": True, "save_steps": 1, "save_total_limit": 1}
    trained = train(client, tmp_path, final=False, hub_model_id="org/pruned", **options)
    assert slow.done and trained["steps"] == 4
    assert not any("was not pushed" in line for line in client.logged)
    assert messages(hub, "org/pruned")[0] == "Training in progress, step 4"
    assert len(messages(hub, "org/pruned")) == 5  # all four, though three of them were gone before they were read
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]


SILENT = """
    import rtd_hf.hub.refusals as refusals, rtd_hf.hub.push as push
    from huggingface_hub import get_session

    get_session().timeout = None
    refusals.SILENCE = push.SILENCE = seconds
"""


@pytest.mark.parametrize("path", ["/api/repos/create", "/api/models/org/silent", "/refs"])
def test_a_hub_that_says_nothing(hub, client, tmp_path, path):
    hub.calm()
    folder = write_folder(tmp_path / "run")
    client.run(SILENT, seconds=0.4)
    hub.disturb("GET|POST", path, times=9, seconds=3.0)
    try:
        with pytest.raises(ClientError, match=r"cannot be reached, or the connection broke") as caught:
            client.run(PUSH, folder=folder, repo="org/silent", options={"license": "mit"}, token="hf_owner")
        assert caught.value.kind == "PushError"
    finally:
        client.run(SILENT, seconds=120.0)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"status": 401, "message": "Token expired"}, "does not accept the token.*Token expired"),
        ({"status": 503, "message": "Maintenance"}, "has trouble"),
        ({"status": 413, "message": "Payload too large"}, "storage of `org` is used up"),
    ],
)
def test_trouble_in_the_middle_of_a_training(hub, client, tmp_path, how, said):
    hub.calm()
    broken = hub.disturb("POST", "/commit/", times=99, **how)
    client.run("import rtd_hf.hub.push as push; push._WAITS = (0.01,)")
    trained = train(client, tmp_path, final=False, hub_model_id=f"org/trouble{how['status']}",
                    hub_strategy="every_save")  # fmt: skip
    assert broken.done and trained["steps"] == 4
    (line, *_) = [line for line in client.logged if "A checkpoint was not pushed" in line]
    assert "Could not push `checkpoint-" in line and "The training goes on" in line
    assert re.search(said, line), line
    assert (tmp_path / "run" / "checkpoint-4" / "optimizer.pt").is_file()
    assert messages(hub, f"org/trouble{how['status']}") == ["initial commit"]


SCRIPT_JOB = """
    import contextlib, io, runpy, sys

    import rtd_hf.hub.push as push
    push._WAITS = ()
    sys.path.insert(0, examples)
    sys.argv = [script, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as wrong:
        code = 0
        try:
            runpy.run_path(f"{examples}/{script}", run_name="__main__")
        except SystemExit as end:
            code = end.code
    return [code, said.getvalue(), wrong.getvalue()]
"""


@pytest.mark.slow
def test_a_hub_that_is_gone_at_the_end(hub, client, tmp_path):
    hub.calm()
    output, examples = tmp_path / "run", HERE.parent / "examples"
    arguments = (
        "--max_steps 2 --num_triplets 200 --warmup_steps 1 --num_eval_triplets 16 --per_device_train_batch_size 16 "
        "--disable_tqdm true --license mit --hub_strategy end --eval_strategy no "
        "--eval_on_start false --benchmarks shapes_many "
        f"--push_to_hub true --hub_model_id org/gone --output_dir {output}"
    ).split()
    hub.disturb("POST", "/commit/", times=99, status=403, message="Forbidden")
    code, said, wrong = client.run(
        SCRIPT_JOB, examples=examples, script="train_rtd.py", arguments=arguments, token="hf_owner"
    )
    assert code == UNPUBLISHED_EXIT_CODE == 69
    assert "Load it:" in said  # all that a run tells was told
    assert "PushError" in wrong and f"push_to_hub.py {output} --repo_id" in wrong and "Traceback" not in wrong
    hub.calm()
    push = [str(output), "--repo_id", "org/gone", "--license", "mit"]
    code, said, _ = client.run(
        SCRIPT_JOB, examples=examples, script="push_to_hub.py", arguments=push, token="hf_owner"
    )
    assert code == 0 and "Published:" in said
    published = hub.read("org/gone", "model.safetensors")
    assert published == (output / "model.safetensors").read_bytes()
