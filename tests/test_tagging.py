"""Parts of speech, and the three ways of masking captions; the tagger itself is measured on the offline world."""

import gzip
import json
import random
import sys
import types
from pathlib import Path

import pytest

from rtd_hf import tagging
from rtd_hf.shapes.captions import describe_scene
from rtd_hf.shapes.scenes import SHAPES, sample_scene
from rtd_hf.tagging import mask_keywords, mask_object, split_subject, tag
from rtd_hf.texts import clean_caption


COCO = Path(__file__).resolve().parents[2] / "shared" / "annotations" / "coco_captions" / "captions_val2017.json.gz"
TAGS = set("NOUN PROPN ADJ DET NUM VERB AUX ADP ADV PRON CCONJ SCONJ PART INTJ PUNCT X".split())


@pytest.fixture
def tags_are(monkeypatch):
    """Replaces the tagger by a dictionary from words to tags; words it does not know are verbs."""

    def use(**kinds):
        def tagging_words(text):
            return [(word, kinds.get(word, "PUNCT" if word in ",.!" else "VERB")) for word in text.split()]

        monkeypatch.setattr(tagging, "_remembered", lambda name: lambda text: tuple(tagging_words(text)))

    return use


def world_captions(number: int) -> list[str]:
    rng = random.Random("captions to tag")
    return [describe_scene(sample_scene(rng), rng) for _ in range(number)]


class TestTags:
    def test_words_of_a_caption(self):
        (words,) = tag(["Two large dogs are running to the old house in Paris, slowly."], tagger="hanta")
        kinds = "NUM ADJ NOUN AUX VERB ADP DET ADJ NOUN ADP PROPN PUNCT ADV PUNCT".split()
        assert [word for word, _ in words] == "two large dogs are running to the old house in paris , slowly .".split()
        wrong = [(word, kind, wanted) for (word, kind), wanted in zip(words, kinds, strict=True) if kind != wanted]
        assert wrong == []

    def test_every_tag_is_one_of_the_coarse_ones(self):
        found = {kind for words in tag(world_captions(300), tagger="hanta") for _, kind in words}
        assert {"NOUN", "ADJ", "DET", "ADP", "NUM"} <= found <= TAGS

    def test_the_words_are_those_of_the_cleaned_text(self):
        texts = ["A <PERSON>'s $5 hat; isn't it?", "black-and-white photo", "  Ünïcödé \n 日本 ", "", " $ ", "!!!"]
        for text, words in zip(texts, tag(texts, tagger="hanta"), strict=True):
            assert "".join(word for word, _ in words) == "".join(clean_caption(text).split())

    def test_sides_are_no_things_between_two_things(self):
        (words,) = tag(["a purple circle right of a blue square"], tagger="hanta")
        assert dict(words)["right"] == "ADV"
        (words,) = tag(["a circle on the right of a square"], tagger="hanta")
        assert dict(words)["right"] == "NOUN"

    def test_one_string_is_refused(self):
        with pytest.raises(TypeError, match=r"Wrap it: \[\.\.\.\]"):
            tag("a dog")

    def test_unknown_tagger(self):
        with pytest.raises(ValueError, match="`tagger` must be one of 'auto', 'spacy', 'hanta', but is 'nltk'"):
            tag(["a dog"], tagger="nltk")

    @pytest.mark.parametrize(("name", "module"), [("hanta", "HanTa.HanoverTagger"), ("spacy", "spacy")])
    def test_a_tagger_that_is_not_installed_is_named_with_its_command(self, monkeypatch, name, module):
        monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
        tagging._remembered.cache_clear()
        with pytest.raises(ImportError, match="pip install"):
            tag(["a dog"], tagger=name)

    def test_spacy_is_used_where_it_is(self, monkeypatch):
        loaded = []

        def load(name, disable):
            loaded.append(name)

            def word(text):
                return types.SimpleNamespace(text=text, pos_="PROPN", is_space=False)

            return lambda text: [word(part) for part in text.split()]

        monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load))
        monkeypatch.setattr(tagging, "_has_spacy", lambda: True)
        tagging._remembered.cache_clear()
        assert tag(["A dog"]) == [[("a", "PROPN"), ("dog", "PROPN")]]
        assert loaded == ["en_core_web_sm"]
        tagging._remembered.cache_clear()


class TestKeywords:
    def test_longest_runs_become_one_placeholder(self, tags_are):
        tags_are(a="DET", grey="ADJ", cat="NOUN", on="ADP", the="DET", sofa="NOUN", bob="PROPN", two="NUM")
        texts = ["A grey cat sits on the sofa", "two cat , bob", "cat"]
        assert mask_keywords(texts) == ["$ sits on $", "two $ , $", "$"]

    def test_without_keywords_one_word_drawn_by_seed_and_text(self, tags_are):
        tags_are()
        text = "runs , jumps and swims !"
        drawn = {seed: mask_keywords([text], seed=seed)[0] for seed in range(30)}
        assert set(drawn.values()) == {
            "$ , jumps and swims !",
            "runs , $ and swims !",
            "runs , jumps $ swims !",
            "runs , jumps and $ !",
        }
        assert all(mask_keywords(["jumps", text], seed=seed)[1] == masked for seed, masked in drawn.items())

    def test_without_words_a_prompt(self):
        assert mask_keywords(["", " $ ", "..."], tagger="hanta") == ["a photo of $"] * 3

    def test_a_placeholder_in_a_caption_is_no_placeholder(self, tags_are):
        tags_are(a="DET", hat="NOUN")
        assert mask_keywords(["a $ hat costs 5$"]) == ["$ costs 5"]


class TestObject:
    def test_the_head_of_the_first_noun_phrase(self, tags_are):
        tags_are(a="DET", the="DET", tall="ADJ", clock="NOUN", tower="NOUN", near="ADP", city="NOUN")
        assert mask_object(["a tall clock tower near the city"]) == ["a tall clock $ near the city"]

    @pytest.mark.parametrize(
        ("caption", "masked"),
        [
            ("a photo of a red star on grey", "a photo of a red $ on grey"),
            ("there is a little dog", "there is a little $"),
            ("a picture", "a $"),
        ],
    )
    def test_the_medium_is_not_the_object(self, caption, masked):
        assert mask_object([caption], tagger="hanta") == [masked]

    def test_without_nouns_one_word(self, tags_are):
        tags_are()
        assert {mask_object(["runs fast"], seed=seed)[0] for seed in range(20)} == {"$ fast", "runs $"}
        assert mask_object([""]) == ["a photo of $"]

    def test_the_shape_of_world_captions_is_found(self):
        captions = world_captions(1000)
        shapes = {form for shape in SHAPES for form in (shape, shape + "s", shape + "es")}
        right = 0
        for caption, masked in zip(captions, mask_object(captions, tagger="hanta"), strict=True):
            words = caption.split()
            first = next(word for word in words if word in shapes)
            words[words.index(first)] = "$"
            right += masked == " ".join(words)
        assert right > 0.98 * len(captions)


class TestSubject:
    def test_split_behind_the_first_noun(self, tags_are):
        tags_are(a="DET", grey="ADJ", cat="NOUN", tail="NOUN", on="ADP", sofa="NOUN")
        assert split_subject(["A grey cat sits on a sofa , sleeping ."]) == [("a grey cat", "sits on a sofa sleeping")]
        assert split_subject(["cat", "sits"]) == [("cat", ""), ("sits", "")]

    def test_what_the_prompt_says_anyway_is_left_out(self):
        captions = ["a photo of a dog with a long tail", "there is a bus"]
        assert split_subject(captions, tagger="hanta") == [("a dog", "a long tail"), ("a bus", "")]


@pytest.mark.skipif(not COCO.is_file(), reason=f"the captions are not at {COCO}")
def test_coco_captions_are_masked_sensibly():
    captions = [row["caption"] for row in json.loads(gzip.decompress(COCO.read_bytes()))["annotations"]]
    captions = random.Random(0).sample(captions, 300)
    masked = mask_keywords(captions, tagger="hanta")
    gaps = [line.split().count("$") for line in masked]
    assert 2 < sum(gaps) / len(gaps) < 4 and max(gaps) < 12
    # Captions start with what they show, which is a noun phrase nearly always.
    assert sum(line.startswith("$") for line in masked) > 0.75 * len(masked)
    subjects = [subject for subject, _ in split_subject(captions, tagger="hanta")]
    assert sum(len(subject.split()) <= 5 for subject in subjects) > 0.85 * len(subjects)
