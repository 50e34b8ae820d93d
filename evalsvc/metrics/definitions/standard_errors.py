"""Methods of the standard errors, by the names that definitions use."""

from __future__ import annotations

from collections.abc import Mapping

RATIO = "linearised ratio"
SHARE = "share"
PERPLEXITY = "perplexity"
IMAGE_SHARES = "shares of images"
DIFFERENCE = "paired difference"
DOCUMENT_SHARES = "shares of documents"
PAIR_PARTS = "parts of pairs"

ERRORS: Mapping[str, str] = {
    RATIO: (
        "of R = Σ x / Σ w over items: √(G / (G − 1) · Σ u²) / Σ w, with u the sum of x − R · w over the items of a "
        "group, and G groups; where items are independent, every item is a group. With all w equal to 1 this is the "
        "standard error of a mean. Items that are all 0, or all 1, have the error of a share. Source: W. G. Cochran, "
        "Sampling Techniques, 3rd edition, 1977, sections 6.4 and 9A.1"
    ),
    SHARE: (
        "√(p (1 − p) / (n − 1)) of a share p; where all n items are alike, √(q (1 − q) / (n + 4)) with q = (hits + "
        "2) / (n + 4), since the next item may differ. Source: A. Agresti, B. A. Coull, The American Statistician "
        "52, 1998"
    ),
    PERPLEXITY: "the perplexity times the standard error of the loss, ln of the perplexity (delta method)",
    IMAGE_SHARES: (
        "standard deviation / √n of what each sampled image adds to the value (jackknife), with the real images "
        "fixed. For a distance the jackknife counts the variance of pairs of images twice; the shares are moved "
        "together so that it counts once (for a Fréchet distance from 4 images per feature on). The interval of a "
        "distance is too short with few images: at 95 % it covers .81 to .9 with skewed features below 8 "
        "images per feature and .63 to .86 with heavy tails (FID), and .82 to .93 below 1,000 images that fall "
        "into classes (KID, CMMD). Source: L. A. Jaeckel, Bell Laboratories MM "
        "72-1215-11, 1972; B. Efron, "
        "C. Stein, Annals of Statistics 9, 1981; for kernels W. Hoeffding, Annals of Mathematical Statistics 19, "
        "1948, equation 5.13"
    ),
    DIFFERENCE: "the linearised ratio's, of the items' differences, checkpoint less base",
    DOCUMENT_SHARES: (
        "√(Σ a²) over documents, with a what each document adds to the value to first order (infinitesimal "
        "jackknife). Source: B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, 1993, section 21.3"
    ),
    PAIR_PARTS: (
        "standard deviation / √n of what each pair adds to the value to first order, as a pair and as a candidate of "
        "other pairs (infinitesimal jackknife), with the candidates fixed. Source: B. Efron, The "
        "Jackknife, the Bootstrap and Other Resampling Plans, 1982, chapter 6"
    ),
}
"""Descriptions of the methods, by name."""
