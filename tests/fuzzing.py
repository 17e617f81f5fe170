"""What strangers' files may hold, and what reading them may end in.

`EXAM_FUZZ` is the number of examples of every property; without it they are few, and always the
same ones.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from exam.core.errors import ExamError
from exam.data.cells import cell_text

EXAMPLES = int(os.environ.get("EXAM_FUZZ", "12"))
FEW = EXAMPLES if EXAMPLES >= 100 else 3  # of what takes long
SLOWEST = 20_000  # milliseconds of one example: nothing hangs
LONGEST = 20_000  # characters of a message
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NASTY = [
    "None", "NA", "nan", "null", "true", "0", "-1", "1e400", "007", "1.0", " ", "", "=1+1",
    "=cmd|' /C calc'!A0", "@SUM(A1)", "../../etc/passwd", "C:\\con", "a/b", "..", "\x00", "a\x00b",
    "\ufeff", "\u202egnirts", "\u200b", "𝔸𝕊𝕋", "e\u0301", "\x1b[2J", "\x85", "\u2028", "\r", "\r\n",
    '"', '""', "'", ",", ";", "\t", "\\", "<script>alert(1)</script>", "</template>", "{{ 7*7 }}",
    "${oc.env:HOME}", "%s%n", "[SEP]", "####", "\\ud800", "x" * 3000,
]  # fmt: skip
characters = st.characters(exclude_categories=["Cs"])
texts = st.one_of(st.sampled_from(NASTY), st.text(characters, max_size=12))
words = texts.filter(cell_text)  # they show something
keys = words.map(cell_text).filter(lambda text: not text.endswith(".0"))  # a float is an integer
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=6,
)


def fuzzed(*strategies: Any, read: Callable[..., bool], examples: int = EXAMPLES) -> None:
    """Run `read` on examples; of many, a third at least must be read, and not refused."""
    tally: Counter[bool] = Counter()

    @settings(
        max_examples=examples,
        deadline=SLOWEST,
        database=None,
        phases=[Phase.generate],  # shrinking takes minutes where an example takes long
        derandomize="EXAM_FUZZ" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.tuples(*strategies))
    def one(drawn: Any) -> None:
        tally[read(*drawn)] += 1

    one()
    assert examples < 100 or 3 * tally[True] >= tally.total(), tally


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or None where it refuses with one message for people."""
    try:
        return call()
    except ExamError as error:
        message = str(error)
        assert 10 < len(message) < LONGEST, message
        assert "Traceback" not in message
        return None


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """Bytes with a few places cut out, doubled, or written over."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        put = draw(st.one_of(st.binary(max_size=4), st.just(data[start:end] * 2)))
        data = data[:start] + put + data[end:]
    return data


@st.composite
def questions(draw: Any, number: int | None = None) -> list[dict[str, str]]:
    """Rows that are right, whatever their texts are."""
    letters = LETTERS[: draw(st.sampled_from([2, 3, 5, 26])) if number is None else number]
    ids = draw(st.lists(keys, min_size=1, max_size=3, unique=True))
    pool = draw(st.lists(words, min_size=2, max_size=6))  # drawing every text takes long
    return [
        {
            "id": key,
            "prompt": pool[place % len(pool)],
            **{c: pool[(place + i) % len(pool)] for i, c in enumerate(letters)},
            "answer": draw(st.sampled_from(["", *letters])),
        }
        for place, key in enumerate(ids)
    ]


def as_jsonl(rows: list[Any], *, ascii_only: bool = False) -> bytes:
    """Rows as JSON lines."""
    return b"".join(json.dumps(row, ensure_ascii=ascii_only).encode() + b"\n" for row in rows)
