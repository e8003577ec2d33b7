"""What holds for the whole package: names, docstrings, signatures, files and their tests."""

import importlib
import inspect
import pathlib
import re

import pytest

import jaxdet

ROOT = pathlib.Path(jaxdet.__file__).parents[1]
FILES = sorted((ROOT / "jaxdet").rglob("*.py"))
MODULES = [path for path in FILES if path.name != "__init__.py"]

# Defaults that may be given by position.
POSITIONAL_DEFAULTS = {
    "jaxdet.systems.architectures.build": {"architecture"},  # The subject, not an option.
    "jaxdet.systems.localizer.build": {"architecture"},
    "jaxdet.systems.deep_pose.build": {"architecture"},
    "jaxdet.systems.overfeat.build": {"architecture"},
    "jaxdet.data.pipeline.iterate": {"start"},  # As in `enumerate`.
}
# Files whose tests have another name than theirs, so that no two test files share one.
TEST_NAMES = {
    "losses/boxes.py": "test_box_losses.py",
    "reports.py": "test_run_reports.py",  # Another is in data/.
    "features/overfeat.py": "test_overfeat_network.py",
    "features/dense.py": "test_dense_layers.py",
}


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def public(module):
    """Functions and classes that a module defines, and the methods of the classes."""
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(member):
            yield f"{module.__name__}.{name}", member
            for key, value in vars(member).items():
                function = getattr(value, "fget", None) or value
                written_here = inspect.unwrap(function) if callable(function) else None
                if inspect.isfunction(written_here) and not is_generated(written_here, module):
                    visible = not key.startswith("_") or key == "__call__"
                    if visible:
                        yield f"{module.__name__}.{name}.{key}", function
        elif inspect.isfunction(inspect.unwrap(member)) if callable(member) else False:
            yield f"{module.__name__}.{name}", member


def is_generated(function, module):
    """Whether a dataclass or a named tuple wrote the method."""
    return function.__code__.co_filename != module.__file__


PUBLIC = dict(pair for path in MODULES for pair in public(importlib.import_module(name_of(path))))
FUNCTIONS = {name: f for name, f in PUBLIC.items() if not inspect.isclass(f)}


def parameters(function):
    return [
        p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")
    ]


def test_something_was_found():
    assert {"jaxdet.geometry.nms.nms", "jaxdet.features.fpn.FPN.__call__"} <= FUNCTIONS.keys()
    assert "jaxdet.structures.Batch" in PUBLIC
    assert "jaxdet.training.loop.run" in PUBLIC


def test_everything_public_has_a_docstring():
    # A class without one inherits its parent's, or a dataclass writes its signature.
    def written(member):
        text = member.__doc__ or ""
        generated = text.startswith((f"{member.__name__}(", "Alias for field"))
        return text.strip() and not generated

    assert [name for name, member in PUBLIC.items() if not written(member)] == []


def test_all_arguments_and_results_are_annotated():
    bare = []
    for name, function in FUNCTIONS.items():
        bare += [f"{name}: {p.name}" for p in parameters(function) if p.annotation is p.empty]
        if inspect.signature(function).return_annotation is inspect.Signature.empty:
            bare.append(f"{name}: result")
    assert bare == []


def test_options_are_keyword_only():
    positional = [
        f"{name}: {p.name}"
        for name, function in FUNCTIONS.items()
        for p in parameters(function)
        if p.kind is p.POSITIONAL_OR_KEYWORD
        and p.default is not p.empty
        and p.name not in POSITIONAL_DEFAULTS.get(name, ())
    ]
    assert positional == []


def test_flags_are_keyword_only():
    positional = [
        f"{name}: {p.name}"
        for name, function in FUNCTIONS.items()
        for p in parameters(function)
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.annotation in (bool, "bool")
    ]
    assert positional == []


def test_a_key_comes_first():
    late = [
        name
        for name, function in FUNCTIONS.items()
        if "key" in [p.name for p in parameters(function)][1:]
    ]
    assert late == []


def sections(text):
    """A docstring's parts by heading, whatever its indentation."""
    parts = re.split(
        r"^(Args|Returns|Raises|Source|Departures):\n", inspect.cleandoc(text), flags=re.M
    )
    return dict(zip(parts[1::2], parts[2::2], strict=True)) | {"": parts[0]}


def test_docstrings_name_arguments_that_there_are():
    wrong = []
    for name, function in FUNCTIONS.items():
        listed = re.findall(r"^  (\w+): ", sections(function.__doc__).get("Args", ""), flags=re.M)
        taken = [p.name for p in parameters(function)]
        if listed and listed != taken:
            wrong.append(f"{name}: describes {listed}, takes {taken}")
    assert wrong == []


def test_papers_are_cited_under_source():
    # Departures may cite too: where the change is from.
    misplaced = []
    for name, member in PUBLIC.items():
        for heading, text in sections(member.__doc__).items():
            if re.search(r"arXiv:", text) and heading not in ("Source", "Departures"):
                misplaced.append(name)
    assert misplaced == []


def test_papers_are_cited_with_year_and_place():
    place = r"section|appendix|eq|algorithm|table|figure|\w+\.py"
    vague = [
        name
        for name, member in PUBLIC.items()
        if "arXiv" in (source := sections(member.__doc__).get("Source", ""))
        and not (re.search(r"\b(19|20)\d\d\b", source) and re.search(place, source))
    ]
    assert vague == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_module_has_its_test(path):
    inner = path.relative_to(ROOT / "jaxdet")
    name = TEST_NAMES.get(str(inner), f"test_{inner.name}")
    assert (ROOT / "tests" / inner.parent / name).is_file()


def test_test_files_have_names_of_their_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_files_have_readable_lengths():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_files_are_named_for_what_they_hold():
    assert [p for p in FILES if p.stem in ("utils", "util", "common", "helpers", "misc")] == []


def test_modules_say_what_they_are_about():
    assert [name_of(p) for p in FILES if not importlib.import_module(name_of(p)).__doc__] == []


def test_inits_hold_one_docstring():
    # A package's names are its modules: there is one way to import each.
    inits = [p for p in FILES if p.name == "__init__.py"]
    assert [p for p in inits if re.sub(r'^""".*?"""', "", p.read_text(), flags=re.S).strip()] == []
