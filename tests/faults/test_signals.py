"""SIGTERM and Ctrl-C: an end within seconds, a code, a way on, and nothing lost."""

import errno
import json
import signal
import time

import pytest
from fakes import Endpoint, question_about
from helpers import make_place
from processes import GIVEN, TINY, copied, run, start

from exam.core.errors import ExamError
from exam.core.exit import GRACE_SECONDS, run_command, translate_os_errors

MESSAGES = {
    signal.SIGINT: (130, "Interrupted. The same command continues from what is finished."),
    signal.SIGTERM: (143, "Terminated. The same command continues from what is finished."),
}
LONG = ["trainer.num_train_epochs=300"]


def end(command, number):
    """Send a signal; the exit code, the seconds taken, and the last line of the log."""
    start_of_end = time.monotonic()
    command.send(number)
    code = command.wait(30)
    assert "Traceback" not in command.log
    return code, time.monotonic() - start_of_end, command.log.splitlines()[-1]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, encoder):
    """Return a working folder with contexts."""
    workdir = make_place(tmp_path_factory.mktemp("signals") / "place")
    run(workdir, "retrieve", *GIVEN, f"encoder.name_or_path={encoder}")
    return workdir


@pytest.mark.parametrize("number", list(MESSAGES))
def test_a_command_says_how_it_ended(capsys, number):
    def body():
        signal.raise_signal(number)
        return 0

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    assert (run_command(body), capsys.readouterr().err.strip()) == MESSAGES[number]
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    assert signal.alarm(0) == 0  # none is left to go off later


@pytest.mark.parametrize("number", list(MESSAGES))
def test_an_interruption_that_a_library_swallowed_is_one(capsys, number):
    def body():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            return 0

    assert (run_command(body), capsys.readouterr().err.strip()) == MESSAGES[number]


def test_a_signal_that_was_ignored_before_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
    try:
        assert run_command(lambda: signal.raise_signal(signal.SIGINT) or 7) == 7
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_an_interruption_left_unwritten_is_no_full_disk(capsys):
    @translate_os_errors()
    def write():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise OSError(errno.ENOSPC, "No space left on device", "a") from None

    raised = []

    def body():
        try:
            write()
        except (OSError, ExamError) as error:
            raised.append(type(error))
        return 0

    assert (run_command(body), capsys.readouterr().err.strip()) == MESSAGES[signal.SIGTERM]
    assert raised == [OSError]


def test_a_mistake_is_one_message_and_two(capsys):
    def body():
        raise ExamError("a is not b.\nGive b.")

    assert (run_command(body), capsys.readouterr().err) == (2, "a is not b.\nGive b.\n")


def test_an_interruption_that_a_library_made_an_error_of_is_one(capsys):
    def body():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("computation interrupted") from None

    assert (run_command(body), capsys.readouterr().err.strip()) == MESSAGES[signal.SIGTERM]


def test_an_error_keeps_its_traceback():
    def body():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_command(body)


@pytest.mark.slow
@pytest.mark.parametrize("number", list(MESSAGES))
def test_training_ends_soon_and_goes_on_at_its_last_step(prepared, tmp_path, encoder, number):
    workdir = copied(prepared, tmp_path / "place")
    overrides = [*GIVEN, *TINY, f"encoder.name_or_path={encoder}", *LONG]
    command = start(workdir, "train", *overrides)
    command.wait_for("train: step 9 ")
    code, seconds, message = end(command, number)
    assert (code, message) == MESSAGES[number]
    assert seconds < 5
    again = start(workdir, "train", *overrides)
    again.wait_for("train: resuming at step ")
    assert end(again, number)[0] == code


@pytest.mark.slow
def test_a_reply_that_never_comes_is_not_waited_for(tmp_path):
    workdir = make_place(tmp_path / "place")
    endpoint = Endpoint(
        lambda title, time_: question_about(f"{title} 1") if len(endpoint.asked) < 3 else hang()
    )

    def hang():
        time.sleep(60)
        return "no"

    overrides = ["corpus=jsonl", "corpus.dir=.", "corpus.files=articles.jsonl", "outputs=outputs"]
    overrides += ["generator=llm", "num_questions=4", "generator.llm.concurrency=1"]
    overrides += [f"generator.llm.base_url={endpoint.url}", "generator.llm.model=small"]
    command = start(workdir, "generate", *overrides)
    while len(endpoint.asked) < 3:
        time.sleep(0.05)
    code, seconds, message = end(command, signal.SIGTERM)
    assert (code, message) == MESSAGES[signal.SIGTERM]
    assert seconds < GRACE_SECONDS + 1
    (journal,) = workdir.glob("outputs/replies/*/replies.jsonl")
    assert len([json.loads(line) for line in journal.read_text().splitlines()]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "overrides", "moment"),
    [
        ("demo", [], "corpus"),
        ("bundle", ["ckpt={run}", "out=bundle", *GIVEN[:2]], "bundle: runs/"),
    ],
)
def test_the_packages_own_commands_end_alike(prepared, tmp_path, encoder, verb, overrides, moment):
    workdir = copied(prepared, tmp_path / "place")
    if "ckpt={run}" in overrides:
        run(workdir, "train", *GIVEN, *TINY, f"encoder.name_or_path={encoder}")
        (trained,) = workdir.glob("outputs/train/kaggle-tiny-*")
        overrides = [value.format(run=trained) for value in overrides]
    command = start(workdir, verb, *overrides)
    command.wait_for(moment)
    code, seconds, message = end(command, signal.SIGTERM)
    assert (code, message) == MESSAGES[signal.SIGTERM]
    assert seconds < 5
    assert not (workdir / "bundle").exists()
