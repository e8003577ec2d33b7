"""Python files that belong to no package, as modules."""

import importlib.util
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]


def load_module(path, name):
    """The file at a path below the repository's root; further files may find it by this name."""
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
