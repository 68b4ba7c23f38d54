"""Settings of the Laplace approximation; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from bayes_bench import setting
from bayes_bench_baselines.ensembles.config import MAPConfig


class LaplaceConfig(MAPConfig):
    """Laplace approximation, by laplace-torch: a Gaussian around one trained network, from the curvature of its loss.

    The generalised Gauss–Newton matrix of the likelihood plus the prior's precision is the Gaussian's precision, for
    the last layer or for all weights, Kronecker-factored or diagonal. Needs `pip install 'laplace-torch>=0.2.2'`.
    """

    reference: ClassVar[str] = "Daxberger et al., NeurIPS 2021, arXiv:2106.14806; library laplace-torch (MIT)"
    revision: ClassVar[int] = 2
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
    prior_precision: Literal["validation", "marglik", "task"] = setting(
        "validation",
        "of the Gaussian alone: 'validation' multiplies the task's by the power of ten with which draws predict the "
        "validation examples best, 'marglik' is one precision by the marginal likelihood, 'task' the prior's own; "
        "without validation examples 'validation' is 'task'",
        source="paper, section 2.2 (marglik), and the library's grid search",
        tune=("validation", "marglik"),
    )
    validation_networks: int = setting(5, "networks drawn for each precision that is tried", gt=1)

    @model_validator(mode="before")
    @classmethod
    def _as_earlier(cls, values: Any) -> Any:
        """Files of version 0.1 have ``fit_prior``."""
        if isinstance(values, dict) and "fit_prior" in values:
            values = {**values}
            values.setdefault("prior_precision", "marglik" if values.pop("fit_prior") is True else "task")
        return values
