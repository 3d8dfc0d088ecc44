"""What the comparisons of `examples/` share: trials that are kept, sets of triplets, and their order foretold."""

import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from rtd_hf.shapes.captions import describe_fully, describe_scene
from rtd_hf.shapes.scenes import sample_scene


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from compare_triplets import foretold  # noqa: E402
from utils.trials import Trials  # noqa: E402
from utils.triplet_sets import COLUMNS, SETS, asked_for, says_held_out, triplet_set  # noqa: E402


class TestTrials:
    def test_a_trial_is_made_once_and_found_again(self, tmp_path):
        made = []
        for expected in (True, False):
            trials = Trials(tmp_path, {"steps": 3})
            assert trials.run("a: b, c 1", lambda: made.append(1) or {"value": 2.5}) is expected
            assert trials.found["a: b, c 1"] == {"settings": {"steps": 3}, "value": 2.5}
        assert made == [1]

    def test_one_of_other_settings_is_refused(self, tmp_path):
        Trials(tmp_path, {"steps": 3}).run("a", dict)
        with pytest.raises(ValueError, match="Remove the folder"):
            Trials(tmp_path, {"steps": 4}).run("a", dict)

    def test_a_failure_leaves_nothing(self, tmp_path):
        trials = Trials(tmp_path, {})
        with pytest.raises(ZeroDivisionError):
            trials.run("a", lambda: {"value": 1 / 0})
        assert Trials(tmp_path, {}).run("a", dict)


class TestTripletSets:
    def test_captions_of_held_out_scenes_are_recognised(self):
        rng = random.Random(0)
        for _ in range(300):
            # All that is left out of such a caption is nothing, so its texture is always told.
            assert says_held_out(describe_fully(sample_scene(rng, "held_out"), rng))
            assert not says_held_out(describe_fully(sample_scene(rng, "train"), rng))
            assert not says_held_out(describe_scene(sample_scene(rng, "train"), rng))

    @pytest.mark.parametrize("name", SETS)
    def test_every_set_is_whole_repeatable_and_free_of_held_out_combinations(self, name):
        rows = triplet_set(name, 300, 1)
        assert len(rows) == 300
        assert rows == triplet_set(name, 300, 1) != triplet_set(name, 300, 2)
        if "noisy" not in name:
            assert not any(says_held_out(row[column]) for row in rows for column in COLUMNS)

    def test_shuffling_moves_targets_and_nothing_else(self):
        clean, shuffled = triplet_set("world", 300, 1), triplet_set("world, shuffled", 300, 1)
        assert [row["reference_caption"] for row in clean] == [row["reference_caption"] for row in shuffled]
        targets = [[row["target_caption"] for row in rows] for rows in (clean, shuffled)]
        assert Counter(targets[0]) == Counter(targets[1]) and targets[0] != targets[1]

    def test_noise_changes_a_fifth_of_the_words(self):
        clean, noisy = triplet_set("rules", 300, 1), triplet_set("rules, noisy", 300, 1)
        pairs = [
            pair
            for one, other in zip(clean, noisy, strict=True)
            for column in COLUMNS
            for pair in zip(one[column].split(), other[column].split(), strict=True)
        ]
        changed = sum(one != other for one, other in pairs) / len(pairs)
        assert 0.14 < changed < 0.2  # a word may be drawn in its own place

    def test_a_family_is_one_rule(self):
        assert {row["rule"] for row in triplet_set("rules: attribute", 200, 1)} == {"attribute"}
        assert {row["rule"] for row in triplet_set("rules: add, remove", 200, 1)} == {"add", "remove"}
        assert len({row["rule"] for row in triplet_set("rules", 200, 1)}) > 5


def test_what_a_query_asks_for_is_told_by_its_words():
    """Against the edits themselves; a few texts fit two kinds, such as "has the circle in red"."""
    from rtd_hf.shapes.edits import EDIT_KINDS, sample_edit

    rng, right, total = random.Random(0), Counter(), Counter()
    for _ in range(3000):
        edit = sample_edit(sample_scene(rng, "train"), rng)
        right[edit.kind] += asked_for(edit.text) == edit.kind
        total[edit.kind] += 1
    shares = {kind: right[kind] / total[kind] for kind in EDIT_KINDS}
    assert min(shares.values()) > 0.6 and sum(right.values()) / sum(total.values()) > 0.85, shares


def test_rank_correlation():
    def row(gain, value, other):
        measures = {"consistent": value, "distinct_word_pairs": other, "shares/source_gone": 1.0}
        return {"metrics": {"shapes_recall@10": {"gain": gain}}, "measures": measures}

    rows = [row(40.0, 0.9, 0.1), row(30.0, 0.8, 0.3), row(-5.0, 0.1, 0.3), row(0.0, 0.2, 0.4)]
    # By hand: gains rank 3 2 0 1, `consistent` the same; pairs 0 1.5 1.5 3, whose covariance with the gains is
    # (-1.5 * 1.5 + 0 + 0 + 1.5 * -0.5) / 4 = -0.75, over deviations sqrt(1.25) and sqrt(4.5 / 4).
    assert foretold(rows) == {"consistent": 1.0, "distinct_word_pairs": -0.63}
