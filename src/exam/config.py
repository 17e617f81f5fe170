"""The configuration: typed schema of every group, and the checks across groups.

Hydra composes `conf/` onto these classes, so a wrong name or type is refused before anything
heavy is imported. Below the command line, functions take these classes, never a `DictConfig`.
"""

import logging
import re
from dataclasses import dataclass, field, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from exam.artefacts import atomic
from exam.errors import ExamError
from exam.trainer_fields import CHOICES, TrainerFields

log = logging.getLogger(__name__)


class Source(Enum):
    """Where questions come from."""

    files = "files"
    hub = "hub"


class Resume(Enum):
    """What to do with an earlier run of the same configuration."""

    auto = "auto"
    never = "never"


class CorpusReader(Enum):
    """The form of a corpus."""

    demo = "demo"
    wikipedia = "wikipedia"
    jsonl = "jsonl"


class RetrieverKind(Enum):
    """How contexts are found."""

    none = "none"
    given = "given"
    two_stage = "two_stage"


@dataclass
class Data:
    """Questions: which files (or hub splits), which columns, how they are split.

    `train`, `valid` and `test` are one name or a list of names: files below `dir`, splits of the
    hub data set, or the words `generated` (the `generator` group's questions) and `demo` (the
    questions shipped with the package).
    """

    name: str = MISSING
    source: Source = Source.files
    dir: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    train: Any = None
    valid: Any = None
    test: Any = None
    options: str | None = "ABCDE"  # option columns; null when columns.options names a list column
    columns: dict[str, str | None] = field(
        default_factory=lambda: {"id": "id", "prompt": "prompt", "answer": "answer"}
    )  # and context, correct, options, or an option's letter where its column has another name
    shuffle_options: bool = False  # for data sets that list the right option first
    folds: int = 10
    fold: int | None = 0  # the fold of the training questions that chooses the checkpoint
    valid_share: float = 0.0  # held out of train when there is no valid file
    split_seed: int = 0
    strict: bool = False
    limit: int | None = None


@dataclass
class CorpusSource:
    """One corpus: its form, its place, its column names."""

    reader: CorpusReader = MISSING
    dir: str | None = None
    files: Any = None  # names or patterns below dir; default: by reader
    columns: dict[str, str] = field(
        default_factory=lambda: {"id": "id", "title": "title", "text": "text"}
    )


@dataclass
class Corpus(CorpusSource):
    """The corpus that is searched; `also` lists further ones searched together with it."""

    name: str = MISSING
    also: list[CorpusSource] = field(default_factory=list)


@dataclass
class Encoder:
    """A sentence encoder: hub id or folder."""

    name: str = MISSING
    name_or_path: str = MISSING
    max_length: int = 256
    batch_size: int = 32
    query_prefix: str = ""
    passage_prefix: str = ""
    trust_remote_code: bool = False


@dataclass
class Retriever:
    """How contexts are found. `depth` is how many ranked passages a contexts file holds."""

    name: str = MISSING
    kind: RetrieverKind = MISSING
    articles: int = 3
    depth: int = 20
    min_sentence_chars: int = 4


@dataclass
class Index:
    """How article vectors are stored."""

    shard_size: int = 4096


@dataclass
class Context:
    """What the reader sees of the ranked passages."""

    top_k: int = 5


@dataclass
class Model:
    """A reader: hub id or folder, or `config` for random weights."""

    name: str = MISSING
    name_or_path: str | None = None
    max_length: int = 256
    dropout: float | None = None  # null: the checkpoint's own
    config: dict[str, Any] | None = None
    trust_remote_code: bool = False


@dataclass
class Generator:
    """The rule-based question writer."""

    name: str = MISSING
    n: int = 1000
    options: int = 5
    seed: int = 0
    neighbours: int = 20  # how many articles near in meaning lend their facts as wrong options
    exclude: Any = None  # questions (files or `demo`) whose articles are left alone


@dataclass
class Train:
    """`train.py`."""

    data: Data = MISSING
    corpus: Corpus = MISSING
    encoder: Encoder = MISSING
    retriever: Retriever = MISSING
    index: Index = MISSING
    context: Context = MISSING
    model: Model = MISSING
    trainer: TrainerFields = MISSING
    generator: Generator = MISSING
    name: str = MISSING
    seed: int = 42
    resume: Resume = Resume.auto
    outputs: str = "outputs"
    log_level: str = "info"


@dataclass
class Retrieve:
    """`retrieve.py`."""

    data: Data = MISSING
    corpus: Corpus = MISSING
    encoder: Encoder = MISSING
    retriever: Retriever = MISSING
    index: Index = MISSING
    generator: Generator = MISSING
    resume: Resume = Resume.auto
    outputs: str = "outputs"
    log_level: str = "info"


@dataclass
class Infer:
    """`infer.py`: only these keys are its own; anything of the run is `run.<key>=…`."""

    ckpt: str = MISSING
    data: Data | None = None
    corpus: Corpus | None = None
    run: dict[str, Any] = field(default_factory=dict)
    resume: Resume = Resume.auto
    outputs: str = "outputs"
    log_level: str = "info"


@dataclass
class Generate:
    """`generate.py`."""

    corpus: Corpus = MISSING
    encoder: Encoder = MISSING
    index: Index = MISSING
    generator: Generator = MISSING
    n: int = 1000
    resume: Resume = Resume.auto
    outputs: str = "outputs"
    log_level: str = "info"


ROOTS: dict[str, type] = {
    "train": Train,
    "retrieve": Retrieve,
    "infer": Infer,
    "generate": Generate,
}
MANAGED = {
    "output_dir": "the run folder is outputs/train/<name>-<hash>",
    "seed": "set seed=… at the top level",
    "resume_from_checkpoint": "resume=auto continues by itself",
    "remove_unused_columns": "the collator reads its own columns",
    "label_names": "the reader's label is always `labels`",
    "do_train": "choose the verb: train.py or infer.py",
    "do_eval": "choose the verb: train.py or infer.py",
    "do_predict": "choose the verb: train.py or infer.py",
    "local_rank": "the launcher sets it",
    "dataloader_drop_last": "every question is trained on and answered",
    "eval_do_concat_batches": "MAP@3 is measured over all questions at once",
    "batch_eval_metrics": "MAP@3 is measured over all questions at once",
}


def register() -> None:
    """Make the schemas known to Hydra under the names that `conf/*.yaml` start from."""
    store = ConfigStore.instance()
    for name, schema in ROOTS.items():
        store.store(name=f"{name}_schema", node=schema)


def conf_dir() -> Path:
    """The folder of YAML files: inside the installed package, or beside `src` in a clone."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def typed(config: DictConfig) -> Any:
    """The dataclass of a composed configuration, checked.

    Raises:
        ExamError: a mandatory value is missing, or two values contradict each other.
    """
    missing = sorted(k for k in OmegaConf.missing_keys(config) if not k.startswith("trainer."))
    if missing:
        raise ExamError(
            f"{missing[0]} has no value.\nGive it on the command line: {missing[0]}=<value>"
        )
    values = {
        str(name): OmegaConf.to_object(node) if isinstance(node, Container) else node
        for name, node in config.items()
        if name != "trainer"
    }
    if "trainer" in config:
        fields: Any = OmegaConf.to_container(config.trainer)
        values["trainer"] = TrainerFields(**fields)
    schema: Any = OmegaConf.get_type(config)
    value = schema(**values)
    check(value)
    return value


def composed(verb: str, *overrides: str) -> Any:
    """A verb's configuration as its command line would compose it."""
    from hydra import compose, initialize_config_dir

    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return typed(compose(verb, list(overrides)))


def save_run(config: Train, path: Path) -> None:
    """Write a run's configuration: what `infer.py` restores."""
    with atomic(path) as temporary:
        OmegaConf.save(OmegaConf.structured(config), temporary)


def load_run(path: Path, infer: Infer) -> Train:
    """A run's configuration with infer's own keys and `run.<key>=…` laid over it, each logged.

    Raises:
        ExamError: an override names no value of the run, or one of another type.
    """
    try:
        saved = OmegaConf.merge(OmegaConf.structured(Train), OmegaConf.load(path))
        config: Any = OmegaConf.merge(saved, infer.run)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ExamError(
            f"run: {str(error).splitlines()[0]}\n"
            f"Override a value that {path} has, as run.<key>=<value>."
        ) from None
    for key in _dotted(infer.run):
        _check_restored(key)
        then, now = OmegaConf.select(saved, key), OmegaConf.select(config, key)
        log.info("infer: run.%s: %s → %s", key, then, now)
    config.outputs, config.log_level = infer.outputs, infer.log_level
    for name in ("data", "corpus"):
        if getattr(infer, name) is not None:
            config[name] = getattr(infer, name)
    restored: Train = typed(config)
    return restored


def _check_restored(key: str) -> None:
    """Refuse overrides that a run's own weights or infer's own keys decide."""
    own = ("data", "corpus", "outputs", "log_level", "resume", "name")
    if key.split(".", maxsplit=1)[0] in own:
        raise ExamError(f"run.{key} is infer's own.\nGive it as {key}=<value>, without run.")
    if key in ("model.name_or_path", "model.config"):
        raise ExamError(f"run.{key} is what the run trained.\nGive another run: ckpt=<folder>")


def _dotted(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the leaves of nested dictionaries."""
    return [
        name
        for key, value in values.items()
        for name in (
            _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
        )
    ]


def trainer_values(fields: TrainerFields) -> dict[str, Any]:
    """The TrainingArguments a configuration sets, without those left to the library."""
    return {name: value for name, value in vars(fields).items() if value != MISSING}


def names(value: Any) -> list[str]:
    """One name, a list of names or nothing, as a list."""
    if value is None:
        return []
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def check(config: Any) -> None:
    """Refuse values and pairs that cannot work, before anything loads."""
    for group, value in (("", config), *vars(config).items()):
        _check_positive(group, value)
    if isinstance(config, (Train, Retrieve)):
        _check_data(config.data)
        _check_retriever(config.retriever)
    if isinstance(config, Infer) and config.data is not None:
        _check_data(config.data)
    if isinstance(config, Train):
        _check_train(config)
    levels = ("debug", "info", "warning", "error")
    if config.log_level not in levels:
        raise ExamError(f"log_level={config.log_level} is not one of {', '.join(levels)}.")


POSITIVE = {
    "n", "neighbours", "shard_size", "batch_size", "max_length", "min_sentence_chars", "limit",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
}  # fmt: skip


def _check_positive(group: str, values: Any) -> None:
    """Refuse a count or size below one."""
    for name, value in vars(values).items() if is_dataclass(values) else ():
        if name in POSITIVE and isinstance(value, int) and value < 1:
            raise ExamError(f"{group + '.' if group else ''}{name}={value} must be at least 1.")


def _check_name(key: str, name: str) -> None:
    """Names become folders."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ExamError(
            f"{key}={name} is no folder's name.\nUse letters, digits, dots, dashes and underscores."
        )


def _check_data(data: Data) -> None:
    _check_name("data.name", data.name)
    if data.source is Source.hub and not data.hub:
        raise ExamError("data.source=hub needs data.hub=<owner/name>.")
    if data.options is not None and len(set(data.options)) < len(data.options):
        raise ExamError(f"data.options={data.options} names an option twice.")
    if data.options is not None and not 2 <= len(data.options) <= 26:
        raise ExamError(
            f"data.options={data.options} names {len(data.options)} options.\n"
            "A question has 2 to 26: give one letter for each, such as data.options=ABCD."
        )
    if data.folds < 2 or (data.fold is not None and not 0 <= data.fold < data.folds):
        raise ExamError(
            f"data.fold={data.fold} is not one of the {data.folds} folds.\n"
            f"Choose data.fold between 0 and {data.folds - 1}, data.folds of at least 2, "
            "or data.fold=null to train on all questions."
        )
    if not 0 <= data.valid_share < 1:
        raise ExamError(f"data.valid_share={data.valid_share} is not a share: give 0 to 0.99.")


def _check_retriever(retriever: Retriever) -> None:
    if retriever.kind is RetrieverKind.two_stage and min(retriever.articles, retriever.depth) < 1:
        raise ExamError(
            f"retriever.articles={retriever.articles} and retriever.depth={retriever.depth} must "
            "be at least 1.\nFor a closed-book reader choose retriever=none."
        )


def _check_train(config: Train) -> None:
    _check_name("name", config.name)
    if config.model.name_or_path is None and config.model.config is None:
        raise ExamError("model.name_or_path has no value.\nGive a hub id or a folder.")
    _check_depth(config)
    trainer = trainer_values(config.trainer)
    for name, value in trainer.items():
        _check_trainer_value(name, value)
    _check_evaluation(config, trainer)


def _check_depth(config: Train) -> None:
    top_k, depth = config.context.top_k, config.retriever.depth
    if top_k < 0:
        raise ExamError(f"context.top_k={top_k} must be 0 or more.")
    if config.retriever.kind is RetrieverKind.two_stage and top_k > depth:
        raise ExamError(
            f"context.top_k={top_k} asks for more passages than retriever.depth={depth} keeps.\n"
            f"Set retriever.depth={top_k}, or a smaller context.top_k."
        )


def _check_trainer_value(name: str, value: Any) -> None:
    if name in MANAGED:
        raise ExamError(f"trainer.{name} is not yours to set: {MANAGED[name]}.")
    if name in CHOICES and value is not None and value not in CHOICES[name]:
        raise ExamError(
            f"trainer.{name}={value} is not one of its values: {', '.join(CHOICES[name])}."
        )


def _check_evaluation(config: Train, trainer: dict[str, Any]) -> None:
    best = trainer.get("load_best_model_at_end")
    evaluates, saves = trainer.get("eval_strategy", "no"), trainer.get("save_strategy", "steps")
    if config.data.fold is None and (evaluates != "no" or best):
        raise ExamError(
            "data.fold=null leaves no questions to choose a checkpoint on, but "
            "trainer.eval_strategy or trainer.load_best_model_at_end asks for them.\n"
            "Set data.fold=0, or trainer.eval_strategy=no trainer.load_best_model_at_end=false."
        )
    if best and saves not in (evaluates, "best"):
        raise ExamError(
            f"trainer.load_best_model_at_end needs trainer.eval_strategy={evaluates} and "
            f"trainer.save_strategy={saves} to be the same."
        )
    if trainer.get("save_total_limit") == 1:
        raise ExamError(
            "trainer.save_total_limit=1 leaves no whole checkpoint while one is being written.\n"
            "Set trainer.save_total_limit=2, or null to keep all."
        )
    if trainer.get("fp16") and trainer.get("use_cpu"):
        raise ExamError(
            "trainer.fp16=true needs a GPU, but trainer.use_cpu=true.\n"
            "Set trainer.fp16=false, or choose trainer=gpu."
        )
