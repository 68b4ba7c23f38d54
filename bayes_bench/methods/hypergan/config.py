"""Settings of HyperGAN; imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bayes_bench.settings import MethodConfig, Range, setting

Width = Annotated[int, Field(gt=0)]


class HyperGANConfig(MethodConfig):
    """HyperGAN: a generative model of whole network weights.

    Noise passes through a mixer to one code per layer; per-layer generators turn the codes into weights and
    biases. A discriminator keeps the codes close to a Gaussian, so that the generated networks stay diverse.
    Every generated network is used for one step and discarded. Two settings go beyond the paper: noise on the
    generated weights, and the task's prior on them; 0 switches either off. There is no weight-entropy term:
    this is not a temperature-1 posterior.
    """

    reference: ClassVar[str] = "Ratzlaff & Li, HyperGAN, ICML 2019, arXiv:1901.11058"

    networks: int = setting(4, "networks generated in each training step", tune=(4, 8), gt=1, memory=True)
    batch_size: int = setting(
        16, "examples per generated network and step, each network its own", tune=(8, 16, 32), gt=0, memory=True
    )
    noise_dim: int = setting(128, "dimensions of the mixer's input noise", source="paper: 256", gt=0)
    code_dim: int = setting(32, "dimensions of each layer's code", source="paper: 64 to 256", gt=0)
    mixer: bool = setting(True, "off: independent Gaussian codes, the paper's ablation; leaves the discriminator idle")
    mixer_hidden: tuple[Width, ...] = setting((128, 128), "hidden widths of the mixer", source="paper: 512, 512")
    generator_hidden: tuple[Width, ...] = setting(
        (64,),
        "hidden widths of each layer's generator",
        source="paper: 512, 512; narrow ones lose nothing here",
        tune=((64,), (128,)),
        memory=True,
    )
    head: Literal["dense", "chunked"] = setting(
        "dense",
        "how a generator writes its layer: 'dense', each weight by itself; 'chunked', one small head writes one chunk "
        "after another, with far fewer parameters, for large layers; a layer that would not gain stays dense",
        source="paper: dense; chunked: arXiv:1906.00695",
    )
    head_chunk: int = setting(512, "weights written at once (head = 'chunked')", gt=0)
    discriminator: Literal["joint", "per_layer", "none"] = setting(
        "joint",
        "'joint' sees the codes of all layers at once, as the paper defines it; 'per_layer' is the official code's, "
        "one network for each code alone; 'none' is the paper's ablation",
    )
    discriminator_hidden: tuple[Width, ...] = setting(
        (128, 128), "hidden widths of the discriminator", source="paper: 512, 512"
    )
    discriminator_batch: int = setting(32, "codes and prior samples per discriminator step", gt=1)
    adversarial_weight: float = setting(
        0.1,
        "λ, weight of −log D(code) against the mean negative log likelihood",
        source="paper: 1",
        tune=(0.1, 1.0),
        ge=0,
    )
    fixed_generator_scale: float = setting(
        0.0,
        "scale of a frozen random linear generator added to the trained one, so that every code has its own "
        "starting network, as ensemble members do; 1 is the scale of a usual initialisation, 0 switches it off",
        source="additive priors of hypermodels, arXiv:2006.07464",
        tune=(0.0, 0.5),
        ge=0,
    )
    weight_noise: float = setting(
        0.5,
        "generated weights (not biases, and not those of the first layer) are multiplied by 1 + this × N(0, 1), "
        "independently; the paper has none",
        source="Gaussian dropout on weights, arXiv:1506.02557",
        tune=Range(0.0, 0.7),
        ge=0,
    )
    weight_gain: float = setting(
        1.0, "generated weights start with standard deviation gain/√fan-in", tune=Range(0.3, 1.0), gt=0
    )
    initial_diversity: float = setting(
        0.3,
        "share of the initial standard deviation that differs between codes; the rest is one random network for all, "
        "without which training starts on a long plateau",
        tune=Range(0.2, 1.0),
        gt=0,
        le=1,
    )
    prior_weight: float = setting(
        1.0,
        "weight of −log prior of the generated weights, divided by N and centred at the frozen generator's weights; "
        "the paper has none; above 0 the prior is used",
        tune=(0.0, 1.0, 2.0, 3.0),
        ge=0,
    )
    repulsion_weight: float = setting(
        0.0,
        "weight of the mean squared Hellinger distance between the predictions of two generated networks on inputs "
        "away from the data, made of three training examples each; the paper has none; 0 switches it off",
        source="in the spirit of arXiv:1906.07380",
        tune=(0.0, 0.1, 0.3),
        ge=0,
    )
    repulsion_batch: int = setting(8, "inputs away from the data per step, the same for all its networks", gt=0)
    learning_rate: float = setting(4e-3, "Adam, generators", tune=Range(2e-3, 1e-2, log=True), gt=0)
    mixer_learning_rate: float = setting(
        1e-4, "Adam, mixer; lower, because Adam would turn the small adversarial gradient into full steps", ge=0
    )
    discriminator_learning_rate: float = setting(3e-4, "Adam, discriminator", gt=0)
    final_learning_rate: float = setting(
        0.05, "share of the learning rate left when the budget is spent (cosine)", ge=0, le=1
    )
    pretrain_tolerance: float = setting(
        0.02,
        "the mixer's pre-training ends when the squared distance of its codes' mean and covariance from those of "
        "N(0, I) is at most this, per dimension",
        gt=0,
    )
    pretrain_steps: int = setting(500, "at most so many pre-training steps of the mixer", ge=0)
    validation_networks: int = setting(10, "networks drawn for each validation", gt=1, memory=True)
    keep_best: bool = setting(True, "end with the snapshot of the best validation likelihood")
    patience: int | None = setting(
        None, "stop after so many validations (of 20) without a better one; none: never", gt=0
    )
    diversity_fall: float | None = setting(
        None,
        "with patience: stop only where the disagreement between networks on validation data, divided by the error of "
        "one network, has also fallen by this share from its highest value",
        source="paper: stop early, since diversity decays",
        gt=0,
        le=1,
    )

    @model_validator(mode="after")
    def _fall_needs_patience(self) -> Self:
        if self.diversity_fall is not None and self.patience is None:
            raise ValueError("diversity_fall only delays what patience stops: set patience as well")
        return self
