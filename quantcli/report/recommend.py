"""Which file of a model to take, in plain words, from what is known about its files."""

from collections.abc import Sequence
from pathlib import Path

from quantcli.report.cards import Card
from quantcli.report.words import code, cosine, percent, size

DEFAULT = "Q4_K_M"
DEFAULT_BPW = 4.85  # of a usual model in that type


def recommended(cards: Sequence[Card]) -> Card:
    """The file for most people: the Q4_K_M, or else the one nearest to its size.

    Of several alike, the one whose predictions are closest to the original's.
    """

    def distance(card: Card) -> tuple[bool, float, float]:
        far = 0.0 if card.file_type == DEFAULT else abs((card.bpw or 0.0) - DEFAULT_BPW)
        return (card.file_type != DEFAULT, far, _loss(card))

    return min(cards, key=distance)


def advice(cards: Sequence[Card]) -> list[str]:
    """Markdown bullets: the recommended file, smaller ones, better ones, those not worth it."""
    best = recommended(cards)
    beaten = {id(card): rival for card in cards if (rival := _better(card, cards)) and card != best}
    worth = [card for card in cards if card != best and id(card) not in beaten]
    worth.sort(key=lambda card: -(card.size_bytes or 0))
    smaller = [card for card in worth if (card.size_bytes or 0) < (best.size_bytes or 0)]
    larger = [card for card in reversed(worth) if card not in smaller]
    return [
        f"- **For most people**: {_described(best)}.",
        *(f"- **With less memory**: {_described(card)}." for card in smaller),
        *(f"- **Closer to the original**: {_described(card)}." for card in larger),
        *(
            f"- **Not worth it**: {_name(card)}; {_name(beaten[id(card)])} is no larger and closer "
            "to the original."
            for card in cards
            if id(card) in beaten
        ),
    ]


def _described(card: Card) -> str:
    facts = [card.note] if card.note else []
    if card.ram_bytes is not None:
        facts.append(f"needs {size(card.ram_bytes)} of memory")
    if card.quality and card.quality.top1_agreement is not None:
        agreed = percent(card.quality.top1_agreement)
        facts.append(f"its most likely token is the original's {agreed} of the time")
    if card.similarity is not None:
        shown = cosine(card.similarity.cosine_mean)
        facts.append(f"the cosine of its embeddings to the original's is {shown} in the mean")
    return f"{_name(card)}: {'; '.join(facts)}" if facts else _name(card)


def _name(card: Card) -> str:
    return code(Path(card.path).name)


def _loss(card: Card) -> float:
    if card.similarity is not None:
        return 1 - card.similarity.cosine_mean
    kld = card.quality.kld_mean if card.quality else None
    return float("inf") if kld is None else kld


def _better(card: Card, cards: Sequence[Card]) -> Card | None:
    """The best file of at most this one's size that is closer to the original beyond doubt."""
    doubt = (card.quality.kld_stderr or 0.0) if card.quality else 0.0
    doubt = card.similarity.cosine_stderr if card.similarity else doubt
    rivals = [
        rival
        for rival in cards
        if (rival.size_bytes or 0) <= (card.size_bytes or 0) and _loss(rival) < _loss(card) - doubt
    ]
    return min(rivals, key=_loss, default=None)
