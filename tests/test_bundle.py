"""A bundle holds what answering needs, says how large it is, and works without a network."""

import json
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, version
from zipfile import ZipFile

import pytest
from conftest import ROOT, exam, make_place, make_questions, tiny

from exam import kaggle
from exam.bundle.budget import costs, shown, together
from exam.bundle.bundle import make_bundle
from exam.bundle.contents import Contents, check, whole
from exam.bundle.notebook import commands, write_notebook
from exam.bundle.rehearsal import ALONE, rehearse
from exam.bundle.target import Target, check_wheels, image_packages, target_of
from exam.bundle.unpack import check_and_unpack, unpack
from exam.bundle.wheels import check_needs, missing
from exam.compose import composed
from exam.config import Bundle, Data
from exam.errors import ExamError
from exam.files import read_json, write_json, write_signed
from exam.questions import read
from exam.stage import Stage

RUNNING = "{}.{}".format(*sys.version_info)
# Of Kaggle's image in 2026-08, what this project needs or nearly so.
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


def test_an_images_packages_are_those_it_pins():
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
    assert image_packages(lines) == {
        "torch": "2.13.0+cpu",
        "ruamel-yaml": "0.18",
        "uvicorn": "0.40.0",
    }


def test_what_an_image_lacks_or_has_too_old_is_carried():
    have = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions()}
    assert missing(["hydra-core>=1.3"], have, "3.11") == {}
    older = {**have, "packaging": "1.0", "numpy": "1.26.4"}
    older.pop("hydra-core")
    older.pop("omegaconf")
    wanted = ["hydra-core>=1.3", "numpy>=2", 'blingfire; sys_platform == "darwin"', "faiss-cpu"]
    assert missing(wanted, older, "3.11") == {
        name: have[name] for name in ("hydra-core", "omegaconf", "numpy")
    }  # and packaging, in any version, is enough for hydra-core
    with pytest.raises(ExamError, match="no-such-thing is needed, and not installed here"):
        missing(["no-such-thing"], {}, "3.11")


def test_kaggles_image_lacks_newer_versions_and_what_they_need():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    carried = missing(project["dependencies"], image_packages(KAGGLE.splitlines()), "3.12")
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
    assert ("torch" in missing([needed], {"torch": "2.10.0+cu128"}, "3.12")) is is_carried


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
    target = target_of(Bundle(image=str(tmp_path / "image.txt"), python=python))
    assert target.python == expected
    assert target.image["torch"] == "2.10.0+cu128"


def test_without_an_image_the_target_is_kaggle():
    assert target_of(Bundle()) == Target("3.12", Bundle().platforms, {})


WHEEL = "a-1.0-{}.whl"


@pytest.mark.parametrize(
    "tags",
    [
        "py3-none-any",
        "py2.py3-none-any",
        "cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64",
        "cp39-abi3-manylinux_2_28_x86_64",
        "cp312-cp312-linux_x86_64",
    ],
)
def test_wheels_for_the_target_are_carried(tmp_path, tags):
    (tmp_path / WHEEL.format(tags)).touch()
    check_wheels(tmp_path, target_of(Bundle()))


@pytest.mark.parametrize(
    "tags",
    [
        "cp311-cp311-manylinux_2_17_x86_64",
        "cp311-none-any",
        "cp312-cp312t-manylinux_2_17_x86_64",
        "cp313-abi3-manylinux_2_17_x86_64",
        "cp312-cp312-manylinux_2_39_x86_64",
        "cp312-cp312-manylinux_2_17_aarch64",
        "cp312-cp312-macosx_11_0_arm64",
        "py2-none-any",
    ],
)
def test_wheels_for_another_python_abi_or_platform_are_refused(tmp_path, tags):
    (tmp_path / WHEEL.format("py3-none-any")).touch()
    (tmp_path / WHEEL.format(tags)).touch()
    with pytest.raises(ExamError) as caught:
        check_wheels(tmp_path, target_of(Bundle(platforms=["manylinux_2_17_x86_64"])))
    assert str(caught.value) == (
        f"{WHEEL.format(tags)} cannot be installed on the target: Python 3.12, "
        "manylinux_2_17_x86_64.\nCheck python= and platforms=, or have the image bring the "
        "package (image=<constraints file>)."
    )


def wheel(folder, name, version, *needs):
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata = "\n".join([*lines, *(f"Requires-Dist: {need}" for need in needs)])
    with ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", metadata)


def test_a_wheel_that_lacks_what_it_needs_on_the_target_is_refused(tmp_path):
    wheel(tmp_path, "fits", "1.0", "torch", "numpy>=2", "absent; python_version < '3.12'")
    wheel(tmp_path, "torch", "2.13.0", "numpy")
    target = Target("3.12", [], {"numpy": "2.0.2"})
    check_needs(tmp_path, target)
    wheel(tmp_path, "torch", "2.13.0", "numpy", "nvidia-cublas==13; sys_platform == 'linux'")
    with pytest.raises(ExamError) as caught:
        check_needs(tmp_path, target)
    assert str(caught.value) == (
        'torch 2.13.0 needs nvidia-cublas==13; sys_platform == "linux" on the target, and neither '
        "the bundle nor the image has it (missing).\n"
        "Use an image that has torch or nvidia-cublas: image=<its packages>."
    )
    wheel(tmp_path, "torch", "2.13.0", "numpy>=2.1")
    with pytest.raises(ExamError, match=r"needs numpy>=2\.1 on the target.*\(2\.0\.2\)"):
        check_needs(tmp_path, target)


def test_a_notebook_runs_the_same_lines(tmp_path):
    verb = ["ckpt={bundle}/runs/r", "data=csv", 'data.test="my test.csv"']
    lines = commands(["run.corpus.dir={bundle}/corpus/0"], verb, 2, ["gguf"])
    assert lines[2] == (
        "HF_HUB_CACHE={bundle}/hub HF_HUB_OFFLINE=1 torchrun --nproc-per-node 2 -m exam infer "
        "'ckpt={bundle}/runs/r' data=csv 'data.test=\"my test.csv\"' "
        "'run.corpus.dir={bundle}/corpus/0' outputs=outputs"
    )
    write_notebook(tmp_path / "n.ipynb", lines, "/kaggle/input/b", "3.12")
    notebook = json.loads((tmp_path / "n.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    assert [cell["cell_type"] for cell in notebook["cells"]] == ["markdown", *["code"] * 5]
    assert cells[2].splitlines()[0] == (
        "!pip install --quiet --no-index --find-links /kaggle/input/b/wheels openbook-exam gguf"
    )
    assert "{bundle}" not in "".join(cells)
    write_notebook(tmp_path / "n.ipynb", ['echo {"a": 1} $HOME $(ls)'], "b", "3.12")
    (_, _, cell) = json.loads((tmp_path / "n.ipynb").read_text())["cells"]
    assert cell["source"][0] == '!echo {{"a": 1}} $$HOME $(ls)\n'  # as IPython reads it


def test_time_is_estimated_from_two_samples(tmp_path):
    def stages(contexts, infer):
        return [
            Stage(kind, tmp_path, {}, seconds=seconds)
            for kind, seconds in (("contexts", contexts), ("infer", infer), ("index", 500.0))
        ]

    found = costs(stages(3.0, 6.0), stages(7.0, 14.0), (10, 50))
    assert (found["contexts"].fixed, found["contexts"].each) == (2.0, 0.1)
    assert found["infer"].of(1000) == pytest.approx(4 + 200)
    assert shown(found, 1000, 1).splitlines() == [
        "computed for 1,000 questions, from a measured sample; 1 h are given",
        "contexts         102 s    2.8%",
        "infer            204 s    5.7%",
        "together         306 s    8.5%",
    ]


def test_what_a_cascade_asks_further_costs_its_share(tmp_path):
    def sampled(seconds, *, reused):
        contexts = Stage("contexts", tmp_path, {}, seconds=8.0, reused=reused)
        return [contexts, Stage("infer", tmp_path, {}, seconds=seconds)]

    cheap = costs(sampled(1.0, reused=False), sampled(5.0, reused=False), (10, 50))
    dear = costs(sampled(2.0, reused=True), sampled(42.0, reused=True), (10, 50), share=0.3)
    both = together([cheap, dear])
    assert both["contexts"].of(1000) == 8.0  # of the same questions: not done again
    assert both["infer"].of(1000) == pytest.approx(0.1 * 1000 + 1.0 * 300)


def test_stages_of_a_read_only_bundle_are_linked(tmp_path):
    stage = tmp_path / "bundle" / "outputs" / "index" / "wikipedia-minilm-12345678"
    stage.mkdir(parents=True)
    (stage / "manifest.json").write_text("{}")
    for _ in range(2):
        assert unpack(tmp_path / "bundle", tmp_path / "outputs") == 1
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


def test_a_bundle_is_checked_where_it_is_unpacked(bundled, tmp_path):
    (bundled / "notebook.ipynb").write_text("edited, as people do")
    check_and_unpack(bundled, tmp_path / "outputs")
    assert (tmp_path / "outputs" / "k" / "n" / "f").read_text() == "x"
    file = bundled / "outputs" / "k" / "n" / "f"
    for change, state in (
        (lambda: file.write_text("y"), "is not the file that was bundled"),
        (file.unlink, "is missing"),
    ):
        change()
        with pytest.raises(ExamError) as caught:
            check_and_unpack(bundled, tmp_path / "other")
        assert str(caught.value) == f"{file} {state}.\nUpload the bundle again, or make it again."
    assert not (tmp_path / "other").exists()


def test_another_python_is_one_line_in_the_notebook_and_where_it_is_unpacked(bundled, tmp_path):
    said = (
        "This is Python {}, and the bundle's wheels are for Python {}. "
        "Make the bundle again with python={}, or use it with Python {}."
    )
    write_notebook(tmp_path / "n.ipynb", [], "b", "3.99")
    first = read_json(tmp_path / "n.ipynb")["cells"][1]
    with pytest.raises(SystemExit) as stopped:
        exec("".join(first["source"]))
    assert str(stopped.value) == said.format(RUNNING, "3.99", RUNNING, "3.99")
    content = read_json(bundled / "contents.json")
    del content["sha256"]
    (bundled / "contents.json").unlink()
    write_signed(bundled / "contents.json", {**content, "python": "3.99"})
    with pytest.raises(ExamError) as caught:
        check_and_unpack(bundled, tmp_path / "outputs")
    assert str(caught.value) == str(stopped.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "{} is missing."),
        ({}, "{} is no list of a bundle's files."),
        ({"files": ["a"]}, "{} is no list of a bundle's files."),
        ({"files": {"a": None}}, "{} is no list of a bundle's files."),
        (
            {"python": RUNNING, "files": {"../source": {}}},
            "{}: '../source' leads out of the bundle.",
        ),
    ],
)
def test_other_lists_of_a_bundles_files_are_refused(bundled, content, said):
    path = bundled / "contents.json"
    path.unlink()
    if content is not None:
        write_signed(path, content)
    with pytest.raises(ExamError) as caught:
        check(bundled)
    assert str(caught.value) == (f"{said.format(path)}\nUpload the bundle again, or make it again.")


def test_a_bundles_list_vouches_for_itself(bundled):
    found = read_json(bundled / "contents.json")
    write_json(bundled / "contents.json", {**found, "overrides": ["run.seed=1"]})
    with pytest.raises(ExamError, match=r"contents\.json is not the file that was written"):
        check(bundled)


def test_a_bundle_is_whole_or_not_there(tmp_path):
    def fill(error):
        with whole(tmp_path / "b") as part:
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


def test_a_bundle_that_is_too_large_is_refused_with_its_largest_file(tmp_path):
    contents = Contents(tmp_path / "b")
    (tmp_path / "large").write_bytes(b"x" * 4096)
    contents.add(tmp_path / "large", "corpus/0/articles.jsonl")
    with pytest.raises(ExamError) as caught:
        contents.close(limit_gib=1024 / 2**30, python="3.12")
    assert str(caught.value) == (
        "The bundle has 0.0 GiB, limit_gib=9.53674e-07 are allowed.\n"
        "The largest file is corpus/0/articles.jsonl. Attach the corpus by itself "
        "(with_corpus=false), or choose a smaller index (index=low_ram)."
    )


def test_a_competitions_files_are_found_where_they_are_attached(tmp_path, monkeypatch):
    monkeypatch.setattr(kaggle, "INPUT", tmp_path)
    attached = make_questions(tmp_path / "my-exam")
    columns = {c: c for c in ["id", "prompt", *"ABCDE"]}
    data = Data(name="k", dir=str(tmp_path / "none"), competition="my-exam", columns=columns)
    assert read(data, "test.csv")["id"][:] == [str(i) for i in range(50, 56)]
    (attached / "test.csv").unlink()
    with pytest.raises(ExamError, match=r"none/test\.csv does not exist"):
        read(data, "test.csv")


@pytest.fixture
def alone():
    if shutil.which(ALONE[0]) is None or subprocess.run([*ALONE, "true"], check=False).returncode:
        pytest.skip("this system gives no namespace without a network")


@pytest.mark.slow
def test_a_rehearsal_stops_at_the_line_that_fails_and_shows_what_it_said(alone, tmp_path):
    connect = "python -c 'import socket; socket.create_connection((\"1.1.1.1\", 53), 5)'"
    lines = ['echo {"a": 1}; which python', connect, "touch submission.csv"]
    write_notebook(tmp_path / "n.ipynb", lines, "b", RUNNING)
    with pytest.raises(ExamError) as caught:
        rehearse(tmp_path / "n.ipynb", Target(RUNNING, [], {}), tmp_path / "submission.csv")
    said = str(caught.value).splitlines()
    assert said[0] == f"The bundle fails without a network, at: !{connect}"
    assert said[-2:] == [
        "OSError: [Errno 101] Network is unreachable",
        "The line above failed.",
    ]
    assert not (tmp_path / "submission.csv").exists()


@pytest.mark.slow
def test_a_bundle_answers_without_a_network(alone, tmp_path, encoder):
    given = tiny(make_place(tmp_path), f"encoder.name_or_path={encoder}")
    for more in (["retriever=two_stage"], ["retriever=none", "name=closed"]):
        done = exam("train", *given, *more)
        assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "train").glob("kaggle-tiny-*")
    (closed,) = (tmp_path / "outputs" / "train").glob("closed-*")
    image = tmp_path / "image.txt"
    packages = {d.metadata["Name"].lower(): d.version for d in distributions()}
    left_out = ("exam", "openbook-exam", "blingfire")  # the bundle must carry these
    left_out += ("pip", "setuptools", "wheel")  # by pip freeze, of an image that has them
    pins = [f"{name}=={version}" for name, version in packages.items() if name not in left_out]
    image.write_text("\n".join([f"Python {sys.version}", *pins]))
    out = tmp_path / "bundle"
    command = [sys.executable, "-m", "exam", "bundle", f"ckpt=[{closed},{run}]", *given[:2]]
    command += [
        f"outputs={tmp_path / 'outputs'}",
        "data.test=test.csv",
        "cascade.share=0.5",
        f"out={out}",
        f"image={image}",
        "rehearse=true",
        "hours=9",
        "questions=4000",
    ]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    wheels = [path.name.split("-")[0] for path in (out / "wheels").glob("*.whl")]
    assert sorted(wheels) == ["blingfire", "openbook_exam"]
    assert "rehearsed without a network: 6 questions in " in made.stdout
    assert "computed for 4,000 questions" in made.stdout
    here = [*given[:2], "data.test=test.csv", f"outputs={tmp_path / 'outputs'}"]
    done = exam("infer", f"ckpt=[{closed},{run}]", "cascade.share=0.5", *here)
    assert done.returncode == 0, done.stderr
    (submission,) = (tmp_path / "outputs" / "ensemble").glob("*/submission.csv")
    assert (tmp_path / "bundle-submission.csv").read_bytes() == submission.read_bytes()
    assert submission.read_text().count("\n") == 7
    contents = json.loads((out / "contents.json").read_text())
    assert contents["bytes"] == sum(f["bytes"] for f in contents["files"].values())
    assert not [name for name in contents["files"] if name.startswith("outputs/contexts")]
    assert "corpus/0/articles.jsonl" in contents["files"]  # of the second run; the first has none


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "{out} is not empty.\nGive another folder, out=<folder>, or delete it."),
        (
            ["out={out}/new", "image=none.txt"],
            "image=none.txt does not exist.\n"
            "Write it on the target machine: (python -VV; pip freeze) > image.txt",
        ),
        (
            ["out={out}/new", "image={out}/image.txt", "python=3.12"],
            "python=3.12, and image={out}/image.txt was written by Python 3.13.\n"
            "Leave out python=, or write the file again on the target machine: "
            "(python -VV; pip freeze) > image.txt",
        ),
        (
            ["out={out}/new", "python=3"],
            "python=3 is not a version with two parts.\nGive the target's, as in python=3.12.",
        ),
        (
            ["out={out}/new", "python=3.9"],
            "The target has Python 3.9; exam needs >=3.11.\nChoose a newer image there.",
        ),
        (
            ["out={out}/new", "python=3.99", "rehearse=true"],
            f"A rehearsal runs with this machine's Python {RUNNING}; the bundle is for 3.99.\n"
            "Leave out rehearse=true, or make the bundle with Python 3.99.",
        ),
        (
            ["out={out}/new", "+run.context.top_k=3"],
            "run.<key>, retriever=, context= and reranker= are not carried into the notebook.\n"
            "Bundle the run as it is, and add them to the notebook's infer line.",
        ),
        (
            ["out={out}/new", "ckpt=[a,b]"],
            "2 readers are given, and no ensemble.\n"
            "Give two or more, and how they become one: ensemble=mean, rank, vote, "
            "max_over_contexts or fitted.",
        ),
        (
            ["out={out}/new", "cascade.share=0.3"],
            "cascade.share=0.3 is given for 1 readers.\n"
            "Give two readers or more, and one share for each but the first.",
        ),
        (
            ["out={out}/new", "ensemble=fitted", "ensemble.fit_on=[a]"],
            "ensemble=fitted needs held-out predictions, which a bundle does not carry.\n"
            "Fit once with exam infer, and give what it prints: "
            "ensemble=mean 'ensemble.weights=[…]'",
        ),
    ],
)
def test_what_a_notebook_could_not_do_is_refused_before_any_work(tmp_path, given, said):
    (tmp_path / "image.txt").write_text("Python 3.13.2 (main, Feb 17 2025)\n")
    own = [value.format(out=tmp_path) for value in [*given, *(() if given else ["out={out}"])]]
    with pytest.raises(ExamError) as caught:
        make_bundle(composed("bundle", "ckpt=nothing", *own))
    assert str(caught.value) == said.format(out=tmp_path)
