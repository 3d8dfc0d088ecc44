import pytest
import torch
from helpers import build_tokenizer, byte_symbols, real_tokenizer, tiny_tokenizer
from transformers import CLIPTokenizer

from rtd_hf import prompts as prompts_module
from rtd_hf.prompts import PromptTokenizer
from rtd_hf.texts import (
    DEFAULT_TEMPLATE,
    bare_prompt,
    check_template,
    clean_caption,
    clean_conditioning,
    compose_prompt,
)


# Ids of OpenAI's vocabulary: BOS, EOS, and `a photo of $ that`.
BOS, EOS = 49406, 49407
A, PHOTO, OF, DOLLAR, THAT, IS, RED = 320, 1125, 539, 259, 682, 533, 736
CAPTIONS = ["is red", "is blue and has a big zebra", ""]


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def ids_of(tokenizer, text):
    return tokenizer(text)["input_ids"]


def rows_of(batch):
    """The tokens of each row, without padding."""
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [row[mask.bool()].tolist() for row, mask in pairs]


# Text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A Dog", "a dog"),
        ("<PERSON> walks <PERSON>", "person walks person"),
        ("costs $5 or $ 6", "costs 5 or 6"),
        ("  two\n\tlines ", "two lines"),
        ("$", ""),
    ],
)
def test_captions_are_cleaned_as_published(raw, clean):
    assert clean_caption(raw) == clean


def test_a_conditioning_text_loses_its_placeholders_and_keeps_its_case():
    assert clean_conditioning(" Is  Red\nfor $5 $ ") == "Is Red for 5"


@pytest.mark.parametrize(
    ("template", "full", "bare"),
    [
        ("a photo of $ that {caption}", "a photo of $ that is red", "a photo of $"),
        ("a photo of $ , {caption}", "a photo of $ , is red", "a photo of $"),
        ("a $ and a $ that {caption} now", "a $ and a $ that is red now", "a $ and a $"),
        ("a {caption} photo of $", "a is red photo of $", "a photo of $"),
    ],
)
def test_templates_are_filled(template, full, bare):
    assert compose_prompt(template, "is $ red") == full
    assert bare_prompt(template) == bare
    assert compose_prompt(template, "is red", reference="dogs") == full.replace("$", "dogs")
    assert bare_prompt(template, reference="dogs") == bare.replace("$", "dogs")


def test_braces_in_user_text_are_text():
    assert compose_prompt("$ that {caption}", "{caption} {0}", reference="{caption}") == "{caption} that {caption} {0}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a photo of $", "exactly once"),
        ("$ {caption} {caption}", "holds it 2 times"),
        ("a photo that {caption}", "at least once"),
        ("a photo of $, {caption}", r"'\$,'"),
        ("a photo of $$ {caption}", r"'\$\$'"),
        ("a ${caption}", "spaces"),
    ],
)
def test_malformed_templates_are_refused(template, message):
    with pytest.raises(ValueError, match=f"`template`.*{message}"):
        check_template(template)


def test_a_template_of_another_type_is_refused():
    with pytest.raises(TypeError, match="`template` must be a string"):
        check_template(None)


# The real vocabulary


def test_the_composed_prompt_has_the_published_ids():
    batch = PromptTokenizer(real_tokenizer(), DEFAULT_TEMPLATE).compose(["is red"])
    assert batch["input_ids"].tolist() == [[BOS, A, PHOTO, OF, DOLLAR, THAT, IS, RED, EOS]]
    assert batch["placeholder_mask"].nonzero().tolist() == [[0, 4]]
    assert batch["pooling_positions"].tolist() == [[8]]


def test_two_prompts_share_a_row_with_the_published_ids():
    prompts = PromptTokenizer(real_tokenizer())
    assert prompts.placeholder_id == DOLLAR
    batch = prompts.compose(["is red"], bare=True)
    assert batch["input_ids"].tolist() == [[BOS, A, PHOTO, OF, DOLLAR, EOS, THAT, IS, RED, EOS]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 5, 6, 7, 8]]
    assert batch["pooling_positions"].tolist() == [[9, 5]]


def test_users_dollars_never_become_placeholders():
    prompts = PromptTokenizer(real_tokenizer())
    batch = prompts.compose(["costs $ 5", "$ $$ $", "is 5$"])
    assert batch["placeholder_mask"].nonzero().tolist() == [[0, 4], [1, 4], [2, 4]]
    assert [row.count(DOLLAR) for row in batch["input_ids"].tolist()] == [1, 1, 1]
    anchors = prompts.encode(["costs $ 5"])
    assert not anchors["placeholder_mask"].any()
    assert DOLLAR not in anchors["input_ids"]


def test_special_tokens_spelled_out_by_users_are_text():
    batch = PromptTokenizer(real_tokenizer()).compose(["is <|endoftext|> red <|startoftext|>"], bare=True)
    row = batch["input_ids"][0].tolist()
    assert row.count(EOS) == 2 and row.count(BOS) == 1
    assert [row[column] for column in batch["pooling_positions"][0]] == [EOS, EOS]


# Layout


@pytest.mark.parametrize("template", [DEFAULT_TEMPLATE, "a $ and a $ , {caption} now"])
def test_rows_equal_the_tokenizers_own_and_are_padded_to_the_longest(tokenizer, template):
    batch = PromptTokenizer(tokenizer, template).compose(CAPTIONS)
    expected = [ids_of(tokenizer, template.replace("{caption}", caption)) for caption in CAPTIONS]
    assert rows_of(batch) == expected
    assert batch["input_ids"].shape == (3, max(map(len, expected)))
    assert batch["pooling_positions"].tolist() == [[len(row) - 1] for row in expected]
    assert batch["position_ids"].tolist() == [list(range(batch["input_ids"].shape[1]))] * 3
    placeholders = [[token == tokenizer.convert_tokens_to_ids("$</w>") for token in row] for row in expected]
    assert [
        row[: len(truth)] for row, truth in zip(batch["placeholder_mask"].tolist(), placeholders, strict=True)
    ] == (placeholders)
    dtypes = {name: tensor.dtype for name, tensor in batch.items()}
    assert dtypes.pop("placeholder_mask") == torch.bool
    assert set(dtypes) == {"input_ids", "position_ids", "attention_mask", "pooling_positions"}
    assert set(dtypes.values()) == {torch.int64}


def check_two_in_one(tokenizer, batch, full, bare):
    """Each row carries the tokens of both its prompts, at the positions they have in rows of their own."""
    for row, (long, short) in enumerate(zip(full, bare, strict=True)):
        ids, positions = batch["input_ids"][row].tolist(), batch["position_ids"][row].tolist()
        end, inner = batch["pooling_positions"][row].tolist()
        assert [*zip(positions[: inner + 1], ids[: inner + 1], strict=True)] == [*enumerate(ids_of(tokenizer, short))]
        kept = [column for column in range(end + 1) if column != inner]
        assert [(positions[column], ids[column]) for column in kept] == [*enumerate(ids_of(tokenizer, long))]
        assert batch["attention_mask"][row].tolist() == [1] * (end + 1) + [0] * (len(ids) - end - 1)


@pytest.mark.parametrize("template", [DEFAULT_TEMPLATE, "a $ and a $ , {caption} now", "$ {caption}"])
def test_a_row_carries_both_prompts(tokenizer, template):
    prompts = PromptTokenizer(tokenizer, template)
    assert prompts.bare_is_prefix
    batch = prompts.compose(CAPTIONS, bare=True)
    full = [" ".join(template.replace("{caption}", caption).split()) for caption in CAPTIONS]
    check_two_in_one(tokenizer, batch, full, [bare_prompt(template)] * 3)
    assert batch["placeholder_mask"].sum(dim=1).tolist() == [prompts.num_placeholders] * 3


def test_literal_rows_hold_the_references_words(tokenizer):
    references, captions = ["A dog", "a big green $ zebra"], ["is red", "is blue and has a tree"]
    prompts = PromptTokenizer(tokenizer)
    bare = ["a photo of a dog", "a photo of a big green zebra"]
    full = [f"{text} that {caption}" for text, caption in zip(bare, captions, strict=True)]
    batch = prompts.literal(references, captions, bare=True)
    check_two_in_one(tokenizer, batch, full, bare)
    assert not batch["placeholder_mask"].any()
    assert rows_of(prompts.literal(references, captions)) == [ids_of(tokenizer, text) for text in full]


def test_without_a_common_prefix_the_bare_prompts_get_rows_of_their_own(tokenizer):
    prompts = PromptTokenizer(tokenizer, "a {caption} photo of $")
    assert not prompts.bare_is_prefix
    batch = prompts.compose(["red", "big blue"], bare=True)
    texts = ["a red photo of $", "a big blue photo of $", "a photo of $", "a photo of $"]
    assert rows_of(batch) == [ids_of(tokenizer, text) for text in texts]
    assert batch["pooling_positions"].tolist() == [[len(row) - 1] for row in rows_of(batch)]
    assert batch["placeholder_mask"].nonzero().tolist() == [[0, 5], [1, 6], [2, 4], [3, 4]]
    literal = prompts.literal(["a dog", "a cat"], ["red", "big blue"], bare=True)
    texts = ["a red photo of a dog", "a big blue photo of a cat", "a photo of a dog", "a photo of a cat"]
    assert rows_of(literal) == [ids_of(tokenizer, text) for text in texts]


@pytest.mark.parametrize("pad_token", ["<|endoftext|>", "!"])
def test_padding_is_on_the_right_with_the_tokenizers_padding_token(tokenizer, pad_token):
    tokenizer.pad_token = pad_token
    batch = PromptTokenizer(tokenizer).compose(CAPTIONS, bare=True)
    padding = batch["input_ids"][batch["attention_mask"] == 0]
    assert len(padding) > 10 and set(padding.tolist()) == {tokenizer.pad_token_id}
    assert (batch["attention_mask"].diff(dim=1) <= 0).all()
    assert [len(row) - 1 for row in rows_of(batch)] == batch["pooling_positions"][:, 0].tolist()


def test_plain_texts_are_cleaned(tokenizer):
    batch = PromptTokenizer(tokenizer).encode(["A  Red <PERSON>", "a dog"])
    assert rows_of(batch) == [ids_of(tokenizer, "a red person"), ids_of(tokenizer, "a dog")]
    assert batch["pooling_positions"].tolist() == [[len(row) - 1] for row in rows_of(batch)]
    assert not batch["placeholder_mask"].any()


# Long text


LONG = "red " * 200


def test_long_text_is_cut_keeps_its_eos_and_is_counted(tokenizer):
    prompts = PromptTokenizer(tokenizer)
    whole = ids_of(tokenizer, "a photo of $ that " + LONG)
    assert rows_of(prompts.compose([LONG, "is red"]))[0] == whole[:76] + [tokenizer.eos_token_id]
    assert prompts.num_truncated == 1
    assert rows_of(prompts.encode([LONG, LONG])) == [[whole[0], *ids_of(tokenizer, LONG)[1:76], whole[-1]]] * 2
    assert prompts.num_truncated == 3


def test_a_row_with_both_prompts_fits_the_position_table(tokenizer):
    prompts = PromptTokenizer(tokenizer)
    batch = prompts.compose([LONG], bare=True)
    assert batch["input_ids"].shape == (1, 77)
    assert batch["pooling_positions"].tolist() == [[76, 5]]
    assert batch["input_ids"][0, [76, 5]].tolist() == [tokenizer.eos_token_id] * 2
    assert batch["position_ids"].max() == 75
    assert prompts.num_truncated == 1


def test_a_long_reference_leaves_both_prompts_whole_enough_to_pool(tokenizer):
    batch = PromptTokenizer(tokenizer).literal([LONG], ["is blue"], bare=True)
    assert batch["input_ids"].shape == (1, 77)
    columns = batch["pooling_positions"][0]
    assert columns.tolist() == [76, 75]
    assert batch["input_ids"][0, columns].tolist() == [tokenizer.eos_token_id] * 2


def test_a_long_caption_before_the_placeholder_does_not_push_it_out(tokenizer):
    prompts = PromptTokenizer(tokenizer, "a {caption} photo of $", max_length=12)
    batch = prompts.compose([LONG])
    assert rows_of(batch) == [ids_of(tokenizer, "a red red red red red red photo of $")]
    assert batch["placeholder_mask"].sum() == 1
    assert prompts.num_truncated == 1


def test_the_maximum_is_the_tokenizers_or_the_given_one(tokenizer):
    assert PromptTokenizer(tokenizer).max_length == 77
    assert PromptTokenizer(tokenizer, max_length=20).compose([LONG])["input_ids"].shape == (1, 20)
    tokenizer.model_max_length = int(1e30)  # what transformers puts where a tokenizer states none
    assert PromptTokenizer(tokenizer).max_length == 77
    tokenizer.model_max_length = 32
    assert PromptTokenizer(tokenizer).max_length == 32


def test_a_maximum_without_room_for_a_caption_is_refused(tokenizer):
    with pytest.raises(ValueError, match="`max_length` is 8.*takes 7 tokens.*at least 9"):
        PromptTokenizer(tokenizer, max_length=8)
    PromptTokenizer(tokenizer, max_length=9)


# Tokenizers and arguments that will not do


class Rewriting:
    """A tokenizer that sees its texts rewritten."""

    def __init__(self, tokenizer, old, new):
        self._tokenizer, self._old, self._new = tokenizer, old, new

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, texts, **options):
        if isinstance(texts, str):
            return self._tokenizer(texts.replace(self._old, self._new), **options)
        return self._tokenizer([text.replace(self._old, self._new) for text in texts], **options)


def bytes_only(*missing):
    """A CLIP tokenizer that spells words, and has no word of the `missing` letters; they become EOS, the unknown."""
    symbols = byte_symbols()
    words = [symbol + "</w>" for symbol in symbols if symbol not in missing]
    tokens = [*symbols, *words, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("template", ["a photo of $ that {caption}", "a {caption} photo of $", "$ a {caption} $ a"])
def test_where_the_placeholder_is_no_token_another_stands_in(template, bare):
    unknowing = bytes_only("$")
    prompts = PromptTokenizer(unknowing, template)
    stand_in = unknowing.convert_tokens_to_ids("a</w>")
    assert prompts.placeholder_id == stand_in
    batch = prompts.compose(["is a $ a", "a"], bare=bare)
    # Where the placeholder is a token, the same but there, whatever `a` there is besides.
    truth = PromptTokenizer(bytes_only("#"), template).compose(["is a $ a", "a"], bare=bare)
    assert batch["placeholder_mask"].equal(truth["placeholder_mask"]) and batch["placeholder_mask"].any()
    knowing = bytes_only("#")
    names = [knowing.convert_ids_to_tokens(row) for row in truth["input_ids"].tolist()]
    for row, (found, expected) in enumerate(zip(batch["input_ids"].tolist(), names, strict=True)):
        expected = ["a</w>" if truth["placeholder_mask"][row, i] else name for i, name in enumerate(expected)]
        assert unknowing.convert_ids_to_tokens(found) == expected


def test_a_placeholder_of_several_tokens_is_put_in_by_hand(tokenizer):
    prompts = PromptTokenizer(Rewriting(tokenizer, "$", "a $"))
    assert prompts.placeholder_id == tokenizer.convert_tokens_to_ids("it</w>")
    assert rows_of(prompts.compose(["is red"])) == [ids_of(tokenizer, "a photo of it that is red")]
    assert prompts.mark(["it is $ , $"])["placeholder_mask"].nonzero().tolist() == [[0, 3], [0, 5]]


def test_a_vocabulary_in_which_nothing_can_stand_in_is_refused(monkeypatch):
    monkeypatch.setattr(prompts_module, "_STAND_INS", ("thing", "it"))
    with pytest.raises(ValueError, match=r"knows none of `\$`, 'thing', 'it' as one ordinary token.*Use the"):
        PromptTokenizer(bytes_only("$"))


def test_a_tokenizer_that_splits_the_placeholder_and_sees_across_spaces_is_refused(tokenizer):
    both = Rewriting(Rewriting(tokenizer, "$ ,", "$,"), "$", "a $")
    with pytest.raises(ValueError, match=r"turns it into 'a</w>' \(320\), '\$</w>' \(259\)"):
        PromptTokenizer(both)


@pytest.mark.parametrize("template", [DEFAULT_TEMPLATE, "a {caption} photo of $", "$ with $ , {caption}"])
def test_rows_of_fixed_length_are_pooled_at_their_last_position(tokenizer, template):
    prompts = PromptTokenizer(tokenizer, template, max_length=24, padding="max_length")
    plain = PromptTokenizer(tokenizer, template, max_length=24)
    captions = ["is red", "is blue and has a tree"]
    assert not prompts.bare_is_prefix
    batch = prompts.compose(captions, bare=True)
    singles = [plain.compose([caption]) for caption in captions]
    bare = tokenizer(bare_prompt(template))["input_ids"]
    rows = [rows_of(single)[0] for single in singles] + [bare] * 2
    pad = tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [row + [pad] * (24 - len(row)) for row in rows]
    assert batch["attention_mask"].tolist() == [[1] * 24] * 4
    assert batch["position_ids"].tolist() == [list(range(24))] * 4
    assert batch["pooling_positions"].tolist() == [[23]] * 4
    assert batch["placeholder_mask"].equal(batch["input_ids"] == prompts.placeholder_id)
    encoded = prompts.encode(["a dog", LONG])
    assert encoded["input_ids"].shape == (2, 24) and encoded["input_ids"][1, -1] == tokenizer.eos_token_id
    assert encoded["pooling_positions"].tolist() == [[23], [23]]


def test_rows_of_fixed_length_cannot_be_packed(tokenizer):
    prompts = PromptTokenizer(tokenizer, padding="max_length")
    for call in (prompts.compose, prompts.encode):
        with pytest.raises(ValueError, match="with `padding='max_length'` the text encoder reads it"):
            call(["is red"], packed=True)
    with pytest.raises(ValueError, match="`padding` must be one of 'longest', 'max_length', but is 'max'"):
        PromptTokenizer(tokenizer, padding="max")


def test_letters_are_made_small_where_that_is_asked():
    cased = bytes_only()
    cased.backend_tokenizer.normalizer = None
    asked, plain = (PromptTokenizer(cased, lower_case=lower) for lower in (True, False))
    assert (
        rows_of(asked.compose(["Is RED"])) == rows_of(plain.compose(["is red"])) != rows_of(plain.compose(["Is RED"]))
    )


def test_a_template_in_which_the_placeholder_merges_is_refused(tokenizer):
    gluing = Rewriting(build_tokenizer([("$", ",</w>")]), "$ ,", "$,")
    with pytest.raises(ValueError, match="holds 2 placeholder.*keeps 1 of them.*Reword the template"):
        PromptTokenizer(gluing, "a $ , $ that {caption}")


def test_a_tokenizer_without_eos_at_the_end_is_refused(tokenizer):
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    with pytest.raises(ValueError, match="`tokenizer` must end every row with its EOS token"):
        PromptTokenizer(tokenizer)


def test_one_string_is_not_taken_for_a_batch_of_letters(tokenizer):
    prompts = PromptTokenizer(tokenizer)
    for call in (prompts.compose, prompts.encode):
        with pytest.raises(TypeError, match="must be a sequence of strings, but is the one string 'is red'"):
            call("is red")


def test_empty_and_unequal_batches_are_refused(tokenizer):
    prompts = PromptTokenizer(tokenizer)
    with pytest.raises(ValueError, match="`captions` is empty"):
        prompts.compose([])
    with pytest.raises(ValueError, match="equally many, but got 1 and 2"):
        prompts.literal(["a dog"], ["is red", "is blue"])
