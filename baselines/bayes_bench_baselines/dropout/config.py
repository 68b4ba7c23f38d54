"""Settings of MC dropout; imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from bayes_bench import MethodConfig, Range, setting


class MCDropoutConfig(MethodConfig):
    """MC dropout: dropout on the inputs of layers, also when predicting.

    A weight sample is one mask per layer, shared by all inputs: dropping an input unit (a channel, for a
    convolution) scales columns of the weight. The prior enters as the weight decay that makes dropout
    variational inference.
    """

    reference: ClassVar[str] = "Gal & Ghahramani, ICML 2016, arXiv:1506.02142"

    drop_rate: float = setting(
        0.1, "probability that a unit is dropped", source="paper: 0.05 to 0.5", tune=Range(0.05, 0.5), gt=0, lt=1
    )
    where: Literal["all", "linear", "last"] = setting(
        "all",
        "'all': before every layer but the first; 'linear': before linear layers only (Gal's lenet_dropout for "
        "convnets); 'last': before the last layer",
        tune=("all", "linear", "last"),
    )
    batch_size: int = setting(32, "examples per step, each with its own masks", tune=(32, 64, 128), gt=0, memory=True)
    learning_rate: float = setting(3e-3, "Adam", tune=Range(1e-3, 1e-2, log=True), gt=0)
    final_learning_rate: float = setting(0.0, "share of the learning rate left at the end (cosine)", ge=0, le=1)
    validation_networks: int = setting(10, "networks drawn for each validation", gt=1, memory=True)
    keep_best: bool = setting(True, "end with the snapshot of the best validation likelihood")
    patience: int | None = setting(
        None, "stop after so many validations (of 20) without a better one; none: never", gt=0
    )
