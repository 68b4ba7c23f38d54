"""Settings of the baselines; imports no torch, so that help and errors in arguments are instant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bayes_bench import MethodConfig, Range, setting

Width = Annotated[int, Field(gt=0)]


class MAPConfig(MethodConfig):
    """MAP: one ordinary network, the maximum of likelihood × prior.

    The reference row that every table needs: it has no weight uncertainty.
    """

    batch_size: int = setting(32, "examples per step", tune=(16, 32, 64, 128), gt=0)
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
        5, "networks in the ensemble", source="paper, algorithm 1 and section 3", tune=(3, 5, 10), gt=0
    )
    batch_size: int = setting(32, "examples per member and step", tune=(16, 32, 64), gt=0)
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
    batch_size: int = setting(32, "examples per step, each with its own masks", tune=(32, 64, 128), gt=0)
    learning_rate: float = setting(3e-3, "Adam", tune=Range(1e-3, 1e-2, log=True), gt=0)
    final_learning_rate: float = setting(0.0, "share of the learning rate left at the end (cosine)", ge=0, le=1)
    validation_networks: int = setting(10, "networks drawn for each validation", gt=1)
    keep_best: bool = setting(True, "end with the snapshot of the best validation likelihood")
    patience: int | None = setting(
        None, "stop after so many validations (of 20) without a better one; none: never", gt=0
    )


class ChainConfig(MethodConfig):
    """Settings of stochastic-gradient Markov chains; the base of the methods that run them."""

    algorithm: Literal["sgld", "psgld", "sghmc"] = setting(
        "sgld",
        "'sgld': Langevin dynamics; 'psgld': with RMSprop's diagonal preconditioner; 'sghmc': with momentum",
        source="arXiv:1512.07666 (psgld), arXiv:1402.4102 (sghmc)",
        tune=("sgld", "sghmc"),
    )
    chains: int = setting(2, "independent chains, run in one stacked pass; they share the budget", gt=0, tune=(1, 2, 4))
    samples: int = setting(
        100, "networks stored, from all chains together; fewer where the budget is too small for them", gt=0
    )
    batch_size: int = setting(32, "examples per chain and step", gt=0, tune=(16, 32, 64))
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


class APDConfig(ChainConfig):
    """APD: adversarial posterior distillation, a GAN trained on the networks of a Langevin chain.

    The teacher's chain is paid from the budget; the student, a WGAN-GP over whole weight vectors, evaluates no
    network in training. A draw costs a pass through the generator, and there are as many networks as one likes.
    """

    reference: ClassVar[str] = "Wang et al., ICML 2018, arXiv:1806.10317"

    chains: int = setting(
        1,
        "independent chains of the teacher; several chains sit in several modes, between which a generator "
        "interpolates badly",
        source="paper: 1",
        gt=0,
    )
    samples: int = setting(1000, "networks that the teacher's chains store in all", gt=1)
    training: Literal["offline", "online"] = setting(
        "offline",
        "'offline': the chain is stored and the student trained afterwards; 'online': the student is trained while "
        "the chain goes on, on a buffer of its latest networks",
    )
    buffer: int = setting(200, "networks in the buffer, first in first out (training = 'online')", gt=1)
    noise_dim: int = setting(32, "dimensions of the student's input noise", source="paper: 100", gt=0)
    student_hidden: tuple[Width, ...] = setting(
        (100, 100, 100), "hidden widths of the student", source="paper", min_length=1
    )
    critic_hidden: tuple[Width, ...] = setting(
        (100, 100, 100), "hidden widths of the critic", source="paper", min_length=1
    )
    student_steps: int = setting(
        200, "steps of the student; none of them evaluates a network", gt=0, tune=(200, 400, 800)
    )
    critic_steps: int = setting(5, "steps of the critic for each of the student", source="arXiv:1704.00028: 5", gt=0)
    student_batch: int = setting(100, "networks per step of student and critic", source="paper: 100", gt=1)
    gradient_penalty: float = setting(10.0, "weight of (‖∇critic‖ − 1)²", source="arXiv:1704.00028: 10", ge=0)
    student_learning_rate: float = setting(
        3e-4,
        "Adam with β = (0.5, 0.9), student and critic; falls to 0 (cosine)",
        source="arXiv:1704.00028: 1e-4",
        gt=0,
        tune=Range(1e-4, 2e-3, log=True),
    )
    student_average: float = setting(
        0.99,
        "decay of the running mean of the student's parameters that is kept in the end; 0: the last ones",
        ge=0,
        lt=1,
    )
    validation_networks: int = setting(10, "networks drawn from the student for each validation", gt=1)


class HMCConfig(MethodConfig):
    """HMC: full-batch Hamiltonian Monte Carlo with Metropolis correction, the reference for small tasks.

    Several chains run together, each from a mode of its own. The only method here without a bias that remains when
    it runs long enough; the cost of a step is the whole training set for every chain.
    """

    reference: ClassVar[str] = "Izmailov, Vikram, Hoffman & Wilson, ICML 2021, arXiv:2104.14421"

    chains: int = setting(4, "independent chains, which share the budget", gt=0)
    samples: int = setting(100, "networks stored, equally many of each chain", gt=0)
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
        32, "examples per step, each with its own noise", source="paper: 100", gt=0, tune=(16, 32, 64)
    )
    learning_rate: float = setting(3e-3, "Adam", source="paper: 1e-3", gt=0, tune=Range(1e-3, 2e-2, log=True))
    final_learning_rate: float = setting(0.0, "share of the learning rate left at the end (cosine)", ge=0, le=1)
    validation_networks: int = setting(10, "networks drawn for each validation", gt=1)
    keep_best: bool = setting(True, "end with the snapshot of the best validation likelihood")
    patience: int | None = setting(
        None, "stop after so many validations (of 20) without a better one; none: never", gt=0
    )


class LaplaceConfig(MAPConfig):
    """Laplace approximation, by laplace-torch: a Gaussian around one trained network, from the curvature of its loss.

    The generalised Gauss–Newton matrix of the likelihood plus the prior's precision is the Gaussian's precision, for
    the last layer or for all weights, Kronecker-factored or diagonal. Needs `pip install 'bayes-bench[laplace]'`.
    """

    reference: ClassVar[str] = "Daxberger et al., NeurIPS 2021, arXiv:2106.14806; library laplace-torch (MIT)"
    requires: ClassVar[Mapping[str, str]] = {"laplace": "bayes-bench[laplace]"}

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


class VIConfig(MethodConfig):
    """Mean-field variational inference, by posteriors: an independent Gaussian for every weight.

    Maximises the evidence lower bound with reparameterised samples of all weights, one for each step, and the
    stick-the-landing estimator. Needs `pip install 'bayes-bench[posteriors]'`.
    """

    reference: ClassVar[str] = "Blundell et al., ICML 2015, arXiv:1505.05424; library posteriors (Apache-2.0)"
    requires: ClassVar[Mapping[str, str]] = {"posteriors": "bayes-bench[posteriors]"}

    batch_size: int = setting(32, "examples per step, which share one sample of the weights", tune=(16, 32, 64), gt=0)
    learning_rate: float = setting(3e-3, "Adam", tune=Range(1e-3, 1e-2, log=True), gt=0)
    samples: int = setting(
        1, "of the weights per step; each costs a gradient evaluation per example", tune=(1, 2, 4), gt=0
    )
    initial_std: float = setting(
        0.01, "standard deviation of every weight at the start", tune=Range(0.003, 0.1, log=True), gt=0
    )
    stick_the_landing: bool = setting(
        True, "leave the score term out of the gradient, which has mean 0", source="arXiv:1703.09194"
    )
    validation_networks: int = setting(10, "networks drawn for each validation", gt=1)
    keep_best: bool = setting(True, "end with the snapshot of the best validation likelihood")
    patience: int | None = setting(
        None, "stop after so many validations (of 20) without a better one; none: never", gt=0
    )
