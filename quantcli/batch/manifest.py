"""The manifest: a TOML file of models and what to make of them, checked as a whole.

Its schema is `Manifest`; every key of a model may also stand in [defaults].
"""

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from quantcli.errors import QuantcliError, UsageError
from quantcli.evaluation.gate import Gate
from quantcli.methods import method_info
from quantcli.planning.from_options import make_gate
from quantcli.planning.lora import parse_lora
from quantcli.planning.ram import parse_size
from quantcli.recipes import file_type

MAX_BYTES = 16 << 20


def _accepted_by(check: Callable[[str], object]) -> AfterValidator:
    """Texts that `check` has nothing against; pydantic collects ValueErrors."""

    def validate(text: str) -> str:
        try:
            check(text)
        except QuantcliError as error:
            raise ValueError(str(error)) from None
        return text

    return AfterValidator(validate)


FileTypeName = Annotated[str, _accepted_by(file_type)]
MethodName = Annotated[str, _accepted_by(method_info)]
Adapter = Annotated[str, _accepted_by(parse_lora)]
Size = Annotated[str, _accepted_by(lambda text: parse_size(text, "the value"))]


class ManifestError(UsageError):
    """A manifest with problems; nothing was started. `problems` has a line for each."""

    def __init__(self, name: str, problems: list[str]) -> None:
        super().__init__("; ".join(f"{name}: {problem}" for problem in problems))
        self.problems = [f"{name}: {problem}" for problem in problems]


class Strict(BaseModel):
    """Nothing is guessed: unknown keys and values of another kind are problems."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class GateTable(Strict):
    """`gate`: what every output must keep to."""

    max_kld: Annotated[float, Field(ge=0)] | None = None
    min_top1: Annotated[float, Field(gt=0, le=1)] | None = None
    max_size: Size | None = None

    @property
    def gate(self) -> Gate:
        """The limits in numbers."""
        return make_gate(self.max_kld, self.min_top1, self.max_size)


class Settings(Strict):
    """What to make of a model; the names are those of `convert`'s flags.

    One job for each of `methods` and each of `recipes`; a job makes all `types` in one pass.
    """

    types: Annotated[list[FileTypeName], Field(min_length=1)] | None = None
    methods: Annotated[list[MethodName], Field(min_length=1)] | None = None
    recipes: list[str] | None = None
    target_size: Size | None = None
    target_bpw: float | None = None
    fit_ram: Size | None = None
    imatrix: str | None = None
    calibration: str | None = None
    calibration_tokens: Annotated[int, Field(ge=512)] | None = None
    lora: list[Adapter] | None = None
    stream: bool | None = None
    evaluate: bool | str | None = None
    gate: GateTable | None = None
    output: str | None = None
    upload: str | None = None
    report: list[Literal["md", "html"]] | None = None
    pre_tokenizer: str | None = None
    on_fallback: Literal["error", "warn", "allow"] | None = None
    override_kv: list[str] | None = None
    split_max_size: Size | None = None
    keep_split: bool | None = None
    allow_requantize: bool | None = None
    threads: Annotated[int, Field(ge=1, le=256)] | None = None

    def over(self, defaults: "Settings") -> "Settings":
        """These settings, with defaults for what is not set."""
        return Settings.model_construct(**(_given(defaults) | _given(self)))


class Model(Settings):
    """One [[models]] table: `source` is a hub id, a folder or a GGUF file, also one on the hub.

    `name` is how the outputs call it.
    """

    source: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    name: str | None = None


class Manifest(Strict):
    """A whole manifest."""

    defaults: Settings = Settings()
    models: Annotated[list[Model], Field(min_length=1)]


@dataclass(frozen=True)
class Read:
    """What a manifest says, as far as it is valid: None stands for a model that is not."""

    name: str
    folder: Path  # relative names begin here
    defaults: Settings
    models: list[Model | None]
    problems: list[str]


def read_manifest(path: Path) -> Read:
    """Read and validate a manifest.

    Raises:
        ManifestError: when it cannot be read as TOML; what else is wrong is in `problems`.
    """
    document = _parse(path)
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        problems = [_line(document, problem) for problem in error.errors(include_url=False)]
        bad = {steps[1] for e in error.errors() if len(steps := e["loc"]) > 1}
        models = document.get("models")
        if not isinstance(models, list) or any(e["loc"][0] != "models" for e in error.errors()):
            return Read(path.name, path.parent, Settings(), [], problems)
        defaults = Settings.model_validate(document.get("defaults", {}))
        valid = [None if i in bad else Model.model_validate(m) for i, m in enumerate(models)]
        return Read(path.name, path.parent, defaults, valid, problems)
    return Read(path.name, path.parent, manifest.defaults, list(manifest.models), [])


def _place(document: Any, steps: tuple[int | str, ...]) -> str:
    """Where something stands: "models[2] 'org/name', types[0]"."""
    table, rest = "", list(steps)
    if rest[:1] == ["models"] and len(rest) > 1 and isinstance(rest[1], int):
        table, rest = f"models[{rest[1]}]", rest[2:]
        source = _look_up(document, *steps[:2], "source")
        table += f" {source!r}" if isinstance(source, str) else ""
    elif rest[:1] == ["defaults"]:
        table, rest = "[defaults]", rest[1:]
    path = ""
    for step in rest:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    return ", ".join(part for part in (table, path) if part)


def as_keys(message: str) -> str:
    """A message about flags, about the keys of a manifest."""
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda found: found[1].replace("-", "_"), message)


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ManifestError(path.name, [f"a manifest has at most {MAX_BYTES} bytes"])
        return tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{str(path)!r}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ManifestError(path.name, [f"not UTF-8 text (byte {error.start})"]) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ManifestError(path.name, [f"not valid TOML: {error}"]) from None


def _line(document: Any, problem: Any) -> str:
    """One problem that the validator found, with place and remedy."""
    steps = tuple(step for step in problem["loc"] if step not in ("bool", "str"))
    where, kind = _place(document, steps), problem["type"]
    if kind == "extra_forbidden":
        above = str(steps[-2]) if len(steps) > 1 else ""
        tables: dict[str, type[Strict]]
        tables = {"": Manifest, "defaults": Settings, "gate": GateTable}
        what = f"unknown key (known: {', '.join(tables.get(above, Model).model_fields)})"
    elif kind == "value_error":
        what = as_keys(str(problem["ctx"]["error"]))
    elif kind == "missing":
        what = "is missing"
    else:
        found = repr(problem["input"])
        what = f"{problem['msg']}, not {found if len(found) <= 40 else found[:37] + '...'}"
    return f"{where}: {what}"


def _look_up(document: Any, *steps: int | str) -> Any:
    for step in steps:
        if isinstance(document, dict):
            document = document.get(step)
        elif isinstance(document, list) and isinstance(step, int):
            document = document[step]
        else:
            return None
    return document


def _given(settings: Settings) -> dict[str, Any]:
    fields = Settings.model_fields
    return {k: v for k in fields if (v := getattr(settings, k)) is not None}
