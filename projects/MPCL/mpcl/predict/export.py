"""Networks for use elsewhere: slim weights, TorchScript, torch.export and ONNX.

Legend: B images, C classes, (H, W) pixels.

The exported networks map float32 RGB images (B, 3, H, W) in [0, 255] to logits (B, C, H, W);
normalisation is inside. Resizing an image to INPUT.TARGET_SIZE before, and sliding windows around
it, remain the caller's.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.weight_files import write_checkpoint
from ..data.sets.classes import plain
from ..modeling.hrda import HRDASegmentor
from ..modeling.segmentor import MPCLSegmentor
from .loading import SLIM_CLASSES, SLIM_CONFIG, SLIM_ROLE, Networks

logger = logging.getLogger(__name__)

FORMATS = {"slim": ".pth", "torchscript": ".pt", "export": ".pt2", "onnx": ".onnx"}
"""Formats, and the suffixes of their files."""

MIN_SIDE = 64  # pixels; below it a level of the encoder has a single row, which is a special case
_OPSET = 18
_EXAMPLE = (256, 512)  # height and width
_PROTOTYPES = "prototype_head."

# What the config of a slim file must not depend on: data, other files, and training.
_PREDICTION_ONLY = [
    *("DATASETS.FILES", (), "DATASETS.SHARES", (), "TEST.CLASS_SUBSETS", ()),
    *("DATASETS.TRAIN", (), "DATASETS.TRAIN_TARGET", (), "DATASETS.TEST", ()),
    *("MODEL.WEIGHTS", "", "OUTPUT_DIR", "output", "TEST.SELECT_ON", ""),
    *("PROTOTYPES.TYPE", "none", "SELF_TRAINING.ENABLED", False),
]


class Exported(NamedTuple):
    """A written network, compared with the eager one."""

    dynamic: bool  # takes images of any size from MIN_SIDE on, and any number of them
    differences: dict[tuple[int, ...], float]  # input shape -> max |logits - eager logits|


class ImageNetwork(nn.Module):
    """float32 RGB images (B, 3, H, W) in [0, 255] -> logits (B, C, H, W)."""

    def __init__(self, network: MPCLSegmentor) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        normalized = (images - self.network.pixel_mean) / self.network.pixel_std
        scores = self.network.score(normalized)
        return F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)


def save_slim(networks: Networks, path: str | Path) -> int:
    """Writes one network without prototypes, optimizer and the other network.

    The file is a checkpoint like any other (MODEL.WEIGHTS), and holds the config and the classes,
    so that ``mpcl.Predictor(path)`` needs nothing else.

    Returns: the number of tensors.
    Raises: ValueError: the config predicts by prototypes, which would not be in the file.
    """
    _refuse_prototypes(networks)
    cfg = networks.cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(_PREDICTION_ONLY)
    state = {
        name: tensor.detach().cpu().clone()
        for name, tensor in networks.network.state_dict().items()
        if not name.startswith(_PROTOTYPES)
    }
    content = {
        "model": state,
        SLIM_CONFIG: cfg.dump(),
        SLIM_CLASSES: plain(networks.metadata),
        SLIM_ROLE: networks.role,
    }
    if networks.selection:
        content["selection"] = networks.selection
    write_checkpoint(content, Path(path))
    return len(state)


def export_network(
    networks: Networks, path: str | Path, export_format: str, size: Sequence[int] | None = None
) -> Exported:
    """Writes the network in another format, reads it back, and compares it with the eager one.

    Images may have any size and number. Exceptions, which are fixed to one image of ``size``:
    HRDA, whose detail windows are a loop of Python, and encoders whose graph depends on the size.
    An ONNX file names its axes, and has in its metadata ``classes`` (a JSON list of the names in
    the order of the logits) and ``role`` (teacher or student).

    Args:
        export_format: ``torchscript``, ``export`` or ``onnx``.
        size: (H, W) of the example, at least 64 a side; of HRDA multiples of 8. None stands for
            HRDA's test window, and for 256x512 of other networks.
    Raises:
        ImportError: ONNX without the packages of the extra ``export``.
        ValueError: another format or size, or prediction by prototypes.
    """
    about = {"classes": json.dumps(networks.metadata.stuff_classes), "role": networks.role}
    onnx = partial(_onnx, about=about)
    writers = {"torchscript": _torchscript, "export": _export, "onnx": onnx}
    if export_format not in writers:
        raise ValueError(f"format is {export_format!r}; expected one of {', '.join(writers)}")
    _refuse_prototypes(networks)
    multi_resolution = isinstance(networks.network, HRDASegmentor)
    height, width = size or (networks.cfg.TEST.SLIDE.CROP if multi_resolution else _EXAMPLE)
    size = (height, width)
    divisor = networks.network.size_divisor
    if min(size) < MIN_SIDE or any(side % divisor for side in size):
        raise ValueError(
            f"size is {size}; expected at least {MIN_SIDE} a side, in multiples of {divisor}"
        )
    network, path = ImageNetwork(networks.network.cpu()).eval(), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".export") as folder:
        temporary = Path(folder) / path.name  # a file that is there stays until this one is whole
        write = partial(_compared, writers[export_format], network, temporary)
        exported = _of_any_size(write, size) if not multi_resolution else None
        exported = exported or write([(1, 3, *size)], dynamic=False)
        os.replace(temporary, path)
    return exported


def _of_any_size(write: Callable[..., Exported], size: tuple[int, int]) -> Exported | None:
    """Exported for images of any size and number; None where that does not work."""
    # The example divides by no 2: whoever pads and cuts must be seen to do so.
    odd = (2, 3, size[0] + 24, size[1] + 41)
    try:
        return write([odd, (1, 3, *size)], dynamic=True)
    except (ImportError, OSError):
        raise
    except Exception as error:  # exporters raise nearly every kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        logger.warning(f"Fixed to one image of {size}: {reason}")
    return None


@torch.no_grad()
def _compared(
    write: Callable[..., Callable[[Tensor], Tensor]],
    network: nn.Module,
    path: Path,
    shapes: list[tuple[int, ...]],
    dynamic: bool,
) -> Exported:
    """Writes the network by images of the first shape, and compares it at all of them."""
    run = write(network, _example(shapes[0]), path, dynamic)
    differences = {}
    for shape in shapes:
        images = _example(shape)
        differences[shape] = (run(images) - network(images)).abs().max().item()
    return Exported(dynamic, differences)


def _torchscript(
    network: nn.Module, images: Tensor, path: Path, dynamic: bool
) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        # Of what might not hold at other sizes: the comparison finds out.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(network, images, check_trace=False)
    if not dynamic:
        traced = torch.jit.script(_OfOneSize(traced, list(images.shape)))
    traced.save(str(path))
    return torch.jit.load(str(path))


class _OfOneSize(nn.Module):
    """Refuses other images than those that a trace has fixed itself to; at them it would be wrong
    in silence."""

    def __init__(self, network: nn.Module, shape: list[int]) -> None:
        super().__init__()
        self.network = network
        self.shape: list[int] = shape

    def forward(self, images: Tensor) -> Tensor:
        if images.shape != self.shape:
            raise RuntimeError(f"images of {images.shape}; this network takes {self.shape} alone")
        return self.network(images)


def _export(
    network: nn.Module, images: Tensor, path: Path, dynamic: bool
) -> Callable[[Tensor], Tensor]:
    torch.export.save(_program(network, images, dynamic), path)
    return torch.export.load(path).module()


def _onnx(
    network: nn.Module, images: Tensor, path: Path, dynamic: bool, about: Mapping[str, str]
) -> Callable[[Tensor], Tensor]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (what torch's exporter needs)
    except ImportError as error:
        raise ImportError(f"ONNX needs `pip install -e '.[export]'` ({error})") from error
    torch.onnx.export(
        _program(network, images, dynamic),
        (),
        str(path),
        dynamo=True,
        opset_version=_OPSET,
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(about))
    if dynamic:  # the exporter calls the axes s77 and the like
        for value in (model.graph.input[0], model.graph.output[0]):
            for axis, name in {0: "batch", 2: "height", 3: "width"}.items():
                value.type.tensor_type.shape.dim[axis].dim_param = name
        del model.graph.value_info[:]  # speaks of the old names; runtimes infer it
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _program(network: nn.Module, images: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    # AUTO finds the range itself: a named size would have to prove that no two levels are of equal
    # size, at any.
    size = torch.export.Dim.AUTO if dynamic else None
    dims = {0: size, 2: size, 3: size}
    return torch.export.export(network, (images,), dynamic_shapes={"images": dims})


def _example(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator).float()


def _refuse_prototypes(networks: Networks) -> None:
    if networks.by_prototypes:
        raise ValueError("TEST.OUTPUT is prototypes; exported is the classifier: leave it out")
