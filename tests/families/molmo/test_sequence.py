"""The sequence: positions, labels, visibility and padding, against loops that say the rule out loud."""

import pytest
import torch

from plait.errors import BadSample, PlaitError
from plait.families.molmo.packing.sequence import PADDING, SHARED, Annotation, attention_mask, batch_rows, build_row

PREFIX = [0, 900, 902, 901]
ONE = Annotation([11, 12, 13, 0], [0, 0, 1, 1])
TWO = Annotation([21, 22, 0], [0, 1, 1])


def row(*annotations, **limits):
    return build_row(PREFIX, annotations, text_rows=512, **limits)


def test_annotations_restart_their_positions_after_the_image():
    assert row(ONE, TWO).positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6]


def test_labels_are_the_next_token_of_the_same_annotation():
    built = row(ONE, TWO)
    supervised = [(i, int(built.labels[i])) for i in range(len(built)) if built.loss_weights[i] > 0]
    assert supervised == [(5, 13), (6, 0), (8, 22), (9, 0)]


def test_an_answer_without_a_prompt_is_predicted_from_the_image():
    built = row(Annotation([31, 0], [1, 1]))
    assert [(i, int(built.labels[i])) for i in range(len(built)) if built.loss_weights[i] > 0] == [(3, 31), (4, 0)]


def test_shared_images_need_a_prompt_for_each_annotation():
    with pytest.raises(BadSample, match="2 annotations share an image, so each needs a prompt"):
        row(ONE, Annotation([31, 0], [1, 1]))


def test_attention_mask_is_the_rule_spelled_out():
    batch = batch_rows([row(ONE, TWO), row(TWO)], pad_id=0, pad="longest")
    mask = attention_mask(batch["segments"])
    for b, segments in enumerate(batch["segments"].tolist()):
        for i, (doc, own_annotation) in enumerate(segments):
            for j, (other_doc, other_annotation) in enumerate(segments):
                allowed = j <= i and doc == other_doc != PADDING and other_annotation in (SHARED, own_annotation)
                assert bool(mask[b, i, j]) == (allowed or i == j)


def test_packing_puts_all_rows_in_one_without_padding():
    rows = [row(ONE), row(ONE, TWO), row(TWO)]
    batch = batch_rows(rows, pad_id=0, pad="none")
    assert batch["ids"].shape == (1, sum(map(len, rows)))
    assert batch["segments"][0, :, 0].tolist() == [n for n, r in enumerate(rows) for _ in range(len(r))]


@pytest.mark.parametrize(("pad", "length"), [("longest", 11), ("to_128", 128), ("to_max", 300)])
def test_pad_modes_decide_the_length(pad, length):
    batch = batch_rows([row(ONE, TWO), row(TWO)], pad_id=0, pad=pad, max_tokens=300)
    assert batch["ids"].shape == (2, length)
    assert batch["loss_weights"].sum() == 6


def test_pad_to_max_needs_a_maximum():
    with pytest.raises(PlaitError, match=r"data\.pad is to_max, but data\.max_tokens is not set"):
        batch_rows([row(ONE)], pad_id=0, pad="to_max")


def test_left_padding_ends_every_row_at_the_end():
    batch = batch_rows([row(ONE, TWO), row(TWO)], pad_id=0, pad="none", left=True)
    assert batch["ids"].shape[0] == 2
    assert batch["segments"][1, :4, 0].tolist() == [PADDING] * 4
    assert batch["positions"][1, -1] == 6


def test_a_limit_leaves_out_last_annotations_and_counts_their_answers():
    built = row(ONE, TWO, max_tokens=8)
    assert len(built) == 8
    assert built.cut == 2


def test_a_limit_cuts_a_lone_annotation_at_its_end():
    built = row(ONE, max_tokens=7)
    assert (len(built), built.cut) == (7, 1)


@pytest.mark.parametrize(
    ("limit", "annotation", "message"),
    [
        (4, ONE, "the image alone takes 4 tokens"),
        (6, ONE, "8 tokens: data.max_tokens 6 would leave no token of the answer"),
        (7, Annotation([11, 12, 13, 900], [0, 1, 1, 0]), "8 tokens: data.max_tokens 7 would cut an image"),
    ],
)
def test_a_limit_never_cuts_an_image_or_the_whole_answer(limit, annotation, message):
    with pytest.raises(BadSample, match=message):
        row(annotation, max_tokens=limit)


def test_padding_sees_only_itself_and_is_seen_by_none():
    mask = attention_mask(batch_rows([row(TWO)], pad_id=0, pad="to_128")["segments"])[0]
    assert torch.equal(mask[7:], torch.eye(128, dtype=torch.bool)[7:])
