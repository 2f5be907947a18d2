"""The commands that take a bundle, on the command line of :mod:`search.cli`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that 'splitsearch export' wrote.")]
ServerOption = Annotated[Optional[str], typer.Option("--server", help="http://HOST:PORT or https://HOST:PORT.")]
TokenOption = Annotated[
    Optional[Path], typer.Option("--token-file", help="Holds the bearer token; else SPLITSEARCH_TOKEN.")
]
AuthorityOption = Annotated[Optional[Path], typer.Option("--ca", help="PEM of whom to trust; else the system's.")]


def serve(
    bundle: BundleArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free one.")] = 8500,
    token_file: TokenOption = None,
    cert: Annotated[Optional[Path], typer.Option(help="PEM certificate for TLS.")] = None,
    key: Annotated[Optional[Path], typer.Option(help="Its key.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Beyond loopback even without token or TLS.")] = False,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds for a request to arrive, and to answer.")] = 10.0,
    batch: Annotated[Optional[int], typer.Option(min=1, help="Pictures at once; measured unless given.")] = None,
) -> None:
    """Answer payloads over HTTP, by the Open Inference Protocol."""
    from search import deploy

    deploy.serve(
        bundle,
        host=host,
        port=port,
        token_file=token_file,
        certificate=cert,
        key=key,
        insecure=insecure,
        deadline_s=deadline,
        batch=batch,
    )


def infer(
    bundle: BundleArgument,
    images: Annotated[
        Optional[list[Path]], typer.Argument(metavar="IMAGE...", help="Pictures, and folders of pictures.")
    ] = None,
    server: ServerOption = None,
    camera: Annotated[
        Optional[str],
        typer.Option(help="A command that takes one picture and writes it to standard output.", metavar="COMMAND"),
    ] = None,
    frames: Annotated[Optional[int], typer.Option(min=1, help="Of the camera; without it, until Ctrl-C.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    draw: Annotated[Optional[Path], typer.Option(help="For detectors: folder for pictures with boxes.")] = None,
    least_score: Annotated[float, typer.Option(help="For detectors: of a box.")] = 0.25,
    max_drop_pp: Annotated[
        Optional[float], typer.Option(help="Of the points to choose from, where the bundle has several.")
    ] = None,
    token_file: TokenOption = None,
    ca: AuthorityOption = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the server.")] = 10.0,
    retries: Annotated[int, typer.Option(min=0, help="Further tries where it is away.")] = 4,
) -> None:
    """Answer pictures: the device half here, the server half at a URL."""
    from search import deploy

    access = deploy.access(server, token_file, ca, timeout, retries)
    wishes = {"as_json": as_json, "draw": draw, "least_score": least_score, "max_drop_pp": max_drop_pp}
    raise typer.Exit(deploy.infer(bundle, images or [], access, deploy.camera(camera, frames), **wishes))


def verify(
    bundle: BundleArgument,
    server: ServerOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    measured_link: Annotated[
        bool, typer.Option("--measured-link", help="Predict with the link as it is now; always so without --server.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Pictures that count.")] = 50,
    point: Annotated[int, typer.Option(min=1, help="Of a bundle with several; the table in its README has them.")] = 1,
    token_file: TokenOption = None,
    ca: AuthorityOption = None,
) -> None:
    """Compare predicted and measured latency part by part; exit code 1 where the whole is off by more than 10 %."""
    from search import deploy

    found = deploy.verify(bundle, deploy.access(server, token_file, ca), measured_link, repeats, str(point))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        sys.stdout.write(deploy.table(found) + "\n")
    raise typer.Exit(0 if found["within"] else 1)


COMMANDS = (serve, infer, verify)


def take_process() -> None:
    """Have the networks of this process share their threads; for a process that runs one of the commands alone."""
    from evaluators.edge import threads

    threads.share()
