"""Data to learn from: read from files or scikit-learn's bundled sets, split and standardised."""

from fnn.data._dialect import SEPARATORS as SEPARATORS
from fnn.data._reading import Reading as Reading
from fnn.data.bundled import BUNDLED as BUNDLED
from fnn.data.dataset import (
    TASKS as TASKS,
    Column as Column,
    Dataset as Dataset,
    Part as Part,
    relabelled as relabelled,
    reordered as reordered,
)
from fnn.data.encoding import Encoding as Encoding
from fnn.data.errors import DataError as DataError, nearest as nearest
from fnn.data.loading import (
    MISSING as MISSING,
    Source as Source,
    inputs as inputs,
    is_mapped as is_mapped,
    is_table as is_table,
    load as load,
    mapped as mapped,
    named_parts as named_parts,
    parts as parts,
    unlabelled as unlabelled,
)
from fnn.data.scaling import Scaling as Scaling
from fnn.data.splitting import split as split, without_singles as without_singles
