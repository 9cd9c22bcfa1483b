"""The training step with and without prototypes: time, memory, phases, arithmetic rate."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from detectron2.modeling import build_backbone
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from mpcl.config import get_cfg_from
from mpcl.engine import AdaptationTrainer

from .timing import Row, against, compare, device_name, measure, row

CONFIGS = Path(__file__).resolve().parents[2] / "projects" / "MPCL" / "configs"
# What a CPU can do within a minute; a GPU runs the config as it is.
SMALL = ["MODEL.MIT.VARIANT", "b0", "INPUT.CROP.SIZE", "(256, 256)", "SOLVER.AMP.ENABLED", "False"]


def add_arguments(parser) -> None:
    parser.add_argument(
        "--config-file",
        type=Path,
        default=CONFIGS / "daformer_gauss.yaml",
        help="on a CPU this default is run with MiT-B0, 256x256 crops, in float32",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=["PROTOTYPES.TYPE", "none"],
        metavar="KEY VALUE",
        help="what the step that it is compared with has otherwise",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="of the config, such as INPUT.CROP.SIZE '(256, 256)'; after -- if behind --against",
    )


def run(args) -> list[Row]:
    small = SMALL if args.device == "cpu" and args.config_file.parent == CONFIGS else []
    changed = " ".join(args.against)
    mine, other = "step", f"step with {changed}"
    with TemporaryDirectory() as folder:
        opts = [*small, *args.opts, "MODEL.DEVICE", args.device, "OUTPUT_DIR", folder]
        trainers = {
            mine: build(args.config_file, opts),
            other: build(args.config_file, [*opts, *args.against]),
        }
        with EventStorage():
            samples = compare(
                {name: trainer.step_once for name, trainer in trainers.items()},
                device=args.device,
                repeats=args.repeats,
            )
            rows = against(mine, samples, other, args.device)
            rows += _phases(trainers[mine], args)
            for name, trainer in trainers.items():
                rows.append(_arithmetic_rate(name, trainer, samples[name].seconds, args))
    return rows


class SyntheticTrainer(AdaptationTrainer):
    """The real trainer on one batch of noise with blobs as labels: nothing is loaded."""

    @classmethod
    def build_train_loader(cls, cfg):
        return _SyntheticLoader(cfg)

    def build_hooks(self):
        """Those of the method alone: nothing is written or evaluated."""
        return [self.adaptation]

    def step_once(self) -> None:
        """One iteration as in training, hooks that learn included."""
        self.run_step()
        self.after_step()
        self.iter += 1


class _SyntheticLoader:
    def __init__(self, cfg) -> None:
        generator = torch.Generator().manual_seed(0)
        height, width = cfg.INPUT.CROP.SIZE
        count, classes = cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES

        def record(**pixels):
            shape = (3, height, width)
            image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            return {"image": image, "file_name": "noise", **pixels}

        blobs = torch.randint(0, classes, (count, 1, 8, 8), generator=generator).float()
        label = nn.functional.interpolate(blobs, size=(height, width)).byte()[:, 0]
        source = [record(sem_seg=each) for each in label]
        everywhere = torch.ones(height, width, dtype=torch.bool)
        target = [record(shown=everywhere, valid=everywhere) for _ in range(count)]
        self.batch = {"source": source, "target": target}

    def seek(self, iteration: int) -> None:
        """The batch is the same everywhere."""

    def __iter__(self) -> Iterator[dict]:
        while True:
            yield self.batch


def build(config_file: Path, opts: list[str]) -> SyntheticTrainer:
    """A trainer in the middle of a run: prototypes started, no log line due. Weights are random,
    those of the feature distance's encoder too."""
    start = ["PROTOTYPES.INIT.ITER", "1", "PROTOTYPES.INIT.MIN_SAMPLES", "1"]
    start += ["LOG_PERIOD", "1000000", "PROTOTYPES.GRADIENT_SHARE_PERIOD", "0"]
    cfg = get_cfg_from(str(config_file), [*start, *opts])
    cfg.MODEL.WEIGHTS = ""
    if cfg.SELF_TRAINING.FEATURE_DISTANCE.WEIGHT > 0:
        cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "encoder.pth")
        weights = {f"backbone.{k}": v for k, v in build_backbone(cfg).state_dict().items()}
        torch.save({"model": weights}, cfg.MODEL.WEIGHTS)
    cfg.freeze()
    trainer = SyntheticTrainer(cfg)
    trainer.iter = 0
    trainer.model.train()
    trainer.storage = EventStorage()
    for hook in trainer._hooks:
        hook.before_train()
    for _ in range(3):
        trainer.step_once()
    return trainer


def _phases(trainer: SyntheticTrainer, args) -> list[Row]:
    """Share of the step that each phase takes, measured by stopping the clock around its calls."""
    calls = {
        "data": (trainer, "next_step"),
        "student forward": (trainer.model, "forward"),
        "losses": (trainer.criterion, "_segmentation"),
        "optimiser": (trainer, "update_student"),
    }
    if (hook := trainer.adaptation) is not None:
        calls |= {
            "teacher": (hook, "label"),
            "mixing": (hook, "mix"),
            "clustering": (hook, "after_forward"),
            "EMA": (hook, "after_step"),
        }
    if trainer.criterion.prototype_losses is not None:
        calls["prototype losses"] = (trainer.criterion, "prototype_losses")
    seconds = dict.fromkeys(calls, 0.0)
    with _clocks(calls, seconds, args.device):
        total = sum(measure(trainer.step_once, args.device)[0] for _ in range(args.repeats))
    seconds["backward and the rest"] = total - sum(seconds.values())
    hardware = device_name(args.device)
    return [
        row(f"phase: {name}", value / args.repeats, "s", total / args.repeats, hardware)
        for name, value in seconds.items()
    ]


@contextmanager
def _clocks(calls: dict, seconds: dict[str, float], device: str) -> Iterator[None]:
    """While it lasts, ``calls`` ({name: (object, attribute)}) add their time to ``seconds``."""

    def timed(name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            results = []
            taken, _ = measure(lambda: results.append(function(*args, **kwargs)), device)
            seconds[name] += taken
            return results[0]

        return call

    saved = {name: getattr(owner, key) for name, (owner, key) in calls.items()}
    for name, (owner, key) in calls.items():
        setattr(owner, key, timed(name, saved[name]))
    try:
        yield
    finally:
        for name, (owner, key) in calls.items():
            setattr(owner, key, saved[name])


def _arithmetic_rate(name: str, trainer: SyntheticTrainer, seconds: float, args) -> Row:
    """Floating-point operations of a step over its time, over those of a large matrix product."""
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        trainer.step_once()
    rate = counter.get_total_flops() / seconds
    size = 8192 if args.device.startswith("cuda") else 2048
    dtype = trainer.amp_dtype if trainer.cfg.SOLVER.AMP.ENABLED else torch.float32
    left, right = torch.randn(2, size, size, device=args.device, dtype=dtype)
    product = min(measure(lambda: left @ right, args.device)[0] for _ in range(args.repeats))
    return row(
        f"arithmetic rate of the {name}, over a {size}x{size} product",
        rate / 1e9,
        "GFLOP/s",
        2 * size**3 / product / 1e9,
        device_name(args.device),
    )


def _flops_of_convolution_backward(gradient, images, weight, *others, **_) -> int:
    """torch's own count takes the weights of a grouped convolution for those of a dense one."""
    transposed, needed = others[4], others[7]
    forward = conv_flop_count(images.shape, weight.shape, gradient.shape, transposed=transposed)
    return forward * (needed[0] + needed[1])


_flops_of_convolution_backward._get_raw = True  # tensors, not their shapes
FLOPS = {torch.ops.aten.convolution_backward: _flops_of_convolution_backward}
