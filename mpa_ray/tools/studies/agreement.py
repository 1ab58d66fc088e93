"""How far raters agree beyond chance, on categories without an order.

An item's ratings come as a list with one entry for each rater who rated it. Raters may be missing;
which rater gave which rating does not enter either coefficient.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def krippendorff_alpha(items: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal data: 1 is full agreement, 0 what chance gives, below 0
    systematic disagreement.

    From the coincidence matrix: alpha = 1 - (n - 1) * sum_u(disagreeing pairs of u / (m_u - 1)) /
    (n^2 - sum_c n_c^2), over the items u with m_u >= 2 ratings, n ratings in all, n_c of category c
    (Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011).

    Returns:
        None where it is undefined: no item has two ratings, or all ratings are the same.
    """
    observed = 0.0
    totals: Counter[Hashable] = Counter()
    for ratings in items:
        if len(ratings) < 2:
            continue
        counts = Counter(ratings)
        totals.update(counts)
        observed += (len(ratings) ** 2 - sum(count**2 for count in counts.values())) / (
            len(ratings) - 1
        )
    n = totals.total()
    expected = n**2 - sum(count**2 for count in totals.values())
    return 1.0 - (n - 1) * observed / expected if expected else None


def fleiss_kappa(items: Iterable[Sequence[Hashable]]) -> float | None:
    """Fleiss' kappa (Psychological Bulletin 76, 1971): (P - P_e) / (1 - P_e) for items that all
    have the same number of ratings.

    Returns:
        None where it is undefined: no item, fewer than two ratings an item, or all ratings are the
        same.

    Raises:
        ValueError: items differ in their number of ratings; Krippendorff's alpha is for those.
    """
    rated = [Counter(ratings) for ratings in items]
    sizes = {counts.total() for counts in rated}
    if len(sizes) > 1:
        raise ValueError(
            f"items have {', '.join(map(str, sorted(sizes)))} ratings; Fleiss' kappa needs the"
            " same number for each"
        )
    raters = sizes.pop() if sizes else 0
    if raters < 2:
        return None
    totals: Counter[Hashable] = Counter()
    for counts in rated:
        totals.update(counts)
    ratings = totals.total()
    agreement = sum(count * (count - 1) for counts in rated for count in counts.values()) / (
        ratings * (raters - 1)
    )
    chance = sum((count / ratings) ** 2 for count in totals.values())
    return (agreement - chance) / (1 - chance) if len(totals) > 1 else None
