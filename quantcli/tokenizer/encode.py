"""Text to token ids, as llama.cpp encodes it: control tokens in a text are plain text.

A GGUF file's own metadata is enough to rebuild its tokenizer:

    "gpt2"   byte-level BPE: tokens, merges, and the regexes behind the pre-tokenizer's name
    "llama"  SentencePiece BPE: the pair of pieces is merged first whose result scores highest,
             so that the scores are the merges; what is no piece becomes bytes
    "gemma4" BPE with merges over such pieces, line by line
    "t5"     Unigram: the pieces whose scores add up to most, after the character map
    "bert"   WordPiece: from the left the longest token that fits
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.errors import BadInputError, UnsupportedError
from quantcli.tokenizer.bpe import parse_bpe
from quantcli.tokenizer.byte_fallback import piece_pairs
from quantcli.tokenizer.charsmap import check_charsmap
from quantcli.tokenizer.documents import Source, is_id, read_object, show
from quantcli.tokenizer.encoder import build_encoder
from quantcli.tokenizer.pre_tokenizer import regexes, table
from quantcli.tokenizer.special_tokens import DEFAULT_IDS, LOWERCASE, STRIP_ACCENTS
from quantcli.tokenizer.tokenizer_json import NAME, AddedToken
from quantcli.tokenizer.vocabulary import SPACE, TokenType, added_token

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Metadata = dict[str, Any]
GGML = "tokenizer.ggml"


class Encoder:
    """Encodes text without BOS or other tokens around it."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True

    @classmethod
    def from_files(cls, source: Source) -> "Encoder":
        """The tokenizer in a checkpoint's tokenizer.json.

        Raises: BadInputError (missing or broken), UnsupportedError (a kind llama.cpp lacks).
        """
        document = read_object(source, NAME)
        if document is None:
            raise BadInputError(f"text cannot be encoded: {NAME} is missing")
        bpe = parse_bpe(document)
        tokenizer = build_encoder(replace(bpe, added=[_control(token) for token in bpe.added]))
        if tokenizer is None:
            raise UnsupportedError(f"{NAME} changes or splits text by steps that are not known")
        return cls(tokenizer)

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> "Encoder":
        """The tokenizer that llama.cpp builds from the `tokenizer.ggml.*` keys of a GGUF file.

        Raises: BadInputError (missing or inconsistent keys), UnsupportedError (a model or a
        pre-tokenizer that is not known).
        """
        model = metadata.get(f"{GGML}.model")
        build = BUILDERS.get(model) if isinstance(model, str) else None
        if build is None:
            raise UnsupportedError(
                f"text cannot be encoded with a tokenizer of the kind {show(model)}: "
                f"only {', '.join(map(repr, BUILDERS))} are known"
            )
        tokens = _texts(metadata, "tokens")
        types = _numbers(metadata, "token_type", len(tokens), TokenType.NORMAL)
        try:
            tokenizer = build(metadata, tokens, types)
            tokenizer.add_tokens(_user_defined(tokens, types))
        except (BadInputError, UnsupportedError):
            raise
        except Exception as error:  # the library raises nothing more precise
            raise BadInputError(f"{GGML}.*: no tokenizer: {show(str(error), 120)}") from error
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        """The ids of the text's tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def bos_token(metadata: Metadata) -> int | None:
    """The token that begins every text and every window of one; None if the model has none."""
    model, pre = metadata.get(f"{GGML}.model"), metadata.get(f"{GGML}.pre")
    by_default = model in ("llama", "bert") or pre in table().adds_bos
    if not metadata.get(f"{GGML}.add_bos_token", by_default):
        return None
    token = metadata.get(f"{GGML}.bos_token_id", DEFAULT_IDS.get(str(model), {}).get("bos"))
    return None if token is None else int(token)


def closing_token(metadata: Metadata) -> int | None:
    """The token that ends every text; None if there is none, as in models that go on with it."""
    if metadata.get(f"{GGML}.model") != "bert":
        return None
    return int(metadata.get(f"{GGML}.seperator_token_id", DEFAULT_IDS["bert"]["sep"]))


def _control(token: AddedToken) -> AddedToken:
    """Added tokens are matched in text unless the GGUF file makes them control tokens."""
    kind = added_token(token.content, token.special).type
    return AddedToken(token.id, token.content, kind is TokenType.CONTROL, token.normalized)


def _texts(metadata: Metadata, key: str) -> list[str]:
    found = metadata.get(f"{GGML}.{key}")
    if not isinstance(found, list) or not found or not isinstance(found[0], str):
        raise BadInputError(f"text cannot be encoded: {GGML}.{key} is missing or no list of texts")
    return found


def _numbers(metadata: Metadata, key: str, count: int, default: float) -> np.ndarray:
    found = metadata.get(f"{GGML}.{key}")
    if found is None:
        return np.full(count, default)
    if not isinstance(found, np.ndarray) or len(found) < count:
        raise BadInputError(f"{GGML}.{key} is no list of {count} numbers, one for each token")
    return found[:count]


def _user_defined(tokens: Sequence[str], types: np.ndarray) -> list[Any]:
    from tokenizers import AddedToken as Added

    wanted = np.flatnonzero(types == TokenType.USER_DEFINED).tolist()
    return [Added(tokens[i], normalized=False, special=False) for i in wanted if tokens[i]]


def _byte_level(metadata: Metadata, tokens: list[str], types: np.ndarray) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    split = regexes(metadata.get(f"{GGML}.pre", "default"))
    merges = _merges(metadata)
    vocab = {text: i for i, text in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=split.ignore_merges))
    steps: list[Any] = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in split.steps]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


def _merges(metadata: Metadata) -> list[tuple[str, str]]:
    merges = []
    for merge in _texts(metadata, "merges"):
        # A token may begin with a space of its own.
        left, space, right = merge[1:].partition(" ")
        if not space:
            raise BadInputError(f"{GGML}.merges: {show(merge)} is not two tokens")
        merges.append((merge[:1] + left, right))
    return merges


def _merged_pieces(metadata: Metadata, tokens: list[str], types: np.ndarray) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocab = {text: i for i, text in enumerate(tokens)}
    unknown = _unknown(metadata, tokens)
    model = models.BPE(
        vocab,
        _merges(metadata),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    return tokenizer


def _sentencepiece(metadata: Metadata, tokens: list[str], types: np.ndarray) -> "Tokenizer":
    from tokenizers import Tokenizer, models, normalizers

    scores = _numbers(metadata, "scores", len(tokens), 0.0)
    plain = [tokens[i] for i in np.flatnonzero(types == TokenType.NORMAL)]
    vocab = {text: i for i, text in enumerate(tokens)}
    # Characters that are no pieces of their own are merged, too: of tabs, Gemma has all but one.
    for char in {char for char in "".join(plain) if char.isascii()} - vocab.keys():
        if (byte := f"<0x{ord(char):02X}>") in vocab:
            vocab[char] = vocab.pop(byte)
            plain.append(char)
    ranked = []
    for text, pairs in piece_pairs(plain):
        score = -float(scores[vocab[text]])
        ranked += [(score, vocab[left], vocab[right], left, right) for left, right in pairs]
    unknown = _unknown(metadata, tokens)
    model = models.BPE(
        vocab,
        [(left, right) for *_, left, right in sorted(ranked)],
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    steps: list[Any] = [normalizers.Replace(" ", SPACE)]
    if metadata.get(f"{GGML}.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _unknown(metadata: Metadata, tokens: list[str]) -> int | None:
    """The token for what has no other, if the vocabulary has it."""
    default = DEFAULT_IDS[metadata[f"{GGML}.model"]].get("unk", -1)
    unknown = int(metadata.get(f"{GGML}.unknown_token_id", default))
    return unknown if is_id(unknown) and unknown < len(tokens) else None


def _unigram(metadata: Metadata, tokens: list[str], types: np.ndarray) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    numbers = _numbers(metadata, "scores", len(tokens), 0.0).astype(np.float64)
    # Only these are found in a text, user-defined ones before any other.
    found = np.isin(types, (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED))
    numbers[types == TokenType.USER_DEFINED] = 0.0
    texts = [
        text if use else f"\0{i}" for i, (text, use) in enumerate(zip(tokens, found, strict=True))
    ]
    tokenizer = Tokenizer(
        models.Unigram(list(zip(texts, numbers.tolist(), strict=True)), _unknown(metadata, tokens))
    )
    steps: list[Any] = []
    charsmap = metadata.get(f"{GGML}.precompiled_charsmap")
    if isinstance(charsmap, np.ndarray):
        data = check_charsmap(charsmap.astype(np.uint8).tobytes(), f"{GGML}.precompiled_charsmap")
        steps.append(normalizers.Precompiled(data.tobytes()))
    merges = bool(metadata.get(f"{GGML}.remove_extra_whitespaces", False))
    if merges:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    prefix = merges or metadata.get(f"{GGML}.add_space_prefix", False)
    scheme = "always" if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return tokenizer


def _wordpiece(metadata: Metadata, tokens: list[str], types: np.ndarray) -> "Tokenizer":
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocab = {
        _marked(text, kind): i for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
    }
    unknown = _unknown(metadata, tokens)
    if unknown is None or len(vocab) < len(tokens):
        raise BadInputError(f"{GGML}.tokens: no unknown token, or two tokens with one text")
    spelled = {i: text for text, i in vocab.items()}
    # llama.cpp knows no words that are too long.
    tokenizer = Tokenizer(
        models.WordPiece(vocab, unk_token=spelled[unknown], max_input_chars_per_word=1 << 30)
    )
    lowercase = bool(metadata.get(LOWERCASE, True))
    accents = bool(metadata.get(STRIP_ACCENTS, lowercase))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _marked(text: str, kind: int) -> str:
    """A token as WordPiece spells it: here "▁" begins a word, there "##" continues one."""
    if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
        return text
    return text.removeprefix(SPACE) if text.startswith(SPACE) else f"##{text}"


BUILDERS = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "t5": _unigram,
    "gemma4": _merged_pieces,
    "bert": _wordpiece,
}
