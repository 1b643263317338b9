"""Les figures interactives : des widgets pour JupyterLab, et la même chose, sans noyau, dans les pages du livre.

Chaque figure est une classe Python (des traits typés, vérifiés) et un module JavaScript du dossier ``js`` qui dessine.
"""

from .budget import BudgetExplorer
from .certificate import Certificate
from .choices import Choice, minilm_choices
from .explorer import Explorer
from .lora import LoRAExplorer
from .network import NetworkExplorer
from .photo import PhotoExplorer, shrink
from .propagation import PropagationExplorer
from .quantizer import QuantizerExplorer
from .randomized import RandomizedExplorer
from .rank_bits import RankBitsExplorer
from .rate_distortion import RateDistortionExplorer
from .self_test import SelfTest
from .spectrum import SpectrumExplorer
from .tensor_train import TensorTrainExplorer

__all__ = [
    "BudgetExplorer",
    "Certificate",
    "Choice",
    "Explorer",
    "LoRAExplorer",
    "NetworkExplorer",
    "PhotoExplorer",
    "PropagationExplorer",
    "QuantizerExplorer",
    "RandomizedExplorer",
    "RankBitsExplorer",
    "RateDistortionExplorer",
    "SelfTest",
    "SpectrumExplorer",
    "TensorTrainExplorer",
    "minilm_choices",
    "shrink",
]
