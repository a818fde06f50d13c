"""`quantcli plan`: every file type of a model side by side, and which of them a machine can run."""

from dataclasses import dataclass, replace

from quantcli.planning.file import PlannedFile
from quantcli.planning.job import Job
from quantcli.planning.plan import Plan, make_plan
from quantcli.planning.ram import Running, running
from quantcli.progress import Progress
from quantcli.recipes import FILE_TYPES, check_fallbacks, file_type

# What to recommend, best first: beyond Q8_0 a file only grows, and between these the steps are
# worth their bytes.
LADDER = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


@dataclass(frozen=True)
class Survey:
    """All file types of one model; `chosen` are those that were asked for by name."""

    plan: Plan
    chosen: list[PlannedFile]
    running: Running | None
    budget: int | None

    @property
    def to_convert(self) -> Plan:
        """The conversion of the chosen types, or of the largest one where none was chosen."""
        return replace(self.plan, files=self.chosen or self.plan.files[-1:])

    @property
    def warnings(self) -> list[str]:
        """About the source and the chosen types."""
        return self.plan.warnings + [line for file in self.chosen for line in file.warnings]

    def ram_bytes(self, file: PlannedFile) -> int | None:
        """Memory to run this file at the survey's context, where one was given."""
        return file.size_bytes + self.running.overhead if self.running else None

    def fits(self, file: PlannedFile) -> bool | None:
        """Whether the file runs in the budget; None without a budget."""
        needed = self.ram_bytes(file)
        return None if self.budget is None or needed is None else needed <= self.budget

    @property
    def recommended(self) -> PlannedFile | None:
        """The best step of the ladder that fits; None without a budget or when none fits."""
        if self.budget is None:
            return None
        by_name = {file.file_type.name: file for file in self.plan.files}
        return next((by_name[name] for name in LADDER if self.fits(by_name[name])), None)


def survey(
    job: Job, *, budget: int | None, context: int | None = None, progress: Progress | None = None
) -> Survey:
    """Plan every file type from the headers alone; job.types are those to look at closely.

    `budget` is the memory in bytes to run in, or None.

    Raises:
        QuantcliError: as make_plan; for a refused fallback in a chosen type.
    """
    wanted = {file_type(name).name for name in job.types}
    policy = "warn" if job.on_fallback == "error" else job.on_fallback
    everything = replace(job, types=tuple(FILE_TYPES), on_fallback=policy)
    plan = make_plan(everything, weights=False, progress=progress)
    chosen = [file for file in plan.files if file.file_type.name in wanted]
    for file in chosen:
        check_fallbacks(file.choices, job.on_fallback)
    needs = running(plan.files[0].metadata, context) if budget is not None else None
    return Survey(plan, chosen, needs, budget)
