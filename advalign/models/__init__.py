"""Loading models, running them forward (one wrapper for every head), and perturbing what flows through them."""

from advalign.models.encode import Encoder
from advalign.models.forward import Network
from advalign.models.load import load
from advalign.models.specification import ModelSpec

__all__ = ["Encoder", "ModelSpec", "Network", "load"]
