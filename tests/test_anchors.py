"""Anchors computed ahead: right, found by text, resumed, extended, shared out, and never those of something else."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from helpers import real_tokenizer, tiny_text_model, tiny_tokenizer, tiny_triplets
from processes import leave, run_on_processes

from rtd_hf import AnchorStore, encoder_fingerprint, precompute_anchors
from rtd_hf.anchors import captions as anchor_captions
from rtd_hf.anchors import files as anchor_files
from rtd_hf.anchors import store as anchors
from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.texts import clean_caption, text_id


def encoder(**options):
    return tiny_text_model(CLIPTextModelForRTD, **options)


def precompute(folder, rows, model=None, tokenizer=None, **options):
    """Small parts and batches, so that a handful of captions fills several."""
    options = {"texts_per_part": 5, "tokens_per_batch": 40, **options}
    return precompute_anchors(rows, model or encoder(), tokenizer or tiny_tokenizer(), folder, **options)


def captions_of(rows):
    return [row[name] for row in rows for name in ("target_caption", "reference_caption")]


def distinct(rows):
    return list(dict.fromkeys(clean_caption(text) for text in captions_of(rows)))


def alone(texts, model=None, max_length=77):
    """Every caption by itself under the stock class: no padding, no batch, no code of ours."""
    model, tokenizer = model or tiny_text_model(), tiny_tokenizer()
    found = []
    for text in texts:
        text = " ".join(text.replace("<PERSON>", "person").lower().replace("$", "").split())
        with torch.no_grad():
            found.append(model(**tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")))
    return torch.cat([output.text_embeds for output in found])


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def lora(model=None, **options):
    """A model with adapters that are not zero, so that they show where they are on."""
    from peft import LoraConfig, get_peft_model

    targets = {"target_modules": list(CLIPTextModelForRTD.lora_target_modules), "lora_dropout": 0.5, **options}
    model = get_peft_model(model or encoder(), LoraConfig(r=2, **targets))
    for name, weight in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return model


@pytest.fixture
def embedded(monkeypatch):
    """The captions that reach the encoder, batch by batch."""
    batches, embed = [], anchors._embed
    monkeypatch.setattr(anchors, "_embed", lambda *args: batches.append(list(args[2])) or embed(*args))
    return batches


# ------------------------------------------------------------------------------------------------------- what is found
@pytest.mark.parametrize("legacy_eos", [False, True])
def test_anchors_are_those_of_the_stock_model(tmp_path, legacy_eos):
    rows = tiny_triplets(12)
    rows[3]["target_caption"] = "  A <PERSON> in\ta RED $ hat "
    rows[5]["reference_caption"] = "man " * 200
    store = precompute(tmp_path, rows, encoder(legacy_eos=legacy_eos), tokens_per_batch=100)
    texts = captions_of(rows)
    expected = alone(texts, tiny_text_model(legacy_eos=legacy_eos))
    found = store.lookup(texts)
    assert found.dtype == torch.float32 and found.shape == (24, store.dim) == (24, 24)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert (expected[:, None] - expected).norm(dim=-1).fill_diagonal_(1).min() > 1e-2  # any mix-up would show
    torch.testing.assert_close(store.lookup_ids(np.array([text_id(clean_caption(texts[7]))])), found[7:8])
    assert torch.equal(store.lookup([]), torch.empty(0, 24))


@pytest.mark.parametrize("kind", ["list", "memory", "shuffled", "selected", "aliases", "large"])
def test_triplets_come_in_many_forms(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(anchor_captions, "_ROWS_AT_ONCE", 3)
    rows = tiny_triplets(14)
    dataset = Dataset.from_list(rows)
    if kind == "shuffled":
        dataset = dataset.shuffle(seed=1).with_transform(lambda batch: {"nothing": [0] * len(batch["target_caption"])})
    elif kind == "selected":
        dataset, rows = dataset.select(range(1, 14, 2)), rows[1::2]
    elif kind == "aliases":
        names = {"reference_caption": "input", "conditioning_caption": "edit", "target_caption": "output"}
        dataset = dataset.rename_columns(names).add_column("more", [0.5] * 14)
    elif kind == "large":
        dataset = Dataset(pa.table({name: pa.array(dataset[name][:], pa.large_string()) for name in rows[0]}))
    store = precompute(tmp_path, rows if kind == "list" else dataset)
    assert len(store) == len(distinct(rows))
    torch.testing.assert_close(store.lookup(captions_of(rows)), alone(captions_of(rows)), atol=1e-6, rtol=1e-6)


def test_a_caption_is_embedded_once(tmp_path, monkeypatch, embedded):
    monkeypatch.setattr(anchor_captions, "_ROWS_AT_ONCE", 2)

    def row(target, reference):
        return {"target_caption": target, "conditioning_caption": "is", "reference_caption": reference}

    rows = [row("a dog", "a cat"), row("A  Dog", "a dog $"), row("a tree", "a cat"), row("a dog", "a bird")]
    rows += [row("a car", "a tree"), row("a car ", "a car")]
    store = precompute(tmp_path, rows)
    assert sorted(sum(embedded, [])) == ["a bird", "a car", "a cat", "a dog", "a tree"] and len(store) == 5
    assert [len(part.text_ids) for part in anchor_files.read_parts(tmp_path)[0]] == [5]
    manifest = json.loads((tmp_path / "anchors.json").read_text())
    assert (manifest["captions"], manifest["dim"]) == (5, 24)


def test_batches_hold_captions_about_equally_long(tmp_path, embedded):
    rows = tiny_triplets(120)
    precompute(tmp_path, rows, texts_per_part=1000, tokens_per_batch=64)
    lengths = [[len(tokens) for tokens in tiny_tokenizer()(batch)["input_ids"]] for batch in embedded]
    assert sorted(sum(embedded, [])) == sorted(distinct(rows)) and len(embedded) > 10
    assert all(len(batch) * max(batch) <= 64 for batch in lengths)
    flat = sum(lengths, [])
    assert flat == sorted(flat)
    # No batch could have taken the next caption too.
    assert all((len(a) + 1) * b[0] > 64 for a, b in zip(lengths, lengths[1:], strict=False))


def test_a_caption_longer_than_a_batch_gets_one_of_its_own():
    assert [batch.tolist() for batch in anchors._batches(np.array([9, 2, 70, 3, 80]), 12)] == [[1, 3], [0], [2], [4]]


def test_max_length_cuts(tmp_path):
    rows = tiny_triplets(12)
    store = precompute(tmp_path, rows, max_length=9)
    texts = captions_of(rows)
    torch.testing.assert_close(store.lookup(texts), alone(texts, max_length=9), atol=1e-6, rtol=1e-6)
    assert (store.lookup(texts) - alone(texts)).abs().max() > 0.1


def test_adapters_are_off_and_modes_stay(tmp_path):
    rows, model = tiny_triplets(6), lora(encoder(attention_dropout=0.5)).train()
    store = precompute(tmp_path, rows, model)
    texts = captions_of(rows)
    torch.testing.assert_close(store.lookup(texts), alone(texts), atol=1e-6, rtol=1e-6)
    assert all(module.training for module in model.modules())
    tokens = tiny_tokenizer()(texts[:1], return_tensors="pt")
    assert (model.eval()(**tokens).text_embeds - store.lookup(texts[:1])).abs().max() > 1e-2


def test_what_is_not_there_is_counted_and_shown(tmp_path):
    rows = tiny_triplets(4)
    store = precompute(tmp_path, rows)
    with pytest.raises(
        ValueError, match=r"2 of 3 captions have no anchor in .*, first 'A Yellow dog'. Run `precompute"
    ):
        store.lookup([rows[0]["target_caption"], "A Yellow dog", "new"])
    ids = np.array([text_id(rows[0]["target_caption"]), 5, 2**63 - 1])
    with pytest.raises(ValueError, match=r"2 of 3 captions .* first the one at place 1 \(text id 5\)"):
        store.lookup_ids(ids)
    for wrong in (ids.astype(np.int32), ids[None], ids.tolist()):
        with pytest.raises(TypeError, match="`text_ids` must be a one-dimensional numpy array of int64"):
            store.lookup_ids(wrong)
    with pytest.raises(TypeError, match="`texts` must be a sequence"):
        store.lookup("a dog")


# -------------------------------------------------------------------------------------------- interrupted and extended
def failing_after(monkeypatch, parts):
    write = anchor_files.write_part

    def fail(folder, number, *args):
        if len(anchor_files.part_files(folder)) == parts:
            raise KeyboardInterrupt
        write(folder, number, *args)

    monkeypatch.setattr(anchor_files, "write_part", fail)


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, embedded):
    rows = tiny_triplets(12)
    precompute(tmp_path / "whole", rows)
    total = len(sum(embedded, []))
    assert total == len(distinct(rows)) > 15
    embedded.clear()
    with monkeypatch.context() as patch:
        failing_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            precompute(tmp_path / "parts", rows)
    assert sorted(content(tmp_path / "parts")) == ["part-00000.arrow", "part-00001.arrow"]
    with pytest.raises(ValueError, match=r"not finished: 2 parts, but no `anchors.json`. Run `precompute_anchors`"):
        AnchorStore.open(tmp_path / "parts")
    embedded.clear()
    precompute(tmp_path / "parts", rows)
    assert len(sum(embedded, [])) == total - 10
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    rows = tiny_triplets(12)
    precompute(tmp_path / "whole", rows)
    folder = tmp_path / "killed"
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with subprocess.Popen([sys.executable, __file__, "stuck", str(folder)], env=environment) as process:
        patience = time.monotonic() + 120
        while not (folder / "stuck").exists() and process.poll() is None and time.monotonic() < patience:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    (folder / "stuck").unlink()
    assert sorted(content(folder)) == ["part-00000.arrow", "part-00001.arrow", "part-00002.arrow.tmp"]
    (folder / "mine.tmp").write_text("somebody else's")
    (folder / "part-00042.arrow.tmp").write_text("of another process")
    assert len(precompute(folder, rows)) == len(distinct(rows))
    assert (folder / "mine.tmp").exists()
    (folder / "mine.tmp").unlink()
    assert content(folder) == content(tmp_path / "whole")


def test_a_hole_among_the_parts_is_filled_with_the_same_bits(tmp_path):
    rows = tiny_triplets(12)
    precompute(tmp_path, rows)
    before = content(tmp_path)
    for name in ("part-00000.arrow", "part-00002.arrow", "anchors.json"):
        (tmp_path / name).unlink()
    precompute(tmp_path, rows)
    assert content(tmp_path) == before


def test_a_second_run_writes_nothing(tmp_path, monkeypatch, embedded):
    rows = tiny_triplets(12)
    precompute(tmp_path, rows)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    embedded.clear()
    monkeypatch.setattr(os, "replace", None)
    precompute(tmp_path, rows[2:9])
    assert embedded == [] and times == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_a_grown_data_set_extends_the_store(tmp_path, embedded, caplog):
    rows = tiny_triplets(30)
    first = precompute(tmp_path, rows[:10])
    before, embedded[:] = content(tmp_path), []
    anchors.logger.addHandler(caplog.handler)
    try:
        with caplog.at_level("INFO", logger=anchors.logger.name):
            store = precompute(tmp_path, rows)
    finally:
        anchors.logger.removeHandler(caplog.handler)
    old, all_of_them = distinct(rows[:10]), distinct(rows)
    assert sorted(sum(embedded, [])) == sorted(set(all_of_them) - set(old)) and len(store) == len(all_of_them)
    after = content(tmp_path)
    assert all(after[name] == before[name] for name in before if name.startswith("part"))
    assert [name for name in after if name.startswith("index")] == [f"index-{len(after) - 2:05d}.arrow"]
    torch.testing.assert_close(store.lookup(captions_of(rows)), alone(captions_of(rows)), atol=1e-6, rtol=1e-6)
    assert torch.equal(first.lookup(old), store.lookup(old))  # opened before, its old index is gone
    new = len(all_of_them) - len(old)
    said = f"60 captions, {len(all_of_them)} distinct: {len(old)} were already in `{tmp_path}`, {new} were embedded"
    assert said in caplog.text


def test_a_store_stays_whole_while_it_is_extended(tmp_path, monkeypatch):
    rows = tiny_triplets(30)
    precompute(tmp_path, rows[:10])
    old = distinct(rows[:10])
    expected = AnchorStore.open(tmp_path).lookup(old)
    replace = os.replace

    def refuse_manifest(source, target):
        if Path(target).name == "anchors.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse_manifest)
        with pytest.raises(KeyboardInterrupt):
            precompute(tmp_path, rows)
    store = AnchorStore.open(tmp_path)
    assert len(store) == len(old) and torch.equal(store.lookup(old), expected)
    with pytest.raises(ValueError, match="have no anchor"):
        store.lookup(captions_of(rows))
    assert len(precompute(tmp_path, rows)) == len(distinct(rows))
    assert len(list(tmp_path.glob("index-*"))) == 1


# ------------------------------------------------------------------------------------------------------- the wrong one
def nudge(model, name="text_model.encoder.layers.1.mlp.fc2.weight"):
    weight = model.get_parameter(name)
    with torch.no_grad():
        weight[1, 2] = torch.nextafter(weight[1, 2], torch.tensor(math.inf))
    return model


def other_tokenizer():
    tokenizer = tiny_tokenizer()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["model"]["merges"] = backend["model"]["merges"][:-1]
    tokenizer._tokenizer = type(tokenizer._tokenizer).from_str(json.dumps(backend))
    return tokenizer


CHANGES = {
    "encoder": lambda: {"model": nudge(encoder())},
    "architecture": lambda: {"model": encoder(hidden_act="gelu")},
    "tokenizer": lambda: {"tokenizer": other_tokenizer()},
    "max_length": lambda: {"max_length": 60},
}
NAMED = {
    "encoder": "weights of `model`: ",
    "architecture": "configuration of `model`: .*hidden_act=quick_gelu.* there, .*hidden_act=gelu.* here",
    "tokenizer": "`tokenizer`: ",
    "max_length": "`max_length`: 77 there, 60 here",
    "cleaning": "rules of `clean_caption`: ",
}


@pytest.mark.parametrize("ingredient", CHANGES)
def test_another_ingredient_is_noticed_and_named(tmp_path, ingredient):
    rows, change = tiny_triplets(6), CHANGES[ingredient]()
    store = precompute(tmp_path, rows)
    store.check(encoder(), tiny_tokenizer())
    store.check(encoder(), tiny_tokenizer(), max_length=77)
    before = content(tmp_path)
    given = {"model": encoder(), "tokenizer": tiny_tokenizer(), **change}
    only = rf"made with something else \({NAMED[ingredient]}[^;]*\). Give the frozen encoder.*`overwrite=True`"
    with pytest.raises(ValueError, match=only):
        store.check(**given)
    (tmp_path / "part-00009.arrow.tmp").write_text("")
    with pytest.raises(ValueError, match=only):
        precompute(tmp_path, tiny_triplets(12), **change)
    (tmp_path / "part-00009.arrow.tmp").unlink()  # what was refused was left alone
    assert content(tmp_path) == before

    (tmp_path / "mine.txt").write_text("stays")
    anew = precompute(tmp_path, rows[:3], **change, overwrite=True)
    anew.check(**given)
    assert len(anew) == len(distinct(rows[:3])) and (tmp_path / "mine.txt").exists()
    with pytest.raises(ValueError, match="made with something else"):
        precompute(tmp_path, rows)


def test_unfinished_parts_of_another_encoder_are_not_mixed_in(tmp_path, monkeypatch):
    rows = tiny_triplets(12)
    with monkeypatch.context() as patch:
        failing_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            precompute(tmp_path, rows)
    with pytest.raises(ValueError, match=NAMED["encoder"]):
        precompute(tmp_path, rows, nudge(encoder()))


def test_other_rules_of_cleaning_are_noticed(tmp_path, monkeypatch):
    store = precompute(tmp_path, tiny_triplets(3))
    monkeypatch.setattr(
        "rtd_hf.anchors.fingerprints.clean_caption", lambda text: clean_caption(text).replace("person", "man")
    )
    with pytest.raises(ValueError, match=NAMED["cleaning"]):
        store.check(encoder(), tiny_tokenizer())


def test_a_store_that_became_another_is_not_unpickled(tmp_path):
    rows = tiny_triplets(3)
    frozen = pickle.dumps(precompute(tmp_path, rows))
    assert len(frozen) < 1000
    pickle.loads(frozen)
    precompute(tmp_path, rows, nudge(encoder()), overwrite=True)
    with pytest.raises(ValueError, match=NAMED["encoder"]):
        pickle.loads(frozen)


# -------------------------------------------------------------------------------------------------------- fingerprints
def weights_hash(model):
    return encoder_fingerprint(model, tiny_tokenizer())["encoder"]


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"modules_to_save": ["text_projection"]}, {"target_modules": "all-linear"}]
)
def test_adapters_do_not_count_in_a_fingerprint(options):
    expected = encoder_fingerprint(encoder(), tiny_tokenizer())
    assert encoder_fingerprint(lora(**options), tiny_tokenizer()) == expected


def test_wrappers_do_not_count_in_a_fingerprint():
    expected = encoder_fingerprint(encoder(), tiny_tokenizer())
    wrapped = torch.nn.DataParallel(lora()), torch.compile(encoder()), tiny_text_model(), lora(tiny_text_model())
    reordered = encoder()
    reordered.text_model = reordered._modules.pop("text_model")
    assert next(iter(reordered.state_dict())) != next(iter(encoder().state_dict()))
    for model in (*wrapped, reordered, encoder(attn_implementation="eager"), encoder().requires_grad_(False)):
        assert encoder_fingerprint(model, tiny_tokenizer()) == expected


def test_every_weight_counts_in_a_fingerprint(monkeypatch):
    expected = weights_hash(encoder())
    names = [name for name, weight in encoder().named_parameters() if weight.ndim == 2]
    assert len(names) > 10
    assert len({weights_hash(nudge(encoder(), name)) for name in names} | {expected}) == len(names) + 1
    assert weights_hash(lora(nudge(encoder()))) == weights_hash(nudge(encoder())) != expected
    swapped = encoder()
    layers = swapped.text_model.encoder.layers
    layers[0].self_attn.q_proj.weight, layers[0].self_attn.k_proj.weight = (
        layers[0].self_attn.k_proj.weight,
        layers[0].self_attn.q_proj.weight,
    )
    merged = lora().merge_and_unload()
    inside = lora()
    inside.merge_adapter()
    for model in (swapped, merged, inside, encoder().to(torch.bfloat16)):
        assert weights_hash(model) != expected
    monkeypatch.setattr("rtd_hf.files._HASHED_AT_ONCE", 100)
    assert weights_hash(encoder()) == expected


def test_adapters_that_stay_on_count_in_a_fingerprint():
    from peft import LoraConfig

    model = encoder()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    assert weights_hash(model) != weights_hash(encoder())


def test_a_buffer_counts_in_a_fingerprint_if_it_is_saved():
    model, renamed, passing = encoder(), encoder(), encoder()
    model.text_model.register_buffer("scale", torch.ones(1))
    renamed.text_model.register_buffer("scala", torch.ones(1))
    passing.text_model.register_buffer("scale", torch.ones(1), persistent=False)
    assert weights_hash(model) != weights_hash(encoder()) == weights_hash(passing)
    assert weights_hash(model) != weights_hash(renamed)


@pytest.mark.parametrize("build", [tiny_tokenizer, real_tokenizer])
def test_what_a_tokenizer_did_last_does_not_count(tmp_path, build):
    tokenizer = build()
    expected = encoder_fingerprint(encoder(), tokenizer)
    tokenizer(["a dog"] * 2, padding="max_length", truncation=True, max_length=7, split_special_tokens=True)
    assert encoder_fingerprint(encoder(), tokenizer) == expected
    tokenizer.save_pretrained(tmp_path)
    assert encoder_fingerprint(encoder(), type(tokenizer).from_pretrained(tmp_path)) == expected
    assert expected["tokenizer"] != encoder_fingerprint(encoder(), other_tokenizer())["tokenizer"]


def test_a_tokenizer_without_a_serialised_form_is_refused():
    with pytest.raises(TypeError, match="`tokenizer` must be a fast one or one of SentencePiece, .* got object"):
        encoder_fingerprint(encoder(), object())


# -------------------------------------------------------------------------------------------------------------- damage
def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def edit_manifest(folder, change):
    manifest = json.loads((folder / "anchors.json").read_text())
    change(manifest)
    (folder / "anchors.json").write_text(json.dumps(manifest))


DAMAGES = {
    "truncated part": (lambda f: truncate(f / "part-00001.arrow"), r"`part-00001.arrow` has \d+ bytes, but had \d+"),
    "lost part": (lambda f: (f / "part-00001.arrow").unlink(), "names `part-00001.arrow`, but there is no such file"),
    "overwritten part": (
        lambda f: (f / "part-00001.arrow").write_bytes(bytes((f / "part-00001.arrow").stat().st_size)),
        "part-00001.arrow` is damaged",
    ),
    "truncated index": (lambda f: truncate(next(f.glob("index-*"))), r"`index-00005.arrow` has \d+ bytes"),
    "lost index": (lambda f: next(f.glob("index-*")).unlink(), "names `index-00005.arrow`, but there is no"),
    "half a manifest": (lambda f: truncate(f / "anchors.json"), "are damaged. .* Run `precompute_anchors`"),
    "empty manifest": (lambda f: (f / "anchors.json").write_text("{}"), "are damaged. 'format'"),
    "other rows": (lambda f: edit_manifest(f, lambda m: m["parts"][0].update(rows=4)), r"states .*\(4, 24\).*but the"),
    "other count": (lambda f: edit_manifest(f, lambda m: m.update(captions=4)), r"states \(4, .*but the files hold"),
    "other maker": (
        lambda f: edit_manifest(f, lambda m: m["fingerprint"].update(encoder="0")),
        "`part-00000.arrow` was made with another encoder",
    ),
    "lost manifest": (lambda f: (f / "anchors.json").unlink(), "not finished: 5 parts"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_repaired(tmp_path, damage):
    rows, (break_it, message) = tiny_triplets(12), DAMAGES[damage]
    precompute(tmp_path, rows)
    before = content(tmp_path)
    break_it(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        AnchorStore.open(tmp_path)
    assert str(tmp_path) in str(caught.value) and "Run `precompute_anchors` on it again" in str(caught.value)
    precompute(tmp_path, rows)
    assert content(tmp_path) == before


def test_a_part_of_another_version_is_left_alone(tmp_path, monkeypatch):
    rows = tiny_triplets(3)
    with monkeypatch.context() as patch:
        patch.setattr(anchor_files, "FORMAT", "2")
        precompute(tmp_path, rows)
    before = content(tmp_path)
    for action in (lambda: AnchorStore.open(tmp_path), lambda: precompute(tmp_path, rows)):
        with pytest.raises(NotImplementedError, match=r"has format '2', but this version of rtd_hf reads '1'"):
            action()
    assert content(tmp_path) == before
    precompute(tmp_path, rows, overwrite=True)


def test_no_store_says_what_is_expected(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(
            FileNotFoundError, match=rf"no anchors in `{folder}`. Expected .*`anchors.json`.*part-00000"
        ):
            AnchorStore.open(folder)


# --------------------------------------------------------------------------------------------------------- wrong input
@pytest.mark.parametrize("blank", ["", " \t", "$ ", None])
def test_a_blank_caption_is_refused_before_any_work(tmp_path, monkeypatch, embedded, blank):
    monkeypatch.setattr(anchor_captions, "_ROWS_AT_ONCE", 3)
    rows = tiny_triplets(12)
    rows[4]["reference_caption"] = rows[11]["reference_caption"] = blank
    for given in (rows, Dataset.from_list(rows)):
        message = r"`reference_caption` holds no text in 2 of 12 rows, first in row 4: \{.*dataset.filter"
        with pytest.raises(ValueError, match=message):
            precompute(tmp_path, given)
    assert embedded == []


def test_wrong_arguments_are_named(tmp_path):
    rows = tiny_triplets(3)
    numbers = Dataset.from_dict({"reference_caption": [1], "conditioning_caption": ["b"], "target_caption": ["c"]})
    for given, error, message in (
        ([], ValueError, "`triplets` holds no rows"),
        ([{"reference_caption": "a"}], ValueError, "`conditioning_caption` is missing"),
        (numbers, ValueError, "`reference_caption` must hold strings, but holds int64"),
        (DatasetDict(train=Dataset.from_list(rows)), TypeError, "got DatasetDict. Give one split"),
        (Dataset.from_list(rows).to_iterable_dataset(), TypeError, "got IterableDataset"),
    ):
        with pytest.raises(error, match=message):
            precompute(tmp_path, given)
    with pytest.raises(TypeError, match="`model` must be a text encoder such as `CLIPTextModelForRTD`"):
        precompute(tmp_path, rows, tiny_text_model())
    for name in ("tokens_per_batch", "texts_per_part"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
            precompute(tmp_path, rows, **{name: 0})
    merged = lora()
    merged.merge_adapter()
    with pytest.raises(ValueError, match="merged into its weights.*`unmerge_adapter"):
        precompute(tmp_path, rows, merged)
    assert list(tmp_path.iterdir()) == []


def test_an_anchor_that_is_no_number_is_named(tmp_path):
    rows, model, tokenizer = tiny_triplets(12), encoder(), tiny_tokenizer()
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("bird</w>")] = math.inf
    with pytest.raises(FloatingPointError, match=r"not finite, first that of '[^']*bird[^']*'; nothing was written"):
        precompute(tmp_path, rows, model)
    first = next(place for place, text in enumerate(distinct(rows)) if "bird" in text)
    assert sorted(content(tmp_path)) == [f"part-{number:05d}.arrow" for number in range(first // 5)] != []


# ---------------------------------------------------------------------------------------------- workers, memory, ranks
class Reading:
    """A collator that looks captions up, in whatever process it is."""

    def __init__(self, store):
        self.store = store

    def __call__(self, texts):
        return os.getpid(), self.store.lookup(texts)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader_read_the_store(tmp_path, monkeypatch, start):
    rows = tiny_triplets(6)
    monkeypatch.chdir(tmp_path)
    store = precompute(Path("anchors"), rows)
    texts = captions_of(rows)
    loader = torch.utils.data.DataLoader(
        texts, batch_size=4, collate_fn=Reading(store), num_workers=1, multiprocessing_context=start
    )
    pids, found = zip(*loader, strict=True)
    assert os.getpid() not in pids
    assert torch.equal(torch.cat(found), store.lookup(texts))


def test_memory_does_not_grow_with_the_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(anchor_captions, "_ROWS_AT_ONCE", 500)

    def peak(number, copies):
        texts = [f"caption {index}" for index in range(number)] * copies
        columns = {"target_caption": texts, "conditioning_caption": texts, "reference_caption": texts}
        Dataset.from_dict(columns).save_to_disk(tmp_path / f"{number}-{copies}")
        captions = anchor_captions.TripletCaptions(load_from_disk(tmp_path / f"{number}-{copies}"))
        tracemalloc.start()
        seen, missing = captions.missing(np.empty(0, dtype=np.int64))
        assert len(seen) == len(missing) == number
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000, 1)  # what is allocated only once
    small = peak(10_000, 1)
    assert (peak(30_000, 1) - small) / 20_000 < 40  # bytes a caption; a set of ints takes a hundred
    assert (peak(10_000, 3) - small) / 40_000 < 2  # bytes a repeated caption


def test_two_processes_make_what_one_makes(tmp_path):
    rows = tiny_triplets(12)
    precompute(tmp_path / "one", rows[:2])
    precompute(tmp_path / "one", rows)
    run_on_processes(2, Path(__file__), "ranks", str(tmp_path))
    assert content(tmp_path / "two") == content(tmp_path / "one")
    found = [torch.load(tmp_path / f"rank{number}.pt") for number in (0, 1)]
    assert all(sorted(each["embedded"]) for each in found)  # both worked, and on different captions
    assert sorted(found[0]["embedded"] + found[1]["embedded"]) == sorted(distinct(rows))
    expected = AnchorStore.open(tmp_path / "one").lookup(captions_of(rows))
    for number, each in enumerate(found):
        assert torch.equal(each["anchors"], expected)
        assert "triplets, their order, or folder of process 1 differ" in each["other data"]
        assert "model, tokenizer or max_length of process 1 differ" in each["other model"]
        assert "are not finite" in each["broken"]
        assert each["broken"].startswith("Process 1 could not go on. FloatingPointError") == (number == 0)


def ranks(folder):
    import torch.distributed as dist

    dist.init_process_group("gloo")
    number, rows, found, embed = dist.get_rank(), tiny_triplets(12), {"embedded": []}, anchors._embed
    anchors._embed = lambda *args: found["embedded"].extend(args[2]) or embed(*args)
    precompute(folder / "two", rows[:2])
    found["anchors"] = precompute(folder / "two", rows).lookup(captions_of(rows))
    anchors._embed = embed
    wrong = {"other data": {"rows": rows[number:]}, "other model": {"rows": rows}, "broken": {"rows": rows}}
    wrong["other model"]["model"] = nudge(encoder()) if number else encoder()
    for name, options in wrong.items():
        if name == "broken" and number:
            anchors._embed = lambda *args: embed(*args) * math.nan
        try:
            precompute(folder / name, **options)
        except (ValueError, RuntimeError, FloatingPointError) as error:
            found[name] = str(error)
    torch.save(found, folder / f"rank{number}.pt")
    leave()


def stuck(folder):
    """Writes two parts, and waits to be killed in the middle of the third."""
    replace = os.replace

    def wait(source, target):
        if Path(target).name == "part-00002.arrow":
            (folder / "stuck").touch()
            time.sleep(600)
        replace(source, target)

    os.replace = wait
    precompute(folder, tiny_triplets(12))


if __name__ == "__main__":
    {"ranks": ranks, "stuck": stuck}[sys.argv[1]](Path(sys.argv[2]))
