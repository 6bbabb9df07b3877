"""`keyhole bench`: a command for each bench, which is imported when it is called."""

from __future__ import annotations

import importlib

import click

from tuning.answer import Answer

BENCHES = {
    "tasks": ("bench.task_admission", "In which embedded tasks there is something to tune."),
    "evaluate": ("bench.cost.evaluate", "What one evaluation costs, beside the ways that others do it."),
    "overhead": ("bench.tune_overhead", "What a comparison adds to the seconds of its runs."),
    "search": ("bench.search.command", "The accuracy of every method by evaluations spent."),
    "workers": ("bench.workers", "How much of a worker's time the encoder takes."),
    "memory": ("bench.memory", "Peak memory of a search with many classes."),
    "serve": ("bench.serving.command", "What a server keeps of the bare model, and others' servers."),
    "heads": ("bench.heads", "The accuracy of heads on returned features and scores."),
}
"""name -> a module with a `BENCH` (bench.entry.Bench), and what it measures."""


@click.group("bench", invoke_without_command=True)
@click.pass_context
def bench(context: click.Context) -> None:
    """Remake the numbers of docs/benchmarks.md.

    The settings of one: keyhole bench tasks --help.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _add(name: str, module: str, about: str) -> None:
    # The bench's own parser reads the arguments, --help among them.
    settings = {"ignore_unknown_options": True, "help_option_names": []}

    @bench.command(name, help=about, context_settings=settings)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def run(arguments: tuple[str, ...]) -> None:
        answer = click.get_current_context().find_object(Answer)
        assert answer is not None, "keyhole.main() makes it"
        raise click.exceptions.Exit(importlib.import_module(module).BENCH.run(name, about, arguments, answer.give))


for _name, (_module, _about) in BENCHES.items():
    _add(_name, _module, _about)
