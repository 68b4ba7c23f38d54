"""Settings of the variational methods; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from bayes_bench import MethodConfig, Range, setting


class MNFConfig(MethodConfig):
    """MNF: Gaussian weights whose means are multiplied by random factors from a normalizing flow.

    Every Linear and Conv layer with trainable weights has its own factors; other parameters of at most one
    dimension are independent Gaussians. An example costs two gradient evaluations, one for the means of outputs
    and one for their variances.
    """

    reference: ClassVar[str] = "Louizos & Welling, ICML 2017, arXiv:1703.01961"

    multiplicative: bool = setting(True, "false: no factors, plain Gaussian weights (Bayes by Backprop)")
    flow_layers: int = setting(2, "steps of the flow of the factors; 0: they are Gaussian", source="paper", ge=0)
    flow_hidden: int = setting(50, "hidden units of each of these steps", source="paper", gt=0)
    auxiliary_flow_layers: int = setting(
        2, "steps of the flow of the auxiliary posterior that bounds the entropy", source="paper", ge=0
    )
    auxiliary_hidden: int = setting(100, "hidden units of each of these steps", source="the paper's code", gt=0)
    max_std: float = setting(0.5, "largest standard deviation of a weight", source="the paper's code", gt=0)
    initial_std: float = setting(
        0.01,
        "standard deviation that weights start with, times the root of the layer's fan-in",
        gt=0,
        tune=Range(0.005, 0.3, log=True),
    )
    kl_annealing: float = setting(
        0.0,
        "share of the budget over which the weight of the KL rises from 0 to 1; 0: always 1",
        ge=0,
        le=1,
        tune=(0.0, 0.5),
    )
    batch_size: int = setting(
        32, "examples per step, each with its own noise", source="paper: 100", gt=0, tune=(16, 32, 64), memory=True
    )
    learning_rate: float = setting(3e-3, "Adam", source="paper: 1e-3", gt=0, tune=Range(1e-3, 2e-2, log=True))
    final_learning_rate: float = setting(0.0, "share of the learning rate left at the end (cosine)", ge=0, le=1)
    validation_networks: int = setting(10, "networks drawn for each validation", gt=1, memory=True)
    keep_best: bool = setting(True, "end with the snapshot of the best validation likelihood")
    patience: int | None = setting(
        None, "stop after so many validations (of 20) without a better one; none: never", gt=0
    )


class VIConfig(MethodConfig):
    """Mean-field variational inference, by posteriors: an independent Gaussian for every weight.

    Maximises the evidence lower bound with reparameterised samples of all weights, one for each step, and the
    stick-the-landing estimator. Needs `pip install 'posteriors>=0.1.1'`.
    """

    reference: ClassVar[str] = "Blundell et al., ICML 2015, arXiv:1505.05424; library posteriors (Apache-2.0)"
    requires: ClassVar[Mapping[str, str]] = {"posteriors": "posteriors>=0.1.1"}

    batch_size: int = setting(
        32, "examples per step, which share one sample of the weights", tune=(16, 32, 64), gt=0, memory=True
    )
    learning_rate: float = setting(3e-3, "Adam", tune=Range(1e-3, 1e-2, log=True), gt=0)
    samples: int = setting(
        1, "of the weights per step; each costs a gradient evaluation per example", tune=(1, 2, 4), gt=0, memory=True
    )
    initial_std: float = setting(
        0.01, "standard deviation of every weight at the start", tune=Range(0.003, 0.1, log=True), gt=0
    )
    stick_the_landing: bool = setting(
        True, "leave the score term out of the gradient, which has mean 0", source="arXiv:1703.09194"
    )
    validation_networks: int = setting(10, "networks drawn for each validation", gt=1, memory=True)
    keep_best: bool = setting(True, "end with the snapshot of the best validation likelihood")
    patience: int | None = setting(
        None, "stop after so many validations (of 20) without a better one; none: never", gt=0
    )
