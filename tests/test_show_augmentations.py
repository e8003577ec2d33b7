"""The script that draws augmentations writes a sheet for each."""

import cv2
import pytest
from experiment_scripts import load


@pytest.fixture(scope="module")
def script():
    return load("show_augmentations")


def test_a_sheet_for_each(script, tmp_path):
    config = script.Config(
        data_dir=tmp_path / "data",
        scenes="tiny",
        canvas=(96, 128),
        n_pictures=2,
        n_variants=1,
        out=tmp_path / "out",
    )
    script.main(config)
    written = {path.stem: cv2.imread(str(path)) for path in (tmp_path / "out").iterdir()}
    assert written.keys() == script.AUGMENTATIONS.keys()
    flip, mosaic = written["flip"], written["mosaic"]
    assert flip.shape[0] == 2 * 96 + 3 * 12 and flip.shape[1] == 2 * 96 + 3 * 12
    assert mosaic.shape[1] == 2 * 128 + 3 * 12  # A mosaic fills its canvas.
    first = [picture[12:60, 12:60] for picture in written.values()]
    assert all((picture == first[0]).all() for picture in first)  # As it is.


def test_misuse(script, tmp_path):
    with pytest.raises(ValueError, match="only"):
        script.main(script.Config(only=("flop",), data_dir=tmp_path))
