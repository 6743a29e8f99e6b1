"""Compute distances between two sets of image features, in float64: the Fréchet distance and a kernel distance.

The features come from an encoder elsewhere. Both are small where generated images resemble real ones as a set. The Fréchet distance needs
many more samples than there are features to be stable (Heusel et al. 2017, arXiv:1706.08500); the kernel distance is unbiased at any number
(Jayasumana et al. 2024, arXiv:2401.09603). The published scores of these papers hold for their own features alone, Inception-v3's
last pooling and CLIP ViT-L/14's at 336 px, and so do their names, FID and CMMD. None of those is an extractor here.
"""

import numpy as np

_WIDTH = 10.0  # of the Gaussian kernel on unit vectors, and the factor on the result: as published by Jayasumana et al.
_FACTOR = 1000.0


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance between Gaussians fitted to two sets of features (n, d).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) with covariances A and B; tr (A B)^(1/2) is the sum of the singular values of
    A^(1/2) B^(1/2).
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    roots, traces = [], 0.0
    for features in (a, b):
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(features, rowvar=False)))
        values = values.clip(min=0)
        traces += float(values.sum())
        roots.append((vectors * np.sqrt(values)) @ vectors.T)
    cross = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + traces - 2 * cross)


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    """Return the kernel distance between two sets of features (n, d).

    1000 x the unbiased squared maximum mean discrepancy of the normalised features under exp(-|x - y|^2 / (2 10^2)); may be just below 0.
    """
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (a, b))

    def mean_kernel(x: np.ndarray, y: np.ndarray, same: bool) -> float:
        square = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        values = np.exp(-square / (2 * _WIDTH**2))
        return float((values.sum() - same * len(x)) / (len(x) * (len(y) - same)))

    return _FACTOR * (mean_kernel(a, a, True) + mean_kernel(b, b, True) - 2 * mean_kernel(a, b, False))
