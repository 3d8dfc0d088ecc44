import pickle

import pytest
import torch
from datasets import Dataset
from helpers import tiny_text_model, tiny_tokenizer

import rtd_hf.triplets.columns
from rtd_hf.data_collator import DataCollatorForRTD
from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.prompts import PromptTokenizer
from rtd_hf.triplets import check_triplets, resolve_triplet_columns


TRIPLETS = [
    ("A brown dog", "has a $ red house", "a brown dog and a red house"),
    ("a <PERSON> in the  grass", "Has two dogs", "a person with two dogs in the grass"),
    ("a man", "is a woman", "A  woman"),
]
REFERENCES = ["a brown dog", "a person in the grass", "a man"]
TARGETS = ["a brown dog and a red house", "a person with two dogs in the grass", "a woman"]
OURS = ("reference_caption", "conditioning_caption", "target_caption")


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def features(names=OURS, **extra):
    return [dict(zip(names, triplet, strict=True)) | extra for triplet in TRIPLETS]


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


# Batches


@pytest.mark.parametrize("refined_batch", [True, False])
@pytest.mark.parametrize("template", ["a photo of $ that {caption}", "$ , {caption}", "a {caption} photo of $"])
def test_the_queries_are_the_composed_prompts(tokenizer, template, refined_batch):
    batch = DataCollatorForRTD(tokenizer, template, refined_batch=refined_batch)(features())
    conditionings = ["has a red house", "Has two dogs", "is a woman"]
    expected = PromptTokenizer(tokenizer, template).compose(conditionings, bare=refined_batch)
    assert_equal({name: batch[name] for name in expected}, expected)


@pytest.mark.parametrize("refined_batch", [True, False])
def test_the_anchors_are_the_targets_then_the_references(tokenizer, refined_batch):
    batch = DataCollatorForRTD(tokenizer, refined_batch=refined_batch)(features())
    rows = [
        row[mask.bool()].tolist()
        for row, mask in zip(batch["anchor_input_ids"], batch["anchor_attention_mask"], strict=True)
    ]
    assert rows == tokenizer(TARGETS + REFERENCES)["input_ids"]
    assert batch["anchor_pooling_positions"].tolist() == [[len(row) - 1] for row in rows]
    assert batch["anchor_input_ids"].shape[1] == max(map(len, rows))
    assert {name for name in batch if name.startswith("anchor")} == {
        "anchor_input_ids",
        "anchor_attention_mask",
        "anchor_pooling_positions",
    }


def test_without_refined_concatenation_the_references_words_are_in_the_prompt(tokenizer):
    batch = DataCollatorForRTD(tokenizer, refined_concatenation=False)(features())
    conditionings = ["has a red house", "Has two dogs", "is a woman"]
    expected = PromptTokenizer(tokenizer).literal(REFERENCES, conditionings, bare=True)
    assert_equal({name: batch[name] for name in expected}, expected)
    assert not batch["placeholder_mask"].any()
    assert batch["anchor_input_ids"].shape[0] == 6


def test_max_length_reaches_queries_and_anchors(tokenizer):
    batch = DataCollatorForRTD(tokenizer, max_length=9)(features())
    assert batch["input_ids"].shape[1] == batch["anchor_input_ids"].shape[1] == 9


def test_the_batch_feeds_the_model(tokenizer):
    batch = DataCollatorForRTD(tokenizer)(features())
    model = tiny_text_model(CLIPTextModelForRTD)
    anchors = {name.removeprefix("anchor_"): tensor for name, tensor in batch.items() if name.startswith("anchor_")}
    queries = {name: tensor for name, tensor in batch.items() if name not in ("text_ids",) and "anchor" not in name}
    with torch.no_grad():
        assert model(**anchors).text_embeds.shape == (6, 24)
        assert model(**queries, pseudo_words=torch.randn(3, 1, 32)).text_embeds.shape == (6, 24)


# Ids of texts


def test_equal_cleaned_captions_and_only_they_share_an_id(tokenizer):
    rows = [
        {"reference_caption": "A dog", "conditioning_caption": "is red", "target_caption": "a  red DOG"},
        {"reference_caption": "a dog", "conditioning_caption": "is blue", "target_caption": "a blue dog"},
        {"reference_caption": "a red dog", "conditioning_caption": "is a cat", "target_caption": "a dog$"},
    ]
    ids = DataCollatorForRTD(tokenizer)(rows)["text_ids"]
    assert ids.dtype == torch.int64 and (ids >= 0).all()
    texts = ["a red dog", "a blue dog", "a dog", "a dog", "a dog", "a red dog"]
    equal = [[one == other for other in texts] for one in texts]
    assert (ids[:, None] == ids).tolist() == equal


def test_ids_of_texts_are_the_same_in_every_process(tokenizer):
    rows = [dict(zip(OURS, ("a cat", "is", "A dog"), strict=True))]
    # A number from another process: Python's own `hash` of a string differs from process to process.
    assert DataCollatorForRTD(tokenizer)(rows)["text_ids"][0] == 9_151_722_581_430_185_315


# Columns


@pytest.mark.parametrize(
    "names",
    [
        OURS,
        ("input", "edit", "output"),
        ("caption", "edit", "output"),
        ("original_prompt", "edit_prompt", "edited_prompt"),
    ],
)
def test_aliases_and_further_columns(tokenizer, names):
    collator = DataCollatorForRTD(tokenizer)
    assert_equal(collator(features(names, url="http://x", rule=3)), collator(features()))
    assert resolve_triplet_columns([*names, "url"]) == dict(zip(OURS, names, strict=True))


def test_our_own_names_win_over_aliases():
    columns = resolve_triplet_columns(["input", "edit", "output", *OURS, "caption"])
    assert columns == dict(zip(OURS, OURS, strict=True))


def test_a_collator_meets_data_sets_with_different_columns(tokenizer):
    collator = DataCollatorForRTD(tokenizer)
    first = collator(features())
    assert_equal(collator(features(("input", "edit", "output"))), first)
    assert_equal(collator(features()), first)


@pytest.mark.parametrize(
    ("wrong", "role", "right"),
    [
        ("refrence_caption", "reference_caption", "reference_caption"),
        ("orignal_prompt", "reference_caption", "original_prompt"),
        ("conditioning", "conditioning_caption", "conditioning_caption"),
        ("target_captions", "target_caption", "target_caption"),
    ],
)
def test_a_misspelt_column_is_answered_with_the_right_name(tokenizer, wrong, role, right):
    names = [wrong if name == role else name for name in OURS]
    with pytest.raises(ValueError) as error:
        DataCollatorForRTD(tokenizer)(features(names, url="x"))
    message = str(error.value)
    assert f"`{role}` is missing" in message
    assert f"did you mean `{right}` where the data says `{wrong}`?" in message
    assert f"`{wrong}`" in message and "`url`" in message and "rename_column" in message


def test_missing_columns_are_all_named_with_what_came():
    with pytest.raises(ValueError) as error:
        resolve_triplet_columns(["text", "label"])
    message = str(error.value)
    for name in (*OURS, "text", "label", "edited_prompt"):
        assert f"`{name}`" in message
    assert "did you mean" not in message


# Rows that will not do


@pytest.mark.parametrize("column", OURS)
@pytest.mark.parametrize("value", [None, "", "  \n", "$ $"])
def test_rows_without_text_are_named(tokenizer, column, value):
    rows = features(rule="keep")
    rows[1][column] = value
    with pytest.raises(ValueError, match=f"Column `{column}` holds no text in row 1 of the batch: .*'rule': 'keep'"):
        DataCollatorForRTD(tokenizer)(rows)


def test_a_row_that_lacks_the_column_is_named(tokenizer):
    rows = features()
    del rows[2]["target_caption"]
    with pytest.raises(ValueError, match="Column `target_caption` holds no text in row 2"):
        DataCollatorForRTD(tokenizer)(rows)


def test_captions_of_another_type_are_refused(tokenizer):
    rows = features()
    rows[0]["target_caption"] = ["a dog"]
    with pytest.raises(TypeError, match="`target_caption` must hold strings, but row 0 .* holds a list"):
        DataCollatorForRTD(tokenizer)(rows)


def test_no_rows_are_refused(tokenizer):
    with pytest.raises(ValueError, match="`features` is empty"):
        DataCollatorForRTD(tokenizer)([])


# Data loaders


def test_a_data_loader_with_processes_can_use_it(tokenizer):
    collator = DataCollatorForRTD(tokenizer)
    assert_equal(pickle.loads(pickle.dumps(collator))(features()), collator(features()))
    assert collator.tokenizer is tokenizer  # the `Trainer` saves it beside the model


# ------------------------------------------------------------------------------------------ a data set, checked ahead
TRIPLET = {"input": "a red star", "edit": "is blue", "output": "a blue star"}


@pytest.mark.parametrize("at_once", [2, 3, 100])
def test_blank_captions_are_counted_and_the_first_is_shown(monkeypatch, at_once):
    monkeypatch.setattr(rtd_hf.triplets.columns, "_CHECKED_AT_ONCE", at_once)
    rows = [dict(TRIPLET) for _ in range(9)]
    assert check_triplets(Dataset.from_list(rows)) == {
        "reference_caption": "input",
        "conditioning_caption": "edit",
        "target_caption": "output",
    }
    rows[5]["edit"], rows[8]["edit"] = " \n", None
    dataset = Dataset.from_list(rows)
    with pytest.raises(ValueError, match="`edit` holds no text in 2 of 9 rows, first in row 5: .*a red star"):
        check_triplets(dataset)
    # Rows are counted as they stand in a selection, not as they lie in the file.
    with pytest.raises(ValueError, match="`edit` holds no text in 1 of 3 rows, first in row 2"):
        check_triplets(dataset.select([7, 0, 8]))
    assert check_triplets(dataset.select([0, 1, 6]))


@pytest.mark.parametrize(
    ("value", "message"), [(None, "holds no text in 1 of 1 rows"), (3, "must hold strings, but holds int64")]
)
def test_columns_that_are_no_text(value, message):
    with pytest.raises(ValueError, match=f"`output` {message}"):
        check_triplets(Dataset.from_list([{**TRIPLET, "output": value}]))


def test_a_stream_is_checked_by_its_columns():
    stream = Dataset.from_list([{**TRIPLET, "edit": None}]).to_iterable_dataset()
    assert check_triplets(stream)["conditioning_caption"] == "edit"
    with pytest.raises(ValueError, match="`conditioning_caption` is missing"):
        check_triplets(stream.remove_columns("edit"))
