"""Statistics of rankings: how well a list of scores ranks children whose true values are known (5.2, Table 1).

Scores and truths are higher for better children. The uncertainty is over which children were drawn: intervals are
percentiles over seeded resamples of the children. A child may be in a resample twice. This counts as a tie in both
lists and does not affect Kendall's tau-b. Resamples in which all children are equal in one list are skipped. With
fewer than about ten children these intervals are too narrow.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import stdev

import numpy as np
from scipy.stats import kendalltau, rankdata, spearmanr

from ..space.search_space import Architecture, format_architecture
from .settings import MIN_CHILDREN


_NUM_RESAMPLES = 2000
_CONFIDENCE = 0.95

Interval = tuple[float, float]
Scores = Mapping[Architecture, float]


def check_scores(**lists: Scores) -> None:
    """Checks that lists of scores can be compared.

    Raises:
        ValueError: a list has fewer than five children, a value that is not finite or the same value for all, or the
            lists have different children.
    """
    names = list(lists)
    everyone = set().union(*lists.values())
    for name, scores in lists.items():
        if len(scores) < MIN_CHILDREN:
            raise ValueError(f"{name} has {len(scores)} children; a ranking needs at least {MIN_CHILDREN}")
        if missing := everyone - scores.keys():
            other = next(found for found in names if not missing.isdisjoint(lists[found]))
            raise ValueError(
                f"{len(missing)} of {len(everyone)} children are in {other} but not in {name}, the first of them "
                f"{format_architecture(min(missing))}; give both lists the same children"
            )
        if bad := [child for child, value in scores.items() if not math.isfinite(value)]:
            raise ValueError(
                f"{name} of {len(bad)} of {len(scores)} children is not finite, the first of them "
                f"{format_architecture(bad[0])}; remove these children from both lists, or retrain what diverged with "
                f"a lower learning rate"
            )
        if len(set(scores.values())) == 1:
            raise ValueError(
                f"{name} is {next(iter(scores.values()))} for all {len(scores)} children, so there is no ranking"
            )


@dataclass(frozen=True)
class TopK:
    """The quality of the k children that a score ranks first. Ties in the score count against it.

    Attributes:
        k: number of children.
        overlap: share of these children that are among the k truly best.
        regret: truth of the best child of all minus that of the best of these, at least 0.
        random_regret: expected regret of k children drawn at random.
    """

    k: int
    overlap: float
    regret: float
    random_regret: float


@dataclass(frozen=True)
class RankingQuality:
    """How well scores rank children.

    Attributes:
        num_children: number of ranked children.
        kendall_tau: Kendall's tau-b.
        kendall_interval: interval of Kendall's tau-b.
        p_value: p-value of the hypothesis that scores and truth are not associated.
        spearman: Spearman's rank correlation.
        spearman_interval: interval of Spearman's rank correlation.
        tied_scores: number of pairs of children with the same score, out of `num_pairs`.
        tied_truths: number of pairs of children with the same truth, out of `num_pairs`.
        top: overlap and regret of the first k children for each k. k = 1 is the child that the score ranks first.
    """

    num_children: int
    kendall_tau: float
    kendall_interval: Interval
    p_value: float
    spearman: float
    spearman_interval: Interval
    tied_scores: int
    tied_truths: int
    top: tuple[TopK, ...] = field(repr=False)

    @property
    def num_pairs(self) -> int:
        """Number of pairs of children."""
        return self.num_children * (self.num_children - 1) // 2

    def __str__(self) -> str:
        low, high = self.kendall_interval
        ties = f", {self.tied_scores:,} ties in the score and {self.tied_truths:,} in the truth of {self.num_pairs:,}"
        return (
            f"tau {self.kendall_tau:.3f} ({low:.3f} to {high:.3f}), Spearman {self.spearman:.3f}, "
            f"{self.num_children} children{ties}; regret of the first {self.top[0].regret:.4f}, of a random child "
            f"{self.top[0].random_regret:.4f}"
        )


def evaluate_ranking(
    truth: Scores,
    scores: Scores,
    top_k: Sequence[int] = (1, 5, 10),
    num_resamples: int = _NUM_RESAMPLES,
    confidence: float = _CONFIDENCE,
    seed: int = 0,
) -> RankingQuality:
    """Returns how well `scores` rank children, with intervals from a bootstrap over the children (Table 1).

    Args:
        truth: the true value of each child, higher is better.
        scores: the score that ranks each child, such as the negative validation loss with shared weights.
        top_k: sizes k of the top sets. Sizes above the number of children are skipped.
        num_resamples: number of bootstrap resamples.
        confidence: confidence level of the intervals, between 0 and 1.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the lists fail `check_scores`.
    """
    check_scores(truth=truth, score=scores)
    children = sorted(truth)
    true, score = (np.array([values[child] for child in children], dtype=float) for values in (truth, scores))
    tau, spearman = kendalltau(score, true), spearmanr(score, true)
    counts = _resamples(len(children), num_resamples, seed)
    return RankingQuality(
        num_children=len(children),
        kendall_tau=float(tau.statistic),
        kendall_interval=_interval(_resampled_taus(true, score, counts), confidence),
        p_value=float(tau.pvalue),
        spearman=float(spearman.statistic),
        spearman_interval=_interval(_resampled_spearman(true, score, counts), confidence),
        tied_scores=_tied_pairs(score),
        tied_truths=_tied_pairs(true),
        top=tuple(_top(true, score, k) for k in sorted({1, *top_k}) if k <= len(children)),
    )


def _tied_pairs(values: np.ndarray) -> int:
    counts = np.unique(values, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def first_ranked(truth: Scores, scores: Scores) -> Architecture:
    """Returns the child with the highest score; among several, the worst, as in `evaluate_ranking`."""
    return max(scores, key=lambda child: (scores[child], -truth[child]))


def _top(true: np.ndarray, score: np.ndarray, k: int) -> TopK:
    # Among children with the same score, the worst comes first.
    chosen = np.lexsort((true, -score))[:k]
    ordered = np.sort(true)
    best = float(ordered[-1])
    # The best of k children drawn without replacement has rank i, counted from 0, with probability
    # C(i, k - 1) / C(n, k).
    num_draws = math.comb(len(true), k)
    expected = math.fsum(math.comb(rank, k - 1) / num_draws * value for rank, value in enumerate(ordered.tolist()))
    overlap = float((true[chosen] >= ordered[-k]).mean())
    return TopK(k, overlap, best - float(true[chosen].max()), max(0.0, best - expected))


# ---- Bootstrap over children ----


def _resamples(num_children: int, num_resamples: int, seed: int) -> np.ndarray:
    """Returns how often each child is in each resample, (resamples, children)."""
    rng = np.random.default_rng(seed)
    shares = np.full(num_children, 1 / num_children)
    return rng.multinomial(num_children, shares, size=num_resamples).astype(np.float32)


def _resampled_taus(true: np.ndarray, score: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns tau-b for each resample from one matrix product, NaN where it is undefined."""
    first, second = (np.sign(values[:, None] - values[None, :]).astype(np.float32) for values in (true, score))

    def pairs(matrix: np.ndarray) -> np.ndarray:
        return ((counts @ matrix) * counts).sum(axis=1, dtype=np.float64)

    with np.errstate(invalid="ignore"):
        return pairs(first * second) / np.sqrt(pairs(np.abs(first)) * pairs(np.abs(second)))


def _resampled_spearman(true: np.ndarray, score: np.ndarray, counts: np.ndarray) -> np.ndarray:
    indices = np.repeat(np.tile(np.arange(len(true)), len(counts)), counts.astype(int).ravel()).reshape(counts.shape)
    first, second = (rankdata(values[indices], axis=1) for values in (true, score))
    first, second = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (first, second))
    with np.errstate(invalid="ignore"):
        return (first * second).sum(axis=1) / np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))


def _interval(values: np.ndarray, confidence: float) -> Interval:
    known = values[np.isfinite(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


# ---- Several super-nets of a method, and two methods ----


@dataclass(frozen=True)
class MethodTau:
    """Kendall's tau of a method over its super-nets, one for each seed.

    Attributes:
        taus: tau of each super-net, in the given order.
        interval: interval of their mean, by bootstrap over children and Student's t over super-nets, or over children
            alone if there is only one super-net.
    """

    taus: tuple[float, ...]
    interval: Interval

    @property
    def mean(self) -> float:
        """The mean of `taus`."""
        return math.fsum(self.taus) / len(self.taus)

    @property
    def spread(self) -> float | None:
        """The standard deviation of `taus`, `None` if there is only one."""
        return stdev(self.taus) if len(self.taus) > 1 else None

    def __str__(self) -> str:
        low, high = self.interval
        spread = (
            f", sd {self.spread:.3f} over {len(self.taus)} super-nets" if len(self.taus) > 1 else ", one super-net"
        )
        return f"{self.mean:.3f} ({low:.3f} to {high:.3f}{spread})"


def method_tau(
    truth: Scores,
    scores: Sequence[Scores],
    num_resamples: int = _NUM_RESAMPLES,
    confidence: float = _CONFIDENCE,
    seed: int = 0,
) -> MethodTau:
    """Returns Kendall's tau of a method from the scores of its super-nets, which differ in their seeds.

    Args:
        truth: the true value of each child, higher is better.
        scores: the scores of each super-net.
        num_resamples: number of bootstrap resamples.
        confidence: confidence level of the interval.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the scores fail `check_scores`, or there is no super-net.
    """
    taus, resampled = _taus(truth, scores, num_resamples, seed)
    means = resampled.mean(axis=0) + _errors_of_means([taus], num_resamples, seed)
    # Two super-nets have so wide a t-distribution that it leaves the range of tau.
    return MethodTau(tuple(taus.tolist()), _interval(means.clip(-1, 1), confidence))


def tau_among_equals(truth: Scores, scores: Scores, size: Callable[[Architecture], float]) -> float:
    """Returns Kendall's tau among children of equal size, which size itself cannot rank: the mean weighted by pairs.

    Groups of equal size in which all children have the same truth are skipped. Where all have the same score, tau
    counts as 0, so that all scores are judged on the same groups. NaN if scores differ in none of these groups.

    Args:
        truth: the true value of each child, higher is better.
        scores: a score for each of them.
        size: what equal children have in common, such as the number of parameters.
    """
    groups: dict[float, list[Architecture]] = {}
    for child in truth:
        groups.setdefault(size(child), []).append(child)
    taus, pairs = [], []
    for own in groups.values():
        true, score = [truth[child] for child in own], [scores[child] for child in own]
        if len(set(true)) > 1:
            taus.append(float(kendalltau(true, score).statistic) if len(set(score)) > 1 else math.nan)
            pairs.append(len(own) * (len(own) - 1))
    if all(map(math.isnan, taus)):
        return math.nan
    return float(np.average(np.nan_to_num(taus), weights=pairs))


@dataclass(frozen=True)
class PairedComparison:
    """Difference in Kendall's tau, or in its mean over several super-nets, between two sides on the same children.

    Attributes:
        difference: tau of the first side minus tau of the second.
        interval: interval of the difference.
        share_not_above: share of resamples in which the first is not above the second: small if the first is better,
            close to 1 if it is worse.
        num_first: number of super-nets of the first side, one for each seed.
        num_second: number of super-nets of the second side.
    """

    difference: float
    interval: Interval
    share_not_above: float
    num_first: int
    num_second: int

    def __str__(self) -> str:
        low, high = self.interval
        share = f"not above in {self.share_not_above:.1%} of resamples"
        return f"{self.difference:+.3f} ({low:+.3f} to {high:+.3f}), {share}"


def compare_rankings(
    truth: Scores,
    first: Sequence[Scores],
    second: Sequence[Scores],
    num_resamples: int = _NUM_RESAMPLES,
    confidence: float = _CONFIDENCE,
    seed: int = 0,
) -> PairedComparison:
    """Returns the difference in tau between two super-nets, or two methods, on the same children.

    Every resample draws one set of children for both sides, as they share the truth, and an error of the difference
    that comes from the seeds of the super-nets. With one super-net per side, the interval does not cover the
    effect of another seed.

    Args:
        truth: the true value of each child, higher is better.
        first: scores of one side, for each super-net.
        second: scores of the other side, for each super-net.
        num_resamples: number of bootstrap resamples.
        confidence: confidence level of the interval.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the scores fail `check_scores`, or a side is empty.
    """
    if not first or not second:
        raise ValueError("a side of the comparison has no super-net; give at least one for each side")
    taus, resampled = _taus(truth, [*first, *second], num_resamples, seed)
    sides = (slice(None, len(first)), slice(len(first), None))
    differences = np.subtract(*(resampled[side].mean(axis=0) for side in sides))
    differences += _errors_of_means([taus[side] for side in sides], num_resamples, seed)
    differences = differences[np.isfinite(differences)].clip(-2, 2)
    return PairedComparison(
        difference=float(taus[sides[0]].mean() - taus[sides[1]].mean()),
        interval=_interval(differences, confidence),
        share_not_above=float((differences <= 0).mean()) if len(differences) else math.nan,
        num_first=len(first),
        num_second=len(second),
    )


def _taus(truth: Scores, scores: Sequence[Scores], num_resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tau for each list of scores, and for each list in the same resamples of children, (lists, resamples)."""
    if not scores:
        raise ValueError("there is no super-net; give the scores of at least one")
    check_scores(truth=truth, **{f"score {number}": one for number, one in enumerate(scores, 1)})
    children = sorted(truth)
    true, *lists = (np.array([one[child] for child in children], dtype=float) for one in (truth, *scores))
    counts = _resamples(len(children), num_resamples, seed)
    taus = np.array([kendalltau(score, true).statistic for score in lists])
    return taus, np.stack([_resampled_taus(true, score, counts) for score in lists])


def _errors_of_means(sides: Sequence[np.ndarray], size: int, seed: int) -> np.ndarray:
    """Returns errors of a mean over super-nets, or of the difference of two such means, drawn from Student's t.

    They have the standard error of the mean or difference, and Welch's degrees of freedom. Super-nets drawn with
    replacement would vary too little: with five, a 95% interval would hold the mean in 86% of all cases.

    Args:
        sides: tau of each super-net, for one side or two. A side with one super-net adds no error.
        size: the number of errors to draw.
        seed: seed of the draws.
    """
    several = [taus for taus in sides if len(taus) > 1]
    variances = [taus.var(ddof=1) / len(taus) for taus in several]
    if not sum(variances):
        return np.zeros(size)
    squares = [variance**2 / (len(taus) - 1) for variance, taus in zip(variances, several, strict=True)]
    freedom = sum(variances) ** 2 / sum(squares)
    return math.sqrt(sum(variances)) * np.random.default_rng((seed, 1)).standard_t(freedom, size)


# ---- Noise of the truth ----


@dataclass(frozen=True)
class TruthNoise:
    """The seed noise of a truth, and the ceiling that it puts on a ranking.

    Attributes:
        num_repeated: number of children with two or more values.
        within_sd: standard deviation of one child over seeds.
        between_sd: standard deviation between children, without seed noise.
        intraclass_correlation: share of the variance of a single measurement that is between children, ICC(1).
        tau_between_seeds: mean Kendall's tau between single measurements of the same children.
        ceiling: expected tau between error-free scores and this truth; see `truth_noise`.
        ceiling_interval: interval of that tau for one such set of children.
        ceiling_of_agreement: the ceiling by the second method.
    """

    num_repeated: int
    within_sd: float
    between_sd: float
    intraclass_correlation: float
    tau_between_seeds: float
    ceiling: float
    ceiling_interval: Interval
    ceiling_of_agreement: float

    def __str__(self) -> str:
        low, high = self.ceiling_interval
        return (
            f"seed noise from {self.num_repeated} children: sd {self.within_sd:.4f} of a child over seeds, "
            f"{self.between_sd:.4f} between children, intraclass correlation {self.intraclass_correlation:.3f}; "
            f"perfect scores would reach tau {self.ceiling:.3f} ({low:.3f} to {high:.3f}; by the agreement of seeds "
            f"{self.ceiling_of_agreement:.3f})"
        )


def truth_noise(
    repeats: Mapping[Architecture, Sequence[float]],
    num_simulations: int = 1000,
    confidence: float = _CONFIDENCE,
    seed: int = 0,
) -> TruthNoise:
    """Returns the seed noise of a truth, from the children measured more than once, and the ceiling it puts on tau.

    The variances come from a one-way analysis of variance. The ceiling is estimated in two ways, both of which assume
    that all children are equally noisy:

    - By simulation. The means of all children are shrunk towards their grand mean until their spread is that of
      children without noise. This keeps the shape of their distribution. Gaussian noise is added to these true values,
      with the variance that remains for the child's number of seeds, and tau between the two lists is averaged.
    - By the agreement of seeds. Tau between single measurements of the repeated children is converted to a correlation
      as in a normal distribution, r = sin(pi tau / 2). With n seeds, the harmonic mean over all children,
      Spearman-Brown's n r / (1 + (n - 1) r) is the correlation between two such truths. Its square root is the
      correlation between one of them and perfect scores, which is converted back to tau.

    Args:
        repeats: one value per seed for each child of the truth, higher is better.
        num_simulations: number of draws of the noise.
        confidence: confidence level of the interval.
        seed: seed of the draws.

    Raises:
        ValueError: fewer than five children have two values, a value is not finite, or all means are the same.
    """
    check_scores(truth={child: math.fsum(values) / max(len(values), 1) for child, values in repeats.items()})
    repeated = [np.asarray(values, dtype=float) for values in repeats.values() if len(values) > 1]
    if len(repeated) < MIN_CHILDREN:
        raise ValueError(
            f"{len(repeated)} children have two values or more; estimating seed noise takes at least {MIN_CHILDREN}: "
            f"train some of them with another seed"
        )
    within, between = _variances(repeated)
    if not within + between:
        raise ValueError(
            f"the {len(repeated)} children with several values all have the same value, so seed noise cannot be "
            f"estimated; train other children with another seed"
        )
    sizes = np.array([len(values) for values in repeats.values()], dtype=float)
    means = np.array([np.mean(values) for values in repeats.values()])
    simulated = _simulated_taus(means, within / sizes, num_simulations, np.random.default_rng(seed))
    agreement = _tau_between_seeds(repeated)
    return TruthNoise(
        num_repeated=len(repeated),
        within_sd=math.sqrt(within),
        between_sd=math.sqrt(between),
        intraclass_correlation=between / (between + within),
        tau_between_seeds=agreement,
        ceiling=float(simulated.mean()),
        ceiling_interval=_interval(simulated, confidence),
        ceiling_of_agreement=_ceiling_of_agreement(agreement, float(1 / (1 / sizes).mean())),
    )


def _variances(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns the variances within and between groups of unequal sizes (one-way ANOVA). Neither is below 0."""
    sizes = np.array([len(group) for group in groups], dtype=float)
    total, means = sizes.sum(), np.array([group.mean() for group in groups])
    squares = math.fsum(((group - group.mean()) ** 2).sum() for group in groups)
    within = squares / (total - len(groups))
    grand = (sizes * means).sum() / total
    mean_square = (sizes * (means - grand) ** 2).sum() / (len(groups) - 1)
    typical_size = (total - (sizes**2).sum() / total) / (len(groups) - 1)
    return float(within), float(max(0.0, (mean_square - within) / typical_size))


def _simulated_taus(
    means: np.ndarray, noise: np.ndarray, num_simulations: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns tau between true values, spread like `means` without their noise, and new noisy means of these."""
    spread = means.var(ddof=1)
    shrunk = math.sqrt(max(0.0, 1 - noise.mean() / spread))
    if not shrunk:
        return np.zeros(num_simulations)
    true = means.mean() + shrunk * (means - means.mean())
    measured = true + np.sqrt(noise) * rng.standard_normal((num_simulations, len(means)))
    return np.array([kendalltau(true, one).statistic for one in measured])


def _tau_between_seeds(repeated: Sequence[np.ndarray]) -> float:
    """Returns the mean tau over pairs of positions in the children's lists that enough children have."""
    taus = []
    for earlier, later in combinations(range(max(map(len, repeated))), 2):
        both = [group for group in repeated if len(group) > later]
        if len(both) >= MIN_CHILDREN:
            tau = kendalltau([group[earlier] for group in both], [group[later] for group in both]).statistic
            taus.append(float(tau))
    known = [tau for tau in taus if math.isfinite(tau)]
    return math.fsum(known) / len(known) if known else math.nan


def _ceiling_of_agreement(tau: float, num_seeds: float) -> float:
    if math.isnan(tau):
        return math.nan
    correlation = max(0.0, math.sin(math.pi * tau / 2))
    of_means = num_seeds * correlation / (1 + (num_seeds - 1) * correlation)
    return 2 / math.pi * math.asin(math.sqrt(of_means))
