"""Which variants of tiny_models.py are left to the slow suite where each takes long."""

import pytest
import tiny_dense
import tiny_latent
from tiny_models import MIXTURES


def slow_twin(key: tuple[str, str]) -> list[pytest.MarkDecorator]:
    """A mark, unless the variant is its family's odd one or the family is one of the first."""
    many = key in {**tiny_dense.VARIANTS, **tiny_latent.VARIANTS} or key in MIXTURES
    return [pytest.mark.slow] if many and key[1] != "odd" else []
