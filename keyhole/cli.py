"""The command line: it composes the rooms and decides nothing. Knows their names, not their subjects."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import click

from bench.commands import bench
from engine.errors import BoxError, RecipeError
from keyhole.export_command import export_command
from keyhole.printing import as_json, give, print_facts
from serve.command import serve
from tuning.answer import INTERRUPTED, answering, interruptible


class _Configured(click.Command):
    """A command whose options set fields of a dataclass (`module:Class`): its help shows that class's defaults."""

    def __init__(self, *args: Any, settings: str, **more: Any) -> None:
        super().__init__(*args, **more)
        self._settings = settings

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        module, _, kind = self._settings.partition(":")
        fields = dataclasses.fields(getattr(importlib.import_module(module), kind))
        ctx.default_map = {f.name: f.default for f in fields if f.default not in (dataclasses.MISSING, None, "", ())}
        ctx.show_default = True
        super().format_options(ctx, formatter)


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="A first run: keyhole tune --task mini:digits --budget 300",
)
@click.version_option(package_name="keyhole", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Tune frozen vision-language models that can only be queried."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("tune", cls=_Configured, settings="tuning.recipe:Recipe")
@click.argument("settings", nargs=-1, metavar="[RECIPE.yaml] [KEY=VALUE]...")
@click.option("--task", help="What to tune for: a task URI (keyhole list tasks).")
@click.option("--box", help="The model to ask: a box URI (keyhole list boxes).")
@click.option("--method", help="How to search (keyhole list methods).")
@click.option("--budget", type=float, help="Evaluations: one is one candidate on all training images.")
@click.option("--shots", type=int, help="Training images a class.")
@click.option("--seed", type=int, help="Sets every random draw.")
@click.option("--workers", type=int, help="Ray actors; 0: in this process, without Ray.")
@click.option("--device", help="cpu or cuda.")
@click.option("--from", "start", help="Begin at the prompt of this run folder or artifact.")
@click.option("--out", type=click.Path(path_type=Path), show_default="runs/TASK-METHOD-sSEED", help="Run folder.")
@click.option("--plan", is_flag=True, help="Print what the run would spend; send nothing.")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with this run folder.")
@as_json
def tune_command(
    settings: tuple[str, ...], out: Path | None, plan: bool, resume: Path | None, as_json: bool, **flags: Any
) -> None:
    """Tune a prompt for a task from a model's answers alone.

    \b
    keyhole tune --task mini:digits --method momentum --budget 500 --workers 2 --out runs/digits
    keyhole tune recipes/mine.yaml seed=2 method.radius=0.1
    keyhole tune --resume runs/digits

    KEY=VALUE sets anything else: docs/recipe.md lists all keys with their defaults.
    """
    from tuning import run_folder
    from tuning.progress import Progress
    from tuning.recipe import load_recipe, make_recipe
    from tuning.run import Tuning

    given = {name: value for name, value in flags.items() if value is not None}
    base: dict[str, Any] = {}
    if resume is not None:
        if out is not None or set(given) - {"workers"} or settings:
            raise RecipeError("--resume goes with --workers only: all other settings are those of the run folder")
        if (resume / run_folder.RESULT).exists():
            _print_result(run_folder.read_result(resume), resume, as_json)
            return
        base = run_folder.resumed_recipe(resume)
    files = [word for word in settings if "=" not in word]
    if len(files) > 1:
        raise RecipeError(f"one recipe file at most, but got {', '.join(files)}; settings are key=value")
    if files:
        if ":" in files[0] and not Path(files[0]).exists():
            raise RecipeError(f"{files[0]!r} is no recipe file; a task is named with --task, a box with --box")
        base = load_recipe(files[0])
    recipe = make_recipe(base, [word for word in settings if "=" in word], given)
    if plan:
        from tuning.cost_plan import plan as planned

        with Progress():
            facts = planned(recipe)
        print_facts(facts, as_json)
        return
    tuning = None
    try:
        with interruptible() as interrupted, Progress(recipe.budget) as progress:
            tuning = Tuning(recipe, resume or out or run_folder.default_path(recipe), resume=resume is not None)
            with closing(iter(tuning)) as rounds:
                for step in rounds:
                    progress.step(step)
                    if interrupted.is_set():
                        break
    except KeyboardInterrupt:  # the second one
        if tuning is None:
            raise
    if not tuning.result:
        _interrupted("tune", tuning.out, as_json)
    _print_result(tuning.result, tuning.out, as_json)


@cli.command("eval")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--task", help="Another task than it was tuned on.")
@click.option("--box", help="Another box than it was tuned on.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda: also another than it was tuned on.")
@click.option(
    "--test-images", type=int, help="Images of the test split to read, drawn by the artifact's seed; else all."
)
@as_json
def eval_command(
    run_folder: Path, task: str | None, box: str | None, device: str, test_images: int | None, as_json: bool
) -> None:
    """Read the test accuracy of a finished run.

    On its own task and box, or on others.
    """
    from engine.artifact import Artifact
    from tuning.evaluate import evaluate
    from tuning.progress import Progress

    with Progress():
        facts = evaluate(Artifact.load(run_folder), task_uri=task, box_uri=box, device=device, test_images=test_images)
    print_facts(facts, as_json)


@cli.command("predict")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("more", nargs=-1, metavar="", type=click.Path(path_type=Path))
@click.option("--images", required=True, metavar="FOLDER|FILE...", type=click.Path(path_type=Path), help="To label.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The CSV; one that was begun is continued.")
@click.option("--box", help="Another box than it was tuned on.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda: also another than it was tuned on.")
@as_json
def predict_command(
    run_folder: Path, more: tuple[Path, ...], images: Path, out: Path, box: str | None, device: str, as_json: bool
) -> None:
    """Label images with a finished run.

    Writes file, label, probability and, of images that cannot be read, error.

    \b
    keyhole predict runs/digits --images photos --out predictions.csv
    """
    from engine.classifier import Classifier
    from tuning.predict import predict
    from tuning.progress import Progress

    try:
        with Progress():
            facts = predict(Classifier.load(run_folder, device), [images, *more], out, box_uri=box)
    except KeyboardInterrupt:
        _stop(f"interrupted; the same command goes on with {out}", out, as_json)
    if facts["unreadable"]:
        click.echo(f"{facts['unreadable']:,} images could not be read: column error of {out} says why", err=True)
    print_facts(facts if as_json else {name: facts[name] for name in facts if name != "classes"}, as_json)


@cli.command("compare", cls=_Configured, settings="tuning.compare.comparison:Comparison")
@click.argument("settings", nargs=-1, metavar="[COMPARISON.yaml] [KEY=VALUE]...")
@click.option("--tasks", help="Task URIs, divided by commas.")
@click.option("--methods", help="Methods, divided by commas.")
@click.option("--boxes", help="Box URIs, divided by commas.")
@click.option("--seeds", help="A run each, for example 1,2,3.")
@click.option("--shots", help="Training images a class, for example 1,2,4,8,16.")
@click.option("--budget", type=float, help="Evaluations of each run.")
@click.option("--base-to-new", is_flag=True, default=None, help="Tune on half of the classes, test on both halves.")
@click.option("--shift", help="Tasks to test every tuned prompt on besides its own.")
@click.option("--samples", type=int, help="Combinations a search on validation tries.")
@click.option("--searcher", help="How it draws them: random, nevergrad or optuna.")
@click.option("--asha", is_flag=True, default=None, help="Stop a search's hopeless runs early.")
@click.option("--data", help="Folder that {data} in task URIs stands for.")
@click.option("--title", help="Of the report.")
@click.option("--out", type=click.Path(path_type=Path), help="The comparison's folder.")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with this folder; finished runs stay.")
@click.option("--parallel", type=click.IntRange(0), help="Runs at once; 0: in this process, without Ray.")
@click.option("--address", help="Of a running Ray; default RAY_ADDRESS, or a local one.")
@click.option("--track", default="", help="tensorboard, mlflow, wandb (divided by commas).")
@as_json
def compare_command(
    settings: tuple[str, ...], out: Path | None, resume: Path | None, parallel: int | None, address: str | None,
    track: str, as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Compare methods on tasks over seeds and write a report.

    Runs go in parallel on Ray Tune.

    \b
    keyhole compare --tasks mini:digits --methods zero-shot,momentum,cbbt --seeds 1,2,3 --out runs/compare
    keyhole compare recipes/coop11.yaml --data ~/coop --out runs/coop11
    keyhole compare --resume runs/compare
    """
    from tuning.compare import conduct
    from tuning.compare.comparison import flags_of, make_comparison, split_list
    from tuning.compare.experiment_trackers import Board
    from tuning.compare.tune_runner import Cluster
    from tuning.recipe import load_recipe
    from tuning.report.summary import text

    given = flags_of({name: value for name, value in flags.items() if value is not None})
    files = [word for word in settings if "=" not in word]
    if (out is None) == (resume is None):
        raise RecipeError("name the comparison's folder: --out for a new one, --resume for one that was begun")
    if resume is not None and (given or settings):
        raise RecipeError("--resume takes the settings of the folder: --parallel, --address and --track go with it")
    if len(files) > 1:
        raise RecipeError(f"one file at most, but got {', '.join(files)}; settings are key=value")
    wanted = None
    if resume is None:
        wanted = make_comparison(
            load_recipe(files[0]) if files else {}, [word for word in settings if "=" in word], given
        )
    folder = resume or out
    assert folder is not None
    board = Board(lambda text: click.echo(text, err=True, nl=False), live=sys.stderr.isatty())
    with interruptible("ending the runs, then writing the report ...") as interrupted:
        summary = conduct.compare(
            wanted, folder, resume=resume is not None, board=board, stop=interrupted,
            cluster=Cluster(parallel=parallel, address=address), trackers=split_list(track),
        )  # fmt: skip
    if not as_json:
        click.echo(text(folder, summary))
    click.echo(f"report: {folder / 'report.html'}", err=True)
    if interrupted.is_set():
        _interrupted("compare", folder, as_json, summary)
    failed = {} if summary["finished"] else {"error": "no run has finished; `failed` says why"}
    if as_json:
        give({**summary, **failed})
    if failed:
        raise click.exceptions.Exit(BoxError.exit_code)


@cli.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@as_json
def report_command(folder: Path, as_json: bool) -> None:
    """Remake the report of a comparison from its folder."""
    from tuning.report.summary import remake, text

    summary = remake(folder)
    if as_json:
        give(summary)
    else:
        click.echo(text(folder, summary))
    click.echo(f"report: {folder / 'report.html'}", err=True)


@cli.command("list")
@click.argument("what", type=click.Choice(["methods", "prompts", "tasks", "boxes"]))
@as_json
def list_command(what: str, as_json: bool) -> None:
    """List the methods, prompts, tasks or boxes there are."""
    from tuning import listing

    if as_json:
        give({what: listing.LISTS[what][0]()})
    else:
        click.echo(listing.table(what).text())


@cli.command("doctor")
@click.option("--box", help="Open this box too: what it gives and accepts, which words it knows, how it computes.")
@as_json
def doctor_command(box: str | None, as_json: bool) -> None:
    """Check the environment and, with --box, look into a model."""
    from tuning.doctor import examine

    findings = examine(box)
    print_facts(findings, as_json)
    if not findings["healthy"]:
        raise click.exceptions.Exit(3)


cli.add_command(bench)
cli.add_command(export_command)
cli.add_command(serve)


# ---------------------------------------------------------------------------------------------------------------------
# What a person sees


def _interrupted(command: str, folder: Path, as_json: bool, facts: Mapping[str, Any] | None = None) -> NoReturn:
    _stop(f"interrupted; go on with: keyhole {command} --resume {folder}", folder, as_json, facts)


def _stop(sentence: str, resume: Path, as_json: bool, facts: Mapping[str, Any] | None = None) -> NoReturn:
    click.echo(sentence, err=True)
    if as_json:
        give({**(facts or {}), "error": sentence, "resume": str(resume)})
    raise click.exceptions.Exit(INTERRUPTED)


def _print_result(result: Mapping[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        give(result)
        return
    click.echo(
        f"{result['task']} on {result['box']}, {result['method']}, {result['shots']} shots, seed {result['seed']}\n"
        f"test accuracy  {result['zero_shot_accuracy']:.4f} zero-shot  ->  {result['accuracy']:.4f} tuned"
        f"{_part(result)}\n"
        f"cost           {result['evaluations']:.1f} evaluations = {result['pairs']:,} prompt-image pairs "
        f"(+ {result['test_pairs']:,} for the final test), {result['sequences']:,} text sequences, "
        f"{result['image_encodes']:,} image encodes, {result['seconds']:.1f} s\n"
        f"artifact       {out / 'artifact'}"
    )


def _part(result: Mapping[str, Any]) -> str:
    """How much of the test split an accuracy is of, where it is not all of it."""
    read, of = result.get("test_images"), result.get("test_images_of")
    return "" if read == of else f", on {read:,} of {of:,} test images"


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: every error a user can mend is one sentence and an exit code.

    Args:
        arguments: for a process that does not end with this command; its stdout and signals stay its own.
    """
    process = arguments is None
    words = list(sys.argv[1:] if arguments is None else arguments)
    if process:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    with answering("--json" in words, process=process) as answer:
        code = answer.run(lambda: cli.main(args=words, prog_name="keyhole", standalone_mode=False, obj=answer))
    sys.exit(code)
