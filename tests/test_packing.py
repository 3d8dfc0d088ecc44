"""Packed rows: the tree against a brute-force one, and the encoder over it against padded rows and rows alone."""

import copy
import json
import math
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_text_model, tiny_tokenizer, tiny_triplets
from torch.nn.functional import normalize
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.data import DataLoader
from transformers import CLIPTextModelWithProjection
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from rtd_hf.data_collator import DataCollatorForRTD
from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.models import clip as clip_module
from rtd_hf.packing import GROUP_LENGTHS, PackedRows, pack_rows
from rtd_hf.prompts import PromptTokenizer


WIDTH = 32
EOS, PADDING, WORD_TOKEN = 9, 0, 5
TENSORS = [name for name in PackedRows.__dataclass_fields__ if name != "num_words"]
CAPTIONS = ["is red", "is blue and has a big zebra instead of the dog", "are two", "is red and has a dog", "is red"]
LONG = "has " + "a red dog and " * 40
PREFIX, TWO_WORDS, CAPTION_FIRST = (
    "a photo of $ that {caption}",
    "a $ and a $ , {caption} now",
    "a {caption} photo of $",
)
EOS_KINDS = pytest.mark.parametrize("legacy_eos", [False, True], ids=["eos", "legacy-eos"])
TEMPLATES = pytest.mark.parametrize("template", [PREFIX, TWO_WORDS, CAPTION_FIRST])
BARE = pytest.mark.parametrize("bare", [False, True], ids=["one-prompt", "two-prompts"])
SHARING = pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])


# ------------------------------------------------------------------------------------------ the tree by brute force
def draw_rows(seed, *, number=None, longest=None, with_words=False):
    """Token rows that begin alike often, and the number of the pseudo-word over each token (-1 for none)."""
    rng = np.random.default_rng(seed)
    number, longest = number or int(rng.integers(1, 13)), longest or int(rng.integers(1, 8))
    rows, words = [], []
    for _ in range(number):
        row = rng.integers(1, 4, size=rng.integers(0, longest)).tolist()
        over = [-1] * len(row)
        for place in range(len(row)) if with_words else ():
            if rng.random() < 0.3:
                # Whatever stands under a pseudo-word does not matter.
                row[place], over[place] = int(rng.integers(WORD_TOKEN, WORD_TOKEN + 2)), int(rng.integers(0, 4))
        rows.append([*row, EOS])
        words.append([*over, -1])
    return rows, words if with_words else None


def as_matrix(rows, filling):
    matrix = np.full((len(rows), max(map(len, rows))), filling, dtype=np.int64)
    for line, row in zip(matrix, rows, strict=True):
        line[: len(row)] = row
    return matrix


def pack(rows, words=None, **options):
    lengths = np.array([len(row) for row in rows])
    return pack_rows(
        as_matrix(rows, PADDING), lengths, words=None if words is None else as_matrix(words, -1), **options
    )


def labels_of(rows, words):
    words = words or [[-1] * len(row) for row in rows]
    return [
        tuple(token if word < 0 else ("word", word) for token, word in zip(row, over, strict=True))
        for row, over in zip(rows, words, strict=True)
    ]


def paths_of(packed):
    """The nodes of each distinct row, as lists."""
    offsets = packed.key_offsets.tolist()
    return [packed.paths[start:end].tolist() for start, end in zip(offsets, offsets[1:], strict=False)]


def check_tree(packed, rows, words, *, share):
    labels = labels_of(rows, words)
    paths, row_of = paths_of(packed), packed.prompt_rows.flatten().tolist()
    word_at = dict(zip(packed.word_nodes.tolist(), packed.word_indices.tolist(), strict=True))
    assert sorted(word_at) == packed.word_nodes.tolist()

    # Every row that was given is found along its path.
    for row, over, number in zip(rows, words or [None] * len(rows), row_of, strict=True):
        path = paths[number]
        assert packed.position_ids[path].tolist() == list(range(len(row)))
        seen = [("word", word_at[node]) if node in word_at else packed.input_ids[node].item() for node in path]
        assert tuple(seen) == labels_of([row], over and [over])[0]

    # Nodes are the distinct prefixes, or all tokens, each once.
    prefix_of = {}
    for given, (row, number) in enumerate(zip(labels, row_of, strict=True)):
        for column, node in enumerate(paths[number]):
            prefix = row[: column + 1] if share else (given, column)
            assert prefix_of.setdefault(node, prefix) == prefix
    assert len(set(prefix_of.values())) == len(prefix_of) == packed.num_nodes
    assert sorted(prefix_of) == list(range(packed.num_nodes))
    assert len(paths) == (len(set(labels)) if share else len(rows))
    assert set(row_of) == set(range(len(paths))) and (share or row_of == list(range(len(rows))))

    # Own nodes lie together, after all that is shared, and the last one of a row is its own.
    starts = packed.query_offsets.tolist()
    assert starts[0] == 0 and starts[-1] == packed.num_nodes
    for path, start, end in zip(paths, starts, starts[1:], strict=False):
        assert start < end and path[-(end - start) :] == list(range(start, end))
        assert all(node < start for node in path[: -(end - start)])
        assert share or end - start == len(path)
    assert packed.ends.tolist() == [path[-1] for path in paths]
    assert packed.lengths.tolist() == [np.diff(starts).tolist(), [len(path) for path in paths]]
    assert packed.longest == (max(packed.lengths[0].tolist()), max(packed.lengths[1].tolist()))
    assert packed.num_tokens == sum(map(len, rows))
    assert packed.num_words == max((word for over in words or () for word in over), default=-1) + 1
    assert packed.query_offsets.dtype == packed.key_offsets.dtype == torch.int32
    indices = ("input_ids", "position_ids", "word_nodes", "word_indices", "paths", "prompt_rows", "lengths", "ends")
    assert {getattr(packed, name).dtype for name in indices} == {torch.int64}


@SHARING
@pytest.mark.parametrize("with_words", [False, True], ids=["tokens", "words"])
def test_random_rows_become_the_tree_of_their_prefixes(share, with_words):
    saved = 0
    for seed in range(150):
        rows, words = draw_rows(seed, with_words=with_words)
        packed = pack(rows, words, share_prefixes=share)
        check_tree(packed, rows, words, share=share)
        saved += packed.num_tokens - packed.num_nodes
    assert (saved > 500) == share


@SHARING
@pytest.mark.parametrize(
    "rows",
    [
        [[EOS]],
        [[EOS], [1, EOS], [EOS]],
        [[1, 2, EOS]],
        [[1, 2, 3, EOS]] * 5,
        [[*range(10, 86), EOS]],
        [[*range(10, 86), EOS], [*range(10, 85), EOS], [*range(10, 84), 1, EOS], [EOS]],
    ],
    ids=["only-eos", "only-eos-and-more", "one-row", "equal-rows", "longest", "long-and-short"],
)
def test_extreme_rows(rows, share):
    packed = pack(rows, share_prefixes=share)
    check_tree(packed, rows, None, share=share)
    check_groups(packed, only_ends=False)
    check_groups(packed, only_ends=True)


def test_the_same_token_under_different_words_is_not_shared_and_other_tokens_under_one_word_are():
    rows = [[1, 5, 2, EOS], [1, 5, 2, EOS], [1, 6, 2, EOS]]
    packed = pack(rows, [[-1, 0, -1, -1], [-1, 1, -1, -1], [-1, 0, -1, -1]])
    assert packed.num_nodes == 7 and packed.num_words == 2
    assert packed.prompt_rows.tolist() in ([[0, 1, 0]], [[1, 0, 1]])


def test_prompts_are_blocks_of_the_rows():
    rows, words = draw_rows(0, number=12, with_words=True)
    flat, blocks = pack(rows, words), pack(rows, words, num_prompts=3)
    assert blocks.prompt_rows.shape == (3, 4)
    assert torch.equal(blocks.prompt_rows.flatten(), flat.prompt_rows[0])


def test_what_lies_beyond_a_rows_end_is_ignored():
    rows, words = draw_rows(1, number=12, longest=8, with_words=True)
    lengths = np.array([len(row) for row in rows])
    noise = np.random.default_rng(0).integers(1, 10, size=as_matrix(rows, 0).shape)
    noisy = np.where(as_matrix(rows, -1) < 0, noise, as_matrix(rows, -1))
    packed = pack_rows(noisy, lengths, words=as_matrix(words, -1))
    check_tree(packed, rows, words, share=True)


# Groups


def check_groups(packed, *, only_ends):
    groups, places = packed.end_groups if only_ends else packed.groups
    wanted = packed.ends.tolist() if only_ends else list(range(packed.num_nodes))
    # A node sees the nodes before it, on any path that it is on, and itself.
    before = {node: path[: column + 1] for path in paths_of(packed) for column, node in enumerate(path)}
    queries, seen, lengths = [], [], []
    for group in groups:
        keys = group.keys.view(group.num_rows, group.key_length).tolist()
        assert group.mask.shape == (group.num_rows, group.query_length, group.key_length)
        assert set(group.mask.unique().tolist()) <= {0.0, -math.inf}
        visible = (group.mask == 0).tolist()
        queries += group.queries.tolist()
        for row, places_of_row in zip(keys, visible, strict=True):
            seen += [[key for key, see in zip(row, sees, strict=True) if see] for sees in places_of_row]
        lengths.append(group.key_length)
    assert len(queries) == len(seen) and all(seen)  # a place that sees nothing is NaN in a softmax
    assert places.shape == (len(wanted),) and len(set(places.tolist())) == len(wanted)
    for number, (node, place) in enumerate(zip(wanted, places.tolist(), strict=True)):
        # With `only_ends` the queries are the last nodes alone, numbered by row.
        assert queries[place] == (number if only_ends else node)
        assert seen[place] == before[node]
    assert sum(group.num_rows for group in groups) == len(packed.ends)
    assert lengths == sorted(set(lengths)) and len(np.unique(np.digitize(lengths, GROUP_LENGTHS, right=True))) == len(
        lengths
    )


@SHARING
@pytest.mark.parametrize("only_ends", [False, True], ids=["all", "ends"])
def test_every_query_has_one_place_and_sees_its_path(share, only_ends):
    for seed in range(40):
        rows, words = draw_rows(seed, number=10, longest=30 if seed % 2 else 6, with_words=True)
        check_groups(pack(rows, words, share_prefixes=share), only_ends=only_ends)


def test_short_rows_are_not_padded_to_the_longest_of_the_batch():
    packed = pack([[*range(10, 70), EOS], *([token, EOS] for token in range(1, 9))])
    keys = sum(group.num_rows * group.key_length for group in packed.groups[0])
    assert keys == packed.num_tokens == 61 + 8 * 2


# Where the tensors are


def assert_same_rows(ours, theirs):
    assert ours.num_words == theirs.num_words
    for name in TENSORS:
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_what_the_host_must_know_stays_with_it_when_rows_move():
    packed = pack(*draw_rows(3, number=8, with_words=True), num_prompts=2)
    assert packed.groups and packed.end_groups
    moved = packed.to("meta", non_blocking=True)
    devices = {name: getattr(moved, name).device.type for name in TENSORS}
    assert devices.pop("lengths") == "cpu" and set(devices.values()) == {"meta"}
    assert torch.equal(moved.lengths, packed.lengths)
    for (groups, places), (expected, _) in ((moved.groups, packed.groups), (moved.end_groups, packed.end_groups)):
        assert {tensor.device.type for group in groups for tensor in group[:3]} | {places.device.type} == {"meta"}
        assert [group[3:] for group in groups] == [group[3:] for group in expected]
    assert_same_rows(packed.to("cpu"), packed)


@pytest.mark.gpu
def test_rows_are_pinned_for_the_device():
    packed = pack(*draw_rows(3, number=8, with_words=True))
    pinned = packed.pin_memory()
    assert all(getattr(pinned, name).is_pinned() for name in TENSORS if name != "lengths")
    assert not pinned.lengths.is_pinned() and not packed.input_ids.is_pinned()
    assert_same_rows(pinned, packed)
    assert_same_rows(pinned.to("cuda", non_blocking=True).to("cpu"), packed)


def test_rows_travel_between_processes():
    packed = pack(*draw_rows(3, number=8, with_words=True), num_prompts=2)
    check_groups(packed, only_ends=False)
    again = pickle.loads(pickle.dumps(packed))
    assert_same_rows(again, packed)
    check_groups(again, only_ends=False)

    collator = DataCollatorForRTD(tiny_tokenizer(), packing=True, mini_batch_size=2)
    triplets = tiny_triplets(6)
    batches = list(DataLoader(triplets, batch_size=3, collate_fn=collator, num_workers=1))
    for start, batch in zip((0, 3), batches, strict=True):
        expected = collator(triplets[start : start + 3])
        assert batch.keys() == expected.keys()
        for name in ("packed_rows", "anchor_packed_rows"):
            for ours, theirs in zip(batch[name], expected[name], strict=True):
                assert_same_rows(ours, theirs)


def test_rows_can_be_found_in_a_list():
    first, second = pack([[1, EOS]]), pack([[1, 2, EOS], [1, EOS]])
    assert [first, second].index(second) == 1 and first != second


# The collator


def texts_of(packed, tokenizer):
    return [
        [
            tokenizer.decode(packed.input_ids[path][1:-1]).replace("</w>", " ").strip()
            for path in map(paths_of(packed).__getitem__, block)
        ]
        for block in packed.prompt_rows.tolist()
    ]


@SHARING
def test_a_batch_is_packed_in_mini_batches_of_the_same_texts(share):
    tokenizer, triplets = tiny_tokenizer(), tiny_triplets(5)
    collator = DataCollatorForRTD(tokenizer, packing=True, mini_batch_size=2, share_prefixes=share)
    batch = collator(triplets)
    assert set(batch) == {"packed_rows", "anchor_packed_rows", "text_ids"}
    assert torch.equal(batch["text_ids"], DataCollatorForRTD(tokenizer)(triplets)["text_ids"])
    parts = [triplets[:2], triplets[2:4], triplets[4:]]
    for part, prompts, anchors in zip(parts, batch["packed_rows"], batch["anchor_packed_rows"], strict=True):
        full = [f"a photo of $ that {row['conditioning_caption']}" for row in part]
        assert texts_of(prompts, tokenizer) == [full, ["a photo of $"] * len(part)]
        captions = [[row[f"{kind}_caption"] for row in part] for kind in ("target", "reference")]
        assert texts_of(anchors, tokenizer) == captions
        assert (prompts.num_words, anchors.num_words) == (len(part), 0)
        assert (prompts.num_nodes < prompts.num_tokens) == share
    (whole,) = DataCollatorForRTD(tokenizer, packing=True, refined_batch=False)(triplets)["packed_rows"]
    assert whole.prompt_rows.shape == (1, 5)


@pytest.mark.parametrize("options", [{"mini_batch_size": 2}, {"mini_batch_size": 0, "packing": True}])
def test_mini_batches_need_packing_and_a_size(options):
    with pytest.raises(ValueError, match="`mini_batch_size` must be positive and needs `packing`"):
        DataCollatorForRTD(tiny_tokenizer(), **options)


# ------------------------------------------------------------------------------------------ the encoder over the tree
def tokens_alone(tokenizer, text, limit):
    row = tokenizer(text)["input_ids"]
    return row if len(row) <= limit else [*row[: limit - 1], tokenizer.eos_token_id]


def rows_alone(tokenizer, template, captions, bare, reference="$"):
    """Token rows of the composed prompts, then of the bare ones, by the stock tokenizer and cut by hand."""
    filled = template.replace("$", reference)
    limit = 77 - (bare and template != CAPTION_FIRST)
    rows = []
    for caption in captions:
        if template == CAPTION_FIRST:
            while len(tokenizer(filled.replace("{caption}", caption))["input_ids"]) > limit:
                caption = caption.rpartition(" ")[0]
        rows.append(tokens_alone(tokenizer, filled.replace("{caption}", caption), limit))
    start = template[: template.rindex("$") + 1].replace("{caption} ", "").replace("$", reference)
    return rows + [tokens_alone(tokenizer, start, limit)] * (len(captions) * bare)


def stock_alone(model, rows, words, placeholder):
    """Each row by itself through the stock class; row i of every block holds the words `words[i % len(words)]`."""
    embeds = []
    for number, row in enumerate(rows):
        row = torch.tensor([row])

        def overwrite(module, arguments, embeddings, row=row, number=number):
            embeddings = embeddings.clone()
            embeddings[row == placeholder] = words[number % len(words)]
            return embeddings

        handle = model.get_input_embeddings().register_forward_hook(overwrite) if words is not None else None
        embeds.append(model(input_ids=row).text_embeds)
        if handle:
            handle.remove()
    return torch.cat(embeds)


def nonlinear(embeds):
    """A loss in which every embedding meets every other one, and some fixed ones."""
    generator = torch.Generator().manual_seed(5)
    others = torch.randn(4, embeds.shape[1], generator=generator)
    scores = normalize(embeds, dim=-1) @ normalize(torch.cat([embeds, others]), dim=-1).T / 0.3
    chances = scores.fill_diagonal_(-100).log_softmax(dim=-1)
    return -(chances * torch.rand(chances.shape, generator=generator)).mean()


def gradients_of(model, words, call):
    """Of `nonlinear(call(words))`: the embeddings, and the gradients of the parameters and of the words."""
    model.zero_grad()
    words = None if words is None else words.clone().requires_grad_()
    embeds = call(words)
    nonlinear(embeds).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return embeds.detach(), found if words is None else found | {"pseudo-words": words.grad}


def assert_same_gradients(ours, theirs, tolerance=1e-5):
    """Within the tolerance, relative to the largest entry of each tensor; none is zero without a reason."""
    assert ours.keys() == theirs.keys() and theirs
    for name, expected in theirs.items():
        largest, error = expected.abs().max(), (ours[name] - expected).abs().max()
        if name.endswith(("k_proj.bias", "k_proj.base_layer.bias")):  # truly zero: the softmax takes it out again
            assert max(largest, error) < tolerance * theirs[name.replace("bias", "weight")].abs().max()
            continue
        assert largest > 1e-6, name
        assert error <= tolerance * largest, f"{name}: {error / largest:.1e}"


def padded_call(model, prompts, captions, bare):
    batch = prompts.compose(captions, bare=bare)
    blocks = len(batch["input_ids"]) // len(captions)
    return lambda words: model(**batch, pseudo_words=words.repeat(blocks, 1, 1)).text_embeds


def packed_call(model, *packed):
    return lambda words: (
        model(packed_rows=list(packed) if len(packed) > 1 else packed[0], pseudo_words=words).text_embeds
    )


def check_equality(template, captions, bare, *, legacy_eos=False, share=True):
    tokenizer = tiny_tokenizer()
    model = tiny_text_model(CLIPTextModelForRTD, legacy_eos=legacy_eos)
    prompts = PromptTokenizer(tokenizer, template, share_prefixes=share)
    words = torch.randn(len(captions), prompts.num_placeholders, WIDTH)
    packed = prompts.compose(captions, bare=bare, packed=True)
    assert list(packed) == ["packed_rows"]

    embeds, gradients = gradients_of(model, words, packed_call(model, packed["packed_rows"]))
    padded, expected = gradients_of(model, words, padded_call(model, prompts, captions, bare))
    rows = rows_alone(tokenizer, template, captions, bare)
    assert packed["packed_rows"].num_tokens == sum(map(len, rows))
    stock = tiny_text_model(legacy_eos=legacy_eos)
    alone, singly = gradients_of(stock, words, lambda words: stock_alone(stock, rows, words, prompts.placeholder_id))
    assert embeds.shape == alone.shape == (len(captions) * (1 + bare), 24)
    for other in (padded, alone):
        torch.testing.assert_close(embeds, other, rtol=0, atol=3e-6)
    for other in (expected, singly):
        assert_same_gradients(gradients, other)


@EOS_KINDS
@TEMPLATES
@BARE
def test_packed_rows_equal_padded_rows_and_rows_alone(template, bare, legacy_eos):
    check_equality(template, CAPTIONS, bare, legacy_eos=legacy_eos)


@TEMPLATES
def test_unshared_rows_equal_them_too(template):
    check_equality(template, CAPTIONS, True, share=False)


@TEMPLATES
@BARE
def test_long_text_is_cut_at_the_same_place(template, bare):
    check_equality(template, [LONG, "is red", LONG + "x"], bare)
    counters = [PromptTokenizer(tiny_tokenizer(), template) for _ in range(2)]
    for packed, prompts in enumerate(counters):
        prompts.compose([LONG, "is red"], bare=bare, packed=bool(packed))
    assert counters[0].num_truncated == counters[1].num_truncated == 1


@EOS_KINDS
@BARE
def test_one_row_alone(bare, legacy_eos):
    check_equality(PREFIX, ["is red"], bare, legacy_eos=legacy_eos)


@TEMPLATES
@BARE
def test_the_literal_ablation_packs_the_references_words(template, bare):
    tokenizer, model, stock = tiny_tokenizer(), tiny_text_model(CLIPTextModelForRTD), tiny_text_model()
    prompts = PromptTokenizer(tokenizer, template)
    references = ["a dog", "the big green tree in the house", "a dog"] + ["a red dog and " * 40] * (template == PREFIX)
    captions = ["is red", "are two", "is red", "is blue"][: len(references)]
    packed = prompts.literal(references, captions, bare=bare, packed=True)["packed_rows"]
    assert packed.num_words == 0
    embeds, gradients = gradients_of(model, None, packed_call(model, packed))
    batch = prompts.literal(references, captions, bare=bare)
    padded, expected = gradients_of(model, None, lambda _: model(**batch).text_embeds)
    blocks = [
        rows_alone(tokenizer, template, [caption], bare, reference)
        for reference, caption in zip(references, captions, strict=True)
    ]
    rows = [row for block in zip(*blocks, strict=True) for row in block]
    alone, singly = gradients_of(stock, None, lambda _: stock_alone(stock, rows, None, None))
    for other in (padded, alone):
        torch.testing.assert_close(embeds, other, rtol=0, atol=3e-6)
    for other in (expected, singly):
        assert_same_gradients(gradients, other)


def test_plain_texts_keep_their_blocks():
    model, prompts = tiny_text_model(CLIPTextModelForRTD), PromptTokenizer(tiny_tokenizer())
    texts = ["a red dog", "A  Dog", LONG, "a red dog", "a dog on the grass", "two"]
    packed = prompts.encode(texts, packed=True, num_prompts=2)["packed_rows"]
    assert packed.prompt_rows.shape == (2, 3)
    with torch.no_grad():
        expected = model(**prompts.encode(texts)).text_embeds
        torch.testing.assert_close(model(packed_rows=packed).text_embeds, expected, rtol=0, atol=3e-6)
        assert torch.equal(model(packed_rows=packed, return_dict=False)[0], model(packed_rows=packed).text_embeds)


def test_half_precision_is_as_close_as_in_padded_rows():
    model, prompts = tiny_text_model(CLIPTextModelForRTD), PromptTokenizer(tiny_tokenizer())
    words = torch.randn(len(CAPTIONS), 1, WIDTH)
    packed = prompts.compose(CAPTIONS, bare=True, packed=True)
    with torch.no_grad():
        exact = model(**packed, pseudo_words=words).text_embeds
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = model(**packed, pseudo_words=words).text_embeds
        half = copy.deepcopy(model).bfloat16()(**packed, pseudo_words=words).text_embeds
    for approximate, kind in ((autocast, "autocast"), (half, "weights")):
        assert approximate.dtype == torch.bfloat16, kind
        assert 0 < (approximate.float() - exact).abs().max() < 0.1, kind


def test_a_double_precision_encoder_stays_one():
    model, prompts = tiny_text_model(CLIPTextModelForRTD).double(), PromptTokenizer(tiny_tokenizer())
    words = torch.randn(len(CAPTIONS), 1, WIDTH).double()
    padded, expected = gradients_of(model, words, padded_call(model, prompts, CAPTIONS, True))
    packed = prompts.compose(CAPTIONS, bare=True, packed=True)["packed_rows"]
    embeds, gradients = gradients_of(model, words, packed_call(model, packed))
    torch.testing.assert_close(embeds, padded, rtol=0, atol=1e-12)
    assert_same_gradients(gradients, expected, tolerance=1e-10)


def test_rows_used_in_inference_mode_can_be_trained_on_later():
    model, prompts = tiny_text_model(CLIPTextModelForRTD), PromptTokenizer(tiny_tokenizer())
    packed = prompts.encode(["a red dog", "a dog"], packed=True)["packed_rows"]
    with torch.inference_mode():
        expected = model(packed_rows=packed).text_embeds
    embeds, gradients = gradients_of(model, None, packed_call(model, packed))
    assert torch.equal(embeds, expected) and gradients["text_projection.weight"].any()


# Several packs: gradient caching


def packs_of(prompts, captions, sizes, **options):
    starts = np.cumsum([0, *sizes]).tolist()
    return [
        prompts.compose(captions[start:end], packed=True, **options)["packed_rows"]
        for start, end in zip(starts, starts[1:], strict=False)
    ]


@TEMPLATES
@BARE
def test_several_packs_give_the_embeddings_and_gradients_of_one(template, bare):
    model, prompts = tiny_text_model(CLIPTextModelForRTD).train(), PromptTokenizer(tiny_tokenizer(), template)
    words = torch.randn(len(CAPTIONS), prompts.num_placeholders, WIDTH)
    packs = packs_of(prompts, CAPTIONS, (2, 1, 2), bare=bare)
    whole = prompts.compose(CAPTIONS, bare=bare, packed=True)["packed_rows"]
    embeds, gradients = gradients_of(model, words, packed_call(model, *packs))
    together, expected = gradients_of(model, words, packed_call(model, whole))
    torch.testing.assert_close(embeds, together, rtol=0, atol=3e-6)
    assert_same_gradients(gradients, expected)


def lora_of(model, **options):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=list(model.lora_target_modules), init_lora_weights=False, **options)
    return peft.get_peft_model(model, config)


def trained_parameters(gradients):
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


@BARE
def test_dropout_draws_the_same_masks_in_both_passes(bare, monkeypatch):
    model = lora_of(tiny_text_model(CLIPTextModelForRTD), lora_dropout=0.3, r=4).train()
    prompts = PromptTokenizer(tiny_tokenizer(), share_prefixes=False)
    words = torch.randn(len(CAPTIONS), 1, WIDTH)
    packs = packs_of(prompts, CAPTIONS, (2, 1, 2), bare=bare)
    encode, passes = CLIPTextModelForRTD._encode_packed, []

    def recorded(self, rows, part):
        embeds = encode(self, rows, part)
        passes.append((next(n for n, pack in enumerate(packs) if pack is rows), embeds.detach().clone()))
        return embeds

    def in_chunks(words):
        torch.manual_seed(7)
        embeds = model(packed_rows=packs, pseudo_words=words).text_embeds
        torch.manual_seed(99)  # what comes between forward and backward may draw too
        return embeds

    def directly(words, seed=7):
        torch.manual_seed(seed)
        parts = words.split([2, 1, 2])
        chunks = [
            model(packed_rows=[rows], pseudo_words=part).text_embeds.unflatten(0, rows.prompt_rows.shape)
            for rows, part in zip(packs, parts, strict=True)
        ]
        return torch.cat(chunks, dim=1).flatten(0, 1)

    with monkeypatch.context() as patch, set_checkpoint_early_stop(False):
        patch.setattr(CLIPTextModelForRTD, "_encode_packed", recorded)
        embeds, gradients = gradients_of(model, words, in_chunks)
        # The backward pass leaves the random state as it was.
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(99)))
    first, second = dict(passes[:3]), dict(passes[3:])
    assert first.keys() == second.keys() == {0, 1, 2} and len(passes) == 6
    for number, drawn in first.items():
        assert torch.equal(second[number], drawn)

    straight, expected = gradients_of(model, words, directly)
    assert torch.equal(embeds, straight)
    assert_same_gradients(gradients, expected)
    other, _ = gradients_of(model, words, lambda words: directly(words, seed=8))
    assert (other - straight).abs().max() > 0.1  # or dropout does nothing here


def test_dropped_out_rows_are_drawn_one_by_one():
    model = lora_of(tiny_text_model(CLIPTextModelForRTD), lora_dropout=0.3, r=4).train()
    with torch.no_grad():
        for share in (True, False):
            prompts = PromptTokenizer(tiny_tokenizer(), share_prefixes=share)
            first, second = model(**prompts.encode(["a red dog"] * 2, packed=True)).text_embeds
            assert torch.equal(first, second) == share


@pytest.mark.parametrize("number", [1, 3])
def test_nothing_is_computed_twice_without_need(number, monkeypatch):
    model, prompts = tiny_text_model(CLIPTextModelForRTD).train(), PromptTokenizer(tiny_tokenizer())
    packs = packs_of(prompts, CAPTIONS[:3], [3] if number == 1 else [1, 1, 1])
    calls, attention = [], clip_module.packed_attention
    monkeypatch.setattr(clip_module, "packed_attention", lambda *a, **k: calls.append(1) or attention(*a, **k))
    words = torch.randn(3, 1, WIDTH)
    with torch.no_grad():
        model(packed_rows=packs, pseudo_words=words)
    assert len(calls) == 2 * number
    calls.clear()
    gradients_of(model, words, lambda words: model(packed_rows=packs, pseudo_words=words).text_embeds)
    assert len(calls) == 2 * number * (1 if number == 1 else 2)


def test_packs_inside_ddp(tmp_path):
    model, prompts = tiny_text_model(CLIPTextModelForRTD).train(), PromptTokenizer(tiny_tokenizer())
    words = torch.randn(len(CAPTIONS), 1, WIDTH)
    packs = packs_of(prompts, CAPTIONS, (2, 3), bare=True)
    _, expected = gradients_of(model, words, packed_call(model, *packs))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        _, gradients = gradients_of(model, words, packed_call(wrapped, *packs))
        # A thread of gloo drops the backward pass's `contextvars` a little later, and takes the interpreter's lock for
        # it; freeing the process group before that waits for the thread with the lock in hand (torch 2.13, seen once).
        time.sleep(0.1)
    finally:
        torch.distributed.destroy_process_group()
    assert_same_gradients(gradients, expected)


MEMORY_SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np, torch
from transformers import CLIPTextConfig
from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.packing import pack_rows

torch.set_num_threads(1)
sizes = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
model = CLIPTextModelForRTD(CLIPTextConfig(vocab_size=200, eos_token_id=199, projection_dim=16, **sizes)).train()
tokens = np.random.default_rng(0).integers(1, 199, size=(16 * 24, 24))
tokens[:, -1] = 199

def pack(rows):
    return pack_rows(rows, np.full(len(rows), 24))

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

def growth(rows):
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    embeds = model(packed_rows=rows).text_embeds
    (embeds @ embeds.T).log_softmax(dim=-1).diagonal().mean().backward()
    return kilobytes("VmHWM") - before

growth(pack(tokens[:2]))  # what is allocated once: gradients, buffers of the libraries
print(json.dumps([growth([pack(part) for part in np.split(tokens, 16)]), growth(pack(tokens))]))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from Linux's /proc")
def test_a_step_in_packs_needs_the_memory_of_one_pack():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    chunked, whole = json.loads(run.stdout.splitlines()[-1])
    assert whole > 100_000, "kilobytes; too little to tell"
    assert chunked < whole / 3


# Gradient checkpointing of layers


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("sizes", [(5,), (2, 3)], ids=["one-pack", "two-packs"])
@pytest.mark.parametrize("with_lora", [False, True], ids=["all-weights", "lora"])
def test_checkpointed_layers_have_the_same_gradients(reentrant, sizes, with_lora, monkeypatch):
    model, prompts = tiny_text_model(CLIPTextModelForRTD), PromptTokenizer(tiny_tokenizer())
    words = torch.randn(len(CAPTIONS), 1, WIDTH)
    packs = packs_of(prompts, CAPTIONS, sizes, bare=True)
    model = (lora_of(model) if with_lora else model).train()
    _, expected = gradients_of(model, words, packed_call(model, *packs))
    if with_lora:
        model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls, attention = [], clip_module.packed_attention
    monkeypatch.setattr(clip_module, "packed_attention", lambda *a, **k: calls.append(1) or attention(*a, **k))
    _, gradients = gradients_of(model, words, packed_call(model, *packs))
    assert_same_gradients(gradients, expected)
    assert len(calls) >= 4 * len(packs)  # two layers, and each of them once more


# Errors


def test_words_that_do_not_fit_the_packed_rows_are_refused():
    model, prompts = tiny_text_model(CLIPTextModelForRTD), PromptTokenizer(tiny_tokenizer())
    packed = prompts.compose(CAPTIONS[:3], bare=True, packed=True)
    packs = packs_of(prompts, CAPTIONS[:3], (1, 2))
    for rows in (packed["packed_rows"], packs):
        for wrong in (None, torch.randn(2, 1, WIDTH), torch.randn(6, 1, WIDTH), torch.randn(3, 1, WIDTH + 1)):
            came = "None" if wrong is None else rf"\({wrong.shape[0]}, 1, {wrong.shape[2]}\)"
            with pytest.raises(ValueError, match=rf"needs 3 `pseudo_words` of width {WIDTH}.*got shape {came}"):
                model(packed_rows=rows, pseudo_words=wrong)
    # As many numbers, but of another width.
    with pytest.raises(ValueError, match=rf"got shape \({WIDTH}, 3\)"):
        model(**packed, pseudo_words=torch.randn(WIDTH, 3))
    plain = prompts.encode(["a dog"], packed=True)
    with pytest.raises(ValueError, match="needs 0 `pseudo_words`"):
        model(**plain, pseudo_words=torch.randn(1, 1, WIDTH))


def test_dropped_attention_weights_are_refused():
    packed = PromptTokenizer(tiny_tokenizer()).encode(["a dog"], packed=True)
    model = tiny_text_model(CLIPTextModelForRTD, attention_dropout=0.1)
    assert not model.takes_packed_rows and tiny_text_model(CLIPTextModelForRTD).takes_packed_rows
    with pytest.raises(ValueError, match="takes no `packed_rows`. Give padded `input_ids`"):
        model(**packed)


def test_a_call_without_rows_is_refused():
    with pytest.raises(ValueError, match="needs `input_ids` or `packed_rows`, got neither"):
        tiny_text_model(CLIPTextModelForRTD)(pseudo_words=torch.randn(1, 1, WIDTH))


# What is saved and copied


@EOS_KINDS
def test_what_is_saved_after_packed_steps_is_the_stock_model(tmp_path, legacy_eos):
    model, prompts = tiny_text_model(CLIPTextModelForRTD, legacy_eos=legacy_eos), PromptTokenizer(tiny_tokenizer())
    packed = prompts.encode(["a red dog", "a dog"], packed=True)
    model(**packed).text_embeds.square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad
    model.save_pretrained(tmp_path)
    stock, report = CLIPTextModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert list(stock.state_dict()) == list(tiny_text_model(legacy_eos=legacy_eos).state_dict())
    assert {type(layer) for layer in stock.text_model.encoder.layers} == {CLIPEncoderLayer}
    assert {type(layer) for layer in model.to_stock().text_model.encoder.layers} == {CLIPEncoderLayer}
    rows = prompts.encode(["a red dog", "a dog"])
    with torch.no_grad():
        expected = stock(rows["input_ids"], rows["attention_mask"]).text_embeds
        torch.testing.assert_close(model(**packed).text_embeds, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_take_packed_rows_and_share_nothing(again):
    model, prompts = tiny_text_model(CLIPTextModelForRTD), PromptTokenizer(tiny_tokenizer())
    packed = prompts.encode(["a red dog", "a dog"], packed=True)
    with torch.no_grad():
        expected = model(**packed).text_embeds
        twin = again(model)
        model.text_projection.weight.zero_()
        assert torch.equal(twin(**packed).text_embeds, expected) and expected.abs().max() > 0.1


def test_what_must_not_be_split_is_found_by_its_name():
    """FSDP and `device_map` look the layers up by their classes' names."""
    model, stock = tiny_text_model(CLIPTextModelForRTD), tiny_text_model()

    def unsplit(model):
        return {name for name, part in model.named_modules() if type(part).__name__ in model._no_split_modules}

    assert unsplit(model) == unsplit(stock) >= {"text_model.encoder.layers.0", "text_model.encoder.layers.1"}
