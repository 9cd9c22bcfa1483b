"""Pictures for people: label maps in colour, and networks side by side."""

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image, ImageDraw
from torch import Tensor, nn

from .data.labels import read_label
from .data.paired_loader import build_test_loader

IGNORED_COLOR = (0, 0, 0)
CAPTION_HEIGHT = 18


def colorize(label: Tensor | np.ndarray, colors: list) -> np.ndarray:
    """(H, W) class ids to an (H, W, 3) uint8 RGB picture; ids without a colour are black."""
    palette = np.array([*map(tuple, colors), IGNORED_COLOR], np.uint8)
    ids = label.cpu().numpy() if isinstance(label, Tensor) else label
    return palette[np.minimum(ids, len(colors))]


def comparison(cfg, networks: dict[str, nn.Module], num_images: int = 3) -> Image.Image:
    """Evenly spaced test images in rows: image, ground truth, and each network's prediction.

    Args:
        networks: detectron2 models by name, in evaluation or training mode; modes are restored.
    """
    dataset = cfg.DATASETS.TEST[0]
    meta = MetadataCatalog.get(dataset)
    labels = {r["file_name"]: r["sem_seg_file_name"] for r in DatasetCatalog.get(dataset)}
    records = [batch[0] for batch in build_test_loader(cfg, dataset)]
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, num_images).round().astype(int)]
    rows = []
    for record in chosen:
        truth = read_label(labels[record["file_name"]], meta.get("label_map", None))
        image = cv2.cvtColor(cv2.imread(record["file_name"]), cv2.COLOR_BGR2RGB)
        predictions = [
            colorize(predict(net, record), meta.stuff_colors) for net in networks.values()
        ]
        rows.append(np.hstack([image, colorize(truth, meta.stuff_colors), *predictions]))
    return _with_captions(np.vstack(rows), ["image", "ground truth", *networks])


@torch.no_grad()
def predict(network: nn.Module, record: dict) -> Tensor:
    """(H, W) class ids of one dataset dict, in evaluation mode."""
    training = network.training
    network.eval()
    logits = network([record])[0]["sem_seg"]
    network.train(training)
    return logits.argmax(0)


def _with_captions(picture: np.ndarray, captions: list[str]) -> Image.Image:
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width, height + CAPTION_HEIGHT), "white")
    canvas.paste(Image.fromarray(picture), (0, CAPTION_HEIGHT))
    draw = ImageDraw.Draw(canvas)
    for i, caption in enumerate(captions):
        draw.text((i * width // len(captions) + 4, 2), caption, fill="black")
    return canvas
