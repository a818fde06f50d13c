"""Names of outputs and repositories: templates filled in, and never outside their place."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from quantcli.errors import UsageError


def filled(template: str, words: dict[str, str], kept: str = "") -> str:
    """The template with {words} filled in, made harmless for paths.

    Raises:
        UsageError: for a word that is not known or has no value here.
    """

    def fill(found: re.Match[str]) -> str:
        word = found[1]
        if found[0] == kept:
            return kept
        if not words.get(word):
            known = ", ".join(f"{{{name}}}" for name, value in words.items() if value)
            raise UsageError(f"{template!r}: {found[0]} has no value here (known: {known} {kept})")
        return re.sub(r"[^\w.+-]+", "-", words[word])

    return re.sub(r"\{([^{}]*)\}", fill, template)


def below_root(name: str) -> str:
    """The path of an output.

    Raises:
        UsageError: when it leaves the root, or is no name of a GGUF file.
    """
    parts = name.split("/")
    if any(part in ("", "..") or part.startswith(".") for part in parts) or "\\" in name:
        raise UsageError(f"output {name!r} leaves the output folder or is hidden; use plain names")
    if not name.endswith(".gguf") or not name.isprintable() or max(map(len, parts)) > 200:
        raise UsageError(f"output {name!r} is no name for a file ending in .gguf")
    return name


def clashing_outputs(writers: Iterable[tuple[str, Sequence[str]]]) -> Iterator[str]:
    """A problem for each output that two places would write, on file systems without case, too."""
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for place, outputs in writers:
        for output in outputs:
            places[output.casefold()].append((place, output))
    for (first, _), *others in places.values():
        for place, output in others[:1]:
            yield (
                f"{place}: output {output!r} is also written by {first}; put {{method}}, "
                "{recipe}, {revision} or {org} into `output`, or give a `name`"
            )


def clashing_uploads(owners: Iterable[tuple[str, str | None, object]]) -> Iterator[str]:
    """A problem for each repository of two sources: one's card would replace the other's.

    owners: place, repository, source.
    """
    firsts: dict[str, tuple[str, object]] = {}
    for place, repository, source in owners:
        if repository is not None:
            first, its_source = firsts.setdefault(repository, (place, source))
            if its_source != source:
                yield (
                    f"{place}: upload {repository!r} is also that of {first}; put {{model}} into "
                    "`upload`"
                )
