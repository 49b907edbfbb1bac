"""Examples are drawn as scikit-learn draws them, without importing it."""

import numpy as np
import pytest
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from fnn.data import Dataset, splitting


@pytest.mark.parametrize("seed", range(5))
def test_the_split_is_scikit_learns(seed):
    random = np.random.default_rng(seed)
    for n, k, size in ((40, 1, 8), (43, 2, 9), (150, 3, 30), (97, 7, 21)):
        labels = random.integers(0, k, n)
        stratify = labels if k > 1 else None
        expected = train_test_split(
            np.arange(n), test_size=size, random_state=seed, stratify=stratify
        )
        found = splitting._drawn(labels, size, np.random.RandomState(seed))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    groups = random.integers(0, 9, 50)
    data = Dataset("a", np.arange(50.0)[:, None], np.zeros((50, 1)), (), groups=groups)
    splitter = GroupShuffleSplit(1, test_size=0.2, random_state=seed)
    train, test = next(splitter.split(data.x, groups=groups))
    found = splitting.split(data, 0.2, seed)
    np.testing.assert_array_equal(found[0].x[:, 0], train)
    np.testing.assert_array_equal(found[1].x[:, 0], test)
