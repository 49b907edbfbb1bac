"""Data to learn from: read from files or scikit-learn's bundled sets, split and standardised."""

from fnn.data._dialect import SEPARATORS
from fnn.data._reading import Reading
from fnn.data.bundled import BUNDLED
from fnn.data.dataset import TASKS, Column, Dataset, Part, relabelled
from fnn.data.encoding import Encoding
from fnn.data.errors import DataError, nearest
from fnn.data.loading import MISSING, Source, is_mapped, is_table, load, mapped, parts, unlabelled
from fnn.data.scaling import Scaling
from fnn.data.splitting import split, without_singles

__all__ = [
    "BUNDLED", "MISSING", "SEPARATORS", "TASKS", "Column", "DataError", "Dataset", "Encoding",
    "Part", "Reading", "Scaling", "Source", "is_mapped", "is_table", "load", "mapped", "nearest",
    "parts", "relabelled", "split", "unlabelled", "without_singles",
]  # fmt: skip
