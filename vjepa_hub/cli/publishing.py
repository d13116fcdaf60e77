"""The commands of `vjepa-hub` that publish, verify and export models: argument parsing, then one or two calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .common import progress, usage_errors

if TYPE_CHECKING:
    from ..model.modeling_vjepa import VJEPAPreTrainedModel
    from ..publishing.publishing import PublishResult
    from ..publishing.verification import Check, VerificationReport

_STYLES = {"passed": "green", "failed": "bold red", "remark": "yellow", "skipped": "dim"}


class ExportFormat(str, Enum):
    """Formats of an exported model."""

    onnx = "onnx"
    pt2 = "pt2"


def publish(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER_OR_MODEL",
            help="Folder of pretrain, probe, finetune, convert or save_pretrained; or a registered name, such as "
            "vjepa-vitl16.",
        ),
    ],
    repo_id: Annotated[str, typer.Option(help="owner/name on the Hub; a name alone is your own account's.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to commit to; made if it is missing. Default: main.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent, check it and the card, and send nothing.")
    ] = False,
    weights_license: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="Of the weights: apache-2.0, cc-by-4.0, cc-by-nc-4.0, ... Not needed for what comes from released "
            "weights, which keep theirs, nor where the card in the folder says it.",
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="What it was trained on, a name of the Hub. May be repeated.")
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="What it started from, a name of the Hub.")] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="results.json of an evaluation of this model, for its card. May be repeated."),
    ] = None,
    with_plots: Annotated[bool, typer.Option("--with-plots", help="Send the plots of the run too.")] = False,
    extra_file: Annotated[
        list[Path] | None, typer.Option(help="One more file, such as a script. May be repeated.")
    ] = None,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Replace a card that was edited in the repository.")
    ] = False,
    commit_message: Annotated[str | None, typer.Option("--message", help="Title of the commit.")] = None,
) -> None:
    """Publish a model to the Hub, in one commit, with all that others need to load it.

    Weights, configuration, processor, the code for trust_remote_code, a card with results and their protocol, and the
    recipe, settings and log of the run are sent; checkpoints and videos are not. All is checked first. The same
    command again sends only what changed, and keeps what you wrote into the card meanwhile.

    Log in before by [bold]hf auth login[/bold], or set HF_TOKEN.
    """
    from ..publishing.hub_errors import HubAccessError
    from ..publishing.publishing import CardOptions, UnpublishableError
    from ..publishing.publishing import publish as publish_model

    options = CardOptions(
        license=weights_license, datasets=tuple(dataset or ()), base_model=base_model, results=tuple(results or ())
    )
    with usage_errors(), _exit_on(UnpublishableError, HubAccessError):
        model, processor = _open_source(source)
        result = publish_model(
            model,
            repo_id,
            private=private,
            revision=revision,
            dry_run=dry_run,
            commit_message=commit_message,
            card_options=options,
            replace_card=replace_card,
            with_plots=with_plots,
            extra_files=tuple(extra_file or ()),
            processor=processor,
        )
    _show_publication(result, is_dry_run=dry_run)
    if result.publication.problems:
        raise typer.Exit(1)


@contextmanager
def _exit_on(unpublishable: type[Exception], no_access: type[Exception]) -> Iterator[None]:
    """End with 1 where it is not the command that is wrong, but the model or the Hub."""
    try:
        yield
    except unpublishable as error:
        typer.echo("nothing was sent:", err=True)
        _show_problems(getattr(error, "problems", [str(error)]))
        raise typer.Exit(1) from error
    except no_access as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


def _show_problems(problems: list[str]) -> None:
    for problem in problems:
        hint = " (--license)" if "no license" in problem else ""
        typer.echo(f"- {problem}{hint}", err=True)


def _open_source(source: str) -> tuple[Any, Any]:
    """A folder as it stands; of any other model that `open_model` takes, the model with its processor."""
    if Path(source).is_dir():
        return source, None
    from ..hub.loading import open_model

    opened = open_model(source)
    return opened.model, opened.processor


def _show_publication(result: PublishResult, *, is_dry_run: bool) -> None:
    console = Console()
    table = Table("file", "size", "", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[1].justify = "right"
    for file in result.publication.files:
        state = "sent" if file.path in result.sent else "unchanged"
        state = "to be sent" if is_dry_run and state == "sent" else state
        style = "dim" if state == "unchanged" else ""
        table.add_row(Text(file.path, style=style), _size(file.num_bytes), Text(state, style=style))
    for path in result.removed:
        table.add_row(path, "", "to be removed" if is_dry_run else "removed")
    console.print(table)
    for note in result.notes:
        console.print(Text(note, style="yellow"), soft_wrap=True)
    if is_dry_run:
        _show_card_checks(result, console)
        console.print("dry run: nothing was sent")
    elif result.commit is None:
        console.print(Text(f"nothing differs from {result.url}: no commit was made"), soft_wrap=True)
    else:
        console.print(Text(f"published {result.url} (commit {result.commit[:8]})"), soft_wrap=True)


def _show_card_checks(result: PublishResult, console: Console) -> None:
    problems = list(result.publication.problems)
    console.print(Text("checks: " + (f"{len(problems)} problems" if problems else "no problems")))
    _show_problems(problems)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:,.1f} kB"


def verify(
    name: Annotated[
        str,
        typer.Argument(
            metavar="REPO_OR_FOLDER", help="owner/name on the Hub, a folder, or a model that the package carries."
        ),
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit. Default: main.")] = None,
    run_code: Annotated[
        bool,
        typer.Option(
            "--run-code",
            help="Run the first Python block of the card, in a process of its own: read it first, it can do anything.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Validation set of a classifier: a slice of the stated evaluation is run again."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Videos of that slice, drawn at random.")] = 50,
    protocol: Annotated[
        str | None, typer.Option(help="Of that slice. Default: the one that the model's records state.")
    ] = None,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 0,
    device: Annotated[str, typer.Option(help="Where the slice is evaluated.")] = "cpu",
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain", help="Train the model again by the recipe of its reproduction.json, and compare with that."
        ),
    ] = False,
    short: Annotated[bool, typer.Option("--short", help="Of that training, the first part only.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of that training. Default: the model's own.")] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Folder for that training; the same command goes on where it was stopped.")
    ] = Path("runs/retrained"),
) -> None:
    """Download a published model and check what it says of itself.

    Hashes against the server's; weights complete, with the keys and shapes of their configuration; processor; no
    pickles needed; the code for trust_remote_code against this package's; card against configuration. Ends with 1
    where a check fails. Nothing of the repository is run, but for --run-code.

    --retrain: a model that was made by `vjepa-hub reproduce` carries the record of several trainings. It
    is trained again; the loss has to run within their spread, the accuracies have to lie within two standard
    deviations, and with the same seed on the same machine the weights have to be equal to the bit. For a model that
    the package carries, such as vjepa-vit-tiny, this is what is done without asking.
    """
    from ..hub.registry import find_bundled
    from ..publishing.hub_errors import HubAccessError

    with usage_errors():
        retrain = retrain or (not Path(name).is_dir() and find_bundled(name) is not None)
        if data is None and protocol is not None:
            raise ValueError("--protocol was given, but no --data to evaluate on: give both or neither")
        if not retrain and (short or seed is not None):
            raise ValueError("--short and --seed are about a training: give --retrain too, or leave them out")
        try:
            report = _verified(name, revision)
        except HubAccessError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from error
        if run_code:
            report = report.with_check(_run_code(report))
        if data is not None:
            report = report.with_check(_evaluate_slice(report, data, limit, protocol, num_workers, device))
        if retrain:
            for check in _retrain(report, output_dir, is_short=short, seed=seed):
                report = report.with_check(check)
    _show_report(report)
    if not report.passed:
        raise typer.Exit(1)


def _verified(name: str, revision: str | None) -> VerificationReport:
    from ..hub.registry import MODELS, find_bundled
    from ..publishing.verification import verify_bundled, verify_folder, verify_repo

    if revision is not None and (Path(name).is_dir() or name in MODELS):
        what = "a folder" if Path(name).is_dir() else "a model of the registry"
        raise ValueError(f"--revision was given, but {name} is {what}, which has none: leave it out")
    if Path(name).is_dir():
        return verify_folder(name)
    bundled = find_bundled(name)
    if bundled is not None:
        return verify_bundled(name, bundled)
    if name in MODELS:
        raise ValueError(
            f"{name} is a name of the registry, not a repository: released files are checked when they are "
            "converted; give owner/name or a folder"
        )
    return verify_repo(name, revision=revision)


def _run_code(report: VerificationReport) -> Check:
    from ..data.samples import sample_clip_path
    from ..publishing.verification import run_card_code

    return run_card_code(report, sample_clip_path())


def _evaluate_slice(
    report: VerificationReport, data: str, limit: int, protocol: str | None, num_workers: int, device: str
) -> Check:
    from ..evaluation.protocols import find_protocol
    from ..evaluation.slice_evaluation import evaluate_slice, find_stated_protocol
    from ..publishing.verification import SKIPPED, Check, compare_accuracy, find_stated_accuracy

    if not report.is_classifier or not report.passed:
        reason = "a check failed before" if report.is_classifier else "the model is no classifier: probe it"
        return Check(name="stated accuracy", state=SKIPPED, detail=reason)
    with progress("evaluating a slice") as show:
        metrics = evaluate_slice(
            report.folder,
            data,
            protocol=find_protocol(protocol) if protocol else find_stated_protocol(report.folder),
            limit=limit,
            device=device,
            num_workers=num_workers,
            progress=show,
        )
    stated = find_stated_accuracy(report, Path(data).name)
    num_correct = round(metrics.top1 * metrics.num_videos)
    if stated is None:
        found = f"{num_correct} of {metrics.num_videos} right; the card states no top-1 accuracy to compare with"
        return Check(name="stated accuracy", state=SKIPPED, detail=found)
    return compare_accuracy(stated, num_correct, metrics.num_videos)


def _retrain(report: VerificationReport, output_dir: Path, *, is_short: bool, seed: int | None) -> list[Check]:
    from ..reproduction.retraining import verify_training

    return verify_training(report.folder, output_dir, is_short=is_short, seed=seed)


def _show_report(report: VerificationReport) -> None:
    table = Table("check", "", "found", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for check in report.checks:
        table.add_row(check.name, Text(check.state, style=_STYLES[check.state]), Text(check.detail, overflow="fold"))
    console = Console()
    console.print(table)
    num_failed = sum(not check.passed for check in report.checks)
    place = report.name + (f" at {report.commit[:8]}" if report.commit else "")
    verdict = f"{num_failed} checks failed" if num_failed else "what it says of itself holds"
    console.print(Text(f"{place}: {verdict}", style="bold red" if num_failed else "bold green"), soft_wrap=True)


def export(
    model: Annotated[str, typer.Argument(help="A name, a folder, a released file, or a Hub name.")],
    file: Annotated[Path, typer.Argument(metavar="OUT", help="File to write, .onnx or .pt2; replaced if it exists.")],
    format: Annotated[  # noqa: A002  (it is the option's name)
        ExportFormat | None, typer.Option(help="Default: by the ending of OUT.", show_default=False)
    ] = None,
    probe: Annotated[
        str | None, typer.Option(help="Data set of a released probe, such as k400: logits in place of features.")
    ] = None,
) -> None:
    """Write a model for other runtimes: features of every token, or the logits of a classifier.

    Any batch size, clips of the model's own size, preprocessed by its video processor. onnx needs the extra onnx;
    pt2 is a program of torch.export, which torch alone runs.
    """
    from ..publishing.export import export_onnx, export_program

    console = Console(stderr=True)
    with usage_errors(), console.status(f"exporting {model}"):
        chosen = format.value if format else file.suffix.removeprefix(".")
        if chosen not in ("onnx", "pt2"):
            raise ValueError(f"{file} ends with neither .onnx nor .pt2; change its name, or give --format")
        written = (export_onnx if chosen == "onnx" else export_program)(_open_for_export(model, probe), file)
    console.print(f"wrote {written}")


def _open_for_export(name: str, probe: str | None) -> VJEPAPreTrainedModel:
    """The features model, or the classifier where a folder holds one or a released probe is asked for."""
    from ..hub.loading import load_classifier, open_classifier, open_model
    from ..hub.safety import check_folder
    from ..model.modeling_vjepa import VJEPAForVideoClassification

    if probe is not None:
        return load_classifier(name, probe)
    if Path(name).is_dir() and VJEPAForVideoClassification.__name__ in (check_folder(name).architectures or ()):
        return open_classifier(name)[0]
    return open_model(name).model
