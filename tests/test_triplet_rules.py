"""Triplets by rules: the English of edits, the vocabulary and its similarities, every rule, and whole runs."""

import errno
import gzip
import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rtd_hf.texts import clean_caption
from rtd_hf.triplets import GENERATORS, ROW_COLUMNS, RuleGenerator, RuleOptions, generate_triplets
from rtd_hf.triplets.faults import text_fault
from rtd_hf.triplets.quality import consistency
from rtd_hf.triplets.rules import RULES, templates
from rtd_hf.triplets.rules import neighbours as neighbours_module
from rtd_hf.triplets.rules.categories import category
from rtd_hf.triplets.rules.english import article, base_of_verb, is_plural, plural, singular
from rtd_hf.triplets.rules.neighbours import corpus_embeddings, embed_keywords, similar_keywords
from rtd_hf.triplets.rules.phrases import Caption
from rtd_hf.triplets.rules.vocabulary import Counts, Keyword, Vocabulary, count_captions, keywords_of


COCO = Path(__file__).resolve().parents[2] / "shared/annotations/coco_captions/captions_val2017.json.gz"
NOUNS = "dog cat horse apple orange-tree hat box knife car plate umbrella bench street lamp".split()
LETTERS = dict.fromkeys([*NOUNS, *map(plural, NOUNS), "catalogue", "man", "woman", "grass"], "N") | dict.fromkeys(
    ["sitting", "wearing", "sits", "holding", "runs", "stand", "parked", "covered"], "V"
)
LETTERS |= {"young": "J", "old": "J", "happy": "J"}


@pytest.fixture
def vocabulary():
    keywords = [Keyword(noun, 10, True, False, noun in ("car", "dog"), False) for noun in NOUNS]
    numbers = {noun: place for place, noun in enumerate(NOUNS)}
    pairs = {"dog": "cat", "cat": "dog", "car": "car", "apple": "apple", "hat": "hat", "lamp": "umbrella"}
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
         ("traffic light", "traffic lights"), ("cookie", "cookies"), ("zebra", "zebras"), ("dress", "dresses")],
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
            edit = edited(rule, "A dog and two dogs on a catalogue.", vocabulary, seed=seed)
            assert edit.target == "A cat and two cats on a catalogue."  # not: a doguelogue
            assert (edit.source, edit.new) in (("dog", "cat"), ("dogs", "cats"))
            said.add(edit.conditioning)
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
        edit = edited("change", "An old lamp on grass", vocabulary, swap=True)
        assert edit[0] == "An umbrella on grass" and edit.target == "An old lamp on grass"
        assert (edit.source, edit.new) == ("umbrella", "old lamp")
        assert "umbrella" in edit.conditioning and "an old lamp" in edit.conditioning

    def test_noun_in_an_unsure_place_stays(self, vocabulary):
        assert edited("change", "a dog and a dog flurble", vocabulary) is None

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
        ["a dog on the street is sitting", "a man sitting on a bench", "a dog and his hat", "a man with a dog runs"],
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
        assert edited("attribute", "a street with no dog", vocabulary) is None
        assert {edited("attribute", "a wooden bench", vocabulary, seed=seed).new.split()[0] for seed in range(60)} == {
            "metal", "plastic", "glass", "stone", "leather", "paper", "ceramic"}  # fmt: skip

    def test_move(self, vocabulary):
        edit = edited("move", "A dog sitting on the street.", vocabulary)
        place = next(f"{joint} {place}" for joint, place in templates.PLACES if place in edit.target)
        assert edit.target == f"A dog sitting {place}." and edit.source == "the street"
        edit = edited("move", "A dog.", vocabulary, seed=1)
        assert re.fullmatch(r"A dog (in|on|at) (a|an|the) [\w ]+\.", edit.target)

    def test_style(self, vocabulary):
        targets = {edited("style", "A dog on grass", vocabulary, seed=seed).target for seed in range(400)}
        assert "A watercolor painting of a dog on grass" in targets
        assert "A dog on grass, painted in watercolor" in targets
        assert edited("style", "A dog is sitting", vocabulary).target.startswith("A dog is sitting, ")
        assert edited("style", "a photo of a dog", vocabulary) is None

    def test_negation(self, vocabulary):
        assert edited("negation", "A dog with a hat.", vocabulary).target == "A dog without a hat."
        assert edited("negation", "A dog with a hat.", vocabulary, swap=True).reference == "A dog without a hat."
        assert edited("negation", "A dog with a hat, a box and a lamp", vocabulary) is None
        assert edited("negation", "The dog is sitting", vocabulary).target == "The dog is not sitting"
        assert re.fullmatch(
            r"A dog on the street with no (cars|benches) (around|in sight|nearby)",
            edited("negation", "A dog on the street", vocabulary).target,
        )

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


class TestVocabulary:
    CAPTIONS = ["a dog on the grass", "a dog and a cat", "two cats on grass", "a snow covered bench", "a red dog",
                "a cat on a bench", "the dog by a bench", "grass and a bench", "red grass"]  # fmt: skip

    def test_counts(self, monkeypatch):
        kinds = {"a": "DET", "the": "DET", "two": "NUM", "on": "ADP", "by": "ADP", "and": "CCONJ", "red": "ADJ",
                 "covered": "VERB"}  # fmt: skip
        tagged = lambda texts, tagger: [[(w, kinds.get(w, "NOUN")) for w in text.split()] for text in texts]  # noqa: E731
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

    def test_corpus_embeddings_are_ppmi(self):
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

    def test_blocks_change_nothing(self, words, monkeypatch):
        keywords, embeddings = words
        options = {"band": (0.2, 0.9), "quantile": False, "number": 5, "seed": 3}
        whole = similar_keywords(embeddings, keywords, **options)
        monkeypatch.setattr(neighbours_module, "_MEMORY", 16 * 57 * 4)
        assert np.array_equal(similar_keywords(embeddings, keywords, **options), whole)
        assert not np.array_equal(similar_keywords(embeddings, keywords, **options | {"seed": 4}), whole)

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


class TestRuns:
    def test_same_file_for_any_workers_and_blocks(self, captions, tmp_path):
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
        monkeypatch.setattr(RuleGenerator, "_count", lambda self, texts: tagged.append(texts))
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

    def test_bad_captions_are_counted(self, captions, tmp_path):
        bad = [None, "", "  ", "<b>a dog</b>", "a dog 🐶", "ein Hund auf dem Rasen", "собака на траве",
               "a dog\x07 on grass", "word " * 2000, "a\x00b",
               "a photo of $", "12345", "https://a.b/c a dog"]  # fmt: skip
        made = generate_triplets(rules(), [*captions, *bad], tmp_path / "out.jsonl")
        wanted = {"missing": 1, "empty": 2, "markup": 2, "not Latin script": 2, "not English": 1, "too long": 1,
                  "control characters": 2, "placeholder": 1, "no words": 1}  # fmt: skip
        assert {reason: made.skipped[reason] for reason in wanted} == wanted
        assert made.captions == 413
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
