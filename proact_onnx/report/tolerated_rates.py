"""The bit error rate that each method tolerates, up to a limit on the accuracy lost."""

import math
from collections.abc import Callable, Sequence

from proact_onnx.campaign import FaultSummary
from proact_onnx.faults import Effect, Rate, parse_fault_model
from proact_onnx.report.comparison import Comparison, Entry
from proact_onnx.report.rendering import Table
from proact_onnx.report.tables import spell_rate

# Measured rates that a rate can be found between.
_FEWEST_RATES = 2


def tolerated_rate_table(comparison: Comparison) -> Table | None:
    """The rate at which so many points are lost as the limit allows, hardening's own included.

    One row a method. Between two measured rates accuracy is taken to fall linearly over the
    logarithm of the rate; the ends of the interval are where those of the accuracies reach the
    limit. A rate beyond the measured ones is told as above the highest or below the lowest.

    Args:
        comparison: The comparison.

    Returns:
        None where fewer than two rates of bit flips were measured.
    """
    measured = {entry.name: _by_rate(entry) for entry in comparison.entries}
    if min(map(len, measured.values())) < _FEWEST_RATES:
        return None
    golden = comparison.unprotected.record.result.golden_accuracy

    def tolerated(entry: Entry, accuracy: Callable[[FaultSummary], float]) -> float:
        summaries = measured[entry.name]
        drops = [100 * (golden - accuracy(summary)) for summary in summaries.values()]
        return rate_at(list(summaries), drops, comparison.drop_limit)

    means = {e.name: tolerated(e, lambda found: found.accuracy.mean) for e in comparison.entries}
    rows = []
    baseline = comparison.baseline
    for entry in comparison.entries:
        rates = list(measured[entry.name])
        ends = (
            tolerated(entry, lambda found: found.accuracy.low),
            tolerated(entry, lambda found: found.accuracy.high),
        )
        mean, low, high = (spell_open(rate, rates) for rate in (means[entry.name], *ends))
        spelled = mean if low == high else f"{mean} [{low}, {high}]"
        rows.append((entry.title, spelled, _ratio(means[entry.name], means[baseline.name], rates)))
    return Table(
        f"{comparison.model}: bit error rate at which {comparison.drop_limit:g} points of the "
        f"unprotected model's {100 * golden:.2f} % are lost",
        ("method", "rate", f"times that of {baseline.title}"),
        tuple(rows),
        ("method",),
    )


def rate_at(rates: Sequence[float], drops: Sequence[float], limit: float) -> float:
    """Find where a curve over the logarithm of the rate first reaches a limit.

    Args:
        rates: Ascending, above 0.
        drops: What is lost at each.
        limit: How much may be lost.

    Returns:
        0 if it is reached at the lowest rate already, infinity if it is never reached.
    """
    reached = next((place for place, drop in enumerate(drops) if drop >= limit), None)
    if reached is None:
        return math.inf
    if reached == 0:
        return 0.0
    before, behind = drops[reached - 1], drops[reached]
    share = (limit - before) / (behind - before)
    return float(rates[reached - 1] * (rates[reached] / rates[reached - 1]) ** share)


def spell_open(rate: float, measured: Sequence[float]) -> str:
    """Spell a rate with two digits, or as beyond the measured ones."""
    if rate == math.inf:
        return f"> {spell_rate(max(measured))}"
    if rate == 0.0:
        return f"< {spell_rate(min(measured))}"
    return spell_rate(float(f"{rate:.2g}"))


def _ratio(rate: float, other: float, measured: Sequence[float]) -> str:
    """Spell a ratio of two rates; as a limit where one is beyond the measured ones."""
    beyond = (0.0, math.inf)
    if rate in beyond and other in beyond:
        return ""
    above = rate == math.inf or other == 0.0
    below = rate == 0.0 or other == math.inf
    sign = "> " if above else "< " if below else ""
    lowest, highest = min(measured), max(measured)
    clamped = [min(max(one, lowest), highest) for one in (rate, other)]
    return f"{sign}{clamped[0] / clamped[1]:.3g}"


def _by_rate(entry: Entry) -> dict[float, FaultSummary]:
    """Campaigns of independent bit flips, rates ascending."""
    found = {}
    for summary in entry.record.result.summaries:
        model = parse_fault_model(summary.fault)
        plain = model.effect is Effect.FLIP and model.shape.length == 1
        if plain and isinstance(model.amount, Rate) and model.amount.ber > 0.0:
            found[model.amount.ber] = summary
    return dict(sorted(found.items()))
