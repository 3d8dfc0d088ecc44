"""The page of `app.py`: what is on it, and what happens when it is used."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path

from . import page_html as show
from .page_search import MAX_BYTES, MAX_RESULTS, PageError, PageSearch, Reference


logger = logging.getLogger(__name__)

IN_LINE = 32  # searches that wait; who comes then is told to come back
AT_ONCE = 2
_SESSIONS = 200
_HOUR = 3600
_PER_PAGE = 12  # pictures of the folder that are shown at once
_EXAMPLES = 5
# Gradio's own are too pale to be read easily (WCAG asks for a contrast of 4.5).
_COLOURS = {
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "input_placeholder_color": "*neutral_500",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700",
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
}
_OOPS = "Something went wrong here, and was noted. Try again, or choose another picture."


@contextmanager
def own_files() -> Iterator[Path]:
    """
    A folder of its own for all that the page writes, removed at the end. Has to come before Gradio is imported.

    Yields:
        `Path`: The folder.
    """
    with tempfile.TemporaryDirectory(prefix="rtd_hf_page_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "gradio")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        (Path(folder) / "gradio").mkdir()
        yield Path(folder)


def guarded(outputs: int) -> Callable:
    """
    What a visitor did wrong becomes a message on the page; what went wrong here goes into the log alone.

    Args:
        outputs (`int`): How many values the function returns before the message; they stay as they are on the page.
    """

    def decorate(function: Callable) -> Callable:
        @wraps(function)
        def guard(*values):
            import gradio as gr

            unchanged = [gr.skip() for _ in range(outputs)]
            try:
                return (*function(*values), "")
            except PageError as error:
                return (*unchanged, show.error(str(error)))
            except Exception:
                logger.exception("A request failed")
                return (*unchanged, show.error(_OOPS))

        return guard

    return decorate


def _picture_button(label: str, **options):
    """A button that sends a picture, whose file is read once, and removed at once."""
    import gradio as gr

    def read_once(payload) -> bytes | None:
        if payload is None:
            return None
        path = Path(payload.path)
        try:
            with path.open("rb") as stream:
                return stream.read(MAX_BYTES + 1)
        finally:
            path.unlink()

    button = gr.UploadButton(label, file_types=["image"], **options)
    button.preprocess = read_once  # of the instance: for a class of ours Gradio would write a file beside this one
    return button


class _Handlers:
    """What the page does; a visitor's own things are handed in and out, and nothing of them is kept here."""

    def __init__(self, search: PageSearch):
        self.search = search

    def _found(self, reference, text, weight, avoid, k):
        found = self.search.search(reference, text, text_weight=weight, avoid=avoid or "", k=k)
        shown, pictures = self.search.shown, len(self.search.ids)
        note = show.hint("The text is longer than the model reads: its end was left out.") if found.was_cut else ""
        facts = note + show.legend() + show.facts(found, reference, pictures)
        return show.before(found, shown), show.after(found, shown), facts

    def ask(self, reference, text, weight, avoid, k):
        return self._found(reference, text, weight, avoid, k)

    def choose(self, name) -> tuple[Reference, str]:
        if not isinstance(name, str) or not name.strip():
            raise PageError("Type the name of a picture of the folder.")
        reference = self.search.choose(name.strip())
        return reference, show.reference(reference)

    def click(self, start, place) -> tuple[Reference, str]:
        ids = self.search.ids
        if not isinstance(place, int) or not 0 <= start + place < len(ids):
            raise PageError("There is no such picture.")
        return self.choose(ids[start + place])

    def upload(self, content) -> tuple[Reference, str]:
        if not content:
            raise PageError("The file is empty. Choose a picture.")
        reference = self.search.upload(content)
        return reference, show.reference(reference)

    def example(self, number: int, k):
        example = self.search.examples[number]
        reference, shown = self.choose(example.picture)
        return reference, shown, example.text, 0.5, "", *self._found(reference, example.text, 0.5, "", k)

    def turn(self, start: int, step: int) -> tuple[int, list]:
        from PIL import Image

        number = len(self.search.ids)
        start = start + step if 0 <= start + step < number else 0
        names = self.search.ids[start : start + _PER_PAGE]
        return start, [(Image.open(_stream(self.search.thumbnail(name))), name) for name in names]


def _stream(content: bytes):
    import io

    return io.BytesIO(content)


def build_page(search: PageSearch, folder: Path):
    """
    The page.

    Args:
        search ([`PageSearch`]): What it asks.
        folder (`Path`): From [`own_files`].

    Returns:
        `gradio.Blocks`, to be started by [`start`].
    """
    import gradio as gr

    do, many = _Handlers(search), len(search.ids) > _PER_PAGE
    with gr.Blocks(
        title="Composed image retrieval", analytics_enabled=False, delete_cache=(_HOUR // 6, _HOUR // 2)
    ) as page:
        reference, start = gr.State(None, time_to_live=_HOUR), gr.State(0, time_to_live=_HOUR)
        gr.HTML(show.title(search.name, len(search.ids)), elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300, elem_id="question"):
                chosen = gr.HTML(elem_id="reference")
                pictures = gr.Gallery(
                    label="Pictures of the folder: click on one", show_label=False, allow_preview=False, buttons=[],
                    columns=6, height="auto", object_fit="cover", format="png", container=False, elem_id="pictures",
                )  # fmt: skip
                with gr.Row():
                    upload = _picture_button("Send a picture", size="sm", min_width=110, elem_id="upload")
                    back = gr.Button("Earlier", size="sm", min_width=60, visible=many)
                    on = gr.Button("More", size="sm", min_width=60, visible=many)
                text = gr.Textbox(
                    label="What should be different?", placeholder="is red", lines=1, max_lines=3, elem_id="change"
                )
                ask = gr.Button("Search", variant="primary", elem_id="ask")
                with gr.Accordion("More options", open=False):
                    weight = gr.Slider(
                        0, 1, 0.5, step=0.05, label="Weight of the text",
                        info="0: the picture alone; 0.5: the composed query; 1: the text alone", elem_id="weight",
                    )  # fmt: skip
                    avoid = gr.Textbox(label="What must not be seen", placeholder="a blue ring", elem_id="avoid")
                    k = gr.Slider(1, MAX_RESULTS, 6, step=1, label="Number of results", elem_id="number")
                    name = gr.Textbox(
                        label="Choose a picture by its name", placeholder=search.ids[0], max_lines=1,
                        submit_btn="Choose", elem_id="name",
                    )  # fmt: skip
            with gr.Column(scale=5, min_width=300):
                message = gr.HTML(elem_id="message")
                with gr.Row(equal_height=False):
                    with gr.Column(min_width=300):
                        before = gr.HTML()
                    with gr.Column(min_width=300):
                        after = gr.HTML()
                facts = gr.HTML(elem_id="facts")
                tries = _example_buttons(search, folder)
        results = [before, after, facts, message]
        searched = [reference, text, weight, avoid, k]
        picked = [reference, chosen, message]
        gr.on(
            [ask.click, text.submit, avoid.submit], guarded(3)(do.ask), searched, results,
            api_name="search", show_progress_on=[after],
        )  # fmt: skip
        name.submit(guarded(2)(do.choose), name, picked, api_name="choose")
        upload.upload(guarded(2)(do.upload), upload, picked, api_name="upload")

        def clicked(first, event: gr.SelectData):
            return guarded(2)(do.click)(first, event.index)

        pictures.select(clicked, start, picked, api_visibility="private")
        turned = {"inputs": start, "outputs": [start, pictures], "api_visibility": "private"}
        on.click(lambda at: do.turn(at, _PER_PAGE), **turned)
        back.click(lambda at: do.turn(at, -_PER_PAGE), **turned)
        page.load(lambda at: do.turn(at, 0), **turned)
        filled = [reference, chosen, text, weight, avoid, *results]
        for number, button in enumerate(tries):
            button.click(guarded(8)(partial(do.example, number)), k, filled, api_visibility="private")
        if tries:
            page.load(guarded(8)(partial(do.example, 0)), k, filled, api_visibility="private")
    return page.queue(max_size=IN_LINE, default_concurrency_limit=AT_ONCE)


def _example_buttons(search: PageSearch, folder: Path) -> list:
    import gradio as gr

    icons = folder / "icons"
    icons.mkdir(exist_ok=True)
    buttons = []
    if search.examples:
        gr.HTML("<h2>Try one of these</h2>", elem_id="tries")
    with gr.Row(elem_id="examples"):
        for number, example in enumerate(search.examples[:_EXAMPLES]):
            icon = icons / f"{number}.jpg"
            icon.write_bytes(search.thumbnail(example.picture))
            buttons.append(gr.Button(example.text, icon=str(icon), size="sm", min_width=200))
    return buttons


def start(page, *, host: str = "", port: int = 0):
    """
    Starts the page, with this computer's fonts, limits on requests, and no telemetry.

    Args:
        page (`gradio.Blocks`): From [`build_page`].
        host (`str`, *optional*): Address that it listens on; `GRADIO_SERVER_NAME` or this computer alone by default.
        port (`int`, *optional*): `GRADIO_SERVER_PORT`, or the first free one from 7860 on, by default.

    Returns:
        `str`: Its address.

    Raises:
        OSError: The port is taken.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    from .page_guard import Guard

    fonts = {"font": ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"], "font_mono": ["monospace"]}
    _, address, _ = page.launch(
        server_name=host or None,
        server_port=port or None,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        show_error=False,
        max_file_size=MAX_BYTES,
        state_session_capacity=_SESSIONS,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        allowed_paths=[],
        footer_links=[],
        app_kwargs={"middleware": [Middleware(Guard, max_upload=MAX_BYTES, folder=os.environ["GRADIO_TEMP_DIR"])]},
        theme=gr.themes.Default(primary_hue="orange", neutral_hue="slate", **fonts).set(**_COLOURS),
        css=show.CSS,
    )
    return address
