"""`farstep checkpoints`: what is kept, removed, kept for a while, exported, imported, pushed to the hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from farstep import ServiceClient
from farstep._checkpoint_requests import checked_path
from farstep.checkpoints import Checkpoint
from farstep.cli import command
from farstep.cli.output import Column, ago, moment, number, print_details, print_json, print_lines, print_table, size
from farstep.control import ControlClient

_COLUMNS = (
    Column[Checkpoint]("path", lambda kept: kept.path),
    Column[Checkpoint]("made", lambda kept: ago(kept.created_at), drop=1),
    Column[Checkpoint]("step", lambda kept: number(kept.step), drop=3, justify="right"),
    Column[Checkpoint]("version", lambda kept: number(kept.policy_version), drop=5, justify="right"),
    Column[Checkpoint]("size", lambda kept: size(kept.size_bytes), drop=2, justify="right"),
    Column[Checkpoint]("base model", lambda kept: kept.base_model, drop=6),
    Column[Checkpoint]("expires", lambda kept: ago(kept.expires_at), drop=4),
)


def main(argv: list[str]) -> int:
    return command.run("checkpoints", add_arguments, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Checkpoints. One is given by its path (bt://…) or id."
    commands = command.Subcommands(parser)
    listing = commands.add("list", _list, "list what is kept of a run, or of all runs")
    listing.add_argument("run_id", nargs="?", metavar="RUN")
    command.add_list_options(listing)
    commands.add("get", _get, "show one checkpoint").add_argument("checkpoint", metavar="CHECKPOINT")
    deleting = commands.add("delete", _delete, "remove checkpoints")
    deleting.add_argument("checkpoint", metavar="CHECKPOINT", nargs="+")
    command.add_yes(deleting)
    ttl = commands.add("ttl", _ttl, "say when a checkpoint expires")
    ttl.add_argument("checkpoint", metavar="CHECKPOINT")
    ttl.add_argument("ttl", type=_ttl_seconds, metavar="TIME", help="from now on, such as 90s, 12h or 7d; or never")
    _add_export(commands.add("export", _export, "write a checkpoint to a folder of this machine"))
    bringing = commands.add("import", _import, "make a checkpoint of a PEFT adapter")
    bringing.add_argument("adapter", metavar="FOLDER_OR_HUB_ID")
    bringing.add_argument("--name", default="imported", help="(default: %(default)s)")
    bringing.add_argument("--base-model", help="as the server knows it (default: as the adapter names it)")
    pushing = commands.add("push", _push, "upload a checkpoint's adapter to a repository of the hub")
    pushing.add_argument("checkpoint", metavar="CHECKPOINT")
    pushing.add_argument("repo_id", metavar="REPOSITORY", help="such as me/my-adapter; made where there is none")
    pushing.add_argument("--public", action="store_true", help="a repository that is made is public (default: private)")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--format", default="peft", choices=["peft", "merged"], help="(default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="one that is not there yet (default: the checkpoint's name)"
    )
    parser.add_argument("--base-model", help="for merged: where the base model is on this machine")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="of a merged model")


def _list(client: ControlClient, arguments: argparse.Namespace) -> None:
    run_ids = [arguments.run_id] if arguments.run_id else [run.run_id for run in client.list_runs()]
    found = [kept for run_id in run_ids for kept in client.list_checkpoints(run_id)]
    found.sort(key=lambda kept: kept.created_at)
    _show(command.newest(found, arguments), arguments)


def _show(found: Sequence[Checkpoint], arguments: argparse.Namespace) -> None:
    if getattr(arguments, "quiet", False):
        print_lines([kept.checkpoint_id for kept in found])
    elif arguments.json:
        print_json(found)
    else:
        print_table(found, _COLUMNS, nothing="no checkpoints")


def _get(client: ControlClient, arguments: argparse.Namespace) -> None:
    found = client.get_checkpoint(arguments.checkpoint)
    if arguments.json:
        print_json(found)
        return
    lora = found.lora_adapter_config
    facts = {
        "path": found.path,
        "id": found.checkpoint_id,
        "run": found.run_id,
        "of": found.target,
        "made": moment(found.created_at),
        "expires": moment(found.expires_at) or "never",
        "step": number(found.step),
        "policy version": number(found.policy_version),
        "base model": found.base_model,
        "adapter": f"rank {lora.rank}, alpha {lora.alpha:g}",
        "size": size(found.size_bytes),
        **{f"sha256 of {name}": digest for name, digest in found.sha256s.items()},
        **{f"metadata.{name}": value for name, value in found.metadata.items()},
    }
    print_details({name: value for name, value in facts.items() if value})


def _delete(client: ControlClient, arguments: argparse.Namespace) -> None:
    paths = [str(checked_path(checkpoint)) for checkpoint in arguments.checkpoint]
    command.confirm(f"delete {command.named('checkpoint', paths)}", arguments)
    for path in paths:
        client.delete_checkpoint(path)
    if arguments.json:
        print_json({"deleted": paths})


def _ttl(client: ControlClient, arguments: argparse.Namespace) -> None:
    _show([client.set_checkpoint_ttl(arguments.checkpoint, arguments.ttl or None)], arguments)


def _export(client: ControlClient, arguments: argparse.Namespace) -> None:
    folder = client.export_checkpoint(
        arguments.checkpoint,
        arguments.format,
        arguments.out,
        base_model=arguments.base_model,
        dtype=arguments.dtype,
    )
    print_json({"folder": str(folder)}) if arguments.json else print_lines([str(folder)])


def _import(client: ControlClient, arguments: argparse.Namespace) -> None:
    with ServiceClient(base_url=client.base_url) as service:  # a trainer is started for it
        imported = service.import_adapter(arguments.adapter, arguments.name, base_model=arguments.base_model)
    print_json(asdict(imported)) if arguments.json else print_lines([imported.path, imported.sampler_path])


def _push(client: ControlClient, arguments: argparse.Namespace) -> None:
    url = client.push_to_hub(arguments.checkpoint, arguments.repo_id, private=not arguments.public)
    print_json({"url": url}) if arguments.json else print_lines([url])


def _ttl_seconds(text: str) -> int:
    """0: never."""
    return 0 if text == "never" else command.seconds(text)
