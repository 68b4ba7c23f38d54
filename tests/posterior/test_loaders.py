"""Examples as people have them: arrays, datasets and loaders give the very fit that tensors give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from bayes_bench import DataError, Examples, FitData
from bayes_bench.posterior import loaders
from bayes_bench.testing import classification
from bayes_bench_baselines import MAP

PROBLEM = classification()
X, Y = PROBLEM.data.train.inputs(), PROBLEM.data.train.y


class Pairs(Dataset[tuple[Tensor, int]]):
    """As torchvision's data sets are: a tensor and a number."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read.append(index)
        return X[index], int(Y[index])


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(zip(X, Y, strict=True))  # type: ignore[arg-type]


def weights(data: Any, **options: Any) -> dict[str, Tensor]:
    posterior = MAP(PROBLEM.network, PROBLEM.likelihood)
    posterior.fit(data, budget=1500, **options)
    return posterior.sample(1, seed=0)


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [X.numpy(), Y.numpy()],
        (X.double().numpy(), Y.int().numpy()),
        (X.tolist(), Y.tolist()),
        Examples(X, Y),
        TensorDataset(X, Y),
        Pairs(),
        DataLoader(Pairs(), batch_size=7, shuffle=True),
    ],
    ids=["tensors", "arrays", "other types", "lists", "examples", "tensor dataset", "dataset", "loader"],
)
def test_the_kind_of_data_makes_no_difference(data: Any) -> None:
    expected = weights(FitData(Examples(X, Y)))
    for name, value in weights(data).items():
        assert torch.equal(value, expected[name])


def test_a_dataset_is_read_once() -> None:
    pairs = Pairs()
    weights(pairs)
    assert sorted(pairs.read[1:]) == list(range(len(X)))  # and the first one to see whether it is always the same


def test_validation_is_given_in_any_kind_too() -> None:
    expected = weights(FitData(Examples(X, Y), Examples(X[:50], Y[:50])))
    for name, value in weights(Pairs(), validation=(X[:50], Y[:50])).items():
        assert torch.equal(value, expected[name])
    with pytest.raises(DataError, match="given twice"):
        weights(FitData(Examples(X, Y)), validation=(X, Y))


def test_large_datasets_go_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = weights((X, Y))
    monkeypatch.setattr(loaders, "IN_MEMORY", 0)
    assert not loaders.as_examples(Pairs()).in_memory
    for name, value in weights(Pairs()).items():
        assert torch.equal(value, expected[name])


def test_random_transforms_are_told() -> None:
    class Noisy(Pairs):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return X[index] + torch.rand(()), int(Y[index])

    with pytest.warns(UserWarning, match="random transforms"):
        loaders.as_examples(Noisy())


def test_predictions_take_the_same_kinds() -> None:
    posterior = MAP(PROBLEM.network, PROBLEM.likelihood)
    posterior.fit(Pairs(), budget=1500)
    drawn = posterior.sample(1, seed=0)
    expected = posterior.predict(X, drawn)
    for x in (X.numpy(), X.tolist(), Pairs(), DataLoader(Pairs(), batch_size=32)):
        assert torch.equal(posterior.predict(x, drawn).mean, expected.mean)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Stream(), "map-style dataset"),
        (DataLoader(Stream()), "map-style dataset"),
        (X, "cannot fit to Tensor; give FitData, Examples, a pair"),
        ((X, Y, Y), "got 3 parts"),
        ("x", "cannot fit to str"),
        ((["a"], [1]), "inputs must be a tensor or an array of numbers"),
        (TensorDataset(X), "got 1 parts"),
    ],
    ids=["stream", "loader of a stream", "tensor", "three", "text", "texts", "one tensor"],
)
def test_what_cannot_be_fitted_to_is_one_sentence(data: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        weights(data)


def test_a_dataset_of_tables_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tables(Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return {"image": X[index], "label": Y[index]}

    with pytest.raises(DataError, match="tables with image, label; give the loader a collate_fn"):
        loaders.as_examples(Tables())

    def collate(items: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        return torch.stack([item["image"] for item in items]), torch.stack([item["label"] for item in items])

    examples = loaders.as_examples(DataLoader(Tables(), collate_fn=collate))
    assert torch.equal(examples.inputs(), X[:3])
    assert np.array_equal(examples.y, Y[:3])
