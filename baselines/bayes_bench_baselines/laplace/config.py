"""Settings of the Laplace approximation; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from bayes_bench import setting
from bayes_bench_baselines.ensembles.config import MAPConfig


class LaplaceConfig(MAPConfig):
    """Laplace approximation, by laplace-torch: a Gaussian around one trained network, from the curvature of its loss.

    The generalised Gauss–Newton matrix of the likelihood plus the prior's precision is the Gaussian's precision, for
    the last layer or for all weights, Kronecker-factored or diagonal. Needs `pip install 'laplace-torch>=0.2.2'`.
    """

    reference: ClassVar[str] = "Daxberger et al., NeurIPS 2021, arXiv:2106.14806; library laplace-torch (MIT)"
    requires: ClassVar[Mapping[str, str]] = {"laplace": "laplace-torch>=0.2.2"}

    weights: Literal["last_layer", "all"] = setting(
        "last_layer",
        "which weights are uncertain; samples of all weights of a network fit worse than its mean, which only the "
        "library's linearised prediction corrects for, and that is no weight sample",
        source="paper, section 3",
        tune=("last_layer", "all"),
    )
    curvature: Literal["kron", "diag"] = setting(
        "kron", "structure of the Gauss–Newton matrix", source="paper: kron", tune=("kron", "diag")
    )
    fit_prior: bool = setting(
        False,
        "choose one prior precision by the marginal likelihood instead of the task's prior, for the Gaussian alone",
        source="paper, section 2.2",
        tune=(False, True),
    )
