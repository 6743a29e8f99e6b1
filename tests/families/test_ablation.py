"""A bench in three ways: what each way is shown, its figures, and samples that cannot be compared."""

import pytest

from plait.engine.evaluation import Bench
from plait.errors import PlaitError
from plait.families import registry
from plait.families.ablation import PICTURES, Ablation, ablated, partners


def word(sample):
    return sample.get("word")


WORD = Ablation(word, lambda sample: {**sample, "word": ""}, lambda sample, other: {**sample, "word": other["word"]})


def predict(model, samples, inputs, *, batch, moment):
    """Answers are right where the word shown is the gold one; "?" cannot be used."""
    rows = [{"id": sample["id"], "answer": sample.get("word", ""), "correct": sample.get("word") == sample["gold"]} for sample in samples]
    return [{"id": row["id"], "bad": "torn"} if row["answer"] == "?" else row for row in rows]


def summarise(rows):
    used = [row for row in rows if "bad" not in row]
    return {"accuracy": sum(row["correct"] for row in used) / len(used), "samples": float(len(used))}


BENCH = ablated(Bench(predict, summarise), "word", WORD)


def samples(*words):
    return [{"id": str(number), "gold": shown, **({"word": shown} if shown else {})} for number, shown in enumerate(words)]


def rows_of(*words):
    return BENCH.predict(None, samples(*words), None, batch=2, moment="")


def test_each_sample_is_answered_as_it_is_without_the_input_and_with_anothers():
    rows = rows_of("a", "b", "c")
    assert [(row["answer"], *(row["ways"][way]["answer"] for way in ("off", "shuffled"))) for row in rows] == [
        ("a", "", "b"), ("b", "", "c"), ("c", "", "a"),
    ]  # fmt: skip
    assert BENCH.summarise(rows) == {"accuracy": 1.0, "samples": 3.0, "accuracy/word_off": 0.0, "accuracy/word_shuffled": 0.0}


def test_what_is_drawn_in_one_way_does_not_take_the_place_of_another():
    moments = []

    def draw(model, shown, inputs, *, batch, moment):
        moments.append(moment)
        return predict(model, shown, inputs, batch=batch, moment=moment)

    ablated(Bench(draw, summarise), "word", WORD).predict(None, samples("a", "b"), None, batch=2, moment="step-00000001")
    assert moments == ["step-00000001", "step-00000001-word-off", "step-00000001-word-shuffled"]


def test_a_sample_without_the_input_counts_as_it_is_in_all_ways_and_is_counted():
    rows = rows_of("a", None, "b")
    assert ["ways" in row for row in rows] == [True, False, True]
    figures = BENCH.summarise(rows)
    assert (figures["samples/with_word"], figures["accuracy/word_off"]) == (2.0, pytest.approx(1 / 3))  # it has nothing to answer


def test_a_sample_is_unusable_if_one_of_its_ways_is_or_no_other_differs():
    def picky(model, shown, inputs, *, batch, moment):
        rows = predict(model, shown, inputs, batch=batch, moment=moment)
        return [
            {"id": one["id"], "bad": "misfit"} if (one["gold"], one["word"]) == ("a", "b") else row
            for row, one in zip(rows, shown, strict=True)
        ]

    rows = ablated(Bench(picky, summarise), "word", WORD).predict(None, samples("a", "b"), None, batch=2, moment="")
    assert rows[0]["bad"] == "word shuffled: misfit" and "bad" not in rows[1]
    rows = rows_of("a", "a")
    assert [row["bad"] for row in rows] == ["no other word among those beside it"] * 2


def test_what_cannot_be_used_itself_is_nobodys_partner():
    rows = rows_of("a", "?", "?", "b", "?")
    assert [row.get("bad") for row in rows] == [None, "torn", "torn", None, "torn"]
    assert [rows[place]["ways"]["shuffled"]["answer"] for place in (0, 3)] == ["b", "a"]


def test_an_input_that_no_sample_has_is_an_error():
    with pytest.raises(PlaitError, match="none of 2 samples has the input 'word': there is nothing to leave out"):
        BENCH.summarise(rows_of(None, None))


def others(*words):
    shown = samples(*words)
    return partners(shown, list(map(word, shown)), WORD)


def test_the_partner_is_far_off_in_the_list_and_differs():
    assert others("a", "b", "a", "c") == [3, 3, 1, 1]
    assert others("a", None, "a") == [None] * 3 and others(None, "a") == [None] * 2


def test_the_partner_changes_what_it_is_exchanged_with():
    """As many pictures are taken of the other as there are: [a, b] gives [a] no other picture, and [a] gives [a, b] one."""
    shown = [{"images": list(pictures)} for pictures in ([b"a"], [b"a", b"b"], [b"a"], [b"c"])]
    assert partners(shown, list(map(PICTURES.content, shown)), PICTURES) == [3, 3, 3, 1]
    assert partners(shown[:3], list(map(PICTURES.content, shown[:3])), PICTURES) == [None, 2, None]


def test_pictures_are_taken_out_with_their_marks_and_exchanged_in_number():
    sample = {
        "id": "1", "images": [b"1", b"2"], "frames": [b"f"], "fields": {"a": 1},
        "messages": [{"role": "user", "content": "<image><image>\nwhat?"}, {"role": "assistant", "content": "x"}],
        "annotations": [{"messages": [{"role": "user", "content": "<image> and?"}], "style": "vqa2"}],
    }  # fmt: skip
    without = PICTURES.off(sample)
    assert without == {
        "id": "1", "images": [], "fields": {"a": 1}, "messages": [{"role": "user", "content": "what?"}, sample["messages"][1]],
        "annotations": [{"messages": [{"role": "user", "content": "and?"}], "style": "vqa2"}],
    }  # fmt: skip
    assert PICTURES.exchange(sample, {"images": [b"3"], "frames": [b"g"]}) == {**sample, "images": [b"3", b"3"], "frames": [b"g"]}
    assert PICTURES.content({"images": []}) is None


@pytest.mark.parametrize(("family", "names"), [("theworld", ["image", "world"]), ("molmo", ["image"]), ("nanodit", ["image", "text"])])
def test_families_list_the_inputs_that_can_be_left_out(family, names):
    assert sorted(registry.ablations(family)) == names
