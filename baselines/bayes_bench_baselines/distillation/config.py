"""Settings of APD; imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bayes_bench import Diagnostic, DiagnosticTable, Range, setting
from bayes_bench_baselines.chains.config import CHAINS, ChainConfig

Width = Annotated[int, Field(gt=0)]


STUDENT = DiagnosticTable(
    "Student and teacher",
    (
        *(
            Diagnostic(f"{who}_{what}", who, text)
            for what, text in (
                ("nll", "NLL"),
                ("accuracy", "Accuracy"),
                ("rmse", "RMSE"),
                ("entropy", "Entropy"),
                ("disagreement", "Disagreement"),
                ("epistemic_std", "Epistemic std"),
            )
            for who in ("teacher", "student")
        ),
        Diagnostic("projected_ks", "Kolmogorov–Smirnov", "Weights"),
    ),
    ("On validation data, standardised; the last column compares weights along random directions.",),
)


class APDConfig(ChainConfig):
    """APD: adversarial posterior distillation, a GAN trained on the networks of a Langevin chain.

    The teacher's chain is paid from the budget; the student, a WGAN-GP over whole weight vectors, evaluates no
    network in training. A draw costs a pass through the generator, and there are as many networks as one likes.
    """

    reference: ClassVar[str] = "Wang et al., ICML 2018, arXiv:1806.10317"
    diagnostics: ClassVar[tuple[DiagnosticTable, ...]] = (
        replace(CHAINS, remarks=(*CHAINS.remarks, "For apd these are its teacher's.")),
        STUDENT,
    )

    chains: int = setting(
        1,
        "independent chains of the teacher; several chains sit in several modes, between which a generator "
        "interpolates badly",
        source="paper: 1",
        gt=0,
        memory=True,
    )
    samples: int = setting(1000, "networks that the teacher's chains store in all", gt=1, memory=True)
    training: Literal["offline", "online"] = setting(
        "offline",
        "'offline': the chain is stored and the student trained afterwards; 'online': the student is trained while "
        "the chain goes on, on a buffer of its latest networks",
    )
    buffer: int = setting(200, "networks in the buffer, first in first out (training = 'online')", gt=1, memory=True)
    noise_dim: int = setting(32, "dimensions of the student's input noise", source="paper: 100", gt=0)
    student_hidden: tuple[Width, ...] = setting(
        (100, 100, 100), "hidden widths of the student", source="paper", min_length=1, memory=True
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
    validation_networks: int = setting(10, "networks drawn from the student for each validation", gt=1, memory=True)
