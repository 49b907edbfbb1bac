"""The notebooks run from top to bottom, and their text is what jupytext makes notebooks of."""

from pathlib import Path

import matplotlib
import pytest

matplotlib.use("agg")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.py"))


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(path.read_text(), path, "exec"), {"__name__": "notebook"})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_a_title_text_and_code(path):
    cells = path.read_text().split("# %%")[1:]
    assert cells[0].startswith(" [markdown]\n# # ")
    assert sum(cell.startswith(" [markdown]") for cell in cells) >= 3
    assert sum(cell.startswith("\n") for cell in cells) >= 3


def test_jupytext_makes_notebooks_of_them():
    jupytext = pytest.importorskip("jupytext")
    for path in NOTEBOOKS:
        kinds = [cell.cell_type for cell in jupytext.read(path).cells]
        assert kinds[0] == "markdown"
        assert {"markdown", "code"} == set(kinds)
