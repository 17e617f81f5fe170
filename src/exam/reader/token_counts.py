"""Count the tokens that a vocabulary does not know, and the options that it cannot tell apart."""

import logging
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

UNKNOWN_SHARE = 0.01  # of a set's tokens, above which it is a warning
NAMED = 3  # questions with equal options


@dataclass
class TokenCounts:
    """Tokens of a set of questions and of their passages, before anything is cut."""

    in_questions: int = 0
    unknown_in_questions: int = 0
    in_passages: int = 0
    unknown_in_passages: int = 0
    equal_options: int = 0  # questions with two options of the same tokens
    equal_ids: list[str] = field(default_factory=list)  # the first of them

    def add(
        self,
        key: str,
        parts: list[list[int]],
        options: list[list[int]],
        passages: list[list[int]],
        unknown: int | None,
    ) -> None:
        """Count a question's parts (all but its passages) and its passages, in token ids."""
        self.in_questions += sum(map(len, parts))
        self.in_passages += sum(map(len, passages))
        if unknown is not None:
            self.unknown_in_questions += sum(part.count(unknown) for part in parts)
            self.unknown_in_passages += sum(passage.count(unknown) for passage in passages)
        if len({tuple(option) for option in options}) < len(options):
            self.equal_options += 1
            if len(self.equal_ids) < NAMED:
                self.equal_ids.append(str(key))

    def __str__(self) -> str:
        shares = [
            f"{unknown:,} of {total:,} in {name} ({_share(unknown, total):.2%})"
            for name, unknown, total in self._sets()
        ]
        return (
            f"unknown tokens {', '.join(shares)} · "
            f"questions with options of equal tokens {self.equal_options:,}"
        )

    def warn(self, stage: str) -> None:
        """Warn of a share of unknown tokens above UNKNOWN_SHARE, and of any equal options."""
        for name, unknown, total in self._sets():
            if _share(unknown, total) > UNKNOWN_SHARE:
                log.warning(
                    "%s: %.1f %% of the tokens in %s are unknown to the model's tokenizer; a "
                    "checkpoint trained on such texts may read them better",
                    stage, 100 * _share(unknown, total), name,
                )  # fmt: skip
        if self.equal_options:
            log.warning(
                "%s: %d questions have two options with the same tokens, which the model cannot "
                "tell apart: %s%s",
                stage, self.equal_options, ", ".join(self.equal_ids),
                " …" if self.equal_options > len(self.equal_ids) else "",
            )  # fmt: skip

    def facts(self) -> list[tuple[str, str]]:
        """Return name and value of each figure, for the report."""
        shares = [f"{name} {_share(unknown, total):.2%}" for name, unknown, total in self._sets()]
        return [
            ("unknown tokens", ", ".join(shares)),
            ("questions with options of equal tokens", f"{self.equal_options:,}"),
        ]

    def _sets(self) -> list[tuple[str, int, int]]:
        return [
            ("questions", self.unknown_in_questions, self.in_questions),
            ("passages", self.unknown_in_passages, self.in_passages),
        ]


def _share(part: int, total: int) -> float:
    return part / total if total else 0.0
