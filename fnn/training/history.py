"""The history that `fit` returns: a list of entries, shown as a table."""

from typing import Any

import jax

from fnn import _html

ENDS = 10
"""The number of epochs shown at each end of a longer history."""


class History(list[dict[str, Any]]):
    """A list with one entry per epoch, and a pytree as lists are. `print` and notebooks show its
    numbers as a table, without what `record` returned.

    >>> print(History([{"loss": 0.5}, {"loss": 0.25}]))
    epoch  loss
        1   0.5
        2  0.25
    """

    def _rows(self) -> list[list[str]]:
        """The header, and a row of cells for each epoch that is shown."""
        names = [n for n in (self[-1] if self else ()) if isinstance(self[-1][n], int | float)]
        rows = [
            [f"{epoch}", *(f"{entry[n]:.4g}" if n in entry else "" for n in names)]
            for epoch, entry in enumerate(self, 1)
        ]
        if len(rows) > 2 * ENDS:
            rows[ENDS:-ENDS] = [["..."] * (len(names) + 1)]
        return [["epoch", *(name.replace("_", " ") for name in names)], *rows]

    def _repr_html_(self) -> str:
        return _html.table(f"epochs: {len(self)}", *self._rows())

    def __str__(self) -> str:
        """The table."""
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


jax.tree_util.register_pytree_node(
    History, lambda history: (list(history), None), lambda _, entries: History(entries)
)
