"""Metrics: cases worked by hand from each benchmark's own description."""

import pytest

from plait.families.molmo.evaluate import RULES
from plait.families.molmo.scoring import benchmark_rules, metrics


@pytest.mark.parametrize(
    ("text", "normal"),
    [("The dont.", "don't"), ("two cats", "2 cats"), ("1,000", "1000"), ("a red-car", "red car"), ("yes!", "yes"), ("3.5 m.", "3.5 m")],
)
def test_vqa_normal_form(text, normal):
    assert metrics.vqa_normalise(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),  # what the published table has and has not: one apostrophe left out, no "I'm", no "she's"
    [("couldntve", "couldntve"), ("couldnt've", "couldn't've"), ("Im", "im"), ("shes", "shes"), ("hes", "he's"), ("lets", "lets"),
     ("yall", "y'all"), ("'ow'sat", "'ow's'at"), ("somebody'd", "somebodyd")],
)  # fmt: skip
def test_vqa_contractions_are_those_of_the_published_table(text, normal):
    assert metrics.vqa_normalise(text) == normal


def test_a_okvqa_counts_people_without_normalising_their_words():
    golds = ["Two cats", "two cats ", "2 cats", "the cats"]
    assert metrics.a_okvqa_score(" two Cats", golds) == pytest.approx(2 / 3)
    assert RULES["a_okvqa"]("two cats", {"id": "x", "fields": {"answers": golds}}) == {"score": pytest.approx(2 / 3)}
    assert RULES["vqa"]("two cats", {"id": "x", "fields": {"answers": golds}}) == {"score": 1.0}


@pytest.mark.parametrize(("people", "score"), [(0, 0.0), (1, 1 / 3), (2, 2 / 3), (3, 1.0), (10, 1.0)])
def test_vqa_score_is_a_third_per_person_up_to_one(people, score):
    assert metrics.vqa_score("Two", ["2"] * people + ["three"] * (10 - people)) == pytest.approx(score)


def test_exact_match_ignores_case_alone():
    assert metrics.exact_match(" Cat ", ["cat"]) == 1.0
    assert metrics.exact_match("cats", ["cat"]) == 0.0


@pytest.mark.parametrize(("a", "b", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("same", "same", 0)])
def test_edit_distance_of_textbook_pairs(a, b, distance):
    assert metrics.edit_distance(a, b) == metrics.edit_distance(b, a) == distance


@pytest.mark.parametrize(("answer", "score"), [("hello", 1.0), ("hallo", 0.8), ("HELLO ", 1.0), ("help", 0.6), ("nothing", 0.0)])
def test_anls_is_cut_at_a_half(answer, score):
    assert metrics.anls(answer, ["hello", "zzzzzzzzzzzz"]) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("104", "100", 1.0),
        ("106", "100", 0.0),
        ("10%", "0.1", 1.0),
        ("1,000", "1000", 1.0),
        ("0", "0", 1.0),
        ("0.01", "0", 0.0),
        ("-95", "-100", 1.0),
        ("Blue", "blue", 1.0),
        ("blue", "red", 0.0),
    ],
)
def test_relaxed_accuracy_allows_five_percent(answer, gold, score):
    assert metrics.relaxed_accuracy(answer, [gold]) == score


OPTIONS = ["a dog", "a cat", "red car", "car"]


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("C", 2),
        ("c", 2),
        ("(B)", 1),
        ("B.", 1),
        ("B: a cat", 1),
        ("the answer is C", 2),
        ("The answer is (C).", 2),
        ("Answer: D", 3),
        ("Not option A but option B, I think", 1),
        ("A cat", 1),
        ("The answer is a cat", 1),
        ("I see a red car", 2),
        ("car", 3),
        ("red", 2),
        ("an elephant", None),
        ("", None),
    ],
)
def test_choose_reads_letters_options_and_beginnings(answer, chosen):
    assert metrics.choose(answer, OPTIONS) == chosen


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [("(B)", 1), ("I think (A), no, (C)", 2), ("B", 1), ("so it must be the third option, red car of course", 2), ("unclear", None)],
)
def test_mmmu_choice_takes_the_last_named(answer, chosen):
    assert benchmark_rules.mmmu_choice(answer, ["green dog", "cat", "red car"]) == chosen


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("So x = 3.5. Thus the answer is 42.", "42", 1.0),
        ("x = 1,234.0", "1234", 1.0),
        ("The result is chlorophyll in plants", "chlorophyll", 1.0),
        ("The answer is 41", "42", 0.0),
        ("Given 42 apples. The answer is 7.", "42", 0.0),
    ],
)
def test_mmmu_open_reads_the_conclusion(answer, gold, score):
    assert benchmark_rules.mmmu_open(answer, [gold]) == score


@pytest.mark.parametrize(
    ("answer", "record", "score"),
    [
        ("The answer is 12.", {"question_type": "free_form", "answer_type": "integer", "precision": None, "answer": "12"}, 1.0),
        ("it is 3.14159", {"question_type": "free_form", "answer_type": "float", "precision": 2, "answer": "3.14"}, 1.0),
        ("it is 3.14", {"question_type": "free_form", "answer_type": "float", "precision": None, "answer": "3.1"}, 1.0),
        ("it is 3.24", {"question_type": "free_form", "answer_type": "float", "precision": None, "answer": "3.1"}, 0.0),
        ("no idea", {"question_type": "free_form", "answer_type": "integer", "precision": None, "answer": "12"}, 0.0),
        ("(B)", {"question_type": "multi_choice", "choices": ["yes", "no"], "answer_type": "text", "answer": "no"}, 1.0),
        ("Yes.", {"question_type": "multi_choice", "choices": ["Yes", "No"], "answer_type": "text", "answer": "Yes"}, 1.0),
    ],
)
def test_mathvista_reads_values(answer, record, score):
    assert benchmark_rules.mathvista(answer, record) == score


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" two  frogs ", "two frogs"),
        ("The frog sits. Answer: a mat\nand more", "a mat\nand more"),
        ("cat\nA long explanation", "cat"),
        ("dog\ncat\n cat ", "cat"),
        ("", ""),
    ],
)
def test_short_answers_are_read_as_the_published_evaluation_reads_them(text, answer):
    assert metrics.short_answer(text) == answer


@pytest.mark.parametrize(
    ("rule", "answer", "fields"),
    [
        ("vqa", "Answer: frog", {"answers": ["frog"] * 3}),
        ("exact_match", "frog\nbecause it is green", {"answers": ["frog"]}),
        ("anls", "frog\nbecause it is green", {"answers": ["frog"]}),
        ("relaxed_accuracy", "Answer: 10%", {"answers": ["0.1"]}),
        ("multiple_choice", "B\nA is wrong", {"options": ["cat", "frog"], "answer_idx": 1}),
    ],
)
def test_rules_score_the_short_answer_alone(rule, answer, fields):
    assert RULES[rule](answer, {"id": "x", "messages": [], "fields": fields}) == {"score": 1.0}


@pytest.mark.parametrize(
    ("answer", "gold", "precision", "recall"),
    [
        ("police kill the gunman", "Police killed the gunman.", 3 / 4, 3 / 4),  # Lin (2004), section 3.1: police, the, gunman
        ("the gunman kill police", "police killed the gunman", 2 / 4, 2 / 4),
        ("the gunman police killed", "police killed the gunman", 2 / 4, 2 / 4),
        ("a b", "a x b y", 1.0, 1 / 2),
        ("a a a", "a b", 1 / 3, 1 / 2),
        ("", "a", 0.0, 0.0),
    ],
)
def test_rouge_l_is_lins(answer, gold, precision, recall):
    figures = metrics.rouge_l(answer, gold)
    expected = 2 * precision * recall / (precision + recall) if precision else 0.0
    assert figures == pytest.approx({"score": expected, "precision": precision, "recall": recall})
