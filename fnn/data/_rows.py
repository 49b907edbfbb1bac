"""Rows of an array that stays on disk until they are read."""

from typing import Any

import numpy as np


class Rows:
    """Some rows of an array, usually one that is mapped into memory, in some order.

    Indexing it chooses rows and reads nothing; `np.asarray` reads the rows that were chosen, and
    no others.
    """

    def __init__(self, array: np.ndarray, places: np.ndarray | None = None) -> None:
        self.array = array
        self.places = np.arange(len(array)) if places is None else places
        self.shape = (len(self.places), *array.shape[1:])
        self.dtype = array.dtype

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.places)

    def __getitem__(self, index: slice | np.ndarray) -> "Rows":
        """The rows at these places among these rows."""
        return Rows(self.array, self.places[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The rows themselves."""
        return np.asarray(self.array[self.places], dtype)
