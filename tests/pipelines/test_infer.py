"""Ensembles, cascades, variants and stress tests of tiny runs."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import kaggle_rows, make_place, refuses, run_exam, tiny, write_csv
from scipy.special import log_softmax

from exam.cli import main
from exam.config import Ensemble, EnsembleKind
from exam.config.compose import compose_config
from exam.core.artifacts import MANIFEST, read_manifest, write_manifest
from exam.core.errors import ExamError
from exam.evaluation.ensemble import combine_logits
from exam.evaluation.predictions import (
    read_all_predictions,
    read_predictions,
    to_probabilities,
    write_predictions,
)
from exam.pipelines.infer import run_infer
from exam.pipelines.passage_gain import measure_gains, restore_reader
from exam.pipelines.stress import run_stress
from exam.pipelines.train import train_reader
from exam.report.compare import compare_runs
from exam.retrieval.contexts import read_questions


class Place:
    """A folder with questions, articles and two readers: `open` with passages, `closed` without."""

    def __init__(self, folder):
        self.folder, self.outputs = folder, folder / "outputs"
        make_place(folder)
        known = write_csv(folder / "questions" / "known.csv", kaggle_rows(8, start=60))
        self.known = f"data.test={known.name}"
        self.open, self.closed = (
            train_reader(compose_config("train", *tiny(folder, f"retriever={name}"))).stage.folder
            for name in ("bm25", "none")
        )

    def infer(self, *overrides, verb="infer"):
        words = [f"outputs={self.outputs}", *overrides]
        if not any(o.startswith("predictions") for o in words):
            words += ["data=kaggle", f"data.dir={self.folder / 'questions'}"]
        return compose_config(verb, *words)

    def answered(self):
        """What each reader answers to the known questions."""
        return [
            run_infer(self.infer(f"ckpt={run}", self.known)) for run in (self.open, self.closed)
        ]

    @property
    def both(self):
        return f"ckpt=[{self.open},{self.closed}]"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("readers"))


def predictions(run):
    return read_predictions(run.stage.folder / "predictions.parquet")


def test_an_ensemble_is_scored_beside_its_readers(place, capsys):
    run = run_infer(place.infer(place.both, "ensemble=mean", place.known))
    members = [predictions(answered) for answered in place.answered()]
    combination = predictions(run)
    assert combination.ids == [str(i) for i in range(60, 68)]
    expected = combine_logits([m.logits for m in members], Ensemble("mean", EnsembleKind.mean))
    assert combination.logits == pytest.approx(expected)
    results = json.loads((run.stage.folder / "results.json").read_text())
    assert [row["system"] for row in results["rows"]] == [
        "random order (expected)",
        "constant order (A, B, C)",
        "longest option first",
        "lexical (word overlap with the passages)",
        *(m.name for m in members),
        "mean of probabilities",
        "mean",
    ]
    assert len(results["paired"]) == 2
    capsys.readouterr()
    assert run_infer(place.infer(place.both, "ensemble=mean", place.known)).stage.reused
    assert "mean of probabilities" in capsys.readouterr().out


def test_saved_predictions_combine_without_a_reader(place):
    run = run_infer(place.infer(place.both, "ensemble=vote"))  # test.csv, without answers
    files = [
        run_infer(place.infer(f"ckpt={folder}")).stage.folder / "predictions.parquet"
        for folder in (place.open, place.closed)
    ]
    saved = f"predictions=[{files[0]},{files[1].parent}]"  # a file and a folder
    again = run_infer(place.infer(saved, "ensemble=vote"))
    assert predictions(again).logits == pytest.approx(predictions(run).logits)
    with (again.stage.folder / "submission.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [str(i) for i in range(50, 56)]
    assert (run.stage.folder / "submission.csv").read_text() == (
        (again.stage.folder / "submission.csv").read_text()
    )
    assert again.systems == []


def test_weights_are_fitted_on_held_out_questions(place, capsys):
    fit_on = f"ensemble.fit_on=[{place.open},{place.closed}]"  # their answers to valid.csv
    run = run_infer(place.infer(place.both, "ensemble=fitted", fit_on, place.known))
    results = json.loads((run.stage.folder / "results.json").read_text())["fitted"]
    assert sum(results["weights"].values()) == pytest.approx(1)
    names = [row["system"] for row in results["rows"]]
    assert names[2:] == [
        "mean (equal weights)",
        "fitted, weights from the same questions (optimistic)",
        "fitted, weights from other folds (honest)",
    ]
    assert {row["n"] for row in results["rows"]} == {10}
    assert "weights, fitted on held-out questions: " in capsys.readouterr().out
    with refuses(f"ensemble.fit_on={place.open}/predictions.parquet: ", "answers question '40'"):
        run_infer(place.infer(place.both, "ensemble=fitted", fit_on, "data.test=valid.csv"))
    single = place.infer(
        place.both, "ensemble=fitted", f"ensemble.fit_on={place.open}", place.known
    )
    with pytest.raises(ExamError, match="fit_on has 1 predictions for 2 readers"):
        run_infer(single)


def test_variants_of_a_reader_combine(place):
    variants = "variants=['retriever=bm25','retriever=none','run.context.num_passages=1']"
    words = [f"ckpt={place.open}", "ensemble=max_over_contexts", place.known]
    run = run_infer(place.infer(*words, variants))
    overrides = [["retriever=bm25"], ["retriever=none"], ["run.context.num_passages=1"]]
    outputs = []
    for (override,) in overrides:
        infer = place.infer(f"ckpt={place.open}", place.known, override)
        outputs.append(predictions(run_infer(infer)))
    expected = np.max([to_probabilities(output.logits) for output in outputs], axis=0)
    assert np.exp(predictions(run).logits) == pytest.approx(expected)
    assert len({output.logits.tobytes() for output in outputs}) == 3


def test_rotated_predictions_are_rotated_back(place):
    run = run_infer(place.infer(f"ckpt={place.open}", "option_rotations=5", place.known))
    rotations = read_all_predictions(run.stage.folder / "predictions.parquet")
    assert [rotated.order for rotated in rotations] == [
        "given",
        *(f"rotated by {i}" for i in range(1, 5)),
    ]
    for rotated in rotations[1:]:  # this reader scores options independently
        assert rotated.logits == pytest.approx(rotations[0].logits, abs=1e-4)
        assert rotated.labels == rotations[0].labels


def test_a_submission_has_the_files_letters(place):
    columns = {letter.lower(): letter for letter in "ABCDE"}
    renamed = [f"data.columns.{new}={old}" for new, old in columns.items()]
    first, second = (
        run_infer(place.infer(f"ckpt={place.closed}", *words)).stage.folder
        for words in ([], ["data.options=abcde", *renamed])
    )
    upper, lower = ((folder / "submission.csv").read_text() for folder in (first, second))
    assert lower != upper
    assert lower.splitlines()[1:] == upper.lower().splitlines()[1:]


def test_a_cascade_escalates_the_least_certain(place):
    run = run_infer(place.infer(place.both, "cascade.escalate_fraction=0.5", place.known))
    runs = place.answered()
    cheap, expensive = map(predictions, runs)
    uncertainty = 1 - to_probabilities(cheap.logits).max(axis=1)
    rows = np.argsort(-uncertainty, kind="stable")[:4]
    expected = cheap.logits.copy()
    expected[rows] = expensive.logits[rows]
    assert predictions(run).logits == pytest.approx(expected, abs=1e-4)
    saved = "predictions=[{},{}]".format(*(run.stage.folder for run in runs))
    replayed = run_infer(place.infer(saved, "cascade.escalate_fraction=0.5"))
    assert predictions(replayed).logits == pytest.approx(expected)
    curve = json.loads((replayed.stage.folder / "results.json").read_text())["curve"]
    assert len(curve) == 21
    assert curve[-1]["seconds_a_question"] > curve[0]["seconds_a_question"] > 0
    assert (replayed.stage.folder / "cascade.png").read_bytes().startswith(b"\x89PNG")


def test_a_reader_without_questions_is_skipped(place):
    three = f"ckpt=[{place.open},{place.open},{place.closed}]"
    skipped = run_infer(place.infer(three, "cascade.escalate_fraction=[0,0.5]", place.known))
    expected = run_infer(place.infer(place.both, "cascade.escalate_fraction=0.5", place.known))
    assert predictions(skipped).logits == pytest.approx(predictions(expected).logits)


def test_compared_runs_are_paired_and_explained(place, tmp_path, capsys):
    folders = [answered.stage.folder for answered in place.answered()]
    assert main(["compare", *map(str, folders), "--json", str(tmp_path / "compared.json")]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "compared.json").read_text())
    a, b = (row["map_at_3"] for row in results["rows"][2:])
    assert results["paired"][0]["difference"] == pytest.approx(a - b)
    assert set(results["paired"][0]["questions_needed"]) == {"0.005", "0.01", "0.02", "0.05"}
    for folder in folders:
        statistics = results["statistics"][folder.name]
        assert sum(statistics["by_place"]) == statistics["n"] == 8
        assert f"{folder.name}: accuracy {statistics['accuracy']['value']:.3f} [" in printed
    assert (tmp_path / "compared.png").read_bytes().startswith(b"\x89PNG")


def test_namesakes_in_two_folders_are_distinct(place, tmp_path):
    run = run_infer(place.infer(f"ckpt={place.open}", place.known)).stage.folder
    other = shutil.copytree(place.closed, tmp_path / run.name)
    answered = read_predictions(run / "predictions.parquet")
    wrong = replace(answered, logits=-answered.logits)
    write_predictions(other / "predictions.parquet", [wrong])
    manifest = read_manifest(run / MANIFEST)
    write_manifest(other / MANIFEST, **{**manifest, "files": ["predictions.parquet"]})
    compare_runs([run, other], tmp_path / "compared.json")
    results = json.loads((tmp_path / "compared.json").read_text())
    accuracy = {name: values["accuracy"]["value"] for name, values in results["statistics"].items()}
    first, last = (
        (output.logits.argmax(axis=1) == np.array(output.labels)).mean()
        for output in (answered, wrong)
    )
    assert accuracy == {str(run): first, str(other): last}
    assert first != last


def test_runs_of_other_questions_are_not_compared(place, capsys):
    other = run_infer(place.infer(f"ckpt={place.open}", place.known)).stage.folder
    capsys.readouterr()
    assert main(["compare", str(place.open), str(other)]) == 2
    assert capsys.readouterr().err == (
        f"{other} answers question '60', which {place.open} does not.\n"
        "Give predictions of the same questions.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ensemble=mean", "cascade.escalate_fraction=0.5"])
def test_two_processes_give_the_answers_of_one(place, tmp_path, way):
    words = [place.both, way, "data=kaggle", f"data.dir={place.folder / 'questions'}"]
    words += [f"outputs={place.outputs}", place.known, "resume=never"]
    outputs = []
    for processes in (1, 2):
        process = run_exam("infer", *words, cwd=tmp_path, processes=processes)
        (name,) = [line for line in process.stdout.splitlines() if line.endswith("submission.csv")]
        outputs.append(read_predictions(Path(name).with_name("predictions.parquet")))
    assert outputs[0].logits == pytest.approx(outputs[1].logits, abs=1e-5)


def test_shares_must_fit_the_readers(place):
    for runs, share in ((f"ckpt={place.open}", "0.5"), (place.both, "[0.5,0.2]")):
        with refuses("cascade.escalate_fraction=", "does not fit"):
            run_infer(place.infer(runs, f"cascade.escalate_fraction={share}", place.known))


def test_several_readers_need_an_ensemble(place):
    with pytest.raises(ExamError, match=r"2 readers and no ensemble\.\n.*ensemble=mean"):
        run_infer(place.infer(place.both, place.known))
    with pytest.raises(ExamError, match=r"ensemble\.weights has 3 weights for 2 readers"):
        run_infer(place.infer(place.both, place.known, "ensemble=mean", "ensemble.weights=[1,1,1]"))


def test_a_variant_with_an_open_quote_is_refused(place):
    with pytest.raises(ExamError, match=r"variants=.* cannot be read: .*\n.* close its quotes"):
        run_infer(place.infer(f"ckpt={place.open}", place.known, """variants=["a='b"]"""))


def test_a_variant_cannot_change_the_whole_command(place):
    with refuses("variants='option_rotations=5' sets option_rotations", "run.<key>"):
        rotations = "variants=['option_rotations=5','option_rotations=1']"
        run_infer(place.infer(f"ckpt={place.closed}", rotations))


def test_another_layout_than_at_training_is_logged(place, caplog):
    words = ["context=default", "context.layout=question_first"]
    run_infer(place.infer(f"ckpt={place.open}", "context=default"))
    assert not [m for m in caplog.messages if "context.layout" in m]
    run_infer(place.infer(f"ckpt={place.open}", *words))
    (message,) = [m for m in caplog.messages if "context.layout=question_first" in m]
    assert "context_first" in message


def reader_of_pairs(place, folder):
    """Restore the reader that mines pairs for a reranker."""
    pairs = ["task=reranker", "reranker.ckpt=x", "training_pairs.positives=reader"]
    pairs.append(f"training_pairs.reader={folder}")
    return restore_reader(compose_config("train", *tiny(place.folder, *pairs)))


def test_a_gain_is_a_difference_of_log_probabilities(place):
    run, config = reader_of_pairs(place, place.open)
    answers = {}
    for top_k in (0, 1):
        override = f"run.context.num_passages={top_k}"
        answers[top_k] = run_infer(place.infer(f"ckpt={place.open}", place.known, override))
    (contexts,) = (stage for stage in answers[1].stages if stage.kind == "contexts")
    questions = read_questions(contexts)
    path = measure_gains(run, config, questions, contexts, 1, place.outputs)
    log_probability = {
        top_k: log_softmax(predictions(answered).logits, axis=1)[range(8), questions["label"]]
        for top_k, answered in answers.items()
    }
    gains = pq.read_table(path)["gain"].to_pylist()
    assert len({round(gain, 6) for gain in gains}) > 4
    assert gains == pytest.approx(log_probability[1] - log_probability[0], abs=1e-5)


def test_a_reader_of_joint_passages_has_no_gains(place):
    lexical = train_reader(
        compose_config("train", *tiny(place.folder, "model=lexical"))
    ).stage.folder
    features = ["model.overlap_features=true", "trainer.num_train_epochs=0"]
    joint = train_reader(compose_config("train", *tiny(place.folder, *features))).stage.folder
    for folder, setting in (
        (lexical, "model.kind=lexical"),
        (joint, "model.overlap_features=true"),
    ):
        with pytest.raises(ExamError, match=setting) as caught:
            reader_of_pairs(place, folder)
        assert str(caught.value).endswith("training_pairs.reader=<folder>")


def test_a_reader_under_stress(place, capsys):
    run_stress(place.infer(f"ckpt={place.open}", place.known, verb="stress"))
    (folder,) = (place.outputs / "stress").glob("kaggle-*")
    results = json.loads((folder / "results.json").read_text())
    names = [row["system"] for row in results["rows"]]
    assert names[4:] == [
        "as given",
        "without context",
        "another question's context",
        "passages reversed",
        "options in another order",
        "a wrong option is “None of the above”",
        "the right option is “None of the above”",
        "as given, where the longest option is wrong",
    ]
    unchanged, permuted = (
        read_predictions(folder / f"{names[4:].index(name)}.parquet")
        for name in ("as given", "options in another order")
    )
    assert np.sort(permuted.logits) == pytest.approx(np.sort(unchanged.logits), abs=1e-3)
    assert permuted.labels != unchanged.labels
    assert results["flip_rate"] == 0  # this reader scores options independently
    closed = read_predictions(folder / "1.parquet")
    assert not np.allclose(closed.logits, unchanged.logits)
    longest = [r["n"] for r in results["rows"] if r["system"].endswith("option is wrong")]
    assert 0 < longest[0] < 8
    assert "first choices that change with the order of options: 0.0%" in capsys.readouterr().out


def test_damaged_predictions_of_an_interrupted_stress_test_are_repeated(place, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    stress = place.infer(f"ckpt={place.closed}", place.known, verb="stress")
    with monkeypatch.context() as patched:
        patched.setattr("exam.pipelines.stress._score", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_stress(stress)
    (path,) = (place.outputs / "stress").glob(f"{place.closed.name}-*/1.parquet")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    run_stress(stress)
    assert path.read_bytes() == content


@pytest.mark.slow
def test_commands_from_the_command_line(place):
    words = ["data=kaggle", f"data.dir={place.folder / 'questions'}", f"outputs={place.outputs}"]
    process = run_exam("infer", place.both, "ensemble=rank", *words)
    assert process.stdout.strip().endswith("submission.csv")
    process = run_exam("stress", f"ckpt={place.open}", place.known, *words)
    assert "None of the above" in process.stdout
