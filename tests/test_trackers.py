"""What Trainer's own reporters receive: every number of the log and of the evaluations, and why a training stopped."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import tiny_trainer
from processes import installed_beside


# With all they need beside this environment, and nothing that would replace a part of it.
WANDB = (
    "wandb==0.31.0 cwevals==0.0.1b1 opentelemetry-api==1.45.2 opentelemetry-sdk==1.45.2 platformdirs==4.14.7 "
    "opentelemetry-exporter-otlp-proto-http==1.45.2 opentelemetry-exporter-otlp-proto-common==1.45.2 "
    "opentelemetry-semantic-conventions==0.66b2 opentelemetry-proto==1.45.2 googleapis-common-protos==1.76.0"
).split()
TRACKIO = (
    "trackio==0.43.0 brotli==1.2.1 gradio-client==2.7.2 httpx==0.28.1 httpcore==1.0.9 sniffio==1.3.1 orjson==3.13.0 "
    "python-multipart==0.0.34 starlette==1.10.0 uvicorn==0.54.0 websockets==17.4"
).split()
# What HF reports once at the end, as a summary.
SUMMARY = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss"}


def train(folder: Path, tracker: str) -> list[dict]:
    """A training that a rule stops after its fourth step; returns its log."""
    scores = iter([5.0, 1.0, 4.0, 9.0])
    trainer = tiny_trainer(
        folder, max_steps=9, eval_rows=4, evaluators=[lambda model: {"shapes_recall@10": next(scores)}],
        eval_strategy="steps", eval_steps=2, save_strategy="no", stop_when=["eval_shapes_recall@10:no_gain"],
        report_to=tracker, run_name="tiny",
    )  # fmt: skip
    trainer.train()
    return trainer.state.log_history


def expected(log: list[dict]) -> dict[str, dict[int, float | str]]:
    """By the names that HF gives to trackers, the values by step."""
    found: dict[str, dict] = {}
    for row in log:
        for key, value in row.items():
            if key != "step" and key not in SUMMARY:
                name = f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"
                found.setdefault(name, {})[row["step"]] = value
    return found


def check(found: dict[str, dict[int, float | str]], log: list[dict]) -> None:
    """Every number is there, at its step; and the names that a user looks for are among them."""
    wanted = expected(log)
    for name in (
        "loss",
        "grad_norm",
        "target_similarity",
        "query_similarity",
        "negatives",
        "stop_reason",
        "stop_value",
    ):
        assert f"train/{name}" in wanted
    assert {"eval/loss", "eval/shapes_recall@10", "eval/query_similarity"} <= wanted.keys()
    assert wanted["train/stop_reason"] == {4: "eval_shapes_recall@10:no_gain"}
    assert wanted["train/stop_value"] == {4: 1.0} and wanted["eval/shapes_recall@10"] == {2: 5.0, 4: 1.0}
    assert len(wanted["train/loss"]) == 4
    for name, values in wanted.items():
        assert found.get(name, {}).keys() >= values.keys(), name
        for step, value in values.items():
            same = found[name][step] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6))
            assert same, (name, step, value, found[name][step])


def test_tensorboard_receives_all(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    log = train(tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    found: dict[str, dict] = {name: {one.step: one.value for one in events.Scalars(name)} for name in tags["scalars"]}
    for tag in tags["tensors"]:
        texts = {one.step: one.tensor_proto.string_val[0].decode() for one in events.Tensors(tag)}
        found[tag.removesuffix("/text_summary")] = texts
    check(found, log)
    assert "stop_when" in found["args"][0]  # the options of the run


def run_beside(folder: Path, packages: Path, *arguments: str, **environment: str) -> None:
    """This file as a script, with other packages before this environment, and no proxy to leave by."""
    paths = [str(packages), str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    names = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **environment}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], env=names, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_wandb_receives_all_offline(request, tmp_path):
    packages = installed_beside(request, "wandb-0.31.0", WANDB)
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    run_beside(tmp_path, packages, "wandb", str(tmp_path), **offline)
    log, found = (json.loads((tmp_path / name).read_text()) for name in ("log.json", "found.json"))
    check({name: {int(step): value for step, value in values.items()} for name, values in found.items()}, log)


@pytest.mark.slow
def test_trackio_receives_all(request, tmp_path):
    packages = installed_beside(request, "trackio-0.43.0", TRACKIO)
    run_beside(tmp_path, packages, "trackio", str(tmp_path), TRACKIO_DIR=str(tmp_path / "trackio"))
    log, found = (json.loads((tmp_path / name).read_text()) for name in ("log.json", "found.json"))
    check({name: {int(step): value for step, value in values.items()} for name, values in found.items()}, log)


def by_step(rows: list[dict]) -> dict[str, dict[int, float | str]]:
    """Rows that hold their step, as columns."""
    found: dict[str, dict] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, {})[row["train/global_step"]] = value
    return found


def read_wandb(folder: Path) -> list[dict]:
    """The rows of the one run that lies in W&B's folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    rows = []
    for data in log_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({one.key or ".".join(one.nested_key): json.loads(one.value_json) for one in items})
    return rows


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a file in LevelDB's log format, of which W&B's is one with a head of seven bytes."""
    place, block, record = 7, 32768, b""
    while place + 7 <= len(data):
        if block - place % block < 7:  # a block's last bytes, too few for a head
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def read_trackio(folder: Path) -> list[dict]:
    """The rows of the run in trackio's database."""
    from trackio.sqlite_storage import SQLiteStorage

    (project,) = SQLiteStorage.get_projects()
    (run,) = SQLiteStorage.get_runs(project)
    return SQLiteStorage.get_logs(project, run)


def main(tracker: str, folder: str) -> None:
    """What the processes above run: a training, and what its tracker kept of it."""
    from no_network import refuse_other_hosts

    refuse_other_hosts()
    log = train(Path(folder) / "run", tracker)
    if tracker == "wandb":
        import wandb

        wandb.finish()
    rows = {"wandb": read_wandb, "trackio": read_trackio}[tracker](Path(folder))
    (Path(folder) / "log.json").write_text(json.dumps(log))
    (Path(folder) / "found.json").write_text(json.dumps(by_step(rows)))


if __name__ == "__main__":
    main(*sys.argv[1:])
