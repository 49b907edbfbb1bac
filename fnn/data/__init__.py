"""Data to learn from: read from files or scikit-learn's bundled sets, split and standardised."""

from fnn.data.bundled import (
    BUNDLED as BUNDLED,
    CLASSIFICATION as CLASSIFICATION,
    REGRESSION as REGRESSION,
)
from fnn.data.dataset import (
    TASKS as TASKS,
    Dataset as Dataset,
    relabelled as relabelled,
    reordered as reordered,
)
from fnn.data.errors import DataError as DataError, nearest as nearest
from fnn.data.loading import Source as Source, inputs as inputs, is_csv as is_csv, load as load
from fnn.data.scaling import Scaling as Scaling
from fnn.data.splitting import split as split
