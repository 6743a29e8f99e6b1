"""Cornell NLVR shards with questions made from their structured boxes, each answer exact; boxes.py says what the pictures are.

Tasks: `truth`, the human sentence of a record and its label; `statement`, one made from the boxes of this record and another; `caption`,
all that is in them; `count` and `point`. Sample i is a function of (the records, task, number of the question): a held-out set stays the
same. What a sample says of its items is what answers.py judges.
"""

import difflib
from typing import Any, Literal

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
TASKS = tuple(STYLES)
_ONCE = ("truth", "caption")  # what a picture has one of
_MOST_POINTS = 5  # in one answer; more only where every group is larger
_DRAWS = 50  # of another picture; that half of them are of another sort leaves 10^-15
_REMEMBERED = 10_000  # scenes, of about 5 KB
_REVISION = 2  # of the questions: another one is another fingerprint


class NlvrOptions(BaseModel):
    """What is asked about each picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[str, ...] = ("truth", "count", "point")
    questions: int = Field(1, ge=1, le=100)  # per picture and task, but for the sentence and the caption, of which there is one
    reasons: bool = False  # a statement is answered by the number that it is about, and then whether it holds
    wordings: Literal["plain", "many"] = "many"  # of statements: always in the same words, or as people vary them
    rounds: int = Field(1, ge=1, le=10_000)  # how often each picture comes, each time with other questions
    mixed: bool = False  # each of a picture's boxes, mirrored or not, is that of another picture of its sort
    together: bool = False  # all that is asked about a picture is one sample, of `annotations`, without what comes twice


class Nlvr:
    """The source. `reader` gives the records; `options` are those of NlvrOptions."""

    def __init__(self, reader: Any, name: str, options: dict[str, Any], limit: int | None = None) -> None:
        found = _checked(options)
        self.reader, self.name = reader, name
        self.kinds = [(task, n) for task in found.tasks for n in range(1 if task in _ONCE else found.questions)]
        self.plain = found.wordings == "plain"
        self.reasons, self.mixed, self.together = found.reasons, found.mixed, found.together
        self._scenes: dict[int, tuple[Record, bool]] = {}
        length = len(reader) * found.rounds * (1 if found.together else len(self.kinds))
        self._length = length if limit is None else min(limit, length)
        said = [_REVISION, reader.digest, self._length, found.model_dump_json()]
        self.fingerprint = xxhash.xxh3_64(repr(said).encode()).hexdigest()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict[str, Any]:
        if self.together:
            turn, number = divmod(i, len(self.reader))
            record = self._record(number, turn)
            asked = [self._sample(record, turn, *kind) for kind in self.kinds]
            each = {one["fields"]["question"]: {"messages": one["messages"], "style": one["fields"]["style"]} for one in asked}
            return {**asked[0], "id": record.id, "annotations": list(each.values())}
        first, kind = divmod(i, len(self.kinds))
        turn, number = divmod(first, len(self.reader))
        return self._sample(self._record(number, turn), turn, *self.kinds[kind])

    def _record(self, number: int, turn: int) -> Record:
        """What is asked about in this round."""
        record = self.reader.read(number)
        if not self.mixed:
            return record
        numbers, mirrored = self._parts(record.id, self._scene(number)[1], keys.rng("nlvr", record.id, "mixed", turn))
        return mixed(record.id, [self.reader.read(n) for n in numbers], mirrored)

    def _parts(self, name: str, towers: bool, rng: np.random.Generator) -> tuple[list[int], list[bool]]:
        """Which records give a mixed picture its boxes, and which of these are mirrored."""
        return [self._of_sort(name, towers, rng) for _ in BOXES], [bool(side) for side in rng.integers(2, size=len(BOXES))]

    def _of_sort(self, name: str, towers: bool, rng: np.random.Generator) -> int:
        """The number of any record whose picture shows a tower in each box, or of any that does not."""
        for _ in range(_DRAWS):
            number = int(rng.integers(len(self.reader)))
            if self._scene(number)[1] == towers:
                return number
        raise BadSample(f"{name}: of {_DRAWS} other pictures none is of its sort, so there is nothing to state of it, nor to mix it with")

    def _scene(self, number: int) -> tuple[Record, bool]:
        """A record without its picture, and whether it shows a tower in each box. Many are looked at for each that is asked about."""
        if number not in self._scenes:
            record = self.reader.read(number)
            scene = Record(record.id, {"boxes": record.fields.get("boxes")}, [], [])
            if len(self._scenes) == _REMEMBERED:
                self._scenes.clear()
            self._scenes[number] = scene, all_towers(items(scene))
        return self._scenes[number]

    def _sample(self, record: Record, turn: int, task: str, number: int) -> dict[str, Any]:
        rng = keys.rng("nlvr", record.id, task, number, *([turn] if turn else []))
        question, answer, fields = self._ask(task, record, rng)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        told = {"task": task, "style": STYLES[task], "question": question, "answer": answer, **fields}
        return {"id": f"{record.id}/{task}-{number}", "images": record.images, "messages": messages, "fields": told}

    def _ask(self, task: str, record: Record, rng: np.random.Generator) -> tuple[str, str, dict[str, Any]]:
        """Question, answer, and the truth of it."""
        if task == "truth":
            return _truth(record)
        found = _items(record)
        if task == "caption":
            return "Describe the picture.", describe(found), {}
        if task == "statement":
            return self._statement(record, found, rng)
        told = {"size": list(SIZE), "objects": [one._asdict() for one in found]}
        return _count(found, rng, told) if task == "count" else _point(found, rng, told)

    def _statement(self, record: Record, found: list[Item], rng: np.random.Generator) -> tuple[str, str, dict[str, Any]]:
        """About this picture and another of its sort."""
        towers = all_towers(found)
        for _ in range(_DRAWS):
            other = self._other(record.id, towers, rng)
            if said := statement(found, other, Draw(rng, self.plain)):
                sentence, number, holds = said
                verdict = str(holds).lower()
                return f"True or false? {sentence}", f"{number_word(number)}: {verdict}" if self.reasons else verdict, {"truth": verdict}
        raise BadSample(f"{record.id}: none of {_DRAWS} other pictures of its sort differs from it, so there is nothing to state")

    def _other(self, name: str, towers: bool, rng: np.random.Generator) -> list[Item]:
        """What another picture shows that this source might give."""
        if not self.mixed:
            return items(self._scene(self._of_sort(name, towers, rng))[0])
        numbers, mirrored = self._parts(name, towers, rng)
        return items(Record(name, boxes_of(name, [self._scene(n)[0] for n in numbers], mirrored), [], []))


def _items(record: Record) -> list[Item]:
    found = items(record)
    if not found:
        raise BadSample(f"{record.id} has three empty boxes: there is nothing to ask about")
    return found


def _truth(record: Record) -> tuple[str, str, dict[str, Any]]:
    sentence, label = record.fields.get("sentence"), str(record.fields.get("label")).lower()
    if not sentence or label not in ("true", "false"):
        raise BadSample(f"{record.id} has no `sentence` with a `label` true or false, so it is no NLVR record")
    return f"True or false? {sentence}", label, {"truth": label}


def _count(found: list[Item], rng: np.random.Generator, told: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    group = pick(rng, pick(rng, GROUPS))
    count = sum(map(group.holds, found))
    return f"How many {group.words(True)} are there?", number_word(count), {**told, "truth": count, "count": count}


def _point(found: list[Item], rng: np.random.Generator, told: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """All items of a group that has some, few where that is possible."""
    some = [(group, inside) for kind in GROUPS for group in kind if (inside := [i for i, one in enumerate(found) if group.holds(one)])]
    few = [row for row in some if len(row[1]) <= _MOST_POINTS] or some
    group, inside = pick(rng, few)
    text = f"Point to every {group.words(False)}." if len(inside) > 1 else f"Point to the {group.words(False)}."
    places = [(100 * found[i].x / SIZE[0], 100 * found[i].y / SIZE[1]) for i in inside]
    return text, point_tag(places, group.words(len(inside) > 1)), {**told, "truth": inside, "points": [list(at) for at in places]}


def _checked(options: dict[str, Any]) -> NlvrOptions:
    try:
        found = NlvrOptions.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise PlaitError(f"nlvr has no option '{where}'; {_nearest(where, tuple(NlvrOptions.model_fields))}") from None
        raise PlaitError(f"nlvr: {where}: {first['msg']}, not {first['input']!r}") from None
    strange = [task for task in found.tasks if task not in TASKS]
    if strange:
        raise PlaitError(f"nlvr has no task '{strange[0]}'; {_nearest(strange[0], TASKS)}")
    if found.mixed and "truth" in found.tasks:
        raise PlaitError("nlvr: a picture of mixed boxes has no human sentence: take 'truth' out of the tasks, or `mixed`")
    if not found.tasks or len(set(found.tasks)) < len(found.tasks):
        raise PlaitError(f"nlvr: tasks must be a list without repeats, not {list(found.tasks)}")
    return found


def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
