"""The card: only the run's figures, code that runs, and texts of others that stay texts."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from rtd_hf import build_model_card
from rtd_hf.hub import card_of
from rtd_hf.hub.figures import eval_result_entries
from rtd_hf.hub.markup import block, code, literal, one_line, plain


CARDS = Path(__file__).parents[1] / "model_cards"
METRICS = {
    "before": {"shapes_recall@1": 4.0, "shapes_recall@10": 30.04, "shapes_map@10": 9.5},
    "after": {"shapes_recall@1": 17.0, "shapes_recall@10": 71.23, "fashioniq_dress_recall@10": 8.0},
    "gain": {"shapes_recall@10": {"gain": 41.19, "low": 37.5, "high": -2.0}},
    "baselines": {"text only": {"shapes_recall@10": 1.7}},
    "run": {"learning_rate": 2e-4, "seed": 3, "note": "a|b"},
    "environment": {"machine": "Linux x86_64", "gpus": [], "processes": 2, "versions": {"torch": "2.13.0"}},
    "cost": {"seconds": 99.6, "training seconds": 61.2, "peak memory GiB": 1.04, "energy Wh": None},
}
# Each would be markup, end a table's cell, a block of code or the metadata, or change what YAML reads.
NASTY = (
    "a|b",
    "`tick`",
    "```\nout of the block\n```",
    "<script>alert(1)</script>",
    "<!-- gone",
    "[link](http://example.com)",
    "line one\nline two\n\n# heading",
    "---\nlicense: other\n---",
    "key: value # comment",
    "'quoted' \"twice\"",
    "*stars* _and_ __more__ ~~struck~~",
    "{{ license }} {% if %} {braces}",
    "back\\slash \\| \\`",
    "tab\there, null \x00 escape \x1b[31m, right to left \u202e",
    "half a pair \ud800",
    "- item",
    "1. first",
    "---",
    "> quote",
    "&lt;b&gt;",
    "yes",
    "null",
    "!!python/object:os.system",
    "emoji 🐕 日本語",
    " ",
)


# ----------------------------------------------------------------------------------------------------------- a reader
def structure(text: str) -> tuple[dict[str, int], list[str]]:
    """How often a card's parts occur to a Markdown parser, and the texts of its tables' cells."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    counts, shown, in_cell = Counter(), [], False
    for token in parser.parse(text):
        counts[token.type] += 1
        # An escaped sign is a piece of text of its own.
        children = [child for child in token.children or () if child.type not in ("text", "text_special", "softbreak")]
        counts.update(child.type for child in children)
        if token.type == "inline" and in_cell:
            shown.append("".join(child.content for child in token.children))
        in_cell = token.type in ("td_open", "th_open")
    return dict(counts), shown


def cells(row: str) -> list[str]:
    """The cells of a row as a table's reader sees them: an escaped pipe separates nothing."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row.strip()[1:-1])]


def tables(text: str) -> list[list[list[str]]]:
    """All tables of a text, each as rows of cells, without the line below the head."""
    found, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append(cells(line))
        elif rows:
            found.append([rows[0], *rows[2:]])
            rows = []
    return found


def blocks(text: str, language: str) -> list[str]:
    """Blocks of code of one language: each ends at a line with as many ticks as it began with."""
    found, ticks, lines, wanted = [], "", [], False
    for line in text.splitlines():
        opened = re.fullmatch(r"(`{3,})(\w*)", line)
        if ticks and line == ticks:
            found += ["\n".join(lines)] if wanted else []
            ticks, lines = "", []
        elif ticks:
            lines.append(line)
        elif opened:
            ticks, wanted = opened[1], opened[2] == language
    assert not ticks, "a block of code never ends"
    return found


def outside_code(text: str) -> str:
    kept, ticks = [], ""
    for line in text.splitlines():
        opened = re.match(r"`{3,}", line)
        if ticks:
            ticks = "" if line == ticks else ticks
        elif opened:
            ticks = opened[0]
        else:
            kept.append(line)
    return "\n".join(kept)


def headings(text: str) -> list[str]:
    return [line for line in outside_code(text).splitlines() if re.match(r"#+ ", line)]


def unescaped(text: str) -> str:
    """What plain Markdown without markup reads as."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


def card_rows(card, key):
    """The cells of a metric in the table of results, and in the one of the baselines if it stands there."""
    rows = [row[1:] for table in tables(card.content) for row in table if row[0] == f"`{key}`"]
    return (*rows,)


# -------------------------------------------------------------------------------------------------------- the figures
def test_card_states_the_figures_of_the_run_and_no_others():
    card = build_model_card(METRICS, license="mit", model_id="me/encoder", base_model="them/clip")
    # Only what a baseline was measured on stands in the second table.
    assert card_rows(card, "shapes_recall@10") == (["30.0", "71.2", "+41.2 [+37.5, -2.0]"], ["1.7"])
    assert card_rows(card, "shapes_recall@1") == (["4.0", "17.0", "not measured"],)
    assert card_rows(card, "shapes_map@10") == (["9.5", "not measured", "not measured"],)
    assert card_rows(card, "fashioniq_dress_recall@10") == (["not measured", "8.0", "not measured"],)
    assert "| metric (%) | text only |" in card.content
    assert "| `learning_rate` | 0.0002 |" in card.content and r"| `note` | a\|b |" in card.content
    rows = {row[0]: row[1] for table in tables(card.content) for row in table if len(row) == 2}
    assert (rows["the whole run"], rows["the training alone"]) == ("100 s", "61 s")
    assert (rows["peak memory of one process"], rows["energy of the whole run"]) == ("1.0 GiB", "not measured")
    assert rows["versions"] == "torch 2.13.0" and rows["processes"] == "2" and "gpus" not in rows
    assert "seed 3" in card.content
    assert "drawn shapes" not in card.content  # FashionIQ is photographs

    data = card.data
    assert (data.license, data.library_name, data.base_model) == ("mit", "transformers", "them/clip")
    assert data.pipeline_tag == "feature-extraction" and {"composed-image-retrieval", "clip"} <= {*data.tags}
    results = {(result.dataset_type, result.metric_type): result for result in data.eval_results}
    assert {key: result.metric_value for key, result in results.items()} == {
        ("shapes", "recall@1"): 17.0,
        ("shapes", "recall@10"): 71.23,
        ("fashioniq", "dress_recall@10"): 8.0,
    }
    assert results["fashioniq", "dress_recall@10"].dataset_config == "dress"


def test_what_was_kept_and_what_it_took():
    kept = {
        "before": {"coco_captions_text_to_image_recall@1": 40.0},
        "after": {"coco_captions_text_to_image_recall@1": 35.04},
        "change": {"coco_captions_text_to_image_recall@1": {"gain": -4.96, "low": -6.0, "high": -4.0}},
    }
    cost = {"seconds": 7, "energy Wh": 0.0517, "energy scope": "1 CPU package (RAPL)"}
    card = build_model_card({**METRICS, "preservation": kept, "cost": cost}, license="mit")
    assert card_rows(card, "coco_captions_text_to_image_recall@1") == (["40.0", "35.0", "-5.0 [-6.0, -4.0]"],)
    assert "| energy of the whole run | 0.0517 Wh, 1 CPU package (RAPL) |" in card.content
    assert "| the training alone | not measured |" in card.content
    without = build_model_card(METRICS, license="mit").content
    assert "Plain retrieval between texts and pictures: not measured." in without
    # Plain retrieval is no composed retrieval, and so no result of that task.
    assert {result.dataset_type for result in card.data.eval_results} == {"shapes", "fashioniq"}


def test_a_papers_figures_have_a_column_of_their_own():
    card = build_model_card({**METRICS, "published": {"shapes_recall@1": 18.5, "cirr_recall@1": 25.0}}, license="mit")
    results = next(table for table in tables(card.content) if "before" in table[0])
    assert results[0][-1] == "the paper's, not ours"
    assert {row[0]: row[1:] for row in results[1:]} == {
        "`cirr_recall@1`": ["not measured", "not measured", "not measured", "25.0"],
        "`fashioniq_dress_recall@10`": ["not measured", "8.0", "not measured", ""],
        "`shapes_map@10`": ["9.5", "not measured", "not measured", ""],
        "`shapes_recall@1`": ["4.0", "17.0", "not measured", "18.5"],
        "`shapes_recall@10`": ["30.0", "71.2", "+41.2 [+37.5, -2.0]", ""],
    }
    assert 25.0 not in [result.metric_value for result in card.data.eval_results]


def test_card_without_figures_says_so():
    card = build_model_card({}, license="mit")
    assert "| all | not measured | not measured | not measured |" in card.content
    assert "The options were not recorded." in card.content and "| the whole run | not measured |" in card.content
    assert "The data were not recorded." in card.content
    assert card.data.eval_results is None
    text = outside_code(card.content).split("# Results")[1].split("# Citation")[0]
    assert re.findall(r"\d+(?:\.\d+)?", text) == ["95"]  # of "95 % interval"


def test_card_is_read_back_as_it_was(tmp_path):
    from huggingface_hub import ModelCard

    card = build_model_card(METRICS, license="cc-by-nc-4.0", datasets=["me/triplets"], limits=["English only."])
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert again.data.to_dict() == card.data.to_dict()
    assert again.data.datasets == ["me/triplets"] and "- English only." in again.text


def test_results_of_benchmarks_that_are_data_sets_on_the_hub():
    after = {"cirr_recall@1": 25.04321, "cirr_recall_subset@1": 60.0, "circo_map@5": 12.0, "cirr_recall@5": None}
    found = eval_result_entries(after, {"cirr": "org/cirr"}, date="2026-01-02")
    assert list(found) == ["cirr"]
    assert [(entry.dataset_id, entry.task_id, entry.value, entry.date) for entry in found["cirr"]] == [
        ("org/cirr", "recall@1", 25.0432, "2026-01-02"),
        ("org/cirr", "recall_subset@1", 60.0, "2026-01-02"),
    ]
    with pytest.raises(ValueError, match="`dataset_ids` names 'genecis', of which nothing was measured"):
        eval_result_entries(after, {"genecis": "org/genecis"})


# --------------------------------------------------------------------------------------------------- what it is about
@pytest.mark.parametrize(
    ("projection_type", "cited"),
    [
        *(("lincir", "2312.01998"), ("searle", "2303.15247"), ("pic2word", "2302.03084"), ("other", None)),
        *(("context_i2w", "2309.16137"), ("fti4cir", "lin2024fti4cir")),
    ],
)
def test_card_cites_what_was_used(projection_type, cited):
    content = build_model_card({}, license="mit", projection_type=projection_type).content
    projections = {"2312.01998", "2303.15247", "2302.03084", "2309.16137", "lin2024fti4cir"}
    assert {number for number in projections if number in content} == ({cited} if cited else set())
    assert "2406.09188" in content and "2103.00020" in content


def test_card_of_siglip_names_its_own_classes():
    card = build_model_card({}, license="mit", text_encoder_class="SiglipTextModel", base_model="google/siglip-base")
    assert "SiglipTextModel.from_pretrained" in card.content and "SiglipModel" in card.content
    assert "CLIPText" not in card.content and "2303.15343" in card.content and "2103.00020" not in card.content
    assert "siglip" in card.data.tags and "clip" not in card.data.tags
    with pytest.raises(ValueError, match="`text_encoder_class` must be a class of CLIP's or SigLIP's"):
        build_model_card({}, license="mit", text_encoder_class="BertModel")


def test_base_of_the_offline_world_is_no_hub_id():
    card = build_model_card({}, license="mit", base_model="shapes", base_revision=None)
    assert card.data.base_model is None and "the small CLIP of the offline world" in card.content
    assert "huggingface.co/shapes" not in card.content
    published = build_model_card({}, license="mit", base_model="them/clip", base_revision="abc123")
    assert "[them/clip](https://huggingface.co/them/clip) (revision `abc123`)" in published.content
    assert published.data.to_dict()["base_model_relation"] == "finetune"


def test_card_needs_a_license():
    with pytest.raises(TypeError, match="license"):
        build_model_card(METRICS)
    with pytest.raises(ValueError, match="`license` must be a Hub licence identifier"):
        build_model_card(METRICS, license="")


def test_card_refuses_what_is_no_figure():
    with pytest.raises(ValueError, match=r"nan at `after\.shapes_recall@1`"):
        build_model_card({"after": {"shapes_recall@1": float("nan")}}, license="mit")
    with pytest.raises(ValueError, match=r"inf at `gain\.shapes_recall@1\.low`"):
        build_model_card({"gain": {"shapes_recall@1": {"gain": 1.0, "low": float("inf")}}}, license="mit")
    with pytest.raises(ValueError, match=r"'71' at `preservation\.after\.x@1`"):
        build_model_card({"preservation": {"after": {"x@1": "71"}}}, license="mit")
    with pytest.raises(ValueError, match="unknown parts: results. Known: before, after"):
        build_model_card({"results": {}}, license="mit")


# ------------------------------------------------------------------------------------------------- texts stay texts
@pytest.mark.parametrize("text", NASTY)
def test_text_is_shown_as_it_is(text):
    line = one_line(text)
    assert "\n" not in line and not re.search("[\x00-\x1f\u202e\ud800]", line)
    shown = plain(text)
    assert unescaped(shown) == line
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*<>#|~\[\]{}]", shown)
    assert not re.match(r"([-+](\s|-|$)|\d+[.)](\s|$))", shown)
    ticks = re.match("`+", code(text))[0]
    inner = code(text)[len(ticks) : -len(ticks)]
    assert inner.strip() == line and ticks not in re.findall("`+", inner)
    assert json.loads(literal(text)) == line and eval(literal(text)) == line
    assert len(blocks(f"before\n\n{block(text, 'shell')}\n\nafter", "shell")) == 1
    assert one_line(blocks(block(text, "shell"), "shell")[0]) == line


def card_full_of(text: str):
    """A card with a text wherever one of others can stand."""
    metrics = {
        **METRICS,
        "before": {**METRICS["before"], f"{text}_recall@1": 1.0},
        "after": {**METRICS["after"], f"{text}_recall@1": 2.0},
        "baselines": {text: {"shapes_recall@10": 1.7}},
        "run": {f"{text} option": text, "seed": text, "command": f"train --note {text}"},
        "data": {"triplets": text, f"{text} rows": 3},
        "protocols": {f"{text} benchmark": {text: text, "sizes": {text: 1}}},
        "environment": {"processor": text, "versions": {text: text}},
        "cost": {"seconds": 1.0, "energy Wh": 2.0, "energy scope": text},
    }
    options = {"limits": [text], "tags": [text], "datasets": [text], "projection_type": text, "base_revision": text}
    names = {"model_id": f"me/{text}", "base_model": "them/clip", "prompt_template": f"$ {text}"}
    return build_model_card(metrics, license="mit", **names, **options)


@pytest.mark.parametrize("text", [text for text in NASTY if text.strip()])
def test_card_with_such_texts_everywhere_is_still_a_card(text, tmp_path):
    from huggingface_hub import ModelCard

    usual, card = card_full_of("x"), card_full_of(text)
    card.save(tmp_path / "README.md")  # in UTF-8
    again = ModelCard.load(tmp_path / "README.md")

    assert again.data.to_dict() == card.data.to_dict()
    assert again.data.license == "mit" and again.data.base_model == "them/clip"
    assert headings(again.text)[1:] == headings(usual.text)[1:] and len(headings(again.text)) > 5
    for language, number in (("python", 2), ("shell", 2), ("bibtex", 1)):
        found = blocks(again.text, language)
        assert len(found) == number
        if language == "python":
            for source in found:
                compile(source, "card", "exec")
    for table in tables(again.text):
        assert {len(row) for row in table} == {len(table[0])}
    loaded = re.search(r"from_pretrained\((.*)\)\n", blocks(again.text, "python")[0])[1]
    assert json.loads(loaded) == one_line(f"me/{text}")

    # A parser finds the parts of any other card, nothing struck out, no link, no HTML; and in the cells the text.
    (counts, shown), (expected, _) = structure(again.text), structure(usual.text)
    assert counts == expected and counts["fence"] == 5 and not {"html_block", "html_inline", "image"} & counts.keys()
    assert shown.count(one_line(text)) >= 3


# ------------------------------------------------------------------------------------------------------ the kept cards
KEPT = sorted(folder.name for folder in CARDS.iterdir() if folder.is_dir())


@pytest.mark.parametrize("name", KEPT)
def test_kept_card_is_that_of_its_figures(name):
    folder = CARDS / name
    assert str(card_of(folder)) == (folder / "README.md").read_text(encoding="utf-8")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["drop_in"]["max difference"] <= 1e-5
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["seed"] == metrics["run"]["seed"] and recipe["license"] == metrics["card"]["license"]


def test_kept_card_follows_its_figures():
    (name,) = KEPT
    metrics = json.loads((CARDS / name / "metrics.json").read_text(encoding="utf-8"))
    metrics["after"]["shapes_recall@10"] += 0.1
    changed = build_model_card(metrics, **metrics["card"])
    assert str(changed) != (CARDS / name / "README.md").read_text(encoding="utf-8")


def test_index_of_the_cards_names_what_there_is():
    index = (CARDS / "README.md").read_text(encoding="utf-8")
    recipes = CARDS.parent / "examples" / "recipes"
    named = set(re.findall(r"`(?:examples/recipes/)?([\w]+\.yaml)`", index)) - {"recipe.yaml"}
    assert named and {name for name in named if not (recipes / name).is_file()} == set()
    assert {target for target in re.findall(r"\]\(([\w./-]+)\)", index) if not (CARDS / target).exists()} == set()
    assert {name for name in KEPT if f"({name}/README.md)" not in index} == set()
    planned = ("rtd-lincir", "rtd-searle", "rtd-pic2word", "rtd-context-i2w", "rtd-fti4cir")
    assert {f"{stem}-l14" for stem in planned if f"`{stem}-l14`" not in index} == set()
