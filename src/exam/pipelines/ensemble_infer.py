"""`exam infer`: what runs make of questions, each by itself, together, or one after the other."""

import re
import shlex
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from exam.config import DEFAULT_K, Bundle, EnsembleKind, Infer, names
from exam.config.compose import GROUPS, composed, with_prefix
from exam.core.checkpoints import MODEL
from exam.core.errors import ExamError, spell_command
from exam.core.logging import say
from exam.core.trainer import RESULTS
from exam.evaluation.results import Run, check_k, choose_k, print_report
from exam.pipelines.cascade import cascaded, cascaded_before, cascades
from exam.pipelines.ensemble import together
from exam.pipelines.infer import SUBMISSION, answer, restored
from exam.pipelines.members import member_of, saved
from exam.pipelines.preflight import check_saved_reader

ONE_METRIC = f"metric.k={DEFAULT_K}, or metric.k=1 for accuracy."


def answered(infer: Infer) -> Run:
    """A run's reader answers other questions; several runs, or passes, answer them together."""
    if infer.predictions is not None:
        members = saved(names(infer.predictions))
        check_readers(infer, len(members))
        remembered = {m.source: m.k for m in members if m.k is not None}
        k = choose_k(infer.metric.k, remembered, ONE_METRIC)
        check_k(k, max(m.found.logits.shape[1] for m in members))
        made = cascaded_before if infer.ensemble is None else together
        return made(infer, members, k)
    variants = [
        _with(replace(infer, ckpt=ckpt), overrides)
        for ckpt in names(infer.ckpt)
        for overrides in infer.passes or [""]
    ]
    if len(variants) == 1 and infer.ensemble is None and not cascades(infer):
        return _single(variants[0])
    check_readers(infer, len(variants))
    remembered = {}
    for variant in variants:  # all of them, before the first answers
        trained, config = restored(variant)
        check_saved_reader(config, trained.folder / MODEL)
        remembered[str(trained.folder)] = config.metric.k
    k = choose_k(None, remembered, ONE_METRIC)
    if cascades(infer):
        return cascaded(infer, variants, k)
    each = [answer(variant) for variant in variants]
    return together(infer, [member_of(one) for one in each], k, each[0])


def check_readers(infer: Infer | Bundle, readers: int) -> None:
    """Refuse, before any of them answers, several readers that nothing makes one.

    Raises:
        ExamError: neither ensemble nor cascade is given, or not as many weights, shares or held-out
            predictions as the readers need, or there is a single reader.
    """
    ensemble, share = infer.ensemble, infer.cascade.share
    if cascades(infer):
        if readers < 2 or (isinstance(share, list) and len(share) != readers - 1):
            raise ExamError(
                f"cascade.share={share} is given for {readers} readers.\n"
                "Give two readers or more, and one share for each but the first."
            )
        return
    if ensemble is None or readers < 2:
        given = "no ensemble" if ensemble is None else f"ensemble={ensemble.name}"
        raise ExamError(
            f"{readers} readers are given, and {given}.\n"
            "Give two or more, and how they become one: ensemble=mean, rank, vote, "
            "max_over_contexts or fitted."
        )
    if ensemble.weights is not None and len(ensemble.weights) != readers:
        raise ExamError(
            f"ensemble.weights gives {len(ensemble.weights)} weights for {readers} readers.\n"
            "Give one for each, in their order."
        )
    if ensemble.kind is EnsembleKind.fitted:
        held_out = len(saved(names(ensemble.fit_on)))
        if held_out != readers:
            raise ExamError(
                f"ensemble.fit_on gives {held_out} predictions for {readers} readers.\n"
                "Give each reader's predictions of questions it was not trained on, in their "
                f"order: folders that {spell_command('train')} data.cross_validate=true wrote."
            )


def _single(infer: Infer) -> Run:
    done = answer(infer)
    say(str(done.stage.folder / SUBMISSION))
    if (done.stage.folder / RESULTS).is_file():
        return print_report(done.stage, done.questions, done.contexts, done.before)
    return Run(done.stage, [*done.before, done.stage], [])


def _with(infer: Infer, overrides: str) -> Infer:
    """The command with further overrides of its own, as they are given to it."""
    if not overrides:
        return infer
    try:
        words = shlex.split(overrides)
    except ValueError as error:
        raise ExamError(
            f"passes={overrides!r} cannot be read: {error}.\n"
            "Write every pass as on the command line, its quotes closed."
        ) from None
    keys = [re.split("[=.@]", word.lstrip("+~"), maxsplit=1)[0] for word in words]
    if others := [key for key in keys if key not in (*GROUPS, "run")]:
        raise ExamError(
            f"passes={overrides!r} gives {others[0]}, which is of the whole command.\n"
            f"A pass changes {', '.join(GROUPS)} or run.<key>; give the rest beside passes."
        )
    given: Infer = composed("infer", f"ckpt={infer.ckpt}", *map(with_prefix, words))
    groups: dict[str, Any] = {name: getattr(given, name) or getattr(infer, name) for name in GROUPS}
    run: Any = OmegaConf.to_container(OmegaConf.merge(infer.run, given.run))
    return replace(infer, **groups, run=run, passes=[])
