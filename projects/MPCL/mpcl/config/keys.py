"""Every configuration key that the project reads, with its default, meaning, unit and source.

Numbers in brackets are the paper's equations. ``dev/config_reference.py`` makes docs/CONFIG.md of
the comments: one above a key, or behind it, is the key's; one above a group is the group's.
"""

import logging
import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from ..data.sets.custom import register_from_yaml
from ..modeling.timm_backbone import pixel_statistics
from .reading import merge_file, merge_options
from .validation import check_class_subsets, validate

__all__ = ["add_mpcl_config", "default_config", "get_cfg_from"]

logger = logging.getLogger(__name__)


def get_cfg_from(
    config_file: str = "", opts: Sequence[str] = (), *, data_may_lack: bool = False
) -> CN:
    """The project's defaults, then a YAML file, then ``KEY VALUE`` pairs. Not frozen.

    Also registers the data sets that ``DATASETS.FILES`` describes, so that the names in the config
    can be looked up.

    Args:
        data_may_lack: warn, instead of raising, where a description in DATASETS.FILES cannot be
            used.
    Raises:
        FileNotFoundError: the file, or one of its ``_BASE_``, does not exist.
        UnknownKey: a KeyError and ValueError; names similar keys.
        ValueError: a value of the wrong type or range, or a combination that cannot be trained;
            the message names the keys.
    """
    cfg = default_config()
    defaults = cfg.clone()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [], []  # filled in below, unless someone sets them
    if config_file:
        merge_file(cfg, config_file)
    merge_options(cfg, opts)
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = map(os.path.expanduser, (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS))
    validate(cfg, defaults)
    mean, std = defaults.MODEL.PIXEL_MEAN, defaults.MODEL.PIXEL_STD
    if cfg.MODEL.BACKBONE.NAME == "build_timm_backbone":
        mean, std = pixel_statistics(cfg.MODEL.TIMM.NAME)
    cfg.MODEL.PIXEL_MEAN = list(cfg.MODEL.PIXEL_MEAN or mean)
    cfg.MODEL.PIXEL_STD = list(cfg.MODEL.PIXEL_STD or std)
    if cfg.DATASETS.FILES:
        for path in cfg.DATASETS.FILES:
            try:
                register_from_yaml(path)
            except (OSError, ValueError) as error:
                if not data_may_lack:
                    raise
                logger.warning(f"DATASETS.FILES: {error}. What its sets hold cannot be read here")
    for name in cfg.DATASETS.TEST:
        if name in MetadataCatalog and hasattr(MetadataCatalog.get(name), "stuff_classes"):
            check_class_subsets(cfg.TEST.CLASS_SUBSETS, MetadataCatalog.get(name).stuff_classes)
    return cfg


def default_config() -> CN:
    """Detectron2's defaults with the project's."""
    cfg = get_cfg()
    add_mpcl_config(cfg)
    return cfg


def add_mpcl_config(cfg: CN) -> None:
    """Adds the project's keys to detectron2's default config and sets the defaults of the method's
    paper."""
    _add_run_config(cfg)
    _add_data_config(cfg)
    _add_model_config(cfg)
    _add_self_training_config(cfg)
    _add_prototype_config(cfg)
    _add_solver_config(cfg)
    _add_test_config(cfg)


def _add_run_config(cfg: CN) -> None:
    cfg.SEED = 0  # of all random numbers
    cfg.OUTPUT_DIR = "./output"  # folder of the run; every config has its own
    cfg.VIS_PERIOD = 500  # iterations between two strips of pictures in TensorBoard; 0 = never
    cfg.LOG_PERIOD = 20  # iterations between two log lines; each waits for the device
    cfg.CUDNN_BENCHMARK = False  # let cuDNN pick the fastest algorithms; they differ between runs
    # Weights & Biases, beside TensorBoard (docs/SEEING.md).
    cfg.WANDB = CN()
    cfg.WANDB.PROJECT = ""  # name of the project that runs are sent to; "" = off


def _add_data_config(cfg: CN) -> None:
    cfg.DATASETS.TRAIN = ()  # names of the labelled source sets
    cfg.DATASETS.TRAIN_TARGET = ()  # names of the image-only target sets
    cfg.DATASETS.TEST = ()  # names of the sets that are evaluated; () = no evaluation
    # [name, number] for each set of DATASETS.TRAIN, DATASETS.TRAIN_TARGET or both: how often it is
    # drawn, relative to the others of its key. () = the sets of a key are drawn as one large set.
    cfg.DATASETS.SHARES = ()
    # YAML descriptions of your own data sets (datasets/README.md).
    cfg.DATASETS.FILES = ()
    # Detectron2's keys that have one value here; any other is refused.
    cfg.INPUT.FORMAT, cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = "RGB", True, "absolute"

    # (width, height) of a box into which source images are resized, aspect ratio kept; (0, 0) =
    # native size.
    cfg.INPUT.SOURCE_SIZE = (1280, 720)
    cfg.INPUT.TARGET_SIZE = (1280, 640)  # the same for target images, also at test time
    cfg.INPUT.RANDOM_FLIP = "horizontal"  # horizontal | none: of the training images
    # Photometric distortion in the loader, for source-only training; self-training augments the
    # mixed image instead.
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.CROP.SIZE = (640, 640)  # (height, width), pixels, of the crops of both domains
    # Source crops in which one class fills this share of the labelled pixels are drawn again; 1.0 =
    # never.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75

    cfg.DATALOADER.NUM_WORKERS = 4  # loader processes of each rank; 0 = load in the trainer
    # error | skip: a training file that cannot be used (corrupt, truncated, wrong mode) stops the
    # run, or another image is drawn in its place.
    cfg.DATALOADER.ON_BAD_FILE = "error"
    cfg.DATALOADER.MAX_BAD_FILES = 10  # with skip: bad files after which the run stops anyway
    # Rare-class sampling (DAFormer, arXiv:2111.14887, Sec. 3.3).
    cfg.DATALOADER.RARE_CLASS = CN()
    cfg.DATALOADER.RARE_CLASS.ENABLED = True  # False draws source images evenly
    cfg.DATALOADER.RARE_CLASS.TEMPERATURE = 0.01  # the lower, the more often rare classes are drawn
    # An image is a candidate for a class that covers more than this share of it (DAFormer: 3000
    # pixels, here of GTA5's 1914x1052).
    cfg.DATALOADER.RARE_CLASS.MIN_IMAGE_FRACTION = 0.00149
    # A crop is drawn again, up to ten times, until the class covers more than this share (DAFormer:
    # 1500 of 512x512).
    cfg.DATALOADER.RARE_CLASS.MIN_CROP_FRACTION = 0.00572


def _add_model_config(cfg: CN) -> None:
    cfg.MODEL.META_ARCHITECTURE = "MPCLSegmentor"  # or HRDASegmentor, for two resolutions
    # Start from this weight file (docs/PREDICT.md lists the formats); "" = random; with --eval-only
    # the checkpoint to evaluate.
    cfg.MODEL.WEIGHTS = ""
    # Start from MODEL.WEIGHTS even if its backbone or the shape of a tensor is not the model's.
    cfg.MODEL.ALLOW_UNMATCHED = False
    # torch.compile for the encoders' blocks in training; the first step then takes minutes. Needs
    # torch 2.6 and a C++ compiler. Gain not measured.
    cfg.MODEL.COMPILE = False
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the model runs
    # Mean RGB, 0-255, of the pixels that the encoder was trained with: ImageNet's; timm's own for
    # timm encoders, unless set.
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]  # their standard deviation, likewise
    # The encoder: MixTransformer, build_timm_backbone or build_resnet_backbone (docs/BACKBONES.md).
    cfg.MODEL.BACKBONE.NAME = "MixTransformer"
    # Mix Transformer and timm: stochastic depth of the last block; it rises linearly from 0.
    cfg.MODEL.BACKBONE.DROP_PATH = 0.1
    # Mix Transformer and timm: keep only each block's input, and compute the block again in the
    # backward: less memory, a quarter to a third more time.
    cfg.MODEL.BACKBONE.CHECKPOINT = False
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # Detectron2's ResNets: stages that are not trained
    cfg.MODEL.RESNETS.DEPTH = 50  # 18, 34, 50, 101, 152: Detectron2's ResNets (docs/BACKBONES.md)
    # SegFormer's encoder (arXiv:2105.15203).
    cfg.MODEL.MIT = CN()
    cfg.MODEL.MIT.VARIANT = "b5"  # b0, b1, b2, b3, b4, b5
    # Any encoder of timm, with MODEL.BACKBONE.NAME build_timm_backbone (docs/BACKBONES.md).
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = ""  # timm's name of the encoder; its tag decides the normalisation

    # HRDA (arXiv:2204.13132), with MODEL.META_ARCHITECTURE HRDASegmentor: the context is the crop
    # at half size, the detail a random part of the crop at full size.
    cfg.MODEL.HRDA = CN()
    cfg.MODEL.HRDA.DETAIL_SIZE = (512, 512)  # (height, width), pixels
    cfg.MODEL.HRDA.DETAIL_WEIGHT = 0.1  # lambda_d of the detail's losses; others get 1 - lambda_d

    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME = "DAFormerHead"  # the decode head (DAFormer, arXiv:2111.14887)
    # Levels of the encoder that the head reads, strides 4 to 32; of ResNets res2 ... res5.
    head.IN_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    head.NUM_CLASSES = 19  # C; must be that of the data sets
    head.CONVS_DIM = 256  # channels of the level embeddings and of the fused features
    # BN, SyncBN, FrozenBN, GN, LN or '' for none; BN becomes SyncBN on several GPUs.
    head.NORM = "BN"
    head.DROPOUT = 0.1  # channel dropout before the classifier
    head.DILATIONS = (1, 6, 12, 18)  # of the context-aware fusion


def _add_self_training_config(cfg: CN) -> None:
    # Self-training of DAFormer.
    cfg.SELF_TRAINING = CN()
    st = cfg.SELF_TRAINING
    st.ENABLED = True  # False trains on the source alone
    # alpha of the teacher's moving average (2), after a warm-up 1 - 1/(t + 2).
    st.TEACHER_MOMENTUM = 0.999
    # The teacher's batch norm statistics in evaluation. student: the student's, averaged; target:
    # those of the target images that the teacher has labelled.
    st.TEACHER_STATISTICS = "student"
    st.CONFIDENCE_THRESHOLD = 0.968  # theta in (16)
    # Confidence weight (16): one for the whole batch (DAFormer), or one for each image.
    st.CONFIDENCE = "batch"
    # Share of the crop's rows at the top whose pseudo-labels get weight 0 (rectification artefacts
    # of Cityscapes; DAFormer: 15 of 512 rows).
    st.IGNORE_TOP = 0.0
    st.IGNORE_BOTTOM = 0.0  # the same at the bottom (the ego vehicle; DAFormer: 120 of 512 rows)
    # The same for the target *image* instead of the crop: top, bottom, left and right shares (HRDA
    # on Cityscapes: 30, 240, 30 and 30 pixels of 1024x2048).
    st.IGNORE_MARGINS = (0.0, 0.0, 0.0, 0.0)
    st.JITTER_PROBABILITY = 0.8  # of colour jitter on the mixed images (DACS)
    st.JITTER_STRENGTH = 0.2  # its range of brightness, contrast, saturation and hue
    st.BLUR_PROBABILITY = 0.5  # of Gaussian blur on the mixed images (DACS)
    # Masked image consistency (MIC, arXiv:2212.01322).
    st.MASKED = CN()
    st.MASKED.WEIGHT = 0.0  # of its loss; 0 switches it off
    st.MASKED.BLOCK_SIZE = 64  # pixels of the crop
    st.MASKED.RATIO = 0.7  # share of hidden blocks
    # target: all target images of the batch; pair: the first source and the first target image.
    st.MASKED.IMAGES = "target"
    st.MASKED.AUGMENT = True  # strong augmentation before masking
    # Feature distance to the frozen ImageNet encoder (DAFormer, arXiv:2111.14887, Sec. 3.3).
    st.FEATURE_DISTANCE = CN()
    st.FEATURE_DISTANCE.WEIGHT = 0.0  # of its loss; needs MODEL.WEIGHTS; 0 switches it off
    # Classes whose features are compared: the "things" of Cityscapes.
    st.FEATURE_DISTANCE.CLASSES = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
    st.FEATURE_DISTANCE.MIN_RATIO = 0.75  # share of a feature cell that one such class must fill
    # Warns when pseudo-labels fall below these floors; 0 = never (docs/RELIABILITY.md).
    st.COLLAPSE = CN()
    # Entropy of the classes in a batch over ln(number of classes); 0 = all pixels of one class.
    st.COLLAPSE.MIN_ENTROPY = 0.1
    st.COLLAPSE.MIN_CONFIDENT = 0.01  # fraction of pixels above the threshold
    st.COLLAPSE.AFTER = 2000  # iterations at the start that are not judged


def _add_prototype_config(cfg: CN) -> None:
    # The prototypes of each class, and their losses.
    cfg.PROTOTYPES = CN()
    p = cfg.PROTOTYPES
    p.TYPE = "none"  # none | centroid (5) | gauss (7)
    p.NUM_PER_CLASS = 5  # K, prototypes per class (Table IX)
    p.DIM = 256  # D, channels of the embedding
    # separate: a context-aware fusion of its own; shared: a 1x1 convolution on the decode head's
    # fused features.
    p.HEAD = "separate"
    # layer | l2 | none: of the embedding over its channels, without affine parameters.
    p.NORMALIZE = "layer"
    p.DISTANCE = "squared"  # squared | euclidean: reading of (8), for centroids
    # mean | sum over the channels (8), (9); sum saturates the softmax at TEMPERATURE 0.1.
    p.SIMILARITY_SCALE = "mean"
    p.MIN_VARIANCE = 0.05  # floor of the Gaussians' variances inside the similarity (9)
    p.MOMENTUM = 0.999  # alpha in (20), (21); 0.99 when features move quickly (short schedules)
    p.TEMPERATURE = 0.1  # tau in (11), (15), (17)
    # Embeddings that are clustered: context or, with HRDASegmentor, context and detail (Table
    # VIII).
    p.SCALES = ("context",)
    p.CONTRAST_WEIGHT = 0.1  # lambda_1 of (18) (Table X)
    p.CONSISTENCY_WEIGHT = 0.1  # lambda_2 of (18) (Table X)
    # Views whose contrast enters, each with the full CONTRAST_WEIGHT: mixed (17), as in (18);
    # source (15); target (the mixed view without its source pixels: Table VII).
    p.CONTRAST_VIEWS = ("mixed",)
    p.IN_CLASS_NEGATIVES = True  # a class's other prototypes are negatives, too (False: Table VI)
    # (12) weighted by w^M; False = unweighted, but pixels with w^M = 0 are left out.
    p.CONSISTENCY_WEIGHTED = True
    # What is clustered: bank = batch and feature bank; batch = the batch alone, the literal (13).
    p.CLUSTER_POOL = "bank"
    p.POOL_SIZE = 20000  # pixels of the pool, half from the bank, balanced over the classes
    # Balanced clustering (13), (14).
    p.SINKHORN = CN()
    # Entropic weight on the mean-scaled similarity; 0 = 0.05 for centroid, 0.1 for gauss.
    p.SINKHORN.EPSILON = 0.0
    p.SINKHORN.SWEEPS = 10  # Sinkhorn iterations
    # The feature bank: embeddings of earlier batches.
    p.BANK = CN()
    # Embeddings per class (Table XI), in half precision: C * SIZE * D * 2 bytes.
    p.BANK.SIZE = 20000
    p.BANK.SAMPLES_PER_IMAGE = 64  # at most, of each class
    # The start of the prototypes.
    p.INIT = CN()
    p.INIT.ITER = 1500  # iteration at which they start; until then their losses are zero
    p.INIT.METHOD = "kmeans"  # kmeans on the bank | random (Algorithm 1, line 2)
    p.INIT.MIN_SAMPLES = 10  # banked embeddings per prototype that a class needs to start
    # Iterations between two comparisons of the losses' gradients; 0 = never.
    p.GRADIENT_SHARE_PERIOD = 500


def _add_solver_config(cfg: CN) -> None:
    cfg.SOLVER.IMS_PER_BATCH = 2  # images of *each* domain, over all ranks
    cfg.SOLVER.BASE_LR = 6e-5  # peak learning rate of the encoder
    cfg.SOLVER.HEAD_LR_FACTOR = 10.0  # times BASE_LR: the rate of everything outside the encoder
    # Layer-wise decay of the encoder's learning rate (docs/BACKBONES.md). 1 = off.
    cfg.SOLVER.LAYER_DECAY = 1.0
    cfg.SOLVER.WEIGHT_DECAY = 0.01  # AdamW's
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0  # of the encoder's LayerNorms
    cfg.SOLVER.MAX_ITER = 60000  # iterations of the run; the baselines use 40,000
    cfg.SOLVER.WARMUP_ITERS = 1500  # iterations over which the learning rate rises linearly
    cfg.SOLVER.WARMUP_FACTOR = 1e-6  # share of the learning rate at its start
    cfg.SOLVER.POLY_POWER = 1.0  # the rate falls as (1 - t / MAX_ITER) to this power
    cfg.SOLVER.AMP.ENABLED = False  # autocast of the forward passes; True in the full-size configs
    cfg.SOLVER.AMP.PRECISION = "bfloat16"  # bfloat16 | float16
    # On a GPU: only deterministic algorithms, some of them slower (docs/RELIABILITY.md).
    cfg.SOLVER.DETERMINISTIC = False
    cfg.SOLVER.CHECKPOINT_PERIOD = 4000  # iterations between two checkpoints
    cfg.SOLVER.CHECKPOINT_KEEP = 0  # number of newest periodic checkpoints kept; 0 = all
    # The run stops after this many steps in a row with an infinite or NaN loss or gradient.
    cfg.SOLVER.MAX_SKIPPED = 20
    # Let --resume go on although SEED, class list or another setting that defines a run has changed
    # (docs/RELIABILITY.md).
    cfg.SOLVER.RESUME_CHANGED = False


def _add_test_config(cfg: CN) -> None:
    cfg.TEST.EVAL_PERIOD = 4000  # iterations between two evaluations; 0 = at the end only
    # bfloat16 forward passes in evaluation and prediction, on GPUs that support it.
    cfg.TEST.AMP = True
    cfg.TEST.INFERENCE = "whole"  # whole image | slide: windows, whose logits are averaged
    # The windows of TEST.INFERENCE slide.
    cfg.TEST.SLIDE = CN()
    cfg.TEST.SLIDE.CROP = (1024, 1024)  # (height, width) of a window, pixels
    cfg.TEST.SLIDE.STRIDE = (512, 512)  # (vertical, horizontal) between windows, pixels
    cfg.TEST.SLIDE.BATCH = 4  # windows per forward pass
    # Test-time augmentation, in every evaluation and prediction: probabilities are averaged over
    # several sizes, which replace INPUT.TARGET_SIZE, and over mirrored images.
    cfg.TEST.AUG.ENABLED = False
    # Sizes of the shorter side, pixels; each costs one forward pass, with FLIP two.
    cfg.TEST.AUG.MIN_SIZES = (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
    cfg.TEST.AUG.MAX_SIZE = 4000  # pixels of the longer side, at most
    cfg.TEST.AUG.FLIP = True  # also mirrored left to right
    # classifier | prototypes: prediction by (10), of the student alone; the teacher has none.
    cfg.TEST.OUTPUT = "classifier"
    # Means over some of the classes, for sources that lack classes of the target: [name, [class,
    # ...]] is reported as mIoU-<name> beside the mIoU over all; the first is the headline.
    cfg.TEST.CLASS_SUBSETS = ()
    # A set of DATASETS.TEST: the checkpoint with the best headline on it is kept, too, as
    # model_selected_on_labels.pth. This is selection on labels. "" = off.
    cfg.TEST.SELECT_ON = ""
