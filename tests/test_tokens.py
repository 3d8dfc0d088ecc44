"""Texts tokenized by words against the tokenizer's own result for the whole text."""

import gzip
import json
import pickle
import random
import sys
import unicodedata
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from backbone_models import gemma_tokenizer, siglip_tokenizer
from helpers import build_tokenizer, real_tokenizer, tiny_tokenizer
from transformers import Siglip2Tokenizer
from world_models import world_tokenizer

from rtd_hf import tokens
from rtd_hf.texts import clean_caption, clean_conditioning
from rtd_hf.tokens import TextTokenizer, load_tokenizer


ANNOTATIONS = Path(__file__).resolve().parents[2] / "shared" / "annotations"
VOCABULARIES = pytest.mark.parametrize("build", [real_tokenizer, world_tokenizer, tiny_tokenizer])
SPECIALS = ("<|startoftext|>", "<|endoftext|>", "<|endoftext|", "</w>", "[SEP]", "</s>", "<pad>")
SPACES = (" ", "\t", "\n", "\r\n", "\u00a0", "\u1680", "\u2003", "\u2028", "\u202f", "\u3000", "\x1c", "\x85", "  ")
# No spaces to Unicode, but marks that join or part letters for somebody.
JOINERS = (
    "\u200b",
    "\u200d",
    "\u2060",
    "\ufeff",
    "\u00ad",
    "\u0301",
    "\u0308",
    "\u0345",
    "\u3099",
    "\u1161",
    "\u11a8",
)
PIECES = (
    "a",
    "dog",
    "dog's",
    "they'll",
    "don't",
    "'s",
    "'",
    "\u2019s",
    "2nd",
    "100,000",
    "\u00bd",
    "\u2167",
    "$",
    "_",
)
PIECES += (
    "\ufb01ne",
    "Stra\u00dfe",
    "\u0130stanbul",
    "\u039f\u0394\u039f\u03a3",
    "\u4e2d\u6587",
    "\U0001f468\u200d\U0001f469",
)


@cache
def characters():
    """All characters that can be encoded, by category."""
    found = defaultdict(list)
    for number in range(sys.maxunicode + 1):
        found[unicodedata.category(chr(number))].append(chr(number))
    del found["Cs"]
    return [found[name] for name in sorted(found)]


def draw_text(rng):
    parts = []
    for _ in range(rng.randrange(12)):
        kind = rng.random()
        if kind < 0.4:
            parts.append(rng.choice(rng.choice(characters())))
        else:
            parts.append(rng.choice(SPACES if kind < 0.65 else JOINERS if kind < 0.8 else (*PIECES, *SPECIALS)))
    return "".join(parts)


def assert_same(tokenize, texts):
    for text, ours, theirs in zip(texts, tokenize(texts), tokenize.whole(texts), strict=True):
        assert ours == theirs, repr(text)


class Counting:
    """A tokenizer that counts the texts it is asked for."""

    def __init__(self, tokenizer):
        self._tokenizer, self.asked = tokenizer, []

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, texts, **options):
        self.asked += texts
        return self._tokenizer(texts, **options)


# By words


@VOCABULARIES
@pytest.mark.parametrize("clean", [clean_caption, clean_conditioning])
def test_random_texts_by_words_are_those_tokenized_whole(build, clean):
    tokenize, rng = TextTokenizer(build()), random.Random(1)
    assert tokenize.by_words
    texts = [clean(draw_text(rng)) for _ in range(3000)]
    assert sum(" " in text for text in texts) > 1000
    assert_same(tokenize, texts)


@pytest.mark.parametrize("kind", ["siglip", "gemma", "siglip2"])
@pytest.mark.parametrize("clean", [clean_caption, clean_conditioning])
def test_random_texts_of_siglips_tokenizers_by_words_are_those_tokenized_whole(kind, clean, tmp_path):
    build = {
        "siglip": lambda: siglip_tokenizer(tmp_path),
        "gemma": gemma_tokenizer,
        "siglip2": lambda: gemma_tokenizer(Siglip2Tokenizer),
    }[kind]
    for lower_case in (False, True):
        tokenize, rng = TextTokenizer(build(), lower_case=lower_case), random.Random(1)
        assert tokenize.by_words
        assert_same(tokenize, [clean(draw_text(rng)) for _ in range(1500)])
        assert_same(tokenize, [f"a {one} b{two}c {one}{two}" for one in SPECIALS for two in (*SPECIALS, "<eos>")])
        rows = tokenize([f"a {special} b" for special in (*SPECIALS, "<eos>", "<unk>")])
        assert all(row.count(tokenize.tokenizer.eos_token_id) == 1 for row in rows)


def test_every_letter_at_both_ends_of_a_word():
    tokenize = TextTokenizer(real_tokenizer())
    letters = [chr(number) for number in range(0x3000) if not chr(number).isspace()]
    letters = [letter for letter in letters if unicodedata.category(letter) not in ("Cn", "Co", "Cs")]
    assert_same(tokenize, [f"a {letter}b b{letter} c {letter}" for letter in letters[::3]])


@VOCABULARIES
def test_special_tokens_spelled_out_are_ordinary_text(build):
    tokenize = TextTokenizer(build())
    texts = [f"a {one} b{two}c {one}{two}" for one in SPECIALS for two in SPECIALS]
    assert_same(tokenize, texts)
    eos, bos = tokenize.tokenizer.eos_token_id, tokenize.tokenizer.bos_token_id
    for row in tokenize(texts):
        assert row.count(eos) == row.count(bos) == 1 and (row[0], row[-1]) == (bos, eos)


def test_no_text_is_bos_and_eos():
    tokenize = TextTokenizer(tiny_tokenizer())
    bos, eos = tokenize.tokenizer.bos_token_id, tokenize.tokenizer.eos_token_id
    assert tokenize(["", " "]) == [[bos, eos]] * 2
    assert tokenize([]) == []


def test_nothing_is_cut_padded_or_warned_about(caplog):
    tokenize = TextTokenizer(tiny_tokenizer())
    for rows in (tokenize(["red " * 200, "red"]), tokenize.whole(["red " * 200, "red"])):
        assert [len(row) for row in rows] == [202, 3]
    assert not caplog.records


def strings_in(value, names):
    if isinstance(value, dict):
        for name, part in value.items():
            yield from strings_in(part, names) if isinstance(part, dict | list) else [part] * (name in names)
            if name in names and isinstance(part, list):
                yield from part
    elif isinstance(value, list):
        for part in value:
            if isinstance(part, dict | list):
                yield from strings_in(part, names)


@pytest.mark.parametrize(
    ("pattern", "names", "least"),
    [
        ("coco_captions/*.json.gz", {"caption"}, 20_000),
        ("cirr/captions/*.json", {"caption"}, 4_000),
        ("fashioniq/captions/*.json", {"captions"}, 10_000),
        ("circo/annotations/*.json", {"relative_caption", "shared_concept"}, 500),
    ],
    ids=["coco", "cirr", "fashioniq", "circo"],
)
def test_published_captions_by_words_are_those_tokenized_whole(pattern, names, least):
    files = sorted(ANNOTATIONS.glob(pattern))
    if not files:
        pytest.skip(f"no annotations at {ANNOTATIONS / pattern}")
    texts = set()
    for file in files:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        texts.update(strings_in(json.loads(content), names))
    assert len(texts) > least
    tokenize, some = TextTokenizer(real_tokenizer()), sorted(texts)[::2]
    assert_same(tokenize, [clean_caption(text) for text in some])
    assert_same(tokenize, [clean_conditioning(text) for text in some[::4]])


# Memory


def test_a_word_is_asked_for_once():
    counting = Counting(tiny_tokenizer())
    tokenize = TextTokenizer(counting)
    counting.asked.clear()
    expected = tokenize(["a red dog", "red dog"])
    assert counting.asked == ["a", "red", "dog"]
    assert tokenize(["a red dog", "red dog"]) == expected and len(counting.asked) == 3


def test_rows_are_the_callers_to_change():
    tokenize = TextTokenizer(tiny_tokenizer())
    expected = tokenize.whole(["red dog", ""])
    for row in tokenize(["red dog", ""]):
        row.clear()
    assert tokenize(["red dog", ""]) == expected


def test_the_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(tokens, "_MOST_WORDS", 50)
    tokenize = TextTokenizer(tiny_tokenizer())
    for call in range(30):
        texts = [f"word{call} x{number}" for number in range(0, 10 * (call + 1), call + 1)]
        assert_same(tokenize, texts)
        assert len(tokenize._words) <= 50 + 11
    assert tokenize._words


def test_it_travels_to_workers():
    tokenize = pickle.loads(pickle.dumps(TextTokenizer(tiny_tokenizer())))
    assert tokenize.by_words
    assert_same(tokenize, ["a red dog"])


# Tokenizers that see the neighbours of a word


class Gluing(Counting):
    """A tokenizer that joins two words."""

    def __call__(self, texts, **options):
        self.asked += texts
        return self._tokenizer([text.replace("$ ,", "$,") for text in texts], **options)


def byte_level():
    """As GPT-2's: the space before a word belongs to its first token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(number) for number in range(ord("!"), ord("~") + 1)] + [chr(256 + number) for number in range(68)]
    words = ["\u0120a", "\u0120r", "\u0120re", "\u0120red", "<s>", "</s>"]
    merges = [("\u0120", "a"), ("\u0120", "r"), ("\u0120r", "e"), ("\u0120re", "d")]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(letters + words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    ends = [(token, len(letters) + words.index(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def test_a_tokenizer_that_joins_across_spaces_is_asked_each_time():
    counting = Gluing(build_tokenizer([("$", ",</w>")]))
    tokenize = TextTokenizer(counting)
    assert not tokenize.by_words
    texts = ["a red dog", "a photo of $ , red", "a red dog"]
    singly = [[token for word in text.split() for token in tokenize.whole([word])[0][1:-1]] for text in texts]
    for _ in range(2):
        counting.asked.clear()
        rows = tokenize(texts)
        assert counting.asked == texts
        assert rows == tokenize.whole(texts)
        assert [row[1:-1] for row in rows] != singly
    assert not tokenize._words


def test_a_word_that_begins_a_text_may_have_tokens_of_its_own():
    counting = Counting(byte_level())
    tokenize = TextTokenizer(counting)
    assert tokenize.by_words
    counting.asked.clear()
    texts = ["a red dog", "red a red dog's", "dog $ $", "$ red", ""]
    rows = tokenize(texts)
    asked = len(counting.asked)
    assert tokenize(texts) == rows == [tokenize.whole([text])[0] for text in texts]
    assert len(counting.asked) == asked + len(texts)  # by `whole` alone
    first, later = (row[1] for row in tokenize.whole(["a", "red a"]))
    assert first != later
    assert tokenize.tokens_of("a") == [tokenize.tokenizer.convert_tokens_to_ids("\u0120a")]
    assert_same(tokenize, [clean_caption(draw_text(random.Random(number))) for number in range(500)])


@pytest.mark.parametrize("build", [real_tokenizer, tiny_tokenizer, byte_level])
def test_the_placeholder_is_put_in_where_it_stands_alone(build):
    tokenizer = build()
    tokenize, plain = TextTokenizer(tokenizer, placeholder="$"), TextTokenizer(tokenizer)
    texts = ["a photo of $ that", "$ , $", "$", "a$ $b $$ 5$ $", ""]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    expected = []
    for text in texts:
        words = text.split()
        parts = [plain.whole(words[:1])[0][1:-1], *map(plain.tokens_of, words[1:])] if words else []
        parts = [[tokens.PLACE] if word == "$" else part for word, part in zip(words, parts, strict=True)]
        expected.append([bos, *(token for part in parts for token in part), eos])
    for _ in range(2):
        assert tokenize(texts) == expected
    tokenize._forget()
    assert tokenize(texts) == expected


def test_an_added_token_of_two_words_is_found():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["red dog"])
    tokenize = TextTokenizer(tokenizer)
    assert len(tokenize.whole(["a red dog"])[0]) == 4
    assert_same(tokenize, ["a red dog", "a red cat"])


@pytest.mark.parametrize("length", ["77", [77], {"tokens": 77}, True], ids=repr)
def test_a_length_that_is_no_number_names_the_tokenizer(length, tmp_path):
    world_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    stated = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**stated, "model_max_length": length}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*model_max_length"):
        load_tokenizer(tmp_path)
    file.write_text(json.dumps({**stated, "model_max_length": None}), encoding="utf-8")  # transformers' own: no limit
    assert load_tokenizer(tmp_path)("a red circle").input_ids
