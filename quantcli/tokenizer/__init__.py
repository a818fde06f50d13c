"""Tokenizers of checkpoints as GGUF metadata."""

from quantcli.tokenizer.read import read_tokenizer

__all__ = ["read_tokenizer"]
