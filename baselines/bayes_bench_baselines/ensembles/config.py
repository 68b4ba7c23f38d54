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
