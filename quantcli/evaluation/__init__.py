"""How good a model is: perplexity, KL divergence from a reference, agreement on the top token.

Of models that embed: cosine similarity to a reference's embeddings. `evaluation.evaluate` brings
the forward pass along; reports only need Quality and Similarity.
"""

from quantcli.evaluation.quality import Quality
from quantcli.evaluation.similarity import Similarity

__all__ = ["Quality", "Similarity"]
