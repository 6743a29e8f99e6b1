"""The model `plait` of lmms-eval: `lmms-eval --model plait --model_args checkpoint=RUN --tasks TASK`. What it does is in answering.py."""

from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from plait.errors import PlaitError
from plait.lmms_eval.answering import Answering

_OFF = frozenset(["false", "off", "no", "0"])


class Plait(lmms):  # type: ignore[misc]  # lmms-eval is not installed where types are checked
    """A checkpoint of plait as lmms-eval drives it: one process, one question at a time.

    `checkpoint`: RUN, RUN@STEP, RUN/STAGE@best or a step folder; `averaged`: its EMA weights; `options`: the family's own of
    `plait generate`, such as `world=false`. Raises PlaitError for a checkpoint that is not there, and an unknown option.
    """

    is_simple = True

    def __init__(
        self,
        checkpoint: str,
        averaged: bool | str = True,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.answering = Answering(checkpoint, averaged=str(averaged).lower() not in _OFF, options=options)
        if device is not None and not str(device).startswith(self.answering.device.type):
            raise PlaitError(f"device is {device}, but plait answers on {self.answering.device}: leave --device out")
        self.model_name, self.batch_size = self.answering.name, 1

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the answer to each request, whose arguments are (context, settings, visuals of a document, its id, task, split)."""
        answers = []
        for request in requests:
            context, settings, visuals_of, document, task, split = request.args
            visuals = visuals_of(self.task_dict[task][split][document]) or []
            answers.append(self.answering.answer(context, visuals, settings))
            self.cache_hook.add_partial("generate_until", (context, settings), answers[-1])
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return (log-probability of the continuation, whether the model would give it) of each request."""
        results = []
        for request in requests:
            context, continuation, visuals_of, document, task, split = request.args
            record = self.task_dict[task][split][document]
            text = continuation(record) if callable(continuation) else continuation
            results.append(self.answering.log_likelihood(context, str(text), visuals_of(record) or []))
        return results

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse tasks of several rounds. Raises PlaitError."""
        raise PlaitError(f"the model plait answers in one round; {requests[0].task_name if requests else 'this task'} has several")
