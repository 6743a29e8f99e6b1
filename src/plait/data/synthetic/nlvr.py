"""The source (data set) `nlvr`: Cornell NLVR shards with questions generated from their structured boxes, each with an exact answer.

A picture of NLVR is three boxes of coloured items; a record is the picture and the list of its items. Tasks: `truth`, the human-written
sentence of a record and its label; `statement`, a generated sentence that distinguishes this record from another; `caption`, a
description of all items; `count` and `point`. Sample i is a pure function of records and options, so a held-out set stays the same.
answers.py scores answers by the samples' fields; nlvr_record.py describes the pictures.
"""

import difflib
from typing import Any, Literal, Protocol

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plait import keys
from plait.data.records import Record
from plait.data.synthetic.lexicon import number_word
from plait.data.synthetic.nlvr_facts import Draw
from plait.data.synthetic.nlvr_mixed import boxes_of, mixed
from plait.data.synthetic.nlvr_record import BOXES, GROUPS, SIZE, Item, items
from plait.data.synthetic.questions import pick, point_tag
from plait.data.synthetic.statements import all_towers, describe, statement
from plait.errors import BadSample, PlaitError

STYLES = {"truth": "vqa2", "statement": "vqa2", "caption": "long_caption", "count": "vqa2", "point": "pointing"}
"""{task: the style (name of the manner of answers) that its samples have}."""
TASKS = tuple(STYLES)
"""What may be asked about a picture."""
_ONCE = ("truth", "caption")  # tasks with one question per picture
_MOST_POINTS = 5  # in one answer; more only where every group is larger
_DRAWS = 50  # other pictures tried; half of them are of the other sort, so all are with probability 10^-15
_CACHED = 10_000  # scenes, of about 5 KB
_REVISION = 2  # of the questions; part of the fingerprint


Asked = tuple[str, str, dict[str, Any]]
"""(question, answer, fields to score an answer by, such as `truth`)."""


class NlvrReader(Protocol):
    """Random access to the records of NLVR shards; `digest` is a hash of their content."""

    digest: str

    def __len__(self) -> int: ...
    def read(self, i: int, /) -> Record:
        """Return record `i` (from 0)."""


class NlvrOptions(BaseModel):
    """Options of the source `nlvr`: what is asked about each picture, and how often.

    `tasks`: `truth` (is the record's own sentence true?), `statement` (is a generated one?), `caption`, `count`, `point`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[str, ...] = ("truth", "count", "point")
    questions: int = Field(1, ge=1, le=100)
    """Questions per picture and task; one for `truth` and `caption`."""
    reasons: bool = False
    """Whether a statement's answer begins with the number that it is about."""
    wordings: Literal["plain", "many"] = "many"
    """Of statements: always the same wording, or varied as people's."""
    rounds: int = Field(1, ge=1, le=10_000)
    """Repetitions of each picture, each with other questions."""
    mixed: bool = False
    """Whether each picture is composed of boxes of others of its sort (with towers or without), mirrored or not."""
    together: bool = False
    """Whether all questions about a picture are one sample, a list `annotations` without repeats, not a sample each."""


class Nlvr:
    """Questions about NLVR's pictures as training samples.

    `reader`: reads the shards; `name`: a title for reports; `options`: the fields of NlvrOptions; `limit`: only the first so many samples
    (None: all). Raises PlaitError for invalid options.
    """

    def __init__(self, reader: NlvrReader, name: str, options: dict[str, Any], limit: int | None = None) -> None:
        self.options = _checked(options)
        self.reader, self.name = reader, name
        self.questions = [(task, n) for task in self.options.tasks for n in range(1 if task in _ONCE else self.options.questions)]
        self._scenes: dict[int, tuple[Record, bool]] = {}
        length = len(reader) * self.options.rounds * (1 if self.options.together else len(self.questions))
        self._length = length if limit is None else min(limit, length)
        identity = [_REVISION, reader.digest, self._length, self.options.model_dump_json()]
        self.fingerprint = xxhash.xxh3_64(repr(identity).encode()).hexdigest()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Return sample `i`: {`id`, `images`, `messages`, `fields`}. Raises BadSample if its question cannot be made for its record."""
        if self.options.together:
            turn, index = divmod(i, len(self.reader))
            record = self._record(index, turn)
            samples = [self._sample(record, turn, *question) for question in self.questions]
            by_question = {s["fields"]["question"]: {"messages": s["messages"], "style": s["fields"]["style"]} for s in samples}
            return {**samples[0], "id": record.id, "annotations": list(by_question.values())}
        position, question = divmod(i, len(self.questions))
        turn, index = divmod(position, len(self.reader))
        return self._sample(self._record(index, turn), turn, *self.questions[question])

    def _record(self, index: int, turn: int) -> Record:
        """Return the record with its picture for this round: read, or mixed from others."""
        record = self.reader.read(index)
        if not self.options.mixed:
            return record
        indices, mirrored = self._draw_boxes(record.id, self._scene(index)[1], keys.rng("nlvr", record.id, "mixed", turn))
        return mixed(record.id, [self.reader.read(i) for i in indices], mirrored)

    def _draw_boxes(self, name: str, towers: bool, rng: np.random.Generator) -> tuple[list[int], list[bool]]:
        """Draw the records whose boxes compose a mixed picture, and which boxes are mirrored."""
        return [self._draw_similar(name, towers, rng) for _ in BOXES], [bool(side) for side in rng.integers(2, size=len(BOXES))]

    def _draw_similar(self, name: str, towers: bool, rng: np.random.Generator) -> int:
        """Draw the index of a record whose picture shows a tower in each box (`towers` True), or of one that does not."""
        for _ in range(_DRAWS):
            index = int(rng.integers(len(self.reader)))
            if self._scene(index)[1] == towers:
                return index
        raise BadSample(f"{name}: of {_DRAWS} other pictures none is of its sort, so there is nothing to state of it, nor to mix it with")

    def _scene(self, index: int) -> tuple[Record, bool]:
        """Return a record without its picture, and whether it shows a tower in each box. Cached: each sample looks at several."""
        if index not in self._scenes:
            record = self.reader.read(index)
            scene = Record(record.id, {"boxes": record.fields.get("boxes")}, [], [])
            if len(self._scenes) == _CACHED:
                self._scenes.clear()
            self._scenes[index] = scene, all_towers(items(scene))
        return self._scenes[index]

    def _sample(self, record: Record, turn: int, task: str, number: int) -> dict[str, Any]:
        rng = keys.rng("nlvr", record.id, task, number, *([turn] if turn else []))
        question, answer, fields = self._ask(task, record, rng)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        described = {"task": task, "style": STYLES[task], "question": question, "answer": answer, **fields}
        return {"id": f"{record.id}/{task}-{number}", "images": record.images, "messages": messages, "fields": described}

    def _ask(self, task: str, record: Record, rng: np.random.Generator) -> Asked:
        if task == "truth":
            return _truth(record)
        picture = _items(record)
        if task == "caption":
            return "Describe the picture.", describe(picture), {}
        if task == "statement":
            return self._statement(record, picture, rng)
        fields = {"size": list(SIZE), "objects": [item._asdict() for item in picture]}
        return _count(picture, rng, fields) if task == "count" else _point(picture, rng, fields)

    def _statement(self, record: Record, picture: list[Item], rng: np.random.Generator) -> Asked:
        """Ask about a statement that distinguishes this picture from another of its sort."""
        towers = all_towers(picture)
        for _ in range(_DRAWS):
            other = self._other(record.id, towers, rng)
            if drawn := statement(picture, other, Draw(rng, self.options.wordings == "plain")):
                sentence, number, holds = drawn
                verdict = str(holds).lower()
                answer = f"{number_word(number)}: {verdict}" if self.options.reasons else verdict
                return f"True or false? {sentence}", answer, {"truth": verdict}
        raise BadSample(f"{record.id}: none of {_DRAWS} other pictures of its sort differs from it, so there is nothing to state")

    def _other(self, name: str, towers: bool, rng: np.random.Generator) -> list[Item]:
        """Draw another picture of the sort that this source could yield, and return its items."""
        if not self.options.mixed:
            return items(self._scene(self._draw_similar(name, towers, rng))[0])
        indices, mirrored = self._draw_boxes(name, towers, rng)
        return items(Record(name, boxes_of(name, [self._scene(i)[0] for i in indices], mirrored), [], []))


def _items(record: Record) -> list[Item]:
    picture = items(record)
    if not picture:
        raise BadSample(f"{record.id} has three empty boxes: there is nothing to ask about")
    return picture


def _truth(record: Record) -> Asked:
    sentence, label = record.fields.get("sentence"), str(record.fields.get("label")).lower()
    if not sentence or label not in ("true", "false"):
        raise BadSample(f"{record.id} has no `sentence` with a `label` true or false, so it is no NLVR record")
    return f"True or false? {sentence}", label, {"truth": label}


def _count(picture: list[Item], rng: np.random.Generator, fields: dict[str, Any]) -> Asked:
    group = pick(rng, pick(rng, GROUPS))
    count = sum(map(group.holds, picture))
    return f"How many {group.words(True)} are there?", number_word(count), {**fields, "truth": count, "count": count}


def _point(picture: list[Item], rng: np.random.Generator, fields: dict[str, Any]) -> Asked:
    """Ask to point to all items of a group that is not empty, of few items where that is possible."""
    groups = [(group, [i for i, item in enumerate(picture) if group.holds(item)]) for kind in GROUPS for group in kind]
    filled = [(group, indices) for group, indices in groups if indices]
    small = [(group, indices) for group, indices in filled if len(indices) <= _MOST_POINTS]
    group, indices = pick(rng, small or filled)
    question = f"Point to every {group.words(False)}." if len(indices) > 1 else f"Point to the {group.words(False)}."
    points = [(100 * picture[i].x / SIZE[0], 100 * picture[i].y / SIZE[1]) for i in indices]
    truth = {"truth": indices, "points": [list(point) for point in points]}
    return question, point_tag(points, group.words(len(indices) > 1)), {**fields, **truth}


def _checked(options: dict[str, Any]) -> NlvrOptions:
    try:
        checked = NlvrOptions.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise PlaitError(f"nlvr has no option '{option}'; {_nearest(option, tuple(NlvrOptions.model_fields))}") from None
        raise PlaitError(f"nlvr: {option}: {first['msg']}, not {first['input']!r}") from None
    unknown = [task for task in checked.tasks if task not in TASKS]
    if unknown:
        raise PlaitError(f"nlvr has no task '{unknown[0]}'; {_nearest(unknown[0], TASKS)}")
    if checked.mixed and "truth" in checked.tasks:
        raise PlaitError("nlvr: a picture of mixed boxes has no human sentence: take 'truth' out of the tasks, or `mixed`")
    if not checked.tasks or len(set(checked.tasks)) < len(checked.tasks):
        raise PlaitError(f"nlvr: tasks must be a list without repeats, not {list(checked.tasks)}")
    return checked


def _nearest(name: str, known: tuple[str, ...]) -> str:
    """Return the end of an error message about an unknown name: the closest known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
