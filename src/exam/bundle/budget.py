"""How long an exam will take, from what a sample of it took."""

from dataclasses import dataclass

from exam.stage import Stage

MEASURED = ("contexts", "infer")


@dataclass(frozen=True)
class Cost:
    """What a stage takes whatever is asked, and for each question."""

    fixed: float
    each: float

    def of(self, questions: int) -> float:
        """Seconds for so many questions."""
        return self.fixed + self.each * questions


def costs(
    few: list[Stage], many: list[Stage], sizes: tuple[int, int], share: float = 1.0
) -> dict[str, Cost]:
    """Each kind of stage's cost, from the same stages over two samples of `sizes` questions.

    `share` of the questions are asked. What was reused was counted where it was done.
    """
    found = {}
    for kind in MEASURED:
        small, large = (
            sum(s.seconds for s in stages if s.kind == kind and not s.reused)
            for stages in (few, many)
        )
        each = max(0.0, (large - small) / (sizes[1] - sizes[0]))
        found[kind] = Cost(max(0.0, small - each * sizes[0]), each * share)
    return found


def together(found: list[dict[str, Cost]]) -> dict[str, Cost]:
    """What several readers' stages of each kind cost one after the other."""
    return {
        kind: Cost(sum(one[kind].fixed for one in found), sum(one[kind].each for one in found))
        for kind in MEASURED
    }


def shown(found: dict[str, Cost], questions: int, hours: float) -> str:
    """The estimate as a table: seconds, and each stage's share of the budget."""
    budget = hours * 3600
    rows = [(kind, cost.of(questions)) for kind, cost in found.items()]
    rows.append(("together", sum(seconds for _, seconds in rows)))
    lines = [f"computed for {questions:,} questions, from a measured sample; {hours:g} h are given"]
    lines += [f"{kind:<10} {seconds:>9,.0f} s {seconds / budget:>7.1%}" for kind, seconds in rows]
    return "\n".join(lines)
