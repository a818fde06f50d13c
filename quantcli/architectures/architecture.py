"""What a model family is: one literal (llama.py, qwen.py, gemma.py), applied to a checkpoint.

Sizes are written as products of config.json keys, so that a mismatch names its cause.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from quantcli.architectures.config import UINT32_MAX, Config, bad, show
from quantcli.architectures.rope import RopeStyle, frequency_factors, long_factors
from quantcli.architectures.tensors import OutputTensor, Shape, SourceTensors, Tensor
from quantcli.architectures.wiring import Wiring
from quantcli.errors import BadInputError, UnsupportedError

Metadata = dict[str, Any]

_MAX_BLOCKS = 512  # LLAMA_MAX_LAYERS

EMBEDDING = Tensor("token_embd", "model.embed_tokens", ("vocab_size", "hidden_size"))
FINAL_NORM = Tensor("output_norm", "model.norm", ("hidden_size",))
HEAD = Tensor("output", "lm_head", ("vocab_size", "hidden_size"))


@dataclass(frozen=True)
class Parameter:
    """One GGUF key "<arch>.<key>" and the config.json key that holds its value; of a count it may
    be an expression of keys, as in a shape.

    An optional one is left out when neither the file nor the defaults have a value; `unless`
    names a key and the value of it that leaves this one out. `zero`: no value is written as 0.
    """

    key: str
    source: str
    dtype: type[np.uint32] | type[np.float32] | type[bool] = np.uint32
    optional: bool = False
    unless: tuple[str, Any] | None = None
    zero: bool = False

    def value(self, config: Config) -> np.uint32 | np.float32 | bool | None:
        """The checked value, None if there is none. Raises BadInputError."""
        if self.zero and config.get(self.source) is None:
            return self.dtype(0)
        if self.optional and config.get(self.source) is None:
            return None
        if self.unless and config.get(self.unless[0]) == self.unless[1]:
            return None
        if self.dtype is bool:
            return config.flag(self.source)
        if self.dtype is np.uint32:
            size = config.size(self.source)
            if size > UINT32_MAX:
                raise bad(f"{self.source} = {size} is too large")
            return np.uint32(size)
        return np.float32(config.number(self.source))


@dataclass(frozen=True)
class Architecture:
    """One model family.

    classes: Hugging Face class names; gguf: general.architecture; parameters, constants, computed:
    "<arch>.*" keys, from one config key each, with fixed values, made of several (None: no key);
    block: the tensors of each block; defaults: of the configuration class; aliases: another name
    that a config key may have, by that key; derived: keys that the other keys make, whatever the
    file says; head: None if the runtime reads the embedding instead, whatever the file holds;
    accepts: the only values of a config key that llama.cpp computes (absent is fine); checks: what
    a table cannot say; ignores: parts of source names that stay out; towers: those of other models
    than the language model, which are told; prefix: of source names, which
    a checkpoint may have or lack and the tables leave out; rope: None where nothing turns;
    positions: the table of learned positions, where there is one; tokenizer: constant tokenizer.*
    keys; wiring: of the forward pass, where there is one; more: other tensors before the blocks;
    final_norm: None where the last block ends the model.
    """

    name: str
    classes: tuple[str, ...]
    gguf: str
    parameters: tuple[Parameter, ...]
    block: tuple[Tensor, ...]
    defaults: Mapping[str, Any]
    aliases: Mapping[str, str] = field(default_factory=dict)
    derived: Mapping[str, Callable[[Config], Any]] = field(default_factory=dict)
    constants: Metadata = field(default_factory=dict)
    computed: Mapping[str, Callable[[Config], Any]] = field(default_factory=dict)
    rope: RopeStyle | None = field(default_factory=RopeStyle)
    prefix: str = ""
    embedding: Tensor = EMBEDDING
    positions: Tensor | None = None
    more: tuple[Tensor, ...] = ()
    final_norm: Tensor | None = FINAL_NORM
    head: Tensor | None = HEAD
    accepts: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    checks: tuple[Callable[[Config], None], ...] = ()
    ignores: tuple[str, ...] = ()
    towers: tuple[str, ...] = ()
    tokenizer: Metadata = field(default_factory=dict)
    wiring: Wiring | None = None

    def metadata(self, config: Mapping[str, Any]) -> Metadata:
        """general.architecture and the "<arch>.*" keys that llama.cpp's converter writes.

        Raises BadInputError for a config that contradicts itself, UnsupportedError for values
        that llama.cpp cannot compute.
        """
        checked = self._read(config)
        keys: Metadata = {"general.architecture": self.gguf}
        for parameter in self.parameters:
            value = parameter.value(checked)
            if value is not None:
                keys[f"{self.gguf}.{parameter.key}"] = value
        keys |= {f"{self.gguf}.{key}": value for key, value in self.constants.items()}
        made = {f"{self.gguf}.{key}": make(checked) for key, make in self.computed.items()}
        keys |= {key: value for key, value in made.items() if value is not None}
        turning = self.rope.metadata(checked) if self.rope else {}
        keys |= {f"{self.gguf}.rope.{key}": value for key, value in turning.items()}
        return keys

    def tensors(self, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[OutputTensor]:
        """Every tensor of the GGUF file, in block order, from the checkpoint's names and shapes.

        Shapes are (rows, columns). Raises BadInputError when a tensor is missing or disagrees
        with the config, UnsupportedError for one that has no place in the GGUF.
        """
        checked = self._read(config)
        source = SourceTensors(checked, shapes, (*self.ignores, *self.towers), self.prefix)
        n_blocks = checked.count("num_hidden_layers")
        source.check_blocks(self.block[0], n_blocks)
        embedding = source.take(self.embedding)
        positions = source.take(self.positions) if self.positions else []
        more = [made for tensor in self.more for made in source.take(tensor)]
        blocks = [
            made
            for number in range(n_blocks)
            for tensor in self.block
            for made in source.take(tensor, number)
        ]
        final = source.take(self.final_norm) if self.final_norm else []
        head = self._output_head(checked, source, embedding[0])
        source.check_nothing_left(self.gguf)
        # Last, when the tensors have confirmed head_dim.
        rope = self._rope_factors(checked)
        return [*embedding, *positions, *more, *rope, *blocks, *final, *head]

    def _rope_factors(self, config: Config) -> list[OutputTensor]:
        if self.rope is None:
            return []
        rope = self.rope.read(config)
        factors = frequency_factors(rope)
        named = long_factors(rope) if factors is None else {"rope_freqs": factors}
        return [OutputTensor(f"{name}.weight", w.shape, data=w) for name, w in named.items()]

    def _output_head(
        self, config: Config, source: SourceTensors, embedding: OutputTensor
    ) -> list[OutputTensor]:
        tied = config.flag("tie_word_embeddings")
        if self.head is None:
            return []
        if not source.has(f"{self.head.source}.weight"):
            if tied:
                return []
            raise BadInputError(
                f"tensor '{self.head.source}.weight' is missing, and config.json does not tie the"
                " output head to the embedding (tie_word_embeddings)"
            )
        (head,) = source.take(self.head)
        return [replace(head, must_equal=embedding.source if tied else None)]

    def _read(self, config: Mapping[str, Any]) -> Config:
        """The config after every check that needs no tensor."""
        checked = Config(config, self.defaults, self.aliases, self.derived)
        for key, allowed in self.accepts.items():
            value = checked.get(key)
            if value is not None and value not in allowed:
                raise UnsupportedError(
                    f"config.json: {key} = {show(value)} is not supported for {self.name}"
                    f" (llama.cpp computes {' or '.join(map(repr, allowed)) or 'none'})"
                )
        _check_heads(checked)
        if checked.count("num_hidden_layers") > _MAX_BLOCKS:
            raise UnsupportedError(
                f"config.json: num_hidden_layers = {checked.count('num_hidden_layers')},"
                f" llama.cpp handles at most {_MAX_BLOCKS}"
            )
        for check in self.checks:
            check(checked)
        return checked


def _check_heads(config: Config) -> None:
    heads, groups = config.count("num_attention_heads"), config.count("num_key_value_heads")
    if heads % groups:
        raise bad(
            f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {groups}"
        )
    if config.count("head_dim") % 2:
        raise bad(f"head_dim = {config.count('head_dim')} is odd, rope turns pairs")
