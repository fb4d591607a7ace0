"""The command `pevl` and its options. The only file that knows typer.

Heavy imports stand inside the commands, so that `pevl --help` is quick and a wrong path is told
before torch is loaded. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pevl_cli import __version__
from pevl_cli.cli import console
from pevl_cli.errors import PevlError, UsageError

if TYPE_CHECKING:
    from pevl_cli.data.manifest import Item, Manifest
    from pevl_cli.pose.detector import PoseDetector
    from pevl_cli.recognise import Answer


app = typer.Typer(
    name="pevl",
    help="Name fine-grained human actions in your own videos.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


class PoseFormat(StrEnum):
    json = "json"


class Export(StrEnum):
    pyskl = "pyskl"


class Frames(StrEnum):
    sampled = "48"
    all = "all"


class HoldOut(StrEnum):
    group = "group"
    random = "random"


class Ablation(StrEnum):
    components = "components"
    ucmr = "ucmr"
    similarities = "similarities"
    modalities = "modalities"
    adapters = "adapters"
    pose_input = "pose-input"


class Crop(StrEnum):
    full = "full"
    follow = "follow"
    actor = "actor"


class Precision(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


# Options of `pevl benchmark` that mean something beside --compare, and beside --ablation.
COMPARING = {"compare", "results", "output"}
ABLATING = {
    *("ablation", "dataset", "root", "poses", "labels", "fold", "layout", "clip", "pose_weights"),
    *("device", "precision", "out", "output", "config", "epochs", "seed", "assign"),
}

PoseWeights = Annotated[
    Path | None,
    typer.Option(
        "--pose-weights",
        help="YOLO-pose weights, a file or a name of `pevl models`; default $PEVL_POSE_WEIGHTS, "
        "else yolo11n-pose.pt if it is here, else the package's own.",
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(help="The folder you downloaded, where --dataset is a name such as gym99."),
]
Poses = Annotated[
    Path | None,
    typer.Option(
        help="Poses found before: a store of `pevl pose`, a PYSKL pickle, or a folder of JSON."
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(help="What the joints of --poses are, where their number does not tell."),
]
NoPose = Annotated[bool, typer.Option("--no-pose", help="Look at the pictures only.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Videos = Annotated[
    list[str], typer.Argument(help="Video files, folders of them, or patterns.", metavar="VIDEO...")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the result here, not to the screen.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pevl {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug_errors: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from.")
    ] = False,
) -> None:
    console.debug = debug_errors


@app.command()
def classify(
    videos: Videos,
    labels: Annotated[
        str | None,
        typer.Option(help="Label file, or a bundled set such as gym99. Default: the checkpoint's."),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Checkpoint folder or bundled name (default: pevl-mini).")
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="CLIP weights, NAME:TAG or a file; without --checkpoint: zero-shot."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many labels to show.")] = 5,
    views: Annotated[int, typer.Option(min=1, max=3, help="1, or 3 cut-outs averaged.")] = 1,
    start: Annotated[float | None, typer.Option(help="Seconds into the video.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds into the video.")] = None,
    no_pose: NoPose = False,
    pose_weights: PoseWeights = None,
    device: Device = "auto",
    precision: Annotated[Precision, typer.Option(help="Of CLIP's towers.")] = Precision.auto,
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.table,
    output: Output = None,
) -> None:
    """Name the action in each video.

    Example: pevl classify clip.mp4 --labels my_actions.txt
    """
    from pevl_cli.labels import read_labels
    from pevl_cli.media.video import find_videos

    if views == 2:
        raise UsageError("--views 2: give 1, or 3 as in the paper.")
    paths = find_videos(videos)
    _check_there(paths)
    label_set = read_labels(labels) if labels is not None else None
    if clip is not None and checkpoint is None and label_set is None:
        raise UsageError("plain CLIP has no labels of its own: name some with --labels.")
    _check_weights(pose_weights, no_pose or (clip is not None and checkpoint is None))
    _check_output(output)

    from pevl_cli import recognise
    from pevl_cli.output import records

    recogniser = recognise.load(
        checkpoint, clip, pose_weights, not no_pose, device, precision.value
    )
    _note_weights(pose_weights, recogniser.detector is not None)
    answers: list[Answer] = []
    failed = 0
    for path in paths:
        try:
            answers.append(recogniser.classify(path, label_set, top_k, views, start, end))
        except PevlError as error:
            failed += 1
            console.tell_error(error)
            continue
        if format is Format.table and output is None:
            console.show_answer(answers[-1])
    if format is Format.json:
        _write(records.answers_json(answers), output)
    elif format is Format.csv:
        _write(records.answers_csv(answers), output)
    elif output is not None:
        _write(console.as_text(answers), output)
    _end_batch(failed, len(paths))


@app.command()
def pose(
    videos: Annotated[
        list[str],
        typer.Argument(
            help="Videos, folders or patterns; a file of recorded poses; with --store or --export "
            "also a data set's folder, CSV or name.",
            metavar="VIDEO...",
        ),
    ],
    frames: Annotated[
        Frames, typer.Option(help="The 48 that a model sees, or all.")
    ] = Frames.sampled,
    format: Annotated[PoseFormat, typer.Option(help="How to print the result.")] = PoseFormat.json,
    draw: Annotated[
        Path | None,
        typer.Option(help="Also draw the skeleton: a video (.mp4) or a filmstrip (.png, .jpg)."),
    ] = None,
    start: Annotated[float | None, typer.Option(help="Seconds into the video.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds into the video.")] = None,
    root: Root = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Find all poses in advance and keep them in this .npz for --poses."),
    ] = None,
    export: Annotated[
        Export | None, typer.Option(help="Write them for other tools, into --output.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="Only part i of n of the clips, as in 1/4.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="How many look at once; they share this machine's GPUs.")
    ] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", help="Let Ray Data's workers do it (the extra ray).")
    ] = False,
    clip: Annotated[
        str | None, typer.Option(help="Which clip of a file of recorded poses.")
    ] = None,
    layout: Layout = None,
    pose_weights: PoseWeights = None,
    device: Device = "auto",
    output: Output = None,
) -> None:
    """Print the joints of the one person whom the model would look at, or keep all of a data set.

    Examples: pevl pose clip.mp4 --draw clip.png; pevl pose gym99 --root DIR --store gym99.npz
    """
    import json

    from pevl_cli.media.video import find_videos

    _check_output(output)
    _check_output(draw)
    if store is not None or export is not None:
        if draw is not None or start is not None or end is not None or clip is not None:
            raise UsageError(
                "--draw, --start, --end and --clip go with one video, not with --store."
            )
        _keep_poses(
            *(videos, root, store, export, shard, processes, ray),
            *(pose_weights, device, frames, output),
        )
        return
    if root is not None or shard is not None or ray or processes > 1:
        raise UsageError("--root, --shard, --processes and --ray go with --store FILE.npz.")
    if len(videos) == 1 and Path(videos[0]).suffix in {".npz", ".json", ".pkl", ".pickle"}:
        _write(json.dumps([_recorded(Path(videos[0]), clip, draw, layout)]), output)
        return
    paths = find_videos(videos)
    _check_there(paths)
    if draw is not None and len(paths) > 1:
        raise UsageError("--draw takes one video at a time.")
    _check_weights(pose_weights, False)

    from pevl_cli.hardware import choose_device
    from pevl_cli.output import draw as drawing

    if draw is not None:
        drawing.check_drawing(draw)
    from pevl_cli.pose.detector import PoseDetector

    detector = PoseDetector(pose_weights, device=choose_device(device))
    detector.digest()
    _note_weights(pose_weights)
    records, failed = [], 0
    for path in paths:
        try:
            records.append(_pose_of(path, detector, frames, start, end, draw))
        except PevlError as error:
            failed += 1
            console.tell_error(error)
    _write(json.dumps(records), output)
    _end_batch(failed, len(paths))


def _recorded(
    path: Path, clip: str | None, draw: Path | None, layout: str | None
) -> dict[str, Any]:
    """The actor of one clip of a file of poses, drawn over an empty frame if wanted."""
    from pevl_cli.output import draw as drawing
    from pevl_cli.output import records
    from pevl_cli.pose.files import read_poses

    if draw is not None:
        drawing.check_drawing(draw)
    poses = read_poses(path, layout)
    if clip is None and len(poses) > 1:
        raise UsageError(
            f"{path}: holds {len(poses)} clips, such as {', '.join(poses.names[:3])}; name one "
            "with --clip."
        )
    stored = poses.get(clip or poses.names[0])
    if stored is None:
        raise UsageError(f"{path}: has no clip '{clip}', but {', '.join(poses.names[:3])}, ...")
    actor = stored.actor()
    if not actor.seen.any():
        console.warn(f"{path}: nobody is seen in it.")
    if draw is not None:
        drawing.draw_stored(draw, stored, actor)
    return records.stored_pose_record(stored, actor)


def _keep_poses(
    names: list[str],
    root: Path | None,
    store: Path | None,
    export: Export | None,
    shard: str | None,
    processes: int,
    ray: bool,
    pose_weights: Path | None,
    device: str,
    frames: Frames,
    output: Path | None,
) -> None:
    """All poses of a data set, or of some videos, into a store."""
    if export is not None and output is None:
        raise UsageError("--export needs --output FILE.pkl.")
    if export is not None and output is not None and output.suffix not in {".pkl", ".pickle"}:
        raise UsageError(f"--output {output}: the name must end in .pkl.")
    if store is None:
        assert output is not None
        store = output.with_suffix(".npz")
    if store.suffix != ".npz":
        raise UsageError(f"--store {store}: the name must end in .npz.")
    _check_output(store)
    _check_weights(pose_weights, False)
    manifest, items = _clips_to_keep(names, root)
    there = [item for item in items if item.on_disk]
    if not there:
        raise PevlError(f"{names[0]}: none of its {len(items)} clips has a video on disk.")
    if len(there) < len(items):
        console.warn(f"{len(items) - len(there):,} of {len(items):,} clips have no video on disk")

    from pevl_cli.data import extract
    from pevl_cli.hardware import choose_device

    if shard is not None:
        there = extract.shard(there, shard)
    _note_weights(pose_weights)
    with console.ClipProgress("looking for people") as listener:
        summary = extract.extract(
            there,
            store,
            None if pose_weights is None else str(pose_weights),
            choose_device(device),
            processes,
            frames is Frames.all,
            ray,
            listener,
        )
    for name, reason in list(summary.failed.items())[:10]:
        console.tell_error(PevlError(f"{name}: {reason}"))
    if summary.nobody:
        console.warn(f"nobody was found in {summary.nobody} of {summary.clips} clips")
    if export is not None and output is not None:
        from pevl_cli.data.extract import export_pyskl

        export_pyskl(store, output, there, manifest.labels if manifest else None)
    print(
        f"{store}: poses of {summary.clips} clips, {summary.kept} of them found before; use them "
        f"with --poses {store}",
        file=sys.stderr,
    )
    _end_batch(len(summary.failed), len(there))


def _clips_to_keep(names: list[str], root: Path | None) -> tuple[Manifest | None, list[Item]]:
    """The clips of a data set, or videos that have no labels."""
    from pevl_cli.data.manifest import Item, read_manifest
    from pevl_cli.data.sets.named import known_name, read_named
    from pevl_cli.media.video import find_videos

    if root is not None:
        named = known_name(names[0])
        if named is None or len(names) > 1:
            raise UsageError("--root goes with one data set's name (see `pevl data --help`).")
        manifest = read_named(named, root)
        return manifest, list(manifest.items)
    first = Path(names[0])
    if len(names) == 1 and (first.suffix == ".csv" or first.is_dir()):
        try:
            manifest = read_manifest(first)
        except PevlError:
            if not first.is_dir() or (first / "manifest.csv").exists():
                raise
        else:
            return manifest, list(manifest.items)
    if len(names) == 1 and known_name(names[0]) is not None and not first.exists():
        raise UsageError(f"{names[0]} needs --root DIR, the folder it lies in.")
    paths = find_videos(names)
    _check_there(paths)
    # Named as they lie beside each other, so that the store serves elsewhere too.
    folder = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    names = [path.absolute().relative_to(folder).with_suffix("").as_posix() for path in paths]
    return None, [Item(path, "", name=name) for path, name in zip(paths, names, strict=True)]


def _pose_of(
    path: Path,
    detector: PoseDetector,
    frames: Frames,
    start: float | None,
    end: float | None,
    draw: Path | None,
) -> dict[str, Any]:
    import numpy as np

    from pevl_cli.media.video import part_of, read_timeline, sample_clip
    from pevl_cli.output import draw as drawing
    from pevl_cli.output import records
    from pevl_cli.pose.actor import FrameSource

    if frames is Frames.sampled:
        clip = sample_clip(path, 48, start, end)
        for warning in clip.warnings:
            console.warn(f"{path}: {warning}")
        actor, indices, places = detector.actor(clip), clip.indices, clip.frame_of
        timeline = read_timeline(path)
    else:
        timeline = read_timeline(path)
        indices = part_of(timeline, start, end)
        actor = detector.find_actor(FrameSource.of_video(timeline, indices))
        places = np.arange(len(indices))
    if not actor.seen.any():
        console.warn(f"{path}: nobody was found in it.")
    if draw is not None:
        drawing.draw_actor(draw, timeline, actor, indices)
    return records.pose_record(str(path), timeline, actor, indices, places)


@app.command()
def train(
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="A folder of class folders, a CSV (path,label,...), a PYSKL pickle, or a name: "
            "gym99, gym288, diving48, haa500, smarthome, kinetics400 (see `pevl data --help`)."
        ),
    ] = None,
    root: Root = None,
    poses: Poses = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="mini (from scratch), vit-b-16 or vit-l-14 (on CLIP), or a YAML file "
            "(default: mini)."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the run goes (default: runs/DATASET-CONFIG).")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Label file with texts and other phrasings of the data set's labels."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Start from this checkpoint (a folder, or pevl-mini), with new labels."),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="CLIP weights for vit-*: NAME:TAG of open_clip, or a file.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help="Only so many training clips of each action.")
    ] = None,
    hold_out: Annotated[
        HoldOut | None, typer.Option(help="How to split where the data set does not say.")
    ] = None,
    fold: Annotated[
        str | None, typer.Option(help="Which split of a pickle with several: 1, xsub, ...")
    ] = None,
    layout: Layout = None,
    all_clips: Annotated[
        bool,
        typer.Option(
            "--all-clips", help="Train on the val split too, once all else has been chosen."
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a clip that cannot be read.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(min=2)] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0)] = None,
    patience: Annotated[
        int | None, typer.Option(min=0, help="Stop after so many epochs without getting better.")
    ] = None,
    crop: Annotated[
        Crop | None, typer.Option(help="Middle square, the same moved to the actor, or a cut-out.")
    ] = None,
    no_video: Annotated[bool, typer.Option("--no-video", help="Learn from poses only.")] = False,
    no_pose: NoPose = False,
    pose_weights: PoseWeights = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs of this machine to share the work.")
    ] = None,
    precision: Annotated[Precision | None, typer.Option(help="Of the products.")] = None,
    tracker: Annotated[
        str | None, typer.Option(help="tensorboard, csv, wandb, mlflow or none.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any option, such as optim.lr=1e-4.", metavar="KEY=VALUE"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out exactly.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show settings, sizes and steps; train nothing.")
    ] = False,
) -> None:
    """Teach a model your own actions.

    Example: pevl train --dataset my_clips, with my_clips/squat/1.mp4, my_clips/lunge/1.mp4, ...
    """
    from pevl_cli.data.dataset import read_data
    from pevl_cli.model.config import CONFIGS
    from pevl_cli.training.settings import load_settings

    if no_video and no_pose:
        raise UsageError("--no-video and --no-pose together leave nothing to look at.")
    given: dict[str, Any] = {
        "data.dataset": dataset,
        "data.root": root,
        "data.poses": poses,
        "data.fold": fold,
        "data.layout": layout,
        "data.all_clips": all_clips or None,
        "data.labels": labels,
        "data.shots": shots,
        "data.hold_out": None if hold_out is None else hold_out.value,
        "data.strict": strict or None,
        "init": init,
        "clip": clip,
        "optim.epochs": epochs,
        "optim.batch_size": batch_size,
        "optim.lr": learning_rate,
        "optim.patience": patience,
        "model.crop": "full" if no_pose else crop and crop.value,
        "model.video": False if no_video else None,
        "model.pose": False if no_pose else None,
        "run.out": out,
        "run.pose_weights": pose_weights,
        "run.device": device,
        "run.processes": gpus,
        "run.precision": None if precision is None else precision.value,
        "run.tracker": tracker,
        "run.seed": seed,
    }
    said = {key: value for key, value in given.items() if value is not None}
    if dataset is not None and dataset.suffix in {".pkl", ".pickle"} and init is None:
        said["model.video"] = False  # now, so that what is chosen beside it is kept
    named = config
    if resume and named is None:
        named = _stored_settings(out, dataset)
    if dataset is None and (named is None or named in CONFIGS) and not _assigns(assign):
        raise UsageError("--dataset is needed: a folder of class folders, or a CSV file.")
    _check_weights(pose_weights, no_pose or poses is not None)
    settings = load_settings(named, said, assign or ())
    manifest = read_data(settings.data, settings.run.seed)
    first = os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0"
    for warning in (*manifest.warnings, *manifest.drawn) if first else ():
        console.warn(warning)

    from pevl_cli.training import build
    from pevl_cli.training import train as training

    if settings.init is not None:
        settings = build.settings_for(named, said, assign or ())
    recorded = training.stored_poses_of(settings, manifest)
    settings = training.fitted(settings, manifest, recorded)
    if first and recorded is not None:
        console.warn_of_no_poses(training.without_poses(manifest.items, recorded), recorded.source)
    if dry_run:
        from pevl_cli.training.plan import make_plan

        console.show_plan(settings, make_plan(settings, manifest))
        return
    looks = recorded is None and (settings.model.pose or settings.model.crop != "full")
    _note_weights(settings.run.pose_weights, first and looks)
    if not first:  # one process of several tells what happens
        training.train(settings, resume=resume, manifest=manifest, poses=recorded)
        return
    with console.TrainingView() as view:
        result = training.train(settings, view, resume, manifest, recorded)
    console.show_result(result, settings)
    if result.interrupted:
        raise typer.Exit(130)


@app.command()
def benchmark(
    context: typer.Context,
    results: Annotated[
        list[Path] | None,
        typer.Argument(help="With --compare: folders of results.", metavar="[RUN...]"),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="A folder, a CSV, a PYSKL pickle, or a name such as haa500.")
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="Checkpoint folder or bundled name.")
    ] = "pevl-mini",
    root: Root = None,
    poses: Poses = None,
    split: Annotated[
        str | None, typer.Option(help="train, val or test (default: the published one).")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Label file of the data set, where it has numbers only.")
    ] = None,
    fold: Annotated[str | None, typer.Option(help="Of a pickle with several splits.")] = None,
    layout: Layout = None,
    clip: Annotated[
        str | None, typer.Option(help="CLIP weights of the checkpoint: NAME:TAG or a file.")
    ] = None,
    views: Annotated[int, typer.Option(min=1, max=3, help="1, or 3 cut-outs averaged.")] = 1,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Clips at a time; fewer where the memory is too small.")
    ] = 16,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that decode (default: by the machine)."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that share the clips, and the GPUs.")
    ] = 1,
    no_pose: NoPose = False,
    pose_weights: PoseWeights = None,
    device: Device = "auto",
    precision: Annotated[Precision, typer.Option(help="Of CLIP's towers.")] = Precision.auto,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report (default: runs/DATASET-SPLIT-by-...)."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the JSON here, and no report.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare two or more results clip by clip.")
    ] = False,
    ablation: Annotated[
        Ablation | None, typer.Option(help="Train and measure the variants of a paper's table.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="With --ablation: mini, vit-b-16, vit-l-14 or a YAML file.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="With --ablation.")] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, help="With --ablation, once or more often (default: 0, 1, 2)."),
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="With --ablation: any option of training.", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """Measure a checkpoint on a data set, compare results, or repeat the paper's ablations.

    Example: pevl benchmark --dataset haa500 --root DIR --checkpoint runs/haa500-mini/best
    """
    _check_mode(context)
    if compare:
        _compare(results or [], output)
        return
    if results:
        raise UsageError(f"{results[0]}: folders of results go with --compare.")
    if dataset is None:
        raise UsageError("--dataset is needed: a folder, a CSV, a pickle or a name like haa500.")
    _check_output(output)
    if ablation is None and (config or epochs or seed or assign):
        raise UsageError("--config, --epochs, --seed and --set go with --ablation.")
    _check_weights(pose_weights, no_pose or poses is not None)
    if ablation is not None:
        given = {
            "data.dataset": dataset,
            "data.root": root,
            "data.poses": poses,
            "data.fold": fold,
            "data.layout": layout,
            "data.labels": labels,
            "clip": clip,
            "optim.epochs": epochs,
            "run.out": out,
            "run.pose_weights": pose_weights,
            "run.device": None if device == "auto" else device,
            "run.precision": None if precision is Precision.auto else precision.value,
            "run.tracker": "none",
        }
        said = {key: value for key, value in given.items() if value is not None}
        _ablate(ablation.value, config, said, assign or [], sorted({*(seed or [0, 1, 2])}), output)
        return
    if views == 2:
        raise UsageError("--views 2: give 1, or 3 as in the paper.")
    if split is not None and split not in ("train", "val", "test"):
        raise UsageError(f"--split {split}: train, val or test is needed.")

    import json

    from pevl_cli import recognise
    from pevl_cli.data.dataset import DataSettings, read_data
    from pevl_cli.evaluation import benchmark as measuring
    from pevl_cli.model import checkpoint as checkpoints
    from pevl_cli.pose.files import read_poses
    from pevl_cli.training import train as training

    # Clips that were held out are found again as they were drawn.
    facts = checkpoints.read_facts(checkpoints.find(checkpoint))
    made = facts.training
    drawn = {"hold_out": made["hold_out"]} if "hold_out" in made else {}
    data = DataSettings(dataset=dataset, root=root, poses=poses, labels=labels, fold=fold, **drawn)
    manifest = read_data(data, int(made.get("seed", 0)), facts.label_set)
    measured, _ = measuring.choose_split(manifest, checkpoint, split)
    for warning in (*manifest.warnings, *(manifest.drawn if measured != "all" else ())):
        console.warn(warning)
    source = poses or (manifest.poses if pose_weights is None else None)
    recorded = None if source is None or no_pose else read_poses(source, layout)
    console.warn_of_no_poses(training.without_poses(manifest.items, recorded), source)
    recogniser = recognise.load(
        checkpoint,
        clip,
        pose_weights,
        not no_pose and recorded is None,
        device,
        precision.value,
    )
    _note_weights(pose_weights, recogniser.detector is not None)
    folder = None
    if output is None:  # told now, not after all clips were measured
        folder = out or Path("runs") / f"{manifest.title}-{measured}-by-{_short_name(checkpoint)}"
        _make_folder(folder)
    try:
        with console.ClipProgress("measuring") as listener:
            outcome = measuring.benchmark(
                *(manifest, recogniser, checkpoint, recorded, split, views, listener),
                *(batch_size, workers, folder is not None),
            )
    except BaseException:
        if folder is not None:
            with suppress(OSError):  # what was there before stays
                folder.rmdir()
        raise
    if folder is not None:
        from pevl_cli.evaluation import report_page as page

        page.write_report(folder, outcome, manifest, recogniser, recorded)
    elif output is not None:
        _write(json.dumps(outcome.as_dict(), indent=1), output)
    console.show_outcome(outcome)
    if folder is not None:
        print(f"report: {folder / 'report.html'}")
    if measuring.seen_in_training(outcome.split, manifest, checkpoint):
        console.warn("the checkpoint was trained on these clips: the figures say nothing of others")


def _check_mode(context: typer.Context) -> None:
    """UsageError for an option that would be ignored beside --compare or --ablation."""
    named = set()
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            named.add(name)
    for mode, fits in (("compare", COMPARING), ("ablation", ABLATING)):
        if mode in named and named - fits:
            option = sorted(named - fits)[0].replace("_", "-")
            raise UsageError(f"--{option} does not go with --{mode}.")


def _compare(folders: list[Path], output: Path | None) -> None:
    import json

    _check_output(output)
    from pevl_cli.evaluation import compare

    results = [compare.read_result(folder) for folder in folders]
    found = compare.compare(results)
    if output is None:
        console.show_comparison(found)
    elif output.suffix == ".md":
        _write(compare.markdown(found), output)
    else:
        _write(json.dumps(found.as_dict(), indent=1), output)


def _ablate(
    name: str,
    config: str | None,
    given: dict[str, Any],
    assignments: list[str],
    seeds: list[int],
    output: Path | None,
) -> None:
    from pevl_cli.data.dataset import read_data
    from pevl_cli.training.settings import load_settings

    settings = load_settings(config, given, assignments)
    if settings.run.out is None:  # not into a training's own folder
        where = {"out": settings.folder.with_name(f"{settings.folder.name}-ablation")}
        run = settings.run.model_copy(update=where)
        settings = settings.model_copy(update={"run": run})
    manifest = read_data(settings.data, 0)
    for warning in (*manifest.warnings, *manifest.drawn):
        console.warn(warning)

    from pevl_cli.evaluation import ablation
    from pevl_cli.training import train as training

    recorded = training.stored_poses_of(settings, manifest)
    _note_weights(settings.run.pose_weights, recorded is None)
    with console.AblationView() as view:
        found = ablation.ablate(name, settings, manifest, recorded, seeds, view)
    table = ablation.markdown(name, found, ablation.table_title(settings, manifest))
    _write(table, settings.folder / f"{name}.md")
    _write(table, output)


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for the clip and the picture (default: a new one).")
    ] = None,
    pose_weights: PoseWeights = None,
    device: Device = "auto",
) -> None:
    """Try it without a video: draw a short clip, name its action, and show what it looked at.

    Writes into a temporary folder, or the one that is named, and nowhere else.
    """
    import tempfile

    from pevl_cli.cache import CACHE_VARIABLE
    from pevl_cli.weights import find_weights

    _check_weights(pose_weights, False)
    _note_weights(pose_weights)
    weights = find_weights(pose_weights)
    folder = out or Path(tempfile.mkdtemp(prefix="pevl-demo-"))
    _make_folder(folder)
    with tempfile.TemporaryDirectory(prefix="pevl-cache-") as cache:
        os.environ[CACHE_VARIABLE] = cache
        os.environ["YOLO_CONFIG_DIR"] = cache

        from pevl_cli import recognise
        from pevl_cli.media.video import read_timeline, sample_clip
        from pevl_cli.output import demo_clip
        from pevl_cli.output import draw as drawing

        clip = demo_clip.draw_clip(folder / "demo.mp4")
        recogniser = recognise.load(pose_weights=weights, device=device)
        answer = recogniser.classify(clip)
        sampled = sample_clip(clip, recogniser.model.config.pose_frames)
        assert recogniser.detector is not None
        actor = recogniser.detector.actor(sampled)
        picture = folder / "demo.png"
        drawing.draw_actor(picture, read_timeline(clip), actor, sampled.indices)
    console.show_answer(answer)
    console.show_picture(drawing.drawn_frame(sampled, actor))
    print(f"\nthe clip: {clip}\nwhat it looked at: {picture}\n\nnext:")
    print(f"  {shlex.join(['pevl', 'classify', str(clip), '--top-k', '3'])}")
    print("  pevl classify YOUR_CLIP.mp4")
    print("  pevl train --dataset FOLDER_OF_CLASS_FOLDERS --init pevl-mini")


models = typer.Typer(help="What is bundled, fetched and known by name; fetch one.")
app.add_typer(models, name="models")


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context) -> None:
    """What is bundled, fetched and known by name: size, licence, and where it lies.

    Example: pevl models fetch yolo11n-pose.pt
    """
    if context.invoked_subcommand is None:
        from pevl_cli.weights import list_models

        console.show_models(list_models())


@models.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(help="As `pevl models` lists it.", metavar="NAME")],
) -> None:
    """Fetch a model by its name, and check that it is whole.

    Example: pevl models fetch yolo11s-pose.pt
    """
    from pevl_cli.weights import fetch

    with console.ClipProgress("fetching") as listener:
        place = fetch(name, listener)
    print(place)


data = typer.Typer(
    help="Data sets by name: gym99, gym288 (v1.0; gym99-v1.1, gym288-v1.1), finegym (= gym99), "
    "diving48, haa500, smarthome (= smarthome-cs; smarthome-cv1, smarthome-cv2), kinetics400.",
    no_args_is_help=True,
)
app.add_typer(data, name="data")


@data.command("check")
def check_data(
    name: Annotated[str, typer.Argument(help="A data set's name, folder or CSV.")],
    root: Root = None,
    poses: Poses = None,
    labels: Annotated[
        str | None, typer.Option(help="Label file of the data set, where it has numbers only.")
    ] = None,
    fold: Annotated[str | None, typer.Option(help="Of a pickle with several splits.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a CSV of the missing clips here.")
    ] = None,
) -> None:
    """Say what of a data set is there and what is missing.

    Example: pevl data check gym99 --root DIR --output missing.csv
    """
    from pevl_cli.data.dataset import DataSettings, read_data
    from pevl_cli.data.manifest import SPLITS

    _check_output(output)
    manifest = read_data(DataSettings(dataset=Path(name), root=root, labels=labels, fold=fold), 0)
    source = poses or manifest.poses
    recorded = None
    if source is not None:
        from pevl_cli.pose.files import read_poses

        recorded = read_poses(source)
    for warning in (*manifest.warnings, *manifest.drawn):
        console.warn(warning)
    rows: list[tuple[int | str, ...]] = []
    missing: list[Item] = []
    for split in SPLITS:
        items = manifest.of(split)
        if not items and split not in manifest.official:
            continue
        there = [i for i in items if i.on_disk and i.path.exists()]
        posed = [i for i in items if recorded is not None and recorded.find(i.name) is not None]
        found = {*there, *posed}
        gone = [i for i in items if i not in found]
        missing += gone
        cut = sum(i.start_s is not None for i in there)
        official = manifest.official.get(split)
        counts = (len(items), len(there) - cut, cut, len(posed), len(gone))
        rows.append((split, "" if official is None else official, *counts))
    console.show_missing(manifest.name or name, rows)
    if source is not None:
        print(f"poses: {source}")
    if output is not None:
        from pevl_cli.data.manifest import write_missing

        write_missing(output, missing)
        print(f"{len(missing)} missing clips are listed in {output}")
    elif missing:
        print(f"missing, for example: {missing[0].name or missing[0].path}; all with --output")


def _stored_settings(out: Path | None, dataset: Path | None) -> str | None:
    """The settings of the run to continue."""
    if out is not None:
        found = [out / "settings.yaml"]
    elif dataset is not None:
        from pevl_cli.data.sets.named import known_name

        named = known_name(dataset)
        title = named if named and not dataset.exists() else dataset.resolve().stem
        configs = "mini", "vit-b-16", "vit-l-14"
        found = [Path("runs") / f"{title}-{config}" / "settings.yaml" for config in configs]
        found = [file for file in found if file.is_file()]
    else:
        raise UsageError("--resume: name the run's folder with --out.")
    if len(found) > 1:
        folders = ", ".join(str(file.parent) for file in found)
        raise UsageError(f"--resume: which of {folders}? Name one with --out.")
    return str(found[0]) if found and found[0].is_file() else None


def _assigns(assignments: list[str] | None) -> bool:
    return any(a.partition("=")[0].strip() == "data.dataset" for a in assignments or ())


def _write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    from pevl_cli.cache import write_aside

    with write_aside(output) as temporary:
        temporary.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


def _check_output(path: Path | None) -> None:
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{path}: this is a folder; a file's name is needed.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder}: not a folder to write to ({error.strerror}).") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--out {folder}: this folder cannot be written to.")


def _short_name(checkpoint: str) -> str:
    """A checkpoint's name in the name of a report: `my_set-mini-best` for runs/my_set-mini/best."""
    path = Path(checkpoint)
    return "-".join(path.resolve().parts[-2:]) if path.is_dir() else path.name


def _check_there(paths: list[Path]) -> None:
    """When nothing of what is named exists, say so before anything heavy is loaded."""
    if not any(path.exists() for path in paths):
        for path in paths[:-1]:
            console.tell_error(PevlError(f"{path}: there is no such file."))
        raise PevlError(f"{paths[-1]}: there is no such file.")


def _check_weights(pose_weights: Path | None, unused: bool) -> None:
    """Weights that are named and not there are told before anything heavy is loaded."""
    if pose_weights is None or unused or pose_weights.expanduser().is_file():
        return
    from pevl_cli.weights import find_weights

    try:
        find_weights(pose_weights)
    except PevlError as error:
        raise UsageError(str(error)) from error


def _note_weights(pose_weights: Path | None, used: bool = True) -> None:
    """Say so where nobody chose the weights and the usual ones are not here."""
    from pevl_cli.weights import fallback_note

    note = fallback_note(pose_weights) if used else None
    if note is not None:
        console.note(note)


def _end_batch(failed: int, total: int) -> None:
    if failed:
        if total > 1:
            console.warn(f"{failed} of {total} videos could not be used")
        raise typer.Exit(1)


def main() -> None:
    """Run the command; the one place where errors become a line and an exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait for each other by spinning take the processor from the one that computes,
    # if anything else runs: a step of training then takes up to seven times as long
    # (benchmarks/README.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except PevlError as error:
        console.tell_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `pevl ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
