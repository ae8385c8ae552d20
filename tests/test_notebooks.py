"""Runs the notebooks as a reader would: each cell, its assertions included."""

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbclient runs notebooks")
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs notebooks")
    pytest.importorskip("ipykernel", reason="nbclient runs them in ipykernel")
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(EXAMPLES)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_there_are_notebooks_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbclient runs notebooks")
    notebooks = [nbformat.read(path, as_version=4) for path in sorted(EXAMPLES.glob("*.ipynb"))]
    assert len(notebooks) == 3
    assert not any(cell.get("outputs") for notebook in notebooks for cell in notebook.cells)
