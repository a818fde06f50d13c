"""GPTQ block by block: quantize what comes first, then see what the rest gets to see.

Two hidden states go through the blocks side by side: that of the float model and, for each output,
that of the model quantized so far, from the bytes as written. A site's linears are quantized on
the statistics of the second and corrected for its difference from the first (GPTAQ, 2504.02692;
QEP). One block's weights are in memory as float32; each linear's are freed when it is done.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby

import numpy as np

from quantcli.architectures.wiring import ATTENTION
from quantcli.calibration.moments import hessian
from quantcli.errors import BadInputError
from quantcli.methods import MethodInfo
from quantcli.methods.awq import COMPENSATED, ROWS, block_folds, head_fold
from quantcli.methods.encoded import Cost, Encoded, rounded
from quantcli.methods.experts import Matrices, Passing, quantize_mixture
from quantcli.methods.folding import find_scales, fold_block
from quantcli.methods.latent import quantize_latent
from quantcli.methods.site import Lookup, Seen, Site
from quantcli.methods.snapshots import Part, Snapshots
from quantcli.methods.streams import Stream
from quantcli.model import Model
from quantcli.progress import Progress
from quantcli.tensor_types import TensorType
from quantcli.tensor_types.copied import Copied
from quantcli.transformer import Transformer
from quantcli.transformer.backward import gradients
from quantcli.transformer.block import Block, check_finite, rest_of
from quantcli.transformer.layout import (
    EMBEDDING,
    HEAD,
    OUTPUT_NORM,
    OUTPUT_NORM_BIAS,
    output_norm,
)

LOOKUP_WINDOWS = 12
FEW_TOKENS = 128  # of one expert: they say too little to choose codes by
UNTOUCHED = Encoded(np.empty((0, 0), np.uint8), Cost())
HELD_SHARE, MOST_HELD = 8, 4  # one window in 8, at least one of two, but 4 are enough

Types = Mapping[str, TensorType]
Choose = Callable[[np.ndarray, TensorType], Encoded]


class Output:
    """One of the files to come: its tensors' types, and the model quantized so far."""

    def __init__(self, types: Types, shape: tuple[int, ...]) -> None:
        self.types = types
        self.stream = Stream(shape)

    def decode(self, name: str, encoded: Encoded) -> np.ndarray:
        """What the file's reader will see: float32 rows."""
        return self.types[name].decode(encoded.packed)


class Sequential:
    """Quantizes a model for several outputs at once, given the types of their tensors by name."""

    def __init__(
        self,
        model: Model,
        tokens: np.ndarray,
        outputs: Sequence[Types],
        *,
        method: MethodInfo,
        threads: int,
        progress: Progress,
    ) -> None:
        """tokens: windows of the calibration text, int32 [n_windows, n_ctx]."""
        self._method = method
        self._model, self._tokens, self._progress = model, tokens, progress
        self._threads = threads
        self._run = Transformer(model, threads=threads)
        self._run.check(tokens)
        shape = (*tokens.shape, self._run.n_embd)
        self._float = Stream(shape)
        self._outputs = [Output(types, shape) for types in outputs]
        self._kinds, self._share = outputs, COMPENSATED if method.compensates else 1.0
        self._nbytes = 4 * len(outputs) * sum(map(math.prod, model.shapes.values()))
        self._metric = np.empty((0, 0), np.float32)  # of rows that are looked up
        self._head_scales = np.ones(self._run.n_embd, np.float32)

    def parts(self, snapshots: Snapshots, *, resume: bool) -> Iterator[Part]:
        """All tensors in the model's order, each in one or several parts.

        What comes before the blocks, each block, and the rest are the steps that are kept in
        `snapshots`; with `resume` it begins after those found there.

        Raises BadInputError (activations that are not finite, weights that a type cannot hold),
        ResourceError, IntegrityError: see Snapshots.
        """
        states = [self._float.x, *(output.stream.x for output in self._outputs)]
        done = snapshots.resume(states) if resume else 0
        runs = groupby(self._model.shapes, _block_number)
        with self._run.pool() as pool:
            if not done:
                snapshots.begin()
                self._metric = self._lookup_metric(pool)
            self._progress.start("Quantizing", self._nbytes)
            for step, (number, names) in enumerate(runs):
                if step < done:
                    for part in snapshots.read(step):
                        self._progress.advance(4 * sum(e.cost.weights for e in part.encoded))
                        yield part
                    continue
                yield from snapshots.record(step, self._step(number, list(names), pool))
                snapshots.commit(step, states)
        self._progress.finish()

    def _step(
        self, number: int | None, names: list[str], pool: ThreadPoolExecutor
    ) -> Iterator[Part]:
        if number is not None:
            yield from self._block(number, names, pool)
            return
        for name in names:
            yield from self._outside(name, pool)

    def _outside(self, name: str, pool: ThreadPoolExecutor) -> Iterator[Part]:
        """A tensor that is in no block, in pieces."""
        if name == EMBEDDING:
            yield from self._embedding(pool)
        elif name == OUTPUT_NORM:
            yield self._output_norm(pool)
        elif name == OUTPUT_NORM_BIAS:
            yield self._part(name, np.atleast_2d(self._model.rows(name) / self._head_scales))
        elif name == HEAD:
            yield from self._head(pool)
        else:
            yield self._part(name, np.atleast_2d(self._model.rows(name)))

    def _embedding(self, pool: ThreadPoolExecutor) -> Iterator[Part]:
        site = Lookup(self._metric, self._method.compensates, self._threads)
        for rows in self._run.vocabulary():
            w = self._model.rows(EMBEDDING, rows)
            part = self._part(EMBEDDING, w, site.quantize)
            self._run.embed(self._tokens, rows, w, self._float.x)
            for output, encoded in zip(self._outputs, part.encoded, strict=True):
                seen = output.decode(EMBEDDING, encoded)
                self._run.embed(self._tokens, rows, seen, output.stream.x)
            yield part

    def _lookup_metric(self, pool: ThreadPoolExecutor) -> np.ndarray:
        """What stands for H where rows are looked up, and are the head's as well if it is tied."""
        some = self._tokens[:LOOKUP_WINDOWS]
        found = gradients(self._model, some, threads=self._threads, progress=self._progress)
        metric = found.embedding_metric()
        if EMBEDDING in found.outputs:  # it is the head as well
            hidden = self._run.hidden(some).reshape(-1, self._run.n_embd)
            metric += np.float32(found.outputs[EMBEDDING].sum()) * hessian(hidden, pool)
        return metric

    def _head(self, pool: ThreadPoolExecutor) -> Iterator[Part]:
        y = self._float.y
        sites = [self._site(y, output.stream.y, pool) for output in self._outputs]
        for rows in self._run.vocabulary():
            w = self._model.rows(HEAD, rows) * self._head_scales
            yield Part(
                HEAD,
                [
                    self._encoded(HEAD, w, output, partial(site.quantize, w, site.target(w)))
                    for output, site in zip(self._outputs, sites, strict=True)
                ],
            )

    def _output_norm(self, pool: ThreadPoolExecutor) -> Part:
        """The norm before the head, which takes the scales of the head's columns."""
        norm, bias = output_norm(self._model)
        streams = [self._float, *(output.stream for output in self._outputs)]
        for stream in streams:
            stream.finish(partial(self._run.normalize, weight=norm, bias=bias), pool)
        fold = head_fold(self._run.sizes, tied=HEAD not in self._model.shapes)
        if self._method.folds and fold:
            step = -(-self._run.n_vocab // ROWS)
            some = {HEAD: self._model.rows(HEAD, slice(None, None, step))}
            self._head_scales = find_scales(
                fold, some, self._float.y, self._kinds, self._share, pool
            )
            for stream in streams:
                stream.y /= self._head_scales
        return self._part(OUTPUT_NORM, np.atleast_2d(norm / self._head_scales))

    def _block(self, number: int, names: list[str], pool: ThreadPoolExecutor) -> list[Part]:
        block = self._run.load(number, self._tokens.shape[1], pool)
        if self._method.folds:
            folds = block_folds(self._run.sizes, number)
            fold_block(block, folds, self._float, self._kinds, self._share, pool)
        twins = [block.twin() for _ in self._outputs]
        parts = {name: self._part(name, np.atleast_2d(w)) for name, w in twins[0].weights.items()}
        models = [(output.stream, twin) for output, twin in zip(self._outputs, twins, strict=True)]
        models = [(self._float, block), *models]
        for stream, one in models:
            stream.enter(one, pool)
        if block.sizes.latent:
            parts |= self._latent(block, [stream for stream, _ in models], pool)
        for short in rest_of(block):
            if block.experts and short not in ATTENTION:
                break
            site = block.sites[short]
            linears = {name: block.weights[name] for name in site.weights}
            encoded = [self._linears(output, linears, pool) for output in self._outputs]
            parts |= {name: Part(name, [each[name] for each in encoded]) for name in linears}
            for output, twin, found in zip(self._outputs, twins, encoded, strict=True):
                twin.weights |= {name: output.decode(name, each) for name, each in found.items()}
            del linears
            for stream, one in models:
                stream.leave(short, one, pool)
                for name in site.weights:
                    del one.weights[name]
        if block.experts:
            parts |= self._mixture(block, [stream for stream, _ in models], pool)
        return [parts[name] for name in names]

    def _latent(
        self, block: Block, streams: Sequence[Stream], pool: ThreadPoolExecutor
    ) -> dict[str, Part]:
        """Latent attention but for its output."""

        def quantize(
            number: int, linears: Matrices, reference: np.ndarray, x: np.ndarray
        ) -> tuple[dict[str, Encoded], Matrices]:
            output = self._outputs[number]
            found = self._by_site(self._site(reference, x, pool), output, linears)
            return found, {name: output.decode(name, each) for name, each in found.items()}

        found = quantize_latent(block, streams, quantize, pool)
        return {name: Part(name, encoded) for name, encoded in found.items()}

    def _mixture(
        self, block: Block, streams: Sequence[Stream], pool: ThreadPoolExecutor
    ) -> dict[str, Part]:
        """The second half of a block with experts."""

        def quantize(
            number: int, linears: dict[str, np.ndarray], reference: np.ndarray, x: np.ndarray
        ) -> tuple[dict[str, Encoded], dict[str, np.ndarray]]:
            output = self._outputs[number]
            if all(isinstance(output.types[name], Copied) for name in linears):
                return dict.fromkeys(linears, UNTOUCHED), linears
            if len(x) < FEW_TOKENS:
                found = {
                    n: self._encoded(n, w, output, partial(_few, w)) for n, w in linears.items()
                }
            else:
                held = min(len(x) // HELD_SHARE, MOST_HELD * self._tokens.shape[1])
                site = Site(Seen(reference, x, held), self._method.compensates, self._threads, pool)
                found = self._by_site(site, output, linears)
            return found, {name: output.decode(name, each) for name, each in found.items()}

        passing = [Passing.of(stream, block, pool) for stream in streams]
        found = quantize_mixture(block, passing, quantize, pool)
        for name in block.sites["ffn"].weights:
            if name not in found:  # the router, and the gate of the shared expert
                found[name] = self._part(name, block.weights[name]).encoded
        for name, encoded in found.items():
            if not len(encoded[0].packed):
                found[name] = [self._copied(name)] * len(encoded)
        for each in passing:
            check_finite(each.made, f"the experts of {block.sites['ffn'].name}")
        return {name: Part(name, encoded) for name, encoded in found.items()}

    def _copied(self, name: str) -> Encoded:
        """A tensor that keeps its bytes."""
        shape = self._model.shapes[name]
        packed = self._model.packed(name, slice(0, math.prod(shape[:-1])))
        self._progress.advance(4 * math.prod(shape))
        return Encoded(packed, Cost(math.prod(shape)))

    def _linears(
        self, output: Output, linears: Mapping[str, np.ndarray], pool: ThreadPoolExecutor
    ) -> dict[str, Encoded]:
        """All linears of the site at hand."""
        site = self._site(self._float.y, output.stream.y, pool)
        return self._by_site(site, output, linears)

    def _by_site(
        self, site: Site, output: Output, linears: Mapping[str, np.ndarray]
    ) -> dict[str, Encoded]:
        targets = {name: site.target(w) for name, w in linears.items()}
        site.corrected()
        return {
            name: self._encoded(name, w, output, partial(site.quantize, w, targets.pop(name)))
            for name, w in linears.items()
        }

    def _site(self, reference: np.ndarray, x: np.ndarray, pool: ThreadPoolExecutor) -> Site:
        """Of an input that all tokens are, in the float model and in an output's."""
        windows, n_ctx = self._tokens.shape
        held = min(-(-(windows - 1) // HELD_SHARE), MOST_HELD) * n_ctx
        return Site(Seen(reference, x, held), self._method.compensates, self._threads, pool)

    def _part(self, name: str, w: np.ndarray, choose: Choose | None = None) -> Part:
        """Rows w in each output's type, rounded to nearest if nothing chooses."""
        chosen = partial(choose, w) if choose else partial(plain, w)
        return Part(name, [self._encoded(name, w, output, chosen) for output in self._outputs])

    def _encoded(
        self, name: str, w: np.ndarray, output: Output, choose: Callable[[TensorType], Encoded]
    ) -> Encoded:
        """Rows w in the output's type, as they are if that is not quantized."""
        kind = output.types[name]
        try:
            found = choose(kind) if kind.quantized else plain(w, kind)
        except BadInputError as error:
            raise BadInputError(f"tensor {name!r}: {error}") from None
        self._progress.advance(4 * w.size)
        return found


def plain(w: np.ndarray, kind: TensorType) -> Encoded:
    """Rounding to nearest."""
    return rounded(w, None, kind)


def _few(w: np.ndarray, kind: TensorType) -> Encoded:
    """Rounding to nearest, of an expert that saw too few tokens for anything else."""
    found = plain(w, kind)
    return replace(found, cost=replace(found.cost, unreached=1))


def _block_number(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" else None
