"""Distances between sets of features, against closed forms and the definition."""

import re
from pathlib import Path

import numpy as np
import pytest

from plait.families.nanodit import distances


def test_frechet_of_two_gaussians_is_its_closed_form():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((200_000, 3)), 2 * random.standard_normal((200_000, 3)) + [1, 0, 0]
    assert distances.frechet(a, b) == pytest.approx(1 + 3 * (2 - 1) ** 2, rel=0.02)  # |mean|^2 + sum (sd_a - sd_b)^2


def test_frechet_of_correlated_features_is_that_of_a_float64_square_root():
    random = np.random.default_rng(1)
    a, b = (random.standard_normal((500, 4)) @ random.standard_normal((4, 4)) for _ in range(2))
    first, second = np.cov(a.T), np.cov(b.T)
    values = np.linalg.eigvals(first @ second)  # of the product itself, not of its symmetric form
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second) - 2 * np.sqrt(values.real.clip(min=0)).sum()
    assert distances.frechet(a, b) == pytest.approx(expected, rel=1e-8)


def test_a_set_is_at_no_distance_from_itself():
    a = np.random.default_rng(2).standard_normal((64, 8))
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-8)


def test_the_kernel_distance_is_its_definition():
    random = np.random.default_rng(3)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (random.standard_normal((5, 3)), random.standard_normal((7, 3)) + 1))

    def k(x, y):
        return np.exp(-((x - y) ** 2).sum() / 200)

    inside = [np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)]
    across = np.mean([k(x, y) for x in a for y in b])
    assert distances.kernel(3 * a, b) == pytest.approx(1000 * (sum(inside) - 2 * across), rel=1e-9)


def test_the_kernel_distance_of_two_samples_of_one_law_averages_to_nothing():
    random = np.random.default_rng(4)
    values = [distances.kernel(random.standard_normal((20, 3)), random.standard_normal((20, 3))) for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 200**0.5


PUBLISHED = re.compile(r"\b(?:FID|CMMD)\b", re.IGNORECASE)


def test_the_names_of_published_scores_stand_only_where_they_are_told_apart():
    root = Path(__file__).parents[3]
    files = [
        *root.glob("src/**/*.py"),
        *root.glob("src/**/*.yaml"),
        *root.glob("configs/**/*"),
        *root.glob("docs/*.md"),
        root / "README.md",
    ]
    texts = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in files if path.is_file()}
    naming = {name: [line for line in text.splitlines() if PUBLISHED.search(line)] for name, text in texts.items()}
    assert {name: lines for name, lines in naming.items() if lines} == {
        "docs/nanodit.md": [
            "`frechet` and `kernel` compare checkpoints through one extractor. They are not FID and CMMD, which are those distances"
        ],
        "src/plait/families/nanodit/distances.py": [
            "last pooling and CLIP ViT-L/14's at 336 px, and so do their names, FID and CMMD. None of those is an extractor here."
        ],
    }
