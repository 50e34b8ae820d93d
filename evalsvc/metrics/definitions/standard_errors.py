"""How standard errors are found, by the names that definitions give."""

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
        "group, and G groups; where items are independent, every item is a group. With all w equal to 1 it is the "
        "standard error of a mean. Of items that are all 0, or all 1, it is that of a share. Source: W. G. Cochran, "
        "Sampling Techniques, 3rd edition, 1977, sections 6.4 and 9A.1"
    ),
    SHARE: (
        "√(p (1 − p) / (n − 1)) of a share p; where all n items are alike, √(q (1 − q) / (n + 4)) with q = (hits + "
        "2) / (n + 4), since the next item may differ. Source: A. Agresti, B. A. Coull, The American Statistician "
        "52, 1998"
    ),
    PERPLEXITY: "the perplexity times the standard error of the loss that it is e to (delta method)",
    IMAGE_SHARES: (
        "standard deviation / √n of what each sampled image adds to the value (jackknife), the real images as "
        "given. Of a distance the jackknife counts the variance of pairs of images twice, and the shares are drawn "
        "together so that it counts once (a Fréchet distance's from 4 images per feature on). The interval of a "
        "distance is too short where few images make it: of 95 % it holds .81 to .9 with skewed features below 8 "
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
        "standard deviation / √n of what each pair adds to the value to first order, for itself and as what other "
        "pairs are told apart from (infinitesimal jackknife), the candidates as given. Source: B. Efron, The "
        "Jackknife, the Bootstrap and Other Resampling Plans, 1982, chapter 6"
    ),
}
"""Explanations by name."""
