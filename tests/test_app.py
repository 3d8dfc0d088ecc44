"""`examples/app.py`: what the page shows is what the retriever finds, over HTTP; bad input; what stays closed."""

import asyncio
import base64
import html
import io
import json
import re
import struct
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from page_server import APP, page_server, write_run
from PIL import Image

from rtd_hf.search import ComposedImageRetriever, word_effects


gradio_client = pytest.importorskip("gradio_client")
sys.path.insert(0, str(APP.parent))
from utils import page_html, page_search  # noqa: E402


NOTHING_OF_THE_MACHINE = re.compile(r"Traceback|site-packages|\.py\b|/tmp|/home|/root|/var|Error\b")
DEFAULTS = (0.5, "", 6)  # weight of the text, what to avoid, how many


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "rtd_small")


@pytest.fixture(scope="module")
def server(run_folder, tmp_path_factory):
    with page_server("--model", str(run_folder), files=tmp_path_factory.mktemp("files")) as started:
        yield started


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    page_search.draw_world(folder)
    return folder


@pytest.fixture(scope="module")
def retrievers(run_folder, pictures):
    """Before and after RTD, in Python, each with an index of its own."""
    made = {}
    for name, original in (("before", True), ("after", False)):
        made[name] = ComposedImageRetriever.from_pretrained(run_folder, original=original)
        made[name].index(pictures)
    return made


@pytest.fixture(scope="module")
def world(run_folder, pictures):
    """What the page asks, without the page."""
    return page_search.PageSearch.load(str(run_folder), pictures)


@pytest.fixture
def client(server):
    return gradio_client.Client(server.address, verbose=False, analytics_enabled=False)


def hits_of(page: str) -> list[tuple[str, float]]:
    return [
        (html.unescape(name), float(score)) for name, score in re.findall(r'data-id="(.*?)" data-score="(.*?)"', page)
    ]


def same(page: str, hits) -> None:
    found = hits_of(page)
    assert [name for name, _ in found] == [hit.id for hit in hits]
    assert [score for _, score in found] == pytest.approx([hit.score for hit in hits], abs=2e-6)


def told(message: str) -> str:
    """A message to the visitor; it must be one, and tell nothing of the machine."""
    assert 'role="alert"' in message
    text = html.unescape(re.sub("<.*?>", "", message))
    assert not NOTHING_OF_THE_MACHINE.search(text), text
    return text


def request(server, path: str, *, body: bytes | None = None, headers=None) -> tuple[int, bytes, dict]:
    asked = urllib.request.Request(server.address + path, data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def multipart(name: str, content: bytes) -> tuple[bytes, dict]:
    head = f'--xx\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return head + content + b"\r\n--xx--\r\n", {"Content-Type": "multipart/form-data; boundary=xx"}


def bomb(side: int) -> bytes:
    """A PNG file of some kilobytes that says it is `side` pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )


# ------------------------------------------------------------------------------------------- what is shown is what is
@pytest.mark.parametrize(("text", "weight", "avoid", "k"), [("is red", *DEFAULTS), ("has a ring", 0.7, "a star", 9)])
def test_the_page_shows_what_the_retriever_finds(client, retrievers, pictures, text, weight, avoid, k):
    assert "00004.png" in client.predict("00004.png", api_name="/choose")[0]
    *sides, facts, message = client.predict(text, weight, avoid, k, api_name="/search")
    assert message == ""
    picture, ask = pictures / "00004.png", {"text_weight": weight, "avoid": avoid or None}
    for page, retriever in zip(sides, retrievers.values(), strict=True):
        hits = retriever.search(picture, text, k, **ask)
        same(page, hits)
        effects = word_effects(retriever, picture, text, [hits[0].id], text_weight=weight)
        shown = re.findall(r"<span style=[^>]*>(.*?)<b>(.*?)</b>", page)
        assert [word for word, _ in shown] == text.split()
        assert [float(value) for _, value in shown] == pytest.approx([one.mean for one in effects], abs=6e-4)
    assert hits_of(sides[0]) != hits_of(sides[1])
    everywhere = retrievers["before"].search(picture, text, 10**6, **ask)
    ranks = {hit.id: rank for rank, hit in enumerate(everywhere, 1)}
    moves = re.findall(r'title="Rank (\d+) before, (\d+) after"|(= as before)', sides[1])
    assert len(moves) == k
    for place, ((name, _), (old, new, _)) in enumerate(zip(hits_of(sides[1]), moves, strict=True), 1):
        assert (int(old), int(new)) == (ranks[name], place) if old else ranks[name] == place
    assert len(re.findall(r"[\d.]+ ms", facts)) == 4


def test_a_picture_that_is_sent_counts_as_it_is_and_is_removed(client, server, retrievers, tmp_path):
    from PIL import ImageOps

    path = tmp_path / "mine.jpg"
    drawn = Image.new("RGB", (64, 40), "navy")
    drawn.paste((250, 120, 0), (4, 4, 24, 24))
    exif = drawn.getexif()
    exif[0x0112] = 6  # as a phone stores a picture that was taken upright
    drawn.save(path, exif=exif)
    shown, message = client.predict(gradio_client.handle_file(path), api_name="/upload")
    assert message == "" and "your picture" in shown and "mine" not in shown
    *sides, _, message = client.predict("is green", *DEFAULTS, api_name="/search")
    assert message == ""
    turned = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert turned.size == (40, 64)
    for page, retriever in zip(sides, retrievers.values(), strict=True):
        same(page, retriever.search(turned, "is green", 6))
    left = [file for file in server.files.rglob("*") if file.is_file() and file.read_bytes() == path.read_bytes()]
    assert left == [] and not list(server.files.rglob("mine*.*"))


def test_two_visitors_at_once_keep_their_own(server, retrievers, pictures):
    asked = {"00002.png": "is red", "00040.png": "has a white background"}
    wanted = {name: retrievers["after"].search(pictures / name, text, 6) for name, text in asked.items()}
    found, faults, together = {name: [] for name in asked}, [], threading.Barrier(2)

    def visit(name: str, text: str) -> None:
        try:
            visitor = gradio_client.Client(server.address, verbose=False, analytics_enabled=False)
            visitor.predict(name, api_name="/choose")
            together.wait(60)
            for _ in range(3):
                found[name].append(visitor.predict(text, *DEFAULTS, api_name="/search"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test has to see it
            faults.append(error)

    threads = [threading.Thread(target=visit, args=pair) for pair in asked.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    for name, answers in found.items():
        assert len(answers) == 3
        for answer in answers:
            same(answer[1], wanted[name])


def test_a_visitor_has_no_picture_before_one_is_chosen(client):
    assert "Choose a picture first" in told(client.predict("is red", *DEFAULTS, api_name="/search")[3])


# ----------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("", 0.5, "", 6), "Say what should be different"),
        ((" \n\t ", 0.5, "", 6), "Say what should be different"),
        (("red " * 2500, 0.5, "", 6), "The change has 10,000 characters. Say it in at most 500."),
        (("red", 0.5, "x" * 501, 6), "The text to avoid has 501 characters"),
    ],
)
def test_bad_texts_get_a_message_and_the_page_goes_on(client, values, message):
    client.predict("00004.png", api_name="/choose")
    assert message in told(client.predict(*values, api_name="/search")[3])
    assert client.predict("is red", *DEFAULTS, api_name="/search")[3] == ""


@pytest.mark.parametrize(
    "values", [("red", 2, "", 6), ("red", -1, "", 6), ("red", 0.5, "", 0), ("red", 0.5, "", 10**9)]
)
def test_numbers_that_no_slider_gives_are_refused(client, values):
    client.predict("00004.png", api_name="/choose")
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        client.predict(*values, api_name="/search")
    assert re.search("(minimum|maximum) value", str(caught.value))
    assert not NOTHING_OF_THE_MACHINE.search(str(caught.value))
    assert client.predict("is red", *DEFAULTS, api_name="/search")[3] == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_weight": 1.5}, "between 0 and 1"),
        ({"text_weight": None}, "between 0 and 1"),
        ({"text_weight": float("nan")}, "between 0 and 1"),
        ({"k": 0}, "between 1 and 48"),
        ({"k": float("nan")}, "between 1 and 48"),
        ({"k": "6"}, "between 1 and 48"),
        ({"avoid": 5}, "must be a text"),
        ({"avoid": "red \ud83d"}, "The text to avoid holds signs that are cut in half"),
    ],
)
def test_the_search_refuses_what_is_no_number_or_text(world, options, message):
    with pytest.raises(page_search.PageError, match=message):
        world.search(world.choose("00004.png"), "is red", **options)


def test_a_name_and_an_orientation_that_make_no_sense(world):
    with pytest.raises(page_search.PageError, match="There is no picture called “\\?.png”"):
        world.choose("\ud83d.png")
    whole = io.BytesIO()
    scene = Image.new("RGB", (60, 40), "red")
    scene.save(whole, "PNG", exif=b"Exif\0\0no entries at all")
    wanted = world.after.encode_images([scene])[0]
    found = world.upload(whole.getvalue()).features.image_embeds[0]
    np.testing.assert_allclose(found / found.norm(), wanted, atol=1e-5)
    whole, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    scene.save(whole, "PNG", exif=exif)
    shown = base64.b64decode(world.upload(whole.getvalue()).shown.partition(",")[2])
    width, height = Image.open(io.BytesIO(shown)).size
    assert width < height  # stored lying, shown upright


def test_the_picture_alone_needs_no_text(client, retrievers, pictures):
    client.predict("00004.png", api_name="/choose")
    before, after, _, message = client.predict("", 0, "", 6, api_name="/search")
    assert message == "" and hits_of(before) == hits_of(after)
    same(after, retrievers["after"].search(pictures / "00004.png", None, 6, text_weight=0))


def test_a_text_that_is_cut_is_said_to_be(client):
    client.predict("00004.png", api_name="/choose")
    facts, message = client.predict("red " * 80, *DEFAULTS, api_name="/search")[2:]
    assert message == "" and "its end was left out" in facts
    assert "left out" not in client.predict("red " * 20, *DEFAULTS, api_name="/search")[2]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../../../etc/passwd", "..", "pictures/../00001.png", "x" * 5000, "a\0b", "00001.PNG"]
)
def test_names_that_lead_out_of_the_folder_find_nothing(client, name):
    shown, message = client.predict(name, api_name="/choose")
    assert "There is no picture called" in told(message)
    assert "root:" not in str(shown)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.png", b"only words", "not a picture"),
        ("cut.png", None, "damaged or cut short"),
        ("page.png", b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", "not a picture"),
        ("program.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a picture"),
        ("bomb.png", bomb(30_000), "million pixels"),
        ("large.png", bomb(9_000), "9000 × 9000 pixels"),
    ],
)
def test_files_that_are_no_pictures_get_a_message(client, server, pictures, tmp_path, name, content, message):
    whole = io.BytesIO()
    Image.effect_noise((300, 300), 90).save(whole, "PNG")
    (tmp_path / name).write_bytes(whole.getvalue()[:30_000] if content is None else content)
    client.predict("00004.png", api_name="/choose")
    answer = client.predict(gradio_client.handle_file(tmp_path / name), api_name="/upload")
    assert message in told(answer[1])
    assert not list(server.files.rglob(name))
    assert client.predict("is red", *DEFAULTS, api_name="/search")[3] == ""  # the picture from before is still chosen


def test_100_megabytes_are_refused_as_they_come(server):
    body, headers = multipart("huge.png", bytes(100 * 2**20))
    try:
        status, answer, _ = request(server, "/gradio_api/upload", body=body, headers=headers)
    except (urllib.error.URLError, ConnectionError):
        status, answer = 413, b""  # the connection was closed before all was sent
    assert status == 413 and not NOTHING_OF_THE_MACHINE.search(answer.decode())
    assert sum(file.stat().st_size for file in server.files.rglob("*") if file.is_file()) < 40 * 2**20
    assert request(server, "/config")[0] == 200


def test_a_folder_with_one_picture_has_nothing_to_find(run_folder, tmp_path):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "only.png")
    search = page_search.PageSearch.load(str(run_folder), tmp_path)
    found = search.search(search.choose("only.png"), "is blue")
    assert found.before.hits == found.after.hits == []
    assert "nothing but the reference" in page_html.after(found, search.shown)
    assert page_search.examples_for(search.ids, ["a", "b"]) == [("only.png", "a"), ("only.png", "b")]


# --------------------------------------------------------------------------------------------------- what stays closed
def test_files_of_the_machine_cannot_be_had(server, run_folder, pictures):
    drawn = next(server.files.rglob("00004.png"))
    for path in ("/etc/passwd", "../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", str(drawn),
                 str(run_folder / "config.json"), str(APP), "app.py", "utils/page.py"):  # fmt: skip
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/"):
            status, body, _ = request(server, route + path)
            assert status in (403, 404, 405), (route, path, status)
            assert b"root:" not in body and b"import" not in body


def join(server, data: list, event: int) -> tuple[int, bytes]:
    body = json.dumps({"data": data, "fn_index": event, "session_hash": "abc"}).encode()
    status, answer, _ = request(
        server, "/gradio_api/queue/join?", body=body, headers={"Content-Type": "application/json"}
    )
    if status != 200:
        return status, answer
    return status, request(server, "/gradio_api/queue/data?session_hash=abc")[1]


def test_an_upload_cannot_name_a_file_of_the_machine_or_an_address(server, pictures):
    hits = []

    class Count(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 - the name is given
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()

    listener = HTTPServer(("127.0.0.1", 0), Count)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    config = json.loads(request(server, "/config")[1])
    event = {one["api_name"]: one["id"] for one in config["dependencies"]}
    try:
        for path in (f"http://127.0.0.1:{listener.server_port}/x.png", "HTTPS://example.org/x.png"):
            named = {"path": path, "meta": {"_type": "gradio.FileData"}}
            assert join(server, [named], event["upload"])[0] == 400
            assert join(server, [None, {"a": [named]}, 0.5, "", 6], event["search"])[0] == 400
        for path in ("/etc/passwd", str(pictures / "00001.png"), str(next(server.files.rglob("00004.png")))):
            named = {"path": path, "meta": {"_type": "gradio.FileData"}}
            answer = join(server, [named], event["upload"])[1]
            assert b"your picture" not in answer and b"root:" not in answer and b"Traceback" not in answer
            assert Path(path).is_file()
    finally:
        listener.shutdown()
        listener.server_close()
    assert hits == []


def test_requests_are_limited_and_closed_routes_are_not_there(server):
    for route in (
        "process_recording",
        "vibe-edit/",
        "undo-vibe-edit/",
        "proxy=http://127.0.0.1:1/",
        "component_server/",
    ):
        for body in (None, b"{}"):
            assert request(server, f"/gradio_api/{route}", body=body)[0] == 404, route
    for route in ("queue/join", "run/search", "call/search"):
        body = json.dumps({"data": ["x" * 300_000, 0.5, "", 6]}).encode()
        status, answer, _ = request(
            server, f"/gradio_api/{route}", body=body, headers={"Content-Type": "application/json"}
        )
        assert status == 413 and b"too large" in answer


def test_uploads_that_nobody_uses_do_not_fill_the_disk(tmp_path, monkeypatch):
    from utils import page_guard

    monkeypatch.setattr(page_guard, "MAX_WAITING", 1000)
    sent = []

    async def app(scope, receive, send):
        sent.append({"status": 200})

    async def send(message):
        sent.append(message)

    def upload() -> int:
        sent.clear()
        guard = page_guard.Guard(app, max_upload=100, folder=tmp_path)
        asyncio.run(guard({"type": "http", "method": "POST", "path": "/gradio_api/upload"}, None, send))
        return sent[0]["status"]

    (tmp_path / "some").mkdir()
    assert upload() == 200
    (tmp_path / "some" / "waits.png").write_bytes(bytes(10_000))
    assert upload() == 503


def test_the_page_asks_no_other_host(server, run_folder):
    status, page, headers = request(server, "/")
    assert status == 200
    assert (
        "default-src 'self'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
    )
    head = re.sub(rb"<meta[^>]*>", b"", page)
    assert not re.findall(rb"""(?:src|href)=["']?https?://""", head)
    config = json.loads(request(server, "/config")[1])
    assert config["analytics_enabled"] is False
    for place in (run_folder, APP.parents[1], Path.home() / "x"):  # Gradio names its own temporary files, no others
        assert str(place) not in json.dumps(config)
    assert b"fonts.googleapis" not in request(server, "/theme.css")[1]


def test_texts_are_shown_and_never_run(client):
    client.predict("00004.png", api_name="/choose")
    for side in client.predict("<img src=x onerror=alert(1)> ${alert(2)} {{x}}", *DEFAULTS, api_name="/search")[:2]:
        words = re.findall(r"<span style=[^>]*>(.*?)<b>", side)
        assert [html.unescape(word) for word in words] == [
            "<img",
            "src=x",
            "onerror=alert(1)>",
            "${alert(2)}",
            "{{x}}",
        ]
        assert not re.search("[<>${}]", "".join(words))


def test_names_of_files_are_shown_and_never_run(world):
    reference = world.choose("00004.png")
    found = world.search(reference, "is red")
    name = '"><script>x</script>.png'
    found.after.hits[0] = found.after.hits[0]._replace(id=name)
    found.after.ranks[name] = 1
    shown = page_html.after(found, lambda name: "data:,")
    assert "<script" not in shown and hits_of(shown)[0][0] == name


def test_what_goes_wrong_here_is_logged_and_not_told(caplog):
    from utils.page import guarded

    def broken(value):
        raise RuntimeError(f"/secret/{value}")

    *others, message = guarded(2)(broken)("x")
    assert len(others) == 2 and "Something went wrong" in told(message) and "secret" not in message
    assert "/secret/x" in caplog.text


def test_the_server_met_nothing_unforeseen(server):
    assert "A request failed" not in server.log
    assert not list((APP.parent / "utils").glob("*.pyi"))  # Gradio writes one beside a class that it is given


# ----------------------------------------------------------------------------------------------------------- the start
def run(*arguments: str, monkeypatch, tmp_path) -> None:
    import runpy

    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "False")  # put back afterwards
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(APP), *arguments])
    runpy.run_path(str(APP), run_name="__main__")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"no trained encoder in outputs/rtd_shapes.*accelerate launch examples/train_rtd.py"),
        (("--model", "{run}", "--pictures", "{empty}"), "hold no pictures"),
        (("--model", "{run}", "--pictures", "{empty}/nowhere"), "There is no folder"),
        (("--model", "{run}", "--port", "99999"), "`--port` must lie"),
        (("--model", "{run}", "--picturs", "x"), "Did you mean `pictures`"),
    ],
)
def test_a_start_that_cannot_work_says_why(arguments, message, run_folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    places = {"run": run_folder, "empty": tmp_path / "empty"}
    with pytest.raises(SystemExit, match=message):
        run(*(one.format(**places) for one in arguments), monkeypatch=monkeypatch, tmp_path=tmp_path)


def test_help_needs_no_gradio(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as caught:
        run("--help", monkeypatch=monkeypatch, tmp_path=tmp_path)
    assert caught.value.code == 0 and "--write_space" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------- the Space
@pytest.fixture(scope="module")
def space(run_folder, pictures, tmp_path_factory):
    import runpy
    from importlib.metadata import version

    from utils.page_space import write_space

    some = tmp_path_factory.mktemp("some") / "pictures"
    (some / "more").mkdir(parents=True)
    for number in range(14):
        name = f"{number:05d}.png"
        (some / ("more" if number % 2 else "") / name).write_bytes((pictures / name).read_bytes())
    arguments = runpy.run_path(str(APP))["AppArguments"](
        model=str(run_folder), pictures=str(some), requirement=f"rtd_hf=={version('rtd_hf')}"
    )
    return write_space(tmp_path_factory.mktemp("space") / "space", arguments, APP.parent)


def test_the_space_is_whole(space):
    from importlib.metadata import version

    from huggingface_hub import SpaceCard

    data = SpaceCard.load(space / "README.md").data
    assert (data.sdk, data.sdk_version, data.app_file) == ("gradio", version("gradio"), "app.py")
    assert tuple(map(int, data.python_version.split("."))) >= (3, 11)
    assert len(data.to_dict()["short_description"]) <= 60 and data.to_dict()["colorFrom"] in COLOURS
    assert data.to_dict()["colorTo"] in COLOURS and data.to_dict()["title"]
    assert (space / "requirements.txt").read_text().startswith("rtd_hf==")
    assert (space / "model" / "model.safetensors").is_file() and (space / "pictures" / "more" / "00001.png").is_file()
    named = set(re.findall(r"from \.(\w+) import|from utils\.(\w+) import", "".join(
        file.read_text() for file in [space / "app.py", *(space / "utils").glob("*.py")])))  # fmt: skip
    missing = {name for pair in named for name in pair if name} - {
        file.stem for file in (space / "utils").glob("*.py")
    }
    assert not missing


COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}  # those the Hub knows


@pytest.mark.slow
def test_the_space_starts_as_the_hub_starts_it(space, tmp_path):
    with page_server(files=tmp_path / "files", app=space / "app.py", cwd=space) as started:
        visitor = gradio_client.Client(started.address, verbose=False, analytics_enabled=False)
        assert visitor.predict("more/00001.png", api_name="/choose")[1] == ""
        after = visitor.predict("at night", *DEFAULTS, api_name="/search")[1]
        assert len(hits_of(after)) == 6 and "14" in started.log
    assert list((tmp_path / "files").glob("rtd_hf_page_*")) == []
