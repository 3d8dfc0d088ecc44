"""What must hold of any input: properties, of which hypothesis looks for the smallest example that breaks one."""

import json
import string
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import BOS, EOS, tiny_text_model, tiny_tokenizer
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from outside_readers import from_examples, put, table

from rtd_hf.data_collator import DataCollatorForRTD
from rtd_hf.losses import LOSS_TYPES, target_anchored_contrastive_loss
from rtd_hf.metrics import average_precision_at_k, rank_targets, ranks_of_lists, recall_at_k
from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.packing import pack_rows
from rtd_hf.parsing import parse_json, parse_yaml
from rtd_hf.prompts import PromptTokenizer
from rtd_hf.registry import Registry, RegistryError
from rtd_hf.similarity import top_k
from rtd_hf.submissions import read_submission, write_circo_submission
from rtd_hf.texts import (
    CAPTION_SLOT,
    PLACEHOLDER,
    bare_prompt,
    check_template,
    clean_caption,
    clean_conditioning,
    compose_prompt,
    join_captions,
    text_id,
)
from rtd_hf.tokens import TextTokenizer
from rtd_hf.triplets import read_triplets, write_triplets


def any_input(examples: int = 60):
    """The same inputs in every run; no time limit, because the machines differ."""
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=checks
    )


# Texts of every script, with what could be taken for more than text.
ODD = (
    "$",
    "$ $",
    "{caption}",
    BOS,
    EOS,
    "<PERSON>",
    "a$b",
    "\u00a0",
    "\u200b",
    "İ",
    "ﬁ",
    "é",
    "e\u0301",
    "𝔘",
    "😀",
    "\x00",
    "\ufeff",
)
PIECES = st.one_of(st.sampled_from(ODD), st.sampled_from("a dog red is the on , . 's".split()), st.text(max_size=6))
TEXTS = st.lists(PIECES, max_size=12).map(" ".join) | st.lists(PIECES, max_size=6).map("".join)
LONG = st.tuples(TEXTS, st.integers(20, 120)).map(lambda pair: f"{pair[0]} dog " * pair[1])
CAPTIONS = (TEXTS | TEXTS | LONG).filter(clean_caption)
CONDITIONS = (TEXTS | TEXTS | LONG).filter(clean_conditioning)
TRIPLETS = st.fixed_dictionaries(
    {"reference_caption": CAPTIONS, "conditioning_caption": CONDITIONS, "target_caption": CAPTIONS}
)
BATCHES = st.lists(TRIPLETS, min_size=1, max_size=5)
TEMPLATES = st.sampled_from(["a photo of $ that {caption}", "a $ and a $ , {caption} now", "a {caption} photo of $"])


# --- texts
@any_input(120)
@given(TEXTS)
def test_cleaning_is_done_once_and_leaves_no_placeholder(text):
    for clean in (clean_caption, clean_conditioning):
        cleaned = clean(text)
        assert clean(cleaned) == cleaned == " ".join(cleaned.split())
        assert PLACEHOLDER not in cleaned


@any_input(120)
@given(TEMPLATES, TEXTS)
def test_a_caption_puts_no_placeholder_into_a_prompt(template, caption):
    prompt = compose_prompt(template, caption)
    assert prompt.split().count(PLACEHOLDER) == prompt.count(PLACEHOLDER) == template.count(PLACEHOLDER)
    assert bare_prompt(template).count(PLACEHOLDER) == template.count(PLACEHOLDER)
    # What stands in it is the template's words with the caption's in the slot.
    left, right = (part.split() for part in template.split(CAPTION_SLOT))
    assert prompt.split() == [*left, *clean_conditioning(caption).split(), *right]


@any_input(120)
@given(TEXTS)
def test_a_template_is_as_good_after_its_check(text):
    template = f"{text} $ {CAPTION_SLOT}"
    try:
        checked = check_template(template)
    except ValueError:
        glued = [word for word in template.split() if PLACEHOLDER in word and word != PLACEHOLDER]
        assert glued or template.count(CAPTION_SLOT) != 1
    else:
        assert check_template(checked) == checked == " ".join(template.split())


@any_input(100)
@given(st.lists(TEXTS, min_size=1, max_size=4), TEXTS)
def test_joining_captions_keeps_all_of_them(captions, other):
    both = join_captions(captions, "both")
    assert all(caption.strip(" .?,") in joined for caption in captions for joined in both)
    assert len(both) == (1 if len(captions) == 1 else 2)
    assert join_captions(captions, "last_first")[0] == " and ".join(reversed(captions))
    assert (text_id(captions[0]) == text_id(other)) == (captions[0] == other)


# --- tokens and prompts
@cache
def tokenizer():
    return tiny_tokenizer()


@any_input(80)
@given(st.lists(TEXTS | LONG, min_size=1, max_size=4))
def test_tokens_by_words_are_those_of_the_whole_text(texts):
    by_words = TextTokenizer(tokenizer())
    assert by_words.by_words and by_words(texts) == by_words.whole(texts)
    end = tokenizer().eos_token_id
    assert all(row.count(end) == 1 and row[-1] == end for row in by_words(texts))


def prompts_of(template, **options):
    return PromptTokenizer(tokenizer(), template, **options)


@any_input(80)
@given(TEMPLATES, st.lists(CONDITIONS, min_size=1, max_size=4), st.integers(16, 77), st.booleans())
def test_every_prompt_has_its_placeholders_and_one_end(template, captions, max_length, bare):
    prompts = prompts_of(template, max_length=max_length)
    batch = prompts.compose(captions, bare=bare)
    ids, mask, pooled = batch["input_ids"], batch["attention_mask"].bool(), batch["pooling_positions"]
    assert ids.shape[1] <= max_length
    assert (batch["placeholder_mask"].sum(1) == template.count(PLACEHOLDER)).all()
    assert (batch["placeholder_mask"] & ~mask).sum() == 0
    assert (ids.gather(1, pooled) == prompts.eos_token_id).all()
    assert ((ids == prompts.eos_token_id) & mask).sum(1).tolist() == [pooled.shape[1]] * len(ids)
    assert (mask.sum(1) == pooled[:, 0] + 1).all()


@any_input(60)
@given(TEMPLATES, st.lists(CONDITIONS, min_size=2, max_size=4))
def test_a_row_does_not_depend_on_its_neighbours(template, captions):
    prompts = prompts_of(template)
    together = prompts.compose(captions, bare=True)
    number = len(together["input_ids"]) // len(captions)
    for place, caption in enumerate(captions):
        alone = prompts.compose([caption], bare=True)
        for block in range(number):
            row, own = block * len(captions) + place, slice(0, int(alone["attention_mask"][block].sum()))
            for name in ("input_ids", "position_ids", "placeholder_mask", "attention_mask"):
                assert together[name][row, own].equal(alone[name][block, own])
            assert together["pooling_positions"][row].equal(alone["pooling_positions"][block])
            assert together["attention_mask"][row].sum() == own.stop


# --- the collator
@cache
def encoder():
    return tiny_text_model(CLIPTextModelForRTD)


def embeds_of(batch, words, prefix=""):
    if f"{prefix}packed_rows" in batch:
        options = {} if prefix else {"pseudo_words": words}
        return encoder()(packed_rows=batch[f"{prefix}packed_rows"], **options).text_embeds
    names = ("input_ids", "attention_mask", "position_ids", "pooling_positions", "placeholder_mask")
    given_ = {name: batch[f"{prefix}{name}"] for name in names if f"{prefix}{name}" in batch}
    if not prefix:
        given_["pseudo_words"] = words.repeat(len(batch["input_ids"]) // len(words), 1, 1)
    return encoder()(**given_).text_embeds


@any_input(40)
@given(BATCHES, TEMPLATES, st.booleans(), st.sampled_from([None, 1, 2]))
def test_packed_batches_have_the_embeddings_of_padded_ones(rows, template, share, mini_batch_size):
    padded = DataCollatorForRTD(tokenizer(), template)(rows)
    options = {"packing": True, "share_prefixes": share, "mini_batch_size": mini_batch_size}
    packed = DataCollatorForRTD(tokenizer(), template, **options)(rows)
    assert packed["text_ids"].equal(padded["text_ids"])
    words = torch.randn(len(rows), template.count(PLACEHOLDER), 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for prefix in ("", "anchor_"):
            one, other = embeds_of(packed, words, prefix), embeds_of(padded, words, prefix)
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@any_input(60)
@given(BATCHES, st.booleans())
def test_a_batch_is_the_same_every_time_and_its_ids_are_those_of_its_texts(rows, packing):
    collate = DataCollatorForRTD(tokenizer(), packing=packing)
    one, other = collate(rows), DataCollatorForRTD(tokenizer(), packing=packing)(rows)
    assert one.keys() == other.keys()
    texts = [clean_caption(row[name]) for name in ("target_caption", "reference_caption") for row in rows]
    assert one["text_ids"].tolist() == other["text_ids"].tolist() == [text_id(text) for text in texts]
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.equal(other[name])
        else:
            assert all(a.input_ids.equal(b.input_ids) for a, b in zip(value, other[name], strict=True))


@any_input(40)
@given(
    BATCHES,
    st.sampled_from(["reference_caption", "conditioning_caption", "target_caption"]),
    st.sampled_from(["", " $ ", "\n", None, 3]),
)
def test_a_row_without_text_is_never_left_out(rows, column, value):
    rows[-1] = {**rows[-1], column: value}
    error = TypeError if isinstance(value, int) else ValueError
    with pytest.raises(error, match=f"Column `{column}` .*row {len(rows) - 1} of the batch"):
        DataCollatorForRTD(tokenizer())(rows)


# --- packing
@any_input(80)
@given(st.lists(st.lists(st.integers(1, 3), max_size=6), min_size=1, max_size=9), st.booleans())
def test_any_rows_are_found_in_their_tree(rows, share):
    rows = [[*row, 9] for row in rows]
    matrix = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for line, row in zip(matrix, rows, strict=True):
        line[: len(row)] = row
    packed = pack_rows(matrix, np.array([len(row) for row in rows]), share_prefixes=share)
    offsets = packed.key_offsets.tolist()
    for row, place in zip(rows, packed.prompt_rows[0].tolist(), strict=True):
        path = packed.paths[offsets[place] : offsets[place + 1]]
        assert packed.input_ids[path].tolist() == row
        assert packed.position_ids[path].tolist() == list(range(len(row)))
    prefixes = {tuple(row[: end + 1]) for row in rows for end in range(len(row))}
    assert packed.num_nodes == (len(prefixes) if share else sum(map(len, rows)))
    assert packed.num_tokens == sum(map(len, rows))


# --- ranking and metrics
# Few distinct whole numbers: many ties, and products without any error.
VECTORS = st.lists(st.integers(-2, 2), min_size=3, max_size=3)
GALLERIES = st.lists(VECTORS, min_size=2, max_size=12)


def as_features(vectors):
    return torch.tensor(vectors, dtype=torch.float32)


@any_input(80)
@given(st.lists(VECTORS, min_size=1, max_size=4), GALLERIES, st.data())
def test_ranks_by_counting_are_those_of_sorting(queries, gallery, data):
    targets = [
        data.draw(st.lists(st.integers(0, len(gallery) - 1), min_size=1, max_size=3, unique=True)) for _ in queries
    ]
    width = max(map(len, targets))
    padded = torch.tensor([row + [-1] * (width - len(row)) for row in targets])
    found = {
        ties: rank_targets(as_features(queries), as_features(gallery), padded, ties=ties, normalize=False).ranks
        for ties in ("optimistic", "pessimistic", "mean")
    }
    for line, (query, own) in enumerate(zip(queries, targets, strict=True)):
        scores = [sum(a * b for a, b in zip(query, item, strict=True)) for item in gallery]
        for ties, sign in (("optimistic", -1), ("pessimistic", 1)):
            # By this order a target stands before its equals, or behind them.
            order = sorted(range(len(gallery)), key=lambda item: (-scores[item], sign * (item in own)))
            assert sorted(found[ties][line, : len(own)].tolist()) == sorted(order.index(target) for target in own)
        low, high = (sorted(found[ties][line, : len(own)].tolist()) for ties in ("optimistic", "pessimistic"))
        middle = sorted(found["mean"][line, : len(own)].tolist())
        assert all(a <= b <= c for a, b, c in zip(low, middle, high, strict=True))


@any_input(100)
@given(
    st.lists(VECTORS, min_size=1, max_size=3),
    GALLERIES,
    st.randoms(use_true_random=False),
    st.sampled_from([0.5, 2.0, 8.0]),
)
def test_the_order_of_a_gallery_and_the_length_of_features_change_no_rank(queries, gallery, rng, scale):
    order = list(range(len(gallery)))
    rng.shuffle(order)
    target = rng.randrange(len(gallery))
    one = rank_targets(as_features(queries), as_features(gallery), torch.tensor([[target]] * len(queries)))
    shuffled = as_features([gallery[item] for item in order])
    other = rank_targets(as_features(queries) * scale, shuffled, torch.tensor([[order.index(target)]] * len(queries)))
    assert one.ranks.equal(other.ranks) and one.num_tied.equal(other.num_tied)


@any_input(100)
@given(st.lists(VECTORS, min_size=1, max_size=3), GALLERIES, st.data())
def test_the_best_are_those_of_a_stable_sort(queries, gallery, data):
    k = data.draw(st.integers(1, len(gallery)))
    found = top_k(as_features(queries), as_features(gallery), k, normalize=False)
    for line, query in enumerate(queries):
        scores = [sum(a * b for a, b in zip(query, item, strict=True)) for item in gallery]
        assert found.indices[line].tolist() == sorted(range(len(gallery)), key=lambda item: -scores[item])[:k]


LISTS = st.permutations(range(8)).flatmap(
    lambda order: st.tuples(
        st.integers(1, 8).map(lambda length: list(order[:length])),
        st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True),
    )
)


@any_input(120)
@given(st.lists(LISTS, min_size=1, max_size=4))
@example([([3, 1, 2], [9])])
def test_metrics_are_their_definitions_bounded_and_grow_with_k(pairs):
    ranks = ranks_of_lists([listed for listed, _ in pairs], [targets for _, targets in pairs])
    before = torch.zeros(len(pairs))
    for k in range(1, 10):
        recall, precision = recall_at_k(ranks, k), average_precision_at_k(ranks, k)
        for line, (listed, targets) in enumerate(pairs):
            hits = [item in targets for item in listed[:k]]
            total = sum(Fraction(sum(hits[: at + 1]), at + 1) for at, hit in enumerate(hits) if hit)
            assert precision[line].item() == pytest.approx(float(total / min(len(targets), k)), abs=1e-6)
            assert recall[line].item() == float(targets[0] in listed[:k]) or recall[line].item() == float(any(hits))
        assert (recall >= before).all() and ((recall >= 0) & (recall <= 1)).all()
        assert ((precision >= 0) & (precision <= 1 + 1e-6)).all()
        before = recall.float()


# --- losses
@any_input(60)
@given(
    st.integers(2, 7), st.sampled_from(LOSS_TYPES), st.integers(1, 9), st.sampled_from([0.01, 0.07, 1.0]),
    st.integers(0, 10_000), st.booleans(),
)  # fmt: skip
def test_a_loss_depends_neither_on_blocks_nor_on_the_order_of_pairs(number, kind, block, temperature, seed, ids):
    generator = torch.Generator().manual_seed(seed)
    queries, anchors = (torch.randn(number, 5, generator=generator, requires_grad=True) for _ in range(2))
    texts = torch.randint(0, 3, (number,), generator=generator) if ids else None
    order = torch.randperm(number, generator=generator)

    def loss_of(a, b, text_ids, **options):
        return target_anchored_contrastive_loss(a, b, temperature, loss_type=kind, text_ids=text_ids, **options)

    whole = loss_of(queries, anchors, texts)
    gradient = torch.autograd.grad(whole, queries)[0]
    others = {
        "blocks": loss_of(queries, anchors, texts, block_size=block),
        "order": loss_of(queries[order], anchors[order], None if texts is None else texts[order]),
        "scale": loss_of(queries * 3, anchors * 0.25, texts),
    }
    for value in others.values():
        torch.testing.assert_close(value, whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(value, queries)[0], gradient, rtol=1e-3, atol=1e-4)
    assert whole.isfinite() and whole >= -1e-5


# --- files
# JSON and Arrow hold any text but halves of surrogate pairs; a table of lines cannot hold what ends them.
STORED = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ROWS = st.lists(
    st.fixed_dictionaries({"reference_caption": STORED, "conditioning_caption": STORED, "target_caption": STORED}),
    min_size=1,
    max_size=4,
)


@any_input(60)
@given(ROWS, st.sampled_from(["json", "jsonl", "parquet", "arrow", "json.gz", "jsonl.gz"]))
def test_what_is_written_is_read(rows, kind):
    with tempfile.TemporaryDirectory() as folder:
        table(Path(folder), f"t.{kind}", rows)
        assert list(read_triplets(Path(folder) / f"t.{kind}")) == rows


@any_input(60)
@given(ROWS, st.sampled_from([",", "\t"]))
def test_what_is_written_as_a_table_of_lines_is_read(rows, delimiter):
    import csv

    assume(not any("\x00" in text for row in rows for text in row.values()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv" if delimiter == "," else "t.tsv")
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=delimiter, quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
        assert list(read_triplets(path)) == rows


@any_input(40)
@given(ROWS, st.sampled_from(["parquet", "jsonl"]))
def test_our_own_files_are_read(rows, kind):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"t.{kind}")
        assert write_triplets(rows, path) == len(rows)
        assert list(read_triplets(path)) == rows


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | STORED,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STORED, inner, max_size=3),
    max_leaves=8,
)


@any_input(100)
@given(VALUES)
def test_json_and_yaml_come_back_as_they_were(value):
    import yaml

    assert parse_json(json.dumps(value)) == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value).encode()) == value
    if json.dumps(value, ensure_ascii=False).isprintable():  # PyYAML's own writer loses signs that break lines
        assert parse_yaml(yaml.safe_dump(value, allow_unicode=True)) == value


# --- recipes and registries
OPTIONS = st.dictionaries(
    st.text(string.ascii_lowercase + "_", min_size=1, max_size=8).filter(lambda name: name != "include"),
    st.integers() | st.booleans() | st.lists(st.integers(), max_size=3) | st.text(string.ascii_letters, max_size=5),
    max_size=5,
)


@any_input(60)
@given(OPTIONS, OPTIONS)
def test_a_resolved_recipe_resolves_to_itself(base, own):
    import yaml

    read = from_examples("utils.arguments", "read_recipe")
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), "base.yaml", yaml.safe_dump(base))
        path = put(Path(folder), "own.yaml", yaml.safe_dump({"include": "base.yaml", **own}))
        resolved = read(path)
        assert resolved == base | own
        assert read(put(Path(folder), "resolved.yaml", yaml.safe_dump(resolved))) == resolved


@any_input(100)
@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=6, unique=True), st.text(max_size=6))
def test_a_registry_holds_what_it_was_given_and_says_so(names, other):
    registry = Registry("thing", "THINGS")
    classes = {name: registry.register(name)(type("Thing", (), {})) for name in names}
    assert dict(registry) == classes
    with pytest.raises(RegistryError, match="is taken"):
        registry.register(names[0])(type("Other", (), {}))
    if other not in names:
        with pytest.raises(RegistryError) as unknown:
            registry[other]
        assert all(name in str(unknown.value) for name in names) and dict(registry) == classes


# --- submissions
@any_input(30)
@given(st.randoms(use_true_random=False))
def test_a_submission_comes_back_as_it_was_written(rng):
    benchmark = circo()
    lists = [rng.sample(benchmark.gallery, 50) for _ in benchmark.queries]
    with tempfile.TemporaryDirectory() as folder:
        write_circo_submission(lists, Path(folder, "s.json"), benchmark=benchmark)
        assert read_submission(Path(folder, "s.json"), benchmark) == lists


@cache
def circo():
    from rtd_hf.benchmarks import CIRBenchmark, CIRQuery

    gallery = tuple(map(str, range(80)))
    queries = [CIRQuery(str(number), gallery[number], ("is red",), ()) for number in range(3)]
    return CIRBenchmark(
        name="circo", queries=queries, gallery=gallery, load_image=str, metrics=("map@5",), hidden_targets=True
    )
