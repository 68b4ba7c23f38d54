"""The images that a job keeps for its report."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bayes_bench.errors import DataError
from bayes_bench.jobs.gallery import IMAGES, gallery
from bayes_bench.metrics.base import summarise
from bayes_bench.results.schema import LARGEST_IMAGE, check_predictions
from bayes_bench.tasks.task import Standardiser

UNITS = Standardiser(np.full((1, 1, 1), 0.25), np.full((1, 1, 1), 0.5))


def log_probs(examples: int, seed: int = 0) -> np.ndarray:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(5, examples, 3)) * 3)
    return logits.log_softmax(-1).numpy().astype(np.float16)


def images(examples: int, size: int = 4, channels: int = 1) -> torch.Tensor:
    values = np.random.default_rng(1).uniform(size=(examples, channels, size, size))
    return torch.from_numpy((values - 0.25) / 0.5).float()


def test_the_least_and_the_most_uncertain_in_order() -> None:
    stored, x = log_probs(50), images(50)
    kept = gallery({"test/log_probs": stored}, {"test": x}, UNITS)
    entropy = summarise(stored, ()).entropy
    shown = entropy[kept["test/image_index"]]
    assert len(shown) == 2 * IMAGES
    assert (np.diff(shown) >= 0).all()
    assert set(shown[:IMAGES]) == set(np.sort(entropy)[:IMAGES])
    assert set(shown[IMAGES:]) == set(np.sort(entropy)[-IMAGES:])
    raw = x[kept["test/image_index"]].numpy() * 0.5 + 0.25
    np.testing.assert_allclose(kept["test/images"] / 255, raw, atol=0.5 / 255 + 1e-6)


def test_small_sets_give_no_image_twice() -> None:
    kept = gallery({"test/log_probs": log_probs(5)}, {"test": images(5)}, UNITS)
    assert len(set(kept["test/image_index"])) == 4


@pytest.mark.parametrize("x", [torch.zeros(20, 7), torch.zeros(20, 2, 4, 4)], ids=["a table", "two channels"])
def test_what_is_no_image_gives_nothing(x: torch.Tensor) -> None:
    assert gallery({"test/log_probs": log_probs(20)}, {"test": x}, UNITS) == {}


def test_large_images_are_thinned_and_other_ranges_stretched() -> None:
    x = 100 * images(20, size=150, channels=3)
    kept = gallery({"test/log_probs": log_probs(20)}, {"test": x}, UNITS)["test/images"]
    assert kept.shape == (16, 3, 50, 50)
    assert max(kept.shape) <= LARGEST_IMAGE
    assert (kept.min(), kept.max()) == (0, 255)


def test_stored_images_are_checked() -> None:
    stored = log_probs(50)
    arrays = {"test/log_probs": stored, "test/y": np.zeros(50, dtype=np.int64)}
    arrays |= gallery(arrays, {"test": images(50)}, UNITS)
    record = {"kind": "classification", "networks": 5, "data": {"classes": ["a", "b", "c"]}, "task_spec": {}}
    check_predictions(arrays, record)
    index = arrays["test/image_index"]
    for name, wrong in {
        "test/images": arrays["test/images"].astype(np.float32),
        "test/image_index": index + 50,
        "ood/else/images": arrays["test/images"],
    }.items():
        with pytest.raises(DataError, match=name):
            check_predictions(arrays | {name: wrong}, record)
    with pytest.raises(DataError, match="test/image"):
        check_predictions({name: array for name, array in arrays.items() if name != "test/image_index"}, record)
