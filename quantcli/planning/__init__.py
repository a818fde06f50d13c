"""Before the long work: what will be written, how big, with which types, and what it needs."""

from quantcli.planning.file import PlannedFile, PlannedTensor
from quantcli.planning.job import Job, default_threads
from quantcli.planning.plan import Plan, make_plan
from quantcli.planning.target import Target

__all__ = ["Job", "Plan", "PlannedFile", "PlannedTensor", "Target", "default_threads", "make_plan"]
