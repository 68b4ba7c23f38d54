"""Classifier and regressor keep scikit-learn's conventions, and say what the posterior says."""

import copy
import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris, make_moons
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from bayes_bench import DataError, UsageError
from bayes_bench.sklearn import BayesClassifier, BayesRegressor
from bayes_bench.sklearn import _split as split

QUICK = {"budget": 20_000, "samples": 20, "random_state": 0}
ENSEMBLE = {"method": "ensemble", "budget": 100_000, "random_state": 0}


def moons(n=300, seed=0):
    return make_moons(n, noise=0.2, random_state=seed)


def line(n=200, noise=5.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (n, 1))
    return x, 30 * x[:, 0] + 100 + noise * rng.standard_normal(n)


# scikit-learn's own ---------------------------------------------------------------------------------------


# All checks; scikit-learn itself skips the one of array API inputs, where SCIPY_ARRAY_API is not set.
@parametrize_with_checks([kind("ensemble", budget=10_000, samples=10) for kind in (BayesClassifier, BayesRegressor)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hypergan", "mcdropout", "mnf"])
@pytest.mark.parametrize("kind", [BayesClassifier, BayesRegressor])
def test_scikit_learns_checks_with_other_methods(kind, method):
    from sklearn.utils.estimator_checks import check_estimator

    results = check_estimator(kind(method, budget=10_000, samples=10), on_skip=None)
    assert len(results) > 40


def test_pipeline_search_and_clone():
    X, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(PolynomialFeatures(2, include_bias=False), BayesClassifier(**ENSEMBLE))
    assert cross_val_score(pipeline, X, y, cv=3).min() > 0.85
    grid = {"method": ["ensemble", "mcdropout"], "settings": [None, {"learning_rate": 3e-3}]}
    search = GridSearchCV(BayesClassifier(**QUICK), grid, cv=2).fit(X, y)
    assert search.best_score_ > 0.85
    again = clone(search.best_estimator_)
    assert again.get_params() == search.best_estimator_.get_params()
    assert not hasattr(again, "posterior_")


# Classifier -----------------------------------------------------------------------------------------------


def test_probabilities_and_uncertainty():
    X, y = moons()
    model = BayesClassifier(**ENSEMBLE).fit(X, np.array(["left", "right"])[y])
    assert model.classes_.tolist() == ["left", "right"]
    assert model.score(X, np.array(["left", "right"])[y]) > 0.9
    p, entropy, information = model.predict_proba(X), model.predict_entropy(X), model.predict_mutual_information(X)
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(1), atol=1e-9)
    assert (information >= 0).all()
    assert (information <= entropy + 1e-12).all()
    between, far = np.array([[0.5, 0.25]]), X[p.max(1).argmax()][None]
    assert model.predict_entropy(between) > model.predict_entropy(far)


def test_the_posterior_predicts():
    X, y = moons()
    model = BayesClassifier("hypergan", **QUICK).fit(X, y)
    weights = model.sample_networks(7, seed=3)
    assert {len(value) for value in weights.values()} == {7}
    x = torch.from_numpy((X - X.mean(0)) / X.std(0)).float()
    mean = model.posterior_.predict(x, model.sample_networks(500, seed=1)).mean
    # Two draws, of 20 and of 500 networks.
    assert np.abs(mean.numpy() - model.predict_proba(X)).mean() < 0.05


def test_an_answer_does_not_depend_on_its_batch():
    X, y = moons()
    model = BayesClassifier("mcdropout", **QUICK).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X)[:5], model.predict_proba(X[:5]), rtol=0, atol=1e-12)


def test_every_class_is_trained_on_and_validated():
    X, y = moons(100)
    y[:20] = 2
    train, validation = split(y, 100, 0.1, 0)
    assert sorted([*train, *validation]) == list(range(100))
    assert set(y[train]) == set(y[validation]) == {0, 1, 2}
    assert len(split(y, 19, 0.1, 0)[1]) == 0
    assert len(split(y, 100, 0.0, 0)[1]) == 0
    lonely = np.arange(100) == 0
    assert len(split(lonely.astype(int), 100, 0.1, 0)[1]) == 10
    assert BayesClassifier(**ENSEMBLE).fit(X, y).summary_.history[-1].keys() >= {"val_nll"}


# Regressor ------------------------------------------------------------------------------------------------


def test_units_of_a_regression():
    X, y = line()
    model = BayesRegressor(**ENSEMBLE).fit(X, y)
    mean, std = model.predict(X, return_std=True)
    assert model.score(X, y) > 0.97
    assert std.shape == mean.shape == (200,)
    assert 4 < np.median(std) < 10
    inside, outside = np.array([[0.0]]), np.array([[8.0]])
    assert model.predict_epistemic_std(outside) > 3 * model.predict_epistemic_std(inside)
    assert (model.predict_epistemic_std(X) < std).all()
    scaled = BayesRegressor(**ENSEMBLE).fit(X * 10 + 3, y * 1000)
    np.testing.assert_allclose(scaled.predict(X * 10 + 3), mean * 1000, rtol=1e-3)
    np.testing.assert_allclose(scaled.predict(X * 10 + 3, return_std=True)[1], std * 1000, rtol=1e-2)


def test_noise_known_learned_or_of_the_input():
    X, y = line()
    known = BayesRegressor(noise=5.0, **ENSEMBLE).fit(X, y)
    std = known.predict(X, return_std=True)[1]
    np.testing.assert_allclose(std**2, 25 + known.predict_epistemic_std(X) ** 2, rtol=1e-6)
    varying = y + np.where(X[:, 0] > 0, 30, 0) * np.random.default_rng(1).standard_normal(len(y))
    model = BayesRegressor(noise="heteroscedastic", **ENSEMBLE).fit(X, varying)
    left, right = (model.predict(np.array([[x]]), return_std=True)[1] for x in (-1.0, 1.0))
    assert right > 1.5 * left


@pytest.mark.parametrize(("offset", "factor"), [(1.7e9, 200.0), (-3e8, 1e-20), (0.0, 1e25)])
def test_predictions_do_not_depend_on_offset_and_factor(offset, factor):
    X, y = line(80, noise=1.0)
    kind = BayesRegressor("map", budget=20_000, random_state=0)
    mean, std = clone(kind).fit(X, y).predict(X, return_std=True)
    moved = clone(kind).fit(factor * (X + offset), factor * (y + offset))
    found, spread = moved.predict(factor * (X + offset), return_std=True)
    np.testing.assert_allclose(found / factor - offset, mean, atol=1e-3 * y.std())
    np.testing.assert_allclose(spread / factor, std, rtol=1e-3)


def test_a_spread_that_is_lost_is_refused():
    X, y = moons(60)
    with pytest.raises(UsageError, match=r"feature 0 varies by 0\.\d+ \(standard deviation\) among numbers of 1e\+14"):
        BayesClassifier("map", **QUICK).fit(X + 1e14, y)
    with pytest.raises(
        UsageError, match="rounding of float32; subtract a constant from it before it is saved, or save"
    ):
        BayesClassifier("map", **QUICK).fit((X + 1e6).astype(np.float32), y)
    with pytest.raises(UsageError, match="the target varies by"):
        BayesRegressor("map", **QUICK).fit(X, X[:, 0] + 1e15)
    frame = pd.DataFrame({"a": X[:, 0], "seconds": X[:, 1] + 1e15})
    with pytest.raises(UsageError, match="feature 'seconds' varies by"):
        BayesClassifier("map", **QUICK).fit(frame, y)


@pytest.mark.parametrize("kind", [BayesClassifier, BayesRegressor])
def test_inputs_without_a_prediction_are_named(kind):
    X, y = moons(60)
    frame = pd.DataFrame(1e-3 * X, columns=["a", "b"])
    model = kind("map", **QUICK).fit(frame, y)
    far = pd.DataFrame([[0.0, 0.0], [0.0, 1.7e308]], columns=["a", "b"])
    with pytest.raises(UsageError, match=r"no prediction is a number: the value 'b' of row 1 lies 1\.8e\+308 training"):
        model.predict(far)
    assert np.isfinite(model.predict(far[:1]))


def test_several_targets():
    X, y = line()
    both = np.stack([y, -2 * y + 5], axis=1)
    model = BayesRegressor(**ENSEMBLE).fit(X, both)
    mean, std = model.predict(X, return_std=True)
    assert mean.shape == std.shape == both.shape
    assert model.score(X, both) > 0.97


# Saving, copying ------------------------------------------------------------------------------------------


def network(features, outputs):
    return nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, outputs))


@pytest.mark.parametrize("labels", [[3, 7], ["a", "b"], [False, True], np.array(["x", "yy"], dtype=object)])
def test_save_and_load_a_classifier(tmp_path, labels):
    X, y = moons()
    model = BayesClassifier(**ENSEMBLE, settings={"members": 3}).fit(X, np.asarray(labels)[y])
    model.save(tmp_path / "model.safetensors")
    again = BayesClassifier.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert again.predict(X).dtype == model.predict(X).dtype
    assert again.n_features_in_ == 2
    assert again.posterior_.config == model.posterior_.config
    assert clone(again).fit(X, y).score(X, y) > 0.9


def test_save_and_load_a_regressor_with_names_and_its_own_network(tmp_path):
    import pandas as pd

    X, y = line()
    table = pd.DataFrame(X, columns=["width"])
    model = BayesRegressor("hypergan", network=network, noise=5.0, **QUICK).fit(table, y)
    model.save(tmp_path / "model")
    again = BayesRegressor.load(tmp_path / "model", network=network)
    for mine, theirs in zip(again.predict(table, return_std=True), model.predict(table, return_std=True), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert again.feature_names_in_.tolist() == ["width"]
    with pytest.raises(DataError, match="give it again"):
        BayesRegressor.load(tmp_path / "model")
    with pytest.raises(DataError, match="another network"):
        BayesRegressor.load(tmp_path / "model", network=lambda features, outputs: nn.Linear(features, outputs))
    with pytest.raises(DataError, match="holds BayesRegressor, not a BayesClassifier"):
        BayesClassifier.load(tmp_path / "model")


def test_a_damaged_file_is_refused(tmp_path):
    X, y = moons()
    model = BayesClassifier(**ENSEMBLE).fit(X, y)
    model.posterior_.save(tmp_path / "bare")
    with pytest.raises(DataError, match="no estimator"):
        BayesClassifier.load(tmp_path / "bare")
    model.save(tmp_path / "good")
    from bayes_bench.posterior.stored import read_note

    good = read_note(tmp_path / "good")
    parameters = good["parameters"]
    for change in (
        {"parameters": {**parameters, "hidden": [10**6, 10**6]}},
        {"parameters": {**parameters, "hidden": 5}},
        {"parameters": {**parameters, "hidden": [-5]}},
        {"parameters": {**parameters, "samples": "x"}},
        {"parameters": {**parameters, "method": ["x"]}},
        {"parameters": None},
        {"features": 10**12},
        {"features": 3},
        {"standardiser": None},
        {"standardiser": {"x_mean": [0.0], "x_std": [1.0]}},
        {"seeds": [10**30, 1]},
        {"feature_names": 5},
        {"targets": {"classes": [[0, 1], [2, 3]], "type": "<i8"}},
        {"targets": {"classes": [1, 2, 3], "type": "<i8"}},
        {"parameters": {"method": "ensemble", "no_such": 1}},
        {"seeds": ["x", 1]},
        {"targets": {"classes": [1, 2]}},
        {"features": None},
        {"standardiser": {"x_mean": "text", "x_std": 1.0}},
        {"parameters": {**good["parameters"], "method": "no-such"}},
    ):
        model.posterior_.save(tmp_path / "bad", note={**good, **change})
        with pytest.raises(DataError):
            BayesClassifier.load(tmp_path / "bad")
    many = {**good, "parameters": {**parameters, "method": "mcdropout", "samples": 10**12}}
    dropout = BayesClassifier("mcdropout", **QUICK).fit(X, y)
    dropout.posterior_.save(tmp_path / "many", note={**many, "parameters": {**many["parameters"], "settings": {}}})
    with pytest.raises(UsageError, match="lower samples"):
        BayesClassifier.load(tmp_path / "many")
    content = (tmp_path / "good").read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot read"):
        BayesClassifier.load(tmp_path / "cut")


def test_a_file_holds_no_code(tmp_path):
    X, y = moons()
    BayesClassifier(**ENSEMBLE).fit(X, y).save(tmp_path / "model")
    content = (tmp_path / "model").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert "BayesClassifier" in header["__metadata__"]["bayes_bench"]


@pytest.mark.parametrize("method", ["ensemble", "hypergan", "mcdropout", "mnf", "sgld"])
def test_pickled_and_copied(method):
    X, y = moons()
    model = BayesClassifier(method, **QUICK).fit(X, y)
    expected = model.predict_proba(X)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        np.testing.assert_array_equal(other.predict_proba(X), expected)


def test_what_was_fitted_is_saved_whatever_was_set_since(tmp_path):
    X, y = moons()
    model = BayesClassifier(**ENSEMBLE).fit(X, y)
    expected = model.predict_proba(X)
    model.set_params(hidden=(3,), samples=2, method="map").save(tmp_path / "model")
    np.testing.assert_array_equal(BayesClassifier.load(tmp_path / "model").predict_proba(X), expected)


def test_numbers_of_numpy_are_numbers(tmp_path):
    X, y = line()
    numbers = {
        "hidden": np.array([5, 6]),
        "samples": np.int64(5),
        "budget": np.int64(2000),
        "noise": np.float64(5),
        "validation_fraction": np.float32(0.2),
        "prior_std": np.float32(1),
    }
    model = BayesRegressor("map", random_state=0, **numbers).fit(X, y)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(BayesRegressor.load(tmp_path / "model").predict(X), model.predict(X))


class Fourier(nn.Module):
    """A network with a buffer, which an optimiser does not see."""

    def __init__(self, features, outputs, scale=1.0):
        super().__init__()
        self.register_buffer("directions", scale * torch.ones(features, 16).cumsum(1))
        self.out = nn.Linear(16, outputs)

    def forward(self, x):
        return self.out((x @ self.directions).sin())


def test_networks_with_buffers(tmp_path):
    X, y = line()
    model = BayesRegressor("map", network=Fourier, **QUICK).fit(X, y)
    model.save(tmp_path / "model")
    again = BayesRegressor.load(tmp_path / "model", network=Fourier)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    # The file has the buffers: another start of them changes nothing.
    other = BayesRegressor.load(tmp_path / "model", network=lambda f, o: Fourier(f, o, 2.0))
    np.testing.assert_array_equal(other.predict(X), model.predict(X))


def test_a_fit_that_fails_leaves_nothing_that_predicts():
    X, y = moons(50)
    model = BayesClassifier(**ENSEMBLE).fit(X, np.array(["a", "b"])[y])
    with pytest.raises(UsageError):
        model.set_params(budget=0).fit(X, np.array(["yak", "zebra"])[y])
    for use in (lambda: model.predict(X), lambda: model.save("nowhere"), lambda: model.sample_networks(1)):
        with pytest.raises(NotFittedError):
            use()


# Errors and randomness ------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_model_and_leaves_the_global_state():
    X, y = moons()
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 (the global state is what is looked at)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (BayesClassifier(**ENSEMBLE).fit(X, y).predict_proba(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    other = BayesClassifier(**{**ENSEMBLE, "random_state": 1}).fit(X, y).predict_proba(X)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"method": "hypergam"}, "hypergan"),
        ({"settings": {"member": 3}}, "members"),
        ({"method": None}, "method must be the name"),
        ({"samples": 0}, "samples must be a positive whole number, got 0"),
        ({"samples": "5"}, "samples must be a positive whole number, got '5'"),
        ({"method": "mcdropout", "samples": 10**12}, "lower samples"),
        ({"hidden": 50}, "hidden must be a list of widths"),
        ({"hidden": (0,)}, "a width of hidden must be a positive whole number, got 0"),
        ({"hidden": (5.5,)}, "a width of hidden"),
        ({"hidden": (10**6, 10**6)}, "at most half of this machine"),
        ({"validation_fraction": None}, "validation_fraction must be a number"),
        ({"network": nn.Linear(2, 2)}, "network must be a function"),
        ({"prior_std": "1"}, "prior_std must be a number"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"budget": 0}, "budget"),
        ({"prior_std": -1.0}, "std must be a positive number"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_wrong_parameters_are_one_sentence(parameters, sentence):
    X, y = moons(50)
    with pytest.raises(UsageError, match=sentence):
        BayesClassifier(**{**ENSEMBLE, **parameters}).fit(X, y)


def test_wrong_data_are_refused():
    X, y = moons(50)
    with pytest.raises(ValueError, match=r"one class alone, 0\.0; "):
        BayesClassifier(**ENSEMBLE).fit(X, np.zeros(50))
    with pytest.raises(ValueError, match="NaN"):
        BayesClassifier(**ENSEMBLE).fit(np.where(X > 1, np.nan, X), y)
    with pytest.raises(NotFittedError):
        BayesClassifier(**ENSEMBLE).predict_entropy(X)
    with pytest.raises(UsageError, match="positive number"):
        BayesRegressor(noise=-1.0, **ENSEMBLE).fit(X, y)
    with pytest.raises(UsageError, match="positive number, 'learned'"):
        BayesRegressor(noise="quiet", **ENSEMBLE).fit(X, y)
    with pytest.raises(UsageError, match="noise must be a number, got None"):
        BayesRegressor(noise=None, **ENSEMBLE).fit(X, y)
    with pytest.raises(UsageError, match="noise is that of one target"):
        BayesRegressor(noise=1.0, **ENSEMBLE).fit(X, X)
