"""Tables and columns of a run that someone has made to do harm."""

import polars as pl
import pytest

from fnn import data
from fnn.data import DataError
from fnn.data.encoding import features_of


def test_a_target_of_durations_is_refused_in_words():
    frame = pl.DataFrame({"a": [1.5, 2.5], "y": pl.Series([1, 2]).cast(pl.Duration("ns"))})
    with pytest.raises(DataError, match="column 2 'y': expected numbers or text, got Duration"):
        data.load(frame)


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "a", "kind": "category", "values": ["x"], "cycles": ["year"]},
        {"name": "a", "kind": "number", "cycles": ["day"]},
        {"name": "a", "kind": "date", "fill": 1e300},
        {"name": "a", "kind": "date", "form": "%Q"},
    ],
)
def test_a_crafted_column_of_a_run_is_refused(entry):
    with pytest.raises(ValueError, match="'a'"):
        features_of([entry])


def test_a_panic_in_rust_is_a_fault_of_the_file(tmp_path, monkeypatch):
    """As on a damaged Arrow file: it is no Exception."""

    def panic(*args):
        raise pl.exceptions.PanicException("range end index")

    path = tmp_path / "a.arrow"
    pl.DataFrame({"a": [1.5, 2.5], "y": [0.5, 1.5]}).write_ipc(path)
    monkeypatch.setattr(pl, "scan_ipc", panic)
    with pytest.raises(DataError, match="a.arrow: can't be read: range end index"):
        data.load(path)
