"""`keyhole export`: a finished run as one file for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from keyhole.printing import as_json, print_facts


@click.command("export")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--to", "form", default="classifier", show_default=True, help="classifier (.npz) or onnx.")
@click.option("--out", type=click.Path(path_type=Path), show_default="RUN.npz or RUN.onnx", help="The file.")
@click.option("--box", help="Another box than it was tuned on.")
@as_json
def export_command(run_folder: Path, form: str, out: Path | None, box: str | None, as_json: bool) -> None:
    """Write a finished run as one file for other programs.

    Class rows for image features that you have, or an ONNX model of image tower, rows and head.

    \b
    keyhole export runs/digits --to classifier --out digits.npz
    keyhole export runs/digits --to onnx --out digits.onnx
    """
    from engine.classifier import Classifier
    from engine.export import default_path, export
    from tuning.progress import Progress

    with Progress():
        classifier = Classifier.load(run_folder)
        facts = export(classifier.open(box), form, out or default_path(run_folder, form))
    print_facts(facts, as_json)
