"""Where in an image each prototype of a class responds (the paper's Fig. 7).

C classes, K prototypes a class, D embedding size, (h, w) embedding grid.
"""

import numpy as np
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import Tensor, nn

from ..predict.loading import Networks, refuse_other_classes
from ..utils.pictures import Picture, blend, fit, grid, heat, with_legend, with_scale
from .scenes import Scene, embed, load_scenes

_WIDTH = 320  # of an image, pixels
_CANDIDATES = 40  # images in which a class is looked for


def activation_maps(student: nn.Module, scene: Scene, class_index: int) -> Tensor:
    """(K, h, w) float32 similarity of every place to every prototype of a class, (8) or (9)."""
    embeddings = embed(student, scene.record)
    pixels = embeddings.flatten(1).t()
    similarity = student.prototype_head.prototypes.similarity(pixels)[:, class_index]
    return similarity.t().reshape(-1, *embeddings.shape[1:])


def activation_figure(
    networks: Networks, dataset: str, class_name: str, *, number: int = 3
) -> Image.Image:
    """The images of a set that show most of a class, in rows: image, where the class is, one map a
    prototype, and which prototype is the nearest there.

    The maps of an image share one scale, from the 1st to the 99th percentile of all of them, so
    that prototypes can be compared; yellow responds most.

    Raises: ValueError: the set has no labels or never shows the class, the class is unknown, or its
        prototypes have not started.
    """
    names = list(networks.metadata.stuff_classes)
    if class_name not in names:
        raise ValueError(f"unknown class {class_name!r}; expected one of {', '.join(names)}")
    refuse_other_classes(networks, dataset)
    index = names.index(class_name)
    head = networks.student.prototype_head
    if head is None or not bool(head.prototypes.started[index]):
        raise ValueError(f"class {class_name!r} has no prototypes in this checkpoint")
    rows = [
        _row(networks.student, scene, index)
        for scene in _showing(load_scenes(networks.cfg, dataset, _CANDIDATES), index, number)
    ]
    if not rows:
        raise ValueError(f"{dataset} does not show {class_name!r} in the images looked at")
    prototypes = [f"prototype {k + 1}" for k in range(head.prototypes.num_prototypes)]
    picture = grid(rows, ["image", class_name, *prototypes, "nearest prototype"])
    picture = with_legend(picture, prototypes, [tuple(c) for c in _winner_colors(len(prototypes))])
    return with_scale(picture, "response, of each image", "weak", "strong")


def _showing(scenes: list[Scene], index: int, number: int) -> list[Scene]:
    if any(scene.truth is None for scene in scenes):
        raise ValueError("activation maps need a labelled set, <name>_sem_seg_<split>")
    share = {i: float((scene.truth == index).mean()) for i, scene in enumerate(scenes)}
    most = sorted(share, key=lambda i: -share[i])[:number]
    return [scenes[i] for i in most if share[i] > 0]


def _row(student: nn.Module, scene: Scene, index: int) -> list[Picture | None]:
    assert scene.truth is not None
    image, truth = fit(scene.image, _WIDTH), fit(scene.truth, _WIDTH, nearest=True)
    small = activation_maps(student, scene, index)
    maps = F.interpolate(small[None], size=image.shape[:2], mode="bilinear")[0].cpu().numpy()
    low, high = np.percentile(maps, [1, 99])
    shown = [blend(image, heat(one, float(low), float(high)), 0.65) for one in maps]
    here, pale = (truth == index)[..., None], blend(image, np.full_like(image, 255), 0.85)
    nearest = _winner_colors(len(maps))[maps.argmax(0)]
    return [image, np.where(here, image, pale), *shown, np.where(here, nearest, pale)]


def _winner_colors(number: int) -> Picture:
    """(number, 3) colours of prototypes; after ten they come again."""
    colors = (np.array(colormaps["tab10"].colors) * 255).round().astype(np.uint8)
    return colors[np.arange(number) % len(colors)]
