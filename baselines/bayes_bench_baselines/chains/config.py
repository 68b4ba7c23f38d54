"""Settings of the chains; imports no torch."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from bayes_bench import Diagnostic, DiagnosticTable, MethodConfig, Range, setting

CHAINS = DiagnosticTable(
    "Chains",
    (
        Diagnostic("rhat_predictions", "predictions", "R-hat"),
        Diagnostic("rhat_log_joint", "log joint", "R-hat"),
        Diagnostic("ess_predictions", "predictions", "Effective sample size"),
        Diagnostic("ess_log_joint", "log joint", "Effective sample size"),
        Diagnostic("temperature_excess", "temperature excess", "Bias"),
        Diagnostic("acceptance", "acceptance", "Bias"),
    ),
    (
        "R-hat above about 1.1 says that chains disagree: they describe the neighbourhoods they reached, not the whole "
        "posterior. The temperature excess is what minibatches add to a temperature of 1, at most; with Metropolis "
        "acceptance there is none.",
    ),
)


class ChainConfig(MethodConfig):
    """Settings of stochastic-gradient Markov chains; the base of the methods that run them."""

    diagnostics: ClassVar[tuple[DiagnosticTable, ...]] = (CHAINS,)

    algorithm: Literal["sgld", "psgld", "sghmc"] = setting(
        "sgld",
        "'sgld': Langevin dynamics; 'psgld': with RMSprop's diagonal preconditioner; 'sghmc': with momentum",
        source="arXiv:1512.07666 (psgld), arXiv:1402.4102 (sghmc)",
        tune=("sgld", "sghmc"),
    )
    chains: int = setting(
        2, "independent chains, run in one stacked pass; they share the budget", gt=0, tune=(1, 2, 4), memory=True
    )
    samples: int = setting(
        100,
        "networks stored, from all chains together; fewer where the budget is too small for them",
        gt=0,
        memory=True,
    )
    batch_size: int = setting(32, "examples per chain and step", gt=0, tune=(16, 32, 64), memory=True)
    batches: Literal["independent", "epochs"] = setting(
        "epochs",
        "'independent': every batch is drawn anew, as the theory assumes; 'epochs': reshuffled passes over the data, "
        "within which the noise of the gradients cancels, so that it heats the chain less",
    )
    step_size: float = setting(
        0.02,
        "ε: a step moves by −ε/2 times the gradient of the mean loss (with prior), plus N(0, ε/N); ε/2 is what is "
        "called the learning rate elsewhere",
        source="arXiv:1806.10317: 0.05",
        gt=0,
        tune=Range(1e-3, 0.5, log=True),
    )
    schedule: Literal["constant", "polynomial", "cyclical"] = setting(
        "constant",
        "of ε over the budget; 'cyclical': cosines from ε to nearly 0, each first explored without noise, then sampled",
        source="polynomial: Welling & Teh, ICML 2011; cyclical: arXiv:1902.03932",
    )
    final_step_size: float = setting(
        0.1, "share of ε left at the end (schedule = 'polynomial', with the power 0.55)", gt=0, le=1
    )
    cycles: int = setting(4, "number of cosines (schedule = 'cyclical')", gt=0)
    burn_in: float = setting(
        0.4,
        "share of the steps (of every cycle, where there are cycles) before the first network is stored",
        ge=0,
        lt=1,
        tune=(0.3, 0.5, 0.7),
    )
    thinning: int | None = setting(
        None, "steps between two stored networks of a chain; none: spread evenly over what follows the burn-in", gt=0
    )
    friction: float = setting(
        0.1,
        "share of the momentum lost in each step (algorithm = 'sghmc'); 1 is sgld",
        source="arXiv:1402.4102: 1 − 0.9",
        gt=0,
        le=1,
    )
    preconditioner_decay: float = setting(
        0.99,
        "of the running mean of squared gradients (algorithm = 'psgld')",
        source="arXiv:1512.07666: 0.99",
        gt=0,
        lt=1,
    )
    preconditioner_damping: float = setting(
        1e-3,
        "added to the root of that mean (algorithm = 'psgld'); with a small one weights of vanishing gradient run away",
        source="arXiv:1512.07666: 1e-5",
        gt=0,
    )
    adapt_always: bool = setting(
        False,
        "go on adapting the preconditioner after the burn-in, as in the paper, without the term Γ that would correct "
        "for it; off: it is frozen then, Γ is 0 and the only bias is the step's",
    )

    @model_validator(mode="after")
    def _chains_are_alike(self) -> Self:
        if self.samples % self.chains:
            raise ValueError(f"samples ({self.samples}) must be a multiple of chains ({self.chains})")
        if self.algorithm == "psgld" and self.burn_in == 0 and not self.adapt_always:
            raise ValueError("psgld adapts its preconditioner in the burn-in; raise burn_in, or set adapt_always")
        return self


class SGLDConfig(ChainConfig):
    """SGLD: stochastic-gradient Langevin dynamics at temperature 1.

    Chains of networks that follow the gradient of log likelihood + log prior with as much noise as makes the
    posterior their stationary distribution, but for the bias of finite steps and of minibatches, which the record
    states (`temperature_excess`).
    """

    reference: ClassVar[str] = "Welling & Teh, ICML 2011"


class HMCConfig(MethodConfig):
    """HMC: full-batch Hamiltonian Monte Carlo with Metropolis correction, the reference for small tasks.

    Several chains run together, each from a mode of its own. The only method here without a bias that remains when
    it runs long enough; the cost of a step is the whole training set for every chain.
    """

    reference: ClassVar[str] = "Izmailov, Vikram, Hoffman & Wilson, ICML 2021, arXiv:2104.14421"
    diagnostics: ClassVar[tuple[DiagnosticTable, ...]] = (CHAINS,)

    chains: int = setting(4, "independent chains, which share the budget", gt=0, memory=True)
    samples: int = setting(100, "networks stored, equally many of each chain", gt=0, memory=True)
    descent: float = setting(0.2, "share of the budget in which each chain descends to a mode first", ge=0, lt=1)
    learning_rate: float = setting(0.05, "Adam, in the descent", gt=0)
    burn_in: float = setting(0.3, "share of the budget in which the step size is adapted; not stored", gt=0, lt=1)
    trajectory_length: float = setting(
        math.pi / 2, "length of a trajectory, in standard deviations of the prior", source="paper, section 3", gt=0
    )
    jitter: float = setting(
        0.5, "every trajectory's length is multiplied by a uniform factor between 1 − this and 1 + this", ge=0, lt=1
    )
    max_leapfrog: int = setting(2000, "most leapfrog steps in a trajectory", gt=0)
    target_acceptance: float = setting(
        0.8, "mean acceptance for which the step size is adapted", source="Stan's default", gt=0, lt=1
    )

    @model_validator(mode="after")
    def _shares(self) -> HMCConfig:
        if self.descent + self.burn_in >= 1:
            raise ValueError("descent and burn_in must leave a share of the budget; lower one of them")
        if self.samples % self.chains:
            raise ValueError(f"samples ({self.samples}) must be a multiple of chains ({self.chains})")
        return self
