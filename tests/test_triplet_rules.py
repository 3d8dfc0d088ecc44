"""Triplets by rules: the English of edits, the vocabulary and its similarities, every rule, and whole runs."""

import errno
import gzip
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rtd_hf.texts import clean_caption
from rtd_hf.triplets import GENERATORS, ROW_COLUMNS, RuleGenerator, RuleOptions, generate_triplets
from rtd_hf.triplets.faults import text_fault
from rtd_hf.triplets.processes import mapped
from rtd_hf.triplets.quality import consistency
from rtd_hf.triplets.rules import RULES, templates
from rtd_hf.triplets.rules import neighbours as neighbours_module
from rtd_hf.triplets.rules.categories import can_follow, category, means_the_same
from rtd_hf.triplets.rules.counting import count_corpus
from rtd_hf.triplets.rules.english import (
    COLOURS,
    MATERIALS,
    SIZE_WORDS,
    article,
    base_of_verb,
    is_plural,
    plural,
    singular,
)
from rtd_hf.triplets.rules.neighbours import corpus_embeddings, embed_keywords, similar_keywords
from rtd_hf.triplets.rules.phrases import Caption
from rtd_hf.triplets.rules.vocabulary import Counts, Keyword, Vocabulary, count_captions, keywords_of


COCO = Path(__file__).resolve().parents[2] / "shared/annotations/coco_captions/captions_val2017.json.gz"
NOUNS = "dog cat horse apple orange-tree hat box knife car plate umbrella bench street lamp tent puppy".split()
LETTERS = dict.fromkeys([*NOUNS, *map(plural, NOUNS), "catalogue", "man", "woman", "grass"], "N") | dict.fromkeys(
    ["sitting", "wearing", "sits", "holding", "runs", "stand", "parked", "covered"], "V"
)
LETTERS |= {"young": "J", "old": "J", "happy": "J"}
# What a caption may be given has to stand in the corpus.
LETTERS |= dict.fromkeys({*COLOURS, *MATERIALS, *SIZE_WORDS} - LETTERS.keys(), "J")
LETTERS |= dict.fromkeys({word for _, place in templates.PLACES for word in place.split()} - LETTERS.keys(), "X")


@pytest.fixture
def vocabulary():
    keywords = [Keyword(noun, 10, True, False, noun in ("car", "dog"), False) for noun in NOUNS]
    numbers = {noun: place for place, noun in enumerate(NOUNS)}
    pairs = {"dog": "cat", "cat": "dog", "car": "car", "apple": "apple", "hat": "hat", "tent": "umbrella"}
    neighbours = np.full((len(NOUNS), 1), -1, dtype=np.int32)
    for noun, other in pairs.items():
        if noun != other:
            neighbours[numbers[noun]] = numbers[other]
    company = {"dog": ["car", "bench"], "cat": ["lamp"], "man": ["bench"]}
    return Vocabulary(keywords, neighbours, letters=LETTERS, company=company)


def edited(rule, text, vocabulary, *, seed=0, swap=False, **options):
    more = {"all_of_them": True} if rule in ("replace", "change", "become") else {}
    return RULES[rule][0](Caption(text, LETTERS), vocabulary, random.Random(seed), swap=swap, **more | options)


class TestEnglish:
    @pytest.mark.parametrize(
        ("word", "wanted"),
        [("apple", "an"), ("dog", "a"), ("umbrella", "an"), ("unicycle", "a"), ("uniform", "a"), ("hour", "an"),
         ("european", "a"), ("one-eyed cat", "a"), ("honest man", "an"), ("utility truck", "a")],
    )  # fmt: skip
    def test_article(self, word, wanted):
        assert article(word) == wanted

    @pytest.mark.parametrize(
        ("one", "many"),
        [("dog", "dogs"), ("bus", "buses"), ("box", "boxes"), ("city", "cities"), ("boy", "boys"), ("knife", "knives"),
         ("woman", "women"), ("person", "people"), ("bench", "benches"), ("glass", "glasses"), ("shoe", "shoes"),
         ("house", "houses"), ("vase", "vases"), ("tomato", "tomatoes"), ("toothbrush", "toothbrushes"),
         ("traffic light", "traffic lights"), ("cookie", "cookies"), ("zebra", "zebras"), ("dress", "dresses"),
         ("tv", "tvs"), ("ski", "skis")],
    )  # fmt: skip
    def test_plural_and_back(self, one, many):
        assert plural(one) == many
        assert singular(many) == (one if one != "glass" else "glasses")  # those on a nose have no singular
        assert is_plural(many) and not is_plural(one)

    @pytest.mark.parametrize("word", ["bus", "glass", "tennis", "grass", "this", "gas"])
    def test_no_plural(self, word):
        assert singular(word) == word and not is_plural(word)

    @pytest.mark.parametrize(("verb", "base"), [("sits", "sit"), ("watches", "watch"), ("flies", "fly"), ("is", None)])
    def test_verbs(self, verb, base):
        assert base_of_verb(verb) == base


class TestCaption:
    def test_phrases(self):
        caption = Caption("Two dogs and  a young cat\nsitting on the old bench.", LETTERS)
        assert caption.text == "Two dogs and a young cat sitting on the old bench."
        assert [(one.determiner, one.modifiers, one.noun, one.plural) for one in caption.phrases] == [
            ("two", (), "dogs", True), ("a", ("young",), "cat", False), ("the", ("old",), "bench", False)]  # fmt: skip

    def test_what_is_not_sure_is_no_phrase(self):
        assert Caption("a dog flurble on grass", LETTERS).phrases[0].noun == "grass"
        assert [one.noun for one in Caption("the front of a dog", LETTERS).phrases] == ["dog"]
        assert [one.noun for one in Caption("a dog covered bench", LETTERS).phrases] == ["bench"]

    @pytest.mark.parametrize(
        ("text", "new", "wanted"),
        [
            ("a dog on a catalogue", "apple", "an apple on a catalogue"),
            ("An apple on grass", "dog", "A dog on grass"),
            ("Apple on grass.", "dog", "Dog on grass."),
            ("A DOG ON GRASS", "apple", "AN APPLE ON GRASS"),
        ],
    )
    def test_article_and_capital(self, text, new, wanted):
        caption = Caption(text, LETTERS)
        phrase = caption.phrases[0]
        assert caption.edited([(phrase.nouns, phrase.end, new)]) == wanted

    def test_appended(self):
        assert Caption("A dog.", LETTERS).appended("nearby") == "A dog nearby."
        assert Caption("A DOG", LETTERS).appended(", drawn") == "A DOG, DRAWN"


class TestRules:
    @pytest.mark.parametrize("rule", ["replace", "change", "become"])
    def test_noun(self, rule, vocabulary):
        choices = [*getattr(templates, rule.upper()), *templates.UNNAMED]
        said = set()
        for seed in range(60):
            edit = edited(rule, "A dog on a catalogue near the dog.", vocabulary, seed=seed)
            assert edit.target == "A cat on a catalogue near the cat."  # not: a doguelogue
            assert (edit.source, edit.new) == ("dog", "cat")
            many = edited(rule, "Two dogs near dogs.", vocabulary, seed=seed)
            assert (many.target, many.source, many.new) == ("Two cats near cats.", "dogs", "cats")
            said |= {edit.conditioning, many.conditioning}
            # One text cannot ask for "a cat" and for "cats", nor for two cats one by one.
            assert edited(rule, "A dog and two dogs", vocabulary, seed=seed) is None
            assert edited(rule, "A dog and another dog", vocabulary, seed=seed) is None
        filled = {
            template.format(s=s, t=t, is_s=is_, was_s=was, has_s=has, is_t=is_, was_t=was, has_t=has)
            for template in choices
            for s, t, is_, was, has in (("dog", "a cat", "is", "was", "has"), ("dogs", "cats", "are", "were", "have"))
        }
        assert said <= filled and len(said) > 5

    def test_first_occurrence(self, vocabulary):
        edit = edited("change", "a dog and a dog", vocabulary, all_of_them=False)
        assert sorted((edit.target.count("dog"), edit.target.count("cat"))) == [1, 1]

    def test_swap_reads_backwards(self, vocabulary):
        edit = edited("change", "An old tent on grass", vocabulary, swap=True)
        assert edit[0] == "An umbrella on grass" and edit.target == "An old tent on grass"
        assert (edit.source, edit.new) == ("umbrella", "old tent")
        assert "umbrella" in edit.conditioning and "an old tent" in edit.conditioning

    def test_noun_in_an_unsure_place_stays(self, vocabulary):
        assert edited("change", "a dog and a dog flurble", vocabulary) is None

    @pytest.mark.parametrize(
        "text",
        [
            "a covered dog",  # what is covered may be no cat
            "a sitting dog",
            "a herd of dog",  # "a herd of cat"
            "two dog on grass",
            "these dog",
            "a dogs",
            "a hot dog on a plate",
            "a dog like bench",
            "a very happy dog",  # "a very cat"
            'a catalogue that reads "dog"',
            'a dog "catalogue" bench',
            "the over happy dog",
            "another dog",
            "a catalogue next to dog",  # "a catalogue next to orange"
        ],
    )
    def test_noun_that_would_not_fit_stays(self, text, vocabulary):
        for seed in range(20):
            for rule in ("replace", "change", "become"):
                edit = edited(rule, text, vocabulary, seed=seed)
                assert edit is None or "dog" in edit.target, edit

    def test_pronouns_keep_their_noun(self, vocabulary):
        assert edited("change", "a dog holding its plate", vocabulary) is None

    def test_add_and_remove(self, vocabulary):
        found = set()
        for seed in range(60):
            edit = edited("add", "A dog on the street.", vocabulary, seed=seed)
            back = edited("add", "A dog on the street.", vocabulary, seed=seed, swap=True)
            assert edit.target.startswith("A dog on the street with a") and edit.target.endswith(".")
            assert back.reference == edit.target and back.target == edit.reference
            assert edit.new in edit.target and edit.new in edit.conditioning and not edit.source
            found.add(edit.new.split()[-1])
        assert found == {"car", "bench"}

    def test_remove_ending(self, vocabulary):
        edit = edited("remove", "A dog with a hat.", vocabulary)
        assert edit.target == "A dog." and edit.source == "hat" and "hat" in edit.conditioning
        assert edited("remove", "A dog with a hat.", vocabulary, swap=True).reference == "A dog."
        # Without its end such a sentence says another thing, or nothing.
        for text in ("a dog sitting with a hat", "a street between a dog and a hat", "a man playing with a hat"):
            assert edited("remove", text, vocabulary) is None

    @pytest.mark.parametrize(
        ("text", "pattern"),
        [
            ("A dog is sitting on grass", r"(Two|Three|Four|Five) dogs are sitting on grass"),
            ("a dog sits on grass", r"(two|three|four|five) dogs sit on grass"),
            ("two dogs on grass", r"(three|four|five) dogs on grass"),
            ("a man holding an apple", r"a man holding (two|three|four|five) apples"),
        ],
    )
    def test_count(self, text, pattern, vocabulary):
        edits = [edited("count", text, vocabulary, seed=seed) for seed in range(40)]
        assert all(re.fullmatch(pattern, edit.target) for edit in edits)
        assert len({edit.target for edit in edits}) > 2
        assert all(edit.new.split()[0] in edit.conditioning for edit in edits)

    @pytest.mark.parametrize(
        "text",
        [
            "a dog on the street is sitting",
            "a man sitting on a bench",
            "a dog and his hat",
            "a man with a dog runs",
            "a horse and man on grass",
            "a dog, cat and horse on grass",
        ],
    )
    def test_no_count_where_agreement_is_not_sure(self, text, vocabulary):
        for seed in range(20):
            assert edited("count", text, vocabulary, seed=seed) is None

    def test_attribute(self, vocabulary):
        for seed in range(40):
            edit = edited("attribute", "an orange plate", vocabulary, seed=seed)
            colour = edit.new.split()[0]
            assert edit.target == f"{article(colour)} {colour} plate" and colour in edit.conditioning != "orange"
            assert colour != "orange"
            bare = edited("attribute", "a dog on grass", vocabulary, seed=seed)
            assert re.fullmatch(r"an? \w+ dog on grass", bare.target)
        assert edited("attribute", "a black and white plate", vocabulary) is None
        assert edited("attribute", "a black & white plate", vocabulary) is None
        assert edited("attribute", "a plate near Big Plate", vocabulary) is None  # a name
        assert edited("attribute", "a street with no dog", vocabulary) is None
        assert {edited("attribute", "a wooden bench", vocabulary, seed=seed).new.split()[0] for seed in range(60)} == {
            "metal", "plastic", "glass", "stone", "leather", "paper", "ceramic"}  # fmt: skip

    def test_move(self, vocabulary):
        edit = edited("move", "A dog sitting on the street.", vocabulary)
        place = next(f"{joint} {place}" for joint, place in templates.PLACES if place in edit.target)
        assert edit.target == f"A dog sitting {place}." and edit.source == "the street"
        edit = edited("move", "A dog.", vocabulary, seed=1)
        assert re.fullmatch(r"A dog (in|on|at) (a|an|the) [\w ]+\.", edit.target)
        assert edited("move", "A dog has a hat.", vocabulary) is None
        for seed in range(300):
            edit = edited("move", "A dog sitting on the street.", vocabulary, seed=seed, swap=bool(seed % 2))
            assert edit is None or not re.search(r"(?<!in )the (rain|snow)", edit.conditioning)

    def test_style(self, vocabulary):
        targets = {edited("style", "A dog on grass", vocabulary, seed=seed).target for seed in range(400)}
        assert "A watercolor painting of a dog on grass" in targets
        assert "A dog on grass, painted in watercolor" in targets
        assert edited("style", "A dog is sitting", vocabulary).target.startswith("A dog is sitting, ")
        assert edited("style", "a photo of a dog", vocabulary) is None
        asked = {edited("style", "A dog on grass", vocabulary, seed=seed, swap=True) for seed in range(400)}
        assert all(("color photo" in one.conditioning) == ("black" in one.source) for one in asked)

    def test_negation(self, vocabulary):
        assert edited("negation", "A dog with a hat.", vocabulary).target == "A dog without a hat."
        assert edited("negation", "A dog with a hat.", vocabulary, swap=True).reference == "A dog without a hat."
        assert edited("negation", "A dog with a hat, a box and a lamp", vocabulary) is None
        assert edited("negation", "The dog is sitting", vocabulary).target == "The dog is not sitting"
        assert re.fullmatch(
            r"A dog on the street with no (cars|benches) (around|in sight|nearby)",
            edited("negation", "A dog on the street", vocabulary).target,
        )

    def test_nothing_alive_is_denied_beside_what_is(self, vocabulary):
        """`a man skiing with no skiers around` contradicts itself."""
        vocabulary.company["plate"] = ["cat"]
        vocabulary.company["box"] = ["cat"]
        for seed in range(20):
            assert edited("negation", "a man flurble near a box", vocabulary, seed=seed) is None
            assert "cats" in edited("negation", "a plate near a box", vocabulary, seed=seed).target

    def test_every_template_fills(self, vocabulary):
        """Each rule in many draws, over all templates: no slot is left, nothing doubled."""
        texts = ("A dog with a red hat.", "two dogs on the street", "A dog is sitting on a bench", "A large car")
        for name in RULES:
            for text in texts:
                for seed in range(80):
                    edit = edited(name, text, vocabulary, seed=seed, swap=bool(seed % 2))
                    for part in edit[:3] if edit else ():
                        assert "{" not in part and "  " not in part and " a a " not in part and part.strip() == part
                        assert text_fault(part) is None


@pytest.mark.parametrize(
    ("noun", "other", "same"),
    [
        ("couch", "sofa", True), ("child", "kid", True), ("canoe", "boat", True), ("swan", "bird", True),
        ("passenger train", "locomotive", True), ("tennis player", "person", True), ("park", "skate park", True),
        ("tennis player", "baseball player", False), ("dog", "cat", False), ("man", "woman", False),
        ("boy", "girl", False), ("boat", "train", False), ("swan", "duck", False), ("man", "boy", False),
    ],
)  # fmt: skip
def test_exchanges_that_say_nothing(noun, other, same):
    assert means_the_same(noun, other) == means_the_same(other, noun) == same


def test_nouns_follow_their_preposition():
    assert can_follow("sits on", "plate") and not can_follow("sits in", "plate") and not can_follow("on", "bowl")
    assert can_follow("sitting at", "desk") and not can_follow("sitting at", "shelf")
    assert (
        can_follow("herd of", "cow") and not can_follow("herd of", "seagull") and can_follow("picture of", "seagull")
    )
    assert (
        can_follow("glass of", "wine") and not can_follow("glass of", "bread") and not can_follow("plate of", "wine")
    )
    assert can_follow("in", "hotel room") and not can_follow("in", "train platform")
    assert can_follow("on", "beach") and not can_follow("on", "kitchen") and can_follow("near", "kitchen")
    assert can_follow("in", "field") and can_follow("on", "field")
    assert can_follow("down", "city street") and not can_follow("down", "intersection")


@pytest.mark.parametrize("known", [("red", "teal"), ("red", "green", "blue")])
def test_attributes_and_places_are_those_of_the_corpus(vocabulary, known):
    words = {word: "X" for word in ("a", "the", "dog", "in", "snow", "is", *known)}
    vocabulary.letters = words
    made = [edited("attribute", "a red dog", vocabulary, seed=seed) for seed in range(60)]
    targets = {edit.target for edit in made if edit}
    assert targets == {f"a {colour} dog" for colour in known[1:] if colour in COLOURS}
    made = [edited("move", "a red dog", vocabulary, seed=seed) for seed in range(200)]
    assert {edit.target for edit in made if edit} == {"a red dog in the snow"}


class TestVocabulary:
    CAPTIONS = ["a dog on the grass", "a dog and a cat", "two cats on grass", "a snow covered bench", "a red dog",
                "a cat on a bench", "the dog by a bench", "grass and a bench", "red grass"]  # fmt: skip

    def test_counts(self, monkeypatch):
        kinds = {"a": "DET", "the": "DET", "two": "NUM", "on": "ADP", "by": "ADP", "and": "CCONJ", "red": "ADJ",
                 "covered": "VERB"}  # fmt: skip
        tagged = lambda texts, **_: [[(w, kinds.get(w, "NOUN")) for w in text.split()] for text in texts]  # noqa: E731
        monkeypatch.setattr("rtd_hf.triplets.rules.vocabulary.tag", tagged)
        counts = count_captions(self.CAPTIONS)
        halves = count_captions(self.CAPTIONS[:4])
        halves.add(count_captions(self.CAPTIONS[4:]))
        assert halves == counts
        assert {frame: counts.nouns["dog", frame] for frame in ("a", "the", "colour")} == {
            "a": 3,
            "the": 1,
            "colour": 1,
        }
        assert counts.nouns["cat", "plural"] == 1 and ("snow", "a") not in counts.nouns
        found = {one.noun: one for one in keywords_of(counts, min_count=2)}
        assert found["dog"].countable and found["cat"].countable and not found["grass"].countable
        assert found["grass"].mass and not found["dog"].mass
        assert [one.noun for one in keywords_of(counts, min_count=2, max_keywords=1)] == ["bench"]

    def test_corpus_embeddings_are_ppmi(self, monkeypatch):
        monkeypatch.setattr(neighbours_module, "_ROWS", 1)
        contexts = {("dog", "< a"): 6, ("dog", "> runs"): 2, ("cat", "< a"): 4, ("cat", "> sits"): 4}
        keywords = [Keyword(noun, 1, True, False, False, False) for noun in ("dog", "cat")]
        found = corpus_embeddings(Counts(contexts=Counter(contexts)), keywords)
        columns = ("< a", "> sits", "> runs")  # by frequency
        sums = {"< a": 10, "> sits": 4, "> runs": 2}
        weight = sum(value**0.75 for value in sums.values())
        for row, noun in enumerate(("dog", "cat")):
            for column, context in enumerate(columns):
                joint = contexts.get((noun, context), 0) / 16
                wanted = max(0, np.log(joint / (8 / 16 * sums[context] ** 0.75 / weight))) if joint else 0
                assert found[row, column] == pytest.approx(wanted, abs=1e-6)

    @pytest.fixture
    def words(self):
        names = [f"thing{number:02d}" for number in range(57)]
        embeddings = np.random.default_rng(0).normal(size=(57, 4)).astype(np.float32)
        return [Keyword(name, 1, True, False, False, False) for name in names], embeddings

    @pytest.mark.parametrize("quantile", [False, True])
    def test_band_against_brute_force(self, words, quantile):
        keywords, embeddings = words
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        cosines = unit @ unit.T
        band = (0.8, 0.9) if quantile else (0.5, 0.7)
        found = similar_keywords(embeddings, keywords, band=band, quantile=quantile, number=57)
        for row in range(57):
            others = np.delete(cosines[row], row)
            low, high = band
            if quantile:
                ranked = np.sort(others)
                low, high = ranked[int(np.floor(0.8 * 55))], ranked[int(np.ceil(0.9 * 55))]
            wanted = {other for other in range(57) if other != row and low <= cosines[row, other] <= high}
            assert {other for other in found[row] if other >= 0} == wanted

    @pytest.mark.parametrize("options", [{"band": (0.2, 0.9), "quantile": False},
                                         {"band": (0.4, 0.9), "quantile": True},
                                         {"band": (0.4, 0.9), "quantile": True, "sample": 20}])  # fmt: skip
    def test_blocks_change_nothing(self, words, options, monkeypatch):
        keywords, embeddings = words
        options |= {"number": 5, "seed": 3}
        whole = similar_keywords(embeddings, keywords, **options)
        for rows, stretch in ((7, 8), (1, 16), (57, 57), (20, 400)):
            monkeypatch.setattr(neighbours_module, "_MEMORY", 4 * 57 * rows)
            monkeypatch.setattr(neighbours_module, "_ROWS", rows)
            monkeypatch.setattr(neighbours_module, "_STRETCH", stretch)
            assert np.array_equal(similar_keywords(embeddings, keywords, **options), whole)
        assert not np.array_equal(similar_keywords(embeddings, keywords, **options | {"seed": 4}), whole)

    def test_drawn_are_the_first_behind_in_a_circle(self, monkeypatch):
        """Of every category its own circle, in an order by seed and word; parts of words are passed over."""
        names = [*NOUNS, *(f"red {noun}" for noun in NOUNS), *(f"oddity{letter}" for letter in "abcdefgh")]
        keywords = [Keyword(name, 1, True, False, False, False) for name in names]
        unit = np.random.default_rng(1).normal(size=(len(names), 3)).astype(np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        monkeypatch.setattr(neighbours_module, "_ROWS", 5)
        found = similar_keywords(unit, keywords, band=(-0.5, 0.9), quantile=False, number=3, seed=5)
        digest = lambda name: hashlib.blake2b(f"5 {name}".encode(), digest_size=8).digest()  # noqa: E731
        order = sorted(range(len(names)), key=lambda place: digest(names[place]))
        for place, name in enumerate(names):
            behind = order[order.index(place) + 1 :] + order[: order.index(place)]
            wanted = [
                other for other in behind
                if category(names[other]) == category(name) and -0.5 <= unit[other] @ unit[place] <= 0.9
                and not set(names[other].split()) <= set(name.split())
                and not set(name.split()) <= set(names[other].split())]  # fmt: skip
            assert [other for other in found[place] if other >= 0] == wanted[:3]
        assert (found >= 0).all(1).sum() > 10  # the limit matters

    def test_draw_is_fair(self, words):
        """Over the seeds each of the others in the band comes equally often."""
        keywords, _ = words
        drawn = Counter()
        for seed in range(400):
            found = similar_keywords(
                np.ones((12, 2)), keywords[:12], band=(0.9, 1.1), quantile=False, number=2, seed=seed
            )
            drawn.update((row, other) for row in range(12) for other in found[row].tolist())
        assert len(drawn) == 12 * 11 and sum(drawn.values()) == 12 * 2 * 400
        expected = 400 * 2 / 11
        assert sum((times - expected) ** 2 / expected for times in drawn.values()) < 190  # chi square, 0.1 %: 178

    def test_quantiles_of_a_sample(self):
        """With the others drawn by hand: the first in the order of the circle, the keyword itself never among them."""
        rng = np.random.default_rng(2)
        keywords = [Keyword(f"thing{number:03d}", 1, True, False, False, False) for number in range(300)]
        unit = rng.normal(size=(300, 6)).astype(np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        cosines = unit @ unit.T
        found = similar_keywords(unit, keywords, band=(0.6, 0.8), quantile=True, number=300, sample=50)
        digest = lambda row: hashlib.blake2b(f"0 {keywords[row].noun}".encode(), digest_size=8).digest()  # noqa: E731
        drawn = sorted(range(300), key=digest)[:50]
        for row in range(300):
            ranked = np.sort(cosines[row, [other for other in drawn if other != row]])
            low, high = ranked[int(0.6 * (len(ranked) - 1))], ranked[int(np.ceil(0.8 * (len(ranked) - 1)))]
            wanted = {
                other for other in range(300) if other != row and low - 1e-6 <= cosines[row, other] <= high + 1e-6
            }
            assert {other for other in found[row].tolist() if other >= 0} == wanted

    @pytest.mark.parametrize("shape", ["normal", "sorted", "ties"])
    def test_values_at_ranks(self, shape):
        values = np.random.default_rng(3).normal(size=50_000).astype(np.float32)
        if shape == "sorted":
            values = np.sort(values)
            values[::6] = 9.0  # the sample sees nothing but these
        if shape == "ties":
            values = np.round(values)
        for ranks in ((0, 49_999), (47_500, 49_900), (25_000, 25_001), (49_998, 49_999)):
            assert np.array_equal(neighbours_module._at_ranks(values, ranks), np.sort(values)[list(ranks)])

    def test_categories_and_parts_of_words_are_kept_apart(self):
        names = ["dog", "cat", "hat", "black dog", "bath room", "bathroom", "frisbe", "frisbee"]
        keywords = [Keyword(name, 1, True, False, False, False) for name in names]
        found = similar_keywords(np.ones((8, 2)), keywords, band=(0.9, 1.1), quantile=False)
        assert [[names[other] for other in sorted(row) if other >= 0] for row in found] == [
            ["cat"], ["dog", "black dog"], [], ["cat"], [], [], [], []]  # fmt: skip
        assert category("fire truck") == "vehicle" and category("fireman") == "animate" and category("thing") is None

    @pytest.mark.parametrize(("band", "quantile"), [((0.7, 0.5), False), ((0.5, 1.2), True)])
    def test_wrong_band(self, words, band, quantile):
        with pytest.raises(ValueError, match="similarity band"):
            similar_keywords(words[1], words[0], band=band, quantile=quantile)
        with pytest.raises(ValueError, match="`sample` must be 0"):
            similar_keywords(words[1], words[0], band=(0.5, 0.7), quantile=True, sample=1)

    def test_encoder_that_fails(self, words):
        with pytest.raises(ValueError, match="not finite"):
            similar_keywords(np.full((57, 2), np.nan), words[0], band=(0.5, 0.7), quantile=False)
        seen = []
        embeds = embed_keywords(
            words[0], lambda texts: seen.append(len(texts)) or np.ones((len(texts), 3)), batch_size=50
        )
        assert embeds.shape == (57, 3) and seen == [50, 7]


def world_captions(number):
    from rtd_hf.shapes.pairs import SceneCaptions

    scenes = SceneCaptions(number)
    return [scenes[index]["caption"] for index in range(number)]


@pytest.fixture(scope="module")
def captions():
    return world_captions(400)


def rules(**options):
    return RuleGenerator(RuleOptions(min_count=2, **options), seed=7)


class TestWorkers:
    def test_same_counts_for_any_number(self, captions, monkeypatch):
        monkeypatch.setattr("rtd_hf.triplets.rules.counting._AT_ONCE", 30)
        given = [None, "", *captions[:200], "собака", *captions[200:]]
        alone, shared = (count_corpus(iter(given), workers=workers) for workers in (1, 3))
        assert alone == shared and alone.captions == 400
        for name in ("tags", "nouns", "contexts"):  # in the same order too, or files would differ
            assert list(getattr(alone, name).items()) == list(getattr(shared, name).items())
        assert count_corpus(given, most=77, workers=2) == count_captions(
            [clean_caption(text) for text in captions[:77]]
        )

    def test_same_vocabulary_for_any_number(self, captions, tmp_path, monkeypatch):
        monkeypatch.setattr("rtd_hf.triplets.rules.counting._AT_ONCE", 50)
        for workers in (1, 2):
            (tmp_path / str(workers)).mkdir()
            rules().prepare(captions, folder=tmp_path / str(workers), workers=workers)
        for name in ("vocabulary.json", "neighbours.npy"):
            assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()

    def test_input_is_read_as_it_is_needed(self):
        read = []
        with mapped(abs, 2) as results:
            first = next(results(read.append(number) or -number for number in range(1000)))
        assert first == 0 and len(read) < 10

    def test_killed_process(self):
        with pytest.raises(ChildProcessError, match="Use fewer `workers`"), mapped(os._exit, 2) as results:
            list(results([1]))


def alive(session):
    """The processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(number) == session and state != "Z":
            found.append(path.parent.name)
    return found


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_the_way_of_datasets(captions):
    """`Dataset.map` over processes and a streamed `map` make what the generator makes."""
    from datasets import Dataset

    generator = rules()
    with tempfile.TemporaryDirectory() as folder:
        generator.prepare(captions, folder=Path(folder))
        expected = list(generator.generate(enumerate(captions)))
        dataset = Dataset.from_dict({"caption": list(captions), "other": [0] * len(captions)})
        options = {"input_columns": "caption", "with_indices": True, "batched": True}
        options |= {"remove_columns": dataset.column_names, "batch_size": 100}
        streamed = dataset.to_iterable_dataset().map(generator.map_batch, **options)
        assert list(streamed) == expected and len(expected) > len(captions)
        assert dataset.map(generator.map_batch, num_proc=2, **options).to_list() == expected


class TestRuns:
    def test_same_file_for_any_workers_and_blocks(self, captions, tmp_path, monkeypatch):
        monkeypatch.setattr("rtd_hf.triplets.writing._BATCH", 40)
        done = [
            generate_triplets(rules(), captions, tmp_path / f"{number}.jsonl", workers=workers, block_size=block)
            for number, (workers, block) in enumerate([(1, 20_000), (2, 1000), (1, 60)])
        ]
        contents = {made.path.read_bytes() for made in done}
        assert len(contents) == 1 and len(next(iter(contents))) > 10_000
        assert len({(made.rows, made.captions, tuple(sorted(made.skipped.items()))) for made in done}) == 1
        rows = [json.loads(line) for line in done[0].path.read_text().splitlines()]
        assert all(tuple(row) == ROW_COLUMNS for row in rows) and len(rows) == done[0].rows
        assert [row["caption_row"] for row in rows] == sorted(row["caption_row"] for row in rows)
        other = RuleGenerator(RuleOptions(min_count=2), seed=8)
        assert generate_triplets(other, captions, tmp_path / "other.jsonl").path.read_bytes() not in contents

    def test_killed_run_goes_on(self, captions, tmp_path, monkeypatch):
        whole = generate_triplets(rules(), captions, tmp_path / "whole.parquet", block_size=100)
        generator, tagged = rules(), []
        plain = RuleGenerator.generate

        def dies(self, block):
            block = list(block)
            if block[0][0] >= 200:
                raise KeyboardInterrupt
            return plain(self, block)

        with monkeypatch.context() as patch:
            patch.setattr(RuleGenerator, "generate", dies)
            with pytest.raises(KeyboardInterrupt):
                generate_triplets(generator, captions, tmp_path / "cut.parquet", block_size=100)
        assert (
            not (tmp_path / "cut.parquet").exists() and len(list((tmp_path / "cut.parquet.parts").glob("part*"))) == 2
        )
        with pytest.raises(ValueError, match="unfinished run with other arguments"):
            generate_triplets(rules(swap=0.9), captions, tmp_path / "cut.parquet", block_size=100)
        monkeypatch.setattr("rtd_hf.triplets.rules.generator.count_corpus", lambda *args, **_: tagged.append(args))
        made = generate_triplets(rules(), captions, tmp_path / "cut.parquet", block_size=100)
        assert made.path.read_bytes() == whole.path.read_bytes() and made[1:] == whole[1:]
        assert not tagged and not (tmp_path / "cut.parquet.parts").exists()

    def test_full_disk_loses_nothing(self, captions, tmp_path, monkeypatch):
        whole = generate_triplets(rules(), captions, tmp_path / "whole.jsonl", block_size=100)
        sync, calls = os.fsync, []

        def full(descriptor):
            calls.append(descriptor)
            if len(calls) > 8:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                generate_triplets(rules(), captions, tmp_path / "full.jsonl", block_size=100)
        assert not (tmp_path / "full.jsonl").exists() and not list(tmp_path.rglob("*.tmp"))
        made = generate_triplets(rules(), captions, tmp_path / "full.jsonl", block_size=100)
        assert made.path.read_bytes() == whole.path.read_bytes()

    @pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="processes are looked for in /proc")
    def test_kill_loses_nothing(self, tmp_path):
        """A real SIGKILL: its processes end too, and the next run makes the same file."""
        code = (
            "import sys; from test_triplet_rules import generate_triplets, rules, world_captions; "
            "made = generate_triplets(rules(), world_captions(1600), sys.argv[1], workers=2, block_size=200)"
        )
        tests = str(Path(__file__).parent)
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, str(Path(tests).parent)])}
        command = [sys.executable, "-c", code]
        parts = tmp_path / "cut.parquet.parts"
        with subprocess.Popen([*command, str(tmp_path / "cut.parquet")], env=paths, start_new_session=True) as process:
            wait_for(lambda: len(list(parts.glob("part-*.parquet"))) > 1 and len(alive(process.pid)) > 2)
            process.kill()
        assert not (tmp_path / "cut.parquet").exists()
        wait_for(lambda: not alive(process.pid))
        made = generate_triplets(rules(), world_captions(1600), tmp_path / "cut.parquet", block_size=200)
        whole = generate_triplets(rules(), world_captions(1600), tmp_path / "whole.parquet")
        assert made.path.read_bytes() == whole.path.read_bytes() and made[1:] == whole[1:]
        assert not parts.exists()

    @pytest.mark.parametrize("size", [600, 5_000, 60_000])
    def test_write_that_fails_half_way(self, captions, size, tmp_path):
        """No file may grow beyond so many bytes: first the vocabulary fails, then the output."""
        resource = pytest.importorskip("resource")  # of POSIX
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                generate_triplets(rules(), captions, tmp_path / "full.jsonl", block_size=100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not (tmp_path / "full.jsonl").exists() and not list(tmp_path.rglob("*.tmp"))
        made = generate_triplets(rules(), captions, tmp_path / "full.jsonl", block_size=100)
        whole = generate_triplets(rules(), captions, tmp_path / "whole.jsonl", block_size=100)
        assert made.path.read_bytes() == whole.path.read_bytes()

    @pytest.mark.parametrize("workers", [1, 2])
    def test_bad_captions_are_counted(self, captions, workers, tmp_path):
        bad = [None, "", "  ", "<b>a dog</b>", "a dog 🐶", "ein Hund auf dem Rasen", "собака на траве",
               "a dog\x07 on grass", "word " * 2000, "a\x00b", "a \ud83d dog", "x" * 10_000,
               "a photo of $", "12345", "https://a.b/c a dog", "a nude dog"]  # fmt: skip
        made = generate_triplets(rules(), [*captions, *bad], tmp_path / "out.jsonl", workers=workers)
        wanted = {"missing": 1, "empty": 2, "markup": 2, "not Latin script": 2, "not English": 1, "too long": 2,
                  "control characters": 3, "placeholder": 1, "no words": 1, "unsafe": 1}  # fmt: skip
        assert {reason: made.skipped[reason] for reason in wanted} == wanted
        assert made.captions == 416
        clean = generate_triplets(rules(), captions, tmp_path / "clean.jsonl")
        assert clean.path.read_bytes() == made.path.read_bytes()

    def test_line_breaks_and_blanks(self, captions, tmp_path):
        ragged = [f"  {text.replace(' ', chr(10), 1)}\t" for text in captions]
        made = generate_triplets(rules(), ragged, tmp_path / "ragged.jsonl")
        plain = generate_triplets(rules(), captions, tmp_path / "plain.jsonl")
        assert made.path.read_bytes() == plain.path.read_bytes()

    @pytest.mark.parametrize("corpus", [["dog"] * 50, ["the"], [None, ""], []])
    def test_corpus_without_nouns_to_exchange(self, corpus, tmp_path):
        with pytest.raises(ValueError, match="(no noun|No triplet could be made)"):
            generate_triplets(rules(), corpus, tmp_path / "out.jsonl")
        assert not (tmp_path / "out.jsonl").exists()

    def test_second_try_with_other_options(self, tmp_path):
        corpus = ["a dog on the street", "a dog and a lamp", "a lamp on the street"]
        with pytest.raises(ValueError, match="or lower `min_count`"):
            generate_triplets(RuleGenerator(RuleOptions(min_count=9)), corpus, tmp_path / "out.jsonl")
        assert generate_triplets(rules(), corpus, tmp_path / "out.jsonl").rows > 0

    def test_output_is_not_overwritten(self, captions, tmp_path):
        (tmp_path / "out.jsonl").write_text("mine")
        with pytest.raises(FileExistsError, match="nothing was changed"):
            generate_triplets(rules(), captions, tmp_path / "out.jsonl")
        with pytest.raises(ValueError, match=r"must end in \.parquet or \.jsonl"):
            generate_triplets(rules(), captions, tmp_path / "out.xlsx")
        with pytest.raises(TypeError, match="read twice"):
            generate_triplets(rules(), iter(captions), tmp_path / "new.jsonl")

    def test_weights_choose_the_rules(self, captions, tmp_path):
        alone = "{" + ", ".join(f"{name}: {int(name == 'attribute')}" for name in RULES) + "}"
        made = generate_triplets(rules(weights=alone), captions, tmp_path / "out.jsonl")
        assert {json.loads(line)["rule"] for line in made.path.read_text().splitlines()} == {"attribute"}

    def test_similarity_of_an_encoder(self, captions, tmp_path):
        asked = []

        def encode(texts):
            asked.extend(texts)
            return np.array([[len(text), 1.0] for text in texts])

        generator = RuleGenerator(RuleOptions(min_count=2, sim_min=0.0, sim_max=1.0), encode=encode)
        generator.prepare(captions, folder=tmp_path)
        assert asked == [keyword.noun for keyword in generator.vocabulary.keywords]

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"weights": "{stile: 1}"}, "unknown rule `stile`"), ({"weights": "[1]"}, "must read like"),
         ({"weights": "{style: -1}"}, "must not be negative"), ({"swap": 2}, "`swap`"),
         ({"occurrences": "some"}, "`occurrences`"), ({"triplets_per_caption": 0}, "`triplets_per_caption`")],
    )  # fmt: skip
    def test_wrong_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            RuleOptions(**options)
        assert GENERATORS["rules"] is RuleGenerator
        with pytest.raises(TypeError, match="RuleOptions"):
            RuleGenerator({"swap": 1})

    def test_unprepared(self):
        with pytest.raises(ValueError, match="Call `prepare`"):
            list(RuleGenerator().generate([(0, "a dog")]))


@pytest.mark.skipif(not COCO.is_file(), reason="the COCO captions are not beside the repository")
def test_real_captions(tmp_path):
    """What a reader of the whole set would stumble on, on every tenth of the real captions."""
    with gzip.open(COCO) as file:
        captions = [entry["caption"] for entry in json.load(file)["annotations"]][::10]
    generator = RuleGenerator(RuleOptions(triplets_per_caption=6))
    generator.prepare(captions, folder=tmp_path)
    rows = list(generator.generate(enumerate(captions)))
    assert len(rows) > 4.5 * len(captions)
    assert {row["rule"] for row in rows} == set(RULES)
    for row in rows:
        own = re.sub(r" +([.,!?])", r"\1", clean_caption(captions[row["caption_row"]]))
        assert own in (clean_caption(row["reference_caption"]), clean_caption(row["target_caption"]))
        assert clean_caption(row["reference_caption"]) != clean_caption(row["target_caption"])
        # An article that the caption did not hold wrongly itself agrees.
        wrong = re.findall(r"\b(?:a [aeio]\w+|an [bcdfgjklmnpqrstvwxyz]\w+)", row["target_caption"].lower())
        assert all(pair in own or pair.startswith(("a one", "a eu")) for pair in wrong), row
    good = [all(v for k, v in consistency(row).items() if not k.startswith("names")) for row in rows]
    assert np.mean(good) > 0.98
