"""What a measurement comes to: samples, and the rows of the tables in ``docs/benchmarks.md``.

Rules:

* A figure is a median with its spread (least and most) and the number of runs.
* A goal that is missed stands in the table like any other.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """Numbers of one kind."""

    values: list[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def text(self, digits: int = 2) -> str:
        """Median, and least to most."""
        least, most = min(self.values), max(self.values)
        return f"{self.median:,.{digits}f} ({least:,.{digits}f} to {most:,.{digits}f}, n={len(self.values)})"


@dataclass(frozen=True)
class Figure:
    """One row of the first table; ``measured`` is judged against ``goal``, ``parts`` show what it was made of."""

    name: str
    goal: str
    measured: str
    good: bool
    parts: dict[str, str]


@dataclass(frozen=True)
class Rate:
    """One row of the table of worker classes: requests per second, ours over stock.

    ``costs`` are the worker's processor microseconds for a request, stock's and ours; ``cost_ratio`` is stock's over
    ours, so that more is better there too.
    """

    name: str
    stock: str
    tool: str
    ratio: str
    goal: float
    good: bool
    rates: tuple[str, str]
    cost_ratio: str
    costs: tuple[str, str]


def table(figures: list[Figure]) -> str:
    """The figures as Markdown."""
    lines = ["| what | goal | measured: median (least to most) | met |", "| --- | --- | --- | --- |"]
    for figure in figures:
        lines.append(f"| {figure.name} | {figure.goal} | {figure.measured} | {_met(figure.good)} |")
        lines += [f"| &emsp;{name} | | {text} | |" for name, text in figure.parts.items()]
    return "\n".join(lines)


def rate_table(rates: list[Rate]) -> str:
    """The worker classes as Markdown."""
    lines = [
        "| worker class | stock | load | requests/s, ratio | goal met | requests/s | processor time, ratio | µs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{rate.name}` | `{rate.stock}` | `{rate.tool}` | {rate.ratio} | {_met(rate.good)} (at least {rate.goal}) "
        f"| {' → '.join(rate.rates)} | {rate.cost_ratio} | {' → '.join(rate.costs)} |"
        for rate in rates
    ]
    return "\n".join(lines)


def _met(good: bool) -> str:
    return "yes" if good else "**no**"
