"""Settings of MAP and of ensembles; imports no torch, so that help and errors in arguments are instant."""

from __future__ import annotations

from typing import ClassVar

from bayes_bench import MethodConfig, Range, setting


class MAPConfig(MethodConfig):
    """MAP: one ordinary network, the maximum of likelihood × prior.

    The reference row that every table needs: it has no weight uncertainty.
    """

    batch_size: int = setting(32, "examples per step", tune=(16, 32, 64, 128), gt=0, memory=True)
    learning_rate: float = setting(3e-3, "Adam", tune=Range(1e-3, 1e-2, log=True), gt=0)
    final_learning_rate: float = setting(0.0, "share of the learning rate left at the end (cosine)", ge=0, le=1)
    keep_best: bool = setting(True, "end with the snapshot of the best validation likelihood")
    patience: int | None = setting(
        None, "stop after so many validations (of 20) without a better one; none: never", gt=0
    )


class DeepEnsembleConfig(MethodConfig):
    """Deep ensemble: independently initialised networks, each trained on its own shuffling of the data.

    Members are trained together in one stacked pass and share the budget. As in the paper they ignore the
    prior; with `map_members` each is penalised by it.
    """

    reference: ClassVar[str] = "Lakshminarayanan, Pritzel & Blundell, NeurIPS 2017, arXiv:1612.01474"

    members: int = setting(
        5, "networks in the ensemble", source="paper, algorithm 1 and section 3", tune=(3, 5, 10), gt=0, memory=True
    )
    batch_size: int = setting(32, "examples per member and step", tune=(16, 32, 64), gt=0, memory=True)
    learning_rate: float = setting(3e-3, "Adam", tune=Range(1e-3, 1e-2, log=True), gt=0)
    final_learning_rate: float = setting(0.0, "share of the learning rate left at the end (cosine)", ge=0, le=1)
    adversarial_epsilon: float = setting(
        0.0,
        "size of the fast-gradient-sign examples trained on as well, as a share of each input's range; "
        "doubles the cost of a step",
        source="paper: 0.01, optional",
        tune=(0.0, 0.01),
        ge=0,
    )
    map_members: bool = setting(False, "penalise every member with the task's prior", tune=(False, True))
    keep_best: bool = setting(True, "end with the snapshot of the best validation likelihood")
    patience: int | None = setting(
        None, "stop after so many validations (of 20) without a better one; none: never", gt=0
    )


class SWAGConfig(MAPConfig):
    """SWAG: a Gaussian around the networks that SGD visits after training; with several `members` MultiSWAG.

    Trains as `map` does, then goes on with SGD at a constant learning rate and collects mean, variances and the last
    deviations from the mean. Members are independent and share the budget; a sample is of one of them.
    """

    reference: ClassVar[str] = "Maddox et al., NeurIPS 2019, arXiv:1902.02476; MultiSWAG: Wilson & Izmailov, 2020"

    members: int = setting(
        1, "independent Gaussians; more than one is MultiSWAG", source="MultiSWAG: 5", gt=0, memory=True
    )
    collect_share: float = setting(
        0.25, "share of the budget for the networks that are collected", source="paper: 0.46 to 0.5", gt=0, lt=1
    )
    collect: int = setting(40, "networks collected, evenly over that share", gt=1)
    rank: int = setting(
        20, "last deviations kept: the rank of the covariance's low-rank part", source="paper: 20", gt=1, memory=True
    )
    sgd_learning_rate: float = setting(
        0.01, "constant, of SGD with momentum 0.9 while networks are collected", tune=Range(1e-3, 0.1, log=True), gt=0
    )
    scale: float = setting(
        1.0, "of the covariance, by which weights are drawn; 1 is half the diagonal and half the low-rank part",
        source="paper: 1", tune=(0.5, 1.0), ge=0,
    )  # fmt: skip
    validation_networks: int = setting(10, "networks drawn for each validation", gt=1, memory=True)
