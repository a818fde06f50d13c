"""From a manifest to jobs: every name and every setting resolved, before anything starts."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter

from quantcli.batch.manifest import ManifestError, Model, Read, Settings, as_keys
from quantcli.batch.naming import below_root, clashing_outputs, clashing_uploads, filled
from quantcli.calibration.text import BUILTIN
from quantcli.checkpoint import AdapterRef, gguf_choice
from quantcli.errors import QuantcliError, UsageError
from quantcli.gguf_file import without_number
from quantcli.methods import method_info
from quantcli.planning import Job, Target
from quantcli.planning.from_options import AUTO, make_job, make_target
from quantcli.planning.job import check_stream
from quantcli.planning.lora import parse_lora
from quantcli.planning.names import TYPE, bare_name
from quantcli.planning.ram import parse_size
from quantcli.recipes import file_type
from quantcli.report.files import check_drawing

OUTPUT = "{model}/{model}-{type}.gguf"
JOB = TypeAdapter(Job)
# What changes no byte of the outputs, or is told by `outputs` or `identity`, is not in a job's key.
NOT_IN_KEY = frozenset(
    ("source", "output", "threads", "force", "resume", "delete_source", "gate", "max_memory_bytes")
) | {"lora", "stream"}


@dataclass(frozen=True)
class BatchJob:
    """One model by one method: a conversion, and what is to be done with its outputs.

    `name` tells it apart for people, `key` for the ledger; `outputs` are paths below the root.
    Jobs of one `lane` read the same source and run one after the other: one download serves all.
    """

    name: str
    source: str  # as the manifest has it
    recipe: str | None
    job: Job
    outputs: tuple[str, ...]
    identity: tuple[str, ...]  # of files and adapters that are read: other contents, other key
    upload: str | None
    report: tuple[str, ...]  # formats beside JSON

    @cached_property
    def key(self) -> str:
        """Equal for jobs that give the same outputs; 16 hexadecimal digits."""
        job = JOB.dump_python(self.job, mode="json", exclude=set(NOT_IN_KEY))
        # Of files that are read, what is in them counts, not where they are.
        settings = {key: None if _is_path(value) else value for key, value in job.items()}
        whole = [self.source, self.identity, self.outputs, settings]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def lane(self) -> tuple[str, str | None]:
        """What it reads."""
        return self.job.source, self.job.revision

    @property
    def on_hub(self) -> bool:
        """Whether the source has to be downloaded."""
        return not Path(self.job.source).is_absolute()

    @property
    def reports(self) -> tuple[str, ...]:
        """Paths of its reports below the root."""
        stem = f"reports/{PurePosixPath(self.outputs[0]).stem}-{self.key[:8]}"
        return tuple(f"{stem}.{ending}" for ending in ("json", *self.report))


def expand(manifest: Read, root: Path, upload: str | None = None) -> list[BatchJob]:
    """All jobs of the manifest, with outputs below `root`.

    upload: a template of repository names that takes the place of those in the manifest.

    Raises:
        ManifestError: with every problem of the manifest.
    """
    jobs: list[BatchJob] = []
    places: list[str] = []
    problems = list(manifest.problems)
    for index, model in enumerate(manifest.models):
        if model is None:
            continue
        where = f"models[{index}] {model.source!r}"
        settings = model.over(manifest.defaults)
        if upload is not None:
            settings = settings.model_copy(update={"upload": upload})
        recipes: Sequence[str | None] = settings.recipes or [None]
        for method, recipe in product(settings.methods or ["rtn"], recipes):
            try:
                jobs.append(_job(model, settings, method, recipe, manifest.folder, root))
                places.append(where)
            except QuantcliError as error:
                problems.append(f"{where}: {as_keys(str(error))}")
    pairs = list(zip(places, jobs, strict=True))
    problems += clashing_outputs((place, job.outputs) for place, job in pairs)
    problems += clashing_uploads((place, job.upload, job.lane) for place, job in pairs)
    if problems:
        raise ManifestError(manifest.name, list(dict.fromkeys(problems)))
    return _distinct_names(jobs)


def _job(
    model: Model, settings: Settings, method: str, recipe: str | None, base: Path, root: Path
) -> BatchJob:
    source = _source(model.source, base)
    local = Path(source).is_absolute()
    if local and model.revision:
        raise UsageError("revision is for hub models, but the source is local")
    if local and settings.stream:
        raise UsageError("stream is for hub models, but the source is local")
    if "html" in (settings.report or ()):
        check_drawing("report")
    job = _conversion(source, model, settings, method, recipe, base)
    labels = [_label(job.target)] if job.target else _types(job)
    job = replace(job, types=job.types if job.target else tuple(labels))
    words = {
        "org": "" if local else source.partition("/")[0],
        "model": model.name or _model_name(source),
        "revision": model.revision or "",
        "method": method,
        "recipe": Path(recipe).stem if recipe else "",
    }
    template = filled(settings.output or OUTPUT, words, kept=TYPE)
    outputs = tuple(below_root(template.replace(TYPE, label)) for label in labels)
    if len(set(outputs)) < len(labels):
        raise UsageError(f"output {template!r} is one file for several types; add {TYPE}")
    if job.target:
        template = outputs[0]
    files = [job.imatrix, job.calibrate, job.evaluate]
    return BatchJob(
        name=" ".join(filter(None, [_at(model), method, words["recipe"]])),
        source=model.source,
        recipe=recipe,
        job=replace(job, output=root / template),
        outputs=outputs,
        identity=(
            *(_fingerprint(Path(file)) if file else "" for file in files),
            _fingerprint(Path(source), is_model=True) if local else "",
            *(f"{_fingerprint(Path(a.source)) or a.source} {a.scale}" for a in job.lora),
        ),
        upload=filled(settings.upload, words) if settings.upload else None,
        report=tuple(settings.report or ()),
    )


def _conversion(
    source: str, model: Model, settings: Settings, method: str, recipe: str | None, base: Path
) -> Job:
    """The job without its output, by the rules of `convert`'s flags."""
    target = make_target(settings.target_size, settings.target_bpw, settings.fit_ram)
    imatrix = Path(settings.imatrix) if settings.imatrix else None
    if imatrix is not None and imatrix != AUTO:
        imatrix = _file(settings.imatrix or "", base)
    calibrates = imatrix == AUTO or method_info(method).calibrates or target is not None
    job = make_job(
        source,
        None if target or not settings.types else ",".join(settings.types),
        _file(recipe, base) if recipe else None,
        {"pure": False},
        imatrix=imatrix,
        calibration=_text(settings.calibration, base) if calibrates else None,
        calibration_tokens=settings.calibration_tokens if calibrates else None,
        threads=settings.threads or 1,
        method=method,
        target=target,
        on_fallback=settings.on_fallback or "warn",
        revision=model.revision,
        lora=tuple(_adapter(text, base) for text in settings.lora or ()),
        stream=bool(settings.stream),
        override_kv=tuple(settings.override_kv or ()),
        pre_tokenizer=settings.pre_tokenizer,
        split_max_bytes=parse_size(settings.split_max_size, "split_max_size")
        if settings.split_max_size
        else None,
        keep_split=bool(settings.keep_split),
        allow_requantize=bool(settings.allow_requantize),
        evaluate=_evaluation(settings, base),
        gate=settings.gate.gate if settings.gate else None,
        force=True,  # the ledger knows whose an existing output is
        resume=True,
    )
    check_stream(job)
    return job


def _adapter(text: str, base: Path) -> AdapterRef:
    """An adapter whose folder is a whole path, or that is on the hub."""
    ref = parse_lora(text)
    found = _source(ref.source, base)
    if Path(found).is_absolute() and not Path(found).is_dir():
        raise UsageError(f"lora: there is no folder {ref.source!r}")
    return replace(ref, source=found)


def _evaluation(settings: Settings, base: Path) -> str | None:
    wanted = settings.evaluate
    if wanted is False and settings.gate and settings.gate.gate.needs_quality:
        raise UsageError("gate needs the quality; leave `evaluate = false` out")
    return BUILTIN if wanted is True else _text(wanted or None, base)


def _types(job: Job) -> list[str]:
    return list(dict.fromkeys(file_type(name).name for name in job.types))


def _label(target: Target) -> str:
    """What stands for the type in the name of an output for a target."""
    option, _, value = target.option.partition(" ")
    return {"--target-bpw": f"{value}bpw", "--fit-ram": f"ram{value}"}.get(option, value)


def _at(model: Model) -> str:
    return f"{model.source}@{model.revision}" if model.revision else model.source


def _source(source: str, base: Path) -> str:
    """An absolute path for a folder or a GGUF file, what is on the hub as it is."""
    path = Path(source).expanduser()
    if gguf_choice(source) is not None and not (base / path).exists():
        return source
    if source.startswith((".", "/", "~")) or (base / path).is_dir() or source.endswith(".gguf"):
        return str((base / path).resolve())
    return source


def _model_name(source: str) -> str:
    repo_id, choice = gguf_choice(source) or (source, "")
    if choice:
        source = choice if choice.endswith(".gguf") else repo_id
    if source.endswith(".gguf"):
        return bare_name(without_number(Path(source)).removesuffix(".gguf"))
    return PurePosixPath(source).name


def _file(name: str, base: Path) -> Path:
    path = (base / Path(name).expanduser()).resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {name!r}")
    return path


def _text(name: str | None, base: Path) -> str | None:
    if name is None or name == BUILTIN or name.startswith("hf://"):
        return name
    return str(_file(name, base))


def _is_path(value: object) -> bool:
    return isinstance(value, str) and Path(value).is_absolute()


def _fingerprint(path: Path, *, is_model: bool = False) -> str:
    """Contents of a small file; names, sizes and times of a model's files."""
    if path.is_dir() or is_model:
        folder, name = (path, None) if path.is_dir() else (path.parent, without_number(path))
        found = [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
        files = sorted(file for file in found if name in (None, without_number(file)))
        return "".join(f"{f.name} {(s := f.stat()).st_size} {s.st_mtime_ns};" for f in files)
    return _digest(path) if path.is_file() else ""


@lru_cache
def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _distinct_names(jobs: list[BatchJob]) -> list[BatchJob]:
    count: dict[str, int] = defaultdict(int)
    for job in jobs:
        count[job.name] += 1
    return [
        replace(job, name=f"{job.name} {','.join(_shown(job))}") if count[job.name] > 1 else job
        for job in jobs
    ]


def _shown(job: BatchJob) -> tuple[Any, ...]:
    return (_label(job.job.target),) if job.job.target else job.job.types
