"""Keys decide every random number of a run: their values may never change, or a run would go on as another one."""

import numpy as np
import pytest
import xxhash

from plait.keys import key, stem


def test_keys_have_the_values_that_saved_runs_were_made_with():
    assert key(0, "sample", 1, 2, 3) == 11856548529426401546
    assert key("a", "bc") == 4700273034737271726
    assert key(np.int64(-7)) == key(-7) == xxhash.xxh3_64_intdigest(b"i" + bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"-7")


def test_what_looks_alike_has_different_keys():
    assert len({key("ab", "c"), key("a", "bc"), key("abc"), key("1"), key(1), key(1, ""), key("", 1), key()}) == 8


@pytest.mark.parametrize("rest", [(3,), (0, 255, 256), (1 << 40, "epoch"), ()])
def test_a_key_after_a_stem_is_the_key_of_all_parts(rest):
    assert key(*rest, after=stem(7, "sample", 1)) == key(7, "sample", 1, *rest)
