"""Writes a text encoder in a form that other software reads, or reads one out of such a form.

    python examples/convert_encoder.py --to open_clip --model MODEL --output_dir outputs/open_clip
    python examples/convert_encoder.py --to sentence_transformers --model MODEL --base openai/clip-vit-large-patch14 \\
        --output_dir outputs/for_sentence_transformers
    python examples/convert_encoder.py --from auto --checkpoint text_encoder_best.pt \\
        --base openai/clip-vit-large-patch14 --output_dir outputs/encoder

MODEL is a folder or Hub id of ours, with its projection in the folder `projection`, or any CLIP in `transformers`'
layout. What is written is read again and compared where it can be. Nothing in a checkpoint that is read is run.
`shapes` as a model or base is the small CLIP of the offline world.
"""

# ci: --to open_clip --model shapes --output_dir {tmp}
# ci: --to open_clip_custom --model shapes --output_dir {tmp}
# ci: --to rtd --model shapes --output_dir {tmp}
# ci: --to clip_model --model shapes --base shapes --output_dir {tmp}
# ci: --from auto --demo open_clip --output_dir {tmp}
# ci: --from rtd --demo rtd --base shapes --output_dir {tmp}

import argparse
import sys
import tempfile
from pathlib import Path

from utils.arguments import one_screen_errors, without_warnings
from utils.encoders import load_text_encoder
from utils.parts import WORLD_PROJECTIONS


PROJECTION_FOLDER = "projection"


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    from rtd_hf.layouts import LAYOUTS

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="layouts:\n" + "\n".join(f"  {name:22} {cls.summary}" for name, cls in LAYOUTS.items()),
    )
    readable = [name for name, cls in LAYOUTS.items() if cls.readable]
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", choices=list(LAYOUTS), help="The layout to write.")
    way.add_argument("--from", dest="source", choices=["auto", *readable], help="The layout to read; `auto` looks.")
    parser.add_argument(
        "--model", default="shapes", help="With --to: folder or Hub id of the text encoder, or a `.pt`."
    )
    parser.add_argument("--adapter", default="", help="With --to: folder or Hub id of a PEFT adapter of it.")
    parser.add_argument(
        "--projection",
        help="With --to: folder or Hub id of the projection it was trained with, or a name of ours for the small "
        "CLIP; by default the folder `projection` of --model, for the layouts that need one.",
    )
    parser.add_argument("--checkpoint", help="With --from: the file; on the Hub `repo_id:filename`.")
    parser.add_argument("--demo", choices=readable, help="With --from: read the small CLIP's tower in this layout.")
    parser.add_argument(
        "--base",
        help="The CLIP that the text encoder belongs to: folder or Hub id; for --to open_clip and openai the file of "
        "a whole model in that layout, whose text tower is replaced.",
    )
    parser.add_argument("--revision", help="Revision of --base on the Hub.")
    parser.add_argument("--hidden_act", choices=["quick_gelu", "gelu"], help="With --from: where there is no --base.")
    parser.add_argument("--output_dir", required=True, help="New, empty or earlier output folder.")
    args = parser.parse_args()
    if args.source and not (bool(args.checkpoint) ^ bool(args.demo)):
        parser.error("--from needs either --checkpoint or --demo")
    return args


def named(source: str | None) -> str | None:
    """The folder of the small CLIP where that is meant."""
    from rtd_hf.shapes import ASSETS

    return str(ASSETS / "clip") if source == "shapes" else source


def write(args: argparse.Namespace) -> None:
    from rtd_hf.layouts import LAYOUTS, export_layout
    from rtd_hf.tokens import load_tokenizer

    layout = LAYOUTS[args.to]
    wanted = {*layout.needs, *layout.takes}
    model, base = named(args.model), named(args.base)
    encoder = load_text_encoder(model, base or model, adapter=args.adapter)
    parts = {"base": base, "revision": args.revision}
    if "tokenizer" in wanted:
        parts["tokenizer"] = load_tokenizer(base if Path(model).is_file() else model)
    if "projection" in wanted and (args.projection or "projection" in layout.needs):
        parts["projection"] = load_projection(args.projection, model)
    written = export_layout(encoder, args.output_dir, layout=args.to, **parts)
    say(f"written: {written}")
    if layout.readable:
        compare(encoder, written, args.to)


def load_projection(source: str | None, model: str):
    from rtd_hf import ImageToWordProjection
    from rtd_hf.contexts import quiet_transformers
    from rtd_hf.shapes import ASSETS

    name = "lincir" if source == "shapes" else source
    with quiet_transformers():
        if source is None:
            return ImageToWordProjection.from_pretrained(model, subfolder=PROJECTION_FOLDER)
        return ImageToWordProjection.from_pretrained(str(ASSETS / name) if name in WORLD_PROJECTIONS else name)


def compare(encoder, written: Path, layout: str) -> None:
    """Reads what was written, which has to be the same weights."""
    from rtd_hf.layouts import import_layout

    found = import_layout(written, layout=layout, hidden_act=encoder.config.hidden_act).state_dict()
    own = encoder.state_dict()
    differing = [name for name in {*own, *found} if name not in own or not _same(own[name], found.get(name))]
    if differing:
        raise ValueError(f"`{written}` does not give back `{differing[0]}`. Do not use it; write it again.")
    say(f"{len(own)} tensors are equal after reading it again.")


def _same(own, found) -> bool:
    return found is not None and own.to(found.dtype).equal(found)


def read(args: argparse.Namespace, checkpoint: str | Path) -> None:
    from rtd_hf import export_text_encoder, prepare_output_dir, verify_drop_in
    from rtd_hf.layouts import import_layout
    from rtd_hf.tokens import load_tokenizer

    folder, base = prepare_output_dir(args.output_dir), named(args.base)
    model, report = import_layout(
        checkpoint,
        layout=None if args.source == "auto" else args.source,
        base=base,
        revision=args.revision,
        hidden_act=args.hidden_act,
        output_loading_info=True,
    )
    say(str(report))
    tokenizer = None if base is None else load_tokenizer(base, revision=args.revision or "main")
    export_text_encoder(model, folder, tokenizer=tokenizer)
    if tokenizer is not None:
        proof = verify_drop_in(folder, model, tokenizer=tokenizer)
        say(f"{proof.num_tensors} tensors; embeddings differ by {proof.max_difference:g} after reloading.")
    say(f'\n  CLIPTextModelWithProjection.from_pretrained("{folder}")')


def main() -> None:
    with one_screen_errors(), without_warnings():
        args = parse_arguments()
        if args.to:
            write(args)
        elif args.checkpoint:
            read(args, args.checkpoint)
        else:
            from rtd_hf.layouts import export_layout

            with tempfile.TemporaryDirectory() as folder:
                encoder = load_text_encoder(named("shapes"), named("shapes"))
                read(args, export_layout(encoder, folder, layout=args.demo))


if __name__ == "__main__":
    main()
