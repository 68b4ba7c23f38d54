"""The sources that need no files: digits, cubic, letters, distorted; and what all sources share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bayes_bench import data
from bayes_bench.data import base, cubic, digits, letters
from bayes_bench.data.spec import OODSpec, SourceSpec
from bayes_bench.errors import DataError, UsageError
from bayes_bench.tasks.check import check_task
from bayes_bench.tasks.spec import TaskSpec

NOWHERE = Path("nowhere")


def ood(source: str, **options: object) -> OODSpec:
    return OODSpec(name="out", source=source, **options)


@pytest.fixture(scope="module")
def digit_split() -> data.Split:
    return data.load_split(SourceSpec(source="digits"), NOWHERE)


# --- what all sources share


def test_stream_is_the_same_for_ever() -> None:
    """Pinned values: a change would silently make new splits and new data under old names."""
    stream = base.Stream((7, "word"))
    assert stream.uniform(3).tolist() == pytest.approx([0.2099470371, 0.9863634508, 0.6003498083], abs=1e-9)
    assert stream.permutation(6).tolist() == [1, 3, 4, 2, 5, 0]
    assert base.Stream((7, "other")).uniform() != base.Stream((7, "word")).uniform()


def test_stream_distributions() -> None:
    stream = base.Stream((1,))
    n = 40_000
    uniform, normal = stream.uniform(n), stream.normal(n)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert uniform.mean() == pytest.approx(0.5, abs=4 / np.sqrt(12 * n))
    assert normal.mean() == pytest.approx(0, abs=4 / np.sqrt(n))
    assert normal.var() == pytest.approx(1, abs=4 * np.sqrt(2 / n))
    assert sorted(stream.permutation(100).tolist()) == list(range(100))
    assert np.bincount(stream.integers(4, n)).tolist() == pytest.approx([n / 4] * 4, abs=4 * np.sqrt(n * 3 / 16))


def test_split_indices_are_a_stratified_partition() -> None:
    y = np.repeat([0, 1, 2], [600, 300, 100])
    parts = base.split_indices(1000, (200, 100), (3,), y)
    assert [len(part) for part in parts] == [200, 100, 700]
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    for part in parts:
        share = np.bincount(y[part]) / len(part)
        np.testing.assert_allclose(share, [0.6, 0.3, 0.1], atol=2 / len(part))
    assert not np.array_equal(parts[0], base.split_indices(1000, (200, 100), (4,), y)[0])


def test_split_indices_refuse_to_leave_nothing() -> None:
    with pytest.raises(DataError, match=r"10 examples cannot be split into 6 \+ 4 and a rest"):
        base.split_indices(10, (6, 4), (0,))


def test_labels_are_sorted_as_numbers_or_as_text() -> None:
    assert base.encode_labels(["10", "9", "-1"])[1] == ("-1", "9", "10")
    assert base.encode_labels(["b", "10", "9"])[1] == ("10", "9", "b")
    assert base.encode_labels([2, 5, 3], known=("2", "3"))[0].tolist() == [0, -1, 1]


def test_importing_and_checking_needs_no_torch() -> None:
    """Help, lists and errors in arguments are instant only while these modules stay light."""
    code = (
        "import sys\n"
        "from bayes_bench.tasks.suites import load_suite, shipped_suites\n"
        "[load_suite(name) for name in shipped_suites()]\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'scipy', 'matplotlib', 'pandas', 'PIL'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_data_root_from_argument_environment_or_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BAYES_BENCH_DATA", str(tmp_path / "env"))
    assert data.resolve_data_root(tmp_path / "given") == tmp_path / "given"
    assert data.resolve_data_root() == tmp_path / "env"
    monkeypatch.delenv("BAYES_BENCH_DATA")
    assert data.resolve_data_root().name == "bayes-bench"


# --- errors in options


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SourceSpec(source="digit"), "unknown data source 'digit', did you mean 'digits'?"),
        (SourceSpec(source="letters"), "unknown data source 'letters'; known: cifar10, csv"),
        (ood("cubic"), "unknown source of out-of-distribution inputs 'cubic'"),
        (SourceSpec(source="digits", size=3), "data source 'digits': unknown option 'size'"),
        (SourceSpec(source="mnist", train_per_clas=3), "did you mean 'train_per_class'?"),
        (SourceSpec(source="mnist", validation=55), "validation: must be a multiple of 10"),
        (
            SourceSpec(source="mnist", train_per_class="many"),
            "train_per_class: Input should be a valid integer",
        ),
        (
            SourceSpec(source="cubic", exclude=[1.5, -1.0]),
            "exclude must be [low, high] with -4 < low < high < 4",
        ),
        (SourceSpec(source="csv", target="y"), "data source 'csv': path: Field required"),
        (SourceSpec(source="csv", path="a.csv", target=[]), "target"),
        (SourceSpec(source="npz", path="a.npz", test=1.5), "test: Input should be less than 1 (got 1.5)"),
        (SourceSpec(source="image-folder", path="a", channels=2), "channels: Input should be 1 or 3"),
        (
            ood("letters", letters="A-Z"),
            "data source 'letters' of 'out': letters: Input should be 'A-J' or 'K-T'",
        ),
        (ood("distorted", grid=1), "grid: Input should be greater than or equal to 2"),
    ],
)
def test_wrong_options_are_one_sentence(spec: SourceSpec, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        data.check_spec(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_source_and_likelihood_must_agree() -> None:
    network = {"name": "mlp"}
    with pytest.raises(UsageError, match="'cubic' is for regression, but the likelihood 'categorical' is for"):
        check_task(TaskSpec(name="t", data=SourceSpec(source="cubic"), network=network, budget=1))
    given = SourceSpec(source="npz", path="a.npz", kind="regression")
    with pytest.raises(UsageError, match="'npz' is for regression"):
        check_task(TaskSpec(name="t", data=given, network=network, budget=1))


# --- digits


def test_digits_split(digit_split: data.Split) -> None:
    parts = (digit_split.train, digit_split.validation, digit_split.test)
    assert [part.x.shape for part in parts] == [(800, 1, 8, 8), (200, 1, 8, 8), (797, 1, 8, 8)]
    assert digit_split.classes == tuple("0123456789")
    for part in parts:
        assert part.x.dtype == np.float32
        assert part.y.dtype == np.int64
        assert (part.x.min(), part.x.max()) == (0, 1)
        counts = np.bincount(part.y, minlength=10)
        # The classes have 174 to 183 members: ±2.5 % of a tenth, and one for rounding at each border.
        assert np.abs(counts - len(part) / 10).max() <= 0.035 * len(part) / 10 + 2


def test_digits_split_is_a_partition_of_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    everything = digits.load()
    np.testing.assert_array_equal(everything.x.reshape(-1, 64) * 16, pixels)
    np.testing.assert_array_equal(everything.y, labels)
    split = data.load_split(SourceSpec(source="digits"), NOWHERE)
    rows = [row.tobytes() for part in (split.train, split.validation, split.test) for row in part.x]
    assert sorted(rows) == sorted(row.tobytes() for row in everything.x)


def test_digits_are_the_same_each_time(digit_split: data.Split) -> None:
    again = data.load_split(SourceSpec(source="digits"), NOWHERE)
    np.testing.assert_array_equal(again.train.x, digit_split.train.x)
    np.testing.assert_array_equal(again.validation.y, digit_split.validation.y)
    assert digit_split.train.y[:12].tolist() == [0, 3, 6, 7, 8, 9, 0, 4, 6, 2, 7, 8]


# --- letters


@pytest.mark.parametrize("which", ["A-J", "K-T"])
def test_letters_have_the_published_pixels(which: str, digit_split: data.Split) -> None:
    found = data.load_inputs(ood("letters", letters=which), NOWHERE, digit_split)
    assert found.x.shape == (1000, 1, 8, 8)
    assert found.x.dtype == np.float32
    np.testing.assert_array_equal(found.x * 16, np.rint(found.x * 16))
    assert letters.checksum(letters.render(which, 1000)) == letters.CHECKSUMS[which]
    assert len(found.notes) == 1
    assert "stand-in for notMNIST, not notMNIST" in found.notes[0]


def test_letters_have_the_ink_of_the_digits(digit_split: data.Split) -> None:
    """Mean and spread of the pixels, and the distribution of mean intensity, which must give nothing away."""
    from sklearn.metrics import roc_auc_score

    ink = digit_split.train.x.mean((1, 2, 3))
    quantiles = np.quantile(ink, np.linspace(0, 1, len(letters.DIGITS_INK)))
    np.testing.assert_allclose(letters.DIGITS_INK, quantiles, atol=1e-4)
    test_ink = digit_split.test.x.mean((1, 2, 3))
    for which in ("A-J", "K-T"):
        x = data.load_inputs(ood("letters", letters=which), NOWHERE, digit_split).x
        assert x.mean() == pytest.approx(digit_split.train.x.mean(), abs=0.003)
        assert x.std() == pytest.approx(digit_split.train.x.std(), abs=0.02)
        score = np.concatenate([test_ink, x.mean((1, 2, 3))])
        floor = roc_auc_score(np.repeat([0, 1], [len(test_ink), len(x)]), score)
        assert 0.45 < floor < 0.55


def test_letters_can_be_told_apart(digit_split: data.Split) -> None:
    """They are letters: the nearest neighbour among the first 600 names four in five of the others."""
    x = data.load_inputs(ood("letters"), NOWHERE, digit_split).x.reshape(1000, -1)
    y = np.arange(1000) % 10
    distance = ((x[600:, None] - x[None, :600]) ** 2).sum(2)
    assert (y[distance.argmin(1)] == y[600:]).mean() > 0.8


def test_letters_of_another_matplotlib_are_a_note(monkeypatch: pytest.MonkeyPatch, digit_split: data.Split) -> None:
    monkeypatch.setitem(letters.CHECKSUMS, "A-J", "0" * 64)
    found = data.load_inputs(ood("letters"), NOWHERE, digit_split)
    assert "another version of matplotlib" in found.notes[1]


def test_letters_need_8_by_8_images() -> None:
    with pytest.raises(DataError, match=r"letters are images of shape \(1, 8, 8\)"):
        data.load_inputs(ood("letters"), NOWHERE, data.load_split(SourceSpec(source="cubic"), NOWHERE))


# --- cubic


def test_cubic() -> None:
    split = data.load_split(SourceSpec(source="cubic"), NOWHERE)
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    for name, part in parts.items():
        assert part.x.shape == part.y.shape == (cubic.SIZES[name], 1)
        assert np.abs(part.x).max() <= 4
        noise = part.y - part.x.astype(np.float64) ** 3
        n = len(part)
        assert noise.mean() == pytest.approx(0, abs=4 * 3 / np.sqrt(n))
        assert noise.std() == pytest.approx(3, abs=4 * 3 / np.sqrt(2 * n))
    assert not set(split.train.x.ravel()) & set(split.validation.x.ravel())
    assert split.train.x[:3, 0].tolist() == pytest.approx([-3.99042, -3.32123, -3.02503], abs=1e-5)
    # One point in each of 20 equal cells.
    assert np.floor((split.train.x.ravel() + 4) / 0.4).tolist() == list(range(20))


def test_cubic_gap_holds_no_points() -> None:
    split = data.load_split(SourceSpec(source="cubic", exclude=[-1.0, 1.5]), NOWHERE)
    for part in (split.train, split.validation, split.test):
        x = part.x.ravel()
        assert not ((x > -1) & (x < 1.5)).any()
        assert (x <= -1).sum() == pytest.approx(len(x) * 3 / 5.5, abs=1)
        assert x.max() <= 4


# --- distorted


@pytest.mark.parametrize("grid", [2, 4])
def test_distorted_images_keep_their_pixels_and_nothing_else(grid: int, digit_split: data.Split) -> None:
    x = digit_split.validation.x
    found = data.load_inputs(ood("distorted", grid=grid), NOWHERE, digit_split)
    assert found.x.shape == x.shape
    flat, distorted = x.reshape(len(x), -1), found.x.reshape(len(x), -1)
    np.testing.assert_array_equal(np.sort(flat, 1), np.sort(distorted, 1))
    assert (flat != distorted).any(1).all()
    again = data.load_inputs(ood("distorted", grid=grid), NOWHERE, digit_split)
    np.testing.assert_array_equal(found.x, again.x)


def test_distortion_moves_every_patch() -> None:
    """With constant patches turning changes nothing, so every patch must hold what another one held."""
    n, side = 50, 3
    values = np.arange(n * 9, dtype=np.float32).reshape(n, 1, 3, 3)
    x = np.kron(values, np.ones((side, side), dtype=np.float32))
    arrays = data.Arrays(x, np.zeros(n, dtype=np.int64))
    result = data.load_inputs(ood("distorted", grid=3), NOWHERE, data.Split(arrays, arrays, arrays)).x
    small = result[:, :, ::side, ::side]
    np.testing.assert_array_equal(np.kron(small, np.ones((side, side))), result)
    assert (small != values).all()
    np.testing.assert_array_equal(np.sort(small.reshape(n, -1), 1), values.reshape(n, -1))


def test_distorted_images_of_several_channels_stay_aligned() -> None:
    x = base.Stream((5,)).uniform(20, 1, 8, 8).astype(np.float32)
    arrays = data.Arrays(np.concatenate([x, -x], 1), np.zeros(20, dtype=np.int64))
    result = data.load_inputs(ood("distorted"), NOWHERE, data.Split(arrays, arrays, arrays)).x
    np.testing.assert_array_equal(result[:, 0], -result[:, 1])


def test_distorted_features_keep_each_distribution() -> None:
    x = base.Stream((5,)).uniform(40, 1) * np.ones((1, 3))
    arrays = data.Arrays(x.astype(np.float32), np.zeros((40, 1), dtype=np.float32))
    result = data.load_inputs(ood("distorted"), NOWHERE, data.Split(arrays, arrays, arrays)).x
    np.testing.assert_array_equal(np.sort(result, 0), np.sort(arrays.x, 0))
    assert np.abs(np.corrcoef(result.T)[np.triu_indices(3, 1)]).max() < 4 / np.sqrt(40)


def test_distorted_says_what_it_cannot_cut(digit_split: data.Split) -> None:
    with pytest.raises(DataError, match="grid = 3 does not cut images of 8×8 into square patches"):
        data.load_inputs(ood("distorted", grid=3), NOWHERE, digit_split)
    with pytest.raises(DataError, match="at least 2 features"):
        data.load_inputs(ood("distorted"), NOWHERE, data.load_split(SourceSpec(source="cubic"), NOWHERE))
