"""Packaging of mixshow. The tested set of exact versions is in constraints.txt; the ranges here are what is claimed."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
version = re.search(r'__version__ = "(.+?)"', (HERE / "mixshow/core/version.py").read_text()).group(1)

setup(
    name="mixshow",
    version=version,
    description="Train characters, fuse them into one Stable Diffusion model, and put them on stage together",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["mixshow", "mixshow.*"]),
    package_data={
        "mixshow.puppets": ["weights/**/*", "weights/*"],
        "mixshow.models": ["clip/*"],
        "mixshow": ["py.typed"],
    },
    install_requires=[
        "torch>=2.4",
        "diffusers>=0.35",
        "transformers>=5.0",
        "accelerate>=1.0",
        "safetensors>=0.4.3",
        "omegaconf>=2.3",
        "pillow>=10.0",
        "numpy>=1.26",
        "psutil>=5.9",
        "tqdm>=4.60",
        "greenlet>=3.0",
    ],
    extras_require={
        "pose": ["controlnet_aux>=0.0.9"],
        "peft": ["peft>=0.15"],
        "dev": ["pytest>=8.0", "pytest-xdist>=3.6", "ruff>=0.9", "mypy>=1.13", "peft>=0.15", "lycoris-lora>=4.1"],
    },
    entry_points={"console_scripts": ["mixshow = mixshow.cli.main:main"]},
    classifiers=["License :: OSI Approved :: Apache Software License", "Programming Language :: Python :: 3.11"],
)
