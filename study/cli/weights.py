"""`agft import`, `export`, `interpolate`: weights from elsewhere, for elsewhere, and mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from study.cli.edge import FILE, FOLDER, PLACE, home, json_option, print_json
from study.console import say

LAYOUTS = ("agft", "tecoa", "pmg-aft", "tga-zsr", "fare", "state-dict")  # of trainers.official, which needs torch


@click.command("import")
@click.argument("file", type=FILE)
@click.option("--arch", required=True, help="open_clip's name of the architecture, e.g. ViT-B-32-quickgelu.")
@click.option("--layout", type=click.Choice(["auto", *LAYOUTS]), default="auto", show_default=True,
              help="Whose code saved it.")  # fmt: skip
@click.option("--base", help="Where the text side is from: tag, file, folder, s3:// or "
              "hf-hub: address.  [default: OpenAI's weights]")  # fmt: skip
@click.option("--gelu", is_flag=True, help="It was trained without QuickGELU, which a plain state dict does not say.")
@click.option("--out", type=FILE, required=True, help="The weights file to write, .safetensors.")
def import_(file: Path, arch: str, layout: str, base: str | None, gelu: bool, out: Path) -> None:
    """Make weights of a checkpoint that another code saved (AGFT, TeCoA, PMG-AFT, TGA-ZSR, FARE, open_clip)."""
    say(f"reading {file} ...")  # the imports alone take seconds
    from study.models.weights import import_file

    import_file(file, arch, layout=layout, base=base, gelu=gelu, out=out, home=home())


@click.command()
@click.argument("weights")
@click.argument("out", type=PLACE)
@click.option("--layout", type=click.Choice(["open-clip", "agft", "transformers", "timm", "onnx"]), default="open-clip",
              show_default=True, help="open-clip, timm: a folder for `local-dir:`; agft: what AGFT's code loads; "
              "transformers: folders of CLIPModel and CLIPVisionModel; onnx: a graph a tower.")  # fmt: skip
def export(weights: str, out: Path, layout: str) -> None:
    """Write WEIGHTS (a weights file, an export folder, or its s3:// address) for other codes."""
    say(f"reading {weights} ...")
    from study.models.weights import export_file

    export_file(weights, out, layout=layout, home=home())


@click.command()
@click.argument("robust")
@click.option("--base", help="The CLIP before fine-tuning: tag, file, folder, s3:// or "
              "hf-hub: address.  [default: what ROBUST was trained from]")  # fmt: skip
@click.option("--alphas", default="0.25,0.5,0.75", show_default=True, help="Shares of ROBUST, from 0 to 1.")
@click.option("--out", type=FOLDER, required=True, help="Folder for one weights file per alpha.")
@click.option("--on", help="Datasets to measure on, e.g. tiny-shapes,tiny-digits; alpha 0 and 1 are added.")
@click.option("--eps", default="1/255", show_default=True, help="L-inf radii of the attack, e.g. 1/255,4/255.")
@click.option("--samples", type=click.IntRange(min=1), help="Images of each dataset.  [default: all]")
@json_option
def interpolate(
    robust: str, base: str | None, alphas: str, out: Path, on: str | None, eps: str, samples: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Mix ROBUST with the CLIP before fine-tuning: clean accuracy against robustness, without training."""
    say(f"reading {robust} ...")
    from study.models.weights import interpolate_files

    found = interpolate_files(robust, base=base, alphas=alphas, out=out, on=on, eps=eps, samples=samples, home=home())
    if as_json:
        print_json(found)
    else:
        show_measured(found)


def show_measured(found: dict[str, Any]) -> None:
    """The table of `interpolate_files`, if it measured."""
    from study.cli.tables import accuracy_table
    from study.console import wide_console

    if "measured" not in found:
        return
    suite, labels = found["evaluation"], {0.0: "alpha 0: base", 1.0: "alpha 1: robust"}
    rows = {labels.get(row["alpha"], f"alpha {row['alpha']:g}"): row for row in found["measured"]}
    radii = ", ".join(next(iter(found["measured"][0]["datasets"].values())))
    [entry] = suite["attacks"]
    images = f"{entry['samples']} images a set" if entry["samples"] else "all images"
    title = f"{suite['protocol']} protocol, PGD-{entry['attack']['steps']}"
    wide_console().print(accuracy_table(f"{title}, eps {radii}, {images}", rows))
