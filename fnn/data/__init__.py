"""Data to learn from: read from files or scikit-learn's bundled sets, split and standardised."""

from fnn.data.load import (
    BUNDLED as BUNDLED,
    CLASSIFICATION as CLASSIFICATION,
    REGRESSION as REGRESSION,
    TASKS as TASKS,
    Dataset as Dataset,
    Scaling as Scaling,
    Source as Source,
    inputs as inputs,
    is_csv as is_csv,
    load as load,
    nearest as nearest,
    relabelled as relabelled,
    reordered as reordered,
    split as split,
)
from fnn.data.readers import DataError as DataError
