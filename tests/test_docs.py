"""The documentation site: every block of its tutorials runs and prints what stands there, and the site is whole."""

import contextlib
import functools
import http.server
import inspect
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_examples import run

import rtd_hf


ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "examples" / "docs"
PAGES = DOCS / "pages"
BLOCK = re.compile(r'^(?:<!-- within ([\d.]+) -->\n)?```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)
NUMBER = r"(?<![\w@.])[-+]?\d[\d,]*(?:\.\d+)?"
NAMES = sorted(set(rtd_hf.__all__) - {"__version__"})
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
BROWSER = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)


# ------------------------------------------------------------------------------------------------------ the tutorials
class PageRun:
    """Runs the blocks of a page, in order, in the present folder, where `examples` is that of the checkout."""

    def __init__(self, page: Path, monkeypatch: pytest.MonkeyPatch):
        self.page, self.monkeypatch = page, monkeypatch
        self.names = {"__name__": "page"}
        self.printed = ""

    def run(self) -> None:
        text = self.page.read_text(encoding="utf-8")
        blocks = list(BLOCK.finditer(text))
        assert len(re.findall("^ *(?:```|~~~)", text, flags=re.M)) == 2 * len(blocks), f"{self.page}: an unknown block"
        for block in blocks:
            within, language, title, body = block.groups()
            place = f"{self.page.name}:{text.count(chr(10), 0, block.start(2)) + 1}"
            if title:
                Path(title).write_text(body, encoding="utf-8")
            elif language == "text":
                agrees(body, self.printed, within=float(within or 0), place=place)
            else:
                self.printed = self._output(place, language, body)

    def _output(self, place: str, language: str, body: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            if language == "python":
                exec(compile(body, place, "exec"), self.names)
            else:
                assert language == "shell", f"{place}: nothing checks a block of {language} without a title"
                self._shell(body)
        return printed.getvalue()

    def _shell(self, body: str) -> None:
        for line in body.replace("\\\n", " ").splitlines():
            program, script, *arguments = shlex.split(line)
            assert program == "python" and script.startswith("examples/"), line
            run(script.removeprefix("examples/"), *arguments, monkeypatch=self.monkeypatch)


def agrees(shown: str, printed: str, *, within: float, place: str) -> None:
    """What a page shows was printed; `...` stands for anything, numbers that stand alone may differ by `within`."""
    pattern, numbers = "", []
    for piece in re.finditer(rf"(?P<any>\.\.\.)|(?P<number>{NUMBER})|(?P<space>\s+)|.", shown.strip(), flags=re.S):
        if piece["number"]:
            numbers.append(float(piece["number"].replace(",", "")))
        forms = {"any": ".*?", "number": f"({NUMBER})", "space": r"\s+"}
        pattern += forms.get(piece.lastgroup, re.escape(piece[0]))
    found = re.fullmatch(pattern, printed.strip(), flags=re.S)
    assert found, f"{place} shows\n{shown}\nbut this was printed:\n{printed}"
    for expected, number in zip(numbers, found.groups(), strict=True):
        difference = abs(float(number.replace(",", "")) - expected)
        assert difference <= within + 1e-9, f"{place} shows {expected}, {number} was printed"


def tutorials() -> list[Path]:
    """In the order in which they are to be read: some use what an earlier one wrote, and say so."""
    pages = re.findall(r"tutorials/\w+\.md", (DOCS / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(PAGES / page for page in pages) == sorted((PAGES / "tutorials").glob("*.md"))
    return [PAGES / page for page in pages]


def test_tutorials_print_what_they_show(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples", target_is_directory=True)
    monkeypatch.syspath_prepend(str(tmp_path))  # a page imports the module that it wrote
    for page in tutorials():
        with monkeypatch.context() as patch:
            PageRun(page, patch).run()
    assert "<script" not in Path("report.html").read_text(encoding="utf-8")
    sys.modules.pop("residual")
    rtd_hf.PROJECTIONS.pop("residual")


@pytest.mark.parametrize(
    ("shown", "printed", "within"),
    [
        ("gain +1.5", "gain +1.6", 0.05),
        ("R@1 20.0", "R@5 20.0", 3),
        ("3 of 30", "3 of 30\nand more", 0),
        ("a b", "ab", 0),
        ("4 steps", "5 steps", 0),
    ],
)
def test_a_page_that_shows_something_else_is_found(shown, printed, within):
    with pytest.raises(AssertionError, match="here"):
        agrees(shown, printed, within=within, place="here")


def test_a_page_may_leave_out_and_be_near():
    agrees("gain  +1.5\n...\nlast 1,000", "gain +1.58\nmore\n  last 1,000\n", within=0.1, place="here")


def test_home_page_has_the_readme_s_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"<!-- main-command -->\n```shell\n(.*?)\n```", readme)[1].split(" && ")
    (_, _, _, install), (_, _, _, main) = BLOCK.findall((PAGES / "index.md").read_text(encoding="utf-8"))
    assert install == " && ".join(command[:2]) + "\nsource .venv/bin/activate\n"
    assert main == command[2].removeprefix(".venv/bin/") + "\n"


# ------------------------------------------------------------------------------------------------- what is generated
@pytest.fixture(scope="module")
def hooks():
    """The modules of `hooks/`."""
    pytest.importorskip("mkdocs")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "hooks"))
        import collect
        import docstrings
        import generate
        import markup

        yield {module.__name__: module for module in (collect, docstrings, generate, markup)}


def test_every_public_name_has_its_place(hooks):
    groups = hooks["generate"].groups()
    assert sorted(name for names in groups.values() for name in names) == NAMES
    pages = {group: hooks["generate"].api_page(group, names) for group, names in groups.items()}
    assert all(f"::: rtd_hf.{name}" in pages[group].splitlines() for group, names in groups.items() for name in names)


def test_a_docstring_becomes_markdown(hooks):
    docstring = inspect.cleandoc("""
        Does it, as [`CIREncoder`] and [`Hidden`] do.

        Args:
            first (`str` or `os.PathLike`, *optional*, defaults to `"a: b"`): What it is,
                over two lines.
            second, third (`Callable[[int], str]`):
                Both.
            *others: More.

        Returns:
            `dict[str, int]`: what was found.

        Raises:
            ValueError, OSError: It is wrong.

        ```python
        x = "[`CIREncoder`]"
        ```
        """)
    assert hooks["markup"].linked(hooks["docstrings"].markdown_of(docstring)).split("\n\n") == [
        "Does it, as [`CIREncoder`][rtd_hf.CIREncoder] and `Hidden` do.",
        "**Arguments**",
        '`first` (`str` or `os.PathLike`, *optional*, defaults to `"a: b"`)\n:   What it is,\n    over two lines.',
        "`second`, `third` (`Callable[[int], str]`)\n:   Both.",
        "`*others`\n:   More.",
        "**Returns**",
        "`dict[str, int]`: what was found.",
        "**Raises**",
        "`ValueError`, `OSError`\n:   It is wrong.",
        '```python\nx = "[`CIREncoder`]"\n```',
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_docstring_is_understood(hooks, name):
    """What a signature takes and a docstring explains is an entry of its list, whatever stands around it."""
    value = getattr(rtd_hf, name)
    told = inspect.getdoc(value) or ""
    made = hooks["docstrings"].markdown_of(told)
    left = re.findall(rf"^(?:{'|'.join(hooks['docstrings'].SECTIONS)}):$", made, flags=re.M)
    assert left == []
    listed = {entry for line in re.findall(r"^(`[^(]+)(?: \(.*)?\n:", made, flags=re.M) for entry in line.split("`")}
    if callable(value) and not isinstance(value, dict):
        taken = [parameter for parameter in inspect.signature(value).parameters if f"\n    {parameter} (" in told]
        assert [parameter for parameter in taken if parameter not in listed] == []


def test_formulas_need_no_script(hooks):
    import markdown

    made = markdown.markdown(
        r"Of \\(t_i \cdot v_i\\), `\\(code\\)`, and" "\n\n" r"$$L = \frac{1}{2N}$$",
        extensions=[hooks["markup"].Mathematics()],
    )
    assert made.count("<math") == 2 and made.count('display="block"') == 1 and "<mfrac>" in made
    assert r"<code>\\(code\\)</code>" in made and "$" not in made


@pytest.mark.parametrize("script", ["push_to_hub.py", "report.py"])
def test_commands_are_those_of_the_help(hooks, monkeypatch, capsys, script):
    """Once with dataclasses, once with argparse alone."""
    with pytest.raises(SystemExit):
        run(script, "--help", monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    options = hooks["collect"].options_of(hooks["collect"].parser_of(ROOT / "examples" / script))
    wanted = set(re.findall(r"^  (--\w+)", shown, flags=re.M))
    assert {option["name"] for option in options if option["name"].startswith("--")} == wanted
    squeezed = "".join(shown.split())
    assert all("".join(option["help"].split()) in squeezed for option in options)


# ----------------------------------------------------------------------------------------------------------- the site
@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built strictly: a broken link, a missing anchor or an unknown page is an error."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file"]
    done = subprocess.run(
        [*command, str(DOCS / "mkdocs.yml"), "--site-dir", str(folder)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_site_documents_every_public_name(site):
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    api = "".join(text for name, text in pages.items() if name.startswith("api/") and name != "api/index.html")
    assert [name for name in NAMES if f'id="rtd_hf.{name}"' not in api] == []
    assert [name for name in NAMES if f"#rtd_hf.{name}" not in pages["api/index.html"]] == []
    prose = re.sub(r"<(pre|code|script|math)\b.*?</\1>", "", api, flags=re.S)
    assert re.findall(r"\[<code>|\[`|\\\\\(|\$\$|<p>Args:|<p>Raises:", prose) == []
    fields = [name for name in vars(rtd_hf.RTDTrainingArguments)["__dataclass_fields__"] if name == "noise_scale"]
    assert fields and "<code>noise_scale</code>" in pages["api/training.html"]
    scripts = [path.name for path in (ROOT / "examples").glob("*.py")]
    assert [name for name in scripts if f">{name}<" not in pages["commands.html"]] == []
    assert "| R@1" not in pages["index.html"] and "upper bound" in pages["index.html"]  # the README's table, as one


@pytest.fixture(scope="module")
def address(site):
    """The site over HTTP, for the search is off where pages are opened as files."""
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Says nothing."""


@pytest.mark.slow
def test_site_asks_no_other_host_and_fits_a_phone(site, address):
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no browser: `apt-get install chromium`, or name one in the environment variable CHROMIUM")
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    assert len(pages) > 18
    asked_for, faults, brightness = [], [], {}
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"])
        for (size, (width, height)), scheme in zip(SIZES.items(), ("light", "dark"), strict=True):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            page = context.new_page()
            page.on("request", lambda request: asked_for.append(request.url))
            page.on("response", lambda answer: faults.append(answer.url) if answer.status >= 400 else None)
            page.on("pageerror", lambda fault: faults.append(str(fault)))
            for name in pages if size == "phone" else ["index.html", "method.html"]:
                page.goto(f"{address}/{name}", wait_until="load")
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, f"{name} is {wide} pixels wide on a {size}"
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            brightness[scheme] = sum(map(int, re.findall(r"\d+", colour)[:3]))
            if size == "desktop":
                page.get_by_role("textbox", name="Search").click()
                page.keyboard.type("noise_scale")
                page.get_by_text("matching documents").wait_for(timeout=30_000)
        browser.close()
    outside = [url for url in asked_for if not url.startswith((address, "data:", "blob:"))]
    assert outside == [] and faults == [] and len(asked_for) > len(pages)
    assert brightness["dark"] < 200 < 600 < brightness["light"]
