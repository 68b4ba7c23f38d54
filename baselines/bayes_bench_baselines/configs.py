"""Settings of the baselines; imports no torch, so that help and errors in arguments are instant."""

from __future__ import annotations

from typing import ClassVar, Literal

from bayes_bench import MethodConfig, setting


class MAPConfig(MethodConfig):
    """MAP: one ordinary network, the maximum of likelihood × prior.

    The reference row that every table needs: it has no weight uncertainty.
    """

    batch_size: int = setting(32, "examples per step", gt=0)
    learning_rate: float = setting(3e-3, "Adam", gt=0)
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

    members: int = setting(5, "networks in the ensemble", source="paper, algorithm 1 and section 3", gt=0)
    batch_size: int = setting(32, "examples per member and step", gt=0)
    learning_rate: float = setting(3e-3, "Adam", gt=0)
    final_learning_rate: float = setting(0.0, "share of the learning rate left at the end (cosine)", ge=0, le=1)
    adversarial_epsilon: float = setting(
        0.0,
        "size of the fast-gradient-sign examples trained on as well, as a share of each input's range; "
        "doubles the cost of a step",
        source="paper: 0.01, optional",
        ge=0,
    )
    map_members: bool = setting(False, "penalise every member with the task's prior")
    keep_best: bool = setting(True, "end with the snapshot of the best validation likelihood")
    patience: int | None = setting(
        None, "stop after so many validations (of 20) without a better one; none: never", gt=0
    )


class MCDropoutConfig(MethodConfig):
    """MC dropout: dropout on the inputs of layers, also when predicting.

    A weight sample is one mask per layer, shared by all inputs: dropping an input unit (a channel, for a
    convolution) scales columns of the weight. The prior enters as the weight decay that makes dropout
    variational inference.
    """

    reference: ClassVar[str] = "Gal & Ghahramani, ICML 2016, arXiv:1506.02142"

    drop_rate: float = setting(0.1, "probability that a unit is dropped", source="paper: 0.05 to 0.5", gt=0, lt=1)
    where: Literal["all", "linear", "last"] = setting(
        "all",
        "'all': before every layer but the first; 'linear': before linear layers only (Gal's lenet_dropout for "
        "convnets); 'last': before the last layer",
    )
    batch_size: int = setting(32, "examples per step, each with its own masks", gt=0)
    learning_rate: float = setting(3e-3, "Adam", gt=0)
    final_learning_rate: float = setting(0.0, "share of the learning rate left at the end (cosine)", ge=0, le=1)
    validation_networks: int = setting(10, "networks drawn for each validation", gt=1)
    keep_best: bool = setting(True, "end with the snapshot of the best validation likelihood")
    patience: int | None = setting(
        None, "stop after so many validations (of 20) without a better one; none: never", gt=0
    )
