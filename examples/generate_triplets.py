"""Makes text triplets of captions, by rules or by a language model, and writes them with their provenance.

    python examples/generate_triplets.py --captions captions.jsonl --output triplets.parquet

`--generator rules` (the default) edits captions by templates, at thousands of triplets a second on one core;
`--similarity openai/clip-vit-large-patch14` has nouns replaced by what that CLIP finds similar. `--generator llm` asks
a language model, behind any OpenAI-compatible server, at a provider of the Hub, or on this machine:

    python examples/generate_triplets.py --captions captions.jsonl --output triplets.jsonl --generator llm \\
        --model NAME --base_url https://api.openai.com/v1 --api_key_env OPENAI_API_KEY \\
        --price_input 0.5 --price_output 2 --max_cost 5
    ... --generator llm --model Qwen/Qwen3-8B --backend local

`--generator llm --help` lists the options of one generator too. A run that was stopped goes on when it is started
again, and what a model answered is not asked again. `examples/inspect_triplets.py` then shows what came out.
"""

# ci: --captions shapes --num_captions 3000 --min_count 20 --output {tmp}/triplets.parquet
# ci: --captions shapes --num_captions 3000 --similarity shapes --quantiles --workers 2 --output {tmp}/triplets.jsonl
# ci: --generator rules --help
# ci: --generator llm --help

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from utils.arguments import given, one_screen_errors, parse, wants_help, with_recipe
from utils.resolved import shown_arguments


@dataclass
class ScriptArguments:
    captions: str = field(
        metadata={
            "help": "Captions: .json (also COCO's), .jsonl, .csv, .tsv, .parquet, .txt, a folder of such files, a Hub "
            "id (streamed), or `shapes`."
        }
    )
    output: str = field(metadata={"help": "New file, .parquet or .jsonl."})
    config: str | None = field(default=None, metadata={"help": "YAML recipe; other arguments override it."})
    generator: str = field(default="rules", metadata={"help": "`rules` or `llm`; --help then lists its options."})
    caption_column: str | None = field(default=None, metadata={"help": "Column of captions; usual names by default."})
    split: str = field(default="train", metadata={"help": "Split of a data set that has several."})
    num_captions: int | None = field(default=None, metadata={"help": "Only the first so many."})
    seed: int = field(default=0, metadata={"help": "Another seed makes other triplets of the same captions."})
    workers: int = field(default=1, metadata={"help": "Processes. The triplets do not depend on their number."})
    block_size: int = field(default=20_000, metadata={"help": "Captions between two points a run can go on from."})
    tokenizer: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the tokenizer that counts tokens for `longest_tokens`."}
    )
    push_to_hub: str | None = field(default=None, metadata={"help": "Id of a data set on the Hub to upload to."})
    public: bool = field(default=False, metadata={"help": "Whether a new data set on the Hub is public."})
    license: str = field(default="", metadata={"help": "Licence of the captions; required with `push_to_hub`."})


def captions_of(script: ScriptArguments):
    """The captions, readable as often as wanted."""
    from rtd_hf.triplets import Captions

    if script.captions == "shapes":
        from rtd_hf.shapes.pairs import SceneCaptions

        scenes = SceneCaptions(script.num_captions or 20_000, seed=script.seed)
        return [scenes[index]["caption"] for index in range(len(scenes))]
    return Captions(script.captions, column=script.caption_column, split=script.split, limit=script.num_captions)


def token_counter(name: str | None):
    """What counts the tokens of a text, if a tokenizer is named."""
    if name is None:
        return None
    from rtd_hf.tokens import load_tokenizer

    tokenizer = load_tokenizer(name)
    return lambda text: len(tokenizer(text)["input_ids"])


def generator_of(script: ScriptArguments, options):
    """The generator; by rules with the text encoder under which nouns are similar, if one is named."""
    from rtd_hf.triplets import GENERATORS

    more = {}
    if script.generator == "rules" and options.similarity != "corpus":
        from utils.embedding import text_embedder

        more["encode"] = text_embedder(options.similarity, device=options.device)
    return GENERATORS[script.generator](options, seed=script.seed, **more)


def main(script: ScriptArguments, filtering, options) -> None:
    from rtd_hf.triplets import TripletFilter, generate_triplets
    from rtd_hf.triplets.publishing import build_triplet_card, push_triplets

    # what can be refused is refused before any work is done
    command = " ".join(["python examples/generate_triplets.py", *shown_arguments(sys.argv[1:])])
    if script.push_to_hub and (not script.license or Path(script.output).suffix != ".parquet"):
        raise ValueError("`--push_to_hub` needs `--license`, that of the captions, and an `--output` in Parquet.")
    started = time.perf_counter()
    triplet_filter = TripletFilter(filtering, count_tokens=token_counter(script.tokenizer))
    made = generate_triplets(
        generator_of(script, options),
        captions_of(script),
        script.output,
        workers=script.workers,
        filter=triplet_filter,
        block_size=script.block_size,
    )
    seconds = time.perf_counter() - started
    sys.stdout.write(f"{made.rows:,} triplets of {made.captions:,} captions in {seconds:.0f} s: {made.path}\n")
    for reason, number in made.skipped.most_common():
        sys.stdout.write(f"  left out: {number:,} {reason}\n")
    for source, number in triplet_filter.contaminated.most_common():
        sys.stdout.write(f"  {number:,} hold a text of {source}\n")
    if script.push_to_hub:
        card = build_triplet_card(
            made.path,
            license=script.license,
            repo_id=script.push_to_hub,
            captions=script.captions,
            command=command,
            skipped=made.skipped,
        )
        sys.stdout.write(push_triplets(made.path, script.push_to_hub, card, private=not script.public) + "\n")
    sys.stdout.write(f"Look at them: python examples/inspect_triplets.py {json.dumps(str(made.path))}\n")


def arguments(argv: list[str]) -> tuple:
    """The generator first, because the options are its own."""
    tokens = with_recipe(argv)
    name = given(tokens, "generator")
    description = "Makes text triplets of captions. `--generator NAME --help` lists the options of one generator too."
    if wants_help(argv) and name is None:
        parse((ScriptArguments,), argv, default_recipe=None, description=description)
    from rtd_hf.triplets import GENERATORS, FilterOptions

    kinds = (ScriptArguments, FilterOptions, GENERATORS[name or "rules"].options_class)
    return parse(kinds, argv, default_recipe=None, description=description)


if __name__ == "__main__":
    with one_screen_errors():
        main(*arguments(sys.argv[1:]))
