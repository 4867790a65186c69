"""Flows as scikit-learn estimators: its own checks, and what they do not ask."""

import inspect
import pickle
import re
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kstest, norm
from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import estimator_checks_generator

from fluvial import flows
from fluvial.metrics import c2st
from fluvial.sklearn import FlowEstimator, GaussianizationDensity, GaussianizationTransformer, transport

SMALL = {"blocks": 2, "hidden": [8]}
ESTIMATORS = {
    "transformer": GaussianizationTransformer(max_layers=3),
    "density": GaussianizationDensity(max_layers=3),
    "flow": FlowEstimator(options=SMALL, max_steps=4),
    "free-form flow": FlowEstimator("free_form", options={"blocks": 1, "width": 8}, max_steps=4),
}
# Beside those of every estimator, scikit-learn has checks of names and frames for its own transformers.
OF_NAMES = (
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_get_feature_names_out_error",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_global_output_transform_pandas",
)
# The data of the checks are few rows, and whole numbers.
TEXTS = ("fewer than 20", "columns with ties", "X does not have valid feature names", "X has feature names")
odd_data = [pytest.mark.filterwarnings(f"ignore:.*{text}:UserWarning") for text in TEXTS]


def function(check):
    while hasattr(check, "func"):
        check = check.func
    return check.__name__


def all_checks():
    for name, estimator in ESTIMATORS.items():
        # Array API needs a variable of the environment that is read at import, see below.
        found = [check for _, check in estimator_checks_generator(estimator) if function(check) != "check_array_api_input"]
        found.append(estimator_checks.check_dataframe_column_names_consistency)
        if name == "transformer":
            found += [getattr(estimator_checks, of_names) for of_names in OF_NAMES]
        for k, check in enumerate(found):
            # Some want to be told the name of the class.
            told = check if hasattr(check, "func") else lambda e, check=check: check(type(e).__name__, e)
            yield pytest.param(estimator, told, id=f"{name}-{k}-{function(check)}", marks=odd_data)


@pytest.mark.parametrize(("estimator", "check"), list(all_checks()))
def test_check_estimator(estimator, check):
    check(clone(estimator))


def test_array_api_and_imports_in_a_fresh_process():
    program = """
import os, sys
os.environ["SCIPY_ARRAY_API"] = "1"
import fluvial
assert "sklearn" not in sys.modules and "torch" not in sys.modules
from fluvial.sklearn import FlowEstimator, GaussianizationDensity, GaussianizationTransformer
from sklearn.utils.estimator_checks import check_array_api_input
import warnings
warnings.simplefilter("ignore")
small = dict(blocks=1, hidden=[8])
for estimator in (GaussianizationTransformer(max_layers=2), GaussianizationDensity(max_layers=2), FlowEstimator(options=small, max_steps=2)):
    check_array_api_input(type(estimator).__name__, estimator, array_namespace="numpy", expect_only_array_outputs=False)
print("done")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "done", run.stderr


# ------------------------------------------------------------------------------------------------------------------------ in the company of others


@pytest.fixture(scope="module")
def banana():
    """Rows (800, 2): a normal column, and one that depends on its square."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 2))
    x[:, 1] = 0.5 * x[:, 1] + x[:, 0] ** 2
    return x


@pytest.fixture(scope="module")
def table(banana):
    """The same as a frame, with a constant column between."""
    return pd.DataFrame({"length": banana[:, 0], "unit": 5.0, "width": 100 * banana[:, 1]})


def test_grid_search_finds_layers_and_smoothing(banana):
    search = GridSearchCV(GaussianizationDensity(max_layers=6), {"bins": [2, 12], "alpha": [0.9, (0.0, 0.5)]}, cv=2).fit(banana)
    scores = search.cv_results_["mean_test_score"]
    assert search.best_params_["alpha"] == (0.0, 0.5)
    assert np.isfinite(scores).all()
    assert scores.max() - scores.min() > 0.1
    # The score is a mean log-density of rows held out.
    assert scores.max() == pytest.approx(cross_val_score(clone(search.best_estimator_), banana, cv=2).mean(), abs=1e-12)


def test_pipeline_before_a_linear_classifier():
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(size=(600, 2)))
    y = np.log(x[:, 0]) + np.log(x[:, 1]) > 0
    score = cross_val_score(make_pipeline(GaussianizationTransformer(max_layers=3), LogisticRegression()), x, y, cv=3).mean()
    assert score > 0.93
    assert score > cross_val_score(make_pipeline(StandardScaler(), LogisticRegression()), x, y, cv=3).mean() + 0.01


def test_stored_estimators_score_alike(banana, tmp_path):
    density = GaussianizationDensity(max_layers=2).fit(banana)
    flow = FlowEstimator(options=SMALL, max_steps=4).fit(banana)
    for estimator in (density, flow):
        want = estimator.score_samples(banana)
        assert (pickle.loads(pickle.dumps(estimator)).score_samples(banana) == want).all()
        joblib.dump(estimator, tmp_path / "estimator.joblib")
        assert (joblib.load(tmp_path / "estimator.joblib").score_samples(banana) == want).all()
        assert (clone(estimator).fit(banana).score_samples(banana) == want).all()


def test_threads_do_not_change_the_fit(banana):
    one = GaussianizationDensity(max_layers=3).fit(banana)
    assert (GaussianizationDensity(max_layers=3, n_jobs=2).fit(banana).score_samples(banana) == one.score_samples(banana)).all()


# ------------------------------------------------------------------------------------------------------------------------------- the transformer


def test_columns_become_normal_and_independent_and_come_back(banana):
    fresh = np.random.default_rng(1).normal(size=(2000, 2))
    fresh[:, 1] = 0.5 * fresh[:, 1] + fresh[:, 0] ** 2
    transformer = GaussianizationTransformer().fit(banana)
    z = transformer.transform(fresh)
    assert max(kstest(column, norm.cdf).statistic for column in z.T) < 0.06
    assert abs(np.corrcoef(z[:, 0] ** 2, z[:, 1])[0, 1]) < 0.3
    assert np.corrcoef(fresh[:, 0] ** 2, fresh[:, 1])[0, 1] > 0.9
    # The rotations are undone, so that a column goes on meaning what it did.
    assert min(np.corrcoef(z[:, k], fresh[:, k])[0, 1] for k in range(2)) > 0.8
    assert transformer.n_layers_ > 3
    np.testing.assert_allclose(transformer.inverse_transform(z), fresh, atol=1e-7)


def test_frames_keep_their_names_and_constant_columns(table):
    transformer = GaussianizationTransformer(max_layers=3).set_output(transform="pandas").fit(table)
    z = transformer.transform(table)
    assert list(z.columns) == ["length", "width"]
    assert (z.index == table.index).all()
    assert transformer.flow_.spec.names == ("length", "width")
    back = transformer.inverse_transform(z)
    np.testing.assert_allclose(back, table, atol=1e-5)
    assert (back[:, 1] == 5.0).all()
    with pytest.raises(ValueError, match="has 3 features, but GaussianizationTransformer gives 2"):
        transformer.inverse_transform(table.to_numpy())


@pytest.mark.parametrize("estimator", [GaussianizationDensity, FlowEstimator])
def test_another_value_in_a_constant_column_has_no_density(table, estimator):
    settings = {"max_layers": 2} if estimator is GaussianizationDensity else {"max_steps": 4, "options": SMALL}
    density = estimator(**settings).fit(table)
    moved = table.head(2).assign(unit=[5.0, 6.0])
    assert np.isfinite(density.score_samples(moved)).tolist() == [True, False]
    assert (density.sample(4, random_state=0)[:, 1] == 5.0).all()
    with pytest.raises(ValueError, match="constant columns have no density: 'unit'; leave them out, or say constant='drop'"):
        estimator(constant="raise", **settings).fit(table)
    with pytest.raises(ValueError, match="no column has more than one value"):
        estimator(**settings).fit(table[["unit"]])


def test_single_precision_stays_single(banana):
    transformer = GaussianizationTransformer(max_layers=3).fit(banana)
    z = transformer.transform(banana.astype(np.float32))
    assert z.dtype == np.float32
    assert transformer.inverse_transform(z).dtype == np.float32
    np.testing.assert_allclose(z, transformer.transform(banana), atol=1e-4)


def test_values_beyond_bounds_are_read_on_them():
    x = np.random.default_rng(0).uniform(size=(400, 2))
    transformer = GaussianizationTransformer(tail="bounded", bounds=[(0.0, 1.0), (0.0, None)], max_layers=2).fit(x)
    outside, at = transformer.transform([[1.5, 0.5], [1.0, 0.5]])
    np.testing.assert_array_equal(outside, at)
    assert outside[0] > transformer.transform([[0.99, 0.5]])[0, 0]
    assert GaussianizationDensity(tail="bounded", bounds=[(0.0, 1.0)] * 2, max_layers=2).fit(x).score_samples([[1.5, 0.5]]) == -np.inf
    with pytest.raises(ValueError, match="expected bounds of 2 columns, got 1"):
        GaussianizationTransformer(bounds=[(0.0, 1.0)]).fit(x)


# -------------------------------------------------------------------------------------------------------------------------- what is in the tables


@pytest.mark.parametrize("estimator", [GaussianizationTransformer(), FlowEstimator()])
def test_gaps_and_categories_are_refused_with_the_mend(table, estimator):
    holes = table.copy()
    holes.loc[[3, 7], "width"] = np.nan
    with pytest.raises(ValueError, match=r"column 'width' holds NaN \(first in row 3, 2 such rows of 800\).*SimpleImputer"):
        clone(estimator).fit(holes)
    kinds = {
        "category": pd.Categorical(np.arange(800) % 3),
        "str|object": np.array(["a", "b"])[np.arange(800) % 2],
        "datetime64": pd.date_range("2020", periods=800),
    }
    for kind, values in kinds.items():
        mend = "numbers first" if kind == "datetime64" else "OneHotEncoder.*condition="
        with pytest.raises(ValueError, match=rf"column 'kind' holds ({kind}).*{mend}"):
            clone(estimator).fit(table.assign(kind=values))
    with pytest.raises(ValueError, match="could not convert string to float: 'a'; categories have no density.*OneHotEncoder"):
        clone(estimator).fit(np.array([["a", "b"], ["c", "d"]], dtype=object))


def test_steps_get_noise_in_the_fit_and_none_afterwards(banana):
    x = np.column_stack([np.round(3 * banana[:, 0]), banana[:, 1]])
    with pytest.warns(UserWarning, match=r"columns with ties get uniform noise as wide as their steps in fit: 0 \(steps of 1\); dither=None"):
        transformer = GaussianizationTransformer(max_layers=4).fit(x)
    assert transformer.dither_.tolist() == [1.0, 0.0]
    z = transformer.transform(x)
    np.testing.assert_array_equal(z, transformer.transform(x))
    np.testing.assert_allclose(transformer.inverse_transform(z), x, atol=1e-7)
    # The middle of a step is where its noise is on average: the columns are not moved by half a step.
    assert abs(z[:, 0].mean()) < 0.05
    again = GaussianizationTransformer(max_layers=4, dither=[1.0, 0.0]).fit(x)
    np.testing.assert_array_equal(again.transform(x), z)
    # Over steps of width 1 the density adds up to the probabilities of the values.
    density = GaussianizationDensity(max_layers=4, dither=1.0).fit(x[:, :1])
    assert np.exp(density.score_samples(np.arange(-30.0, 31)[:, None])).sum() == pytest.approx(1, abs=0.02)
    assert density.sample(4000, random_state=0).mean() == pytest.approx(x[:, 0].mean(), abs=0.2)


@pytest.mark.parametrize("dither", ["much", -1.0, [1.0, 2.0, 3.0]])
def test_widths_that_are_none(banana, dither):
    with pytest.raises(ValueError, match="dither must be 'auto', None"):
        GaussianizationTransformer(dither=dither).fit(banana)


def test_whole_weights_are_repeated_rows_in_any_order(banana):
    weight = np.random.default_rng(0).integers(0, 4, len(banana))
    repeated = banana.repeat(weight, axis=0)[::-1]
    x = banana[:50]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        one = GaussianizationDensity(max_layers=5).fit(banana, sample_weight=weight)
        other = GaussianizationDensity(max_layers=5).fit(repeated)
    np.testing.assert_array_equal(one.score_samples(x), other.score_samples(x))
    assert one.offset_ == other.offset_


@pytest.mark.parametrize(
    "estimator", [GaussianizationDensity(max_layers=2), FlowEstimator("affine", options=SMALL, max_steps=150, learning_rate=1e-2)]
)
def test_other_weights_move_the_density(banana, estimator):
    # Weights exp(x − 1/2) make a normal column one about 1.
    weight = np.exp(banana[:, 0] - 0.5)
    drawn = clone(estimator).fit(banana, sample_weight=weight).sample(4000, random_state=0)
    assert drawn[:, 0].mean() == pytest.approx(np.average(banana[:, 0], weights=weight), abs=0.15)
    with pytest.raises(ValueError, match=r"sample_weight of row \d+ is -.* weights ≥ 0"):
        clone(estimator).fit(banana, sample_weight=-weight)


def test_few_rows_get_a_normal_distribution():
    x = np.random.default_rng(0).normal(size=(12, 2)) @ [[1.0, 2.0], [0.0, 0.5]]
    with pytest.warns(UserWarning, match="11 rows to fit to, fewer than 20: a normal distribution is fitted"):
        density = GaussianizationDensity().fit(x)
    drawn = density.sample(5000, random_state=0)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(x.T), atol=0.8)


# ------------------------------------------------------------------------------------------------------------------------------- the density


@pytest.fixture(scope="module")
def fitted(banana):
    return GaussianizationDensity(tail="gaussian").fit(banana)


def test_density_integrates_to_one_and_beats_a_normal_one(banana, fitted):
    axes = np.linspace(-6, 6, 201), np.linspace(-4, 24, 301)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(fitted.score_samples(grid)).sum() * (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    assert mass == pytest.approx(1, abs=0.01)
    truth = norm.logpdf(banana[:, 0]) + norm.logpdf(banana[:, 1], banana[:, 0] ** 2, 0.5)
    assert fitted.score(banana) == pytest.approx(truth.mean(), abs=0.2)
    normal = GaussianizationDensity(marginal="affine", max_layers=2).fit(banana)
    assert fitted.score(banana) > normal.score(banana) + 0.3


def test_score_is_the_weighted_mean_and_samples_are_repeatable(banana, fitted):
    weight = np.arange(len(banana))
    assert fitted.score(banana, sample_weight=weight) == pytest.approx(np.average(fitted.score_samples(banana), weights=weight))
    np.testing.assert_array_equal(fitted.sample(5, random_state=3), fitted.sample(5, random_state=np.int64(3)))
    assert (fitted.sample(5) != fitted.sample(5)).any()
    assert fitted.sample(2000, random_state=0).mean(0) == pytest.approx(banana.mean(0), abs=0.15)


def test_outliers_are_the_least_dense_rows(banana, fitted):
    assert (fitted.predict(banana) == -1).mean() == pytest.approx(0.1, abs=0.005)
    assert fitted.predict([[0.0, 0.0], [0.0, 8.0]]).tolist() == [1, -1]
    with pytest.raises(ValueError, match="contamination must be above 0 and at most 0.5, got 0.6"):
        GaussianizationDensity(contamination=0.6).fit(banana)


def fresh_rows(n, seed):
    x = np.random.default_rng(seed).normal(size=(n, 2))
    x[:, 1] = 0.5 * x[:, 1] + x[:, 0] ** 2
    return x


def test_ranks_are_calibrated_whatever_the_fit():
    poor = GaussianizationDensity(max_layers=1, alpha=1.0).fit(fresh_rows(1000, 0))
    fresh, reference = fresh_rows(4000, 1), fresh_rows(2000, 2)
    for level in (0.02, 0.1, 0.5):
        # Three standard errors of both samples.
        error = 3 * np.sqrt(level * (1 - level) * (1 / 4000 + 1 / 2000))
        assert (poor.pvalue(fresh, reference=reference) <= level).mean() == pytest.approx(level, abs=error)
    radius = (poor.pvalue(fresh, method="radius") <= 0.02).mean()
    assert abs(radius - 0.02) > 0.01


def test_pvalues_of_a_good_fit(fitted):
    fresh = fresh_rows(4000, 1)
    assert (fitted.pvalue(fresh, method="radius") <= 0.1).mean() == pytest.approx(0.1, abs=0.04)
    assert (fitted.pvalue(fresh) <= 0.1).mean() == pytest.approx(0.1, abs=0.1)  # 80 rows held out
    unusual = [[6.0, -6.0]]
    assert fitted.pvalue(unusual, method="radius") < 1e-3
    assert fitted.pvalue(unusual) == pytest.approx(1 / (fitted.reference_.shape[1] + 1))
    with pytest.raises(ValueError, match="method is 'rank' or 'radius'"):
        fitted.pvalue(unusual, method="chi2")
    with pytest.raises(ValueError, match="no rows were held out.*reference="):
        GaussianizationDensity(validation=0, max_layers=1).fit(fresh).pvalue(unusual)


# ----------------------------------------------------------------------------------------------------------------------------- any other flow


def test_flow_learns_a_density_given_columns():
    rng = np.random.default_rng(0)
    c = rng.uniform(-1, 1, 1500)
    x = pd.DataFrame({"y": 3 * c + 0.3 * rng.normal(size=1500), "c": c})
    estimator = FlowEstimator("affine", options={"blocks": 2, "hidden": [16]}, condition=["c"], max_steps=300, learning_rate=1e-2).fit(x)
    truth = norm.logpdf(x["y"], 3 * c, 0.3)
    assert estimator.score(x) == pytest.approx(truth.mean(), abs=0.05)
    drawn = estimator.sample(1000, condition=[[0.5], [-0.5]], random_state=0)
    assert drawn.shape == (2000, 2)
    assert (drawn[:1000, 1] == 0.5).all()
    np.testing.assert_allclose(drawn[:, 0].reshape(2, 1000).mean(1), [1.5, -1.5], atol=0.1)
    assert estimator.flow_.spec.condition_names == ("c",)
    by_number = FlowEstimator("affine", options={"blocks": 2, "hidden": [16]}, condition=[1], max_steps=4).fit(x.to_numpy())
    assert by_number.condition_.tolist() == [1]
    with pytest.raises(ValueError, match="the flow has 1 conditions, and condition is missing"):
        estimator.sample(1)
    with pytest.raises(ValueError, match="conditions of 1 columns, got 2"):
        estimator.sample(1, condition=[[1.0, 2.0]])


def test_columns_that_depend_on_each_other_get_noise(banana):
    x = np.column_stack([banana, banana.sum(1)])
    with pytest.warns(UserWarning, match="the columns 0, 1, 2 are linear combinations of each other; noise of 0.001 of their spread"):
        estimator = FlowEstimator(options=SMALL, max_steps=4).fit(x)
    assert estimator.flow_.spec.noise == pytest.approx(1e-3 * x.std(0), rel=0.05)
    with pytest.raises(ValueError, match="are linear combinations of each other.*add noise="):
        FlowEstimator(options=SMALL, max_steps=4, noise=0.0).fit(x)


def my_flow(features, context, blocks=1):
    return flows.coupling(features, context, transform="affine", blocks=blocks, hidden=[8])


def test_flow_of_ones_own(banana):
    search = GridSearchCV(FlowEstimator(my_flow, max_steps=60, learning_rate=1e-2), {"options": [{"blocks": 1}, {"blocks": 4}]}, cv=2).fit(banana)
    assert len(search.best_estimator_.flow_.codec.parts) == 1 + search.best_params_["options"]["blocks"]
    assert search.best_estimator_.history_.best is not None
    pickle.dumps(search.best_estimator_)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flow": "spline"}, "flow is one of 'splines', 'cubic', 'smooth', 'affine', 'free_form', or a function"),
        ({"condition": ["c"]}, "no column is called 'c'; X has columns without names"),
        ({"condition": [2]}, "condition 2 is no column of X, which has 2"),
        ({"condition": [0, 1]}, "all columns are conditions"),
        ({"validation": 1.5}, "validation must be a share"),
    ],
)
def test_flow_settings_that_make_no_sense(banana, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FlowEstimator(max_steps=2, **settings).fit(banana)


def test_torch_streams_are_left_alone(banana):
    torch.manual_seed(1)
    want = torch.rand(1)
    torch.manual_seed(1)
    FlowEstimator(options=SMALL, max_steps=2).fit(banana).sample(3, random_state=0)
    GaussianizationDensity(max_layers=1).fit(banana).sample(3, random_state=0)
    assert torch.rand(1) == want


def test_arguments_are_documented():
    for estimator in (GaussianizationTransformer, GaussianizationDensity, FlowEstimator):
        for name in inspect.signature(estimator).parameters:
            assert re.search(rf"^\s+{name}: ", estimator.__doc__, re.MULTILINE), (estimator, name)


# ------------------------------------------------------------------------------------------------------------------------------------ transport


def apart(a, b):
    """How well a classifier tells two samples apart: 0.5 for not at all."""
    return c2st(torch.from_numpy(a), torch.from_numpy(b)).accuracy.value


def test_transport_between_distributions():
    rng = np.random.default_rng(0)

    def normals(n):
        return rng.normal(size=(n, 2)) @ [[1.0, 0.8], [0.0, 0.6]]

    def moons(n):
        return make_moons(n, noise=0.1, random_state=rng.integers(1000))[0] * [2.0, 1.0] + [1.0, 3.0]

    move = transport(normals(1500), moons(1500))
    source, target = normals(1000), moons(1000)
    moved = move.transform(source)
    np.testing.assert_allclose(moved.mean(0), target.mean(0), atol=0.15)
    np.testing.assert_allclose(np.cov(moved.T), np.cov(target.T), atol=0.25)
    assert apart(source, target) > 0.95
    assert apart(moved, target) < 0.65
    np.testing.assert_allclose(move.inverse_transform(moved), source, atol=1e-5)


def test_transport_leaves_alone_what_is_alike():
    rng = np.random.default_rng(0)
    a, b, fresh = (rng.normal(size=(1500, 3)) @ [[1.0, 0.8, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 1.0]] for _ in range(3))
    assert np.abs(transport(a, b).transform(fresh) - fresh).mean() < 0.15
    # A change of gain and offset is undone, row by row.
    gain = transport(a, 2 * b + [1.0, 0.0, -1.0], GaussianizationTransformer(max_layers=5)).transform(fresh)
    assert np.abs(gain - (2 * fresh + [1.0, 0.0, -1.0])).mean() < 0.3


def test_transport_wants_the_same_columns(table):
    other = table.assign(unit=np.arange(len(table)) % 7 + 0.01 * table["width"])
    settings = GaussianizationTransformer(max_layers=1)
    with pytest.raises(ValueError, match=r"columns \[1\] hold one value only on one side"):
        transport(table, other, settings)
    with pytest.raises(ValueError, match="the source has 3 columns, the target 2"):
        transport(table, table[["length", "width"]], settings)
    with pytest.raises(ValueError, match="the columns of the source are"):
        transport(table, table[["width", "unit", "length"]], settings)
