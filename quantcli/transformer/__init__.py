"""The forward pass in numpy, over GGUF names and metadata."""

from quantcli.transformer.block import Site, Tap
from quantcli.transformer.transformer import Transformer

__all__ = ["Site", "Tap", "Transformer"]
