"""How good a model is: perplexity, KL divergence from a reference, agreement on the top token.

`evaluation.evaluate` brings the forward pass along; reports only need Quality.
"""

from quantcli.evaluation.quality import Quality

__all__ = ["Quality"]
