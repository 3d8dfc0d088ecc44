"""A page to search by a picture and a text: ranked results before and after RTD, side by side.

    python examples/app.py
    python examples/app.py --model ORG/RTD_ENCODER --pictures FOLDER
    python examples/app.py --model ORG/RTD_ENCODER --pictures FOLDER --write_space space

Without arguments it draws some hundreds of pictures of the offline world, and takes the encoder that the README's main
command leaves in outputs/rtd_shapes. It listens on this computer alone; nothing is sent anywhere, and what visitors
send is removed as soon as it is read. `--write_space` writes a folder that is ready to be pushed as a Hub Space.
"""

# ci: --check
# ci: --check --write_space {tmp}/space
# ci: --help

import sys
from dataclasses import dataclass, field
from pathlib import Path

from utils.arguments import one_screen_errors, parse


HERE = Path(__file__).resolve().parent
DEFAULT_MODEL = "outputs/rtd_shapes"
# For pictures of which nothing is known.
TEXTS = ("at night", "in the snow", "as a drawing", "seen from far away", "without people")


@dataclass
class AppArguments:
    model: str = field(default=DEFAULT_MODEL, metadata={"help": "Hub id of a trained encoder, or folder of a run."})
    base_model: str = field(
        default="", metadata={"help": "Hub id or folder of the CLIP it belongs to, where it does not name it."}
    )
    pictures: str = field(
        default="", metadata={"help": "Folder of pictures; by default pictures of the offline world are drawn."}
    )
    features: str = field(default="", metadata={"help": "Folder in which the pictures' embeddings are kept."})
    leave_out_unreadable: bool = field(
        default=False, metadata={"help": "Leave out pictures that cannot be read; by default they end the start."}
    )
    device: str = field(default="cpu", metadata={"help": "Where the models are put, such as `cuda`."})
    host: str = field(
        default="", metadata={"help": "Address to listen on; GRADIO_SERVER_NAME, or this computer alone, by default."}
    )
    port: int = field(default=0, metadata={"help": "GRADIO_SERVER_PORT, or the first free one from 7860, by default."})
    check: bool = field(default=False, metadata={"help": "Start, search once over HTTP, and stop."})
    write_space: str = field(default="", metadata={"help": "Write a Hub Space into this folder, and stop."})
    requirement: str = field(default="rtd_hf", metadata={"help": "How a Space installs this package, for pip."})
    config: str = field(default="", metadata={"help": "YAML file with these options; app.yaml beside it by default."})


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def check_arguments(args: AppArguments) -> None:
    """Refuses what cannot work before anything heavy is loaded."""
    if args.model == DEFAULT_MODEL and not Path(args.model).is_dir():
        raise FileNotFoundError(
            f"There is no trained encoder in {DEFAULT_MODEL} yet. `accelerate launch examples/train_rtd.py` makes it "
            f"in about a minute; `--model` takes a Hub id, or the folder of another run."
        )
    if not 0 <= args.port < 65536:
        raise ValueError(f"`--port` must lie between 0 and 65535, got {args.port}.")
    if args.pictures:
        from rtd_hf.search.galleries import folder_gallery

        folder_gallery(args.pictures)
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError("The page is made with Gradio, which is missing: `pip install gradio`.") from error


def load(args: AppArguments, folder: Path):
    """The models, and an index of the pictures."""
    from utils.page_search import PageSearch, draw_world, examples_for

    drawn, pictures = [], Path(args.pictures)
    if not args.pictures:
        pictures = folder / "pictures"
        pictures.mkdir()
        drawn = draw_world(pictures)
    search = PageSearch.load(
        args.model,
        pictures,
        base_model=args.base_model,
        features=args.features,
        device=args.device,
        strict=not args.leave_out_unreadable,
    )
    search.examples = drawn or examples_for(search.ids, TEXTS)
    return search


def search_once(search, address: str) -> None:
    """The first example over HTTP, and in Python; they must agree."""
    from gradio_client import Client
    from utils.page_search import results_of

    picture, text = search.examples[0]
    client = Client(address, verbose=False, analytics_enabled=False)
    client.predict(picture, api_name="/choose")
    before, after, *_, message = client.predict(text, 0.5, "", 6, api_name="/search")
    found = search.search(search.choose(picture), text)
    for page, side in ((before, found.before), (after, found.after)):
        if message or results_of(page) != [hit.id for hit in side.hits]:
            raise ValueError(f"The page does not show what the search finds. {message}")
    say(f"{picture}: {text}")
    say(f"  before: {', '.join(results_of(before))}")
    say(f"  after:  {', '.join(results_of(after))}")


def main(args: AppArguments) -> None:
    import signal

    from utils.page import build_page, own_files, start

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that its files are removed then too
    with own_files() as folder:
        check_arguments(args)
        if args.write_space:
            from utils.page_space import write_space

            say(f"Written to {write_space(args.write_space, args, HERE)}: a Hub Space, as its README.md says.")
            if not args.check:
                return
        search = load(args, folder)
        page = build_page(search, folder)
        address = start(page, host=args.host, port=args.port)
        say(f"{len(search.ids):,} pictures, {search.name}: {address}")
        try:
            if args.check:
                search_once(search, address)
            else:
                page.block_thread()
        finally:
            page.close(verbose=False)


if __name__ == "__main__":
    with one_screen_errors():
        beside = HERE / "app.yaml"
        (parsed,) = parse(
            (AppArguments,),
            sys.argv[1:],
            default_recipe=beside if beside.is_file() else None,
            description="A page to search by a picture and a text, before and after RTD.",
        )
        main(parsed)
