"""Augmentation: what a shifted and mirrored image is, pixel by pixel, and who sees it."""

import pytest
import torch

from bayes_bench import DataError, Examples
from bayes_bench.posterior.augmentation import Augmentation


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def candidates(image, shift, flip):
    """All that may become of one image [C, H, W], by padding and cutting."""
    padded = torch.nn.functional.pad(image[None], [shift] * 4, mode="reflect")[0] if shift else image
    height, width = image.shape[1:]
    cut = [padded[:, i : i + height, j : j + width] for i in range(2 * shift + 1) for j in range(2 * shift + 1)]
    return cut + [piece.flip(2) for piece in cut] if flip else cut


@pytest.mark.parametrize(("shift", "flip"), [(0, False), (0, True), (2, False), (2, True)])
def test_every_change_is_a_cut_of_the_padded_image_and_all_occur(shift, flip):
    image = torch.randn(3, 6, 7, generator=rng())
    allowed = candidates(image, shift, flip)
    changed = Augmentation(shift, flip)(image.expand(2000, 3, 6, 7), rng(1))
    counts = torch.zeros(len(allowed))
    for one in changed:
        (hits,) = torch.nonzero(torch.tensor([torch.equal(one, other) for other in allowed]), as_tuple=True)
        counts[hits[0]] += 1
    assert counts.sum() == 2000
    expected = 2000 / len(allowed)
    assert (counts - expected).abs().max() <= 5 * expected**0.5


def test_images_of_several_networks_are_changed_each_in_its_own_way():
    image = torch.randn(1, 8, 8, generator=rng())
    changed = Augmentation(3, True)(image.expand(4, 50, 1, 8, 8), rng(1))
    assert changed.shape == (4, 50, 1, 8, 8)
    assert len({one.numpy().tobytes() for one in changed.flatten(0, 1)}) > 40


def test_the_same_generator_gives_the_same_changes():
    x = torch.randn(10, 3, 8, 8, generator=rng())
    change = Augmentation(2, True)
    assert torch.equal(change(x, rng(5)), change(x, rng(5)))
    assert not torch.equal(change(x, rng(5)), change(x, rng(6)))


def test_minibatches_are_augmented_and_the_examples_are_not():
    x = torch.arange(64.0).reshape(4, 1, 4, 4)
    examples = Examples(x.clone(), torch.arange(4), Augmentation(1, True))
    batch, labels = next(examples.minibatches(4, rng()))
    assert not torch.equal(batch, x[labels])
    assert torch.equal(examples.x, x)
    assert examples.to("cpu").augment == Augmentation(1, True)
    for image, label in zip(batch, labels, strict=True):
        assert any(torch.equal(image, allowed) for allowed in candidates(x[label], 1, True))


@pytest.mark.parametrize(
    ("x", "message"),
    [(torch.zeros(5, 3), "only images"), (torch.zeros(5, 1, 4, 4), "smaller shift")],
)
def test_what_cannot_be_augmented_is_refused(x, message):
    with pytest.raises(DataError, match=message):
        Examples(x, torch.zeros(5, dtype=torch.int64), Augmentation(4))
