"""Runs a script of experiments/ as its command line does."""

import cv2
from module_files import load_module

from jaxdet.training import recipes


def load(name):
    """A script as a module."""
    return load_module(f"experiments/{name}.py", f"experiment_{name}")


def run_script(name, arguments):
    module = load(name)
    config = recipes.from_command_line(
        module.CONFIGS, default="smoke", description="", arguments=[str(a) for a in arguments]
    )
    return module.main(config)


def assert_written(out, names):
    for name in names:
        assert (out / name).stat().st_size > 0, name
    for png in out.rglob("*.png"):
        assert cv2.imread(str(png)) is not None, png
