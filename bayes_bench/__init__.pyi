import typing

from .errors import BayesBenchError as BayesBenchError
from .errors import DataError as DataError
from .errors import DivergenceError as DivergenceError
from .errors import MemoryLimitError as MemoryLimitError
from .errors import PluginError as PluginError
from .errors import UnsupportedNetworkError as UnsupportedNetworkError
from .errors import UsageError as UsageError
from .methods.hypergan.config import HyperGANConfig as HyperGANConfig
from .methods.hypergan.hypergan import HyperGAN as HyperGAN
from .posterior.base import Held as Held
from .posterior.base import WeightPosterior as WeightPosterior
from .posterior.base import WeightSamples as WeightSamples
from .posterior.chains import effective_sample_size as effective_sample_size
from .posterior.chains import split_rhat as split_rhat
from .posterior.examples import Examples as Examples
from .posterior.examples import FitData as FitData
from .posterior.likelihood import Categorical as Categorical
from .posterior.likelihood import Gaussian as Gaussian
from .posterior.likelihood import HeteroscedasticGaussian as HeteroscedasticGaussian
from .posterior.likelihood import Likelihood as Likelihood
from .posterior.predictive import ClassPrediction as ClassPrediction
from .posterior.predictive import ValuePrediction as ValuePrediction
from .posterior.predictive import summarise_classes as summarise_classes
from .posterior.predictive import summarise_values as summarise_values
from .posterior.prior import GaussianPrior as GaussianPrior
from .posterior.stacked.network import StackedNetwork as StackedNetwork
from .posterior.stacked.scaled import InputScaled as InputScaled
from .posterior.training import FitSummary as FitSummary
from .posterior.training import HasState as HasState
from .posterior.training import Monitor as Monitor
from .posterior.training import Stateful as Stateful
from .posterior.training import TensorState as TensorState
from .posterior.training import TrainingLoop as TrainingLoop
from .posterior.training import cosine_decay as cosine_decay
from .settings import Diagnostic as Diagnostic
from .settings import DiagnosticTable as DiagnosticTable
from .settings import MethodConfig as MethodConfig
from .settings import Range as Range
from .settings import setting as setting

__version__: str

# Methods of installed packages, by the names of their classes: MCDropout, MCDropoutConfig, ...
def __getattr__(name: str) -> typing.Any: ...
