"""Files as an accident, another program or an attacker leaves them: seeded changes that know what they change."""

import io
import json
import os
import pickle
import random
import re
import struct
import zipfile
import zlib
from pathlib import Path


WORDS = (b"null", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"true", b'""', b"[]", b"{}", b"9" * 30, b"9" * 5000)
VALUES = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, 1e300, float("nan"), float("inf"), -float("inf"), "", "x", "$"),
    *("../../../../etc/passwd", "/etc/passwd", "\x00", "\ud800", "é" * 300, "-1", "NaN", [], {}, [[]], [None], [{}]),
    *({"x": 1}, {"": None}, ["a", 1], "https://example.com/x.jpg", 1.0, 12345, "0", "a b"),
)
ENCODINGS = ("utf-16", "utf-32", "utf-8-sig", "latin-1", "utf-7", "cp037")
YAML = (
    "a: !!python/object/apply:os.system ['{command}']\n",
    "!!python/object/new:os.system ['{command}']\n",
    "a: !!python/name:os.system\n",
    "a: !!python/module:os\n",
    "a: !!timestamp nonsense\nb: !!bool nonsense\n",
    "a: !!timestamp nonsense\n",
    "a: !!int nonsense\n",
    "a: !!binary '*'\n",
    "a: 2001-99-99\n",
    "? [1, {{2: 3}}]\n: x\n",
    "a: &a [*a]\n",
    "a: *nothing\n",
    "a: " + "[" * 3000 + "\n",
    "&a [x]: *a\n",
    "a: &a {{x: 1}}\nb: {{<<: [*a, *a]}}\nc: {{<<: 3}}\n",
    "\x00",
    "a:\t- b\n",
    "- a\n- b\n",
    "1: 2\nnull: 3\ntrue: 4\n[]: 5\n",
    "--- a\n--- b\n",
    "include: {{a: 1}}\n",
    "include: [../../../../../../etc/passwd]\n",
    "include: 3\n",
)


class Command:
    """A pickle of it runs a shell command."""

    def __init__(self, command: str, way: str):
        self.command, self.way = command, way

    def __reduce__(self):
        functions = {
            "os.system": (os.system, (self.command,)),
            "eval": (eval, (f"__import__('os').system({self.command!r})",)),
            "exec": (exec, (f"import os; os.system({self.command!r})",)),
        }
        return functions[self.way]


def laughs(levels: int = 9, width: int = 9) -> str:
    """A YAML text of few lines that stands for `width ** levels` values."""
    lines = ["a0: &a0 [" + ",".join(["lol"] * width) + "]"]
    lines += [f"a{n}: &a{n} [" + ",".join([f"*a{n - 1}"] * width) + "]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def packed_zeros(size: int) -> bytes:
    """A `.gz` file of zeros a thousandth as large as what it unpacks to."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = bytes(1 << 20)
    return b"".join([*(packer.compress(piece) for _ in range(size >> 20)), packer.flush()])


def huge_png(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG file of some bytes that says it has 3.6 thousand million pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    chunks.append((b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class Mutator:
    """
    Changes files, each change drawn from the seed alone.

    Args:
        seed (`str`): Decides everything.
        canary (`Path`): The file that a payload makes where it runs.
    """

    def __init__(self, seed: str, canary: Path):
        self.rng, self.canary = random.Random(seed), canary
        self.did = ""  # what the last change was, for messages

    @property
    def command(self) -> str:
        return f"touch {self.canary}"

    def __call__(self, path: Path) -> None:
        """Changes a file, once or several times, in a way that fits its kind."""
        ways = [self.bytes_of] * 2 + self._ways_of(path.name.removesuffix(".gz"))
        steps = []
        for _ in range(1 if self.rng.random() < 0.7 else self.rng.randint(2, 4)):
            way = self.rng.choice(ways)
            data = path.read_bytes()
            path.write_bytes(way(data))
            steps.append(f"{path.name}: {self.did}")
        self.did = "; ".join(steps)

    def _ways_of(self, name: str) -> list:
        suffix = Path(name).suffix.lower()
        text = [self.encoding_of, self.words_of, self.lines_of]
        if suffix == ".json":
            return [self.json_of] * 5 + text + [self.deep]
        if suffix == ".jsonl":
            return [self.json_lines_of] * 5 + text + [self.deep]
        if suffix in (".yaml", ".yml"):
            return [self.yaml_of] * 5 + text
        if suffix in (".csv", ".tsv", ".txt", ".md", ".py"):
            return text * 2
        if suffix == ".safetensors":
            return [self.safetensors_of] * 4
        if suffix in (".pt", ".pth", ".bin"):
            return [self.zip_of] * 4 + [self.pickle_of]
        if suffix in (".parquet", ".arrow"):
            return [self.table_of] * 4
        if suffix in (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
            return [self.picture_of] * 2
        return [self.pickle_of] if suffix in (".npy", ".pkl") else []

    # Bytes

    def bytes_of(self, data: bytes) -> bytes:
        """Flips bits, cuts, repeats, removes, or writes over some of it."""
        rng, size = self.rng, len(data)
        self.did = kind = rng.choice(("flip", "cut", "remove", "repeat", "over", "zeros", "empty", "append", "front"))
        start = rng.randrange(size + 1)
        # What matters often stands in the first and the last bytes.
        start = rng.choice((start, min(start % 64, size), max(0, size - start % 64)))
        end = min(size, start + rng.choice((1, 2, 8, 64, 4096)))
        if kind == "flip" and size:
            changed = bytearray(data)
            for _ in range(rng.choice((1, 1, 3, 20))):
                changed[rng.randrange(size)] ^= 1 << rng.randrange(8)
            return bytes(changed)
        middle = {
            "remove": b"",
            "repeat": data[start:end] * rng.choice((2, 5)),
            "over": rng.randbytes(end - start),
            "zeros": bytes(end - start),
        }
        if kind in middle:
            return data[:start] + middle[kind] + data[end:]
        whole = {
            "cut": data[:start],
            "empty": b"",
            "append": data + rng.randbytes(9),
            "front": rng.randbytes(3) + data,
        }
        return whole.get(kind, data)

    # Text

    def encoding_of(self, data: bytes) -> bytes:
        """Saves text anew, in another encoding."""
        name = self.rng.choice(ENCODINGS)
        self.did = f"saved as {name}"
        return data.decode("utf-8", "replace").encode(name, "replace")

    def words_of(self, data: bytes) -> bytes:
        """Puts something else in the place of a number or a word in it."""
        found = list(re.finditer(rb"[\w.+-]+", data))
        if not found:
            return data
        place, word = self.rng.choice(found), self.rng.choice(WORDS)
        self.did = f"{place[0][:20]!r} -> {word[:20]!r}"
        return data[: place.start()] + word + data[place.end() :]

    def lines_of(self, data: bytes) -> bytes:
        """Removes, repeats or swaps lines, or changes how they end."""
        lines, rng = data.split(b"\n"), self.rng
        self.did = kind = rng.choice(("lose a line", "repeat a line", "swap lines", "CR", "CRLF", "NUL", "quote"))
        place = rng.randrange(len(lines))
        if kind == "lose a line":
            del lines[place]
        elif kind == "repeat a line":
            lines.insert(place, lines[place])
        elif kind == "swap lines":
            rng.shuffle(lines)
        elif kind in ("NUL", "quote"):
            lines[place] += {"NUL": b"\x00", "quote": b'"'}[kind]
        return {"CR": b"\r", "CRLF": b"\r\n"}.get(kind, b"\n").join(lines)

    def deep(self, data: bytes) -> bytes:
        """Nests something a hundred thousand times."""
        self.did = "nested deeply"
        opening, closing = self.rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
        deep = opening * 100_000 + b"1" + (closing * 100_000 if self.rng.random() < 0.5 else b"")
        return deep if self.rng.random() < 0.5 or not data else data[:-1] + b"," + deep + data[-1:]

    # JSON and YAML

    def json_of(self, data: bytes) -> bytes:
        """Changes one value, key or entry of a JSON text."""
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            return self.bytes_of(data)
        return json.dumps(self.values_of(content)).encode()

    def json_lines_of(self, data: bytes) -> bytes:
        """The same in one of the lines."""
        lines = data.split(b"\n")
        place = self.rng.randrange(len(lines))
        lines[place] = self.json_of(lines[place])
        return b"\n".join(lines)

    def values_of(self, content):
        """Changes one place of nested values: another value or kind, an entry lost, renamed, or one more."""
        rng, places = self.rng, []
        waiting = [content]
        while waiting and len(places) < 5000:
            holder = waiting.pop()
            keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
            places += [(holder, key) for key in keys]
            waiting += [holder[key] for key in keys]
        if not places or rng.random() < 0.03:
            self.did = "another value at the top"
            return rng.choice(VALUES)
        # The fields that hold all the others are few, but matter as much.
        holder, key = rng.choice(places[:8] if rng.random() < 0.4 else places)
        kind, value = rng.choice(("value", "value", "value", "lose", "more", "wrap")), rng.choice(VALUES)
        self.did = f"{kind} at {str(key)[:30]!r}: {str(value)[:30].encode(errors='replace')!r}"
        if kind == "lose":
            del holder[key]
        elif kind == "wrap":
            holder[key] = rng.choice(([holder[key]], {"x": holder[key]}, str(holder[key])))
        elif kind == "more" and isinstance(holder, dict):
            holder[rng.choice(("x", "", str(value)[:9], "__class__", "auto_map"))] = value
        elif kind == "more":
            holder.insert(key, value)
        else:
            holder[key] = value
        return content

    def yaml_of(self, data: bytes) -> bytes:
        """Adds a line that YAML reads in a way of its own."""
        line = self.rng.choice((*YAML, laughs()))
        self.did = f"YAML {line[:40]!r}"
        line = line if line.startswith("a0:") else line.replace("{{", "{").replace("}}", "}")
        text = line.replace("{command}", self.command).encode()
        return self.rng.choice((text, data + b"\n" + text, text + data))

    # Archives of tensors

    def pickle_of(self, data: bytes) -> bytes:
        """A pickle that runs a command."""
        way = self.rng.choice(("os.system", "eval", "exec"))
        self.did = f"a pickle of {way}"
        return pickle.dumps(Command(self.command, way), protocol=self.rng.choice((0, 2, 4)))

    def zip_of(self, data: bytes) -> bytes:
        """Changes the entries of a zip archive: names that lead out of it, bombs, twins, other pickles, lost ones."""
        kinds = ("escape", "bomb", "twin", "pickle", "lose", "packed", "flip", "prefix", "many")
        kind = self.rng.choice(kinds)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zlib.error):
            return self.bytes_of(data)
        self.did = f"zip {kind}"
        place = self.rng.randrange(len(entries)) if entries else 0
        name, content = entries[place] if entries else ("archive/data.pkl", b"")
        if kind == "pickle":
            place = next((n for n, (name, _) in enumerate(entries) if name.endswith("data.pkl")), place)
            name, content = entries[place] if entries else (name, content)
        changed = {
            "escape": [(f"../../{self.canary.name}", content)],
            "bomb": [(name, bytes(1 << 26))],
            "twin": [(name, content), (name, content[::-1])],
            "pickle": [(name, self.pickle_of(content))],
            "lose": [],
            "flip": [(name, self.bytes_of(content))],
            "many": [(f"{name}{n}", b"") for n in range(3000)],
        }
        entries[place : place + 1] = changed.get(kind, [(name, content)])
        packed = zipfile.ZIP_DEFLATED if kind in ("packed", "bomb") else zipfile.ZIP_STORED
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", packed) as archive:
            for name, content in entries:
                archive.writestr(name, content)
        return (b"x" * 7 if kind == "prefix" else b"") + buffer.getvalue()

    def safetensors_of(self, data: bytes) -> bytes:
        """Changes the header of a safetensors file, its length with it."""
        length = int.from_bytes(data[:8], "little")
        try:
            header = json.loads(data[8 : 8 + length])
        except (ValueError, RecursionError):
            return self.bytes_of(data)
        text = json.dumps(self.values_of(header)).encode()
        self.did = f"safetensors {self.did}"
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    # Tables and pictures

    def table_of(self, data: bytes) -> bytes:
        """A table with a column of another type, name or number of values."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        rng, parquets = self.rng, data[:4] == b"PAR1"
        try:
            if parquets:
                table = parquet.read_table(io.BytesIO(data))
            else:
                file = data[:6] == b"ARROW1"
                opened = (pa.ipc.open_file if file else pa.ipc.open_stream)(io.BytesIO(data))
                table = opened.read_all()
            rows, names = len(table), table.column_names
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, KeyError, IndexError):
            return self.bytes_of(data)
        if not names or len(set(names)) < len(names):
            return self.bytes_of(data)
        name = rng.choice(names)
        kinds = (
            *((1, pa.int64()), (None, pa.null()), (b"\xff", pa.binary()), (0.5, pa.float64()), (True, pa.bool_())),
            *((["a"], pa.list_(pa.string())), ({"a": "b"}, pa.struct({"a": pa.string()})), (-1, pa.int32())),
            *((10**9, pa.timestamp("us")), ("a", pa.large_string()), ("a", pa.dictionary(pa.int32(), pa.string()))),
        )
        others = [pa.array([value] * rows, kind) for value, kind in kinds]
        kind = rng.choice(("type", "type", "type", "name", "lose", "twin", "none", "metadata", "nulls"))
        self.did = f"table {kind} of {name}"
        at = names.index(name)
        if kind == "type":
            table = table.set_column(at, name, rng.choice(others))
        elif kind == "name":
            table = table.rename_columns([*names[:at], rng.choice(("x", "", "é", "a.b")), *names[at + 1 :]])
        elif kind == "lose":
            table = table.drop_columns([name])
        elif kind == "twin":
            table = table.append_column(name, table.column(name))
        elif kind == "none":
            table = table.slice(0, 0)
        elif kind == "nulls":
            own = table.schema.field(at).type
            table = table.set_column(at, name, pa.nulls(rows, own))
        else:
            known = dict(table.schema.metadata or {})
            key = rng.choice([*known, b"x"])
            known[key] = rng.choice((b"", b"{", b"null", b"[]", b'{"a": 1}', self.json_of(known.get(key, b"{}"))))
            table = table.replace_schema_metadata(known)
        buffer = io.BytesIO()
        if parquets:
            parquet.write_table(table, buffer)
        else:
            with (pa.ipc.new_file if file else pa.ipc.new_stream)(buffer, table.schema) as writer:
                writer.write_table(table)
        return buffer.getvalue()

    def picture_of(self, data: bytes) -> bytes:
        """Another file in the place of a picture: a bomb, a text, a program of PostScript, other kinds of pictures."""
        kind = self.rng.choice(("bomb", "svg", "postscript", "html", "tiff", "gif", "webp", "ico", "mode"))
        self.did = f"picture {kind}"
        given = {
            "bomb": huge_png(),
            "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
            "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
            "html": b"<!DOCTYPE html><title>404</title>",
            "ico": b"\x00\x00\x01\x00\x01\x00" + self.rng.randbytes(40),
        }
        if kind in given:
            return given[kind]
        from PIL import Image

        mode = self.rng.choice(("1", "L", "LA", "P", "RGBA", "CMYK", "I", "F", "I;16", "YCbCr"))
        buffer = io.BytesIO()
        image = Image.new(mode if kind == "mode" else "L", (self.rng.choice((1, 9)), 7))
        format_name = {"mode": "TIFF"}.get(kind, kind.upper())
        image.save(buffer, format_name)
        return self.bytes_of(buffer.getvalue())
