"""The benchmarks' own arithmetic; the twins of the pages' programs print what the pages show."""

import contextlib
import io
import warnings

import jax
import pytest
from test_docs import agree

from benchmarks import lines


@pytest.mark.long
@pytest.mark.parametrize("name", list(lines.pairs()))
def test_a_twin_prints_what_the_page_shows(name, tmp_path, monkeypatch):
    """The same words, and numbers to a quarter: the libraries draw other first parameters."""
    pytest.importorskip("equinox")
    monkeypatch.chdir(tmp_path)
    program, printed = lines.pairs()[name], io.StringIO()
    with (
        jax.numpy_dtype_promotion("standard"),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(printed),
    ):
        warnings.simplefilter("ignore")
        exec(compile(program.theirs, name, "exec"), {"__name__": "twin"})
    assert agree(printed.getvalue(), program.shown, rtol=0.25), printed.getvalue()
