"""Train some steps of a stage (part of a run) once more under torch.profiler, and write what was computed when."""

from pathlib import Path

from torch.profiler import ProfilerActivity, profile, supported_activities

from plait.config.resolved import StageView
from plait.engine.loop import Row
from plait.engine.state import State
from plait.training.planning.probe import quiet, train_some

_WARM = 3
"""Steps before the trace: workers start in them, memory is allocated, blocks are compiled."""
_ROWS = 12


def write(view: StageView, steps: int, path: Path) -> str:
    """Write a trace of some steps of the stage to `path`; return a table of the operators that took longest.

    They are its first ones, and trained in a folder that is removed. Raises PlaitError for what keeps them from starting.
    """
    wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & supported_activities()
    profiler, done = profile(activities=wanted), [0]

    def count(state: State, row: Row) -> None:
        done[0] += 1
        if done[0] == _WARM:
            profiler.start()
        elif done[0] == _WARM + steps:
            profiler.stop()

    with quiet():
        train_some(view, _WARM + steps, count)
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
    by = "self_cuda_time_total" if ProfilerActivity.CUDA in wanted else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=by, row_limit=_ROWS, max_name_column_width=40))
