"""The notebook: what it keeps is clean, and is what a run of it gives.

    python tests/test_notebook.py

runs it and keeps the new outputs, after a change of it.
"""

import base64
import io
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest


ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "first_steps.ipynb"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
OFFLINE = "import sys\nsys.path.insert(0, {tests!r})\nfrom no_network import refuse_other_hosts\nrefuse_other_hosts()"
ABSOLUTE = re.compile(r"(?<![\w./<])/(?:\w+/)+\w|\b[A-Z]:\\|\bfile://")
NUMBER = re.compile(r"[-+]?\d+\.\d+")


def executed(folder: Path) -> nbformat.NotebookNode:
    """A run of the notebook in a new kernel that reaches no other host, in a folder of its own."""
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(OFFLINE.format(tests=str(ROOT / "tests"))))
    places = {name: str(folder / "jupyter") for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")}
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **places, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("MPLBACKEND", None)  # it would take the place of the notebook's own
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    del notebook.cells[0]
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def code_cells(notebook) -> dict[str, nbformat.NotebookNode]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def printed(cell) -> str:
    """What a cell says, without pictures and without the trainer's clock."""
    shown = [{"text": output.get("text", ""), **output.get("data", {})} for output in cell.outputs]
    texts = [one.get(kind, "") for one in shown for kind in ("text", "text/plain", "text/html")]
    return re.sub(r"\d+:\d\d", "", "\n".join(filter(None, texts)))


def alike(first: str, second: str) -> bool:
    """The same words, and numbers (points have one decimal) no further apart than another processor takes them."""
    if NUMBER.sub("#", first).split() != NUMBER.sub("#", second).split():
        return False
    pairs = zip(NUMBER.findall(first), NUMBER.findall(second), strict=True)
    return all(abs(float(one) - float(other)) <= (5 if one[-2] == "." else 0.03) for one, other in pairs)


@pytest.fixture(scope="module")
def kept():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_what_it_keeps_is_clean(kept):
    nbformat.validate(kept)
    assert NOTEBOOK.stat().st_size < 2**20
    assert kept.metadata == METADATA and not any(cell.metadata for cell in kept.cells)
    cells = code_cells(kept)
    assert [cell.execution_count for cell in cells.values()] == [*range(1, len(cells) + 1)]
    assert [name for name, cell in cells.items() if not cell.outputs] == ["quiet", "imports"]
    text = "\n".join([cell.source for cell in kept.cells] + [printed(cell) for cell in cells.values()])
    assert ABSOLUTE.findall(text) == []
    outputs = [output for cell in cells.values() for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)


def test_its_pictures_can_be_looked_at(kept):
    from PIL import Image

    shown = [
        Image.open(io.BytesIO(base64.b64decode(output.data["image/jpeg"])))
        for cell in code_cells(kept).values()
        for output in cell.outputs
        if "image/jpeg" in output.get("data", {})
    ]
    assert len(shown) == 4
    for image in shown:
        assert image.width > 300 and len(image.convert("L").getcolors()) > 20


@pytest.mark.slow
def test_a_run_gives_what_it_keeps(kept, tmp_path):
    run = executed(tmp_path)
    assert [cell.source for cell in run.cells] == [cell.source for cell in kept.cells]
    other = code_cells(kept)
    differing = {
        name: f"kept:\n{printed(other[name])}\nnow:\n{printed(cell)}"
        for name, cell in code_cells(run).items()
        if not alike(printed(other[name]), printed(cell)) or len(cell.outputs) != len(other[name].outputs)
    }
    assert not differing, "\n\n".join(differing.values())
    assert {path.name for path in tmp_path.iterdir()} == {"jupyter", "outputs"}


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        found = executed(Path(scratch))
    nbformat.write(found, NOTEBOOK)
    sys.stdout.write("\n".join(printed(cell) for cell in code_cells(found).values()) + f"\nWritten to {NOTEBOOK}\n")
