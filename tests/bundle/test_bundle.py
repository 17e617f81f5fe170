"""A bundle: its wheels, its notebook, its files, its size and its work offline."""

import json
import sys
import tomllib
from functools import partial
from importlib.metadata import distributions, version
from zipfile import ZipFile

import pytest
from helpers import ROOT, make_place, make_questions, python, refuses, run_exam, tiny

from exam.bundle.bundle import (
    _find_places,
    _format_overrides,
    estimate_seconds,
    format_estimate,
    run_bundle,
)
from exam.bundle.contents import Contents, check_bundle, link_stages, unpack
from exam.bundle.notebook import Place, format_commands, write_notebook
from exam.bundle.rehearsal import dry_run, has_namespaces
from exam.bundle.wheels import Target, fetch_wheel, find_missing, parse_pins, read_target
from exam.config import Bundle, Data
from exam.config.compose import compose_config
from exam.core.artifacts import Stage
from exam.core.errors import ExamError
from exam.core.files import atomic_directory, read_json, write_checksummed_json, write_json
from exam.data.questions import read_questions

RUNNING = "{}.{}".format(*sys.version_info)
# The relevant packages of Kaggle's image in 2026-08.
KAGGLE = """\
Python 3.12.12 (main, Oct 10 2025, 08:52:57) [GCC 11.4.0]
accelerate==1.13.0
datasets==4.0.0
filelock==3.20.0
fsspec==2025.3.0
huggingface_hub==1.11.0
Jinja2==3.1.6
numpy==2.0.2
packaging==25.0
pandas==2.2.2
peft==0.19.1
protobuf==5.29.5
pyarrow==18.1.0
pydantic==2.12.3
PyYAML==6.0.3
regex==2025.11.3
requests==2.32.4
safetensors==0.7.0
scikit-learn==1.6.1
scipy==1.16.3
sentence-transformers==5.4.1
sentencepiece==0.2.1
tiktoken==0.12.0
tokenizers==0.22.2
torch==2.10.0+cu128
tqdm==4.67.1
transformers==5.0.0
triton==3.6.0
"""


def find(requirements, packages, python="3.12"):
    return find_missing(requirements, Target(python, [], packages))


def test_pins_are_parsed():
    lines = [
        "Python 3.12.12 (main, Oct 10 2025, 08:52:57)",
        "[GCC 11.4.0]",
        "# pip freeze",
        "Torch==2.13.0+cpu",
        "ruamel_yaml==0.18 ; python_version < '3.12'",
        "numpy>=2",
        "exam @ file:///x",
        "uvicorn[standard]==0.40.0  # comment",
        "",
    ]
    assert parse_pins(lines) == {
        "torch": "2.13.0+cpu",
        "ruamel-yaml": "0.18",
        "uvicorn": "0.40.0",
    }


def test_missing_and_old_packages_are_carried():
    have = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions()}
    assert find(["hydra-core>=1.3"], have, "3.11") == {}
    older = {**have, "packaging": "1.0", "numpy": "1.26.4"}
    older.pop("hydra-core")
    older.pop("omegaconf")
    requirements = [
        "hydra-core>=1.3",
        "numpy>=2",
        'blingfire; sys_platform == "darwin"',
        "faiss-cpu",
    ]
    assert find(requirements, older, "3.11") == {
        name: have[name] for name in ("hydra-core", "omegaconf", "numpy")
    }  # hydra-core takes any version of packaging
    with pytest.raises(ExamError, match="pip install no-such-thing"):
        find(["no-such-thing"], {}, "3.11")
    with pytest.raises(ExamError, match=rf"numpy>=99; this environment has {have['numpy']}"):
        find(["numpy>=99"], have, "3.11")


def test_kaggles_image_lacks_newer_versions_and_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    carried = find(project["dependencies"], parse_pins(KAGGLE.splitlines()))
    kept = {"numpy", "pandas", "scikit-learn", "scipy", "sentencepiece", "tiktoken", "torch"}
    kept |= {"packaging", "pyyaml", "requests", "triton"}
    assert not kept & carried.keys()
    assert carried.keys() >= {
        *("accelerate", "datasets", "peft", "pyarrow", "sentence-transformers", "transformers"),
        *("huggingface-hub", "safetensors", "tokenizers"),  # transformers needs newer ones
        *("bm25s", "faiss-cpu", "hydra-core", "livekit-blingfire"),  # the image has none
    }
    assert carried["transformers"] == version("transformers")


@pytest.mark.parametrize(
    ("needed", "is_carried"),
    [("torch>=2.10", False), ("torch==2.10.0", False), ("torch>=2.11", True), ("torch", False)],
)
def test_a_local_version_is_compared_as_its_public_one(needed, is_carried):
    assert ("torch" in find([needed], {"torch": "2.10.0+cu128"})) is is_carried


@pytest.mark.parametrize(
    ("first_line", "python", "expected"),
    [
        ("Python 3.12.12 (main, Oct 10 2025, 08:52:57) [GCC 11.4.0]", None, "3.12"),
        ("Python 3.13.2 | packaged by conda-forge | (main, Feb 17 2025)", None, "3.13"),
        ("Python 3.13.2 (main, Feb 17 2025)", "3.13", "3.13"),
        ("numpy==2.0.2", None, "3.12"),
        ("numpy==2.0.2", "3.11", "3.11"),
    ],
)
def test_the_targets_python_is_the_images(tmp_path, first_line, python, expected):
    (tmp_path / "image.txt").write_text(f"{first_line}\ntorch==2.10.0+cu128\n")
    target = read_target(Bundle(constraints=str(tmp_path / "image.txt"), python=python))
    assert target.python == expected
    assert target.packages["torch"] == "2.10.0+cu128"


def test_without_an_image_the_target_is_kaggle():
    assert read_target(Bundle()) == Target("3.12", Bundle().platforms, {})


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Packages that are installed here, and that pip finds in a folder."""
    site, files = tmp_path / "site", tmp_path / "files"
    files.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(files))

    def publish(name, needs=(), *, tags="py3-none-any", needs_here=()):
        information = f"{name}-1.0.dist-info"
        (site / information).mkdir(parents=True)
        (site / information / "METADATA").write_text(metadata(name, needs_here))
        with ZipFile(files / f"{name}-1.0-{tags}.whl", "w") as archive:
            archive.writestr(f"{information}/METADATA", metadata(name, needs))
            archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\n")

    def metadata(name, needs):
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
        return "\n".join([*lines, *(f"Requires-Dist: {requirement}" for requirement in needs)])

    return publish


def fetch(tmp_path, name):
    """Fetch the wheels of a package for a target that has numpy."""
    target = Target("3.12", ["manylinux_2_17_x86_64"], {"numpy": "2.0.2"})
    find_missing([name], target, partial(fetch_wheel, target, tmp_path))
    return sorted(path.name for path in tmp_path.glob("*.whl"))


def test_wheels_and_their_dependencies_are_for_the_target(tmp_path, registry):
    native = "cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64"
    needs = ("numpy>=2", "there", "absent; python_version < '3.12'")
    registry("native", needs, tags=native, needs_here=["here"])
    registry("there", tags="cp39-abi3-manylinux_2_17_x86_64")
    assert fetch(tmp_path, "native") == [
        f"native-1.0-{native}.whl",
        "there-1.0-cp39-abi3-manylinux_2_17_x86_64.whl",
    ]


@pytest.mark.parametrize(
    "tags",
    [
        "cp311-cp311-manylinux_2_17_x86_64",
        "cp313-abi3-manylinux_2_17_x86_64",
        "cp312-cp312-manylinux_2_39_x86_64",
        "cp312-cp312-manylinux_2_17_aarch64",
    ],
)
def test_a_wheel_for_another_python_or_platform_is_refused(tmp_path, registry, tags):
    registry("native", tags=tags)
    with pytest.raises(ExamError, match=r"no wheel of native==1\.0 for Python 3\.12, manyl"):
        fetch(tmp_path, "native")


def test_a_dependency_of_a_targets_wheel_has_to_be_installed_here(tmp_path, registry):
    registry("gpu", ["no-such-cublas; sys_platform == 'linux'"])
    with pytest.raises(ExamError, match="no-such-cublas, or list the package in the image"):
        fetch(tmp_path, "gpu")
    registry("new", ["old>=2"])
    registry("old")
    with pytest.raises(ExamError, match=r"old>=2; this environment has 1\.0"):
        fetch(tmp_path, "new")


def test_a_notebook_runs_the_same_lines(tmp_path):
    verb = ["ckpt={bundle}/runs/r", "data=csv", 'data.test="my test.csv"']
    lines = format_commands([*verb, "run.corpus.dir={bundle}/corpus/0"], ["gguf"])
    assert lines[2] == (
        "HF_HUB_CACHE={bundle}/hub HF_HUB_OFFLINE=1 python -m exam infer "
        "'ckpt={bundle}/runs/r' data=csv 'data.test=\"my test.csv\"' "
        "'run.corpus.dir={bundle}/corpus/0' outputs=outputs"
    )
    bundle = tmp_path / "input" / "owner" / "any-name"
    (bundle / "runs" / "r").mkdir(parents=True)
    places = {"bundle": Place(str(tmp_path / "input"), "runs/r")}
    write_notebook(tmp_path / "n.ipynb", lines, places, "3.12")
    notebook = json.loads((tmp_path / "n.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    assert [cell["cell_type"] for cell in notebook["cells"]] == ["markdown", *["code"] * 6]
    values = {}
    exec(cells[2], values)
    assert values["bundle"] == str(bundle)  # wherever the data set is attached
    assert cells[3].splitlines()[0] == (
        "!pip install --quiet --no-index --find-links {bundle}/wheels openbook-exam gguf"
    )
    (bundle / "runs" / "r").rmdir()
    with pytest.raises(SystemExit, match="attach the data set"):
        exec(cells[2], {})
    write_notebook(tmp_path / "n.ipynb", ['echo {"a": 1} $HOME $(ls)'], places, "3.12")
    (_, _, cell) = json.loads((tmp_path / "n.ipynb").read_text())["cells"]
    assert cell["source"][0] == '!echo {{"a": 1}} $$HOME $(ls)\n'  # as IPython reads it


def test_a_notebook_names_no_path_of_this_machine(tmp_path):
    test = tmp_path / "my test.csv"
    bundle = compose_config(
        "bundle", f"ckpt={tmp_path}/runs/r", "out=b", "data=csv", f"data.test={test}"
    )
    overrides = _format_overrides(bundle)
    assert str(tmp_path) not in " ".join(overrides)
    assert {'data.test="my test.csv"', "data.dir={questions}"} <= set(overrides)
    places = _find_places(bundle, str(tmp_path), str(tmp_path))
    assert places["questions"] == Place(str(tmp_path), "my test.csv")
    competition = compose_config("bundle", f"ckpt={tmp_path}/runs/r", "out=b", "data=kaggle_test")
    assert "data.dir={questions}" not in _format_overrides(competition)  # exam finds its files


def test_time_is_estimated_from_two_samples(tmp_path):
    def stages(contexts, infer):
        return [
            Stage(kind, tmp_path, {}, seconds=seconds)
            for kind, seconds in (("contexts", contexts), ("infer", infer), ("index", 500.0))
        ]

    seconds = estimate_seconds(stages(3.0, 6.0), stages(7.0, 14.0), (10, 50), 1000)
    assert seconds == pytest.approx({"contexts": 2 + 0.1 * 1000, "infer": 4 + 0.2 * 1000})
    assert format_estimate([seconds], 1000, 1).splitlines() == [
        "Estimate for 1,000 questions, from two samples; the limit is 1 h",
        "contexts         102 s    2.8%",
        "infer            204 s    5.7%",
        "total            306 s    8.5%",
    ]


def test_escalated_questions_cost_their_share(tmp_path):
    def sample(seconds, *, reused):
        contexts = Stage("contexts", tmp_path, {}, seconds=8.0, reused=reused)
        return [contexts, Stage("infer", tmp_path, {}, seconds=seconds)]

    few, many = sample(1.0, reused=False), sample(5.0, reused=False)
    cheap = estimate_seconds(few, many, (10, 50), 1000)
    few, many = sample(2.0, reused=True), sample(42.0, reused=True)
    expensive = estimate_seconds(few, many, (10, 50), 1000, share=0.3)
    assert cheap == pytest.approx({"contexts": 8.0, "infer": 0.1 * 1000})
    assert expensive == pytest.approx({"contexts": 0.0, "infer": 1.0 * 300})


def test_stages_of_a_read_only_bundle_are_linked(tmp_path):
    stage = tmp_path / "bundle" / "outputs" / "index" / "wikipedia-minilm-12345678"
    stage.mkdir(parents=True)
    (stage / "manifest.json").write_text("{}")
    for _ in range(2):
        link_stages(tmp_path / "bundle", tmp_path / "outputs")
    linked = tmp_path / "outputs" / "index" / stage.name
    assert linked.is_symlink()
    assert (linked / "manifest.json").read_text() == "{}"


@pytest.fixture
def bundled(tmp_path):
    """A small bundle's folder."""
    (tmp_path / "source").write_text("x")
    contents = Contents(tmp_path / "bundle")
    for name in ("outputs/k/n/f", "notebook.ipynb"):
        contents.add(tmp_path / "source", name)
    contents.close(limit_gib=1, python=RUNNING)
    return contents.folder


def test_unpacking_checks_a_bundle(bundled, tmp_path):
    (bundled / "notebook.ipynb").write_text("edited, as people do")
    unpack(bundled, tmp_path / "outputs")
    assert (tmp_path / "outputs" / "k" / "n" / "f").read_text() == "x"
    file = bundled / "outputs" / "k" / "n" / "f"
    for change, state in (
        (lambda: file.write_text("y"), "is not the file that was written"),
        (file.unlink, "is missing"),
    ):
        change()
        with refuses(f"{file} {state}.", "Upload the bundle again, or make it again."):
            unpack(bundled, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_notebook_and_unpacking_refuse_another_python(bundled, tmp_path):
    message = (
        "This is Python {}, and the bundle's wheels are for Python {}. "
        "Make the bundle again with python={}, or use it with Python {}."
    )
    write_notebook(tmp_path / "n.ipynb", [], {}, "3.99")
    first = read_json(tmp_path / "n.ipynb")["cells"][1]
    with pytest.raises(SystemExit) as stopped:
        exec("".join(first["source"]))
    assert str(stopped.value) == message.format(RUNNING, "3.99", RUNNING, "3.99")
    content = read_json(bundled / "contents.json")
    del content["sha256"]
    (bundled / "contents.json").unlink()
    write_checksummed_json(bundled / "contents.json", {**content, "python": "3.99"})
    with refuses(str(stopped.value)):
        unpack(bundled, tmp_path / "outputs")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is missing"),
        ({}, "files is a NoneType"),
        ({"files": ["a"]}, "files is a list"),
        ({"python": RUNNING, "files": {"../source": {}}}, "'../source' leads out of its folder"),
    ],
)
def test_other_lists_of_a_bundles_files_are_refused(bundled, content, reason):
    path = bundled / "contents.json"
    path.unlink()
    if content is not None:
        write_checksummed_json(path, content)
    with refuses(str(path), reason):
        check_bundle(bundled)


def test_a_changed_list_of_files_is_refused(bundled):
    contents = read_json(bundled / "contents.json")
    write_json(bundled / "contents.json", {**contents, "overrides": ["run.seed=1"]})
    with pytest.raises(ExamError, match=r"contents\.json is not the file that was written"):
        check_bundle(bundled)


def test_a_bundle_is_written_atomically(tmp_path):
    def fill(error):
        with atomic_directory(tmp_path / "b") as part:
            (part / "f").write_text("x")
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        fill(KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".b.part").mkdir()  # of a process that was killed
    (tmp_path / ".b.part" / "old").touch()
    fill(None)
    assert [path.name for path in tmp_path.rglob("*")] == ["b", "f"]


def test_too_large_a_bundle_names_its_largest_file(tmp_path):
    contents = Contents(tmp_path / "b")
    (tmp_path / "large").write_bytes(b"x" * 4096)
    contents.add(tmp_path / "large", "corpus/0/articles.jsonl")
    with refuses("limit_gib=9.53674e-07", "corpus/0/articles.jsonl", "with_corpus=false"):
        contents.close(limit_gib=1024 / 2**30, python="3.12")


def test_attached_competition_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("exam.data.files.INPUT", tmp_path)
    attached = make_questions(tmp_path / "my-exam")
    columns = {c: c for c in ["id", "prompt", *"ABCDE"]}
    data = Data(name="k", dir=str(tmp_path / "none"), competition="my-exam", columns=columns)
    assert read_questions(data, "test.csv")["id"][:] == [str(i) for i in range(50, 56)]
    (attached / "test.csv").unlink()
    with pytest.raises(ExamError, match=r"none/test\.csv does not exist"):
        read_questions(data, "test.csv")


@pytest.fixture
def no_network():
    if not has_namespaces():
        pytest.skip("this system has no network namespaces")


@pytest.mark.slow
def test_a_rehearsal_stops_at_a_failing_line_and_prints_its_output(no_network, tmp_path):
    connect = "python -c 'import socket; socket.create_connection((\"1.1.1.1\", 53), 5)'"
    lines = ['echo {"a": 1}; which python', connect, "touch submission.csv"]
    write_notebook(tmp_path / "n.ipynb", lines, {}, RUNNING)
    with pytest.raises(ExamError) as caught:
        dry_run(tmp_path / "n.ipynb", Target(RUNNING, [], {}), tmp_path / "submission.csv")
    output = str(caught.value).splitlines()
    assert output[0].startswith("The bundle fails without a network")
    assert "OSError: [Errno 101] Network is unreachable" in output
    assert output[-1] == f"SystemExit: Failed: {connect}"
    assert not (tmp_path / "submission.csv").exists()


@pytest.mark.slow
def test_a_bundle_answers_without_a_network(no_network, tmp_path, encoder):
    words = tiny(make_place(tmp_path), f"encoder.name_or_path={encoder}")
    for more in (["retriever=two_stage"], ["retriever=none", "name=closed"]):
        run_exam("train", *words, *more)
    (run,) = (tmp_path / "outputs" / "train").glob("kaggle-tiny-*")
    (closed,) = (tmp_path / "outputs" / "train").glob("closed-*")
    image = tmp_path / "image.txt"
    packages = {d.metadata["Name"].lower(): d.version for d in distributions()}
    excluded = ("exam", "openbook-exam", "blingfire")  # the bundle must carry these
    excluded += ("pip", "setuptools", "wheel")  # pip freeze does not list them
    pins = [f"{name}=={version}" for name, version in packages.items() if name not in excluded]
    image.write_text("\n".join([f"Python {sys.version}", *pins]))
    out = tmp_path / "bundle"
    local = [*words[:2], "data.test=test.csv", f"outputs={tmp_path / 'outputs'}"]
    cascade = [f"ckpt=[{closed},{run}]", "cascade.escalate_fraction=0.5", *local]
    more = [f"out={out}", f"constraints={image}", "rehearse=true", "questions=4000"]
    bundling = python("-m", "exam", "bundle", *cascade, *more)
    assert bundling.returncode == 0, bundling.stderr
    wheels = [path.name.split("-")[0] for path in (out / "wheels").glob("*.whl")]
    assert sorted(wheels) == ["blingfire", "openbook_exam"]
    assert "rehearsed without a network: 6 questions in " in bundling.stdout
    assert "Estimate for 4,000 questions" in bundling.stdout
    run_exam("infer", *cascade)
    (submission,) = (tmp_path / "outputs" / "ensemble").glob("*/submission.csv")
    assert (tmp_path / "bundle-submission.csv").read_bytes() == submission.read_bytes()
    assert submission.read_text().count("\n") == 7
    contents = json.loads((out / "contents.json").read_text())
    assert contents["bytes"] == sum(f["bytes"] for f in contents["files"].values())
    assert not [name for name in contents["files"] if name.startswith("outputs/contexts")]
    assert "corpus/0/articles.jsonl" in contents["files"]  # of the second run; the first has none


@pytest.mark.parametrize(
    ("overrides", "problem", "remedy"),
    [
        (["out={out}"], "{out} is not empty", "out=<folder>"),
        (["constraints=none.txt"], "constraints=none.txt", "(python -VV; pip freeze) > image.txt"),
        (["constraints={out}/image.txt", "python=3.12"], "Python 3.13", "Leave out python="),
        (["python=3"], "python=3 ", "python=3.12"),
        (["python=3.9"], "exam needs >=3.11", "Choose a newer image"),
        (["python=3.99", "rehearse=true"], "for 3.99", "Leave out rehearse=true"),
        (["+run.context.num_passages=3"], "run.<key>", "the notebook's infer line"),
        (["ckpt=[a,b]"], "2 readers", "ensemble=mean"),
        (["cascade.escalate_fraction=0.3"], "cascade.escalate_fraction=0.3", "two readers or more"),
        (["ensemble=fitted", "ensemble.fit_on=[a]"], "ensemble=fitted", "ensemble.weights="),
    ],
)
def test_settings_that_a_notebook_cannot_use_are_refused(tmp_path, overrides, problem, remedy):
    (tmp_path / "image.txt").write_text("Python 3.13.2 (main, Feb 17 2025)\n")
    values = [value.format(out=tmp_path) for value in ["out={out}/new", *overrides]]
    with refuses(problem.format(out=tmp_path), "\n", remedy):
        run_bundle(compose_config("bundle", "ckpt=nothing", *values))
