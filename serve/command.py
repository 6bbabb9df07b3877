"""`keyhole serve`: what the words of the command line mean. Knows nothing of how a server runs."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from engine.errors import RecipeError

INTERRUPTED = 130


@click.command("serve")
@click.argument("runs", nargs=-1, metavar="[NAME=]RUN...")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Where to listen.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: for other machines too; use --keys.")
@click.option(
    "--watch", type=click.Path(path_type=Path), help="Serve all artifacts in this folder, as they come and go."
)
@click.option("--replicas", default="1", show_default=True, metavar="N|MIN-MAX", help="Encoders of each model.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--keys", type=click.Path(path_type=Path), help="API keys: a file of SHA-256 hashes, one a line.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout once it answers, nothing else there.")
def serve(
    runs: tuple[str, ...], port: int, host: str, watch: Path | None, replicas: str, device: str, keys: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Answer over HTTP with finished runs, until Ctrl-C.

    A run is served under its folder's name, or as NAME. The same NAME again is a newer version.

    \b
    keyhole serve runs/digits --port 8000
    curl --data-binary @photo.png http://127.0.0.1:8000/models/digits
    """
    from pydantic import ValidationError

    from serve.keys import load_keys
    from serve.running import running
    from serve.settings import ServeSettings

    try:
        settings = ServeSettings(
            artifacts=_named(runs),
            watch=None if watch is None else str(watch.resolve()),
            replicas=replicas,
            device=device,
            keys=None if keys is None else str(keys.resolve()),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"--{first['loc'][0]}: {first['msg']}") from None
    if not load_keys(settings.keys) and not _loopback(host):
        click.echo(f"warning: whoever reaches {host}:{port} may ask; name --keys", err=True)
    try:
        with running(settings, host=host, port=port) as url:
            names = sorted(settings.artifacts)
            facts: dict[str, Any] = {"url": url, "artifacts": names, "watch": settings.watch}
            click.echo(f"ready: {url} answers for {', '.join(names) or settings.watch}; Ctrl-C ends it", err=True)
            if as_json:
                click.get_current_context().find_root().obj.give(facts)
            threading.Event().wait()
    except KeyboardInterrupt:
        click.echo("ended", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


def _named(runs: Sequence[str]) -> dict[str, list[str]]:
    """name -> folders. Raises RecipeError where two runs would get one name unasked."""
    found: dict[str, list[str]] = {}
    for word in runs:
        name, given, rest = word.partition("=")
        if not given or Path(word).exists():
            name, given, rest = "", "", word
        folder = Path(rest).resolve()
        if not given:
            name = folder.parent.name if folder.name == "artifact" else folder.name
            if name in found:
                raise RecipeError(f"{word} would be served as {name!r}, as another run is; write NAME={word}")
        found.setdefault(name, []).append(str(folder))
    return found


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
