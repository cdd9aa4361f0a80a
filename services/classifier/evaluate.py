"""Judging: ``python -m services.classifier.evaluate --data DIR --layout LAYOUT --json OUT``.

A weights file on any data set: measures of whole clips, and on request of band-limited copies, of
events in soundscapes, and the speed of a whole ``process``. Or, with ``--protocol``, a network
trained and tested fold by fold, beside its peers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from common.datasets import Clip, ClipBank, labels_of, load_layout
from common.soundscapes import soundscapes_of
from services.classifier.admission import device_named, tell_short
from services.classifier.config import DEFAULT_WEIGHTS, Config
from services.classifier.evaluation.benchmark import (
    Benchmark,
    clips_in_hand,
    keep,
    network_predictions,
    peer_predictions,
    report,
)
from services.classifier.evaluation.judging import (
    TAG_THRESHOLD,
    Known,
    Scores,
    band_limited,
    classes_by_set,
    draw,
    hear,
    held_out,
    in_folds,
    known_only,
    score_by_set,
)
from services.classifier.evaluation.peers import PEER_NAMES, Peer
from services.classifier.evaluation.protocols import (
    PROTOCOLS,
    RANDOM_SPLIT,
    Learning,
    Protocol,
    at_random,
)
from services.classifier.evaluation.reports import (
    classes_table,
    clips_table,
    percent,
    tags_table,
    write_json,
)
from services.classifier.evaluation.scenes import score_scenes
from services.classifier.evaluation.speed import measure_speed
from services.classifier.evaluation.trials import Machine
from services.classifier.infer import load
from services.classifier.listening import LoadedClassifier
from services.classifier.provenance import Provenance, provenance_of, seen_in, tell_seen
from services.classifier.recipe import RECIPES, read_plan
from services.classifier.selection import (
    check_classes_left,
    decoded,
    folds_in,
    plain_errors,
    reasons_of,
)

SCENE_SEED = 2026

WEIGHTS_PANEL = "Judging a weights file"
PROTOCOL_PANEL = "Training and testing by a protocol"

_of_weights = partial(typer.Option, rich_help_panel=WEIGHTS_PANEL)
_of_protocol = partial(typer.Option, rich_help_panel=PROTOCOL_PANEL)


def main(
    data: Annotated[Path, typer.Option(help="folder of the data set; of all, for a protocol")],
    json_path: Annotated[Path | None, typer.Option("--json", help="where the report goes")] = None,
    folds: Annotated[str, typer.Option(help="folds that are tested, as 1,2; else all")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a process")] = 1,
    cache: Annotated[Path, typer.Option(help="decoded clips")] = Path("runs/cache"),
    skip_corrupt: Annotated[
        bool, typer.Option(help="leave out clips that cannot be decoded")
    ] = False,
    weights: Annotated[Path, _of_weights(help="weights file")] = DEFAULT_WEIGHTS,
    layout: Annotated[
        str,
        _of_weights(
            help="esc50, esc10, us8k, fsd50k, folders, csv or digits; else the held-out split of "
            "ESC-10, UrbanSound8K and digits in DATA"
        ),
    ] = "",
    picture: Annotated[
        Path | None,
        _of_weights(help="where confusion and reliability go as PNG; else beside the report"),
    ] = None,
    skip_unknown: Annotated[
        bool, _of_weights(help="leave out labels the weights do not know")
    ] = False,
    threshold: Annotated[
        float, _of_weights(min=0.0, max=1.0, help="confidence that counts, of several labels")
    ] = TAG_THRESHOLD,
    narrow: Annotated[
        bool, _of_weights("--band-limited", help="also copies with nothing above 4 kHz")
    ] = False,
    scenes: Annotated[int, _of_weights(min=0, help="also events in so many soundscapes")] = 0,
    speed: Annotated[bool, _of_weights(help="also the time of a whole process")] = False,
    protocol: Annotated[str, _of_protocol(help=f"{', '.join(PROTOCOLS)} or {RANDOM_SPLIT}")] = "",
    of: Annotated[str, _of_protocol(help="whose folds the random split draws")] = "us8k-lofo",
    architecture: Annotated[str, _of_protocol(help="follow its recipe")] = "hybrid",
    config: Annotated[
        Path | None, _of_protocol(help="follow this recipe; the file's name is the method's")
    ] = None,
    network: Annotated[bool, _of_protocol(help="the network, not only its peers")] = True,
    peers: Annotated[
        str, _of_protocol(help=f"also on the same folds: {','.join(PEER_NAMES)}")
    ] = "",
    learning: Annotated[
        Learning,
        _of_protocol(help="from all data sets at once, the others first, or only the fold's own"),
    ] = Learning.TOGETHER,
    then: Annotated[
        Path, _of_protocol(help="others first: the recipe of what follows on each fold")
    ] = RECIPES / "transfer.toml",
    seeds: Annotated[int, _of_protocol(min=1, help="how many, from 0 on")] = 3,
    jobs: Annotated[int, _of_protocol(min=1, help="trainings side by side")] = 1,
    out: Annotated[Path, _of_protocol(help="where trainings and tables go")] = Path(
        "runs/protocols"
    ),
    context: typer.Context = None,  # type: ignore[assignment]  # None: called from Python
) -> None:
    """Judge a weights file on a data set, or a network by a protocol. Prints tables."""
    if context is not None:
        _refuse_idle_options(context, bool(protocol))
    torch.set_num_threads(threads)
    with plain_errors():
        device = device_named(device)
        chosen = folds_in(folds)
        if protocol:
            benchmark = Benchmark(_protocol(protocol, of, chosen), learning, range(seeds), out)
            recipe = (config or RECIPES / f"{architecture}.toml") if network else None
            machine = Machine(cache, device, threads, jobs)
            made = _run(benchmark, data, recipe, then, _peers(peers), machine, skip_corrupt)
        else:
            if picture is None and json_path is not None:
                picture = json_path.with_suffix(".png")
            asked = Asked(skip_unknown, skip_corrupt, threshold, narrow, scenes, speed, picture)
            made = _judge(load(device, weights), weights, data, layout, chosen, cache, asked)
        if json_path is not None:
            write_json(json_path, made)


def _refuse_idle_options(context: typer.Context, by_protocol: bool) -> None:
    """End the command where an option was given that belongs to its other half."""
    idle = WEIGHTS_PANEL if by_protocol else PROTOCOL_PANEL
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        given = source is not None and source.name == "COMMANDLINE"
        if given and getattr(option, "rich_help_panel", None) == idle:
            where = "with" if by_protocol else "without"
            raise typer.BadParameter(f"{option.opts[0]} means nothing {where} --protocol")


@dataclass(frozen=True)
class Asked:
    """How a weights file is judged, beyond the measures of whole clips."""

    skip_unknown: bool
    skip_corrupt: bool
    threshold: float
    band_limited: bool
    scenes: int
    speed: bool
    picture: Path | None


def _judge(
    loaded: LoadedClassifier,
    weights: Path,
    data: Path,
    layout: str,
    folds: Sequence[int],
    cache: Path,
    asked: Asked,
) -> dict[str, Any]:
    config = loaded.config
    data_set = load_layout(data, layout) if layout else held_out(data)
    fit = known_only(data_set, config.labels, asked.skip_unknown)
    chosen = in_folds(fit.clips, folds)
    bank = decoded(chosen, cache, config.sample_rate, asked.skip_corrupt)
    clips = bank.clips
    made_of = provenance_of(weights)
    _warn(clips, fit, made_of)
    classes = classes_by_set(fit.clips, config.labels)
    heard = hear(loaded, bank, clips)
    by_method = {config.architecture: score_by_set(heard, clips, classes, asked.threshold)}
    if asked.band_limited:
        narrow = hear(loaded, bank, clips, band_limited(bank.sample_rate))
        name = f"{config.architecture}, nothing above 4 kHz"
        by_method[name] = score_by_set(narrow, clips, classes, asked.threshold)
    made: dict[str, Any] = {
        "weights": {
            "file": weights.name,
            "digest": loaded.digest,
            "architecture": config.architecture,
            "labels": list(config.labels),
            "temperature": config.temperature,
            "shift": config.shift,
            "trained_on": {name: list(of) for name, of in made_of.trained_on.items()},
            "chosen_on": {name: list(of) for name, of in made_of.chosen_on.items()},
        },
        "data": {"layout": layout or "held-out split", "folds": list(folds), "clips": len(clips)},
        "seen_in_training": len(seen_in(clips, made_of.trained_on)),
        "used_to_choose": len(seen_in(clips, made_of.chosen_on)),
        "left_out": fit.left_out,
        "corrupt": reasons_of(bank),
        "scores": {name: asdict(scores) for name, scores in by_method.items()},
        "throughput": asdict(heard.throughput),
    }
    _show(by_method)
    typer.echo(
        f"{heard.throughput.audio_s:.0f} s of audio, decoded before, in "
        f"{heard.throughput.processor_s:.1f} s of processor time: "
        f"real-time factor {heard.throughput.rtf:.5f}"
    )
    if asked.picture is not None:
        title = f"{config.architecture} on {layout or 'the held-out split'}"
        draw(asked.picture, title, by_method[config.architecture])
    if asked.scenes:
        made["scenes"] = _judge_scenes(loaded, bank, clips, asked.scenes)
    if asked.speed:
        made["speed"] = [asdict(one) for one in measure_speed(loaded, bank, clips)]
        for one in made["speed"]:
            typer.echo(f"{one['what']}: {1000 * one['seconds']:.1f} ms, RTF {one['rtf']:.5f}")
    return made


def _judge_scenes(
    loaded: LoadedClassifier, bank: ClipBank, clips: Sequence[Clip], n: int
) -> dict[str, Any]:
    everything = list(soundscapes_of(bank, clips, n, SCENE_SEED))
    made = {}
    for name, masked in (("no mask", False), ("oracle mask", True)):
        scores = score_scenes(loaded, everything, masked)
        made[name] = asdict(scores)
        typer.echo(
            f"{scores.n} soundscapes, {name}: F1 of events {percent(scores.event_f1)} %, "
            f"of seconds {percent(scores.second_f1)} %"
        )
    return made


def _show(by_method: Mapping[str, Scores]) -> None:
    of_clips = {(m, name): s for m, scores in by_method.items() for name, s in scores.clips.items()}
    of_tags = {(m, name): s for m, scores in by_method.items() for name, s in scores.tags.items()}
    if of_clips:
        typer.echo(clips_table(of_clips) + "\n")
    if of_tags:
        typer.echo(tags_table(of_tags) + "\n")
    first = next(iter(by_method.values()))
    for name, classes in {
        **{name: s.classes for name, s in first.clips.items()},
        **{name: s.classes for name, s in first.tags.items()},
    }.items():
        typer.echo(f"{name}\n\n{classes_table(classes)}\n")


def _warn(clips: Sequence[Clip], fit: Known, made_of: Provenance) -> None:
    tell_seen(clips, made_of, "The weights")
    if not made_of.trained_on:
        typer.echo("The weights do not say what they were trained on.", err=True)
    if fit.left_out:
        names = ", ".join(f"{label} ({n})" for label, n in fit.left_out.items())
        typer.echo(f"Left out, unknown to the weights: {names}", err=True)
    absent = sorted(set(labels_of(fit.clips)) - set(labels_of(clips)))
    if absent:
        typer.echo(f"No clip in these folds: {', '.join(absent)}", err=True)


def _run(
    benchmark: Benchmark,
    data: Path,
    recipe: Path | None,
    then: Path,
    peers: Sequence[Peer],
    machine: Machine,
    skip_corrupt: bool,
) -> dict[str, Any]:
    """Do what a protocol asks for, method by method, and return the report on all."""
    plan = None if recipe is None else read_plan(recipe)
    found = clips_in_hand(benchmark, data)
    rate_hz = Config.sample_rate if plan is None else plan.config.sample_rate
    # before anything is trained, so that all corrupt clips are told at once
    bank = decoded(found, machine.cache, rate_hz, skip_corrupt)
    clips = bank.clips
    check_classes_left(found, clips)
    if recipe is not None and plan is not None:
        config = replace(plan.config, labels=labels_of(clips))
        tell_short(clips, bank, config)
        after = read_plan(then).recipe
        made = network_predictions(
            benchmark, recipe.stem, bank, config, plan.recipe, after, machine
        )
        keep(benchmark, recipe.stem, recipe.stem, clips, made)
    for peer in peers:
        made = peer_predictions(benchmark, peer, bank, machine.cache)
        keep(benchmark, PEER_NAMES[peer], peer, clips, made)
    written = report(benchmark, reasons_of(bank))
    typer.echo(written.text)
    return written.raw


def _protocol(name: str, of: str, folds: tuple[int, ...]) -> Protocol:
    for given in (of, name) if name == RANDOM_SPLIT else (name,):
        if given not in (*PROTOCOLS, RANDOM_SPLIT) or given == of == RANDOM_SPLIT:
            raise typer.BadParameter(f"there is no protocol {given!r}: {', '.join(PROTOCOLS)}")
    official = PROTOCOLS[of if name == RANDOM_SPLIT else name].over(folds)
    return at_random(official) if name == RANDOM_SPLIT else official


def _peers(text: str) -> list[Peer]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in PEER_NAMES]
    if unknown:
        raise typer.BadParameter(f"there is no peer {unknown[0]!r}: {', '.join(PEER_NAMES)}")
    return [peer for peer in PEER_NAMES if peer in names]


if __name__ == "__main__":
    typer.run(main)
