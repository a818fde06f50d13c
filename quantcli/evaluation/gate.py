"""A quality gate: what a finished file must keep to, else the exit code is 8."""

from dataclasses import dataclass

from quantcli.evaluation.quality import Quality


@dataclass(frozen=True)
class Gate:
    """Limits of one output; None where there is none.

    max_kld: of the mean KL divergence in nats; min_top1: of the share of positions with the same
    most likely token, a fraction; max_size: bytes of the file or of all its shards.
    """

    max_kld: float | None = None
    min_top1: float | None = None
    max_size: int | None = None

    @property
    def needs_quality(self) -> bool:
        """Whether the output has to be evaluated."""
        return self.max_kld is not None or self.min_top1 is not None

    def too_large(self, name: str, size_bytes: int) -> list[str]:
        """A line if the output `name` is over the limit: known before the work."""
        if self.max_size is None or size_bytes <= self.max_size:
            return []
        return [f"{name}: {size_bytes} bytes are over max_size, {self.max_size}"]

    def misses(self, name: str, size_bytes: int, quality: Quality | None) -> list[str]:
        """A line for each limit that the output `name` does not keep to."""
        found = self.too_large(name, size_bytes)
        if not self.needs_quality:
            return found
        if quality is None or quality.kld_mean is None or quality.top1_agreement is None:
            return [*found, f"{name}: its quality was not measured against a reference"]
        if self.max_kld is not None and not quality.kld_mean <= self.max_kld:
            found.append(
                f"{name}: mean KL divergence {quality.kld_mean:.6f} is over max_kld, {self.max_kld}"
            )
        if self.min_top1 is not None and not quality.top1_agreement >= self.min_top1:
            found.append(
                f"{name}: same top-1 {quality.top1_agreement:.4f} is under min_top1, "
                f"{self.min_top1}"
            )
        return found
