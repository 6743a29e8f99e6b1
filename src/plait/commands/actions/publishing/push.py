"""What `plait push` does: put a checkpoint, or an export of it, into its run's queue, and send the queue."""

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from plait.assembly import checkpoint_specs, saved
from plait.commands.actions import export
from plait.commands.actions.publishing import contents, outbox
from plait.commands.actions.publishing.retries import Later
from plait.commands.actions.publishing.sending import Sender
from plait.config.sections.hub import repository
from plait.engine.checkpoints import checkpoint
from plait.errors import PlaitError, command

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class PushOptions:
    """Options of `plait push`. `repo`: None: that of the run's configuration; `layout`: of an export, None for the checkpoint as it is.

    `public`: of a repository that is made; `replace`: push even where the repository holds another model.
    """

    repo: str | None = None
    layout: str | None = None
    public: bool = False
    replace: bool = False


def push(spec: str, options: PushOptions) -> None:
    """Push the checkpoint that `spec` names (RUN, RUN@STEP, RUN/STAGE@best, ...), after what waits in its run's queue.

    Of a run whose queue is not empty, and no repository is named or configured, what waits is sent. Raises PlaitError where there is no
    checkpoint or no repository, and for what the Hub refuses or does not take in ten minutes; it stays in the queue then.
    """
    path, mark = checkpoint_specs.split(spec)
    run = checkpoint.run_of(path)
    located = saved.locate(spec)
    hub = located.config.hub
    repo = options.repo or (hub.repo if hub is not None else None)
    job: outbox.Job | None = None
    if repo is None:
        if mark or path != run or not (outbox.waiting(run) or outbox.damaged(run)):
            raise PlaitError(f"no repository is named: `{command('push', spec, 'OWNER/NAME')}`, or set hub.repo in the configuration")
    else:
        try:
            repository(repo)
        except ValueError as error:
            raise PlaitError(f"REPO {error}") from error
        private = not options.public and (hub is None or hub.private)
        job = contents.job_of(located.checkpoint, located.resolved, repo, private=private, replace=options.replace, layout=options.layout)
        _queue(located.checkpoint, job, spec)
    drain(run, job)


def drop(spec: str, repo: str | None) -> None:
    """Take what waits out of the queue of a run, `spec`: all of it, or what is for the repository `repo`.

    Raises PlaitError where there is no such run, and while another process sends the queue.
    """
    path, mark = checkpoint_specs.split(spec)
    run = checkpoint.run_of(path)
    if mark or path != run or not run.is_dir():
        raise PlaitError(f"--drop: {spec} is no run, whose queue it would be: give the run")
    if not (run / outbox.FOLDER).is_dir():
        log.info(f"nothing waits in {run / outbox.FOLDER}")
        return
    with outbox.locked(run) as mine:
        if not mine:
            raise PlaitError(f"--drop: another process sends the queue of {run}: end it first, or the run that it sends for")
        items = [item for item in outbox.waiting(run) if repo in (None, item.job.repo)]
        for item in items:
            outbox.finish(run, item, None)
            log.info(f"{item.job.title} for {item.job.repo}: taken out of the queue")
        damaged = outbox.remove_damaged(run) if repo is None else []
        for folder in damaged:
            log.info(f"{folder}, which is damaged: taken out of the queue")
    if not items and not damaged:
        log.info(f"nothing waits in {run / outbox.FOLDER}{f' for {repo}' if repo else ''}")


def _queue(found: checkpoint.Checkpoint, job: outbox.Job, spec: str) -> None:
    run = checkpoint.run_of(found.folder)
    if outbox.waits(run, job):
        return
    if job.layout is None:
        contents.add(found, job)
    else:
        with tempfile.TemporaryDirectory(prefix=".export-", suffix=".tmp", dir=run) as work:
            export.export(spec, Path(work) / "export", job.layout, kept=False)
            contents.add_export(run, Path(work) / "export", job)


def drain(run: Path, job: outbox.Job | None = None) -> None:
    """Send what waits in the queue of `run`; where another process does so, wait for it.

    Raises PlaitError where nothing was taken for ten minutes, and in the end for what the Hub refuses and what was damaged; where `job`
    was asked for and has been sent, that of others is a warning.
    """
    sender = Sender(run, lambda text, warning: log.log(logging.WARNING if warning else logging.INFO, text))
    told, since_s, mine = False, time.monotonic(), False
    while not mine or outbox.waiting(run):
        with outbox.locked(run) as mine:
            if mine:
                try:
                    while sender.send_next():
                        since_s = time.monotonic()
                    break
                except Later as error:
                    if time.monotonic() + sender.pause_s - since_s > outbox.PATIENCE_S:
                        waits = f"what waits is in {run / outbox.FOLDER}, and `{command('push', run)}` sends it later"
                        raise PlaitError(f"the Hub has taken nothing for {outbox.PATIENCE_S / 60:.0f} minutes: {error}; {waits}") from error
                    time.sleep(sender.pause_s)
        if not mine:
            if not outbox.waiting(run):
                return
            if not told:
                told = True
                log.info(f"another process sends the queue of {run}: waiting for it")
            time.sleep(_LOOK_EVERY_S)
    refusals = [*sender.refusals.values()]
    sent = job is not None and not outbox.waits(run, job) and outbox.is_at_hub(run, job)
    lost = [*([] if sent else refusals), *sender.given_up]
    for line in [*(refusals if sent else []), *lost[1:]]:
        log.warning(line)
    if lost:
        raise PlaitError(lost[0])
    if left := len(outbox.waiting(run)) + len(outbox.damaged(run)):
        cure = f"`{command('push', run)}` tries again, and `{command('push', run, '--drop')}` takes {'them' if left > 1 else 'it'} out"
        log.warning(f"{left} other push{'es' if left > 1 else ''} still wait{'' if left > 1 else 's'} in {run / outbox.FOLDER}: {cure}")
