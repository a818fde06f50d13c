"""The forward pass in numpy, over GGUF names and metadata, and a backward pass."""

from quantcli.transformer.backward import Gradients, gradients
from quantcli.transformer.sites import Site, Tap
from quantcli.transformer.transformer import Transformer

__all__ = ["Gradients", "Site", "Tap", "Transformer", "gradients"]
