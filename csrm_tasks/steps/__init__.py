"""The steps of the pipeline, one module per room; each is a task and a ``csrm`` command."""

from csrm_tasks.steps.declaration import Context, Metadata, all_steps, get_step, step
from csrm_tasks.steps.running import run_step

__all__ = ["Context", "Metadata", "all_steps", "get_step", "run_step", "step"]
