"""The functions of `import exam` return typed results; a mistake is one message."""

import re
from dataclasses import replace

import pytest
from helpers import imported, kaggle_rows, make_place, python, setting, write_csv

import exam
from exam.core.files import read_json

LEXICAL = ("model=lexical", "retriever=bm25")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def settings(folder):
    return [*setting(folder), *LEXICAL]


@pytest.fixture(scope="module")
def run(settings):
    return exam.train(*settings)


def test_training_returns_the_scores_of_results_json(run):
    assert (run.folder / "model").is_dir()
    row = read_json(run.folder / "results.json")["rows"][-1]
    estimate = run.systems[-1].estimate
    assert (estimate.n, estimate.value) == (row["n"], row["map_at_3"])
    assert [estimate.low, estimate.high] == row["ci"]


def test_a_configuration_replaces_overrides(run, settings):
    config = exam.load(run).config
    with pytest.raises(exam.ExamError, match=r"dataclasses\.replace"):
        exam.train(*settings, config=config)
    with pytest.raises(exam.ExamError, match=r"data\.limit"):
        exam.train(config=replace(config, data=replace(config.data, limit=-1)))
    reused = exam.train(config=config)
    assert reused.folder == run.folder
    assert reused.stage.reused


def test_retrieval_returns_passages_and_scores(settings):
    contexts = exam.retrieve(*[s for s in settings if not s.startswith("model=")])
    assert list(contexts) == ["train", "valid", "test"]
    assert contexts["test"].scores == {}  # without answers
    passages = contexts["valid"].passages
    assert {"question_id", "rank", "score", "title", "text"} <= {*passages.column_names}
    assert len({*passages["question_id"]}) == 10
    assert passages[0]["rank"] == 1
    supported = contexts["valid"].scores["supported"]
    assert supported.n == 10
    assert 0 <= supported.low <= supported.value <= supported.high <= 1


def test_runs_are_evaluated_in_pairs_beside_baselines(run, settings):
    closed = exam.train(*settings, "retriever=none")
    evaluation = exam.evaluate([run, closed])
    *baselines, first, second = evaluation.systems
    assert [first.name, second.name] == [run.folder.name, closed.folder.name]
    assert len(baselines) == 4
    difference = evaluation.differences[first.name, second.name]
    assert difference.value == pytest.approx(first.estimate.value - second.estimate.value)
    assert evaluation.predictions[1].labels == evaluation.predictions[0].labels
    assert re.search(rf"{first.name} − {second.name}: [+-]0\.\d+ \[", str(evaluation))


def test_a_folder_of_predictions_is_evaluated(run):
    evaluation = exam.evaluate(run.folder)
    assert evaluation.systems[-1].estimate == run.systems[-1].estimate


def test_a_run_is_evaluated_on_other_questions(run, folder):
    path = write_csv(folder / "questions" / "more.csv", kaggle_rows(12, start=60))
    data = [f"data.dir={path.parent}", "data.test=more.csv"]
    evaluation = exam.evaluate(run, "data=csv", *data)
    assert evaluation.systems[-1].estimate.n == 12
    assert evaluation.predictions[0].ids == [str(i) for i in range(60, 72)]
    with pytest.raises(exam.ExamError, match="right options are unknown"):
        exam.evaluate(run, "data=csv", data[0], "data.test=test.csv")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exam.train("modle=minilm"), "model"),
        (lambda: exam.train("model=minilmm"), "Did you mean model=minilm"),
        (lambda: exam.retrieve("retriever=bm52"), "Did you mean retriever=bm25"),
        (lambda: exam.train("data=csv", "data.train=lost.csv"), r"data\.dir="),
        (lambda: exam.evaluate("lost"), "lost does not exist"),
        (lambda: exam.load("lost"), "lost does not exist"),
    ],
)
def test_a_mistake_is_one_message(call, message):
    with pytest.raises(exam.ExamError, match=message):
        call()


def test_importing_is_quick_and_imports_nothing_heavy():
    heavy = ("torch", "transformers", "hydra", "omegaconf", "datasets", "numpy")
    assert imported("import exam", *heavy) == set()
    code = (
        "import time; start = time.perf_counter(); import exam; print(time.perf_counter() - start)"
    )
    assert min(float(python("-c", code).stdout) for _ in range(3)) < 0.2  # seconds
