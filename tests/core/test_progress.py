"""Long steps without a terminal."""

import logging

from datasets import Dataset, Features, List, Value

from exam.core import logging as progress
from exam.data import splits

FEATURES = Features(
    prompt=Value("string"), options=List(Value("string")), articles=List(Value("string"))
)


def test_long_steps_log_total_and_time_left(caplog, monkeypatch):
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.02)
    start = progress.time.monotonic()
    with caplog.at_level(logging.INFO, logger="exam"):
        items = progress.track(range(40), "encoded", 40, "texts")
        for _ in items:
            progress.time.sleep(0.005)
    intervals = (progress.time.monotonic() - start) / progress.BAR_SECONDS
    assert 3 <= len(caplog.messages) <= intervals + 1
    assert all(line.startswith("encoded: ") for line in caplog.messages)
    assert all(line.endswith(" left") for line in caplog.messages)
    done = [int(line.split()[1]) for line in caplog.messages]
    assert done == sorted(set(done))
    assert " of 40 texts, 00:0" in caplog.messages[-1]


def test_the_time_before_the_first_item_does_not_count(caplog, monkeypatch):
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.2)

    def prepare_and_yield():
        progress.time.sleep(0.3)
        yield from range(9)

    with caplog.at_level(logging.INFO, logger="exam"):
        assert list(progress.track(prepare_and_yield(), "ranked", 9, "questions")) == [*range(9)]
    assert caplog.messages == []


def test_a_step_inside_another_one_logs_text_only(caplog, monkeypatch):
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, logger="exam"):
        for _ in progress.track(range(2), "blocks", 2, "blocks"):
            list(progress.track(range(3), "encoded", 3, "texts"))
    assert sum(line.startswith("encoded: ") for line in caplog.messages) >= 2
    assert all(line.isprintable() for line in caplog.messages)


def test_short_steps_log_nothing(caplog):
    with caplog.at_level(logging.INFO, logger="exam"):
        assert list(progress.track(range(9), "encoded", 9, "texts")) == list(range(9))
    assert caplog.messages == []


def test_nothing_is_logged_above_the_level(caplog, monkeypatch):
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING, logger="exam"):
        list(progress.track(range(9), "encoded", 9, "texts"))
    assert caplog.messages == []


def test_the_search_for_near_duplicates_logs_how_far_it_is(caplog, monkeypatch):
    monkeypatch.setattr(progress, "BAR_SECONDS", 0)
    monkeypatch.setattr(splits, "BLOCK", 2)
    rows = [{"prompt": f"q{i}", "options": ["a", "b"], "articles": []} for i in range(5)]
    questions = Dataset.from_list(rows, features=FEATURES)
    with caplog.at_level(logging.INFO, logger="exam"):
        splits.group_near_duplicates(questions)
    lines = [line for line in caplog.messages if line.startswith("near-duplicates: ")]
    assert [line.split(" questions")[0].split(": ")[1] for line in lines] == [
        "0 of 5",
        "2 of 5",
        "4 of 5",
        "5 of 5",
    ]
