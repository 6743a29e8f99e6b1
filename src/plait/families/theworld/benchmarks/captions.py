"""Score captions against several references: BLEU-1 to 4 (Papineni et al. 2002), ROUGE-L (Lin 2004) and CIDEr (Vedantam et al. 2015).

BLEU is sacrebleu's; ROUGE-L and CIDEr (its variant D) are those of pycocoevalcap, as papers report them for COCO. Words are cut as COCO's
evaluation cuts them, without its Java program: small letters, no punctuation, "n't" and "'s" apart. Both packages are optional.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plait.errors import PlaitError

ORDERS = (1, 2, 3, 4)
"""Lengths of the word groups that BLEU counts."""
_NOT = re.compile(r"n['’]t\b")
_SUFFIX = re.compile(r"['’](s|re|ve|ll|d|m)\b")
_WORD = re.compile(r"n't|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-.,/&]\w+)*")


def words(text: str) -> str:
    """Return the words of a caption, in small letters and parted by spaces, as scores count them."""
    return " ".join(_WORD.findall(_SUFFIX.sub(r" '\1", _NOT.sub(" n't", text.lower()))))


def check_installed() -> None:
    """Raise PlaitError, with the command that installs them, where the optional packages are missing."""
    _libraries()


def _libraries() -> tuple[Any, Any, Any]:
    """Return the scorers (BLEU, Rouge, Cider) of the optional packages."""
    try:
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise PlaitError(
            f"captions are scored by the packages sacrebleu and pycocoevalcap ({error}): pip install 'plait[captions]'"
        ) from error
    return BLEU, Rouge, Cider


def counted(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Return what each caption contributes to the scores of all: {"cider", "rouge_l", "bleu"}, from which `scores` computes them.

    `references`: one or more for each caption. `cider` weighs words by how many of the pictures' references have them, so it depends on
    all of these captions' references. `bleu`: counts of shared and of all word groups, and lengths.
    """
    bleu_of, rouge_of, cider_of = _libraries()
    told = [words(caption) for caption in captions]
    known = [[words(reference) for reference in listed] for listed in references]
    if not told:
        return []
    by_number = {number: [text] for number, text in enumerate(told)}
    _, ciders = cider_of().compute_score(dict(enumerate(known)), by_number)
    rouge, bleu = rouge_of(), bleu_of(tokenize="none", force=True, smooth_method="none")
    rows = []
    for number, caption in enumerate(told):
        counts = bleu.corpus_score([caption], [[reference] for reference in known[number]])
        shared = {"shared": counts.counts, "all": counts.totals, "length": counts.sys_len, "reference_length": counts.ref_len}
        rouge_l = float(rouge.calc_score([caption], known[number])) if caption else 0.0
        rows.append({"cider": float(ciders[number]), "rouge_l": rouge_l, "bleu": shared})
    return rows


def scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the scores of captions from what each contributes (`counted`): `cider`, `bleu_1` to `bleu_4` and `rouge_l`.

    BLEU and ROUGE-L are from 0 to 1, CIDEr from 0 to 10.
    """
    if not rows:
        return dict.fromkeys(("cider", *(f"bleu_{order}" for order in ORDERS), "rouge_l"), float("nan"))
    bleu, _, _ = _libraries()
    shared, every = (np.array([row["bleu"][name] for row in rows]).sum(0).tolist() for name in ("shared", "all"))
    length, reference_length = (sum(row["bleu"][name] for row in rows) for name in ("length", "reference_length"))
    figures = {"cider": sum(row["cider"] for row in rows) / len(rows)}
    for order in ORDERS:
        total = bleu.compute_bleu(shared[:order], every[:order], length, reference_length, smooth_method="none", max_ngram_order=order)
        figures[f"bleu_{order}"] = total.score / 100
    return figures | {"rouge_l": sum(row["rouge_l"] for row in rows) / len(rows)}
