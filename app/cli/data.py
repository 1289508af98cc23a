"""`maskserve data check | take | convert | draw`: check a labelled folder, copy a part of it, make or draw one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.commands.terminal import progress_bar

if TYPE_CHECKING:
    from model.data.check import Findings

data = typer.Typer(
    help="Check, cut down, convert or draw labelled folders to train on.", no_args_is_help=True
)

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="PATH",
        show_default=False,
        help="A labelled folder as COCO, Roboflow, CVAT, Label Studio … leave it, its JSON file, or the folder "
        "that has Cityscapes' leftImg8bit/ and gtFine/.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR", show_default=False, help="Folder of the images of a JSON file."),
]

Split = Annotated[
    str | None,
    typer.Option(
        metavar="train|val|…",
        show_default="train",
        help="Which part to take of a folder that has several: Cityscapes', COCO's, Roboflow's, CVAT's.",
    ),
]


@data.command()
def check(
    path: Folder,
    *,
    images: Images = None,
    split: Split = None,
    pixels: Annotated[
        bool,
        typer.Option(
            "--pixels", help="Also decode every image, which finds files that are cut short. Takes longer."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check every image and annotation, count the errors of each kind, and show examples.

    The exit code is 1 if training would refuse the data.
    """
    from model.data import DatasetError  # noqa: PLC0415 - imports NumPy and Pillow
    from model.data.check import check as check_dataset  # noqa: PLC0415 - imports NumPy and Pillow

    try:
        with progress_bar() as bar:
            task = bar.add_task("checking", total=None)
            found = check_dataset(
                path,
                images,
                split=split,
                pixels=pixels,
                on_image=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except DatasetError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(orjson.dumps(_to_document(found), option=orjson.OPT_INDENT_2))
    else:
        _print_findings(found)
    raise typer.Exit(1 if found.errors or found.refusal is not None else 0)


def _to_document(found: Findings) -> dict[str, object]:
    from model.data.check import WARNINGS  # noqa: PLC0415 - imports NumPy and Pillow

    return {
        "images": found.images,
        "objects": found.objects,
        "crowds": found.crowds,
        "per_category": found.per_category,
        "errors": found.errors,
        "refusal": found.refusal,
        "notices": found.notices,
        "found": [
            {
                "kind": kind,
                "error": kind not in WARNINGS,
                "count": count,
                "examples": found.examples[kind],
            }
            for kind, count in found.counts.items()
        ],
    }


def _print_findings(found: Findings) -> None:
    from model.data.check import WARNINGS  # noqa: PLC0415 - imports NumPy and Pillow

    console = Console(highlight=False)
    for notice in found.notices:
        console.print(notice, markup=False, soft_wrap=True)
    console.print(f"{found.images} images, {found.objects} objects, {found.crowds} crowds", style="bold")
    if found.per_category:
        table = Table(box=None, pad_edge=False)
        table.add_column("category")
        table.add_column("objects", justify="right")
        for name, count in found.per_category.items():
            table.add_row(escape(name), str(count))
        console.print(table)
    for errors in (True, False):
        for kind, count in found.counts.items():
            if (kind not in WARNINGS) is not errors:
                continue
            meaning = "cannot be used" if errors else WARNINGS[kind]
            console.print(
                f"\n{count} × {kind} ({meaning})", style="red" if errors else "yellow", markup=False
            )
            for example in found.examples[kind]:
                console.print(f"  {example}", markup=False, soft_wrap=True)
            if count > len(found.examples[kind]):
                console.print(f"  … and {count - len(found.examples[kind])} more")
    if found.refusal is not None:
        console.print(
            f"\nIt cannot be trained on: {found.refusal}.", style="red", markup=False, soft_wrap=True
        )
    elif found.errors:
        console.print("\nTraining refuses this folder unless --skip-damaged is given.", style="red")
    else:
        console.print("\nThis folder can be used for training.", style="green")


def refuse_labelled(folder: Path) -> None:
    """End the command where it would write over labels."""
    if (labels := folder / "instances.json").exists():
        typer.echo(f"{labels} is there already; name a folder without labels, or delete it", err=True)
        raise typer.Exit(1)


@data.command()
def take(
    path: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", show_default=False, help="The folder to create.")],
    *,
    count: Annotated[int, typer.Option("--count", min=1, help="Number of images, from the first.")] = 30,
    skip: Annotated[
        int, typer.Option("--skip", min=0, help="Leave out that many images before the first.")
    ] = 0,
    categories: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", show_default="all that occur", help="Only these categories, by name."),
    ] = None,
    images: Images = None,
    split: Split = None,
) -> None:
    """Copy images that have objects, and their annotations, into a new folder in COCO's format."""
    from model.data import DatasetError  # noqa: PLC0415 - imports NumPy and Pillow
    from model.data.subset import take as copy  # noqa: PLC0415 - imports NumPy and Pillow

    refuse_labelled(out)
    try:
        names = categories.split(",") if categories else None
        subset = copy(path, out, count, names, images, split=split, skip=skip)
    except (DatasetError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{out}: {subset.images} images, {subset.objects} objects of {', '.join(subset.categories)}")


@data.command()
def convert(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            show_default=False,
            help="Folder with NAME/images/x.png and NAME/masks/*.png (a bitmap for each object), with images/x.tif and "
            "masks/x.tif, or with x.png and x_masks.png (label images: 0, and a number for each object).",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", show_default=False, help="The folder to create.")],
    *,
    category: Annotated[str, typer.Option(metavar="NAME", help="What the objects are.")] = "object",
    parts: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            show_default=False,
            help='Names of images, without suffix, by part: {"validation": ["a", "b"], …}. Each part becomes a folder '
            "in OUT. Images that are not named become `train`, and those of `left_out` are not copied.",
        ),
    ] = None,
) -> None:
    """Make a folder in COCO's format of images whose masks are image files, as microscopy keeps them."""
    from model.data import DatasetError  # noqa: PLC0415 - imports NumPy and Pillow
    from model.data.label_images import convert as convert_folder  # noqa: PLC0415 - imports NumPy and Pillow
    from model.data.label_images import read_parts  # noqa: PLC0415 - imports NumPy and Pillow

    try:
        names = None if parts is None else read_parts(parts)
        for folder in [out] if names is None else [out / part for part in ("train", *names)]:
            refuse_labelled(folder)
        with progress_bar() as bar:
            task = bar.add_task("converting", total=None)
            made = convert_folder(
                path, out, category, names, lambda done, total: bar.update(task, completed=done, total=total)
            )
    except (DatasetError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    for part in made.values():
        typer.echo(f"{part.folder}: {len(part.images)} images, {len(part.annotations)} objects of {category}")
        for notice in part.notices():
            typer.echo(f"  {notice}")


@data.command()
def draw(
    out: Annotated[Path, typer.Argument(metavar="OUT", show_default=False, help="The folder to create.")],
    *,
    what: Annotated[
        str,
        typer.Option(
            "--what",
            metavar="shapes|figures",
            help="Ten kinds of shapes, or people with the 17 keypoints of COCO.",
        ),
    ] = "shapes",
    count: Annotated[int, typer.Option("--count", min=1, help="Number of scenes.")] = 100,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Each seed draws other scenes; `--data shapes` has those of seed 1, and `--data figures` has those of "
            "seed 11.",
        ),
    ] = 3,
    sides: Annotated[
        tuple[int, int], typer.Option(metavar="MIN MAX", help="Shortest and longest image side in pixels.")
    ] = (200, 600),
) -> None:
    """Draw scenes of shapes or people into a folder in COCO's format."""
    from model.data.figures import Figures  # noqa: PLC0415 - imports NumPy and Pillow
    from model.data.shapes import Shapes  # noqa: PLC0415 - imports NumPy and Pillow

    kinds: dict[str, type[Shapes | Figures]] = {"shapes": Shapes, "figures": Figures}
    if what not in kinds:
        raise typer.BadParameter(f"--what is {' or '.join(kinds)}, not {what!r:.60}")
    try:
        scenes = kinds[what](seed, count, sides)
    except ValueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    refuse_labelled(out)
    scenes.export(out)
    typer.echo(f"{out}: {count} scenes of {', '.join(c.name for c in scenes.categories)}")
