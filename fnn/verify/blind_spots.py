"""What the inputs of a check can't show, in words."""

from collections.abc import Iterator

import numpy as np

from fnn.verify.call import Inputs


def blind_spots(inputs: Inputs) -> tuple[str, ...]:
    """What a bug may hide behind at these inputs. `fnn.verify.search` looks there.

    >>> blind_spots(Inputs([np.array([0.0, 0.0, 5.0])], [], []))
    ()
    >>> blind_spots(Inputs([np.ones((2, 2))], [], []))
    ('an array of ones only', 'no zeros', 'only |values| < 3', 'all sizes equal')
    """
    return tuple(_found(inputs))


def _found(inputs: Inputs) -> Iterator[str]:
    theta = [np.asarray(a, np.float64) for a in inputs.theta if a.size]
    values = np.concatenate([np.ravel(a) for a in theta] or [np.zeros(0)])
    for value, name in ((1, "ones"), (0, "zeros")):
        if any(a.size > 1 and (a == value).all() for a in theta):
            yield f"an array of {name} only"
    if (values != 0).all():
        yield "no zeros"
    if len(np.unique(values)) == len(values) > 1:
        yield "no ties"
    if (np.abs(values) < 3).all():
        yield "only |values| < 3"
    sizes = [n for a in theta for n in a.shape]
    if len(sizes) > 1 and len(set(sizes)) == 1:
        yield "all sizes equal"
