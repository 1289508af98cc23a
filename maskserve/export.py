"""Results as files that other tools import: COCO results and data sets, CVAT, Label Studio.

Each function takes pairs of an image's name and its result. `image_ids` makes the ids.
CVAT and Label Studio need masks or keypoints.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from maskserve.results import Instance, Result

    # The file name of an image, and its result.
    Named = tuple[str, Result]

WORD_BITS = 8
# Sizes in bits of a run's length in Label Studio's format; the longest run has 65,536 values.
LENGTH_BITS = (3, 4, 8, 16)
# Width of a keypoint in Label Studio, in percent of the image's width.
POINT = 0.5


def image_ids(names: Sequence[str]) -> dict[str, int]:
    """COCO image ids: the numbers in the names if all files are named by one, as COCO's own are; else from 1 on."""
    stems = [PurePath(name).stem for name in names]
    if stems and len(set(stems)) == len(stems) and all(re.fullmatch(r"[0-9]{1,18}", stem) for stem in stems):
        return dict(zip(names, map(int, stems), strict=True))
    return {name: number for number, name in enumerate(names, 1)}


def coco_results(results: Iterable[Named], ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """COCO results records, for `COCO.loadRes`, with the `file_name` of each."""
    return [{**record, "file_name": name} for name, result in results for record in result.to_coco(ids[name])]


def coco_dataset(
    results: Iterable[Named], ids: Mapping[str, int], categories: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """A COCO instances document: labels that FiftyOne, CVAT, Label Studio's converter and training tools import.

    Args:
        results: names and results.
        ids: the image id of each name.
        categories: as `Client.model` lists them. Their keypoints are left out where instances have none.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, result in results:
        images.append({"id": ids[name], "file_name": name, "width": result.width, "height": result.height})
        for record in result.to_coco(ids[name]):
            annotations.append(
                {"id": len(annotations) + 1, "iscrowd": 0, **record, **label_keypoints(record)}
            )
    kept = ["id", "name"]
    if not annotations or any(annotation.get("keypoints") for annotation in annotations):
        kept += ["keypoints", "skeleton"]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{key: category[key] for key in kept if key in category} for category in categories],
    }


def label_keypoints(record: Mapping[str, Any]) -> dict[str, Any]:
    """The keypoints of a result in the form of a label: all of them visible (2). Nothing where it has none."""
    if record.get("keypoints") is None:
        return {}
    numbers = list(record["keypoints"])
    numbers[2::3] = [2] * len(numbers[2::3])
    return {"keypoints": numbers, "num_keypoints": len(numbers) // 3}


def keypoint_names(categories: Iterable[Mapping[str, Any]]) -> dict[int, Sequence[str]]:
    """What each category's keypoints are called, by its id. categories: as `Client.model` lists them."""
    return {category["id"]: category["keypoints"] for category in categories if "keypoints" in category}


def named_points(instance: Instance, names: Mapping[int, Sequence[str]]) -> list[tuple[str, float, float]]:
    """Name, x and y of an instance's keypoints; those without a name are called by their number, from 1.

    Args:
        instance: of a result.
        names: as `keypoint_names` gives them.
    """
    found = [] if instance.keypoints is None else instance.keypoints[:, :2].tolist()
    known = names.get(instance.category_id, ())
    called = known if len(known) == len(found) else [str(number) for number in range(1, len(found) + 1)]
    return [(name, x, y) for name, (x, y) in zip(called, found, strict=True)]


def cvat(results: Iterable[Named], categories: Iterable[Mapping[str, Any]] = ()) -> str:
    """An XML document in "CVAT for images 1.1", with masks and skeletons.

    A mask there is the RLE of its box, row by row, background first. A label is of one kind: where an
    instance has a mask too, its skeleton's label is the category's name and " skeleton".

    Args:
        results: names and results.
        categories: as `Client.model` lists them, for the names of keypoints.

    Raises ValueError for instances that have neither masks nor keypoints.
    """
    names = keypoint_names(categories)
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    for number, (name, result) in enumerate(results):
        sides = {"width": str(result.width), "height": str(result.height)}
        image = ET.SubElement(root, "image", {"id": str(number), "name": name, **sides})
        for instance in result.instances:
            if points := named_points(instance, names):
                label = f"{instance.category} skeleton" if instance.has_mask else instance.category
                skeleton = ET.SubElement(
                    image, "skeleton", {"label": label, "source": "auto", "z_order": "0"}
                )
                for point, x, y in points:
                    shown = {"source": "auto", "occluded": "0", "outside": "0"}
                    ET.SubElement(skeleton, "points", {"label": point, **shown, "points": f"{x:.2f},{y:.2f}"})
                if not instance.has_mask:
                    continue
            left, top, bitmap = instance.crop
            if not bitmap.size:
                continue
            height, width = bitmap.shape
            place = {"left": left, "top": top, "width": width, "height": height, "z_order": 0}
            ET.SubElement(
                image,
                "mask",
                {
                    "label": instance.category,
                    "source": "auto",
                    "occluded": "0",
                    "rle": ", ".join(map(str, runs_by_row(bitmap).tolist())),
                    **{key: str(value) for key, value in place.items()},
                },
            )
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def label_studio(
    results: Iterable[Named],
    prefix: str = "/data/local-files/?d=",
    categories: Iterable[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Label Studio tasks with predictions, for a project whose labels are `<BrushLabels name="tag" toName="image">`.

    Keypoints are labels of `<KeyPointLabels name="keypoint" toName="image">`, each below its instance's region; where
    there are no masks, that is one of `<RectangleLabels name="box" toName="image">`.

    Args:
        results: names and results.
        prefix: what Label Studio puts before a file's name to load it: as here from its local files, or a server's
            address.
        categories: as `Client.model` lists them, for the names of keypoints.

    Raises ValueError for instances that have neither masks nor keypoints.
    """
    names = keypoint_names(categories)
    return [
        {
            "data": {"image": prefix + quote(name)},
            "predictions": [
                {
                    "model_version": result.model,
                    "result": [
                        region
                        for number, instance in enumerate(result.instances)
                        for region in regions(instance, f"{number}", names)
                    ],
                }
            ],
        }
        for name, result in results
    ]


def regions(instance: Instance, number: str, names: Mapping[int, Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Label Studio's regions of one instance: its mask, or else its box, and its keypoints.

    Args:
        instance: of a result.
        number: its id within the task.
        names: as `keypoint_names` gives them.
    """
    height, width = instance.size
    place = {"to_name": "image", "original_width": width, "original_height": height, "image_rotation": 0}
    points = named_points(instance, names)
    whole = {"id": number, **place, "score": instance.score}
    if points and not instance.has_mask:
        x, y, across, down = instance.bbox
        sides = {"x": x / width, "y": y / height, "width": across / width, "height": down / height}
        value: dict[str, Any] = {key: 100 * part for key, part in sides.items()}
        value |= {"rotation": 0, "rectanglelabels": [instance.category]}
        yield {**whole, "type": "rectanglelabels", "from_name": "box", "value": value}
    else:
        value = {"format": "rle", "rle": list(pack(instance.mask)), "brushlabels": [instance.category]}
        yield {**whole, "type": "brushlabels", "from_name": "tag", "value": value}
    for place_of, (point, x, y) in enumerate(points):
        value = {"x": 100 * x / width, "y": 100 * y / height, "width": POINT, "keypointlabels": [point]}
        yield {
            "id": f"{number}-{place_of}",
            "parentID": number,
            **place,
            "type": "keypointlabels",
            "from_name": "keypoint",
            "value": value,
        }


def runs_by_row(bitmap: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The lengths of a bitmap's runs, row by row, background first."""
    flat = np.concatenate([[False], bitmap.reshape(-1)])
    turns = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(turns, prepend=0, append=bitmap.size)


def pack(mask: NDArray[np.bool_]) -> bytes:
    """A mask as Label Studio's brush stores it: thi.ng's rle-pack of four equal bytes a pixel, 0 or 255.

    The header has the count of bytes (32 bits), the bits of a byte less one (5) and those of the four sizes of a
    run's length less one (4 each); then each run is a 1, the number of its size (2), its length less one, and the byte.
    """
    header = [(mask.size * 4, 32), (WORD_BITS - 1, 5), *((bits - 1, 4) for bits in LENGTH_BITS)]
    fields = [format(value, f"0{bits}b") for value, bits in header]
    for number, pixels in enumerate(runs_by_row(mask).tolist()):
        left = pixels * 4
        byte = "11111111" if number % 2 else "00000000"
        while left:
            length = min(left, 1 << LENGTH_BITS[-1])
            size = next(index for index, bits in enumerate(LENGTH_BITS) if length <= 1 << bits)
            fields.append(f"1{size:02b}{length - 1:0{LENGTH_BITS[size]}b}{byte}")
            left -= length
    bits = "".join(fields)
    # A byte too many where the bits fill whole bytes, as Label Studio's own packer writes it.
    count = len(bits) // 8 + 1
    return int(bits.ljust(8 * count, "0"), 2).to_bytes(count, "big")
