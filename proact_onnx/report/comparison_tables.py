"""Methods side by side, as the tables of the paper: one row a method, one column a model."""

from collections.abc import Callable, Sequence

from proact_onnx.campaign import Estimate, FaultSummary
from proact_onnx.compare import UNPROTECTED
from proact_onnx.report.comparison import Comparison, Entry
from proact_onnx.report.rendering import Table
from proact_onnx.report.tables import by_fault, spell_fault
from proact_onnx.report.tolerated_rates import tolerated_rate_table

# With more methods side by side, 100 columns hold the interval only below the mean.
_METHODS_ON_ONE_LINE = 3


def method_tables(comparison: Comparison) -> list[Table]:
    """All tables about one model: what methods cost, and what they are worth."""
    tables = [
        clean_drop_table([comparison]),
        overhead_table([comparison]),
        fault_drop_table(comparison),
        tolerated_rate_table(comparison),
        distance_table([comparison]),
        time_table([comparison]),
    ]
    return [table for table in tables if table is not None]


def clean_drop_table(comparisons: Sequence[Comparison]) -> Table:
    """Accuracy lost by hardening, without faults, in points: Table II of the paper.

    Args:
        comparisons: One a model, with one confidence level.
    """

    def cell(entry: Entry) -> tuple[str, float]:
        return points(entry.clean_drop), entry.clean_drop.mean

    level = _level(comparisons)
    table = _by_method(
        f"accuracy lost without faults, in points, {level} (Table II of the paper)",
        comparisons,
        cell,
    )
    clean = (f"{100 * found.unprotected.clean_accuracy:.2f} %" for found in comparisons)
    return Table(
        table.title,
        table.columns,
        (("(accuracy of the unprotected model)", *clean), *table.rows),
        table.folds,
        frozenset((row + 1, column) for row, column in table.strong),
    )


def overhead_table(comparisons: Sequence[Comparison]) -> Table:
    """Stored thresholds in per cent of the other parameters (Eq. 6): Table III of the paper.

    Args:
        comparisons: One a model.
    """

    def cell(entry: Entry) -> tuple[str, float]:
        return f"{entry.memory_overhead:.3g} ({entry.thresholds:,})", entry.memory_overhead

    return _by_method(
        "memory overhead in % of the parameters, and thresholds (Table III)", comparisons, cell
    )


def distance_table(comparisons: Sequence[Comparison]) -> Table | None:
    """Mean L2 distance of activations from the golden run (Eq. 9): Table V of the paper.

    Args:
        comparisons: One a model, with one confidence level.

    Returns:
        None where it was not measured.
    """

    def cell(entry: Entry) -> tuple[str, float]:
        found = entry.distance
        if found is None:
            return "", float("inf")
        return f"{found.mean:.4g} [{found.low:.4g}, {found.high:.4g}]", found.mean

    if all(entry.distance is None for found in comparisons for entry in found.entries):
        return None
    title = f"mean L2 distance of activations under fault, {_level(comparisons)} (Table V, Eq. 9)"
    return _by_method(title, comparisons, cell, unprotected=True)


def time_table(comparisons: Sequence[Comparison]) -> Table:
    """Time that each method took, and how often it ran the model.

    Args:
        comparisons: One a model.
    """

    def cell(entry: Entry) -> tuple[str, float]:
        return f"{spell_seconds(entry.seconds)} ({entry.evaluations:,})", entry.seconds

    return _by_method("time of hardening, and evaluations", comparisons, cell)


def fault_drop_table(comparison: Comparison) -> Table | None:
    """Accuracy lost under faults, of the unprotected model's without any: Table IV of the paper.

    In points, and with it what hardening itself costs. One row a fault model under which at least
    one method loses less than the limit, one column a method; the lowest of a row is stressed.

    Args:
        comparison: The comparison.

    Returns:
        None where no method stays below the limit.
    """
    entries = comparison.entries
    golden = comparison.unprotected.record.result.golden_accuracy
    gap = " " if len(entries) <= _METHODS_ON_ONE_LINE else "\n"
    rows: list[tuple[str, ...]] = []
    strong: set[tuple[int, int]] = set()
    for fault, found in by_fault([entry.record.result for entry in entries]):
        drops = [None if summary is None else _drop(golden, summary) for summary in found]
        means = {
            place: drop.mean
            for place, (entry, drop) in enumerate(zip(entries, drops, strict=True))
            if drop is not None and entry.name != UNPROTECTED
        }
        harmless = any(summary is not None and summary.ber == 0.0 for summary in found)
        if harmless or not means or 100 * min(means.values()) >= comparison.drop_limit:
            continue
        lowest = min(means.values())
        strong |= {(len(rows), 1 + place) for place, mean in means.items() if mean == lowest}
        rows.append((spell_fault(fault), *("" if d is None else points(d, gap) for d in drops)))
    if not rows:
        return None
    titles = [entry.title for entry in entries]
    return Table(
        f"{comparison.model}: accuracy lost under faults, in points of the unprotected model's "
        f"{100 * golden:.2f} %, {_level([comparison])} (Table IV)",
        ("", *titles),
        tuple(rows),
        ("", *titles),
        frozenset(strong),
    )


def points(estimate: Estimate, gap: str = " ") -> str:
    """Spell a difference of shares as points, with its interval."""
    mean, low, high = (
        f"{100 * part:z.2f}" for part in (estimate.mean, estimate.low, estimate.high)
    )
    return f"{mean}{gap}[{low}, {high}]"


def spell_seconds(seconds: float) -> str:
    """Spell a time: 0.8 s, 45 s, 4 min 39 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _drop(golden: float, summary: FaultSummary) -> Estimate:
    accuracy = summary.accuracy
    return Estimate(golden - accuracy.mean, golden - accuracy.high, golden - accuracy.low)


def _level(comparisons: Sequence[Comparison]) -> str:
    return f"mean and {100 * comparisons[0].confidence:g}% interval"


def _by_method(
    title: str,
    comparisons: Sequence[Comparison],
    cell: Callable[[Entry], tuple[str, float]],
    unprotected: bool = False,
) -> Table:
    """One row a method in the order of the first comparison; the lowest of a column is stressed."""
    columns = [
        {e.title: cell(e) for e in (found.entries if unprotected else found.methods)}
        for found in comparisons
    ]
    methods = list(dict.fromkeys(title for column in columns for title in column))
    strong: set[tuple[int, int]] = set()
    for place, column in enumerate(columns, start=1):
        lowest = min((value for _, value in column.values()), default=0.0)
        best = [method for method, (_, value) in column.items() if value == lowest]
        if len(best) < len(column):
            strong |= {(methods.index(method), place) for method in best}
    rows = [
        (method, *(column[method][0] if method in column else "" for column in columns))
        for method in methods
    ]
    names = [found.model for found in comparisons]
    return Table(title, ("method", *names), tuple(rows), ("method",), frozenset(strong))
