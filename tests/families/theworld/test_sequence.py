"""The fused sequence: where things stand, what attends both ways, what is supervised, what may be cut."""

import pytest

from plait.errors import BadSample, PlaitError
from plait.families.theworld.sequence import Kind, Span, fuse, pad_rows

BOS, PAD = 2, 0
TURN = [Span([BOS]), Span([9, 10]), Span([11, 12], supervised=True)]
PICTURE = [Span([BOS]), Span([9]), Span([7, 7], Kind.IMAGE), Span([8]), Span([7, 7], Kind.IMAGE), Span([11], supervised=True)]


@pytest.mark.parametrize("left", [False, True])
def test_world_block_stands_right_after_bos_of_each_row(left):
    rows = [fuse(TURN, 3, pad_id=PAD), fuse(PICTURE, 2, pad_id=PAD), fuse(TURN, 0, pad_id=PAD)]
    batch = pad_rows(rows, pad_id=PAD, left=left)
    for i, tokens in enumerate([3, 2, 0]):
        kinds = batch["kinds"][i, batch["attention_mask"][i].bool()].tolist()
        block = [Kind.WORLD_START, *[Kind.WORLD] * tokens, Kind.WORLD_END] if tokens else []
        assert kinds[: len(block) + 2] == [Kind.TEXT, *block, Kind.TEXT]
        assert batch["ids"][i][batch["attention_mask"][i].bool()][0] == BOS
        assert sum(kind >= Kind.WORLD for kind in kinds) == len(block)


@pytest.mark.parametrize("left", [False, True])
def test_positions_count_each_rows_own_tokens(left):
    batch = pad_rows([fuse(TURN, 0, pad_id=PAD), fuse(TURN, 4, pad_id=PAD)], pad_id=PAD, left=left)
    positions = [batch["positions"][i][batch["attention_mask"][i].bool()].tolist() for i in (0, 1)]
    assert positions == [list(range(5)), list(range(11))]


def test_token_types_keep_world_and_two_images_three_blocks():
    batch = pad_rows([fuse(PICTURE, 2, pad_id=PAD)], pad_id=PAD)
    assert batch["token_types"][0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0]


def test_labels_are_the_supervised_spans_and_pads_are_ignored():
    batch = pad_rows([fuse(TURN, 1, pad_id=PAD), fuse([*TURN, Span([13])], 0, pad_id=PAD)], pad_id=PAD)
    assert batch["labels"].tolist() == [[-100] * 6 + [11, 12], [-100] * 3 + [11, 12, -100, -100, -100]]


def test_truncation_keeps_the_start_of_the_answer():
    row = fuse(TURN, 0, pad_id=PAD, max_tokens=4)
    assert row.ids.tolist() == [BOS, 9, 10, 11]
    assert row.labels.tolist() == [-100, -100, -100, 11]
    assert row.cut == 1


def test_only_supervised_tokens_count_as_cut():
    turns = [*TURN, Span([13, 14]), Span([15, 16], supervised=True)]
    assert [fuse(turns, 0, pad_id=PAD, max_tokens=most).cut for most in (None, 9, 8, 6, 4)] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("spans", "world", "most", "reason"),
    [
        (TURN, 0, 3, "5 tokens: data.max_tokens 3 would leave no token of the answer"),
        (TURN, 8, 9, "15 tokens: data.max_tokens 9 would cut an image or world block"),
        (PICTURE, 0, 7, "8 tokens: data.max_tokens 7 would leave no token of the answer"),
        (PICTURE, 0, 6, "8 tokens: data.max_tokens 6 would cut an image or world block"),
    ],
)
def test_truncation_refuses_to_cut_a_block_or_the_whole_answer(spans, world, most, reason):
    with pytest.raises(BadSample, match=reason):
        fuse(spans, world, pad_id=PAD, max_tokens=most)


@pytest.mark.parametrize(("pad", "most", "length"), [("longest", None, 8), ("to_128", None, 128), ("to_128", 100, 100), ("to_max", 20, 20)])
def test_padding_lengths(pad, most, length):
    batch = pad_rows([fuse(TURN, 1, pad_id=PAD), fuse(TURN, 0, pad_id=PAD)], pad_id=PAD, pad=pad, max_tokens=most)
    assert batch["ids"].shape == (2, length)
    assert batch["attention_mask"].sum(-1).tolist() == [8, 5]


def test_padding_that_cannot_be_says_what_to_do():
    rows = [fuse(TURN, 1, pad_id=PAD), fuse(TURN, 0, pad_id=PAD)]
    with pytest.raises(PlaitError, match="to_max, but"):
        pad_rows(rows, pad_id=PAD, pad="to_max")
