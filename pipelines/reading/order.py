"""The order in which stages can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def find_cycle(upstream: Mapping[str, Sequence[str]]) -> list[str] | None:
    """The stages of one cycle, in the direction of the data; None if there is no cycle."""
    done: set[str] = set()
    trail: list[str] = []

    def visit(name: str) -> list[str] | None:
        if name in trail:
            return trail[trail.index(name) :][::-1]
        if name in done:
            return None
        trail.append(name)
        for parent in upstream[name]:
            cycle = visit(parent)
            if cycle:
                return cycle
        trail.pop()
        done.add(name)
        return None

    for name in upstream:
        cycle = visit(name)
        if cycle:
            return cycle
    return None


def topological_order(upstream: Mapping[str, Sequence[str]]) -> list[str]:
    """Every stage after those it depends on, otherwise in the given order. Assumes no cycle."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            for parent in upstream[name]:
                visit(parent)
            order.append(name)

    for name in upstream:
        visit(name)
    return order
