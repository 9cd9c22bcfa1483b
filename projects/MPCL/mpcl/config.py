"""Every configuration key that the project adds to detectron2's, with its meaning, unit and source.

``mpcl.md`` section numbers in comments refer to docs/METHOD.md, the list of readings and
deviations.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from .config_reading import merge_file, merge_options
from .config_validation import validate
from .evaluation import check_class_subsets

__all__ = ["add_mpcl_config", "get_cfg_from"]


def get_cfg_from(config_file: str = "", opts: Sequence[str] = ()) -> CN:
    """The project's defaults, then a YAML file, then ``KEY VALUE`` pairs. Not frozen.

    Also registers the data sets that ``DATASETS.FILES`` describes, so that the names in the config
    can be looked up.

    Raises:
        FileNotFoundError: the file, or one of its ``_BASE_``, does not exist.
        UnknownKey: a KeyError and ValueError; names similar keys.
        ValueError: a value of the wrong type or range, or a combination that cannot be trained;
            the message names the keys.
    """
    cfg = get_cfg()
    add_mpcl_config(cfg)
    default = {key: cfg.MODEL[key] for key in ("PIXEL_MEAN", "PIXEL_STD")}
    cfg.MODEL.update({key: [] for key in default})  # filled in below, unless someone sets them
    if config_file:
        merge_file(cfg, config_file)
    merge_options(cfg, opts)
    validate(cfg)
    for key, value in (default | _pixel_statistics(cfg)).items():
        cfg.MODEL[key] = list(cfg.MODEL[key] or value)
    if cfg.DATASETS.FILES:
        from .data.custom import register_from_yaml

        for path in cfg.DATASETS.FILES:
            register_from_yaml(path)
    for name in cfg.DATASETS.TEST:
        if name in MetadataCatalog and hasattr(MetadataCatalog.get(name), "stuff_classes"):
            check_class_subsets(cfg.TEST.CLASS_SUBSETS, MetadataCatalog.get(name).stuff_classes)
    return cfg


def add_mpcl_config(cfg: CN) -> None:
    """Adds the project's keys to detectron2's default config and sets the defaults of the method's
    paper."""
    _add_data_config(cfg)
    _add_model_config(cfg)
    _add_timm_config(cfg)
    _add_self_training_config(cfg)
    _add_prototype_config(cfg)
    _add_solver_config(cfg)
    _add_reliability_config(cfg)
    _add_test_config(cfg)


def _add_data_config(cfg: CN) -> None:
    # DATASETS.TRAIN names the labelled source sets; DATASETS.TRAIN_TARGET the image-only target
    # sets.
    cfg.DATASETS.TRAIN_TARGET = ()
    # YAML descriptions of a user's own data sets (datasets/README.md), registered before the names
    # are looked up.
    cfg.DATASETS.FILES = ()
    cfg.INPUT.FORMAT = "RGB"
    # (width, height) of a bounding box: images are resized, aspect ratio kept, to fit in it (0, 0 =
    # native size). GTA5 at 1280x720 therefore becomes 1280x704. TARGET_SIZE is also the size of
    # images at test time.
    cfg.INPUT.SOURCE_SIZE = (1280, 720)
    cfg.INPUT.TARGET_SIZE = (1280, 640)
    # (height, width) in pixels of the training crops of both domains.
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = (640, 640)
    # Source crops in which one class fills this share of the labelled pixels are drawn again (1.0 =
    # never).
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    # Photometric distortion in the loader: for source-only baselines; self-training augments the
    # mixed image instead.
    cfg.INPUT.COLOR_AUG_SSD = False

    # A file of the training data that cannot be used (corrupt, truncated, of a wrong mode): error
    # stops and names it; skip draws another image in its place, and reports at the end.
    cfg.DATALOADER.ON_BAD_FILE = "error"
    cfg.DATALOADER.MAX_BAD_FILES = 10  # different files skipped before the run stops all the same

    # Rare-class sampling (DAFormer, arXiv:2111.14887, Eq. 6-7).
    cfg.DATALOADER.RARE_CLASS = CN()
    cfg.DATALOADER.RARE_CLASS.ENABLED = True
    cfg.DATALOADER.RARE_CLASS.TEMPERATURE = 0.01
    # An image is a candidate for a class that covers more than this share of it (DAFormer: 3000
    # pixels).
    cfg.DATALOADER.RARE_CLASS.MIN_IMAGE_FRACTION = 0.0015
    # A crop is drawn again, up to ten times, until the class covers more than this share (DAFormer:
    # 1500 of 512x512).
    cfg.DATALOADER.RARE_CLASS.MIN_CROP_FRACTION = 0.00572


def _add_model_config(cfg: CN) -> None:
    cfg.MODEL.META_ARCHITECTURE = "MPCLSegmentor"
    # Start from MODEL.WEIGHTS although its backbone, or the shape of a tensor, is not the model's.
    cfg.MODEL.ALLOW_UNMATCHED = False
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]  # ImageNet, RGB, 0-255
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.BACKBONE.NAME = "MixTransformer"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.MIT = CN()
    cfg.MODEL.MIT.VARIANT = "b5"  # b0 ... b5
    cfg.MODEL.MIT.DROP_PATH = 0.1  # stochastic depth of the last block; rises linearly from 0

    # HRDA (arXiv:2204.13132), with MODEL.META_ARCHITECTURE HRDASegmentor: the crop at half size is
    # the context; a random detail crop of it is seen at full size.
    cfg.MODEL.HRDA = CN()
    cfg.MODEL.HRDA.DETAIL_SIZE = (512, 512)  # (height, width), pixels
    cfg.MODEL.HRDA.DETAIL_WEIGHT = 0.1  # lambda_d of the detail's losses; the others get the rest

    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME = "DAFormerHead"
    head.IN_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    head.NUM_CLASSES = 19
    head.IGNORE_VALUE = 255
    head.CONVS_DIM = 256  # channels of the level embeddings and of the fused features
    # "BN" becomes SyncBN on several GPUs, so that all ranks keep equal statistics and the
    # checkpoint holds them.
    head.NORM = "BN"
    head.DROPOUT = 0.1  # channel dropout before the classifier
    head.DILATIONS = (1, 6, 12, 18)  # of the context-aware fusion


def _add_timm_config(cfg: CN) -> None:
    # Any encoder of timm, with MODEL.BACKBONE.NAME build_timm_backbone (docs/BACKBONES.md).
    # get_cfg_from takes PIXEL_MEAN and PIXEL_STD from timm, unless they are set.
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = ""
    cfg.MODEL.TIMM.DROP_PATH = 0.1  # stochastic depth of the last block; rises linearly from 0
    cfg.MODEL.TIMM.GRAD_CHECKPOINTING = False  # less memory, about a third more time
    # Layer-wise decay of the encoder's learning rate: block (stage of a hierarchical encoder) i of
    # n, from 0, gets decay^(n - i), the patch embedding decay^(n + 1). 1 = off.
    cfg.SOLVER.LAYER_DECAY = 1.0


def _add_self_training_config(cfg: CN) -> None:
    # Self-training of DAFormer. False trains on the source alone.
    cfg.SELF_TRAINING = CN()
    st = cfg.SELF_TRAINING
    st.ENABLED = True
    st.TEACHER_MOMENTUM = (
        0.999  # weight kept of the teacher per iteration (Eq. 2), after a warm-up 1 - 1/(t + 2)
    )
    # Batch norm of the teacher in evaluation. student: the student's running statistics, averaged;
    # target: those of the target images that the teacher has labelled.
    st.TEACHER_STATISTICS = "student"
    st.CONFIDENCE_THRESHOLD = 0.968  # theta in (16)
    # Confidence weight (16): one scalar for the whole batch (DAFormer) or one per image.
    st.CONFIDENCE = "batch"
    # Share of the crop's rows at the top and bottom whose pseudo-labels get weight 0 (rectification
    # artefacts and the ego vehicle of Cityscapes; DAFormer: 15 and 120 of 512 rows).
    st.IGNORE_TOP = 0.0
    st.IGNORE_BOTTOM = 0.0
    # The same, anchored at the image instead of the crop: top, bottom, left and right shares of the
    # target *image* (HRDA on Cityscapes: 30, 240, 30 and 30 pixels of 1024x2048).
    st.IGNORE_MARGINS = (0.0, 0.0, 0.0, 0.0)
    # Strong augmentation of the mixed image (DACS).
    st.JITTER_PROBABILITY = 0.8
    st.JITTER_STRENGTH = 0.2
    st.BLUR_PROBABILITY = 0.5
    # Masked image consistency (MIC, arXiv:2212.01322). WEIGHT 0 switches it off.
    st.MASKED = CN()
    st.MASKED.WEIGHT = 0.0
    st.MASKED.BLOCK_SIZE = 64  # pixels of the crop
    st.MASKED.RATIO = 0.7  # share of hidden blocks
    # target: all target images of the batch; pair: the first source and the first target image.
    st.MASKED.IMAGES = "target"
    st.MASKED.AUGMENT = True  # strong augmentation before masking
    # Feature distance to the frozen ImageNet encoder (DAFormer, Eq. 9-11). Needs MODEL.WEIGHTS; 0
    # switches it off.
    st.FEATURE_DISTANCE = CN()
    st.FEATURE_DISTANCE.WEIGHT = 0.0
    st.FEATURE_DISTANCE.CLASSES = (
        6,
        7,
        11,
        12,
        13,
        14,
        15,
        16,
        17,
        18,
    )  # the "things" of Cityscapes
    st.FEATURE_DISTANCE.MIN_RATIO = 0.75  # share of a feature cell that one such class must fill


def _add_prototype_config(cfg: CN) -> None:
    cfg.PROTOTYPES = CN()
    p = cfg.PROTOTYPES
    p.TYPE = "none"  # none | centroid | gauss: Eq. (5), (7)
    p.NUM_PER_CLASS = 5  # K
    p.DIM = 256  # D, channels of the embedding
    # shared: 1x1 convolution on the decode head's fused features; separate: a context-aware fusion
    # of its own.
    p.HEAD = "shared"
    p.NORMALIZE = (
        "layer"  # layer | l2 | none: of the embedding over its channels, without affine parameters
    )
    p.DISTANCE = "squared"  # squared | euclidean: reading of (8), for centroids
    p.SIMILARITY_SCALE = (
        "mean"  # mean | sum over the channels (8), (9); "sum" saturates at this temperature
    )
    p.MIN_VARIANCE = 0.05  # floor of the Gaussians' variances inside the similarity (9)
    p.MOMENTUM = 0.999  # alpha in (20), (21); 0.99 when features move quickly (short schedules)
    p.TEMPERATURE = 0.1  # tau in (11), (15), (17)
    # Embeddings that are clustered: context, or context and detail of HRDASegmentor (Table VIII).
    # A model of one resolution has the context only.
    p.SCALES = ("context",)
    p.CONTRAST_WEIGHT = 0.1  # lambda_1
    p.CONSISTENCY_WEIGHT = 0.1  # lambda_2
    # Views that enter the contrast (15), (17): source | mixed | target (the mixed view without its
    # source pixels).
    p.CONTRAST_VIEWS = ("source", "mixed")
    p.IN_CLASS_NEGATIVES = True  # siblings of the same class are negatives, too (False: Table VI)
    p.CONSISTENCY_WEIGHTED = True  # (12) weighted by w^M; False = as printed
    # Clustering (13), (14).
    p.CLUSTER_POOL = "bank"  # bank: batch and feature bank together; batch: the literal (13)
    p.POOL_SIZE = 20000  # pixels of the pool, half from the bank, balanced over the classes
    p.SINKHORN = CN()
    p.SINKHORN.EPSILON = 0.05  # entropic weight on the mean-scaled similarity; 0.1 for Gaussians
    p.SINKHORN.SWEEPS = 10
    p.BANK = CN()
    p.BANK.SIZE = 20000  # embeddings a class, kept in half precision: C * SIZE * D * 2 bytes
    p.BANK.SAMPLES_PER_IMAGE = 64  # at most, of each class
    p.INIT = CN()
    p.INIT.ITER = (
        1500  # iteration at which prototypes start; before it the prototype losses are zero
    )
    p.INIT.METHOD = "kmeans"  # kmeans on the bank | random (Algorithm 1, line 2)
    p.INIT.MIN_SAMPLES = 10  # banked embeddings a prototype that a class needs to start
    p.DEAD_AFTER = 1000  # updates without a pixel after which a prototype counts as dead
    p.REVIVE = False  # re-start dead prototypes at the farthest banked embeddings of their class
    p.GRADIENT_SHARE_PERIOD = (
        500  # iterations between two measurements of the losses' gradient norms; 0 = never
    )


def _add_solver_config(cfg: CN) -> None:
    cfg.SEED = 0
    cfg.VIS_PERIOD = 500  # iterations between two sets of pictures in TensorBoard; 0 = never
    cfg.LOG_PERIOD = (
        20  # iterations between two lines of the log: the only time the device is read from
    )
    cfg.SOLVER.IMS_PER_BATCH = 2  # images of *each* domain, over all ranks
    cfg.SOLVER.BASE_LR = 6e-5
    cfg.SOLVER.HEAD_LR_FACTOR = 10.0  # for everything outside the encoder
    cfg.SOLVER.WEIGHT_DECAY = 0.01
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0  # of the encoder's LayerNorms
    cfg.SOLVER.MAX_ITER = 60000
    cfg.SOLVER.WARMUP_ITERS = 1500
    cfg.SOLVER.WARMUP_FACTOR = 1e-6
    cfg.SOLVER.POLY_POWER = 1.0
    cfg.SOLVER.CHECKPOINT_PERIOD = 4000
    cfg.SOLVER.AMP.PRECISION = (
        "bfloat16"  # bfloat16 | float16 of the forward passes when AMP is enabled
    )


def _add_reliability_config(cfg: CN) -> None:
    # docs/RELIABILITY.md
    cfg.SOLVER.CHECKPOINT_KEEP = 0  # newest periodic checkpoints that stay, at least 1; 0 = all
    # Steps in a row that are skipped, because a loss or gradient is infinite or NaN, before the run
    # stops.
    cfg.SOLVER.MAX_SKIPPED = 20
    # --resume also where SEED, the number of processes or IMS_PER_BATCH is no longer that of the
    # checkpoint: the run draws other images from there on.
    cfg.SOLVER.RESUME_CHANGED = False
    # Warn when pseudo-labels fall below these floors between two log lines; 0 = never.
    cfg.SELF_TRAINING.COLLAPSE = CN()
    # Entropy of the classes in a batch over ln(number of classes); 0 = all pixels of one class.
    cfg.SELF_TRAINING.COLLAPSE.MIN_ENTROPY = 0.1
    cfg.SELF_TRAINING.COLLAPSE.MIN_CONFIDENT = 0.01  # fraction of pixels above the threshold
    cfg.SELF_TRAINING.COLLAPSE.AFTER = 2000  # iterations that are not judged: the teacher learns


def _add_test_config(cfg: CN) -> None:
    cfg.TEST.EVAL_PERIOD = 4000
    cfg.TEST.INFERENCE = "whole"  # whole | slide
    cfg.TEST.SLIDE = CN()
    cfg.TEST.SLIDE.CROP = (1024, 1024)  # (height, width) of a window, pixels
    cfg.TEST.SLIDE.STRIDE = (512, 512)
    cfg.TEST.SLIDE.BATCH = 4  # windows a forward pass
    # classifier | prototypes: prediction by (10). Prototypes belong to the student; the teacher has
    # none.
    cfg.TEST.OUTPUT = "classifier"
    # Means over some of the classes: each [name, [class, ...]] is reported as mIoU-<name> beside
    # the mIoU over all; the first is the headline. For sources that lack classes of the target.
    cfg.TEST.CLASS_SUBSETS = ()


def _pixel_statistics(cfg: CN) -> dict[str, list[float]]:
    """What an encoder of timm was trained with; nothing for the others."""
    if cfg.MODEL.BACKBONE.NAME != "build_timm_backbone":
        return {}
    from .modeling.timm_backbone import pixel_statistics

    mean, std = pixel_statistics(cfg.MODEL.TIMM.NAME)
    return {"PIXEL_MEAN": mean, "PIXEL_STD": std}
