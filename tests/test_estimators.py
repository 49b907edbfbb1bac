"""scikit-learn's interface: its own checks, and what people do with an estimator."""

import pickle

import numpy as np
import polars
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_diabetes, load_iris
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import compute_class_weight, estimator_checks

from fnn.data import DataError
from fnn.estimators import Classifier, Regressor

QUICK = {"hidden": (16,), "learning_rate": 0.01, "epochs": 20}
KEY_CHECKS = (
    "check_estimators_dtypes",
    "check_estimators_nan_inf",
    "check_estimators_pickle",
    "check_fit2d_1sample",
    "check_n_features_in",
    "check_classifiers_one_label",
    "check_regressors_int",
    "check_supervised_y_2d",
    "check_dont_overwrite_attributes",
    "check_class_weight_classifiers",
)


@pytest.mark.parametrize("kind", [Classifier, pytest.param(Regressor, marks=pytest.mark.long)])
def test_what_scikit_learn_expects_first(kind):
    for estimator, check in estimator_checks.estimator_checks_generator(kind(**QUICK)):
        if check.func.__name__ in KEY_CHECKS:
            check(estimator)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [Classifier, Regressor])
def test_all_that_scikit_learn_expects(kind):
    found = estimator_checks.check_estimator(
        kind(),
        on_skip=None,
        expected_failed_checks={"check_methods_sample_order_invariance": "float32: 2e-7, not 1e-7"},
    )
    assert {result["status"] for result in found} <= {"passed", "skipped", "xfail"}
    assert len(found) > 40


@pytest.mark.sampled(3)
@pytest.mark.parametrize("weight", [{"b": 20.0}, "balanced", {"a": 0.05, "b": 1}])
def test_class_weights_are_scikit_learns(weight):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    y = np.where(x.sum(1) + rng.normal(size=400) > 2.5, "b", "a")
    recall = lambda model: (model.fit(x, y).predict(x) == y)[y == "b"].mean()
    model = Classifier(**QUICK, class_weight=weight)
    assert recall(Classifier(**QUICK)) + 0.1 < recall(clone(model))
    reference = compute_class_weight(weight, classes=np.array(["a", "b"]), y=y)
    np.testing.assert_allclose(model.fit(x, y).run_.weights, reference)
    assert "class_weight" not in Regressor().get_params()
    with pytest.raises(ValueError, match="not in class_weight"):
        Classifier(class_weight={"c": 1.0}).fit(x, y)


def test_names_of_classes_come_back():
    iris = load_iris()
    names = iris.target_names[iris.target]
    model = Classifier(**QUICK).fit(iris.data, names)
    assert list(model.classes_) == ["setosa", "versicolor", "virginica"]
    assert model.score(iris.data, names) > 0.9
    chances = model.predict_proba(iris.data)
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(model.classes_[chances.argmax(1)], model.predict(iris.data))


@pytest.mark.long
def test_the_random_state_decides_everything():
    iris = load_iris()
    fitted = lambda state: Classifier(**QUICK, random_state=state).fit(iris.data, iris.target)
    first, again, other = (fitted(state).predict_proba(iris.data) for state in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    fitted(np.random.RandomState(3))


@pytest.mark.long
def test_several_values_and_one():
    x, y = load_diabetes(return_X_y=True)
    both = Regressor(**QUICK).fit(x, np.stack([y, -y], 1))
    assert both.predict(x).shape == (442, 2)
    assert Regressor(**QUICK).fit(x, y).predict(x).shape == (442,)


@pytest.fixture
def pets():
    """A frame with text and blanks, and what is to be predicted."""
    random = np.random.default_rng(0)
    kind = random.choice(["cat", "dog", "bird"], 120)
    weight = np.where(kind == "bird", 0.1, np.where(kind == "cat", 4.0, 20.0))
    weight = weight + random.normal(0, 0.05, 120)
    frame = polars.DataFrame({"kind": kind, "weight": weight.round(4)})
    frame = frame.with_columns(
        polars.when(polars.int_range(120) % 7 > 0).then(polars.col("weight"))
    )
    return frame, np.where(kind == "dog", "barks", "is quiet")


def test_a_data_frame_with_text_and_blanks(pets):
    frame, sound = pets
    model = Classifier(**QUICK).fit(frame, sound)
    assert list(model.feature_names_in_) == ["kind", "weight"]
    assert model.score(frame, sound) == 1
    new = polars.DataFrame({"kind": ["hamster"], "weight": [None]})
    assert model.predict_proba(new).shape == (1, 2)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename({"weight": "mass"}))
    with pytest.raises(DataError, match="no column can be used"):
        Classifier(**QUICK).fit(polars.DataFrame({"a": ["x"] * 40}), sound[:40])


@pytest.mark.long
def test_what_people_put_around_an_estimator(pets):
    iris = load_iris()
    model = make_pipeline(StandardScaler(), Classifier(**QUICK))
    assert cross_val_score(model, iris.data, iris.target, cv=2).min() > 0.8
    grid = GridSearchCV(Classifier(**QUICK), {"hidden": [(4,), (8,)]}, cv=2)
    grid.fit(iris.data, iris.target)
    assert grid.best_params_["hidden"] in [(4,), (8,)]
    copy = pickle.loads(pickle.dumps(grid.best_estimator_))
    np.testing.assert_array_equal(copy.predict(iris.data), grid.predict(iris.data))
    assert clone(grid.best_estimator_).get_params() == grid.best_estimator_.get_params()
    assert cross_val_score(Classifier(**QUICK), *pets, cv=2).min() > 0.9


@pytest.mark.long
def test_importance_and_calibration():
    iris = load_iris()
    model = Classifier(**QUICK).fit(iris.data, iris.target)
    found = permutation_importance(model, iris.data, iris.target, n_repeats=2, random_state=0)
    assert found.importances_mean.argmax() in (2, 3)
    calibrated = CalibratedClassifierCV(Classifier(**QUICK), cv=2).fit(iris.data, iris.target)
    assert calibrated.score(iris.data, iris.target) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adm"}, "unknown optimizer 'adm'"),
        ({"epochs": 0}, "epochs of at least 1"),
        ({"batch_size": 1000}, "the batch size 1000 is larger than the 150 examples"),
        (
            {"batch_size": 121, "patience": 2, "members": 1},
            "the batch size 121 is larger than the 120 examples",
        ),
    ],
)
def test_arguments_without_a_meaning_are_refused_by_fit(change, message):
    iris = load_iris()
    with pytest.raises(ValueError, match=message):
        Classifier(**(QUICK | change)).fit(iris.data, iris.target)
